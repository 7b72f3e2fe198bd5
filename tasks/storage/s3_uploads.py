"""How an object comes to be on S3: in one request, in parts, or once among many who try."""

import hashlib
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from tasks.storage.content import Content, FileContent
from tasks.storage.manifest import FileEntry
from tasks.storage.s3_requests import code_of, status_of
from tasks.storage.stores import UploadVanished

if TYPE_CHECKING:
    from tasks.storage.s3 import S3Store

SETTLED_S = 2.5  # longer than the second that a server's times are rounded to
SMALLEST_PART_BYTES = 5 * 2**20


class WholeUpload:
    """A file of one chunk: one PUT."""

    def __init__(self, store: "S3Store", name: str, entry: FileEntry) -> None:
        self._store = store
        self._name = name
        self._metadata = {"sha256": entry.sha256}

    def send(self, index: int, start: int, data: Content | FileContent) -> None:
        self._store.send("put_object", self._name, data, Metadata=self._metadata)

    def complete(self) -> None:
        """Nothing is left to do."""


class PartsUpload:
    """A file of several chunks: each is one part of a multipart upload; with `resume`, parts that arrived are kept.

    Another publisher of the same content may work on the same upload; whoever completes it, the file is whole.
    """

    def __init__(self, store: "S3Store", name: str, entry: FileEntry, resume: bool) -> None:
        self._store = store
        self._name = name
        self._entry = entry
        self._etags: dict[int, str] = {}
        interrupted = store.open_upload(name) if resume else None
        if interrupted:
            self._id, self._etags = interrupted, store.parts(name, interrupted)
        else:
            answer = store.call("create_multipart_upload", name, Metadata={"sha256": entry.sha256})
            self._id = str(answer["UploadId"])

    def send(self, index: int, start: int, data: Content | FileContent) -> None:
        number = index + 1
        if not self._has_arrived(number, data):
            place = {"UploadId": self._id, "PartNumber": number}
            answer = self._unless_completed(lambda: self._store.send("upload_part", self._name, data, **place))
            self._etags[number] = answer.get("ETag", "")

    def complete(self) -> None:
        numbers = range(1, len(self._entry.chunks) + 1)
        parts = [{"PartNumber": number, "ETag": self._etags[number]} for number in numbers]
        self._unless_completed(lambda: self._store.complete(self._name, self._id, parts))

    def _has_arrived(self, number: int, data: Content | FileContent) -> bool:
        etag = self._etags.get(number, "").strip('"')
        return bool(etag) and etag == hashlib.md5(data.in_memory(), usedforsecurity=False).hexdigest()

    def _unless_completed(self, request: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The server's answer; empty if somebody has completed the file, by this upload or another.

        Raises UploadVanished if the upload was aborted, or its parts are no longer those that we sent.
        """
        try:
            return request()
        except (ClientError, UploadVanished) as error:
            if self._store.has(self._name, self._entry):
                return {}
            if isinstance(error, UploadVanished):
                raise
            if code_of(error) in ("NoSuchUpload", "InvalidPart", "InvalidPartOrder") or status_of(error) == 404:
                raise UploadVanished(f"{self._store.uri}/{self._name}: {error}") from error
            raise


def elect(store: "S3Store", name: str, data: bytes) -> None:
    """Write `name` once on a server without conditional writes: of all candidates the first by its clock is it.

    Each try is a candidate under a name of its own. Once the second in which it was written is over, everybody who
    lists the candidates sees the same first one, and whoever copies it to `name` writes the same bytes.
    """
    place = f"{name}.candidates/"
    store.send_anew("put_object", lambda: f"{place}{uuid.uuid4().hex}", Content.of(data))
    time.sleep(SETTLED_S)
    candidates = sorted(store.files(place), key=lambda candidate: (candidate.modified, candidate.name))
    first = store.read(candidates[0].name) if candidates else None
    if store.read(name) is None and first is not None:
        store.write(name, first)
    store.delete(candidate.name for candidate in candidates)
