"""A stand-in of the Hugging Face hub on this machine: the part of its HTTP API that pushes and fetches models.

It keeps one branch of each repository in memory, and asks for a token to write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"


@dataclass
class Repository:
    """The files of a repository, and the messages of its commits."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def oid(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class Hub:
    """The server. ``address`` is what ``HF_ENDPOINT`` names."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
        elif self.path == "/api/validate-yaml":
            is_known = re.search(r"^license: (apache-2\.0|mit)$", json.loads(body)["content"], re.MULTILINE)
            has_licence = "\nlicense: " in json.loads(body)["content"]
            errors = [{"message": '"license" must be one of [apache-2.0, mit]'}] if has_licence and not is_known else []
            self._send(400 if errors else 200, {"errors": errors, "warnings": []})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            objects = [self._place(entry) for entry in json.loads(body)["objects"]]
            self._send(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/[^/]+", self.path.partition("?")[0]):
            getattr(self, f"_{match[2]}")(match[1], body)
        else:
            self._unknown()

    def do_PUT(self) -> None:
        self.state.objects[self.path.rpartition("/")[2]] = self._body()
        self._send(200, {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        match = file or about
        repository = self.state.repositories.get(match[1]) if match else None
        if match is None:
            self._unknown()
        elif repository is None:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif file:
            self._file(repository, file[2])
        elif about[2] == "tree":
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in repository.files.items()
            ]
            self._send(200, files)
        else:
            siblings = [{"rfilename": name} for name in repository.files]
            self._send(
                200, {"id": match[1], "sha": repository.oid, "private": repository.private, "siblings": siblings}
            )

    def _create(self, wanted: dict) -> None:
        name = f"{wanted.get('organization') or 'somebody'}/{wanted['name']}"
        address = {"url": f"{self.state.address}/{name}"}
        if name in self.state.repositories:
            self._send(409, {"error": "You already created this model repo", **address})
            return
        self.state.repositories[name] = Repository(wanted.get("visibility") == "private")
        self._send(200, address)

    def _preupload(self, name: str, body: bytes) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".onnx")) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._send(200, {"files": modes})

    def _place(self, entry: dict) -> dict:
        href = f"{self.state.address}/objects/{entry['oid']}"
        return {**entry, "authenticated": True, "actions": {"upload": {"href": href}}}

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.state.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                repository.files[value["path"]] = self.state.objects[value["oid"]]
        address = f"{self.state.address}/{name}/commit/{repository.oid}"
        self._send(200, {"success": True, "commitOid": repository.oid, "commitUrl": address})

    def _file(self, repository: Repository, name: str) -> None:
        data, known = repository.files.get(name), {"X-Repo-Commit": repository.oid}
        if data is None:
            self._send(404, {"error": "Entry not found"}, {**known, "X-Error-Code": "EntryNotFound"})
        else:
            self._send(200, data, {**known, "ETag": f'"{_oid(data)}"'})

    def _unknown(self) -> None:
        self._send(404, {"error": "Not Found"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
