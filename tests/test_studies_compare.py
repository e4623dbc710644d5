"""Settings are compared on training pictures alone, as chapters 02 to 05 would use them."""

import numpy as np
import pandas as pd
import pytest
from builders import make_subject, study

from minddiff_utils.datasets.subject import Split
from minddiff_utils.decoding.features import read_features
from minddiff_utils.settings import Settings
from studies import compare
from studies.changes import change_decoded, equal_tokens
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
    study("compare", *options, "--pictures", 4, "--out", work, "--change", CHANGE)
    table = pd.read_csv(work / "compare_subj01.csv")
    assert (work / "compare.md").read_text("utf-8").count("\n| ") == 3
    return work / "subj01", table.set_index(["settings", "of", "metric"])


def test_gains_are_differences_to_the_defaults(compared):
    _, table = compared
    stretched, none = table.loc["defaults"], table.loc[CHANGE.replace(",", ", ")]
    assert (stretched[["gain", "low", "high"]].dropna() == 0).all(axis=None)
    assert {"true": "c"} in map(compare.parse_change, compare.CHANGES)
    gains = none.gain.dropna()
    assert {"z", "c", "block_1", "stage 1", "stage 2"} <= set(gains.index.get_level_values("of"))
    np.testing.assert_allclose(gains, (none.value - stretched.value)[gains.index], atol=1e-4)
    assert (none.low <= none.gain + 1e-4)[gains.index].all()
    # Stretching changes neither the condition nor what correlates with z.
    assert none.gain["c", "correlation"] == 0
    assert abs(none.gain["z", "correlation"]) < 1e-6


def test_tokens_of_equal_share_have_spread_1_and_come_back(world, tmp_path):
    path, ids, _ = world
    spread = equal_tokens(path, ids[30:], tmp_path / "copy.h5")
    known, scaled = (read_features(p, "c", ids[30:]) for p in (path, tmp_path / "copy.h5"))
    np.testing.assert_allclose(scaled * spread, known, rtol=1e-5)
    np.testing.assert_allclose(scaled.var(0).mean(-1)[spread[:, 0] != 1], 1, rtol=1e-4)


def test_of_two_scales_each_half_of_the_images_has_its_own(monkeypatch):
    monkeypatch.setattr(compare, "paint", lambda _, d, s: ({"a": 0 * d["c"] + s.guidance_scale}, 0))
    c = np.array([5.0, 1, -4, 0.8, 3, -1]).reshape(6, 1, 1)
    made, _ = compare.paint_by_spread(None, {"c": c}, Settings(guidance_scale=3.0), 1.5)
    assert made["a"].ravel().tolist() == [4.5, 2.0, 4.5, 2.0, 4.5, 2.0]


def test_decoded_features_are_changed_as_said(world):
    path, ids, _ = world
    train, some = ids[30:], ids[:8]
    true = {name: read_features(path, name, some) for name in ("z", "c", "block_1", "block_2")}
    decoded = {name: 0.5 * values for name, values in true.items()} | {"stimulus_id": some}
    known = read_features(path, "c", train)

    def changed(**change):
        return change_decoded(decoded, path, train, change)

    assert all(changed()[name] is values for name, values in decoded.items())
    given = changed(true="c+structure")
    for name in ("c", "block_1", "block_2"):
        np.testing.assert_array_equal(given[name], true[name])
    assert given["z"] is decoded["z"]
    assert "block_2" not in changed(n_blocks=1) and "block_1" in changed(n_blocks=1)
    own = change_decoded({**decoded, "c": known[:8]}, path, train, {"c_nearest": 1})["c"]
    flat = (known - known.mean(0)).reshape(len(known), -1)
    likeness = (flat @ flat.T / np.linalg.norm(flat, axis=1))[:8]
    wanted = [known[np.argsort(-row)[:5]].mean(0) for row in likeness]
    np.testing.assert_allclose(own, wanted, atol=1e-5)
