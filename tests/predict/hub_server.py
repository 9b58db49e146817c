"""A hub of Hugging Face's on this machine, with one repository."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Answers what the library asks for a model; `asked` has the paths."""

    daemon_threads = True

    def __init__(self, repository: str, files: Mapping[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository, self.files = repository, files
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub = self.server
        assert isinstance(hub, Hub)
        hub.asked.append(self.path)
        start = f"/api/models/{hub.repository}"
        if self.path == start or self.path.startswith(f"{start}/revision/"):
            siblings = [{"rfilename": name} for name in hub.files]
            body = json.dumps({"id": hub.repository, "modelId": hub.repository, "sha": COMMIT, "siblings": siblings})
            self._send(body.encode(), "application/json", with_body)
            return
        name = self.path.removeprefix(f"/{hub.repository}/resolve/").partition("/")[2]
        if self.path.startswith(f"/{hub.repository}/resolve/") and name in hub.files:
            self._send(hub.files[name].read_bytes(), "application/octet-stream", with_body)
            return
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, body: bytes, kind: str, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(repository: str, files: Mapping[str, Path]) -> Iterator[Hub]:
    """A hub that answers while the context is open."""
    with Hub(repository, files) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
