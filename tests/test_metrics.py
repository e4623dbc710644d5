"""Metrics against scikit-image, scipy, closed forms and naive loops."""

from itertools import combinations

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest, pearsonr
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from minddiff_utils import metrics
from minddiff_utils.files import InputError


def pictures(n=4, side=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def small_pictures():
    return arrays(np.uint8, (2, 12, 13, 3), elements=st.integers(0, 255))


# --- SSIM ---


@pytest.mark.parametrize("side", [11, 24, 64])
def test_ssim_equals_scikit_image(side):
    a, b = pictures(3, side), pictures(3, side, seed=1)
    b[1] = a[1] // 2 + b[1] // 4
    expected = [
        structural_similarity(
            rgb2gray(x),
            rgb2gray(y),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
        )
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(a, b), expected, atol=1e-12)


@pytest.mark.parametrize(("x", "y"), [(0, 255), (100, 130), (7, 7)])
def test_ssim_of_flat_pictures_is_the_luminance_term(x, y):
    a = np.full((1, 16, 16, 3), x, np.uint8)
    b = np.full((1, 16, 16, 3), y, np.uint8)
    u, v, c1 = x / 255, y / 255, 0.01**2
    expected = (2 * u * v + c1) / (u**2 + v**2 + c1)
    np.testing.assert_allclose(metrics.ssim(a, b), expected, atol=1e-12)


def test_ssim_at_the_size_of_published_numbers():
    from skimage.transform import resize

    a, b = pictures(1, 40), pictures(1, 40, seed=1)
    big = [rgb2gray(resize(x[0], (425, 425))) for x in (a, b)]
    expected = structural_similarity(
        *big, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )
    np.testing.assert_allclose(metrics.ssim(a, b, size=425), expected, atol=1e-12)
    np.testing.assert_array_equal(metrics.ssim(a, b, size=40), metrics.ssim(a, b))


def test_ssim_of_many_pictures_is_that_of_each():
    a, b = pictures(metrics.BLOCK + 3, 12), pictures(metrics.BLOCK + 3, 12, seed=1)
    single = [metrics.ssim(a[i : i + 1], b[i : i + 1])[0] for i in range(len(a))]
    np.testing.assert_allclose(metrics.ssim(a, b), single, rtol=1e-12)
    assert metrics.ssim(a[:0], b[:0]).shape == (0,)


@settings(max_examples=25, deadline=None)
@given(small_pictures(), small_pictures())
def test_properties_of_ssim_and_pcc(a, b):
    for metric in (metrics.ssim, metrics.pcc):
        values = metric(a, b)
        assert np.all((np.abs(values) <= 1 + 1e-9) | np.isnan(values))
    np.testing.assert_allclose(metrics.ssim(a, b), metrics.ssim(b, a), atol=1e-12)
    np.testing.assert_allclose(metrics.ssim(a, a), 1)
    varied = a.reshape(2, -1).std(axis=1) > 0
    np.testing.assert_allclose(metrics.pcc(a, a), np.where(varied, 1, np.nan))
    np.testing.assert_allclose(metrics.pcc(a, 255 - a), np.where(varied, -1, np.nan))


# --- PCC and cosine ---


def test_pcc_equals_scipy():
    a, b = pictures(5), pictures(5, seed=1)
    expected = [pearsonr(x.ravel(), y.ravel())[0] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.pcc(a, b), expected, atol=1e-12)


def test_pcc_of_flat_pictures():
    varied, flat = pictures(1), np.full((1, 24, 24, 3), 90, np.uint8)
    assert metrics.pcc(varied, flat) == 0  # giving up counts, and counts as nothing
    assert np.isnan(metrics.pcc(flat, varied))  # nothing could be right


def test_cosine_equals_a_loop():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 9))
    expected = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.cosine(a, b), expected)
    np.testing.assert_allclose(np.diag(metrics.similarity_matrix(a, b)), expected)
    a[0] = 0
    assert metrics.cosine(a, b)[0] == 0
    np.testing.assert_allclose(metrics.cosine(a, 3 * a)[1:], 1)


