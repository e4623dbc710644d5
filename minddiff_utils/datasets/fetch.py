"""Gets recordings from where they are published, whole and verified, on from where it stopped.

A file has its final name only when it is whole. No library does this for us: pooch and nilearn keep
nothing of a download that stopped, and boto3 wants an account.
"""

import gzip
import hashlib
import re
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from minddiff_utils.datasets import laion
from minddiff_utils.datasets.kay import kay_path, load_kay
from minddiff_utils.datasets.miyawaki import load_miyawaki_full
from minddiff_utils.datasets.nsd.design import NsdTree
from minddiff_utils.datasets.nsd.regions import GENERAL, atlases_of
from minddiff_utils.datasets.recording import Sessions, parse_sessions
from minddiff_utils.io import InputError, atomic_path, check_room, lock_file

# NSD's bucket is public: what lies in it is also read without an account, by plain HTTPS.
BUCKET = "https://natural-scenes-dataset.s3.us-east-2.amazonaws.com"
AGREEMENT = "https://naturalscenesdataset.org"
CAPTIONS_URL = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
CAPTIONS_MD5 = "f4bbac642086de4f52a3fdda2de5fa2c"
CAPTIONS_ZIP_BYTES = 252_907_541
KAY_URL = "https://osf.io/ymnjv/download"
LAION_BUCKET = "https://laion-fmri.s3.us-west-2.amazonaws.com"
# The data set's own package, at the commit that this reader was written for.
LAION_PACKAGE = "https://raw.githubusercontent.com/ViCCo-Group/LAION-fMRI"
LAION_COMMIT = "eee8400aa3214f310b840397f9f043b9c2da79b0"
# Of NSD's data manual: sessions of subjects 1 to 8.
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
N_SESSIONS = {f"subj{number:02d}": count for number, count in enumerate(SESSIONS, start=1)}

BLOCK = 2**20  # bytes handed over at a time
PATIENCE = 60.0  # seconds without a byte after which a connection counts as broken
ATTEMPTS = 6  # in a row without one new byte


# ------------------------------------------------------------------- one file


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
        kind = NotThere if code in (403, 404) else InputError
        what = f"{hide_secrets(url)} cannot be fetched ({hide_secrets(error)})"
        raise kind(f"{what}. Is the address right, and is there a network?") from None


def list_bucket(bucket: str, prefix: str) -> list[str]:
    """Return the names of the volumes (.nii.gz) of an S3 bucket that begin with a prefix.

    Raises
    ------
    InputError
        If the bucket does not answer.
    """
    keys, question = list[str](), {"list-type": "2", "prefix": prefix}
    while question:
        try:
            with _get(f"{bucket}/?{urlencode(question)}") as answer:
                page = ElementTree.fromstring(answer.content)
        except (requests.RequestException, ElementTree.ParseError) as error:
            what = f"{bucket} does not list {prefix} ({hide_secrets(error)})"
            raise InputError(f"{what}. Is there a network? Run the command again.") from None
        keys += [key.text or "" for key in page.iterfind("{*}Contents/{*}Key")]
        more = page.findtext("{*}NextContinuationToken")
        question = {**question, "continuation-token": more} if more else {}
    return [key for key in keys if key.endswith(".nii.gz")]


