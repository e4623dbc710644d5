"""Gets recordings from where they are published, and nothing that is there already."""

import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from minddiff_utils.datasets.check import is_ready, report, take_stock
from minddiff_utils.datasets.check.nsd import N_SESSIONS, atlases_of, label_table, session_count
from minddiff_utils.datasets.fetch.bucket import BucketSource, NotThere, find
from minddiff_utils.datasets.fetch.downloads import (
    HttpSource,
    Source,
    download,
    hide_secrets,
    only_fetch,
    require_space,
    show_bytes,
)
from minddiff_utils.datasets.kay import FILE as KAY_FILE
from minddiff_utils.datasets.nsd.load import NsdTree
from minddiff_utils.io import InputError, atomic_path

if TYPE_CHECKING:
    from botocore.client import BaseClient

BUCKET = "natural-scenes-dataset"
AGREEMENT = "https://naturalscenesdataset.org"
CAPTIONS_URL = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
CAPTIONS_MD5 = "f4bbac642086de4f52a3fdda2de5fa2c"
CAPTIONS_BYTES = 96_000_000  # both files, unpacked
KAY_URL = "https://osf.io/ymnjv/download"
MIYAWAKI_BYTES = 400_000_000  # the archive and what is unpacked from it

Say = Callable[[str], None]


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
    unknown = [name for name in subjects if name not in N_SESSIONS]
    if unknown or not subjects:
        raise InputError(f"subject={(unknown or [''])[0]!r} is unknown; NSD has subj01 to subj08")
    if sessions is not None and sessions < 1:
        raise InputError(f"sessions={sessions}: expected at least 1")
    first, atlases = NsdTree(root, subjects[0]), atlases_of(rois)
    tables = [label_table(root, atlas) for atlas in atlases]
    files = [first.design, first.stimulus_table, *(table for table in tables if table)]
    for subject in subjects:
        tree = NsdTree(root, subject)
        numbers = range(1, session_count(subject, sessions) + 1)
        betas = [tree.betas / f"betas_session{number:02d}.hdf5" for number in numbers]
        files += [*(tree.roi(atlas) for atlas in atlases), tree.ncsnr, *betas]
    return [*files, first.pictures]


