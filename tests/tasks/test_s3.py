"""An S3 server that refuses or is away: what the user is told, and what is waited for."""

import http.server
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.errors import InputError
from tasks.externals import describe, fetch
from tasks.s3 import S3Store
from tasks.stores import store_at

SetAccount = Callable[[Mapping[str, str]], None]
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
REFUSAL = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"


@contextmanager
def answering(*answers: tuple[int, str]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers (status, code) one by one, the last for ever: its URL and what was asked."""
    left = list(answers)
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path} {self.headers['If-None-Match']}")
            status, code = left.pop(0) if len(left) > 1 else left[0]
            body = REFUSAL.format(code=code).encode() if code else b"<ListBucketResult/>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET

        def log_message(self, *arguments: object) -> None:
            """Nothing is said on stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0)


def test_no_credentials_say_which_variables_to_set(set_account: SetAccount) -> None:
    set_account({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"})
    with pytest.raises(InputError, match=r"s3://bucket.*Set AWS_ACCESS_KEY_ID"):
        store_at("s3://bucket")


def test_a_server_that_is_not_there_is_named(set_account: SetAccount) -> None:
    set_account({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", **KEYS})
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9 gives no answer.*Check AWS_ENDPOINT_URL_S3"):
        store_at("s3://bucket/prefix")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("InvalidAccessKeyId", "Set AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "Set AWS_ACCESS_KEY_ID"),
        ("AccessDenied", "Give these keys the right"),
        ("RequestTimeTooSkewed", "Set this machine's clock"),
        ("ExpiredToken", "Log in again"),
        ("SomethingNew", "Check the address of the store"),
    ],
)
def test_each_refusal_says_what_to_do(code: str, remedy: str, set_account: SetAccount) -> None:
    with answering((403, code)) as (url, _):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        with pytest.raises(InputError, match=rf"{re.escape(url)}.*{code}.*{remedy}"):
            store_at("s3://bucket")


def test_a_server_error_is_waited_out(set_account: SetAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.s3.PAUSE_S", 0.01)
    with answering((200, ""), *[(503, "SlowDown")] * 7, (404, "NoSuchKey")) as (url, asked):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        assert S3Store("bucket").read("name") is None
        assert len(asked) == 9


def test_an_outage_that_does_not_end_is_no_users_mistake(
    set_account: SetAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering((200, ""), (503, "SlowDown")) as (url, _):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        store = S3Store("bucket")
        monkeypatch.setattr(S3Store._attempt, "__defaults__", (0.0,))
        with pytest.raises(ConnectionError, match="gives no answer"):
            store.read("name")


@pytest.mark.parametrize("answer", [(501, "NotImplemented"), (400, "InvalidArgument")])
def test_a_server_without_conditional_writes_is_written_to_plainly(
    answer: tuple[int, str], set_account: SetAccount
) -> None:
    with answering((200, ""), answer, (200, "")) as (url, asked):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        S3Store("bucket").create("name", b"data")
        assert asked[1:] == ["PUT /bucket/name *", "PUT /bucket/name None"]


@pytest.mark.parametrize("uri", ["http://host/bucket", "s3://", "folder", "file://host/folder", "file://folder"])
def test_what_is_no_stores_address_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"Give s3://bucket/prefix or file:///folder"):
        store_at(uri)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        store_at(f"file://{tmp_path}/file/store")


def test_wrong_keys_on_a_real_server_are_refused(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="Set AWS_ACCESS_KEY_ID"):
        store_at(s3_uri)


def test_a_real_server_tells_of_a_bucket_name_that_it_does_not_take(s3_uri: str) -> None:
    with pytest.raises(InputError):
        store_at("s3://No_Bucket!")


def test_an_object_on_s3_is_described_and_fetched(s3_uri: str, tmp_path: Path) -> None:
    data = os.urandom(20 * 2**20)
    store = S3Store(*s3_uri.removeprefix("s3://").split("/", 1))
    store.create("some/prompts.jsonl", data)
    artifact = describe(f"{s3_uri}/some/prompts.jsonl")
    assert (artifact.kind, artifact.size_bytes) == ("file", len(data))
    path = fetch(artifact, tmp_path)
    assert (path.name, path.read_bytes()) == ("prompts.jsonl", data)
    store.call("put_object", "some/prompts.jsonl", Body=b"other")
    assert describe(artifact.uri).digest != artifact.digest
    path.unlink()
    with pytest.raises(InputError, match="changed since it was looked up"):
        fetch(artifact, tmp_path)


def test_an_object_or_bucket_that_is_not_there_is_named_and_not_made(s3_uri: str) -> None:
    store_at(s3_uri)
    with pytest.raises(InputError, match=rf"no object {s3_uri}/absent"):
        describe(f"{s3_uri}/absent")
    for _ in range(2):
        with pytest.raises(InputError, match=r"NoSuchBucket.*Create the bucket"):
            describe("s3://absent-bucket/name")
