"""A hub of Hugging Face's on this machine: repositories of models that are read, created and written."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_of_the_test"
USER, USERS = "someone", ("someone", "user")  # whose repositories this token may write


class Hub(ThreadingHTTPServer):
    """Answers what the library asks for a model; `asked` has the paths, and `repositories` the files by name."""

    daemon_threads = True

    def __init__(self, repository: str, files: Mapping[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        if files:
            self.repositories[repository] = {name: path.read_bytes() for name, path in files.items()}
        self.large: dict[str, bytes] = {}  # sha256 -> what was uploaded, before a commit names it
        self.commits: list[tuple[str, str]] = []  # repository and message
        self.private: set[str] = set()
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def commit(self) -> str:
        """The newest commit; the library fetches no file of a commit twice."""
        return f"{len(self.commits) + 1:040x}"


class Handler(BaseHTTPRequestHandler):
    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, Hub)
        return self.server

    # ---------------------------------------------------------------------------------------------------------- reading

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.hub.asked.append(self.path)
        for repository, files in self.hub.repositories.items():
            start = f"/api/models/{repository}"
            if self.path == start or self.path.startswith(f"{start}/revision/"):
                siblings = [{"rfilename": name} for name in files]
                body = {"id": repository, "modelId": repository, "sha": self.hub.commit, "siblings": siblings}
                self._send(json.dumps(body).encode(), "application/json", with_body)
                return
            name = self.path.removeprefix(f"/{repository}/resolve/").partition("/")[2]
            if self.path.startswith(f"/{repository}/resolve/") and name in files:
                self._send(files[name], "application/octet-stream", with_body)
                return
        self._refuse(404, "RepoNotFound")

    # ---------------------------------------------------------------------------------------------------------- writing

    def do_POST(self) -> None:
        self.hub.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self._json({"errors": [], "warnings": []})
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._refuse(401, "")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._json({"transfer": "basic", "objects": [self._place(one) for one in json.loads(body)["objects"]]})
        elif (repository := self._repository(path)) not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
        elif "/preupload/" in path:
            self._json({"files": [_mode(file["path"]) for file in json.loads(body)["files"]]})
        elif "/commit/" in path:
            self._commit(repository, [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404, "")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
        self.hub.large[self.path.rpartition("/")[2]] = body
        self._json({})

    def _create(self, asked: Mapping[str, Any]) -> None:
        repository = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in USERS:
            self._refuse(403, "")
        elif repository in self.hub.repositories:
            self._refuse(409, "", {"url": f"{self.hub.address}/{repository}"})
        else:
            self.hub.repositories[repository] = {".gitattributes": b"*.safetensors filter=lfs"}
            self.hub.private |= {repository} if asked.get("visibility") == "private" or asked.get("private") else set()
            self._json({"url": f"{self.hub.address}/{repository}"})

    def _place(self, one: Mapping[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.hub.address}/large/{one['oid']}"}}}

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.repositories[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append((repository, value["summary"]))
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = self.hub.commit
        self._json({"commitUrl": f"{self.hub.address}/{repository}/commit/{commit}", "commitOid": commit})

    def _repository(self, path: str) -> str:
        return "/".join(path.removeprefix("/api/models/").split("/")[:2])

    # ---------------------------------------------------------------------------------------------------------- answers

    def _json(self, content: object) -> None:
        self._send(json.dumps(content).encode(), "application/json", with_body=True)

    def _send(self, body: bytes, kind: str, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, content: object = None) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _mode(path: str) -> dict[str, Any]:
    large = path.endswith(".safetensors")
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


@contextmanager
def serving(repository: str, files: Mapping[str, Path]) -> Iterator[Hub]:
    """A hub that answers while the context is open."""
    with Hub(repository, files) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


@contextmanager
def pushing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories, to which this process may write."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of the real hub's own storage
    with serving("", {}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
