"""The proxy does what each fault is named for, as a plain HTTP client sees it."""

import http.client
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.chaos.certificate import server_context
from tests.chaos.faults import Fault, FaultPlan
from tests.chaos.proxy import proxied
from tests.local_http import running

CONTENT = bytes(range(200))
received: list[bytes] = []


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        received.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    do_PUT = do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        """Nothing is said on stderr."""


@pytest.fixture
def server_port() -> Iterator[int]:
    received.clear()
    with running(Server) as url:
        yield int(url.rpartition(":")[2])


def ask(
    server_port: int, *faults: Fault, method: str = "GET", target: str = "/bucket/name", **headers: str
) -> tuple[int, bytes]:
    plan = FaultPlan(0, 1.0 if faults else 0.0, kinds=faults)
    with proxied(server_port, plan) as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, b"" if method == "GET" else CONTENT, names)
        answer = connection.getresponse()
        try:
            return answer.status, answer.read()
        finally:
            connection.close()
            assert plan.counts == dict.fromkeys(faults, 1)


def bits_that_differ(one: bytes, other: bytes) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def test_without_faults_requests_and_answers_come_through(server_port: int) -> None:
    assert ask(server_port, method="PUT") == (200, CONTENT)
    assert received == [CONTENT]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.SLOW_DOWN, 503, b"SlowDown"),
        (Fault.SERVER_ERROR, 500, b"InternalError"),
        (Fault.EXPIRED, 400, b"ExpiredToken"),
        (Fault.CONFLICT, 409, b"ConditionalRequestConflict"),
    ],
)
def test_a_refusal_never_reaches_the_server(server_port: int, fault: Fault, status: int, code: bytes) -> None:
    answered = ask(server_port, fault, method="PUT", If_None_Match="*")
    assert answered[0] == status
    assert code in answered[1]
    assert received == []


def test_a_412_after_success_comes_after_the_server_took_the_write(server_port: int) -> None:
    assert ask(server_port, Fault.PRECONDITION, method="PUT", If_None_Match="*")[0] == 412
    assert received == [CONTENT]


def test_a_reset_before_leaves_the_server_without_the_request(server_port: int) -> None:
    with pytest.raises(ConnectionResetError):
        ask(server_port, Fault.RESET_BEFORE)
    assert received == []


@pytest.mark.parametrize("fault", [Fault.RESET_AFTER, Fault.LOST_COMPLETION])
def test_a_reset_after_comes_when_the_server_has_done_its_work(server_port: int, fault: Fault) -> None:
    with pytest.raises(ConnectionResetError):
        ask(server_port, fault, method="POST", target="/bucket/name?uploadId=1")
    assert received == [CONTENT]


def test_a_reset_inside_the_request_leaves_the_server_with_a_part_of_it(server_port: int) -> None:
    with pytest.raises(ConnectionResetError):
        ask(server_port, Fault.RESET_IN_REQUEST, method="PUT")
    assert received in ([], [CONTENT[:100]])


def test_a_truncated_answer_and_a_reset_inside_it_give_half(server_port: int) -> None:
    with pytest.raises(http.client.IncompleteRead) as cut:
        ask(server_port, Fault.TRUNCATED)
    assert cut.value.partial == CONTENT[:100]
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        ask(server_port, Fault.RESET_IN_ANSWER)


def test_one_bit_is_flipped_on_the_way_there_or_back(server_port: int) -> None:
    assert bits_that_differ(ask(server_port, Fault.FLIPPED_ANSWER)[1], CONTENT) == 1
    assert ask(server_port, Fault.FLIPPED_REQUEST, method="PUT")[1] == CONTENT
    assert bits_that_differ(received[-1], CONTENT) == 1


def test_a_slow_answer_is_whole(server_port: int) -> None:
    assert ask(server_port, Fault.SLOW_ANSWER) == (200, CONTENT)


def test_the_same_seed_gives_the_same_repetition_the_same_fault(server_port: int) -> None:
    courses = []
    for _ in range(2):
        plan = FaultPlan(5, 0.5, kinds=(Fault.SLOW_DOWN, Fault.SERVER_ERROR))
        with proxied(server_port, plan) as (_, port):
            statuses = []
            for number in range(12):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", f"/{number % 3}")
                statuses.append(connection.getresponse().status)
                connection.close()
        courses.append(statuses)
    assert courses[0] == courses[1]
    assert len(set(courses[0])) == 3


def test_over_tls_only_those_who_trust_the_certificate_come_through(server_port: int, tmp_path: Path) -> None:
    context, trusted = server_context(tmp_path)
    with proxied(server_port, tls=context) as (_, port):
        for authority, works in ((str(trusted), True), (None, False)):
            client = ssl.create_default_context(cafile=authority)
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=client)
            if works:
                connection.request("GET", "/")
                assert connection.getresponse().read() == CONTENT
            else:
                with pytest.raises(ssl.SSLCertVerificationError):
                    connection.request("GET", "/")
            connection.close()
