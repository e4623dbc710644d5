"""The bench of decoders, in small."""

import contextlib
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from minddiff_utils.decoding.voxel_selected_ridge import VoxelSelectedRidge
from minddiff_utils.io import InputError
from studies import decoders
from studies.__main__ import app

PAIR = ["--samples", "40", "--voxels", "30", "--targets", "6", "--chosen", "9", "--rounds", "1"]


def call(*arguments):
    return CliRunner().invoke(app, ["decoders", "--threads", "1", *arguments])


def test_seconds_of_both_precisions_and_how_to_get_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "has_fastl2lir", lambda folder: False)
    shown = call(*PAIR)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"this book in float32: +[\d.]+ s", shown.output)
    assert "pip install --target FOLDER fastl2lir" in shown.output


def test_ratio_is_printed_where_both_run(monkeypatch):
    monkeypatch.setattr(decoders, "has_fastl2lir", lambda folder: True)
    monkeypatch.setattr(decoders, "fit_fastl2lir", lambda *_: (100.0, 6.0))
    monkeypatch.setattr(
        decoders, "our_process", lambda *_: contextlib.nullcontext(lambda dtype: (20.0, 1.0))
    )
    shown = call(*PAIR)
    assert "float32 over FastL2LiR's (float64, its default): 5.0" in shown.output, shown.output
    assert "by seconds of the processor 6.0" in shown.output


def test_a_process_that_fails_is_told(tmp_path):
    with pytest.raises(InputError, match="this book's decoder failed"):
        with decoders.our_process(tmp_path / "no.npy", tmp_path / "no.npy", 9) as fit:
            fit("float32")


def test_fastl2lir_itself_has_the_same_weights(tmp_path):
    if not decoders.has_fastl2lir(None):
        pytest.skip("pip install fastl2lir 'numpy<2.4'")
    x, y = decoders.make_recording(60, 40, 7)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    places = tmp_path / "x.npy", tmp_path / "y.npy"
    try:
        decoders.fit_fastl2lir(*places, 10, out=tmp_path / "out.npz")
    except InputError as error:
        pytest.skip(str(error))
    theirs = np.load(tmp_path / "out.npz")
    ours = VoxelSelectedRidge(10, decoders.ALPHA, dtype="float64").fit(x, y)
    error = np.abs(ours.coef_ - theirs["weights"]).max()
    assert error < 1e-6 * np.abs(theirs["weights"]).max()


def test_nsds_size_in_small_and_a_share_of_it(tmp_path):
    options = ["--samples", "40", "--voxels", "50", "--share", "0.002", "--folder", str(tmp_path)]
    shown = call("--size", "nsd", *options)
    assert shown.exit_code == 0, shown.output
    total = sum(max(1, round(0.002 * size)) for size in decoders.FAMILIES.values())
    assert f"40 stimuli × 50 voxels → {total} targets" in shown.output
    assert re.search(r"responses: +[\d.]+ s, +[\d.]+ s of the processor", shown.output)
    assert re.search(r"in all [\d.]+ min, [\d.]+ min of the processor; memory", shown.output)
    assert "all targets, if each costs the same" in shown.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"), [(["--size", "huge"], "size huge"), (["--share", "0"], "share 0")]
)
def test_bad_options_are_named(options, said):
    shown = call(*options)
    assert isinstance(shown.exception, InputError) and said in str(shown.exception)
