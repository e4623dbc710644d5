"""Which files each recording needs, and where they are published."""

import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from minddiff_utils.datasets.fetch import download
from minddiff_utils.datasets.kay import kay_path, load_kay
from minddiff_utils.datasets.miyawaki_full import load_miyawaki_full
from minddiff_utils.datasets.nsd.design import NsdTree
from minddiff_utils.datasets.nsd.regions import KASTNER_GROUPS
from minddiff_utils.io import InputError, atomic_path

# NSD's bucket is public: what lies in it is also read without an account, by plain HTTPS.
BUCKET = "https://natural-scenes-dataset.s3.us-east-2.amazonaws.com"
AGREEMENT = "https://naturalscenesdataset.org"
CAPTIONS_URL = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
CAPTIONS_MD5 = "f4bbac642086de4f52a3fdda2de5fa2c"
CAPTIONS_ZIP_BYTES = 252_907_541
KAY_URL = "https://osf.io/ymnjv/download"
# Of NSD's data manual: sessions of subjects 1 to 8.
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
N_SESSIONS = {f"subj{number:02d}": count for number, count in enumerate(SESSIONS, start=1)}


def atlases_of(rois: str) -> list[str]:
    """Return the atlases of the folder `roi` that hold the regions asked for, each once.

    Parameters
    ----------
    rois : str
        As the reader takes it: "kastner2015", "nsdgeneral", groups such as "V1,V2", an atlas such
        as "streams" or "streams:ventral"; several with "+" between.
    """
    atlases = {}
    for part in rois.split("+"):
        atlas, colon, _ = part.strip().partition(":")
        grouped = {name.strip() for name in atlas.split(",")} <= {*KASTNER_GROUPS, "kastner2015"}
        atlases["Kastner2015" if grouped and not colon else atlas] = None
    return list(atlases)


def nsd_files(
    root: Path, subjects: Sequence[str], rois: str = "kastner2015", sessions: int | None = None
) -> list[Path]:
    """Return the files of NSD's bucket that a run needs, below `root` as in the bucket.

    Parameters
    ----------
    root : Path
    subjects : sequence of str
    rois : str
    sessions : int, optional
        The first so many; None for all that a subject has.

    Raises
    ------
    InputError
        If a subject is unknown.
    """
    files = []
    for subject in subjects:
        if subject not in N_SESSIONS:
            raise InputError(f"subject={subject!r} is unknown; NSD has subj01 to subj08")
        tree, atlases = NsdTree(root, subject), atlases_of(rois)
        files += [tree.design, tree.stimulus_table, tree.pictures]
        for labels in (tree.labels(atlas) for atlas in atlases if atlas != "nsdgeneral"):
            shared = root / "nsddata/freesurfer/fsaverage/label" / labels.name
            files.append(labels if labels.is_file() else shared)
        files += [tree.roi(atlas) for atlas in atlases]
        count = min(sessions or N_SESSIONS[subject], N_SESSIONS[subject])
        files += [tree.ncsnr, *(tree.session(number) for number in range(1, count + 1))]
    return list(dict.fromkeys(files))


def fetch_nsd(
    root: str | Path,
    subjects: Sequence[str],
    *,
    rois: str = "kastner2015",
    sessions: int | None = None,
    dry_run: bool = False,
) -> None:
    """Download what a run on NSD needs: design, regions, betas, pictures, and COCO's captions.

    The user must have signed the data-access agreement.

    Parameters
    ----------
    root : str or Path
        Folder of the tree.
    subjects : sequence of str
        "subj01" to "subj08".
    rois : str
        As the parameter of the notebooks: decides which atlas is needed.
    sessions : int, optional
        The first so many; None for all.
    dry_run : bool
        Only say how much there would be to download.

    Raises
    ------
    InputError
        If a file is not in the bucket, there is too little space, or a download fails.
    """
    root, wanted = Path(root), {}
    for path, remote in _in_bucket(root, nsd_files(root, subjects, rois, sessions), subjects):
        if not path.is_file() or path.stat().st_size != remote.size:
            wanted[path] = remote
    captions = NsdTree(root, subjects[0]).captions
    archive = root / "coco/annotations_trainval2017.zip"
    if not all(path.is_file() for path in captions):
        wanted[archive] = download.look_up(CAPTIONS_URL, CAPTIONS_MD5)
    _download_all(root, wanted, dry_run)
    if archive.is_file():
        _unpack_captions(archive, captions)


def _in_bucket(
    root: Path, files: Iterable[Path], subjects: Sequence[str]
) -> Iterator[tuple[Path, download.RemoteFile]]:
    """Look files up; of an atlas without labels for all, each subject's own table of them."""
    for path in files:
        key = path.relative_to(root).as_posix()
        try:
            yield path, download.look_up(f"{BUCKET}/{key}", bucket=True)
        except download.NotThere:
            if "fsaverage" not in key:
                raise
            own = [root / key.replace("fsaverage", name) for name in subjects]
            yield from _in_bucket(root, own, subjects)


def _download_all(
    folder: Path, wanted: Mapping[Path, download.RemoteFile], dry_run: bool = False
) -> None:
    """Download files into their places below a folder, with one bar for all."""
    left = sum(remote.size - remote.done(path) for path, remote in wanted.items())
    download.require_space(folder, left)
    said = f"{len(wanted)} files, {download.show_bytes(left)} to download into {folder}."
    print(said, file=sys.stderr, flush=True)
    if wanted and not dry_run:
        with tqdm(total=left, unit="B", unit_scale=True) as bar:
            for path, remote in wanted.items():
                bar.set_description_str(path.name)
                download.fetch_file(remote, path, bar)


def _unpack_captions(archive: Path, targets: Sequence[Path]) -> None:
    """Take the caption files out of the archive, then remove it."""
    try:
        with zipfile.ZipFile(archive) as content:
            for target in targets:
                # Reading to the end compares the archive's own checksum.
                packed = content.open(f"annotations/{target.name}")
                with packed, atomic_path(target) as temporary, open(temporary, "wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise InputError(
            f"{archive} is damaged, or another archive, and was removed ({error}). Run the command "
            "again."
        ) from None
    finally:
        archive.unlink()


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
        why = download.hide_secrets(error)
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
    _download_all(path.parent, {path: download.look_up(KAY_URL)})
    load_kay(path)
