"""How fast decoders are fitted: the paper's beside FastL2LiR, and this book's at NSD's size."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
import torch
import typer

from minddiff_utils.book import KEEP_MEMORY
from minddiff_utils.decoding.decoders import Method, fit_decoders, make_design
from minddiff_utils.io import InputError
from studies.betas import peak_memory

ALPHA = 0.15
GET = "without FastL2LiR: `pip install --target FOLDER fastl2lir 'numpy<2.4'`, and give FOLDER"
# Each runs in a process of its own, for FastL2LiR fails with newer NumPy: load, fit, tell seconds
# on the clock and of the processor. Ours has fitted before, for the first fit reserves memory, and
# on a GPU loads libraries.
PROGRAM = """
import sys, time
import numpy as np
{module}
*paths, k, dtype, alpha, device = sys.argv[1:]
x, y = (np.load(path).astype(dtype) for path in paths)
for _ in range({times}):
    started, worked = time.perf_counter(), time.process_time()
    {fit}
    spent = time.perf_counter() - started, time.process_time() - worked
print(*spent)
"""
PROGRAMS = {
    "this book": {
        "module": "from minddiff_utils.decoding.voxel_selected_ridge import VoxelSelectedRidge",
        "fit": "VoxelSelectedRidge(int(k), float(alpha), dtype=dtype, device=device).fit(x, y)",
        "times": 2,
    },
    "FastL2LiR": {
        "module": "from fastl2lir import FastL2LiR",
        "fit": "FastL2LiR().fit(x, y, alpha=float(alpha), n_feat=int(k), dtype=np.dtype(dtype))",
        "times": 1,
    },
}
# Values of NSD's feature spaces: z, c without its constant token, the best quarter of six blocks.
SIZES = {"z": 16384, "c": 14 * 768, **{f"block_{i}": 9600 for i in range(1, 7)}}
# Samples, voxels, targets and voxels for each of them, where two programs are compared.
PAIR = (2000, 11694, 500, 850)
NSD = (8859, 11694)  # training stimuli and voxels of one subject


def main(
    share: Annotated[float, typer.Option(help="Of NSD's 85,000 targets; 0: none.")] = 1.0,
    fastl2lir: Annotated[Path | None, typer.Option(help="Folder where it is installed.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of the pair; the median counts.")] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    device: Annotated[str, typer.Option(help="Of torch.")] = "cpu",
    folder: Annotated[Path | None, typer.Option(help="For files.")] = None,
) -> None:
    """Fit decoders to random data and print seconds, processor seconds and memory.

    The paper's decoder, this project's and FastL2LiR in turns, on the same data: 2,000 samples,
    11,694 voxels, 500 targets on 850 voxels each. Then this book's default decoder at NSD's size:
    8,859 stimuli, 11,694 voxels, 85,000 targets, features read from HDF5, decoders and decoded
    features written.
    """
    if not 0 <= share <= 1:
        raise InputError(f"--share {share}: expected from 0 to 1.")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=folder, prefix="minddiff-bench-") as scratch:
        compare_programs(Path(scratch), fastl2lir, rounds, threads, device)
        if share:
            fit_at_nsds_size(Path(scratch), share, device)


def compare_programs(
    scratch: Path, fastl2lir: Path | None, rounds: int, threads: int, device: str
) -> None:
    """Fit the paper's decoder by this project and by FastL2LiR in turns; print the medians."""
    n, n_voxels, n_targets, k = PAIR
    print(f"{n:,} samples × {n_voxels:,} voxels, {n_targets} targets on {k} voxels each,")
    print(f"{threads} thread(s), {device}; medians of {rounds} round(s), taking turns")
    rng, places = np.random.default_rng(0), (scratch / "x.npy", scratch / "y.npy")
    x = rng.standard_normal((n, n_voxels), np.float32)
    for path, values in zip(places, (x, make_targets(x, n_targets, rng)), strict=True):
        np.save(path, values)
    folders = {"this book": None, **({"FastL2LiR": fastl2lir} if fastl2lir else {})}
    if not fastl2lir:
        print(GET)
    spent = {(name, dtype): [] for name in folders for dtype in ("float32", "float64")}
    for _ in range(rounds):
        for (name, dtype), found in spent.items():
            program = PROGRAM.format(**PROGRAMS[name])
            given = [*places, k, dtype, ALPHA, device]
            found.append(run_program(program, given, threads, folders[name]))
    for (name, dtype), found in spent.items():
        seconds, worked = np.median(found, axis=0)
        print(f"{name:>10} in {dtype}: {seconds:7.2f} s, {worked:7.2f} s of the processor")


