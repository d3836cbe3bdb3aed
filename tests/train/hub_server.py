"""A small hub on the loopback: what the real client needs to publish and to load a model."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Repository:
    """Commits of one branch or more: each is its files, by name."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        name = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        self.messages.append(message)
        return name

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """Repositories, large files that have arrived, and all that was asked.

    `failing` commits are answered by a fault, as where a connection breaks.
    """

    token: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    failing: int = 0
    url: str = ""


Answer = tuple[int, Any, dict[str, str]]


def answer(hub: Hub, method: str, path: str, body: bytes, allowed: bool) -> Answer:
    """Route one request."""
    path = path.partition("?")[0]
    if method == "PUT" and path.startswith("/large/"):
        hub.large[path.removeprefix("/large/")] = body
        hub.sent.append(path)
        return 200, {}, {}
    if method == "POST" and path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}, {}
    if not allowed:
        return 401, {"error": "Invalid credentials"}, {"X-Error-Code": "RepoNotFound"}
    if method == "POST" and path == "/api/repos/create":
        return _create(hub, json.loads(body))
    if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
        return _batch(hub, json.loads(body))
    if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path):
        return _resolve(hub, *match.groups())
    if re.fullmatch(r"/api/models/[\w.-]+/[\w.-]+/tree/[\w.-]+/.+", path):
        return 404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"}
    match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(\w+)(?:/([\w.-]+))?)?", path)
    if match is None or match[1] not in hub.repositories:
        return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
    repository, (_, what, revision) = hub.repositories[match[1]], match.groups()
    return _of_repository(hub, repository, match[1], method, what, revision or "main", body)


def _create(hub: Hub, asked: dict[str, Any]) -> Answer:
    name = f"{asked['organization']}/{asked['name']}"
    private = asked.get("private") is True or asked.get("visibility") == "private"
    hub.repositories[name] = Repository(private)
    hub.repositories[name].commit("main", {".gitattributes": b""}, "initial commit")
    return 200, {"url": f"{hub.url}/{name}"}, {}


def _batch(hub: Hub, asked: dict[str, Any]) -> Answer:
    objects = []
    for each in asked["objects"]:
        actions = {"upload": {"href": f"{hub.url}/large/{each['oid']}"}}
        objects.append(each if each["oid"] in hub.large else {**each, "actions": actions})
    return 200, {"transfer": "basic", "objects": objects}, {}


def _resolve(hub: Hub, name: str, revision: str, file: str) -> Answer:
    repository = hub.repositories.get(name)
    commit = repository.at(revision) if repository else None
    if repository is None or commit is None:
        return 404, {"error": "not found"}, {"X-Error-Code": "RevisionNotFound"}
    content = repository.commits[commit].get(file)
    headers = {"X-Repo-Commit": commit}
    if content is None:
        return 404, {"error": "not found"}, headers | {"X-Error-Code": "EntryNotFound"}
    return 200, content, headers | {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}


def _of_repository(
    hub: Hub, repository: Repository, name: str, method: str, what: str, revision: str, body: bytes
) -> Answer:
    commit = repository.at(revision)
    if what == "branch":
        repository.branches.setdefault(revision, repository.branches["main"])
        return 201, {}, {}
    if what == "settings":
        asked = json.loads(body)
        repository.private = asked.get("private", asked.get("visibility") == "private")
        return 200, {}, {}
    if commit is None:
        return 404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"}
    files = repository.commits[commit]
    if what == "preupload":
        modes = [
            {**file, "uploadMode": _mode(file["path"]), "shouldIgnore": False, "oid": None}
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": modes}, {}
    if what == "tree":
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
            for path, content in files.items()
        ]
        return 200, entries, {}
    if what == "commit" and method == "POST":
        return _commit(hub, repository, name, revision, body)
    siblings = [{"rfilename": path} for path in files]
    private = repository.private
    return 200, {"id": name, "sha": commit, "private": private, "siblings": siblings}, {}


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".png")) else "regular"


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _commit(hub: Hub, repository: Repository, name: str, branch: str, body: bytes) -> Answer:
    if hub.failing:
        hub.failing -= 1
        return 403, {"error": "the connection was lost"}, {}
    lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    head = lines[0]["value"]
    if head.get("parentCommit") not in (None, repository.branches[branch]):
        return 412, {"error": "something else was committed"}, {}
    files = dict(repository.commits[repository.branches[branch]])
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "deletedFile":
            del files[value["path"]]
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.large[value["oid"]]
        else:
            files[value["path"]] = base64.b64decode(value["content"])
    made = repository.commit(branch, files, head["summary"])
    url = f"{hub.url}/{name}/commit/{made}"
    return 200, {"success": True, "commitUrl": url, "commitOid": made, "hookOutput": ""}, {}


@contextmanager
def running_hub(token: str) -> Iterator[Hub]:
    """Serve on the loopback until the end of the block."""
    hub = Hub(token)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            hub.bodies.append(self.path.encode() + b"\n" + body)
            allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
            status, content, headers = answer(hub, self.command, self.path, body, allowed)
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
