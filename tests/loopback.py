"""Servers on 127.0.0.1 that fail on purpose."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["CuttingProxy", "FileServer", "serve"]


class CuttingProxy:
    """Passes connections on to another port; cuts the first few after so many bytes of answer.

    `mangle` may change what comes back. `cut_after` and `cuts` may be changed at any time;
    `received` counts the bytes passed back.
    """

    def __init__(self, port: int, cut_after: int = 0, cuts: int = 0):
        self.target = port
        self.cut_after, self.cuts, self.received = cut_after, cuts, 0
        self.mangle: Callable[[bytes], bytes] = lambda data: data
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                for way in (self._up, self._down):
                    threading.Thread(target=way, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            server.close()

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        sent = 0
        with suppress(OSError):
            while data := server.recv(65536):
                if self.cuts and sent + len(data) > self.cut_after:
                    self.cuts -= 1
                    client.sendall(data[: max(0, self.cut_after - sent)])
                    break
                client.sendall(self.mangle(data))
                sent += len(data)
                self.received += len(data)
        # Both directions at once, so that the client sees the end now.
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class FileServer(ThreadingHTTPServer):
    """Serves `files` by path, with ranges and ETags; can promise more than it sends.

    `cut_after` bytes of a body the connection closes, `cuts` times (-1: always). `asked` holds
    the `Range` of every request, `logins` its `Authorization`. A connection that closes stands
    still for `stall` seconds before; ranges that are sent begin `shift` bytes early.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.ranges = files, True
        self.cut_after, self.cuts, self.stall, self.shift = 0, 0, 0.0, 0
        self.asked: list[str | None] = []
        self.logins: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
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
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.send_header("Content-Length", str(end - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
        self.end_headers()
        with suppress(ConnectionError):  # who only asks for the size does not stay
            self.wfile.write(part)
        if self.close_connection and self.server.stall:
            time.sleep(self.server.stall)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Run a `FileServer` in the background."""
    server = FileServer(files)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
