"""An S3 server that refuses or is away: what the user is told, and what is waited for."""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from io import FileIO
from pathlib import Path

import pytest

from tasks.errors import InputError
from tasks.storage.content import ChangedContent, FileContent
from tasks.storage.externals import describe, fetched
from tasks.storage.s3 import S3Store
from tasks.storage.stores import store_at
from tests.scripted_s3 import KEYS, answering
from tests.tasks.able import ABLE

pytestmark = pytest.mark.slow

SetAccount = Callable[[Mapping[str, str]], None]


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.storage.s3_requests.LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr("tasks.storage.s3.OPENING_PATIENCE_S", 0.1)
    monkeypatch.setattr("tasks.storage.s3._found", {})


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


def test_the_store_opens_while_its_server_starts(set_account: SetAccount) -> None:
    with answering((503, "ServiceUnavailable"), (200, "")) as (url, asked):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        store_at("s3://bucket/prefix")
        assert [request.path for request in asked] == [
            "/bucket?list-type=2&prefix=prefix%2F&max-keys=1&encoding-type=url"
        ] * 2


def test_an_object_that_may_not_be_seen_is_told_from_one_that_is_not_there(set_account: SetAccount) -> None:
    listed = "<ListBucketResult><Contents><Key>name</Key></Contents></ListBucketResult>"
    with answering((200, ""), (403, "AccessDenied"), (200, ""), (403, "AccessDenied"), (200, listed)) as (url, _):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        store = S3Store("bucket")
        assert store.read("name") is None
        with pytest.raises(InputError, match=r"AccessDenied.*Give these keys the right"):
            store.read("name")


class Kept:
    """A sink that keeps what came since it began."""

    def begin(self) -> None:
        self.data = b""

    def take(self, piece: bytes) -> None:
        self.data += piece


def test_a_range_that_broke_off_comes_anew_from_its_first_byte(set_account: SetAccount) -> None:
    with answering((200, ""), (1, "<what came first>"), (200, "<whole>"), (404, "NoSuchKey")) as (url, asked):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        store, kept = S3Store("bucket"), Kept()
        assert store.copy_range("name", 2, 7, kept)
        assert kept.data == b"<whole>"
        assert [request.headers["Range"] for request in asked[1:]] == ["bytes=2-8"] * 2
        assert not store.copy_range("other", 0, 7, kept)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[FileIO]:
    """An open file of seven bytes."""
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open("rb", buffering=0) as file:
        yield file


@pytest.mark.parametrize("broken_off", [0, 1])
def test_a_file_is_sent_whole_and_the_server_not_asked_before(
    broken_off: int, file: FileIO, set_account: SetAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3Store, "abilities", lambda self: ABLE)
    said = sha256(b"content").hexdigest()
    with answering((200, ""), *[(0, "")] * broken_off, (200, "")) as (url, asked):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        S3Store("bucket").send("put_object", "name", FileContent(file, 0, 7, said))
        assert len(asked) == 2 + broken_off
        for request in asked[1:]:
            assert (request.body, request.headers["Expect"]) == (b"content", None)
            assert request.headers["x-amz-content-sha256"] == said


def test_a_file_that_changed_is_not_sent_to_a_server_that_does_not_look(
    file: FileIO, set_account: SetAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3Store, "abilities", lambda self: ABLE.model_copy(update={"checks_content": False}))
    with answering((200, "")) as (url, asked):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        store = S3Store("bucket")
        store.send("put_object", "name", FileContent(file, 0, 7, sha256(b"content").hexdigest()))
        with pytest.raises(ChangedContent):
            store.send("put_object", "name", FileContent(file, 0, 7, sha256(b"another").hexdigest()))
        assert [request.method for request in asked] == ["GET", "PUT"]


def without_conditional_create(monkeypatch: pytest.MonkeyPatch) -> None:
    able = ABLE.model_copy(update={"conditional_create": False})
    monkeypatch.setattr(S3Store, "abilities", lambda self: able)


