"""A store in a bucket of any S3 server.

Credentials, region and endpoint come from the usual AWS variables and files, the rest from tasks/storage/s3_options.py.
Nothing relies on more than the server was found to do (tasks/storage/s3_abilities.py).
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tasks.errors import InputError
from tasks.storage.content import ChangedContent, Content, FileContent
from tasks.storage.manifest import NUM_THREADS, PIECE_BYTES, FileEntry
from tasks.storage.s3_abilities import Abilities, find_anew, kept
from tasks.storage.s3_options import options_from
from tasks.storage.s3_requests import DEFAULT_REGION, LOCAL_SERVER, Requests, code_of, status_of
from tasks.storage.s3_uploads import PartsUpload, WholeUpload, elect
from tasks.storage.stores import Sink, Stored, Unfinished, Upload, UploadVanished

OPENING_PATIENCE_S = 15.0
MAKES_AN_OBJECT = ("put_object", "create_multipart_upload")

_found: dict[tuple[str, str], Abilities] = {}
_finding = threading.Lock()


def _whole(body: Any) -> bytes:
    return bytes(body.read())


class S3Store:
    """A bucket, or the part of it under a prefix; with `make`, the bucket is made if it is missing and we may."""

    def __init__(self, bucket: str, prefix: str = "", make: bool = True) -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._options = options_from()
        self._requests = Requests(self.uri, self._options)
        self._bucket = {"Bucket": bucket, **self._options.for_every_request}
        self._prefix = f"{prefix}/" if prefix else ""
        self._open(make)

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return self._requests.endpoint

    def abilities(self, anew: bool = False) -> Abilities:
        """What the server can do: as found before, in this process or, kept in the store, in another; else tried."""
        here = (self.endpoint, self._bucket["Bucket"])
        with _finding:
            if anew or here not in _found:
                _found[here] = (None if anew else kept(self)) or find_anew(self)
            return _found[here]

    def read(self, name: str) -> bytes | None:
        return self._get(name)

    def read_range(self, name: str, start: int, length: int) -> bytes | None:
        return self._get(name, Range=f"bytes={start}-{start + length - 1}") if length else b""

    def copy_range(self, name: str, start: int, length: int, sink: Sink) -> bool:
        def receive(body: Any) -> bytes:
            sink.begin()
            while piece := body.read(PIECE_BYTES):
                sink.take(piece)
            return b""

        sink.begin()
        return not length or self._get(name, receive, Range=f"bytes={start}-{start + length - 1}") is not None

    def create(self, name: str, data: bytes) -> None:
        if not self.abilities().conditional_create:
            if self.read(name) is None:
                elect(self, name, data)
            return
        try:
            self.send("put_object", name, Content.of(data), IfNoneMatch="*")
        except ClientError as error:
            if status_of(error) != 412:
                raise

    def write(self, name: str, data: bytes) -> None:
        self.send("put_object", name, Content.of(data))

    def replace(self, name: str, data: bytes, before: bytes | None) -> bool:
        etag = self.head(name).get("ETag")
        if self.read(name) != before:
            return False
        try:
            self.send("put_object", name, Content.of(data), **self._unless_changed(etag))
        except ClientError as error:
            if status_of(error) not in (404, 409, 412):
                raise
            return self.read(name) == data  # what was sent again is refused for its own first success
        return True

    def files(self, prefix: str) -> Iterator[Stored]:
        for page in self._pages("list_objects_v2", prefix, {"NextContinuationToken": "ContinuationToken"}):
            for file in page.get("Contents", []):
                yield Stored(file["Key"].removeprefix(self._prefix), file["Size"], file["LastModified"])

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        markers = {"NextKeyMarker": "KeyMarker", "NextUploadIdMarker": "UploadIdMarker"}
        for page in self._pages("list_multipart_uploads", prefix, markers):
            for upload in page.get("Uploads", []):
                yield Unfinished(upload["Key"].removeprefix(self._prefix), upload["UploadId"], upload["Initiated"])

    def delete(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(lambda name: self.call("delete_object", name), names))

    def abort(self, write: Unfinished) -> None:
        try:
            self.call("abort_multipart_upload", write.name, UploadId=write.id)
        except ClientError as error:
            if status_of(error) != 404:
                raise

    def begin(self, name: str, entry: FileEntry, chunk_bytes: int, resume: bool = True) -> Upload | None:
        if self.has(name, entry):
            return None
        return PartsUpload(self, name, entry, resume) if len(entry.chunks) > 1 else WholeUpload(self, name, entry)

    def has(self, name: str, entry: FileEntry) -> bool:
        """Whether exactly this file was written under `name` before."""
        head = self.head(name)
        return bool(head) and (head["ContentLength"], head["Metadata"].get("sha256")) == (entry.size, entry.sha256)

    def head(self, name: str) -> dict[str, Any]:
        """What the server says about `name` without its content; empty where there is no such object."""
        key = self._prefix + name
        return self._unless_absent(key, lambda client: client.head_object(**self._bucket, Key=key)) or {}

    def open_upload(self, name: str) -> str | None:
        """The id of an interrupted upload of `name`; None if there is none, or none can be seen."""
        if not self.abilities().lists_uploads:
            return None
        return next((upload.id for upload in self.unfinished(name) if upload.name == name), None)

    def parts(self, name: str, id: str) -> dict[int, str]:
        """The ETags of the parts of an upload that have arrived; none if the upload is gone."""
        parts: dict[int, str] = {}
        page: dict[str, Any] = {"IsTruncated": True, "NextPartNumberMarker": 0}
        while page.get("IsTruncated"):
            try:
                page = self.call("list_parts", name, UploadId=id, PartNumberMarker=page["NextPartNumberMarker"])
            except ClientError as error:
                if status_of(error) != 404:
                    raise
                return {}
            parts.update({part["PartNumber"]: part["ETag"] for part in page.get("Parts", [])})
        return parts

    def complete(self, name: str, id: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the completion of an upload answers; raises UploadVanished where there is none of this id.

        Ceph calls that an internal error, as it does what may pass.
        """

        def ask(client: Any) -> dict[str, Any]:
            place = {"UploadId": id, "MultipartUpload": {"Parts": parts}}
            try:
                return self._ask(client, "complete_multipart_upload", name, place)
            except ClientError as error:
                if status_of(error) >= 500 and not self._is_open(name, id):
                    raise UploadVanished(f"{self.uri}/{name}: {error}") from error
                raise

        return self._requests.send(ask)

    def _is_open(self, name: str, id: str) -> bool:
        try:
            self.call("list_parts", name, UploadId=id, MaxParts=1)
        except ClientError as error:
            return status_of(error) != 404
        return True

    def call(self, operation: str, name: str, **arguments: Any) -> dict[str, Any]:
        """What the S3 operation on the object `name` answers."""
        return self._requests.send(lambda client: self._ask(client, operation, name, arguments))

    def send(self, operation: str, name: str, data: Content | FileContent, **arguments: Any) -> dict[str, Any]:
        """What an operation answers that carries content; raises ChangedContent where that is not what it says.

        A server that checks content hashes it for us. One that was spoilt on its way is sent again.
        """
        return self.send_anew(operation, lambda: name, data, **arguments)

    def send_anew(
        self, operation: str, new_name: Callable[[], str], data: Content | FileContent, **arguments: Any
    ) -> dict[str, Any]:
        """As `send`, with another name at each try."""
        if not self.abilities().checks_content:
            data = data.in_memory()
            if not data.is_what_it_says:
                raise ChangedContent
        return self._requests.send(lambda client: self._ask(client, operation, new_name(), {**arguments, "Body": data}))

    def _ask(self, client: Any, operation: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        made = self._options.for_new_objects if operation in MAKES_AN_OBJECT else {}
        data = arguments.get("Body")
        if isinstance(data, FileContent):
            data.seek(0)
        try:
            return dict(getattr(client, operation)(**self._bucket, Key=self._prefix + name, **made, **arguments))
        except ClientError as error:
            if isinstance(data, Content | FileContent) and not data.is_what_it_says:
                raise ChangedContent from error
            raise

    def _pages(self, operation: str, prefix: str, markers: dict[str, str]) -> Iterator[dict[str, Any]]:
        """The answers of a listing; `markers` say under which name the next request takes what an answer ended with."""
        arguments = {**self._bucket, "Prefix": self._prefix + prefix}
        while True:
            page = self._requests.send(partial(_listing, operation, arguments))
            yield page
            if not page.get("IsTruncated"):
                return
            arguments = arguments | {taken: page[given] for given, taken in markers.items()}

    def _get(self, name: str, receive: Callable[[Any], bytes] = _whole, **span: str) -> bytes | None:
        key = self._prefix + name

        def get(client: Any) -> bytes:
            try:
                return receive(client.get_object(**self._bucket, Key=key, **span)["Body"])
            except ClientError as error:
                if code_of(error) != "InvalidRange":
                    raise
                return b""

        return self._unless_absent(key, get)

    def _unless_changed(self, etag: str | None) -> dict[str, str]:
        """The condition that the object still has this ETag, or None for no object, as far as the server heeds it."""
        if etag is None:
            return {"IfNoneMatch": "*"} if self.abilities().conditional_create else {}
        form = self.abilities().conditional_replace
        return {} if form == "none" else {"IfMatch": etag if form == "quoted" else etag.strip('"')}

    def _unless_absent(self, key: str, request: Callable[[Any], Any]) -> Any:
        """The request's result, or None where there is no object `key`.

        A server that lets these keys list but one prefix may refuse to say of one object that it is not there.
        """

        def ask(client: Any) -> Any:
            try:
                return request(client)
            except ClientError as error:
                if code_of(error) in ("NoSuchKey", "404"):
                    return None
                if status_of(error) != 403:
                    raise
                listed = client.list_objects_v2(**self._bucket, Prefix=key, MaxKeys=1).get("Contents", [])
                if [found["Key"] for found in listed] == [key]:
                    raise
                return None

        return self._requests.send(ask)

    def _open(self, make: bool) -> None:
        """Fail soon if the server, the credentials or the bucket are not what they should be."""
        patience_s = min(OPENING_PATIENCE_S, self._options.deadline_s)
        try:
            self._requests.send(self._list_or_make if make else self._list, patience_s)
        except ConnectionError as error:
            message = f"{error} Check AWS_ENDPOINT_URL_S3, that the server runs, and the network. {LOCAL_SERVER}"
            raise InputError(message) from error
        except (BotoCoreError, ClientError) as error:
            raise InputError(f"{self._requests.place} refused: {error}. Check the address of the store.") from error

    def _list(self, client: Any) -> None:
        client.list_objects_v2(**self._bucket, Prefix=self._prefix, MaxKeys=1)

    def _list_or_make(self, client: Any) -> None:
        try:
            self._list(client)
        except ClientError as error:
            if code_of(error) != "NoSuchBucket":
                raise
            region = client.meta.region_name
            place = {} if region == DEFAULT_REGION else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            try:
                client.create_bucket(Bucket=self._bucket["Bucket"], **place)
            except client.exceptions.BucketAlreadyOwnedByYou:
                return


def _listing(operation: str, arguments: dict[str, Any], client: Any) -> dict[str, Any]:
    return dict(getattr(client, operation)(**arguments))
