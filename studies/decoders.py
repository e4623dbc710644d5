"""How fast decoders are fitted: the paper's beside FastL2LiR, and this book's at NSD's size."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
import typer

from minddiff_utils.book.environment import KEEP_MEMORY
from minddiff_utils.io import InputError
from studies.betas import peak_memory

ALPHA = 0.15
GET = (
    "fastl2lir is not there: `pip install --target FOLDER fastl2lir 'numpy<2.4'` and give "
    "--fastl2lir FOLDER. It runs in a process of its own, for it fails with newer NumPy."
)
# What the processes run: load, fit, tell seconds on the clock and of the processor.
OURS = "import sys; from studies.decoders import serve; serve(*sys.argv[1:])"
THEIRS = """
import sys, time
import numpy as np
from fastl2lir import FastL2LiR
x, y = np.load(sys.argv[1]), np.load(sys.argv[2])
k, dtype = int(sys.argv[3]), np.dtype(sys.argv[4])
x, y = x.astype(dtype), y.astype(dtype)
started, worked = time.perf_counter(), time.process_time()
model = FastL2LiR().fit(x, y, alpha=float(sys.argv[5]), n_feat=k, dtype=dtype)
print(time.perf_counter() - started, time.process_time() - worked)
if len(sys.argv) > 6:
    np.savez(sys.argv[6], weights=model.W.T, bias=model.b[0])