def fetch_nsd(
    root: str | Path,
    subjects: Sequence[str],
    client: "BaseClient",
    *,
    rois: str = "kastner2015",
    sessions: int | None = None,
    captions_url: str = CAPTIONS_URL,
    say: Say = print,
    pause: float = 1.0,
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
    client : S3 client
        From `minddiff_utils.datasets.fetch.bucket.connect`.
    rois : str
        As the parameter of the notebooks: decides which atlas is needed.
    sessions : int, optional
        The first so many; None for all.
    captions_url : str
        Archive with COCO's `captions_train2017.json` and `captions_val2017.json`.
    say : callable
        Gets lines for the user.
    pause : float
        Seconds before a broken connection is tried again.
    dry_run : bool
        Only say how much there would be to download.

    Raises
    ------
    InputError
        If a file is not in the bucket, there is too little space, or a download fails.
    """
    root = Path(root)
    say("Looking up sizes …")
    wanted: list[tuple[Path, Source]] = [
        *_wanted(root, nsd_files(root, subjects, rois, sessions), client, subjects)
    ]
    captions = _captions(NsdTree(root, subjects[0]), captions_url)
    if captions:
        wanted.append(captions)
    left = require_space(root, wanted, CAPTIONS_BYTES if captions else 0)
    if not wanted:
        say(f"Nothing to download: {root} has all files in their full size.")
        return
    files = "1 file" if len(wanted) == 1 else f"{len(wanted)} files"
    say(f"{files}, {show_bytes(left)} to download into {root}.")
    if dry_run:
        return
    with only_fetch(root), _bar(left) as bar:
        for path, source in wanted:
            bar.set_description_str(path.name)
            download(source, path, progress=bar.update, pause=pause)
            if isinstance(source, BucketSource) and source.checksum == "size only":
                bar.write(f"{source.name}: only the size could be verified, not the content.")
        if captions:
            _unpack_captions(captions[0], NsdTree(root, subjects[0]).captions)
    say("Done. To make sure: minddiff check nsd " + str(root))


def _wanted(
    root: Path, files: Sequence[Path], client: "BaseClient", subjects: Sequence[str] = ()
) -> list[tuple[Path, BucketSource]]:
    """Look every file up; return those that are not here in their full size.

    An atlas without a table of labels for all has one for each of `subjects`.
    """
    wanted = []
    for path in files:
        niftis = [path.with_suffix(suffix) for suffix in (".nii.gz", ".nii")]
        is_session = path.name.startswith("betas_session")
        if is_session and not path.is_file() and any(nifti.is_file() for nifti in niftis):
            continue  # the same betas in NSD's other format
        try:
            source = find(client, BUCKET, path.relative_to(root).as_posix())
        except NotThere:
            if path.suffix != ".ctab" or not subjects:
                raise
            wanted += _wanted(root, _own_tables(root, path.name, subjects), client)
            continue
        if not path.is_file() or path.stat().st_size != source.size:
            wanted.append((path, source))
    return wanted


def _own_tables(root: Path, name: str, subjects: Sequence[str]) -> list[Path]:
    """Return where the subjects' own tables of an atlas's labels are."""
    return [root / "nsddata/freesurfer" / subject / "label" / name for subject in subjects]


def _bar(total: int) -> tqdm:
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1000, desc="download")


# ---------------------------------------------------------------------------------------- captions


def _captions(tree: NsdTree, url: str) -> tuple[Path, HttpSource] | None:
    """Return archive and source of the captions, None if they are here."""
    if all(path.is_file() for path in tree.captions):
        return None
    source = HttpSource.find(url, CAPTIONS_MD5 if url == CAPTIONS_URL else "")
    return tree.captions[0].parent.parent / "annotations_trainval2017.zip", source


def _unpack_captions(archive: Path, targets: Sequence[Path]) -> None:
    """Take the caption files out of the archive, then remove it."""
    try:
        with zipfile.ZipFile(archive) as content:
            names = {Path(name).name: name for name in content.namelist()}
            for target in targets:
                if target.name not in names:
                    raise InputError(f"{archive} holds no {target.name}; give another address.")
                # Reading to the end compares the archive's own checksum.
                with content.open(names[target.name]) as packed, atomic_path(target) as temporary:
                    with open(temporary, "wb") as file:
                        shutil.copyfileobj(packed, file)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise InputError(
            f"{archive} is damaged ({error}) and was removed. Run the command again."
        ) from None
    archive.unlink()


# --------------------------------------------------------------------------------- other recordings


def fetch_miyawaki(folder: str | Path, *, say: Say = print) -> None:
    """Download the full recording of Miyawaki et al. (2008) with nilearn: 153 MB.

    Parameters
    ----------
    folder : str or Path
        nilearn makes `miyawaki2008` in it.
    say : callable
        Gets lines for the user.

    Raises
    ------
    InputError
        If nilearn cannot download it, or what came is not whole.
    """
    from nilearn.datasets import fetch_miyawaki2008

    folder = Path(folder)
    if not is_ready(take_stock("miyawaki_full", folder)):
        require_space(folder, [], MIYAWAKI_BYTES)
        try:
            with only_fetch(folder):
                fetch_miyawaki2008(data_dir=folder, verbose=1)
        except InputError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"nilearn could not download the recording ({hide_secrets(error)}). Is there a "
                "network? The same command goes on where it stopped."
            ) from None
    _confirm("miyawaki_full", folder, say)


def fetch_kay(
    folder: str | Path, *, url: str = KAY_URL, say: Say = print, pause: float = 1.0
) -> None:
    """Download `kay_images.npz` of Kay et al. (2008): 249 MB.

    Parameters
    ----------
    folder : str or Path
    url : str
    say : callable
        Gets lines for the user.
    pause : float
        Seconds before a broken connection is tried again.

    Raises
    ------
    InputError
        If the download fails, or what came is another file.
    """
    folder = Path(folder)
    # The file's author gives no checksum; the archive holds one for each array, compared below.
    if not is_ready(take_stock("kay", folder)):
        path, source = folder / KAY_FILE, HttpSource.find(url)
        with only_fetch(folder), _bar(require_space(folder, [(path, source)])) as bar:
            bar.set_description_str(KAY_FILE)
            download(source, path, progress=bar.update, pause=pause)
    _confirm("kay", folder, say)


def _confirm(dataset: str, folder: Path, say: Say) -> None:
    """Look at what came; raise InputError with the table if a file is missing or wrong."""
    entries = take_stock(dataset, folder)
    if not is_ready(entries):
        raise InputError(f"the download is not whole:\n{report(entries, folder)}")
    say(report(entries, folder).splitlines()[-1])
