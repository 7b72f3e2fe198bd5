"""A stand-in for the Hugging Face hub: the part of its HTTP API by which models are pushed and fetched."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
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


@dataclass
class Hub:
    """What the stand-in holds; `spoil` changes what it gives back."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    spoil: str = ""  # a file that comes back with another last byte
    url: str = ""


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub at `url` for the length of the block."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            state.objects[self.path.rpartition("/")[2]] = self._body()
            self._send(200, {})

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            path, query, body = unquote(parts.path), parse_qs(parts.query), self._body()
            state.requests.append(f"{self.command} {path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._send(401, {"error": "Invalid credentials"})
                return
            for pattern, method in ROUTES.items():
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    method(self, *match.groups(), body=body, query=query)
                    return
            self._send(404, {"error": f"no such page: {path}"})

        def create(self, *, body: bytes, **_: Any) -> None:
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in state.repositories:
                self._send(409, {"error": "You already created this model repo", "url": f"{state.url}/{name}"})
                return
            state.repositories[name] = Repository(wanted.get("visibility") == "private")
            state.repositories[name].commit("main", {".gitattributes": b""})
            self._send(200, {"url": f"{state.url}/{name}", "name": name, "id": name})

        def validate(self, *, body: bytes, **_: Any) -> None:
            good = "license:" in json.loads(body)["content"]
            self._send(200 if good else 400, {} if good else {"errors": ["no license"], "warnings": []})

        def info(self, name: str, revision: str | None = None, **_: Any) -> None:
            oid, files = state.repositories[name].at(revision or "main")
            self._send(200, {"id": name, "sha": oid, "siblings": [{"rfilename": file} for file in files]})

        def tree(self, name: str, revision: str, **_: Any) -> None:
            _, files = state.repositories[name].at(revision)
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": "0" * 40} for file, data in files.items()
            ]
            self._send(200, entries)

        def preupload(self, name: str, revision: str, *, body: bytes, **_: Any) -> None:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})

        def batch(self, name: str, *, body: bytes, **_: Any) -> None:
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{state.url}/lfs/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})

        def commit(self, name: str, revision: str, *, body: bytes, query: dict[str, list[str]]) -> None:
            repository = state.repositories[name]
            files = dict(repository.at(revision)[1])
            for line in body.splitlines():
                _apply(json.loads(line), files, state.objects)
            number = len([ref for ref in repository.refs if ref.startswith("refs/pr/")]) + 1
            ref = f"refs/pr/{number}" if query.get("create_pr") else revision
            oid = repository.commit(ref, files)
            self._send(
                200,
                {
                    "commitUrl": f"{state.url}/{name}/commit/{oid}",
                    "commitOid": oid,
                    "pullRequestUrl": f"{state.url}/{name}/discussions/{number}",
                },
            )

        def merge(self, name: str, number: str, **_: Any) -> None:
            repository = state.repositories[name]
            repository.refs["main"] = repository.refs[f"refs/pr/{number}"]
            event = {
                "id": "1",
                "type": "status-change",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "author": {"name": "me"},
            }
            self._send(200, {"newStatus": {**event, "data": {"status": "merged"}}})

        def resolve(self, name: str, revision: str, file: str, **_: Any) -> None:
            oid, files = state.repositories[name].at(revision)
            data = files[file]
            if file == state.spoil:
                data = data[:-1] + bytes([data[-1] ^ 1])
            self._send(200, data, {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    name = r"([\w.-]+/[\w.-]+)"
    ROUTES = {
        "POST /api/repos/create": Handler.create,
        "POST /api/validate-yaml": Handler.validate,
        rf"GET /api/models/{name}": Handler.info,
        rf"GET /api/models/{name}/revision/(.+)": Handler.info,
        rf"GET /api/models/{name}/tree/(.+)": Handler.tree,
        rf"POST /api/models/{name}/preupload/(.+)": Handler.preupload,
        rf"POST /{name}\.git/info/lfs/objects/batch": Handler.batch,
        rf"POST /api/models/{name}/commit/(.+)": Handler.commit,
        rf"POST /api/models/{name}/discussions/(\d+)/merge": Handler.merge,
        rf"(?:GET|HEAD) /{name}/resolve/([^/]+)/(.+)": Handler.resolve,
    }
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