@pytest.mark.parametrize("metric", [metrics.ssim, metrics.pcc])
def test_wrong_pictures_are_named(metric):
    good = pictures()
    for other, word in ((good / 255, "float64"), (good[:2], "same stimuli"), (good[0], "uint8")):
        with pytest.raises(InputError, match=word):
            metric(good, other)


def test_other_wrong_input_is_named():
    with pytest.raises(InputError, match="at least 11 pixels"):
        metrics.ssim(pictures(1, 10), pictures(1, 10))
    with pytest.raises(InputError, match="one shape"):
        metrics.cosine(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(InputError, match="n_way is 4"):
        metrics.identification_accuracy(np.eye(3), np.eye(3), 4)
    with pytest.raises(InputError, match="one shape"):
        metrics.paired_difference(np.zeros(3), np.zeros(4))


# --- identification ---


def naive_identification(predicted, true, n_way):
    """Try every set of wrong candidates; a tie is won as often as a fair lot wins it."""
    similarity = metrics.similarity_matrix(predicted, true)
    result = []
    for i, row in enumerate(similarity):
        others = [j for j in range(len(row)) if j != i]
        wins = []
        for chosen in combinations(others, n_way - 1):
            rivals = row[list(chosen)]
            tied = np.sum(rivals == row[i])
            wins.append(0.0 if np.any(rivals > row[i]) else 1 / (1 + tied))
        result.append(np.mean(wins))
    return result


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.booleans())
def test_identification_equals_a_naive_loop(seed, n_way, coarse):
    rng = np.random.default_rng(seed)
    # Whole directions of a plane, so that exact ties are common.
    rows = np.eye(3)[rng.integers(0, 3, (2, 6))] if coarse else rng.normal(size=(2, 6, 3))
    found = metrics.identification_accuracy(*rows, n_way)
    np.testing.assert_allclose(found, naive_identification(*rows, n_way), atol=1e-12)


def test_identification_closed_forms():
    identity = np.eye(7)
    for n_way in (2, 5, 7):
        # Perfect; and a method that always says the same is at chance exactly.
        assert np.all(metrics.identification_accuracy(identity, identity, n_way) == 1)
        same = np.ones((7, 7))
        np.testing.assert_allclose(
            metrics.identification_accuracy(same, same, n_way), 1 / n_way, atol=1e-12
        )
    # Perfect knowledge of k equal categories and nothing else (Shirakawa et al. 2024).
    k, each = 10, 30
    labels = np.repeat(np.eye(k), each, axis=0)
    n = k * each
    expected = 1 - 0.5 * (each - 1) / (n - 1)
    np.testing.assert_allclose(metrics.identification_accuracy(labels, labels).mean(), expected)


def test_identification_of_many_pictures_does_not_overflow():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(400, 20))
    predicted = true + rng.normal(size=true.shape)
    values = [metrics.identification_accuracy(predicted, true, k).mean() for k in (2, 50, 400)]
    assert 1 > values[0] > values[1] > values[2] > 1 / 400
    broken = predicted.copy()
    broken[3] = np.nan
    assert np.flatnonzero(np.isnan(metrics.identification_accuracy(broken, true))) == [3]


# --- intervals and tests ---


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = metrics.bootstrap_interval(rng.exponential(size=40), n_resamples=599, seed=seed)
        hits += low <= 1 <= high
    # 40 skewed values are few: allow what BCa is known to lose there (about 0.93).
    assert binomtest(hits, 200, 0.93).pvalue > 0.01


def test_bootstrap_interval_is_repeatable_and_survives_odd_values():
    values = np.random.default_rng(0).normal(size=30)
    assert metrics.bootstrap_interval(values) == metrics.bootstrap_interval(values)
    with_gap = metrics.bootstrap_interval([*values, np.nan])
    assert with_gap == metrics.bootstrap_interval(values)
    assert metrics.bootstrap_interval([0.3, 0.3, 0.3]) == (0.3, 0.3)
    assert np.isnan(metrics.bootstrap_interval([1.0])).all()
    assert np.isnan(metrics.bootstrap_interval([])).all()


