"""Downloads that resume: a file has its final name only when it is whole and verified."""

import base64
import gzip
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from minddiff_utils.io import InputError, lock_file

BLOCK = 2**20  # bytes handed over at a time
PATIENCE = 60.0  # seconds without a byte after which a connection counts as broken
ATTEMPTS = 6  # in a row without one new byte
SPARE = 64 * 2**20  # bytes to leave free on the disk

Progress = Callable[[int], object]


class BrokenConnection(Exception):
    """The connection ended before the file did; asking again for the rest may help."""


class Source(Protocol):
    """A remote file."""

    name: str  # for messages
    size: int  # bytes
    version: str  # differs when the content does; letters and digits

    def read(self, start: int) -> Iterator[bytes]:
        """Yield the content from byte `start` on; raise BrokenConnection where it breaks off.

        What is yielded may end early; it never holds bytes from another place or version.
        """

    def fault(self, path: Path) -> str:
        """Compare a downloaded file with the checksum; say what is wrong, empty if nothing is."""


def show_bytes(n: float) -> str:
    """Return a size as people write it: 1.1 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 99.5 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def partial_path(path: Path, source: Source) -> Path:
    """Return the name that a file has until it is whole; another version gets another name."""
    mark = hashlib.sha256(f"{source.version} {source.size}".encode()).hexdigest()[:8]
    return path.with_name(f".{path.name}.{mark}.partial")


def hide_secrets(text: object) -> str:
    """Return a text, such as an error, without the passwords and keys of the addresses in it."""
    login = r"(://)[^\s?#'\"]*@|[^\s/?#'\"]+:(?!//)[^\s?#'\"]*@"
    return re.sub(r"\?[^\s?'\")]*=[^\s'\")]*", "?…", re.sub(login, r"\1…@", str(text)))


@contextmanager
def only_fetch(folder: Path) -> Iterator[None]:
    """Let no second process download into a folder.

    Raises
    ------
    InputError
        If another one does so already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".fetching"
    with open(path, "a", encoding="utf-8") as file:
        # Its last holder may have removed the file before this one locked it.
        if not lock_file(file) or not os.fstat(file.fileno()).st_nlink:
            raise InputError(
                f"Another process is downloading into {folder}. Wait for it, or stop it."
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def require_space(folder: Path, wanted: Sequence[tuple[Path, Source]], more: int = 0) -> int:
    """Check that the disk has room for what is still to be downloaded.

    Parameters
    ----------
    folder : Path
        On the disk that is meant; need not exist yet.
    wanted : sequence of (Path, Source)
        Files to be downloaded; what an earlier run left of them counts as there.
    more : int
        Bytes needed besides.

    Returns
    -------
    int
        Bytes still to be downloaded.

    Raises
    ------
    InputError
        If there is too little; the message says how much is needed.
    """
    left = 0
    for path, source in wanted:
        partial = partial_path(path, source)
        left += source.size - (partial.stat().st_size if partial.exists() else 0)
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < left + more + SPARE:
        raise InputError(
            f"{folder} has {show_bytes(free)} free; {show_bytes(left + more + SPARE)} are needed. "
            "Free some space, choose another folder, or fetch fewer sessions or subjects."
        )
    return left


def download(
    source: Source,
    path: Path,
    *,
    progress: Progress = lambda n: None,
    pause: float = 1.0,
    attempts: int = ATTEMPTS,
) -> Path:
    """Download a file, from where an earlier run stopped, and verify it.

    Parameters
    ----------
    source : Source
    path : Path
        The final name; until the file is whole it is called `partial_path(path, source)`.
    progress : callable
        Called with the number of new bytes; negative where some are thrown away.
    pause : float
        Seconds before a broken connection is tried again; doubled each time in a row.
    attempts : int
        Connections in a row that bring no new byte before giving up.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the connection keeps breaking (what came is kept for the next run), or the content
        does not fit its checksum twice (nothing is kept), or a gzip file cannot be unpacked to
        its end (it is kept).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path, source)
    for other in path.parent.glob(f".{path.name}.*.partial"):
        if other != partial:
            other.unlink()  # of an older version of the remote file
    fault = ""
    for _ in range(2):
        _complete(source, partial, progress, pause, attempts)
        fault = source.fault(partial)
        if not fault:
            _check_gzip(source, path, partial)
            partial.replace(path)
            return path
        # A second try from the start: the first part may have been damaged on this disk.
        progress(-partial.stat().st_size)
        partial.unlink()
    raise InputError(
        f"{source.name}: {fault}. It was downloaded twice and nothing was kept. Try again later; "
        "if it stays so, the file at its source is damaged."
    )


def _check_gzip(source: Source, path: Path, partial: Path) -> None:
    """Read a gzip file to the checksum at its end."""
    if path.suffix != ".gz":
        return
    try:
        with gzip.open(partial) as file:
            while file.read(BLOCK):
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{source.name} came in full, but cannot be unpacked to its end ({error}). It is kept "
            f"as {partial}: delete that and run the command again. If it stays so, the file at its "
            "source is damaged."
        ) from None


def _complete(
    source: Source, partial: Path, progress: Progress, pause: float, attempts: int
) -> None:
    """Append to `partial` until it has the source's size."""
    failures = 0
    while (done := _size(partial)) < source.size:
        reason = "the connection closed early"
        try:
            with open(partial, "ab") as file:
                for block in source.read(done):
                    # More than was announced is no part of the file.
                    block = block[: source.size - file.tell()]
                    file.write(block)
                    progress(len(block))
        except BrokenConnection as error:
            reason = hide_secrets(error)
        if _size(partial) > done:
            failures = 0
            continue
        failures += 1
        if failures == attempts:
            raise InputError(
                f"{source.name}: {attempts} connections in a row brought nothing ({reason}). "
                f"{show_bytes(done)} of {show_bytes(source.size)} are kept: the same command goes "
                "on from there."
            )
        time.sleep(pause * 2 ** (failures - 1))
    if not source.size:
        partial.touch()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ------------------------------------------------------------------------------------------- HTTP


@dataclass(frozen=True)
class HttpSource:
    """A file on a web server; made by `HttpSource.find`.

    Parameters
    ----------
    url : str
        The address; a name and password in it are for that server alone.
    size : int
        Bytes.
    version : str
        The server's ETag or date, if it gives one.
    md5 : str
        Known checksum in hexadecimal, or empty.
    """

    url: str
    size: int
    version: str
    md5: str = ""

    @property
    def name(self) -> str:
        """For messages: the address without what is secret."""
        return hide_secrets(self.url)

    @classmethod
    def find(cls, url: str, md5: str = "") -> "HttpSource":
        """Ask a web server about a file.

        Raises
        ------
        InputError
            If the address is none, there is no such file or no network, or no size is given.
        """
        shown = hide_secrets(url)
        try:
            # The first byte rather than HEAD, which addresses that redirect often refuse.
            with _request(url, 0, 0) as answer:
                span = answer.headers.get("Content-Range", "")
                size = span.rpartition("/")[2] if answer.status == 206 else None
                size = size or answer.headers.get("Content-Length", "")
                mark = _mark(answer)
        except urllib.error.HTTPError as error:
            raise InputError(f"{shown}: the server answers {error.code} {error.reason}.") from None
        except (ValueError, OSError, http.client.HTTPException) as error:
            why = hide_secrets(error)
            raise InputError(f"{shown} cannot be reached ({why}). Is there a network?") from None
        if not size.isdigit():
            raise InputError(f"{shown}: the server does not say how large the file is.")
        return cls(url, int(size), mark, md5)

    def read(self, start: int) -> Iterator[bytes]:
        """Yield the content from byte `start` on."""
        try:
            with _request(self.url, start) as answer:
                if _mark(answer) != self.version:
                    raise InputError(f"{self.name} has changed meanwhile. Run the command again.")
                span = answer.headers.get("Content-Range", "")
                if answer.status != 206:
                    # The server sends all of it again: skip what is there already.
                    _skip(answer, start)
                elif not span.startswith(f"bytes {start}-"):
                    raise BrokenConnection(f"the server sent another part than asked: {span}")
                # As much as has come, so that a stall loses none of it.
                while block := answer.read1(BLOCK):
                    yield block
        except (OSError, http.client.HTTPException) as error:
            raise BrokenConnection(str(error) or type(error).__name__) from error

    def fault(self, path: Path) -> str:
        """Compare size and, where it is known, MD5."""
        if path.stat().st_size != self.size:
            return f"{path.stat().st_size} bytes came; the server announced {self.size}"
        if self.md5:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if found != self.md5:
                return f"MD5 is {found}; expected {self.md5}"
        return ""


def _request(url: str, start: int, end: int | None = None) -> http.client.HTTPResponse:
    address = urllib.parse.urlsplit(url)
    user, _, host = address.netloc.rpartition("@")
    request = urllib.request.Request(address._replace(netloc=host).geturl())
    request.add_header("User-Agent", "minddiff")
    if start or end is not None:
        request.add_header("Range", f"bytes={start}-{'' if end is None else end}")
    if user:  # for this server, not for another that it may send us to
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return urllib.request.urlopen(request, timeout=PATIENCE)


def _mark(answer: http.client.HTTPResponse) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _skip(answer: http.client.HTTPResponse, n: int) -> None:
    while n > 0:
        block = answer.read(min(BLOCK, n))
        if not block:
            raise BrokenConnection("the connection closed early")
        n -= len(block)
