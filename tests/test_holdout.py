"""Kinds of pictures that are left out of training."""

import h5py
import numpy as np
import pandas as pd
import pytest

from minddiff_utils.datasets import Split, Subject
from minddiff_utils.decoding.decode import decode_splits, decode_subject, read_decoded
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.evaluation import holdout
from minddiff_utils.io import InputError

N = 90


class Nothing:
    ids = np.arange(N)


def recording(tmp_path, splits, seed=0):
    """Responses that are the features with a little noise; a tenth of the features varies most."""
    rng = np.random.default_rng(seed)
    shapes = {"z": (1, 2, 3), "c": (2, 4), "block_1": (3, 5), "block_2": (3, 5)}
    values = {name: rng.normal(size=(N, *shape)).astype("f4") for name, shape in shapes.items()}
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["stimulus_id"] = np.arange(N)
        for name, rows in values.items():
            file[name] = rows
    flat = np.concatenate([rows.reshape(N, -1) for rows in values.values()], axis=1)
    responses = (flat + 0.3 * rng.normal(size=flat.shape)).astype("f4")
    roi = {"V1": np.ones(flat.shape[1], bool)}
    return Subject("S", "own", responses, np.arange(N), np.ones(N, int), roi, splits, Nothing())


@pytest.fixture
def split():
    return Split("only", np.arange(20, N), np.arange(20))


def test_without_has_none_of_the_group_and_matched_as_many(split):
    rng = np.random.default_rng(0)
    groups = {
        "few": np.array([0, 1, 30]),  # two test pictures are too few
        "most": np.arange(0, N, 4),
        "a bit less": np.arange(1, N, 5),
        "nearly all": rng.permutation(N)[:80],
    }
    found = holdout.hold_out(split, groups, 5)
    assert list(found) == ["most", "a bit less"]
    for name, (without, matched) in found.items():
        inside = np.isin(split.test, groups[name])
        np.testing.assert_array_equal(without.test, split.test[inside])
        np.testing.assert_array_equal(matched.test, without.test)
        assert not np.isin(without.train, groups[name]).any()
        assert len(matched.train) == len(without.train) < len(split.train)
        assert np.isin(matched.train, groups[name]).any()
        assert np.isin(matched.train, split.train).all()
    assert found["a bit less"][0].name == "without_a_bit_less"
    assert list(holdout.hold_out(split, groups, 1)) == ["most"]
    assert holdout.hold_out(split, groups, 0) == {}


def test_groups_are_kinds_or_else_clusters(tmp_path, split):
    kinds = pd.DataFrame(
        {("kind", "cat"): [True, False, True], ("size", "small"): [True, True, True]}
    )
    found = holdout.picture_groups(tmp_path / "none.h5", [4, 5, 9], kinds)
    assert {name: ids.tolist() for name, ids in found.items()} == {"cat": [4, 9]}
    # Three clouds in the text condition are found again.
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 30)
    c = np.eye(3)[label][:, None].repeat(4, axis=1) + 0.05 * rng.normal(size=(30, 4, 3))
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["stimulus_id"], file["c"] = np.arange(30), c
    found = holdout.picture_groups(tmp_path / "features.h5", range(30), kinds[[]], n_clusters=3)
    expected = sorted(np.flatnonzero(label == k).tolist() for k in range(3))
    assert sorted(ids.tolist() for ids in found.values()) == expected
    with pytest.raises(InputError, match="n_clusters=30"):
        holdout.cluster_groups(tmp_path / "features.h5", range(30), 30)


def test_decoded_splits_are_what_decode_subject_decodes(tmp_path, split):
    """The short way gives what chapter 2 gives, for the same splits."""
    other = Split("other", np.arange(40), np.arange(60, 66))
    subject = recording(tmp_path, (split, other))
    method = Method(
        target_components=40, rescale_z="none", keep_structure=0.5, n_components=10, n_folds=3
    )
    features = tmp_path / "features.h5"
    path = decode_subject(subject, features, tmp_path / "decoded.h5", method)
    whole = read_decoded(path)
    assert holdout.decoding_of(path) == method
    found = decode_splits(subject, features, subject.splits, method)
    assert {"z", "c", "evidence_1", "projection_2", "split"} <= set(found) & set(whole)
    for name in set(found) & set(whole):
        values = found[name]
        np.testing.assert_allclose(values, whole[name], atol=2e-3, err_msg=name)
    quick = decode_splits(subject, features, subject.splits, method.set_params(keep_structure=0))
    assert quick["block_1"].shape == (26, 0)
    np.testing.assert_allclose(quick["evidence_2"], found["evidence_2"], atol=2e-3)
    with pytest.raises(InputError, match="cannot be read"):
        holdout.decoding_of(tmp_path / "none.h5")


def test_table_shows_the_drop():
    rng = np.random.default_rng(0)

    def values(ids, drop):
        matched = rng.normal(0.6, 0.1, len(ids))
        without = matched - drop + 0.01 * rng.normal(size=len(ids))
        return pd.concat(
            pd.DataFrame({"method": m, "stimulus_id": ids, "metric": "pcc", "value": v})
            for m, v in (("matched", matched), ("without", without))
        )

    found = {"cat": values(np.arange(8), 0.2), "sun": values(np.arange(5, 12), 0.0)}
    table = holdout.hold_out_table(found)
    assert list(table.index) == ["cat", "sun", "all of them"]
    assert table["n"].tolist() == ["8", "7", "12"]  # three pictures are in both groups
    assert ": -.2" in table.loc["cat", "PCC"] or ": -.1" in table.loc["cat", "PCC"]
    empty = holdout.hold_out_table({})
    assert empty.empty and "n_holdouts" in empty.attrs["note"]
