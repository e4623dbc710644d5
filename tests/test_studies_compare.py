"""Settings are compared on training pictures alone, as chapters 02 to 05 would use them."""

import numpy as np
import pandas as pd
import pytest
from builders import make_subject, study

from minddiff_utils.datasets.subject import Split
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
    gains = none.gain.dropna()
    assert {"z", "c", "block_1", "stage 1", "stage 2"} <= set(gains.index.get_level_values("of"))
    np.testing.assert_allclose(gains, (none.value - stretched.value)[gains.index], atol=1e-4)
    assert (none.low <= none.gain + 1e-4)[gains.index].all()
    # Stretching changes neither the condition nor what correlates with z.
    assert none.gain["c", "correlation"] == 0
    assert abs(none.gain["z", "correlation"]) < 1e-6
    assert stretched.value["z", "spread, of the true one"] > 1.2 * none.value.iloc[1]
