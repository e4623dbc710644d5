"""How fast a region's voxels are gathered, beside plainly reading the same files end to end."""

import contextlib
import io
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import h5py
import nibabel as nib
import numpy as np
import scipy.io
import typer

from minddiff_utils.datasets.nsd import NsdTree, load_nsd

SUBJECT = "subj01"
SHAPE = (81, 104, 83)  # X, Y, Z of subj01 at 1.8 mm
MIB = 2**20


def main(
    folder: Annotated[Path | None, typer.Option(help="On the disk to be measured.")] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions; all but one are links.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Of each; the median counts.")] = 3,
    small: Annotated[bool, typer.Option(help="A miniature, to see that it runs.")] = False,
) -> None:
    """Gather a region's voxels from betas of real size, beside plain reading of the same files.

    One session is made as NSD has it: int16, 750 trials of 81 × 104 × 83 voxels, one HDF5 chunk a
    voxel, about 1 GB; the region has 15,000 voxels. Before each reading the system forgets the
    files. With --sessions 40 the same file stands under forty names, so that memory can be measured
    at a subject's full size; both sides then read it from the system's cache.
    """
    shape, trials, voxels = ((12, 14, 10), 60, 200) if small else (SHAPE, 750, 15_000)
    cached = sessions > 1 or not hasattr(os, "posix_fadvise")
    with tempfile.TemporaryDirectory(dir=folder, prefix="minddiff-bench-") as scratch:
        tree = NsdTree(Path(scratch) / "tree", SUBJECT)
        print("writing the files …", file=sys.stderr, flush=True)
        make_tree(tree, shape, trials, voxels, sessions)
        paths = [tree.session(number + 1) for number in range(sessions)]
        size = sum(path.stat().st_size for path in paths)
        print(f"{sessions} × {trials} trials × {' × '.join(map(str, shape))} voxels in int16, one")
        print(f"HDF5 chunk a voxel: {size / 1e9:.2f} GB; a region of {voxels:,} voxels")
        plain, gathered, memory = measure(tree, paths, Path(scratch) / "cache", rounds, cached)
    for name, seconds in (("plain reading", plain), ("gathering", gathered)):
        print(f"{name:>14}: {seconds:8.2f} s, {size / seconds / 1e6:8.0f} MB/s")
    print(f"gathering has {plain / gathered:.0%} of the speed of plain reading")
    print(f"memory of gathering: {memory / MIB:.0f} MiB, libraries included")
    print(f"both read from {'the cache of the system' if cached else 'the disk'}")


def measure(
    tree: NsdTree, paths: Sequence[Path], cache: Path, rounds: int, cached: bool
) -> tuple[float, float, float]:
    """Read the files plainly and gather a region from them, in turns.

    Parameters
    ----------
    tree : NsdTree
    paths : sequence of Path
        The betas of its sessions.
    cache : Path
        Where the gathered file goes; removed after each round.
    rounds : int
    cached : bool
        Whether both find the files in the system's cache; else both read them from the disk.

    Returns
    -------
    plain, gathered, memory : float
        Medians: seconds of either, and bytes of memory that gathering held at the most.
    """
    plain, gathered = [], []
    prepare = read_plainly if cached else _forget
    for _ in range(rounds):
        prepare(paths)
        plain.append(read_plainly(paths))
        prepare(paths)
        # A fresh process, so that its memory is its own.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            gathered.append(pool.submit(gather_once, tree, cache).result())
        shutil.rmtree(cache)
    return np.median(plain), *np.median(gathered, axis=0)


def read_plainly(paths: Sequence[Path]) -> float:
    """Read files from front to end, 4 MiB at a time, do nothing with them; return seconds."""
    buffer = bytearray(4 * MIB)
    started = time.perf_counter()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


def gather_once(tree: NsdTree, cache: Path) -> tuple[float, int]:
    """Load the subject, its responses gathered into `cache`; return seconds and peak memory."""
    started = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # its progress would come between ours
        load_nsd(tree.root, tree.subject, rois="nsdgeneral", cache=cache)
    return time.perf_counter() - started, peak_memory()


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts into ru_maxrss what the parent held before the start
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def make_tree(
    tree: NsdTree,
    shape: tuple[int, int, int] = SHAPE,
    n_trials: int = 750,
    n_voxels: int = 15000,
    n_sessions: int = 1,
    chunks: tuple[int, int, int, int] | None = None,
) -> None:
    """Write as much of an NSD tree as the reader of responses needs, filled with noise.

    Parameters
    ----------
    tree : NsdTree
    shape : tuple of three int
        Of the volume (X, Y, Z).
    n_trials : int
        Trials a session.
    n_voxels : int
        Of `nsdgeneral`: a folded sheet at the back of the volume.
    n_sessions : int
        The first is a file, the others are links to it.
    chunks : tuple of four int, optional
        Of the HDF5 dataset (n_trials, Z, Y, X). NSD's own are one voxel by all trials.
    """
    for path in (tree.design, tree.roi("nsdgeneral"), tree.ncsnr):
        path.parent.mkdir(parents=True, exist_ok=True)
    n_pictures = max(4, n_trials // 3)
    design = {
        "masterordering": np.arange(n_trials * n_sessions)[None] % n_pictures + 1,
        "subjectim": np.arange(n_pictures)[None] + 1,
        "sharedix": np.arange(n_pictures // 4)[None] + 1,
    }
    scipy.io.savemat(tree.design, design)
    sheet = _sheet(shape, n_voxels)
    affine = np.diag([1.8, 1.8, 1.8, 1])
    nib.save(nib.Nifti1Image(sheet, affine), tree.roi("nsdgeneral"))
    nib.save(nib.Nifti1Image(sheet.astype(np.float32), affine), tree.ncsnr)
    rng = np.random.default_rng(0)
    size = (n_trials, *shape[::-1])
    with h5py.File(tree.session(1), "w") as file:
        betas = file.create_dataset("betas", size, "int16", chunks=chunks or (n_trials, 1, 1, 1))
        for plane in range(shape[2]):
            # Unlike in a brain no voxel is constant, so none is left out.
            values = rng.integers(-3000, 3000, (n_trials, *shape[1::-1]), np.int16)
            betas[:, plane] = values
    for number in range(2, n_sessions + 1):
        os.link(tree.session(1), tree.betas / f"betas_session{number:02d}.hdf5")


def _sheet(shape: tuple[int, int, int], n_voxels: int) -> np.ndarray:
    """Return int16 (X, Y, Z), 1 at `n_voxels` voxels of a folded sheet like cortex, else 0."""
    x, y, z = (np.linspace(-1, 1, n) for n in shape)
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
    folds = 0.08 * np.sin(14 * x) + 0.08 * np.sin(17 * z)
    distance = np.abs(np.sqrt(x**2 + y**2 + z**2) - 0.8 + folds) + np.maximum(y + 0.2, 0)
    sheet = np.zeros(np.prod(shape), np.int16)
    sheet[np.argsort(distance, axis=None, kind="stable")[:n_voxels]] = 1
    return sheet.reshape(shape)


def _forget(paths: Sequence[Path]) -> None:
    """Take the files out of the system's cache; Linux does so when told."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # what is not yet on the disk would stay in the cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
