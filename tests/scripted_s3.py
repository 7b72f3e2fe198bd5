"""A server that says what a test tells it to, in place of S3, and keeps what it was asked."""

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
REFUSAL = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
NOTHING_LISTED = "<ListBucketResult/>"


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    headers: Message
    body: bytes


@contextmanager
def answering(*answers: tuple[int, str], certificate: Path | None = None) -> Iterator[tuple[str, list[Request]]]:
    """A server that gives these answers one by one, the last for ever: its URL and what it was asked.

    An answer is a status, and XML or the code of a refusal; with status 0 the connection is cut, and 1 is a body that
    ends too early.
    """
    left = list(answers)
    asked: list[Request] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            asked.append(Request(self.command, self.path, self.headers, body))
            status, text = left.pop(0) if len(left) > 1 else left[0]
            if status == 0:
                self.close_connection = True
                return
            refusal = text and not text.startswith("<")
            answer = (REFUSAL.format(code=text) if refusal else text or NOTHING_LISTED).encode()
            self.send_response(max(status, 200))
            self.send_header("Content-Length", str(len(answer) + (status == 1)))
            self.send_header("ETag", '"etag"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)
            self.close_connection = status == 1

        do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

        def log_message(self, *arguments: object) -> None:
            """Nothing is said on stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}", asked
        server.shutdown()