"""
# Values of NSD's families: z, c without its constant token, the best quarter of six CLIP blocks.
FAMILIES = {"z": 16384, "c": 14 * 768, **{f"block_{i}": 9600 for i in range(1, 7)}}


def main(
    size: Annotated[
        str, typer.Option(help="pair: beside FastL2LiR; nsd: 85,000 targets.")
    ] = "pair",
    samples: Annotated[int, typer.Option(min=0, help="Training stimuli; 0: the size's own.")] = 0,
    voxels: Annotated[int, typer.Option(min=1)] = 11694,
    targets: Annotated[int, typer.Option(min=1, help="Targets of `pair`.")] = 500,
    chosen: Annotated[int, typer.Option(min=1, help="Voxels for each target of `pair`.")] = 850,
    share: Annotated[float, typer.Option(help="Share of the 85,000 targets of `nsd`.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    device: Annotated[str, typer.Option(help="Of torch.")] = "cpu",
    fastl2lir: Annotated[Path | None, typer.Option(help="Folder where it is installed.")] = None,
    folder: Annotated[Path | None, typer.Option(help="For the files of `nsd`.")] = None,
) -> None:
    """Fit decoders to random data and print seconds, processor seconds and memory.

    `--size pair`: the paper's decoder, this project's and FastL2LiR in turns, on the same data.
    `--size nsd`: this book's default decoder at NSD's size (8,859 stimuli, 11,694 voxels, 85,000
    targets), features read from HDF5, decoders and decoded features written.
    """
    import torch

    if size not in ("pair", "nsd"):
        raise InputError(f"--size {size}: expected pair or nsd.")
    if not 0 < share <= 1:
        raise InputError(f"--share {share}: expected above 0, at most 1.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if size == "pair":
            _pair(samples or 2000, voxels, targets, chosen, rounds, threads, device, fastl2lir)
        else:
            _nsd(samples or 8859, voxels, share, threads, device, folder)
    finally:
        torch.set_num_threads(before)


def _pair(n, n_voxels, n_targets, k, rounds, threads, device, folder) -> None:
    print(f"{n:,} samples × {n_voxels:,} voxels, {n_targets} targets on {k} voxels each,")
    print(f"{threads} thread(s), {device}; medians of {rounds} round(s), taking turns")
    print(
        "this book's decoder in a process that has fitted before, FastL2LiR in a new one each time"
    )
    x, y = make_recording(n, n_voxels, n_targets)
    ways = {("this book", "float32"): [], ("this book", "float64"): []}
    with tempfile.TemporaryDirectory() as scratch:
        places = Path(scratch) / "x.npy", Path(scratch) / "y.npy"
        np.save(places[0], x)
        np.save(places[1], y)
        if has_fastl2lir(folder):
            ways |= {("FastL2LiR", "float64"): [], ("FastL2LiR", "float32"): []}
        with our_process(*places, k, threads, device) as fit:
            for _ in range(rounds):
                for (name, dtype), found in ways.items():
                    if name == "FastL2LiR":
                        found.append(fit_fastl2lir(*places, k, dtype, threads, folder))
                    else:
                        found.append(fit(dtype))
    for (name, dtype), found in ways.items():
        seconds, worked = (statistics.median(part) for part in zip(*found, strict=True))
        print(f"{name:>10} in {dtype}: {seconds:7.2f} s, {worked:7.2f} s of the processor")
    if ("FastL2LiR", "float64") not in ways:
        print(GET)
        return
    theirs = ways["FastL2LiR", "float64"]
    for dtype in ("float32", "float64"):
        pairs = list(zip(theirs, ways["this book", dtype], strict=True))
        clock, worked = ([a[which] / b[which] for a, b in pairs] for which in (0, 1))
        print(
            f"speed in {dtype} over FastL2LiR's (float64, its default): "
            f"{statistics.median(clock):.1f} (from {min(clock):.1f} to {max(clock):.1f}); "
            f"by seconds of the processor {statistics.median(worked):.1f}"
        )


def make_recording(
    n: int, n_voxels: int, n_targets: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return random responses (n, n_voxels) and targets (n, n_targets), float32.

    Each target follows twenty of the voxels, and noise.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, n_voxels), np.float32)
    y = 4 * rng.standard_normal((n, n_targets), np.float32)
    for target in range(n_targets):
        y[:, target] += x[:, rng.integers(0, n_voxels, 20)].sum(1)
    return x, y


@contextmanager
def our_process(
    x: Path, y: Path, k: int, threads: int = 1, device: str = "cpu"
) -> Iterator[Callable[[str], tuple[float, float]]]:
    """Start a process that fits the paper's decoder again and again, with a notebook's settings.

    Parameters
    ----------
    x, y : Path
        `.npy` files of responses and targets.
    k : int
        Voxels for each target.
    threads : int
    device : str
        Of torch.

    Yields
    ------
    callable
        Takes "float32" or "float64"; returns seconds on the clock and of the processor.
    """
    command = [sys.executable, "-c", OURS, *map(str, (x, y, k, threads, device))]
    environment = {**KEEP_MEMORY, **_environment(None, threads)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:

        def fit(dtype: str) -> tuple[float, float]:
            try:
                print(dtype, file=process.stdin, flush=True)
                seconds, worked = map(float, process.stdout.readline().split())
            except (BrokenPipeError, ValueError):
                process.kill()
                raise InputError("this book's decoder failed; its error is above.") from None
            return seconds, worked

        try:
            yield fit
        finally:
            process.kill()


def serve(x: str, y: str, k: str, threads: str, device: str) -> None:
    """Fit once in each precision, uncounted, and then for every precision that is read.

    Prints seconds on the clock and of the processor, a line a fit.
    """
    import torch

    torch.set_num_threads(int(threads))
    responses, targets = np.load(x), np.load(y)
    # The first fits of a process reserve memory, and on a GPU load libraries.
    for dtype in ("float32", "float64"):
        _fit_ours(responses, targets, int(k), dtype, device)
    for line in sys.stdin:
        spent = _fit_ours(responses, targets, int(k), line.strip(), device)
        print(*spent, flush=True)


def _fit_ours(x, y, k, dtype, device) -> tuple[float, float]:
    from minddiff_utils.decoding.voxel_selected_ridge import VoxelSelectedRidge

    x, y = x.astype(dtype), y.astype(dtype)
    before = _now()
    VoxelSelectedRidge(k, ALPHA, dtype=dtype, device=device).fit(x, y)
    return _since(before)


def has_fastl2lir(folder: Path | None) -> bool:
    """Tell whether another process can import fastl2lir from a folder, or anyway."""
    command = [sys.executable, "-c", "import fastl2lir"]
    return not subprocess.run(command, env=_environment(folder, 1), capture_output=True).returncode


def fit_fastl2lir(
    x: Path,
    y: Path,
    k: int,
    dtype: str = "float64",
    threads: int = 1,
    folder: Path | None = None,
    out: Path | None = None,
) -> tuple[float, float]:
    """Let FastL2LiR fit what two `.npy` files hold, in a process of its own.

    Parameters
    ----------
    x, y : Path
        Responses and targets.
    k : int
        Voxels for each target.
    dtype : str
    threads : int
    folder : Path, optional
        Where it is installed, with a NumPy that it runs with.
    out : Path, optional
        `.npz` for its `weights` (n_targets, n_voxels) and `bias` (n_targets,).

    Returns
    -------
    tuple of two float
        Seconds on the clock and of the processor.
    """
    command = [sys.executable, "-c", THEIRS, *map(str, (x, y, k, dtype, ALPHA))]
    command += [str(out)] if out else []
    shown = subprocess.run(
        command, env=_environment(folder, threads), capture_output=True, text=True
    )
    if shown.returncode:
        raise InputError(f"fastl2lir failed: {shown.stderr.strip().splitlines()[-1]}. {GET}")
    seconds, worked = shown.stdout.split()[-2:]
    return float(seconds), float(worked)


def _environment(folder: Path | None, threads: int) -> dict[str, str]:
    given = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    path = {"PYTHONPATH": str(Path(folder).resolve())} if folder else {}
    return {**os.environ, **given, **path}


def _nsd(n: int, n_voxels: int, share: float, threads: int, device: str, folder) -> None:
    sizes = {name: max(1, round(share * size)) for name, size in FAMILIES.items()}
    total = sum(sizes.values())
    print(f"{n:,} stimuli × {n_voxels:,} voxels → {total:,} targets, {threads} thread(s), {device}")
    with tempfile.TemporaryDirectory(dir=folder, prefix="minddiff-bench-") as scratch:
        x = np.random.default_rng(0).standard_normal((n, n_voxels), np.float32)
        path = write_targets(Path(scratch) / "features.h5", x, sizes)
        found = fit_streamed(x, path, Path(scratch), device)
    for name, (seconds, worked) in found.items():
        print(f"{name:>20}: {seconds:8.1f} s, {worked:8.1f} s of the processor")
    shared = np.array(found.pop("responses"))
    rest = np.sum(list(found.values()), axis=0)
    print(f"in all {_minutes(shared + rest)}; memory {peak_memory() / 2**30:.1f} GiB at the most")
    if share < 1:
        print(f"all targets, if each costs the same: {_minutes(shared + rest / share)}")


def _minutes(seconds: np.ndarray) -> str:
    """Say how long something took: seconds on the clock, and of the processor."""
    clock, worked = seconds / 60
    return f"{clock:.1f} min, {worked:.1f} min of the processor"


def write_targets(path: Path, x: np.ndarray, sizes: dict[str, int], rank: int = 300) -> Path:
    """Write random features that follow from responses in `rank` directions, float16 in HDF5."""
    rng = np.random.default_rng(1)
    hidden = x[:, :rank] + rng.standard_normal((len(x), min(rank, x.shape[1])), np.float32)
    hidden *= np.geomspace(3, 0.1, hidden.shape[1], dtype=np.float32)
    with h5py.File(path, "w") as file:
        for name, size in sizes.items():
            y = hidden @ rng.standard_normal((hidden.shape[1], size), np.float32)
            y += rng.standard_normal(y.shape, np.float32)
            file[name] = y.astype(np.float16)
    return path


def fit_streamed(
    x: np.ndarray, features: Path, folder: Path, device: str
) -> dict[str, tuple[float, float]]:
    """Fit the default decoder to one family of a file after the other; write what it decodes.

    Returns
    -------
    dict of str to tuple of two float
        Seconds on the clock and of the processor, of what all families share ("responses"), and
        of each family.
    """
    from minddiff_utils.decoding.decoders import Method, fit_family, make_design, save_decoder

    seconds = {}
    before = _now()
    # Four voxels of ten are in early areas, which have two says to try.
    early = np.arange(x.shape[1]) < 0.4 * x.shape[1]
    method = Method(device=device)
    design = make_design(x, early=early, method=method)
    seconds["responses"] = _since(before)
    with h5py.File(features) as source, h5py.File(folder / "decoded.h5", "w") as target:
        for name in source:
            before = _now()
            y = source[name][:].astype(np.float32)
            decoder = fit_family(design, y, name, method)[0]
            save_decoder(decoder, folder / f"{name}.safetensors")
            # As many test pictures as NSD has, taken from the training pictures.
            target[name] = decoder.predict(x[:982])
            seconds[name] = _since(before)
            print(f"{name}: {seconds[name][0]:.0f} s", file=sys.stderr, flush=True)
    return seconds


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(before: tuple[float, float]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    clock, worked = _now()
    return clock - before[0], worked - before[1]
