"""What several test files build or ask for: HDF5 files, subjects, errors, commands."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from minddiff_utils.datasets import Split, Subject
from minddiff_utils.io import InputError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"


def refuses(said: str, call: Callable, *given: Any, **named: Any) -> str:
    """Assert that a call raises an `InputError` that says this pattern; return all that it says."""
    with pytest.raises(InputError, match=said or None) as error:
        call(*given, **named)
    return str(error.value)


def write_hdf5(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a file of these datasets; one that is None is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            if values is not None:
                file[name] = values
    return path


def files_in(folder: Path) -> set[str]:
    """The names of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Every dataset of a file."""
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def assert_same(some: Mapping[str, np.ndarray], others: Mapping, atol: float = 0.0) -> None:
    """Assert that two mappings have the same names, and under each the same values."""
    assert some.keys() == others.keys()
    for name, values in some.items():
        np.testing.assert_allclose(values, others[name], rtol=0, atol=atol, err_msg=name)


def make_subject(
    responses: np.ndarray, stimulus_id: np.ndarray, splits: Iterable[Split], **more: Any
) -> Subject:
    """A subject of one session and one region, without stimuli, but for what is given."""
    n_trials, n_voxels = responses.shape
    known = {"name": "s", "dataset": "made", "stimuli": None, "splits": tuple(splits)}
    known |= {"session": np.ones(n_trials, int), "roi": {"V1": np.ones(n_voxels, bool)}, **more}
    return Subject(responses=responses.astype("f4"), stimulus_id=stimulus_id, **known)


SHAPES = {"z": (4, 2, 2), "c": (3, 5), "block_1": (4, 6), "block_2": (4, 6), "embedding": (7,)}


def write_features(path: Path, ids: np.ndarray) -> Path:
    """Random features, as `features.write_features` lays them out."""
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((len(ids), *shape)) for name, shape in SHAPES.items()}
    return write_hdf5(path, {"stimulus_id": ids} | {k: v.astype("f4") for k, v in values.items()})


def recording(features: Path, splits: Iterable[Split], noise: float = 1.0) -> Subject:
    """A subject: the voxels of region A mix the values of `z`, those of region B are noise."""
    rng = np.random.default_rng(1)
    known = read_hdf5(features)
    ids, z = known["stimulus_id"], known["z"].reshape(len(known["z"]), -1)
    signal = np.concatenate([z @ rng.standard_normal((16, 50)), np.zeros((len(ids), 50))], axis=1)
    rows = rng.permutation(np.tile(np.arange(len(ids)), 2))
    responses = signal[rows] + noise * rng.standard_normal((len(rows), 100))
    roi = {"A": np.arange(100) < 50, "B": np.arange(100) >= 50}
    session = np.arange(len(rows)) % 2 + 1
    return make_subject(responses, ids[rows], splits, session=session, roi=roi)


def correlations(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Correlation of each column with the same column of other values."""
    return np.array([np.corrcoef(*pair)[0, 1] for pair in zip(some.T, others.T, strict=True)])


def assert_follows_signal(subject: Subject, brain: Any, ids: np.ndarray) -> None:
    """Trials of V1 correlate with the noise-free response as their noise ceiling says.

    `ids` are in the phantom's world, of each trial's picture.
    """
    place = {tuple(ijk): column for column, ijk in enumerate(brain.ijk.tolist())}
    columns = np.array([place[tuple(ijk)] for ijk in subject.voxel_ijk.tolist()])
    early = brain.group[columns] == "V1"
    seen, rows = np.unique(ids, return_inverse=True)
    signal = brain.signal(seen.tolist())[rows][:, columns[early]]
    r = correlations(signal, subject.responses[:, early])
    power = np.square(subject.ncsnr[early])
    expected = np.sqrt(power / (1 + power))
    assert abs(np.mean(r - expected)) < 0.05 and np.corrcoef(r, expected)[0, 1] > 0.9


def stamps(folder: Path) -> dict[str, int]:
    """When each file was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def run_cli(capsys, monkeypatch, *words: object) -> tuple[int, Any]:
    """Run the command line in this process; return the exit code and what it said."""
    from minddiff_utils import cli

    monkeypatch.setattr(sys, "argv", ["minddiff", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, capsys.readouterr()


@contextmanager
def one_kernel(folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[Any, Callable]]:
    """A kernel at work in a folder, and a function that empties it."""
    from jupyter_client import AsyncKernelManager
    from jupyter_core.utils import run_sync
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    kernel = AsyncKernelManager(kernel_name="python3")
    run_sync(kernel.start_kernel)(cwd=str(folder), env={**os.environ, **environment})
    emptying = new_notebook(cells=[new_code_cell("%reset -f")])
    try:
        yield kernel, lambda: NotebookClient(emptying, km=kernel, startup_timeout=600).execute()
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)


def study(*words: object) -> str:
    """Run `python -m studies` in this process; return what it printed."""
    from typer.testing import CliRunner

    from studies.__main__ import app

    shown = CliRunner().invoke(app, [str(word) for word in words])
    assert shown.exit_code == 0, shown.output + repr(shown.exception)
    return shown.output


def counted(monkeypatch, module: Any, name: str, n: int | None = None) -> list[tuple]:
    """What a function is called with from now on; after `n` calls it stops, as a kill would."""
    calls, function = [], getattr(module, name)

    def call(*given):
        if len(calls) == n:
            raise KeyboardInterrupt
        calls.append(given)
        return function(*given)

    monkeypatch.setattr(module, name, call)
    return calls
