"""An HTTP proxy between S3 clients and a server that does to requests what a plan of faults says, also over TLS."""

import asyncio
import random
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.chaos.faults import Fault, FaultPlan, Request, flipped
from tests.chaos.http_messages import Answer, read_answer, read_request

MESSAGE_BYTES = 64 * 2**20
NUM_SLOW_PIECES = 4
SLOW_PAUSE_S = 0.05
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # lingering for 0 s: closing sends RST
REFUSALS = {
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.SERVER_ERROR: (500, "InternalError"),
    Fault.PRECONDITION: (412, "PreconditionFailed"),
    Fault.CONFLICT: (409, "ConditionalRequestConflict"),
    Fault.EXPIRED: (400, "ExpiredToken"),
}
NOT_FORWARDED = (Fault.SLOW_DOWN, Fault.SERVER_ERROR, Fault.RESET_BEFORE, Fault.CONFLICT, Fault.EXPIRED)
RESETS = (Fault.RESET_BEFORE, Fault.RESET_AFTER, Fault.RESET_IN_REQUEST, Fault.LOST_COMPLETION)
IN_ANSWER = (Fault.RESET_IN_ANSWER, Fault.TRUNCATED, Fault.FLIPPED_ANSWER, Fault.SLOW_ANSWER)


class Proxy:
    """Forwards each request to the server at `port` on loopback, and counts what each client's address sent."""

    def __init__(self, port: int, plan: FaultPlan | None = None) -> None:
        self.plan = plan or FaultPlan(0, share=0.0)
        self.parts_sent: Counter[str] = Counter()
        self._port = port
        self._lot = random.Random(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, request by request, until it or a fault ends it."""
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port, limit=MESSAGE_BYTES)
        try:
            while await self._pass_on(await read_request(reader, writer), server_reader, server_writer, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            _reset(writer)
        finally:
            for end in (server_writer, writer):
                end.close()

    async def _pass_on(
        self,
        request: Request,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> bool:
        """Serve one request, or spoil it; returns whether the connections live on."""
        fault = self.plan.draw(request)
        answer = None
        if fault is Fault.RESET_IN_REQUEST:
            server_writer.write(request.head + request.body[: len(request.body) // 2])
            await server_writer.drain()
        elif fault not in NOT_FORWARDED:
            body = flipped(request.body, self._lot) if fault is Fault.FLIPPED_REQUEST else request.body
            server_writer.write(request.head + body)
            answer = await read_answer(server_reader, request.method)
            self._count(request, client)
        if fault in IN_ANSWER and (answer is None or not answer.body):
            fault = None
        if fault is not None:
            self.plan.counts[fault] += 1
        lives = await self._deliver(fault, request, answer, client)
        return lives and (answer is None or answer.keeps_alive)

    async def _deliver(
        self, fault: Fault | None, request: Request, answer: Answer | None, client: asyncio.StreamWriter
    ) -> bool:
        """Give the client the answer, or what the fault leaves of it; returns whether its connection lives on."""
        if fault in RESETS:
            _reset(client)
            return False
        if fault in REFUSALS and (fault is not Fault.PRECONDITION or answer is not None):
            client.write(_refusal(*REFUSALS[fault], with_body=request.method != "HEAD"))
            await client.drain()
            return True
        assert answer is not None
        if fault is Fault.FLIPPED_ANSWER:
            answer = answer.with_body(flipped(answer.body, self._lot))
        if fault is Fault.SLOW_ANSWER:
            await _write_slowly(client, answer)
            return True
        cut = fault in (Fault.RESET_IN_ANSWER, Fault.TRUNCATED)
        client.write(answer.head + (answer.body[: len(answer.body) // 2] if cut else answer.body))
        await client.drain()
        if fault is Fault.RESET_IN_ANSWER:
            _reset(client)
        return not cut

    def _count(self, request: Request, client: asyncio.StreamWriter) -> None:
        address = client.get_extra_info("peername")[0]

        is_part = request.method == "PUT" and "partNumber=" in request.target
        self.parts_sent[address] += is_part and "/artifacts/" in request.target


@contextmanager
def proxied(
    port: int, plan: FaultPlan | None = None, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> Iterator[tuple[Proxy, int]]:
    """A proxy before the server at `port`, and the port at `address` where it listens, in a thread of its own."""
    proxy = Proxy(port, plan)
    listener = socket.create_server((address, 0), backlog=1024)
    loop = asyncio.new_event_loop()

    async def listen() -> None:
        await asyncio.start_server(proxy.serve, sock=listener, ssl=tls, limit=MESSAGE_BYTES)

    loop.run_until_complete(listen())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy, listener.getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(_end_connections(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        listener.close()


async def _end_connections() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _refusal(status: int, code: str, with_body: bool) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (body if with_body else b"")


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()


async def _write_slowly(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(answer.head)
    piece = -(-len(answer.body) // NUM_SLOW_PIECES)
    for start in range(0, len(answer.body), piece):
        await asyncio.sleep(SLOW_PAUSE_S)
        writer.write(answer.body[start : start + piece])
        await writer.drain()
