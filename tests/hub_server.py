"""A stand-in for the Hugging Face hub: the part of its HTTP API by which models are pushed and fetched."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.local_http import running

TOKEN = "hf_for_this_test"
LARGE = (".safetensors", ".gguf")  # sent by the LFS protocol

Files = dict[str, bytes]


@dataclass
class Repository:
    """The files of every commit, and where the refs stand."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: Files) -> str:
        listing = json.dumps([ref, len(self.commits), sorted(files)])
        oid = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[oid], self.refs[ref] = files, oid
        return oid

    def at(self, revision: str) -> tuple[str, Files]:
        oid = self.refs.get(revision, revision)
        return oid, self.commits[oid]


@dataclass(frozen=True)
class Answer:
    """What a page answers: JSON, or bytes as they are."""

    content: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Hub:
    """What the stand-in holds, and its pages; `spoil` changes what it gives back."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    spoil: str = ""  # a file that comes back with another last byte
    url: str = ""

    def answer(self, request: str, query: Mapping[str, list[str]], body: bytes) -> Answer:
        """What the page of `request`, a method and a path, says."""
        for pattern, page in ROUTES.items():
            if match := re.fullmatch(pattern, request):
                return page(self, *match.groups(), body=body, query=query)
        return Answer({"error": f"no such page: {request}"}, 404)

    def create(self, *, body: bytes, **_: Any) -> Answer:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repositories:
            return Answer({"error": "You already created this model repo", "url": f"{self.url}/{name}"}, 409)
        self.repositories[name] = Repository(wanted.get("visibility") == "private")
        self.repositories[name].commit("main", {".gitattributes": b""})
        return Answer({"url": f"{self.url}/{name}", "name": name, "id": name})

    def validate(self, *, body: bytes, **_: Any) -> Answer:
        if "license:" in json.loads(body)["content"]:
            return Answer({})
        return Answer({"errors": ["no license"], "warnings": []}, 400)

    def info(self, name: str, revision: str | None = None, **_: Any) -> Answer:
        oid, files = self.repositories[name].at(revision or "main")
        return Answer({"id": name, "sha": oid, "siblings": [{"rfilename": file} for file in files]})

    def tree(self, name: str, revision: str, **_: Any) -> Answer:
        _, files = self.repositories[name].at(revision)
        return Answer([{"type": "file", "path": file, "size": len(files[file]), "oid": "0" * 40} for file in files])

    def preupload(self, name: str, revision: str, *, body: bytes, **_: Any) -> Answer:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        return Answer({"files": files})

    def batch(self, name: str, *, body: bytes, **_: Any) -> Answer:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        return Answer({"transfer": "basic", "objects": objects})

    def receive(self, oid: str, *, body: bytes, **_: Any) -> Answer:
        self.objects[oid] = body
        return Answer({})

    def commit(self, name: str, revision: str, *, body: bytes, query: Mapping[str, list[str]]) -> Answer:
        repository = self.repositories[name]
        files = dict(repository.at(revision)[1])
        for line in body.splitlines():
            _apply(json.loads(line), files, self.objects)
        number = len([ref for ref in repository.refs if ref.startswith("refs/pr/")]) + 1
        oid = repository.commit(f"refs/pr/{number}" if query.get("create_pr") else revision, files)
        places = {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}
        return Answer({**places, "pullRequestUrl": f"{self.url}/{name}/discussions/{number}"})

    def merge(self, name: str, number: str, **_: Any) -> Answer:
        repository = self.repositories[name]
        repository.refs["main"] = repository.refs[f"refs/pr/{number}"]
        event = {"id": "1", "type": "status-change", "createdAt": "2026-01-01T00:00:00.000Z", "author": {"name": "me"}}
        return Answer({"newStatus": {**event, "data": {"status": "merged"}}})

    def resolve(self, name: str, revision: str, file: str, **_: Any) -> Answer:
        oid, files = self.repositories[name].at(revision)
        data = files[file]
        if file == self.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        return Answer(data, headers={"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: Mapping[str, Callable[..., Answer]] = {
    "POST /api/repos/create": Hub.create,
    "POST /api/validate-yaml": Hub.validate,
    rf"GET /api/models/{NAME}": Hub.info,
    rf"GET /api/models/{NAME}/revision/(.+)": Hub.info,
    rf"GET /api/models/{NAME}/tree/(.+)": Hub.tree,
    rf"POST /api/models/{NAME}/preupload/(.+)": Hub.preupload,
    rf"POST /{NAME}\.git/info/lfs/objects/batch": Hub.batch,
    r"PUT /lfs/(\w+)": Hub.receive,
    rf"POST /api/models/{NAME}/commit/(.+)": Hub.commit,
    rf"POST /api/models/{NAME}/discussions/(\d+)/merge": Hub.merge,
    rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)": Hub.resolve,
}


REFUSED = Answer({"error": "Invalid credentials"}, 401)


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub at `url` for the length of the block."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = f"{self.command} {unquote(parts.path)}"
            may = self.command == "PUT" or self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if self.command != "PUT":
                state.requests.append(request)
            self._send(state.answer(request, parse_qs(parts.query), body) if may else REFUSED)

        do_GET = do_HEAD = do_POST = do_PUT = respond

        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, answer: Answer) -> None:
            content = answer.content
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(data)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    with running(Handler) as url:
        state.url = url
        yield state


def _apply(line: dict[str, Any], files: Files, objects: dict[str, bytes]) -> None:
    """One line of a commit."""
    key, value = line["key"], line["value"]
    if key == "file":
        files[value["path"]] = base64.b64decode(value["content"])
    elif key == "lfsFile":
        files[value["path"]] = objects[value["oid"]]
    elif key == "deletedFile":
        del files[value["path"]]
