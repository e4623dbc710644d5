"""Downloads that resume: a file has its final name only when it is whole and verified."""

import gzip
import hashlib
import re
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from minddiff_utils.io import InputError, lock_file

BLOCK = 2**20  # bytes handed over at a time
PATIENCE = 60.0  # seconds without a byte after which a connection counts as broken
ATTEMPTS = 6  # in a row without one new byte
SPARE = 64 * 2**20  # bytes to leave free on the disk


class NotThere(InputError):
    """The server has no such file, or does not show it."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a web server; made by `look_up`.

    Parameters
    ----------
    url : str
        The address; a name and password in it are for that server alone.
    size : int
        Bytes.
    version : str
        The server's ETag or date, if it gives one: differs when the content does.
    md5 : str
        Known checksum as `digest` returns it, or empty.
    part : int
        Bytes of each part of which the checksum was made; 0 if of the whole.
    """

    url: str
    size: int
    version: str
    md5: str = ""
    part: int = 0

    @property
    def name(self) -> str:
        """For messages: the address without what is secret."""
        return hide_secrets(self.url)

    def partial(self, path: Path) -> Path:
        """Return what `path` is called until it is whole; another version gets another name."""
        mark = hashlib.sha256(f"{self.version} {self.size}".encode()).hexdigest()[:8]
        return path.with_name(f".{path.name}.{mark}.partial")

    def done(self, path: Path) -> int:
        """Return how many bytes of it have come."""
        partial = self.partial(path)
        return partial.stat().st_size if partial.exists() else 0


def show_bytes(n: float) -> str:
    """Return a size as people write it: 1.05GB (powers of 1000)."""
    return tqdm.format_sizeof(n, "B")


def hide_secrets(text: object) -> str:
    """Return a text, such as an error, without the passwords and keys of the addresses in it."""
    login = r"(://)[^\s?#'\"]*@|[^\s/?#'\"]+:(?!//)[^\s?#'\"]*@"
    return re.sub(r"\?[^\s?'\")]*=[^\s'\")]*", "?…", re.sub(login, r"\1…@", str(text)))


def look_up(url: str, md5: str = "", bucket: bool = False) -> RemoteFile:
    """Ask a web server about a file.

    Parameters
    ----------
    url : str
    md5 : str
        Known checksum in hexadecimal, if there is one.
    bucket : bool
        The file is in an S3 bucket, whose ETags are checksums.

    Raises
    ------
    NotThere
        If there is no such file.
    InputError
        If the address is none, there is no network, or no size is given.
    """
    try:
        # Not HEAD, which addresses that redirect often refuse.
        with _get(url) as answer:
            size = int(answer.headers["Content-Length"])
            md5, part = _bucket_digest(answer, size) if bucket else (md5, 0)
            return RemoteFile(url, size, _version(answer), md5, part)
    except (requests.RequestException, KeyError) as error:
        code = getattr(getattr(error, "response", None), "status_code", None)
        raise (NotThere if code in (403, 404) else InputError)(
            f"{hide_secrets(url)} cannot be fetched ({hide_secrets(error)}). Is the address right, "
            "and is there a network?"
        ) from None


def _get(url: str, **headers: str) -> requests.Response:
    headers = {"User-Agent": "minddiff", "Accept-Encoding": "identity", **headers}
    answer = requests.get(url, headers=headers, stream=True, timeout=PATIENCE)
    answer.raise_for_status()
    return answer


