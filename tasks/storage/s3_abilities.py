"""What an S3 server can do, found by trying: servers differ, and some ignore what they do not know."""

import contextlib
import hashlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from botocore.exceptions import ClientError
from pydantic import ValidationError

from tasks.config import Config
from tasks.storage.content import ChangedContent, Content
from tasks.storage.manifest import NUM_THREADS
from tasks.storage.s3_requests import status_of
from tasks.storage.stores import Unfinished, UploadVanished

if TYPE_CHECKING:
    from tasks.storage.s3 import S3Store

NUM_ROUNDS = 3


class Abilities(Config):
    """What was found, where and when."""

    format: Literal[1] = 1
    endpoint: str
    """The server's address."""
    server: str
    """What it calls itself."""
    found: str
    """When it was tried."""
    conditional_create: bool
    """`If-None-Match: *` lets the first writer win and refuses all others, also at the same moment."""
    conditional_replace: Literal["none", "quoted", "unquoted"]
    """`If-Match` refuses a writer who knows another version; which form of the ETag it takes."""
    checks_content: bool
    """Content that has not the SHA-256 by which its request is signed is refused and not stored."""
    lists_uploads: bool
    """Open multipart uploads and the parts that arrived are listed."""

    def consequences(self) -> list[tuple[str, str, str]]:
        """(ability, whether it is there, what follows) for a reader."""
        create, replace, uploads = self.conditional_create, self.conditional_replace != "none", self.lists_uploads
        return [
            (
                "conditional create",
                "yes" if create else "no",
                "the first manifest of a key is the artifact"
                if create
                else "If-None-Match is not sent; the server's clock decides which manifest was first",
            ),
            (
                "conditional replace",
                self.conditional_replace,
                "the champion is replaced conditionally too, within its lock"
                if replace
                else "a lock alone guards the champion",
            ),
            (
                "check of content",
                "yes" if self.checks_content else "no",
                f"{'the server' if self.checks_content else 'this side alone'} compares what is sent with the manifest",
            ),
            (
                "list of open uploads",
                "yes" if uploads else "no",
                "an interrupted upload goes on, on any machine" if uploads else "an interrupted upload begins anew",
            ),
        ]


def kept(store: "S3Store") -> Abilities | None:
    """What an earlier process has found and kept in the store; None if nothing of this version is there."""
    found = store.read(_name(store))
    try:
        return None if found is None else Abilities.model_validate_json(found)
    except ValidationError:
        return None


def find_anew(store: "S3Store") -> Abilities:
    """What is found now, and from now on kept in the store."""
    found = probe(store)
    store.call("put_object", _name(store), Body=found.model_dump_json(indent=1).encode())
    return found


def probe(store: "S3Store") -> Abilities:
    """Tries it out on objects of names that nobody else uses, which are deleted at the end."""
    folder = f"probe/{uuid.uuid4().hex}"
    names = [f"{folder}/{number}" for number in range(NUM_ROUNDS)]
    first = store.call("put_object", names[0], Body=b"first")
    abilities = Abilities(
        endpoint=store.endpoint,
        server=first["ResponseMetadata"]["HTTPHeaders"].get("server") or "unnamed",
        found=datetime.now(UTC).isoformat(timespec="seconds"),
        conditional_create=all(_creates_once(store, name) for name in names[1:]),
        conditional_replace=_replaces(store, names[0]),
        checks_content=_checks_content(store, names[0]),
        lists_uploads=_lists_uploads(store, f"{folder}/upload"),
    )
    store.delete(names)
    return abilities


def _name(store: "S3Store") -> str:
    return f"server-{hashlib.sha256(store.endpoint.encode()).hexdigest()[:8]}.json"


def _creates_once(store: "S3Store", name: str) -> bool:
    """Whether of many who create an object at once one wins, and later ones are refused.

    A winner whose answer was lost asks again and is refused too, so that none may seem to have won.
    """

    def create(body: bytes) -> int:
        return _answer(store, "put_object", name, Body=body, IfNoneMatch="*")

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        statuses = list(pool.map(create, [b"%d" % number for number in range(NUM_THREADS)]))
    one_won = set(statuses) <= {200, 412} and statuses.count(200) <= 1
    return one_won and create(b"late") == 412 and store.read(name) is not None


def _replaces(store: "S3Store", name: str) -> Literal["none", "quoted", "unquoted"]:
    """The form of the ETag with which `If-Match` replaces the right version and refuses a wrong one."""
    if _answer(store, "put_object", name, Body=b"wrong", IfMatch=f'"{"0" * 32}"') != 412:
        return "none"
    etag = str(store.head(name)["ETag"])
    if _answer(store, "put_object", name, Body=b"second", IfMatch=etag) == 200:
        return "quoted"
    unquoted = _answer(store, "put_object", name, Body=b"second", IfMatch=etag.strip('"')) == 200
    return "unquoted" if unquoted else "none"


def _checks_content(store: "S3Store", name: str) -> bool:
    other = Content.of(b"said")
    other[:] = b"sent"
    try:
        return _answer(store, "put_object", name, Body=other) != 200 and store.read(name) != b"sent"
    except ChangedContent:
        return store.read(name) != b"sent"


def _lists_uploads(store: "S3Store", name: str) -> bool:
    """Tried again under another name where the upload's id came spoilt: the server then knows no such upload."""
    for number in range(NUM_ROUNDS):
        with contextlib.suppress(UploadVanished):
            return _lists_upload(store, f"{name}-{number}")
    raise ConnectionError(f"{store.uri} does not know the uploads that it has begun.")


def _lists_upload(store: "S3Store", name: str) -> bool:
    id = store.call("create_multipart_upload", name)["UploadId"]
    try:
        etag = store.call("upload_part", name, UploadId=id, PartNumber=1, Body=b"part")["ETag"]
        return [upload.id for upload in store.unfinished(name)] == [id] and store.parts(name, id) == {1: etag}
    except ClientError as error:
        if status_of(error) == 404:
            raise UploadVanished(f"{store.uri}/{name}: {error}") from error
        if status_of(error) not in (400, 405, 501):
            raise
        return False
    finally:
        store.abort(Unfinished(name, id, datetime.now(UTC)))


def _answer(store: "S3Store", operation: str, name: str, **arguments: Any) -> int:
    """The status of the server's answer, refusals included."""
    try:
        return int(store.call(operation, name, **arguments)["ResponseMetadata"]["HTTPStatusCode"])
    except ClientError as error:
        return status_of(error)
