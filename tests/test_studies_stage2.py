"""Both solvers side by side: passes are counted as they happen, a stopped run goes on."""

import dataclasses

import numpy as np
import pytest
from builders import counted, refuses, write_hdf5
from test_reconstruction import decoded

from minddiff_utils.evaluation.baselines import stored_pictures
from minddiff_utils.evaluation.metrics import pcc
from minddiff_utils.reconstruction.results import read_pictures, read_trace
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings
from studies import stage2
from studies.held_out import HeldOut
from studies.published import follow_course
from studies.stage2 import count_unet

ALONE = {"structure_target": "values", "z_evidence_weight": 0.0}
FAST = Settings(n_steps=5, strength=0.6, gradient_steps=2, **ALONE)
PAPER = dataclasses.replace(FAST, solver="algorithm_1", iterations=2)
SOLVERS = {"guided": FAST, "algorithm_1": PAPER}


@pytest.mark.parametrize(
    ("settings", "forward", "backward"),
    [
        # Two gradient steps under the text at two of three steps, both conditions of each step.
        (FAST, 2 * 2 + 3 * 2, 2 * 2),
        (dataclasses.replace(FAST, gradient_through="both"), 2 * 2 * 2 + 3 * 2, 2 * 2 * 2),
        (PAPER, 3 * 2 * 3, 3 * 2 * 2),  # steps, both conditions, iterations and the last picture
        (dataclasses.replace(PAPER, recompute=True), 3 * 2 * (3 + 2), 3 * 2 * 2),
    ],
    ids=["guided", "both halves", "algorithm_1", "recomputed"],
)
def test_passes_are_counted(generator, tmp_path, settings, forward, backward):
    with count_unet(generator.unet) as count:
        reconstruct(generator, decoded(generator, 2), settings, tmp_path / "a.h5")
    assert (count.forward, count.backward) == (2 * forward, 2 * backward)
    assert count.equivalents == 2 * (forward + 2 * backward)


def test_draws_are_those_of_runs_with_their_seeds(generator, tmp_path):
    arrays = decoded(generator, 3)
    drawn = stage2.draw(generator, arrays, PAPER, seeds=2)
    assert drawn.shape == (3, 2, 64, 64, 3)
    for seed in (0, 1):
        path = reconstruct(generator, arrays, PAPER, tmp_path / f"{seed}.h5", seed=seed)
        assert np.abs(drawn[:, seed] - read_pictures(path).astype(int)).max() <= 1
    assert np.abs(drawn[:, 0] - drawn[:, 1].astype(int)).mean() > 1


def test_a_stop_leaves_a_file_of_what_is_done(generator, tiny_models, tmp_path, monkeypatch):
    """The command itself: what was made before a stop is there, and is not made again."""
    arrays, run, out = decoded(generator, 3), tmp_path / "subj01", tmp_path / "out"
    write_hdf5(run / "decoded.h5", arrays)
    monkeypatch.setattr(stage2, "solver_settings", lambda iterations: SOLVERS)
    given = {"run": run, "seeds": 2, "batch": 2, "models": tiny_models, "device": "cpu", "out": out}
    draw = stage2.draw
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        first = counted(patch, stage2, "draw", 1)
        stage2.main(**given)
    later = counted(monkeypatch, stage2, "draw")
    stage2.main(**given)
    asked = [decoded["stimulus_id"].tolist() for _, decoded, *_ in (*first, *later)]
    assert asked == [[0, 1], [2]]
    pictures, note = stored_pictures(out / "algorithm_1_subj01.h5", arrays)
    np.testing.assert_allclose(pictures, draw(generator, arrays, PAPER, 2), atol=1)
    assert "--seeds 2 --iterations 300`, on a processor" in note
    stage2.main(**given, timed=1)
    assert "passes of the UNet" in (out / "solvers.md").read_text("utf-8")
    (run / "decoded.h5").unlink()
    refuses("02_decoding", stage2.main, **given)


def test_the_course_begins_at_stage_1_and_ends_at_the_result(generator, tmp_path):
    arrays, embed = decoded(generator, 3), {"clip_judge": generator.guide.embed}
    truth = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    held = HeldOut(None, generator, None, truth, embed)
    course = follow_course(held, arrays, PAPER, [0, 2], tmp_path / "course.h5")
    for iteration in (0, 2):
        settings = dataclasses.replace(PAPER, iterations=iteration)
        path = reconstruct(generator, arrays, settings, tmp_path / f"{iteration}.h5")
        found = course[course.iteration == iteration].set_index("metric").value
        np.testing.assert_allclose(found["pcc"], pcc(truth, read_pictures(path)), atol=1e-9)
        losses = read_trace(path)[0][:, -1].sum(1)
        np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
