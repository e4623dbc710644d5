"""Settings are compared on training pictures alone, as chapters 02 to 05 would use them."""

import numpy as np
import pandas as pd
import pytest
import torch
from builders import make_subject, study

from minddiff_utils.datasets import load_subject
from minddiff_utils.datasets.subject import Split
from minddiff_utils.decoding.decode import read_decoded
from minddiff_utils.decoding.features import read_features
from minddiff_utils.evaluation.metrics import pcc
from minddiff_utils.models.clip import to_pictures
from minddiff_utils.models.stable_diffusion import load_generator, noise_like
from minddiff_utils.reconstruction.stage1 import stage1
from minddiff_utils.settings import Settings
from studies.held_out import hold_out

CHANGE = "n_steps=3,rescale_z=none"


def person(n_train=12, n_test=4):
    ids = np.arange(n_train + n_test)
    split = Split("shared", ids[:n_train], ids[n_train:])
    return make_subject(np.zeros((len(ids), 3)), ids, [split])


@pytest.mark.parametrize("n", [1, 5, 8])
def test_no_test_stimulus_is_touched(n):
    subject = person()
    (split,) = hold_out(subject, n).splits
    assert len(split.test) == n
    assert set(split.train) | set(split.test) == set(subject.splits[0].train)
    assert not set(split.train) & set(split.test)


@pytest.fixture(scope="module")
def compared(tree, tiny_models, tmp_path_factory):
    """Folder and table of a comparison of the defaults, which stretch `z`, with no stretching."""
    work = tmp_path_factory.mktemp("compare")
    options = ["--data", tree, "--models", tiny_models, "--work", work, "--device", "cpu"]
    study("compare", *options, "--pictures", 6, "--out", work, "--change", CHANGE)
    table = pd.read_csv(work / "compare_subj01.csv")
    assert (work / "compare.md").read_text("utf-8").count("\n| ") == 3
    return work / "subj01", table.set_index(["settings", "of", "metric"])


def test_gains_are_differences_to_the_defaults(compared):
    _, table = compared
    stretched, none = table.loc["defaults"], table.loc[CHANGE.replace(",", ", ")]
    assert (stretched[["gain", "low", "high"]].dropna() == 0).all(axis=None)
    gains = none.gain.dropna()
    assert {"z", "c", "block_1", "stage 1", "stage 2"} <= set(gains.index.get_level_values("of"))
    np.testing.assert_allclose(gains, (none.value - stretched.value)[gains.index], atol=1e-4)
    assert (none.low <= none.gain + 1e-4)[gains.index].all()
    # Stretching changes neither the condition nor what correlates with z.
    assert none.gain["c", "correlation"] == 0
    assert abs(none.gain["z", "correlation"]) < 1e-6
    assert stretched.value["z", "spread, of the true one"] > 1.2 * none.value.iloc[1]


def test_values_are_those_of_the_chapters(compared, tree, tiny_models):
    folder, table = compared
    last = table.loc[CHANGE.replace(",", ", ")].value
    decoded = read_decoded(folder / "decoded.h5")  # of the last change
    true = read_features(folder / "features.h5", "z", decoded["stimulus_id"])
    spread = np.sqrt(decoded["z"].var(0).mean() / true.var(0).mean())
    assert last["z", "spread, of the true one"] == pytest.approx(spread, rel=1e-4)
    generator = load_generator(tiny_models, "cpu")
    subject = load_subject("nsd", tree, "subj01")
    assert np.isin(decoded["stimulus_id"], subject.splits[0].train).all()
    truth = generator.resize(subject.stimuli.pictures(decoded["stimulus_id"]))
    z, c = (torch.from_numpy(decoded[name]) for name in ("z", "c"))
    noise = noise_like(z, 0, decoded["stimulus_id"])
    made = to_pictures(stage1(generator, z, c, noise, Settings(n_steps=3)))
    assert last["stage 1", "pcc"] == pytest.approx(pcc(truth, made).mean(), abs=1e-4)
