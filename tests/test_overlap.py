"""Distances to the training pictures, and what depends on them."""

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from minddiff_utils.datasets import Split
from minddiff_utils.files import InputError
from minddiff_utils.overlap import Overlap, nearest, overlap, overlap_trend


def test_nearest_equals_a_loop():
    rng = np.random.default_rng(0)
    rows, others = rng.normal(size=(7, 5)), rng.normal(size=(11, 5))
    others[4] = 3 * rows[2]  # length does not matter
    distance, place = nearest(rows, others)
    for i, row in enumerate(rows):
        cosines = [row @ o / np.linalg.norm(row) / np.linalg.norm(o) for o in others]
        assert place[i] == np.argmax(cosines)
        assert distance[i] == pytest.approx(1 - max(cosines))
    assert distance[2] == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="without training pictures"):
        nearest(rows, others[:0])


def test_overlap_of_splits_keeps_to_their_training_pictures(tmp_path):
    rng = np.random.default_rng(0)
    rows, ids = rng.normal(size=(12, 6)), np.arange(12) * 2
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["stimulus_id"], file["embedding"] = ids, rows
    splits = (Split("a", ids[4:], ids[:2]), Split("b", ids[:8], ids[10:]))
    found = overlap(splits, tmp_path / "features.h5")
    assert found.stimulus_id.tolist() == [0, 2, 20, 22]
    for place, (own, train) in enumerate([(0, range(4, 12)), (1, range(4, 12)), (10, range(8))]):
        distance, nearest_row = nearest(rows[own][None], rows[list(train)])
        assert found.distance[place] == pytest.approx(distance[0], abs=1e-6)
        assert found.nearest_id[place] == ids[list(train)[nearest_row[0]]]
    assert found.among_training.shape == (8,)
    assert (found.among_training > 1e-6).all()  # none is its own neighbour


def test_trend_is_spearmans_with_its_interval():
    rng = np.random.default_rng(0)
    n = 50
    distance = rng.random(n)
    found = Overlap(np.arange(n), distance, np.zeros(n, int), distance)
    value = {"stage2": -distance + 0.2 * rng.normal(size=n), "mean": np.full(n, 0.3)}
    frame = pd.concat(
        pd.DataFrame({"method": m, "stimulus_id": np.arange(n), "metric": "pcc", "value": v})
        for m, v in value.items()
    )
    table = overlap_trend(frame.sample(frac=1, random_state=1), found)
    rho = spearmanr(value["stage2"], distance).statistic
    text = table.loc["both stages, this book's solver", "PCC"]
    assert text.startswith(f"{rho:+.2f} [")
    low, high = (float(part) for part in text.split("[")[1].strip("]").split(",\u00a0"))
    assert low < rho < high < 0
    assert table.loc["mean picture", "PCC"] == "–"
