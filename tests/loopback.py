"""Servers on 127.0.0.1 that fail on purpose."""

import gc
import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `files` by path, with ranges and ETags; can promise more than it sends.

    A path may hold a question, or is found without it; `headers` has more of them, by path, and
    `codes` errors. `cut_after` bytes of a body the connection closes, `cuts` times (-1: always).
    `asked` holds the `Range` of every request, `logins` its `Authorization`. A connection that
    closes stands still for `stall` seconds before; ranges that are sent begin `shift` bytes early.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.ranges = files, True
        self.headers: dict[str, dict[str, str]] = {}
        self.codes: dict[str, int] = {}
        self.cut_after, self.cuts, self.stall, self.shift = 0, 0, 0.0, 0
        self.asked: list[str | None] = []
        self.logins: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        plain = self.path.partition("?")[0]
        path = self.path if self.path in self.server.files else plain
        body = self.server.files.get(path)
        if body is None or path in self.server.codes:
            self.send_error(self.server.codes.get(path, 404))
            return
        span = self.headers.get("Range")
        self.server.asked.append(span)
        self.server.logins.append(self.headers.get("Authorization"))
        start, end, status = 0, len(body), 200
        if span and self.server.ranges:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end, status = int(first), int(last) + 1 if last else len(body), 206
            start = max(0, start - self.server.shift)
        part = body[start:end]
        # Decided before the client gets an answer, upon which a test may change these.
        if self.server.cuts and len(part) > self.server.cut_after:
            self.server.cuts -= 1
            part = part[: self.server.cut_after]
            self.close_connection = True
        self.send_response(status)
        headers = {"Content-Length": str(end - start), **self.server.headers.get(path, {})}
        if "ETag" not in headers:  # of a gigabyte it would take seconds
            headers["ETag"] = f'"{hashlib.md5(body).hexdigest()}"'
        for name, value in headers.items():
            self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        with suppress(ConnectionError):  # who only asks for the size does not stay
            self.wfile.write(part)
        if self.close_connection and self.server.stall:
            time.sleep(self.server.stall)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Run a `FileServer` in the background.

    Its threads collect no garbage: to free an object of h5py they would need the lock that the
    client holds while HDF5 waits for this server.
    """
    server = FileServer(files)
    gc.disable()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        gc.enable()
