"""As much of HTTP/1.1 as a proxy needs: where a message ends, and its body in the clear."""

import asyncio
from dataclasses import dataclass

from tests.chaos.faults import Request

END_OF_HEAD = b"\r\n\r\n"
WITHOUT_BODY = (204, 304)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """An answer: its head as it goes to the client, and its body."""

    head: bytes
    body: bytes
    keeps_alive: bool

    def with_body(self, body: bytes) -> "Answer":
        """The same answer with another body of the same length."""
        return Answer(self.head, body, self.keeps_alive)


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    """The next request, whole; a client that waits for leave to send its body gets it from us."""
    first, headers = await _read_head(reader)
    if headers.pop("expect", "").lower() == "100-continue":
        writer.write(CONTINUE)
    body = await _read_body(reader, headers)
    method, target, _ = first.split(" ", 2)
    return Request(method, target, _head(first, headers), headers, body)


async def read_answer(reader: asyncio.StreamReader, method: str) -> Answer:
    """The answer to a request of this method; one in chunks is put together and given its length."""
    first, headers = await _read_head(reader)
    status = int(first.split(" ")[1])
    if status == 100:
        return await read_answer(reader, method)
    keeps_alive = headers.get("connection", "").lower() != "close"
    if method == "HEAD" or status in WITHOUT_BODY:
        return Answer(_head(first, headers), b"", keeps_alive)
    body = await _read_body(reader, headers)
    headers["content-length"] = str(len(body))
    return Answer(_head(first, headers), body, keeps_alive)


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    lines = (await reader.readuntil(END_OF_HEAD)).decode("latin-1").split("\r\n")[:-2]
    pairs = (line.partition(":") for line in lines[1:])
    return lines[0], {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.pop("transfer-encoding", "") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    pieces = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        pieces.append(await reader.readexactly(size))
        await reader.readuntil(b"\r\n")
    await reader.readuntil(b"\r\n")
    headers["content-length"] = str(sum(map(len, pieces)))
    return b"".join(pieces)


def _head(first: str, headers: dict[str, str]) -> bytes:
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode("latin-1")