def test_paired_difference_of_few_pictures_is_exact():
    a = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    found = metrics.paired_difference(a, a - 0.1 - 0.01 * np.arange(6))
    assert found["n"] == 6
    assert found["mean"] == pytest.approx(0.125)
    assert found["low"] > 0
    # All 64 flips are tried: only the observed one and its mirror are this extreme.
    assert found["p"] == pytest.approx(2 / 64)


def test_paired_difference_leaves_gaps_out_and_is_large_for_noise():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 60))
    a[0] = np.nan
    found = metrics.paired_difference(a, b)
    assert found["n"] == 59
    assert found["p"] > 0.05
    assert found["low"] < 0 < found["high"]
    assert np.isnan(metrics.paired_difference([1.0], [0.0])["p"])


# --- tables ---


def embed(stack):
    return stack.reshape(len(stack), -1).astype(float) - 128


def evaluated(n=10):
    truth = pictures(n)
    noise = pictures(n, seed=1)
    methods = {
        "mean": np.repeat(truth.mean(axis=0, keepdims=True).astype(np.uint8), n, axis=0),
        "stage2": (0.8 * truth + 0.2 * noise).astype(np.uint8),
        "stage1": (0.5 * truth + 0.5 * noise).astype(np.uint8),
        "no_z": noise,
        "mine": truth,
    }
    return metrics.evaluate(
        truth, methods, 7 * np.arange(n), {"clip_judge": embed, "clip_guide": embed}
    )


def test_evaluate_is_tidy_and_right():
    frame = evaluated()
    assert list(frame.columns) == ["method", "stimulus_id", "metric", "value"]
    assert len(frame) == 5 * 10 * 4
    assert not frame.duplicated(["method", "stimulus_id", "metric"]).any()
    truth = pictures(10)
    rows = frame.query("method == 'no_z' and stimulus_id == 21").set_index("metric")["value"]
    assert rows["pcc"] == metrics.pcc(truth, pictures(10, seed=1))[3]
    assert rows["ssim"] == pytest.approx(metrics.ssim(truth, pictures(10, seed=1))[3])
    assert frame.query("method == 'mine'")["value"].to_numpy() == pytest.approx(1)


def test_evaluate_names_the_method_that_does_not_fit():
    truth = pictures(5)
    with pytest.raises(InputError, match="stage1 has 4 pictures for 5"):
        metrics.evaluate(truth, {"stage1": truth[:4]}, np.arange(5), {})
    assert metrics.evaluate(truth, {}, np.arange(5), {}).empty


def test_summary_table_has_the_layout_of_the_paper():
    table = metrics.summary_table(evaluated())
    assert list(table.index) == [
        "no z", "no stage 2", "full (MindDiffuser)", "mean picture", "mine",
    ]  # fmt: skip
    assert list(table.columns) == ["CLIP (judge)", "CLIP (guide)", "SSIM", "PCC", "n"]
    assert set(table["n"]) == {"10"}
    assert table.loc["mine", "SSIM"] == "1.000 [1.000,\u00a01.000]"
    assert "over pictures" in table.attrs["note"]
    text = metrics.markdown_table(table)
    assert text.startswith("| method | CLIP (judge) |")
    assert "over pictures" in text


def test_summary_is_the_mean_with_its_interval():
    frame = evaluated()
    row = metrics.summary(frame).query("method == 'stage1' and metric == 'pcc'").iloc[0]
    values = frame.query("method == 'stage1' and metric == 'pcc'")["value"]
    assert row["mean"] == pytest.approx(values.mean())
    assert (row["low"], row["high"]) == metrics.bootstrap_interval(values)


def test_tables_of_several_subjects_keep_them_apart():
    one = evaluated().assign(subject="subj01")
    two = evaluated(8).assign(subject="subj02")
    both = pd.concat([one, two])
    table = metrics.summary_table(both)
    assert list(table.index.names) == ["subject", "method"]
    assert set(table.loc["subj01", "n"]) == {"10"}
    assert set(table.loc["subj02", "n"]) == {"8"}
    apart = metrics.difference_table(both).loc["subj02"]
    alone = metrics.difference_table(two)
    assert apart.to_numpy().tolist() == alone.to_numpy().tolist()