def _version(answer: requests.Response) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _bucket_digest(answer: requests.Response, size: int) -> tuple[str, int]:
    """Return the checksum that S3 gives as ETag, and the size of the parts it was made of.

    There is none to compare where the parts were not equally long.
    """
    tag = _version(answer).strip('"')
    count = int(tag.partition("-")[2] or 0)
    if not count:
        return tag, 0
    first = requests.head(answer.url, params={"partNumber": "1"}, timeout=PATIENCE)
    part = int(first.headers["Content-Length"])
    return (tag, part) if -(-size // part) == count else ("", 0)


def digest(path: str | Path, part: int = 0) -> str:
    """Return the MD5 of a file, or as S3 makes it of one that was uploaded in parts.

    Parameters
    ----------
    path : str or Path
    part : int
        Bytes of each part but the last.

    Returns
    -------
    str
        Hexadecimal. Of parts: MD5 of their MD5s, a dash, their number.
    """
    with open(path, "rb") as file:
        if not part:
            return hashlib.file_digest(file, "md5").hexdigest()
        digests = [hashlib.md5(piece).digest() for piece in iter(lambda: file.read(part), b"")]
    return f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def require_space(folder: Path, n_bytes: int) -> None:
    """Raise InputError unless `n_bytes` fit on the disk of `folder`, which need not exist yet."""
    there = next(one for one in [folder, *folder.absolute().parents] if one.exists())
    free, needed = shutil.disk_usage(there).free, n_bytes + SPARE
    if free < needed:
        raise InputError(
            f"{folder} has {show_bytes(free)} free; {show_bytes(needed)} are needed. Free some, or "
            "fetch fewer sessions or subjects."
        )


def fetch_file(remote: RemoteFile, path: Path, bar: tqdm) -> Path:
    """Download a file, from where an earlier run stopped, and verify it.

    Parameters
    ----------
    remote : RemoteFile
    path : Path
        The final name; until the file is whole it is called `remote.partial(path)`.
    bar : tqdm
        Is told the number of new bytes; negative where some are thrown away.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the connection keeps breaking (what came is kept for the next run), the content does
        not fit its checksum (nothing is kept), or a gzip file cannot be unpacked to its end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = remote.partial(path)
    partial.touch()
    failures = 0
    while (done := remote.done(path)) < remote.size:
        reason = "the connection closed early"
        try:
            _append(remote, partial, bar)
        except (requests.RequestException, HTTPError) as error:
            reason = hide_secrets(error)
        failures = 0 if remote.done(path) > done else failures + 1
        if failures == ATTEMPTS:
            raise InputError(
                f"{remote.name}: {ATTEMPTS} connections in a row brought nothing ({reason}). "
                f"{show_bytes(done)} are kept: the same command goes on from there."
            )
        if failures:
            time.sleep(2 ** (failures - 1))
    fault = _fault(remote, partial, path.suffix)
    if fault:
        partial.unlink()
        raise InputError(
            f"{remote.name}: {fault}. Nothing was kept: run the command again. If it stays so, the "
            "file at its source is damaged."
        )
    return partial.replace(path)


def _append(remote: RemoteFile, partial: Path, bar: tqdm) -> None:
    """Append what the server sends of the rest, until it or the connection ends."""
    with open(partial, "ab") as file:
        if not lock_file(file):
            raise InputError(f"Another process is downloading {partial}. Wait for it, or stop it.")
        done = file.tell()
        with _get(remote.url, Range=f"bytes={done}-") as answer:
            if _version(answer) != remote.version:
                raise InputError(f"{remote.name} has changed meanwhile. Run the command again.")
            span = answer.headers.get("Content-Range", "")
            if answer.status_code != 206:  # a server that knows no ranges sends all of it again
                file.seek(file.truncate(0))
                bar.update(-done)
            elif not span.startswith(f"bytes {done}-"):
                raise InputError(f"{remote.name}: the server sent another part than asked: {span}.")
            # As much as has come, so that a stall loses none of it.
            while block := answer.raw.read1(BLOCK):
                bar.update(file.write(block[: remote.size - file.tell()]))


def _fault(remote: RemoteFile, partial: Path, suffix: str) -> str:
    """Compare the checksum, and read a gzip file to the one at its end; say what is wrong."""
    if remote.md5 and (found := digest(partial, remote.part)) != remote.md5:
        return f"checksum {found}; expected {remote.md5}"
    try:
        with gzip.open(partial) as file:
            while suffix == ".gz" and file.read(BLOCK):
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return f"cannot be unpacked to its end ({error})"
    return ""
