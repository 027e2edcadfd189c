"""A Hub on this machine: what huggingface_hub asks of one to make repositories, upload to them and read them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = r"(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"


LARGE = (".safetensors", ".bin", ".pt", ".pth")  # files that are uploaded before they are committed


class Hub:
    """Repositories by kind and name, each a mapping from path to content, and the requests that came in.

    Attributes:
        objects: Large files by their digest.
        puts: The digests of large files in the order in which their upload began.
        dropped: Those of them that were broken off.
        readers: Tokens that may read but not write.
        strangers: Tokens whose connections are dropped.
        drops: How many uploads of large files are still to be broken off.
        refusals: How many commits to a repository are still to be refused.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.commits: list[dict[str, Any]] = []
        self.branches = {"main"}
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.dropped: list[str] = []
        self.readers: set[str] = set()
        self.strangers: set[str] = set()
        self.drops = 0
        self.refusals: dict[str, int] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""

    def parse_request(self) -> bool:
        """Hang up on strangers, and let readers read only."""
        known = super().parse_request()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") if known else ""
        if token in self.hub.strangers:
            self.close_connection = True
            return False
        if known and token in self.hub.readers and self.command in {"POST", "PUT"}:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._json({"error": "This token can only read."}, 403)
            return False
        return known

    def do_PUT(self) -> None:
        digest, size = self.path.rsplit("/", 1)[1], int(self.headers["Content-Length"])
        self.hub.puts.append(digest)
        if self.hub.drops:
            self.hub.drops -= 1
            self.hub.dropped.append(digest)
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        self.hub.objects[digest] = self.rfile.read(size)
        self._json({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(rf"/api/{REPOSITORY}(/revision/[^/]+)?", path):
            self._describe(found["kind"], found["name"])
        elif found := re.fullmatch(rf"/api/{REPOSITORY}/tree/[^/]+(/(?P<folder>.*))?", path):
            files = self.hub.repositories.get((found["kind"], found["name"]), {})
            inside = {name: data for name, data in files.items() if name.startswith(found["folder"] or "")}
            self._json([_entry(name, data) for name, data in inside.items()])
        elif found := re.fullmatch(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)", path):
            self._file(found["kind"] or "models/", found["name"], found["file"])
        else:
            self._json({"error": f"no such page: {path}"}, 404)

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            self.hub.created.append({"id": name, "token": self.headers.get("Authorization"), **asked})
            self.hub.repositories.setdefault(("models", name), {})
            self._json({"url": f"{self.hub.url}/{name}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(rf"/api/{REPOSITORY}/preupload/.+", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif found := re.fullmatch(rf"/api/{REPOSITORY}/commit/(?P<revision>.+)", path):
            self._commit(found["kind"], found["name"], found["revision"], body)
        elif found := re.fullmatch(rf"/api/{REPOSITORY}/branch/(?P<branch>.+)", path):
            self._json({}, 409 if found["branch"] in self.hub.branches else 200)
            self.hub.branches.add(found["branch"])
        elif path.endswith(".git/info/lfs/objects/batch"):
            wanted = [entry["oid"] for entry in json.loads(body)["objects"]]
            self._json({"transfer": "basic", "objects": [self._place(digest) for digest in wanted]})
        elif found := re.fullmatch(rf"/api/{REPOSITORY}/paths-info/.+", path):
            files = self.hub.repositories.get((found["kind"], found["name"]), {})
            asked = re.findall(r"paths=([^&]+)", unquote(body.decode())) or json.loads(body or b"{}").get("paths", [])
            self._json([_entry(name, files[name]) for name in asked if name in files])
        else:
            self._json({"error": f"no such page: {path}"}, 404)

    def _place(self, digest: str) -> dict[str, Any]:
        """Where a large file is to be uploaded, unless it is there."""
        actions = {"upload": {"href": f"{self.hub.url}/objects/{digest}", "header": {}}}
        return {"oid": digest, "size": 0, **({} if digest in self.hub.objects else {"actions": actions})}

    def _commit(self, kind: str, name: str, revision: str, body: bytes) -> None:
        if self.hub.refusals.get(name):
            self.hub.refusals[name] -= 1
            self._json({"error": "Not today."}, 400)
            return
        entries = [json.loads(line) for line in body.splitlines()]
        repository = self.hub.repositories[kind, name]
        for entry in entries[1:]:
            if entry["key"] == "deletedFile":
                del repository[entry["value"]["path"]]
        values = {entry["value"]["path"]: entry["value"] for entry in entries[1:] if entry["key"] != "deletedFile"}
        files = {
            path: base64.b64decode(value["content"]) if "content" in value else self.hub.objects[value["oid"]]
            for path, value in values.items()
        }
        self.hub.commits.append({"name": name, "revision": revision, "files": files, **entries[0]["value"]})
        repository.update(files)
        answer = {"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        if "create_pr=1" in urlsplit(self.path).query:
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/1"
        self._json(answer)

    def _describe(self, kind: str, name: str) -> None:
        files = self.hub.repositories.get((kind, name))
        if files is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        self._json(
            {
                "id": name,
                "sha": COMMIT,
                "tags": [],
                "private": False,
                "gated": False,
                "disabled": False,
                "siblings": [{"rfilename": file} for file in files],
            }
        )

    def _file(self, kind: str, name: str, file: str) -> None:
        data = self.hub.repositories.get((kind.strip("/"), name), {}).get(file)
        if data is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        self._reply(200, data, "application/octet-stream", headers)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._reply(status, json.dumps(value).encode(), "application/json", headers or {})

    def _reply(self, status: int, data: bytes, content_type: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()[:40]}


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A Hub that answers on a free port of this machine while the context lasts."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