def test_where_conditional_create_is_not_honoured_it_is_not_sent(
    set_account: SetAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.storage.s3_uploads.SETTLED_S", 0.0)
    with answering((200, ""), (404, "NoSuchKey"), (200, "")) as (url, asked):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        store = S3Store("bucket")
        without_conditional_create(monkeypatch)
        store.create("name", b"data")
        assert [request.method for request in asked[1:3]] == ["GET", "PUT"]
        assert not [request for request in asked if request.headers["If-None-Match"] or request.headers["If-Match"]]


@pytest.mark.parametrize("late", [0.0, 1.2])
def test_without_conditional_writes_all_who_create_agree_on_one(
    s3_uri: str, late: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [S3Store(*s3_uri.removeprefix("s3://").split("/", 1)) for _ in range(4)]
    without_conditional_create(monkeypatch)

    def create(number: int) -> bytes | None:
        time.sleep(number * late)
        stores[number].create("manifest.json", b"%d" % number)
        return stores[number].read("manifest.json")

    with ThreadPoolExecutor(len(stores)) as pool:
        answers = set(pool.map(create, range(len(stores))))
    assert len(answers) == 1
    assert answers <= {b"0", b"1", b"2", b"3"}
    assert [file.name for file in stores[0].files("")] == ["manifest.json"]


def test_a_file_is_replaced_only_in_place_of_the_one_that_was_seen(store_uri: str) -> None:
    store = store_at(store_uri)
    assert store.replace("file", b"first", None)
    assert not store.replace("file", b"other", None)
    assert not store.replace("file", b"other", b"never there")
    assert store.replace("file", b"second", b"first")
    assert store.read("file") == b"second"
    assert not store.replace("gone", b"other", b"was there")
    assert store.read("gone") is None


def test_a_write_between_the_look_and_the_replacement_is_seen_where_the_server_can(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = store_at(s3_uri), store_at(s3_uri)
    assert isinstance(store, S3Store)
    store.write("file", b"first")
    look = store.read

    def look_and_be_overtaken(name: str) -> bytes | None:
        seen = look(name)
        monkeypatch.setattr(store, "read", look)
        other.write(name, b"theirs")
        return seen

    monkeypatch.setattr(store, "read", look_and_be_overtaken)
    replaced = store.replace("file", b"ours", b"first")
    assert replaced == (store.abilities().conditional_replace == "none")
    assert look("file") == (b"ours" if replaced else b"theirs")


def test_two_prefixes_of_a_bucket_never_see_each_other(s3_uri: str) -> None:
    one, two, inner = (store_at(f"{s3_uri}/{name}") for name in ("one", "one-more", "one/inner"))
    one.write("artifacts/name", b"one")
    two.write("artifacts/name", b"two")
    assert (one.read("artifacts/name"), two.read("artifacts/name")) == (b"one", b"two")
    assert inner.read("artifacts/name") is None
    assert [file.name for file in one.files("artifacts/")] == ["artifacts/name"]
    two.delete(["artifacts/name"])
    assert one.read("artifacts/name") == b"one"


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
    with fetched(artifact, tmp_path) as path:
        assert (path.name, path.read_bytes()) == ("prompts.jsonl", data)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with fetched(artifact, tmp_path) as path:
        assert path.read_bytes() == data
    store.call("put_object", "some/prompts.jsonl", Body=b"other")
    assert describe(artifact.uri).digest != artifact.digest
    with fetched(artifact, tmp_path) as path:
        assert path.read_bytes() == data
    path.unlink()
    with pytest.raises(InputError, match="changed since it was looked up"), fetched(artifact, tmp_path):
        pass


def test_an_object_or_bucket_that_is_not_there_is_named_and_not_made(s3_uri: str) -> None:
    store_at(s3_uri)
    with pytest.raises(InputError, match=rf"no object {s3_uri}/absent"):
        describe(f"{s3_uri}/absent")
    for _ in range(2):
        with pytest.raises(InputError, match=r"NoSuchBucket.*Create the bucket"):
            describe("s3://absent-bucket/name")
