"""Distances to the training pictures, and what depends on them."""

from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from minddiff_utils.datasets import Split
from minddiff_utils.evaluation.leakage import Overlap, count_copies, nearest, overlap, overlap_trend
from minddiff_utils.io import InputError


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


@pytest.mark.parametrize("side", [40, 64])
def test_copies_and_near_twins_by_pixels(side):
    """Patterns differ from picture 0 in so many whole patches; photographs are all different."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (9, side, side, 3), np.uint8)
    grey = rng.integers(0, 2, (10, 10), np.uint8)
    size = side // 10
    for place, (changed, by) in enumerate([(0, 107), (0, 107), (4, 107), (12, 107), (100, 9)]):
        pattern = 128 + 90 * grey
        pattern.flat[:changed] = np.where(grey.flat[:changed], 218 - by, 128 + by)
        drawn = pattern.astype(np.uint8).repeat(size, 0).repeat(size, 1)
        pictures[place] = 128
        pictures[place, : 10 * size, : 10 * size] = drawn[..., None]
    pictures[8] = pictures[7]
    stimuli = SimpleNamespace(pictures=lambda ids: pictures[np.asarray(ids)])
    copies = count_copies(stimuli, [Split("a", np.arange(1, 8), np.array([0, 8]))])
    assert copies.stimulus_id.tolist() == [0, 8]
    assert copies.exact.tolist() == [1, 1]
    assert copies.near.tolist() == [2, 0]  # four patches; all, but hardly
    assert copies.any.tolist() == [0, 8]
    apart = count_copies(stimuli, [Split("a", np.array([3, 5]), np.array([0, 7]))])
    assert not apart.any.size
