"""A store in a bucket of any S3 server. The only S3 code.

Credentials, region and endpoint come from the usual AWS variables and files. Nothing relies on a server's
conditional writes: where they work they decide a race early, that is all.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import boto3
from botocore.client import Config as ClientConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnection

from tasks.errors import InputError
from tasks.manifest import NUM_THREADS, FileEntry
from tasks.stores import Stored, Unfinished, Upload

PATIENCE_S = 120.0
PAUSE_S = 1.0
DEFAULT_REGION = "us-east-1"
LOCAL_SERVER = "For a server on this machine: python -m infra.local_s3 start, then eval the lines of its `env`."
CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to keys of this server."
RIGHTS = "Give these keys the right to list, read and write there, or use others."
CLOCK = "Set this machine's clock (timedatectl set-ntp true)."
ELSEWHERE = "The bucket lies in another region: set AWS_REGION to it."
REMEDIES = {
    "InvalidAccessKeyId": CREDENTIALS,
    "SignatureDoesNotMatch": CREDENTIALS,
    "ExpiredToken": "Log in again: the session has expired.",
    "AccessDenied": RIGHTS,
    "403": RIGHTS,
    "RequestTimeTooSkewed": CLOCK,
    "RequestExpired": CLOCK,
    "PermanentRedirect": ELSEWHERE,
    "AuthorizationHeaderMalformed": ELSEWHERE,
    "NoSuchBucket": "Create the bucket, or correct the store's address.",
    "InvalidBucketName": "A bucket's name is 3 to 63 lower-case letters, digits, dots and hyphens.",
    "QuotaExceeded": "The store is full: free space there.",
}
OUTAGES = (HTTPClientError, NoConnection, ResponseStreamingError, IncompleteReadError)

T = TypeVar("T")


class S3Store:
    """A bucket, or the part of it under a prefix; with `make`, the bucket is made if it is missing and we may."""

    def __init__(self, bucket: str, prefix: str = "", make: bool = True) -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = self._new_client()
        self._open(make)

    def read(self, name: str) -> bytes | None:
        return self._get(name)

    def read_range(self, name: str, start: int, length: int) -> bytes | None:
        return self._get(name, Range=f"bytes={start}-{start + length - 1}") if length else b""

    def create(self, name: str, data: bytes) -> None:
        try:
            self.call("put_object", name, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if _code(error) in ("NotImplemented", "InvalidArgument"):
                self.call("put_object", name, Body=data)
            elif _status(error) not in (409, 412):
                raise

    def write(self, name: str, data: bytes) -> None:
        self.call("put_object", name, Body=data)

    def files(self, prefix: str) -> Iterator[Stored]:
        for page in self._pages("list_objects_v2", prefix):
            for file in page.get("Contents", []):
                yield Stored(file["Key"].removeprefix(self._prefix), file["Size"], file["LastModified"])

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        for page in self._pages("list_multipart_uploads", prefix):
            for upload in page.get("Uploads", []):
                yield Unfinished(upload["Key"].removeprefix(self._prefix), upload["UploadId"], upload["Initiated"])

    def delete(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(lambda name: self.call("delete_object", name), names))

    def abort(self, write: Unfinished) -> None:
        try:
            self.call("abort_multipart_upload", write.name, UploadId=write.id)
        except ClientError as error:
            if _status(error) != 404:
                raise

    def begin(self, name: str, entry: FileEntry) -> Upload | None:
        if self.has(name, entry):
            return None
        return _PartsUpload(self, name, entry) if len(entry.chunks) > 1 else _WholeUpload(self, name, entry)

    def has(self, name: str, entry: FileEntry) -> bool:
        """Whether exactly this file was written under `name` before."""
        head = self.head(name)
        return bool(head) and (head["ContentLength"], head["Metadata"].get("sha256")) == (entry.size, entry.sha256)

    def head(self, name: str) -> dict[str, Any]:
        """What the server says about `name` without its content; empty where there is no such object."""
        try:
            return self.call("head_object", name)
        except ClientError as error:
            if _status(error) != 404:
                raise
            return {}

    def open_parts(self, name: str) -> tuple[str | None, dict[int, str]]:
        """The id of an interrupted upload of `name`, None if there is none, and the ETags of the parts that arrived."""
        ids = [upload.id for upload in self.unfinished(name) if upload.name == name]
        if not ids:
            return None, {}
        parts: dict[int, str] = {}
        page: dict[str, Any] = {"IsTruncated": True, "NextPartNumberMarker": 0}
        while page["IsTruncated"]:
            page = self.call("list_parts", name, UploadId=ids[-1], PartNumberMarker=page["NextPartNumberMarker"])
            parts.update({part["PartNumber"]: part["ETag"] for part in page.get("Parts", [])})
        return ids[-1], parts

    def call(self, operation: str, name: str, **arguments: Any) -> dict[str, Any]:
        """What the S3 operation on the object `name` answers."""
        place = {"Bucket": self._bucket, "Key": self._prefix + name}
        return self._attempt(lambda client: getattr(client, operation)(**place, **arguments))

    def _pages(self, operation: str, prefix: str) -> Iterator[dict[str, Any]]:
        """The answers of a listing, page by page."""
        more: dict[str, str] = {}
        while True:
            page = self._attempt(
                lambda client: getattr(client, operation)(Bucket=self._bucket, Prefix=self._prefix + prefix, **more)  # noqa: B023
            )
            yield page
            if not page.get("IsTruncated"):
                return
            if operation == "list_objects_v2":
                more = {"ContinuationToken": page["NextContinuationToken"]}
            else:
                more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _get(self, name: str, **span: str) -> bytes | None:
        place = {"Bucket": self._bucket, "Key": self._prefix + name}
        try:
            return self._attempt(lambda client: client.get_object(**place, **span)["Body"].read())
        except ClientError as error:
            if _code(error) not in ("NoSuchKey", "InvalidRange"):
                raise
            return None if _code(error) == "NoSuchKey" else b""

    def _attempt(self, request: Callable[[Any], T], patience_s: float = PATIENCE_S) -> T:
        """The request's result; an outage is waited out with fresh clients, for one client's retries run dry.

        Raises InputError for what the user can mend, ClientError for other refusals, ConnectionError after
        `patience_s` without an answer.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return request(self._client)
            except (BotoCoreError, ClientError) as error:
                if remedy := _remedy(error):
                    raise InputError(f"{self._place()}: {error}. {remedy}") from error
                if not _is_outage(error):
                    raise
                if time.monotonic() > deadline:
                    raise ConnectionError(f"{self._place()} gives no answer ({error}).") from error
            time.sleep(PAUSE_S)
            self._client = self._new_client()

    def _open(self, make: bool) -> None:
        """Fail now, in a second, if the server, the credentials or the bucket are not what they should be."""
        try:
            self._attempt(self._list_or_make if make else self._list, patience_s=0)
        except ConnectionError as error:
            message = f"{error} Check AWS_ENDPOINT_URL_S3, that the server runs, and the network. {LOCAL_SERVER}"
            raise InputError(message) from error
        except (BotoCoreError, ClientError) as error:
            raise InputError(f"{self._place()} refused: {error}. Check the address of the store.") from error

    def _list(self, client: Any) -> None:
        client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)

    def _list_or_make(self, client: Any) -> None:
        try:
            self._list(client)
        except ClientError as error:
            if _code(error) != "NoSuchBucket":
                raise
            region = client.meta.region_name
            place = {} if region == DEFAULT_REGION else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            try:
                client.create_bucket(Bucket=self._bucket, **place)
            except client.exceptions.BucketAlreadyOwnedByYou:
                return

    def _new_client(self) -> Any:
        config = ClientConfig(
            # The default (CRT) ignores the endpoint; chunks are verified by us, and other servers refuse the
            # default checksums over HTTPS.
            s3={"preferred_transfer_client": "classic"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "max_attempts": 3},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=2 * NUM_THREADS,
        )
        try:
            session = boto3.session.Session()
            return session.client("s3", region_name=session.region_name or DEFAULT_REGION, config=config)
        except (ProfileNotFound, NoRegionError, ValueError) as error:
            raise InputError(f"{self.uri}: {error}. Check AWS_PROFILE, AWS_REGION and AWS_ENDPOINT_URL_S3.") from error

    def _place(self) -> str:
        return f"{self.uri} at {self._client.meta.endpoint_url}"


