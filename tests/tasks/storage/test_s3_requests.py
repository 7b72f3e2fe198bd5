"""What is asked again, for how long and with which pauses, and what fails at once."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tasks.errors import InputError
from tasks.storage.s3_options import S3Options
from tasks.storage.s3_requests import Requests, pauses_within
from tests.scripted_s3 import KEYS, answering

pytestmark = pytest.mark.slow

SetAccount = Callable[[Mapping[str, str]], None]


@pytest.fixture
def requests_to(set_account: SetAccount, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Requests]:
    """Makes requests to a URL, with next to no pauses."""
    monkeypatch.setattr("tasks.storage.s3_requests.LONGEST_PAUSE_S", 0.01)

    def make(url: str, deadline_s: float = 10.0) -> Requests:
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        return Requests("s3://bucket", S3Options(deadline_s=deadline_s))

    return make


def get(client: object) -> bytes:
    return client.get_object(Bucket="bucket", Key="name")["Body"].read()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "outage",
    [
        (500, "InternalError"),
        (503, "SlowDown"),
        (503, "<html>a proxy's page</html>"),
        (502, ""),
        (429, "TooManyRequests"),
        (409, "OperationAborted"),
        (409, "ConditionalRequestConflict"),
        (400, "RequestTimeout"),
        (400, "BadDigest"),
        (400, "XAmzContentSHA256Mismatch"),
        (0, ""),
        (1, ""),
    ],
)
def test_an_outage_is_waited_out_with_fresh_clients(
    outage: tuple[int, str], requests_to: Callable[..., Requests]
) -> None:
    with answering(*[outage] * 7, (200, "<whole/>")) as (url, asked):
        requests = requests_to(url)
        clients = []
        assert requests.send(lambda client: clients.append(client) or get(client)) == b"<whole/>"
        assert len(asked) == 8
        assert len({id(client) for client in clients}) == 8


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (403, "InvalidAccessKeyId", "Set AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "Set AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", "Give these keys the right"),
        (403, "RequestTimeTooSkewed", "Set this machine's clock"),
        (404, "NoSuchBucket", "Create the bucket"),
        (400, "AuthorizationHeaderMalformed", "set AWS_REGION"),
        (507, "QuotaExceeded", "free space"),
    ],
)
def test_what_the_user_can_mend_fails_at_once(
    status: int, code: str, remedy: str, requests_to: Callable[..., Requests]
) -> None:
    with answering((status, code)) as (url, asked):
        with pytest.raises(InputError, match=rf"s3://bucket at {re.escape(url)}.*{code}.*{remedy}"):
            requests_to(url).send(get)
        assert len(asked) == 1


def test_a_bucket_elsewhere_is_named(requests_to: Callable[..., Requests]) -> None:
    with (
        answering((301, "PermanentRedirect"), (403, "AccessDenied")) as (url, _),
        pytest.raises(InputError, match=r"PermanentRedirect.*another region: set AWS_REGION"),
    ):
        requests_to(url).send(get)


def test_an_expired_session_is_read_anew_once(requests_to: Callable[..., Requests], set_account: SetAccount) -> None:
    with answering((400, "ExpiredToken"), (200, "<whole/>"), (400, "ExpiredToken")) as (url, asked):
        requests = requests_to(url)
        set_account({"AWS_ACCESS_KEY_ID": "renewed"})
        assert requests.send(get) == b"<whole/>"
        assert ["Credential=renewed/" in request.headers["Authorization"] for request in asked] == [False, True]
        with pytest.raises(InputError, match="Log in again"):
            requests.send(get)
        assert len(asked) == 4


def test_an_outage_that_does_not_end_is_no_users_mistake(requests_to: Callable[..., Requests]) -> None:
    with answering((503, "SlowDown")) as (url, asked):
        requests = requests_to(url, deadline_s=0.2)
        begun = time.monotonic()
        with pytest.raises(ConnectionError, match=rf"{re.escape(url)} gives no answer.*SlowDown"):
            requests.send(get)
        assert 0.2 <= time.monotonic() - begun < 2
        assert len(asked) >= 2


def test_the_log_names_the_server_once_in_an_outage(
    requests_to: Callable[..., Requests], caplog: pytest.LogCaptureFixture
) -> None:
    with answering(*[(503, "SlowDown")] * 9, (200, "")) as (url, _), caplog.at_level(logging.WARNING, "tasks"):
        requests_to(url).send(get)
        assert [url in record.getMessage() for record in caplog.records] == [True]


def test_pauses_grow_up_to_their_limit_and_are_spread_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    asked: list[tuple[float, float]] = []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("random.uniform", lambda low, high: asked.append((low, high)) or high)
    for _, pause_s in pauses_within(60.0):
        clock[0] += pause_s
    assert clock[0] == pytest.approx(60.0)
    expected = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert asked[:9] == [(0, pytest.approx(limit)) for limit in expected]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "certificate.pem"
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_certificate_of_ones_own_is_trusted_through_its_variable_alone(
    requests_to: Callable[..., Requests], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering((200, "<whole/>"), certificate=certificate) as (url, _):
        with pytest.raises(InputError, match=r"CERTIFICATE_VERIFY_FAILED.*AWS_CA_BUNDLE"):
            requests_to(url).send(get)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        assert requests_to(url).send(get) == b"<whole/>"


def test_a_tls_address_of_a_plain_server_is_named(requests_to: Callable[..., Requests]) -> None:
    with (
        answering((200, "")) as (url, _),
        pytest.raises(InputError, match=r"Check the scheme in AWS_ENDPOINT_URL_S3"),
    ):
        requests_to(url.replace("http:", "https:")).send(get)