def _get(url: str, get: Callable = requests.get, **headers: str) -> requests.Response:
    headers = {"User-Agent": "minddiff", "Accept-Encoding": "identity", **headers}
    answer = get(url, headers=headers, stream=True, timeout=PATIENCE)
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
    _persist(remote, remote.size, lambda: remote.done(path), lambda: _append(remote, partial, bar))
    try:
        _verify(remote, partial, path.suffix)
    except (ValueError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        partial.unlink()
        what = "Nothing was kept: run the command again. If it stays so, its source is damaged"
        raise InputError(f"{remote.name}: {error}. {what}.") from None
    return partial.replace(path)


def read_range(remote: RemoteFile, start: int, stop: int, session: requests.Session) -> bytes:
    """Download bytes `start` to `stop` (exclusive) of a file, however often connections break.

    Raises
    ------
    InputError
        If the connection keeps breaking, the file has changed, or its server sends no ranges.
    """
    got = bytearray()

    def attempt() -> None:
        place = start + len(got)
        with _get(remote.url, session.get, Range=f"bytes={place}-{stop - 1}") as answer:
            if answer.status_code != 206:
                raise InputError(
                    f"{remote.name}: its server sends no parts of files. Fetch it whole."
                )
            _check_answer(remote, answer, place)
            while block := answer.raw.read1(BLOCK):
                got.extend(block[: stop - start - len(got)])

    _persist(remote, stop - start, lambda: len(got), attempt)
    return bytes(got)


def _persist(
    remote: RemoteFile, size: int, done: Callable[[], int], attempt: Callable[[], None]
) -> None:
    """Try until `size` bytes have come, or several connections in a row have brought none."""
    failures = 0
    while (before := done()) < size:
        reason = "the connection closed early"
        try:
            attempt()
        except (requests.RequestException, HTTPError) as error:
            reason = hide_secrets(error)
        failures = 0 if done() > before else failures + 1
        if failures == ATTEMPTS:
            nothing = f"{ATTEMPTS} connections in a row brought nothing ({reason})"
            kept = f"{show_bytes(before)} are kept: the same command goes on from there"
            raise InputError(f"{remote.name}: {nothing}. {kept}.")
        if failures:
            time.sleep(2 ** (failures - 1))


def _check_answer(remote: RemoteFile, answer: requests.Response, place: int) -> None:
    """Raise InputError if it is of another version of the file, or of another part."""
    if _version(answer) != remote.version:
        raise InputError(f"{remote.name} has changed meanwhile. Run the command again.")
    span = answer.headers.get("Content-Range", "")
    if answer.status_code == 206 and not span.startswith(f"bytes {place}-"):
        raise InputError(f"{remote.name}: the server sent another part than asked: {span}.")


def _append(remote: RemoteFile, partial: Path, bar: tqdm) -> None:
    """Append what the server sends of the rest, until it or the connection ends."""
    with open(partial, "ab") as file:
        if not lock_file(file):
            raise InputError(f"Another process is downloading {partial}. Wait for it, or stop it.")
        done = file.tell()
        with _get(remote.url, Range=f"bytes={done}-") as answer:
            _check_answer(remote, answer, done)
            if answer.status_code != 206:  # a server that knows no ranges sends all of it again
                file.seek(file.truncate(0))
                bar.update(-done)
            # As much as has come, so that a stall loses none of it.
            while block := answer.raw.read1(BLOCK):
                bar.update(file.write(block[: remote.size - file.tell()]))


def _verify(remote: RemoteFile, partial: Path, suffix: str) -> None:
    """Compare the checksum, and read a gzip file to the one at its end."""
    if remote.md5 and (found := digest(partial, remote.part)) != remote.md5:
        raise ValueError(f"checksum {found}; expected {remote.md5}")
    with gzip.open(partial) as file:
        while suffix == ".gz" and file.read(BLOCK):
            pass


# ------------------------------------------------------------------- recordings


def nsd_files(tree: NsdTree, rois: str, sessions: Sessions, synthetic: bool) -> list[Path]:
    """Return the files of NSD's bucket that a run on a subject needs, in their places in the tree.

    Parameters
    ----------
    tree : NsdTree
    rois : str
    sessions : int, str, sequence of int, or None
        The first so many, exactly these, or all; of a subject who has fewer, those.
    synthetic : bool
        Those of NSD-synthetic, too.

    Raises
    ------
    InputError
        If the subject is unknown, or `sessions` are none.
    """
    if tree.subject not in N_SESSIONS:
        raise InputError(f"subject={tree.subject!r} is unknown; NSD has subj01 to subj08")
    atlases, last = atlases_of(rois), N_SESSIONS[tree.subject]
    files = [tree.design, tree.stimulus_table, tree.pictures]
    files += [tree.labels(atlas) for atlas in atlases if atlas != GENERAL]
    files += [tree.roi(atlas) for atlas in atlases]
    numbers = [number for number in parse_sessions(sessions or last) if number <= last]
    files += [tree.ncsnr, *map(tree.session, numbers)]
    files += tree.synthetic if synthetic else ()
    return [tree.whole(path) for path in files]


def fetch_nsd(
    root: str | Path,
    subjects: Sequence[str],
    rois: str = "kastner2015",
    sessions: Sessions = None,
    *,
    signed: bool,
    synthetic: bool = False,
    partly: tuple[str, ...] = (),
    dry_run: bool = False,
) -> None:
    """Download what a run on NSD needs: design, regions, betas, pictures, and COCO's captions.

    Parameters
    ----------
    root : str or Path
        Folder of the tree.
    subjects : sequence of str
        "subj01" to "subj08".
    rois : str
        As the parameter of the notebooks: decides which atlas is needed.
    sessions : int, str, sequence of int, or None
        The first so many, exactly these, or all.
    signed : bool
        Whether the user has signed the data-access agreement.
    synthetic : bool
        NSD-synthetic, too.
    partly : tuple of str
        How the names of files begin that are left to `minddiff_utils.datasets.parts`.
    dry_run : bool
        Only say how much there would be to download.

    Raises
    ------
    InputError
        If the agreement is not signed, a file is not in the bucket, there is too little space, or
        a download fails.
    """
    if not signed:
        raise InputError(
            f"Please sign the data-access agreement of NSD first: {AGREEMENT}. Then say that you "
            "have, with --i-have-signed. Nothing was downloaded."
        )
    root = Path(root)
    trees = [NsdTree(root, subject) for subject in subjects]
    files = [path for tree in trees for path in nsd_files(tree, rois, sessions, synthetic)]
    files = [path for path in dict.fromkeys(files) if not path.name.startswith(partly)]
    wanted = _lacking(in_bucket(root, files, subjects))
    captions = trees[0].captions
    archive = root / "coco/annotations_trainval2017.zip"
    if not all(path.is_file() for path in captions):
        wanted[archive] = look_up(CAPTIONS_URL, CAPTIONS_MD5)
    _download_all(root, wanted, dry_run)
    if archive.is_file():
        _unpack_captions(archive, captions)


def in_bucket(
    root: Path, files: Iterable[Path], subjects: Sequence[str]
) -> Iterator[tuple[Path, RemoteFile]]:
    """Look files up; of an atlas without labels for all, each subject's own table of them."""
    for path in files:
        key = path.relative_to(root).as_posix()
        try:
            yield path, look_up(f"{BUCKET}/{key}", bucket=True)
        except NotThere:
            if "fsaverage" not in key:
                raise
            own = [root / key.replace("fsaverage", name) for name in subjects]
            yield from in_bucket(root, own, subjects)


def _lacking(found: Iterable[tuple[Path, RemoteFile]]) -> dict[Path, RemoteFile]:
    """Return those of some files that are not there, or not of the same size."""
    return {path: r for path, r in found if not path.is_file() or path.stat().st_size != r.size}


def _download_all(folder: Path, wanted: Mapping[Path, RemoteFile], dry_run: bool = False) -> None:
    """Download files into their places below a folder, with one bar for all."""
    left = sum(remote.size - remote.done(path) for path, remote in wanted.items())
    for path in list(wanted)[:1]:
        check_room(path, left)
    for path, remote in wanted.items():
        if remote.size > BLOCK:
            print(f"{show_bytes(remote.size):>7}  {path.relative_to(folder)}", file=sys.stderr)
    print(f"{len(wanted)} files, {show_bytes(left)} to download into {folder}.", file=sys.stderr)
    if wanted and not dry_run:
        with tqdm(total=left, unit="B", unit_scale=True) as bar:
            for path, remote in wanted.items():
                bar.set_description_str(path.name)
                fetch_file(remote, path, bar)


def _unpack_captions(archive: Path, targets: Sequence[Path]) -> None:
    """Take the caption files out of the archive, then remove it."""
    try:
        with zipfile.ZipFile(archive) as content:
            for target in targets:
                with atomic_path(target) as temporary:  # reading compares the archive's checksum
                    temporary.write_bytes(content.read(f"annotations/{target.name}"))
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        what = f"{archive} is damaged, or another archive, and was removed ({error})"
        raise InputError(f"{what}. Run the command again.") from None
    finally:
        archive.unlink()


def laion_addresses(root: Path, subject: str, sessions: Sessions = None) -> dict[Path, str]:
    """Return where each file that a run on LAION-fMRI needs is published, but for the pictures.

    Parameters
    ----------
    root : Path
        Folder of the tree.
    subject : str
    sessions : int, str, sequence of int, or None
        The first so many, exactly these, or all.

    Raises
    ------
    InputError
        If the subject or a session is unknown, or the bucket does not answer or has no masks.
    """
    if subject not in laion.SUBJECTS:
        raise InputError(f"subject={subject!r}: LAION-fMRI has {', '.join(laion.SUBJECTS)}")
    tree, numbers = laion.LaionTree(root, subject), laion.known_sessions(sessions)
    files = [tree.metadata, tree.captions, *map(tree.trials, numbers), *map(tree.betas, numbers)]
    keys = [path.relative_to(root).as_posix() for path in files]
    masks = list_bucket(LAION_BUCKET, f"{tree.rois.relative_to(root).as_posix()}/")
    if not masks:
        raise NotThere(f"{LAION_BUCKET} lists no masks of {subject}. Has its layout changed?")
    folder = tree.responses.relative_to(root).as_posix()
    keys += masks + list_bucket(LAION_BUCKET, f"{folder}/{tree.ceilings}")
    splits = f"{LAION_PACKAGE}/{LAION_COMMIT}/laion_fmri/splits/data/{subject}"
    found = {tree.split(name): f"{splits}/{name}.json" for name in laion.SPLITS}
    return {root / key: f"{LAION_BUCKET}/{quote(key)}" for key in keys} | found


def fetch_laion(
    root: str | Path, subjects: Sequence[str], sessions: Sessions = None, *, dry_run: bool = False
) -> None:
    """Download what a run on LAION-fMRI needs, and say how to get the pictures.

    Parameters
    ----------
    root : str or Path
        Folder of the tree.
    subjects : sequence of str
        "sub-01", "sub-03", "sub-05", "sub-06", "sub-07".
    sessions, dry_run
        As for `fetch_nsd`.

    Raises
    ------
    InputError
        If a subject or session is unknown, a file is not there, there is too little space, or a
        download fails.
    """
    root, urls = Path(root), dict[Path, str]()
    for subject in subjects:
        urls |= laion_addresses(root, subject, sessions)
    found = ((path, look_up(url, bucket=LAION_BUCKET in url)) for path, url in urls.items())
    _download_all(root, _lacking(found), dry_run)
    pictures = laion.LaionTree(root, subjects[0]).pictures
    if not pictures.is_file():
        print(f"{pictures} does not come this way. {laion.PICTURES_HINT}", file=sys.stderr)


def fetch_miyawaki(folder: str | Path) -> None:
    """Download the full recording of Miyawaki et al. (2008) with nilearn: 153 MB.

    Parameters
    ----------
    folder : str or Path
        nilearn makes `miyawaki2008` in it.

    Raises
    ------
    InputError
        If nilearn cannot download it, or what came cannot be read.
    """
    from nilearn.datasets import fetch_miyawaki2008

    try:
        fetch_miyawaki2008(data_dir=folder, verbose=1)
    except (OSError, RuntimeError) as error:
        why = hide_secrets(error)
        raise InputError(f"nilearn could not download it ({why}). Is there a network?") from None
    load_miyawaki_full(folder)


def fetch_kay(folder: str | Path) -> None:
    """Download `kay_images.npz` of Kay et al. (2008): 249 MB.

    Raises
    ------
    InputError
        If the download fails, or what came is another file.
    """
    path = kay_path(folder)
    with suppress(InputError):
        load_kay(path)
        return
    # The file's author gives no checksum; the archive holds one for each array.
    _download_all(path.parent, {path: look_up(KAY_URL)})
    load_kay(path)
