"""Settings are compared on training pictures alone."""

import numpy as np
import pytest

from minddiff_utils.datasets.subject import Split, Subject
from minddiff_utils.io import InputError
from minddiff_utils.models.stable_diffusion import load_clip, load_generator
from minddiff_utils.settings import Settings
from studies.tuning import _variants, compare_settings, tuning_subject


def person(n_train=12, n_test=4):
    ids = np.arange(n_train + n_test)
    split = Split("shared", ids[:n_train], ids[n_train:])
    responses = np.zeros((len(ids), 3), np.float32)
    session = np.ones(len(ids), np.int64)
    return Subject("subj01", "nsd", responses, ids, session, {}, (split,), stimuli=None)


@pytest.mark.parametrize("n", [1, 5, 8])
def test_no_test_stimulus_is_touched(n):
    subject = person()
    (split,) = tuning_subject(subject, n).splits
    assert len(split.test) == n
    assert set(split.train) | set(split.test) == set(subject.splits[0].train)
    assert not set(split.train) & set(split.test)


@pytest.mark.parametrize("n", [0, 9, 50])
def test_too_many_or_none_held_out(n):
    with pytest.raises(InputError, match=f"n={n}"):
        tuning_subject(person(), n)


def test_every_combination_is_tried():
    variants = _variants(["strength=0.4,0.6", "optimise=z,zc", "iterations=0,3"])
    assert len(variants) == 8
    assert {v.strength for v in variants} == {0.4, 0.6}
    assert {v.iterations for v in variants} == {0, 3}


@pytest.mark.parametrize("text", ["colour=1", "strength", "strength="])
def test_unknown_settings_are_named(text):
    with pytest.raises(InputError, match="--vary"):
        _variants([text])


def test_table_has_a_row_a_variant(tiny_models):
    generator = load_generator(tiny_models, "cpu")
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    decoded = {
        "stimulus_id": np.arange(2),
        "z": rng.standard_normal((2, 4, 16, 16), np.float32),
        "c": rng.standard_normal((2, generator.n_tokens, 128), np.float32),
        "block_1": rng.standard_normal((2, 65, 128), np.float32),
    }
    judge = load_clip(tiny_models / "clip_judge", "cpu")
    variants = [
        Settings(
            2, 0.5, solver="algorithm_1", structure_target="values", iterations=n, learning_rate=0.1
        )
        for n in (0, 2)
    ]
    table = compare_settings(generator, decoded, truth, {"clip_judge": judge.embed}, variants)
    assert list(table.iterations) == [0, 2]
    assert table.loss[0] == 1
    assert table.loss[1] < 1
    assert np.isfinite(table[["ssim", "pcc", "clip_judge"]]).all(axis=None)
    np.testing.assert_allclose(table.ssim_gain, table.ssim - table.ssim[0])
    assert (table.ssim_low <= table.ssim_gain).all() and (table.ssim_gain <= table.ssim_high).all()
