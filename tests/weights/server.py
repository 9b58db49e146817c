"""A server on this machine with one file, that breaks in every way."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTENT = bytes(range(256)) * 12_000  # three megabytes: several chunks


class Server(ThreadingHTTPServer):
    """Serves one file, and breaks off after `cuts` bytes of its first answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.version, self.kind = CONTENT, '"v1"', "application/octet-stream"
        self.ranges, self.length, self.stalls = True, True, False
        self.cuts: list[int] = []
        self.codes: list[int] = []  # answers before those with content
        self.asked: list[str | None] = []  # the Range of each request
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/release/weights.pth"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        at, content = 0, self.server.content
        wanted = self.headers["Range"] if self.server.ranges else None
        self.server.asked.append(self.headers["Range"])
        if self.server.codes:
            self.send_error(self.server.codes.pop(0))
            return
        if wanted and (match := re.fullmatch(r"bytes=(\d+)-", wanted)):
            at = int(match[1])
        if at and at >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if at else 200)
        if at:
            self.send_header("Content-Range", f"bytes {at}-{len(content) - 1}/{len(content)}")
        if self.server.length:
            self.send_header("Content-Length", str(len(content) - at))
        self.send_header("Content-Type", self.server.kind)
        self.send_header("ETag", self.server.version)
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[at : at + cut])
        if self.server.stalls:
            self.server.closing.wait(10)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A server that answers while the context is open."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()
