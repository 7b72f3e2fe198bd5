"""What may be set for S3, what is refused, and what of it reaches the server."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tasks.errors import InputError
from tasks.storage.content import Content
from tasks.storage.manifest import describe_file
from tasks.storage.s3 import S3Store
from tasks.storage.s3_options import options_from
from tasks.storage.s3_uploads import SMALLEST_PART_BYTES
from tasks.storage.stores import Unfinished
from tests.scripted_s3 import KEYS, Request, answering
from tests.tasks.able import ABLE

SetAccount = Callable[[Mapping[str, str]], None]
STARTED = "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>"


def test_nothing_needs_to_be_set() -> None:
    options = options_from({"ALIGNMENT_S3_SSE": "", "OTHER": "x"})
    assert (options.deadline_s, options.for_new_objects, options.for_every_request) == (300.0, {}, {})


def test_variables_are_the_fields_in_capitals() -> None:
    options = options_from(
        {
            "ALIGNMENT_S3_DEADLINE_S": "12.5",
            "ALIGNMENT_S3_SSE": "aws:kms",
            "ALIGNMENT_S3_SSE_KMS_KEY_ID": "key",
            "ALIGNMENT_S3_BUCKET_OWNER": "123456789012",
        }
    )
    assert options.deadline_s == 12.5
    assert options.for_new_objects == {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key"}
    assert options.for_every_request == {"ExpectedBucketOwner": "123456789012"}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("DEADLINE_S", "long", r"ALIGNMENT_S3_DEADLINE_S is 'long'\. .*number"),
        ("DEADLINE_S", "-1", r"ALIGNMENT_S3_DEADLINE_S is '-1'\. .*greater than or equal to 0"),
        ("SSE", "AES", r"ALIGNMENT_S3_SSE is 'AES'\. .*'AES256', 'aws:kms' or 'aws:kms:dsse'"),
        ("BUCKET_OWNER", "me", r"ALIGNMENT_S3_BUCKET_OWNER is 'me'\. .*12"),
        ("SSE_KMS_KEY_ID", "key", r"SSE_KMS_KEY_ID is set, but ALIGNMENT_S3_SSE is not aws:kms\. Set both or none\."),
        ("SEE", "AES256", r"There is no ALIGNMENT_S3_SEE; there are .*ALIGNMENT_S3_SSE"),
    ],
)
def test_what_is_wrong_is_named_with_its_variable(name: str, value: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        options_from({f"ALIGNMENT_S3_{name}": value})


def all_requests(url: str, tmp_path: Path) -> None:
    """Every sort of request that a store sends."""
    store = S3Store("bucket", "prefix")
    store.read("name")
    store.create("name", b"data")
    list(store.files(""))
    list(store.unfinished(""))
    (tmp_path / "big").write_bytes(os.urandom(SMALLEST_PART_BYTES + 1))
    for chunk_bytes in (2 * SMALLEST_PART_BYTES, SMALLEST_PART_BYTES):
        entry = describe_file(tmp_path / "big", chunk_bytes)
        upload = store.begin("big", entry, chunk_bytes, resume=False)
        assert upload is not None
        for index in range(len(entry.chunks)):
            upload.send(index, 0, Content.of(b"chunk"))
        upload.complete()
    store.parts("big", "id")
    store.delete(["name"])
    store.abort(Unfinished("big", "id", begun=None))  # type: ignore[arg-type]


def operation_of(request: Request) -> str:
    """S3's name of what was asked."""
    query = parse_qs(urlsplit(request.path).query, keep_blank_values=True)
    if "uploadId" in query:
        names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
        return names.get(request.method, "ListParts")
    if "uploads" in query:
        return "CreateMultipartUpload" if request.method == "POST" else "ListMultipartUploads"
    return "ListObjects" if "list-type" in query else request.method


@pytest.fixture
def sent(set_account: SetAccount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What a store with every option set sends."""
    monkeypatch.setattr(S3Store, "abilities", lambda self: ABLE)
    monkeypatch.setattr(S3Store, "has", lambda self, name, entry: False)
    with answering((200, STARTED)) as (url, asked):
        set_account({"AWS_ENDPOINT_URL_S3": url, **KEYS})
        monkeypatch.setenv("ALIGNMENT_S3_SSE", "aws:kms")
        monkeypatch.setenv("ALIGNMENT_S3_SSE_KMS_KEY_ID", "my-key")
        monkeypatch.setenv("ALIGNMENT_S3_BUCKET_OWNER", "123456789012")
        all_requests(url, tmp_path)
        return asked


def test_encryption_is_asked_for_where_an_object_is_made_and_nowhere_else(sent: list[Request]) -> None:
    encrypted = {
        operation_of(request)
        for request in sent
        if request.headers["x-amz-server-side-encryption"] == "aws:kms"
        and request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "my-key"
    }
    assert encrypted == {"PUT", "CreateMultipartUpload"}
    assert len([request for request in sent if operation_of(request) == "PUT"]) == 2
    others = [request for request in sent if operation_of(request) not in encrypted]
    assert not [request for request in others if request.headers["x-amz-server-side-encryption"]]


def test_the_owner_is_told_with_every_request_and_an_acl_with_none(sent: list[Request]) -> None:
    assert {request.headers["x-amz-expected-bucket-owner"] for request in sent} == {"123456789012"}
    assert len({operation_of(request) for request in sent}) == 10
    assert not [
        name for request in sent for name in request.headers if name.lower().startswith(("x-amz-acl", "x-amz-grant"))
    ]


@pytest.mark.slow
def test_ceph_is_asked_to_encrypt(
    ceph: Mapping[str, str], set_account: SetAccount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_account(ceph)
    monkeypatch.setenv("ALIGNMENT_S3_SSE", "aws:kms")
    monkeypatch.setenv("ALIGNMENT_S3_SSE_KMS_KEY_ID", "testkey-1")
    store = S3Store("test-artifacts", tmp_path.name)
    store.write("name", b"secret")
    assert store.head("name")["ServerSideEncryption"] == "aws:kms"
    assert store.read("name") == b"secret"