def make_targets(x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return random values that follow from 300 of the voxels; float32 (n_samples, n)."""
    known = x[:, :300] * np.geomspace(3, 0.1, min(300, x.shape[1]), dtype=np.float32)
    y = known @ rng.standard_normal((known.shape[1], n), np.float32)
    return y + rng.standard_normal(y.shape, np.float32)


def run_program(
    program: str, arguments: list, threads: int = 1, folder: Path | None = None
) -> tuple[float, float]:
    """Run a program in a process of its own; return seconds, on the clock and worked.

    Parameters
    ----------
    program : str
        Whose last line says both.
    arguments : list
        Files of responses and of targets, voxels for each target, precision, penalty, device.
    threads : int
    folder : Path, optional
        Where FastL2LiR is installed, with a NumPy that it runs with.

    Raises
    ------
    InputError
        If the program fails.
    """
    command = [sys.executable, "-c", program, *map(str, arguments)]
    given = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    if folder:
        given["PYTHONPATH"] = str(folder.resolve())
    environment = {**KEEP_MEMORY, **os.environ, **given}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    if shown.returncode:
        raise InputError(f"a fit failed: {shown.stderr.strip().splitlines()[-1]}")
    seconds, worked = shown.stdout.split()[-2:]
    return float(seconds), float(worked)


def fit_at_nsds_size(scratch: Path, share: float, device: str) -> None:
    """Fit this book's decoder to one random feature space after the other; print what it takes."""
    n, n_voxels = NSD
    sizes = {name: max(1, round(share * size)) for name, size in SIZES.items()}
    print(f"{n:,} stimuli × {n_voxels:,} voxels → {sum(sizes.values()):,} targets, {device}")
    rng, features = np.random.default_rng(0), scratch / "features.h5"
    x = rng.standard_normal((n, n_voxels), np.float32)
    with h5py.File(features, "w") as file:
        for name, size in sizes.items():
            file[name] = make_targets(x, size, rng).astype(np.float16)
    before = _now()
    # Four voxels of ten are in early areas, which have two band scales to try.
    early = np.arange(n_voxels) < 0.4 * n_voxels
    method = Method(device=device)
    design = make_design(x, early=early, method=method)
    shared = _now() - before
    _print("responses", shared)
    with h5py.File(features) as source, h5py.File(scratch / "decoded.h5", "w") as target:
        for name in source:
            began = _now()
            y = source[name][:].astype(np.float32)
            decoder = fit_decoders(design, y, name, method)[0]
            decoder.save(scratch / f"{name}.safetensors")
            # As many test pictures as NSD has, taken from the training pictures.
            target[name] = decoder.predict(x[:982])
            _print(name, _now() - began)
    spent = _now() - before
    _print("in all", spent)
    print(f"memory {peak_memory() / 2**30:.1f} GiB at the most")
    if share < 1:
        _print("all targets, if each costs the same", shared + (spent - shared) / share)


def _now() -> np.ndarray:
    """Seconds on the clock and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def _print(name: str, spent: np.ndarray) -> None:
    print(f"{name:>20}: {spent[0]:8.1f} s, {spent[1]:8.1f} s of the processor", flush=True)