def test_difference_table_pairs_the_same_pictures():
    frame = evaluated().sample(frac=1, random_state=0)  # the order of rows does not matter
    found = metrics.differences(frame)
    # no_c is absent, so its pair is.
    assert set(zip(found["method"], found["baseline"], strict=True)) == {
        ("stage2", "stage1"),
        ("stage2", "no_z"),
    }
    wide = frame.query("metric == 'ssim'").pivot(
        index="stimulus_id", columns="method", values="value"
    )
    row = found.query("metric == 'ssim' and baseline == 'stage1'").iloc[0]
    assert row["mean"] == pytest.approx((wide["stage2"] - wide["stage1"]).mean())
    table = metrics.difference_table(frame)
    assert table.index[0] == "full − no stage 2"
    assert "p\u00a0=\u00a00.002" in table.iloc[0]["SSIM"]  # 2 of 2^10 flips
    assert "not corrected" in table.attrs["note"]


def test_a_missing_value_is_counted_out():
    frame = evaluated()
    gap = (frame["metric"] == "pcc") & (frame["stimulus_id"] == 0)
    frame.loc[gap, "value"] = np.nan
    assert set(metrics.summary(frame).query("metric == 'pcc'")["n"]) == {9}
    assert set(metrics.summary_table(frame)["n"]) == {"9–10"}


def test_identification_table_states_chance():
    truth = pictures(10)
    table = metrics.identification_table(
        {"stage2": embed(truth), "mean": np.ones_like(embed(truth))}, embed(truth), [2, 10, 50]
    )
    assert list(table.columns) == ["2-way (chance 0.500)", "10-way (chance 0.100)", "n"]
    assert table.loc["full (MindDiffuser)"].iloc[1] == "1.000 [1.000,\u00a01.000]"
    assert table.loc["mean picture"].iloc[0].startswith(".500 [.")


# --- files ---


def write_reconstructions(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
        file.create_group("settings")


def test_read_reconstructions_takes_every_method(tmp_path):
    truth, path = pictures(3), tmp_path / "reconstructions.h5"
    write_reconstructions(
        path, truth=truth, stimulus_id=[5, 6, 7], flag=[0, 0, 1], stage2=truth, mine=truth,
        no_z=pictures(3, seed=1),
    )  # fmt: skip
    seen, found, stimulus_id = metrics.read_reconstructions(path)
    assert list(found) == ["no_z", "stage2", "mine"]
    assert stimulus_id.tolist() == [5, 6, 7]
    np.testing.assert_array_equal(seen, truth)


def test_read_reconstructions_names_what_is_wrong(tmp_path):
    path = tmp_path / "reconstructions.h5"
    with pytest.raises(InputError, match="04_stage2"):
        metrics.read_reconstructions(path)
    write_reconstructions(path, truth=pictures(3), stimulus_id=[5, 6, 7], stage1=pictures(2))
    with pytest.raises(InputError, match="no reconstructions"):
        metrics.read_reconstructions(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        metrics.read_reconstructions(path)
    path.unlink()
    write_reconstructions(path, truth=pictures(3))
    with pytest.raises(InputError, match="stimulus_id"):
        metrics.read_reconstructions(path)


def test_read_metrics_joins_subjects(tmp_path):
    for subject, n in (("subj01", 10), ("subj02", 8)):
        (tmp_path / subject).mkdir()
        frame = evaluated(n)
        frame.insert(0, "subject", subject)
        frame.to_csv(tmp_path / subject / "metrics.csv", index=False)
    both = metrics.read_metrics(tmp_path, ["subj02", "subj01"])
    assert both["subject"].unique().tolist() == ["subj02", "subj01"]
    assert len(both) == 5 * 4 * 18
    with pytest.raises(InputError, match="subj03.*05_metrics"):
        metrics.read_metrics(tmp_path, ["subj03"])
    with pytest.raises(InputError, match="at least one"):
        metrics.read_metrics(tmp_path, [])
    frame.drop(columns="value").to_csv(tmp_path / "subj01" / "metrics.csv", index=False)
    with pytest.raises(InputError, match="value"):
        metrics.read_metrics(tmp_path, ["subj01"])
