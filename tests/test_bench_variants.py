"""Ways of stage 2 that were tried: what was written for the bench, beside what it must equal."""

import dataclasses
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from test_reconstruction import decoded

from minddiff_utils.models.stable_diffusion import load_clip, load_generator
from minddiff_utils.reconstruction.stage2 import stage_inputs
from minddiff_utils.settings import Settings
from studies.variants import compare_ways
from studies.ways import WAYS, by_settings, dpm_step, truncated, walk

QUICK = Settings(
    n_steps=5,
    strength=0.6,
    structure_target="values",
    z_evidence_weight=0.0,
    gradient_steps=2,
    gradient_through="both",
)


@pytest.fixture(scope="module")
def generator(tiny_models):
    return load_generator(tiny_models, "cpu", "float64")


@pytest.fixture(scope="module")
def given(generator):
    return stage_inputs(generator, decoded(generator, 2), slice(2), QUICK)


def test_the_walk_with_the_guided_gradient_is_the_guided_pass(generator, given):
    found = walk(generator, given, QUICK, look="step")
    torch.testing.assert_close(found, by_settings(generator, given, QUICK).to(found))


def test_another_gradient_is_another_picture(generator, given):
    pictures = [walk(generator, given, QUICK, look=which) for which in ("", "step", "clean")]
    assert torch.isfinite(pictures[2]).all()
    assert all((pictures[2] - other).abs().max() > 1e-4 for other in pictures[:2])


def test_without_a_look_it_is_stage_1(generator, given):
    nothing = dataclasses.replace(QUICK, solver="algorithm_1", iterations=0)
    found = walk(generator, given, QUICK)
    torch.testing.assert_close(found, by_settings(generator, given, nothing).to(found))


def test_gradients_through_every_step_are_algorithm_1(generator, given):
    outer = dataclasses.replace(
        QUICK, solver="algorithm_1", iterations=2, learning_rate_decay=1.0, learning_rate=0.1
    )
    n = len(generator.timesteps(outer.n_steps, outer.strength))
    wanted = by_settings(generator, given, outer)
    torch.testing.assert_close(truncated(generator, given, outer, n), wanted)
    assert (truncated(generator, given, outer, 1) - wanted).abs().max() > 1e-4


def test_dpm_step_is_that_of_diffusers(generator):
    """The same predictions at the same levels, without its first-order last step."""
    steps = generator.timesteps(10, 1.0)
    theirs = DPMSolverMultistepScheduler.from_config(
        generator.scheduler.config,
        prediction_type="sample",
        timestep_spacing="leading",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    theirs.set_timesteps(10)
    levels = [int(step) for step in theirs.timesteps]
    assert levels[0] > levels[-1]
    source = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 16, 16, generator=source, dtype=torch.float64)
    clean = [torch.randn(z.shape, generator=source, dtype=torch.float64) for _ in steps]
    ours, wanted, before = z, z, None
    sigma = theirs.sigmas.double()
    for number in range(4):
        wanted = theirs.step(clean[number], theirs.timesteps[number], wanted).prev_sample
        pair = [float(1 / (1 + sigma[number + k] ** 2)) for k in (0, 1)]
        ours, before = _by_level(generator, ours, clean[number], pair, before)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def _by_level(generator, z, z_0, pair, before):
    """Take `dpm_step` between two given levels, in the place of those of the schedule."""
    held = generator.scheduler
    try:
        generator.scheduler = _Levels([pair[1], pair[0], *([before[1]] if before else [])])
        last = (before[0], torch.tensor(2)) if before else None
        return dpm_step(generator, z, z_0, torch.tensor(1), last), (z_0, pair[0])
    finally:
        generator.scheduler = held


class _Levels:
    """A schedule of neighbouring steps."""

    def __init__(self, alphas):
        self.alphas_cumprod = alphas
        self.num_inference_steps = len(alphas)
        self.final_alpha_cumprod = 1.0


def test_every_way_runs_on_decoded_values(generator):
    """Those that need evidence about z or components are tried in the run that is published."""
    arrays = decoded(generator, 1)
    for name, (way, changes) in WAYS.items():
        small = changes | {"structure_target": "values", "z_evidence_weight": 0.0, "n_steps": 9}
        settings = dataclasses.replace(Settings(), **small)
        settings = dataclasses.replace(settings, iterations=min(settings.iterations, 1))
        pictures = way(generator, stage_inputs(generator, arrays, slice(1), settings), settings)
        assert torch.isfinite(pictures).all(), name


def test_a_way_that_is_there_is_not_run_again(tiny_models, tmp_path):
    generator = load_generator(tiny_models, "cpu")
    arrays = decoded(generator, 3)
    truth = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    embed = {"clip_judge": load_clip(tiny_models / "clip_judge", "cpu").embed}
    embed["clip_guide"] = generator.guide.embed
    values = {"structure_target": "values", "z_evidence_weight": 0.0, "n_steps": 5}
    ways = {"a": (by_settings, values), "b": (partial(walk, look="clean"), values)}
    path = tmp_path / "a.csv"
    table = compare_ways(generator, arrays, truth, embed, ways, path, batch=2)
    assert list(table.groupby("way").size()) == [12, 12]
    n = len(generator.timesteps(5, Settings().strength))
    passes = table.groupby("way").equivalents.first()
    assert passes["a"] == n * (2 * 3 + 2) and passes["b"] == n * 2
    again = compare_ways(generator, arrays, truth, embed, ways, path, batch=2)
    pd.testing.assert_frame_equal(again, pd.read_csv(path))
    assert again.seconds.equals(pd.read_csv(path).seconds)
