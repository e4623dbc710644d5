"""Both solvers side by side: passes are counted as they happen, a stopped run goes on."""

import dataclasses

import numpy as np
import pytest
import torch
from test_reconstruction import decoded
from typer.testing import CliRunner

from minddiff_utils.evaluation.metrics import pcc
from minddiff_utils.models.stable_diffusion import load_clip, load_generator
from minddiff_utils.reconstruction import guided_sampling as guidance
from minddiff_utils.reconstruction.results import read_pictures, read_trace
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings
from studies import stage2_cost
from studies.__main__ import app
from studies.architecture import build_generator
from studies.published import follow_course
from studies.stage2 import compare_solvers, count_unet
from studies.stage2_cost import estimate, measure_passes

FAST = Settings(
    n_steps=5, strength=0.6, structure_target="values", z_evidence_weight=0.0, gradient_steps=2
)
PAPER = dataclasses.replace(FAST, solver="algorithm_1", iterations=2)


@pytest.fixture(scope="module")
def generator(tiny_models):
    return load_generator(tiny_models, "cpu")


@pytest.mark.parametrize(
    ("settings", "forward", "backward"),
    [
        (FAST, 3 * (2 + 2), 3 * 2),  # steps, looks under the text, both conditions of the step
        (dataclasses.replace(FAST, gradient_through="both"), 3 * 2 * (2 + 1), 3 * 2 * 2),
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


def test_table_and_going_on(generator, tiny_models, tmp_path):
    arrays = decoded(generator, 3)
    truth = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    judge = load_clip(tiny_models / "clip_judge", "cpu")
    embed = {"clip_judge": judge.embed, "clip_guide": generator.guide.embed}
    given = (generator, arrays, truth, embed, {"guided": FAST, "algorithm_1": PAPER}, tmp_path, 2)
    table = compare_solvers(*given)
    assert list(table.index) == ["guided", "algorithm_1"]
    assert list(table.equivalents) == [3 * (4 + 4), 3 * 2 * (3 + 4)]
    assert (table.loc["guided", ["ssim_gain", "ssim_low", "ssim_high"]] == 0).all()
    gain = table.ssim["guided"] - table.ssim["algorithm_1"]
    assert table.loc["algorithm_1", "ssim_gain"] == pytest.approx(gain)
    with count_unet(generator.unet) as count:
        again = compare_solvers(*given)
    assert count.forward == 0  # all of it was there
    assert again.seconds.equals(table.seconds) and again.ssim.equals(table.ssim)


def test_the_course_begins_at_stage_1_and_ends_at_the_result(generator, tmp_path):
    arrays = decoded(generator, 3)
    truth = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    embed = {"clip_judge": generator.guide.embed, "clip_guide": generator.guide.embed}
    course = follow_course(generator, arrays, truth, embed, PAPER, [0, 2], batch=2)
    for iteration in (0, 2):
        settings = dataclasses.replace(PAPER, iterations=iteration)
        path = reconstruct(generator, arrays, settings, tmp_path / f"{iteration}.h5", batch=2)
        found = course[course.iteration == iteration].set_index("metric").value
        np.testing.assert_allclose(found["pcc"], pcc(truth, read_pictures(path)), atol=1e-9)
        losses = read_trace(path)[0][:, -1].sum(1)
        np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)


def test_estimate_adds_up_the_parts():
    table = estimate({"prediction": 1.0, "look": 10.0, "painted": 4.0})
    assert table.seconds["guided"] == 14 * (2 * 10 + 1)
    # Both halves there, and then there and back.
    assert table.seconds["algorithm_1"] == 300 * (35 * (1 + 2 * (10 - 4)) + 4)
    assert list(table.passes) == [14 * (2 * 3 + 2), 84_000]


def test_cost_at_full_size_is_printed_for_a_miniature():
    shown = CliRunner().invoke(app, ["stage2", "--size", "sd14", "--small"])
    assert shown.exit_code == 0, shown.output
    assert "pictures of 128 × 128, on cpu" in shown.output
    assert "Estimated from these parts" in shown.output and "750 the passes" in shown.output


def test_an_unknown_size_is_named():
    shown = CliRunner().invoke(app, ["stage2", "--size", "sd15"])
    assert "--size sd15: expected phantom or sd14" in str(shown.exception)


def test_a_batch_that_is_too_large_for_the_gpu_leaves_the_others(monkeypatch):
    # What of CUDA's bookkeeping a machine without it does not have.
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    guided_pass, sizes = guidance.guided_pass, []

    def limited(generator, inputs, settings):
        sizes.append(len(inputs.z))
        if len(inputs.z) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return guided_pass(generator, inputs, settings)

    monkeypatch.setattr(guidance, "guided_pass", limited)
    monkeypatch.setattr(stage2_cost, "FAST", stage2_cost.FAST | {"n_steps": 1, "strength": 1.0})
    generator = build_generator(small=True, n_tokens=15)
    table = measure_passes(generator, [1, 2, 4])
    assert sizes == [1, 2, 4]
    assert (table.passes[:2] == 2 * 3 + 2).all() and (table.peak_gib[:2] == 3).all()
    assert (table.seconds[:2] > 0).all() and table.loc[4].isna().all()