class _WholeUpload:
    """A file of one chunk: one PUT."""

    def __init__(self, store: S3Store, name: str, entry: FileEntry) -> None:
        self._store = store
        self._name = name
        self._metadata = {"sha256": entry.sha256}

    def send(self, index: int, start: int, data: bytes) -> None:
        self._store.call("put_object", self._name, Body=data, Metadata=self._metadata)

    def complete(self) -> None:
        """Nothing is left to do."""


class _PartsUpload:
    """A file of several chunks: each is one part of a multipart upload, and parts that arrived before are kept.

    Another publisher of the same content may work on the same upload; whoever completes it, the file is whole.
    """

    def __init__(self, store: S3Store, name: str, entry: FileEntry) -> None:
        self._store = store
        self._name = name
        self._entry = entry
        self._id, self._etags = store.open_parts(name)
        if self._id is None:
            self._id = store.call("create_multipart_upload", name, Metadata={"sha256": entry.sha256})["UploadId"]

    def send(self, index: int, start: int, data: bytes) -> None:
        number = index + 1
        if self._etags.get(number, "").strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return
        answer = self._unless_completed("upload_part", PartNumber=number, Body=data)
        if answer:
            self._etags[number] = answer["ETag"]

    def complete(self) -> None:
        numbers = range(1, len(self._entry.chunks) + 1)
        parts = [{"PartNumber": number, "ETag": self._etags.get(number, "")} for number in numbers]
        self._unless_completed("complete_multipart_upload", MultipartUpload={"Parts": parts})

    def _unless_completed(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            return self._store.call(operation, self._name, UploadId=self._id, **arguments)
        except ClientError:
            if not self._store.has(self._name, self._entry):
                raise
            return {"ETag": ""}


def _remedy(error: BotoCoreError | ClientError) -> str | None:
    """What the user can do about it; None where that is nothing."""
    if isinstance(error, ClientError):
        return REMEDIES.get(_code(error))
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"{CREDENTIALS} {LOCAL_SERVER}"
    if isinstance(error, SSLError):
        return "Check the scheme in AWS_ENDPOINT_URL_S3 and the certificates in AWS_CA_BUNDLE."
    return None


def _is_outage(error: BotoCoreError | ClientError) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        return _code(error) != "NotImplemented" and (_status(error) >= 500 or _status(error) == 429)
    return isinstance(error, OUTAGES)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
