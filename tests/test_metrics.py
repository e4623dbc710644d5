"""Metrics against scikit-image, scipy, closed forms and naive loops."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from minddiff_utils.evaluation import identification, metrics
from minddiff_utils.evaluation import statistics as uncertainty
from minddiff_utils.io import InputError


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


@pytest.mark.parametrize("size", [None, 30])
def test_ssim_of_channels_equals_scikit_image(size):
    a, b = pictures(3, 24), pictures(3, 24, seed=1)
    b[2] = a[2] // 2 + b[2] // 4
    x, y = (metrics._resized(stack, size) for stack in (a, b))
    expected = [
        [
            structural_similarity(
                x[i, ..., channel],
                y[i, ..., channel],
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=1.0,
            )
            for channel in range(3)
        ]
        for i in range(3)
    ]
    np.testing.assert_allclose(metrics.ssim_channels(a, b, size), expected, atol=1e-12)


def test_ssim_of_channels_sees_colours_that_grey_does_not():
    grey = np.repeat(pictures(2, 24)[..., :1], 3, axis=3)
    np.testing.assert_allclose(metrics.ssim_channels(grey, grey), 1)
    # Of one grey picture, and coloured by what grey does not see.
    tinted = grey.copy()
    tinted[..., 2] = 255 - tinted[..., 2]
    assert metrics.ssim_channels(grey, tinted)[:, 2].max() < 0
    assert metrics.ssim(grey, tinted).min() > 0.9
    with pytest.raises(InputError, match="at least 11"):
        metrics.ssim_channels(grey[:, :9], grey[:, :9])


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
    np.testing.assert_allclose(np.diag(identification.similarity_matrix(a, b)), expected)
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
        identification.identification_accuracy(np.eye(3), np.eye(3), 4)
    with pytest.raises(InputError, match="one shape"):
        uncertainty.paired_difference(np.zeros(3), np.zeros(4))


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
    assert len(frame) == 5 * 10 * 7
    assert not frame.duplicated(["method", "stimulus_id", "metric"]).any()
    truth = pictures(10)
    rows = frame.query("method == 'no_z' and stimulus_id == 21").set_index("metric")["value"]
    assert rows["pcc"] == metrics.pcc(truth, pictures(10, seed=1))[3]
    assert rows["ssim"] == pytest.approx(metrics.ssim(truth, pictures(10, seed=1))[3])
    red = metrics.ssim_channels(truth, pictures(10, seed=1))[3, 0]
    assert rows["ssim_red"] == pytest.approx(red)
    assert set(metrics.main_metrics(frame)["metric"]) == set(metrics.MAIN_METRICS)
    assert frame.query("method == 'mine'")["value"].to_numpy() == pytest.approx(1)


def test_evaluate_names_the_method_that_does_not_fit():
    truth = pictures(5)
    with pytest.raises(InputError, match="stage1 has 4 pictures for 5"):
        metrics.evaluate(truth, {"stage1": truth[:4]}, np.arange(5), {})
    assert metrics.evaluate(truth, {}, np.arange(5), {}).empty


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
    assert len(both) == 5 * 7 * 18
    with pytest.raises(InputError, match="subj03.*05_metrics"):
        metrics.read_metrics(tmp_path, ["subj03"])
    with pytest.raises(InputError, match="at least one"):
        metrics.read_metrics(tmp_path, [])
    frame.drop(columns="value").to_csv(tmp_path / "subj01" / "metrics.csv", index=False)
    with pytest.raises(InputError, match="value"):
        metrics.read_metrics(tmp_path, ["subj01"])


def test_a_picture_counts_with_the_mean_over_its_draws():
    rng = np.random.default_rng(0)
    truth, *made = (rng.integers(0, 256, (5, 16, 16, 3), np.uint8) for _ in range(4))
    draws = {3: {"stage1": made[0], "mean": made[1]}, 4: {"stage1": made[2]}}
    frame = metrics.evaluate_draws(truth, draws, np.arange(5), {"clip_judge": embed})
    found = metrics.mean_over_draws(frame).set_index(["method", "metric"]).value
    for metric, function in {"pcc": metrics.pcc, "ssim": metrics.ssim}.items():
        each = [function(truth, pictures) for pictures in (made[0], made[2])]
        np.testing.assert_allclose(found["stage1", metric], np.mean(each, axis=0))
        np.testing.assert_allclose(found["mean", metric], function(truth, made[1]))
    assert list(frame.columns) == ["seed", "method", "stimulus_id", "metric", "value"]
