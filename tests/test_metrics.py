"""Metrics against scikit-image, scipy, closed forms and naive loops."""

import numpy as np
import pytest
from builders import refuses
from scipy.stats import pearsonr
from skimage.color import rgb2gray
from skimage.transform import resize

from minddiff_utils.evaluation import metrics
from minddiff_utils.evaluation.identification import similarity_matrix
from minddiff_utils.io import method_file
from minddiff_utils.reconstruction.results import write_pictures


def pictures(n=4, side=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


# --- SSIM ---


def wang_2004(x, y):
    """SSIM of two grey pictures in [0, 1], window by window."""
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            variances = (window * (a - mean_a) ** 2).sum() + (window * (b - mean_b) ** 2).sum()
            luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
            values.append(luminance * (2 * covariance + 9e-4) / (variances + 9e-4))
    return np.mean(values)


@pytest.mark.parametrize("size", [None, 30])
def test_ssim_is_that_of_its_authors(size):
    """Of grey, and of each channel; resized in colour, before anything else."""
    a, b = pictures(2, 20), pictures(2, 20, seed=1)
    b[1] = a[1] // 2 + b[1] // 4
    found, red = metrics.ssim(a, b, size), metrics.ssim(a, b, size, channel=0)
    for k, pair in enumerate(zip(a, b, strict=True)):
        x, y = (p / 255 if size is None else resize(p, (size, size)) for p in pair)
        assert found[k] == pytest.approx(wang_2004(rgb2gray(x), rgb2gray(y)))
        assert red[k] == pytest.approx(wang_2004(x[..., 0], y[..., 0]))
    np.testing.assert_allclose(metrics.ssim(a, b, size=20), metrics.ssim(a, b))


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
    np.testing.assert_allclose(np.diag(similarity_matrix(a, b)), expected)
    a[0] = 0
    assert metrics.cosine(a, b)[0] == 0
    np.testing.assert_allclose(metrics.cosine(a, 3 * a)[1:], 1)


@pytest.mark.parametrize("metric", [metrics.ssim, metrics.pcc])
def test_wrong_pictures_are_named(metric):
    good = pictures()
    for other, word in ((good / 255, "float64"), (good[:2], "same stimuli"), (good[0], "uint8")):
        refuses(word, metric, good, other)


# --- tables and files ---


def embed(stack):
    return stack.reshape(len(stack), -1).astype(float) - 128


def evaluated(n=10):
    truth = pictures(n, 12)
    noise = pictures(n, 12, seed=1)
    mean = np.repeat(truth.mean(axis=0, keepdims=True), n, axis=0)
    methods = {"mean": mean, "stage2": 0.8 * truth + 0.2 * noise, "stage1": truth / 2 + noise / 2}
    methods = {name: made.astype(np.uint8) for name, made in methods.items()}
    methods |= {"no_z": noise, "mine": truth}
    embeds = {"clip_judge": embed, "clip_guide": embed}
    return metrics.evaluate(truth, methods, 7 * np.arange(n), embeds)


def test_evaluate_is_tidy_and_right():
    frame = evaluated()
    assert list(frame.columns) == ["method", "stimulus_id", "metric", "value"]
    assert len(frame) == 5 * 10 * len(metrics.METRICS)
    assert not frame.duplicated(["method", "stimulus_id", "metric"]).any()
    truth, noise = pictures(10, 12)[3:4], pictures(10, 12, seed=1)[3:4]
    rows = frame.query("method == 'no_z' and stimulus_id == 21").set_index("metric")["value"]
    assert rows["pcc"] == metrics.pcc(truth, noise)
    assert rows["clip_judge"] == pytest.approx(metrics.cosine(embed(truth), embed(noise))[0])
    assert rows["ssim"] == pytest.approx(metrics.ssim(truth, noise)[0])
    for channel, name in enumerate(("red", "green", "blue")):
        own = metrics.ssim(truth, noise, channel=channel)[0]
        assert rows[f"ssim_{name}"] == pytest.approx(own)
    assert set(metrics.main_metrics(frame)["metric"]) == set(metrics.MAIN_METRICS)
    assert frame.query("method == 'mine'")["value"].to_numpy() == pytest.approx(1)


def test_the_reconstructions_that_are_asked_for_are_read(tmp_path):
    truth = pictures(3)
    for name in ("truth", "stage2", "mine", "no_z", "takagi"):
        write_pictures(method_file(tmp_path, name), [5, 6, 7], truth if name == "truth" else ~truth)
    write_pictures(method_file(tmp_path, "stage2", 4), [5, 6, 7], truth // 2)
    seen, found, stimulus_id = metrics.read_reconstructions(tmp_path, ["mine", "stage2", "no_z"])
    assert list(found) == ["no_z", "stage2", "mine"]
    assert stimulus_id.tolist() == [5, 6, 7]
    np.testing.assert_array_equal(seen, truth)
    again = metrics.read_reconstructions(tmp_path, ["stage2"], seed=4)[1]
    np.testing.assert_array_equal(again["stage2"], truth // 2)


def test_a_missing_or_damaged_file_and_other_stimuli_are_named(tmp_path):
    refuses(r"truth.h5 is missing.*03_stage1", metrics.read_reconstructions, tmp_path, ["stage2"])
    for name, first in (("truth", 5), ("stage2", 4)):
        write_pictures(method_file(tmp_path, name), first + np.arange(3), pictures(3))
    said, read = r"stage2.h5 holds other stimuli.*04_stage2", metrics.read_reconstructions
    refuses(said, read, tmp_path, ["stage2"])
    path = method_file(tmp_path, "stage2")
    path.write_bytes(path.read_bytes()[:1000])
    refuses(r"stage2.h5 is truncated.*04_stage2", read, tmp_path, ["stage2"])


def test_read_metrics_joins_subjects(tmp_path):
    for subject, n in (("subj01", 10), ("subj02", 8)):
        (tmp_path / subject).mkdir()
        frame = evaluated(n)
        frame.insert(0, "subject", subject)
        frame.to_csv(tmp_path / subject / "metrics.csv", index=False)
    both = metrics.read_metrics(tmp_path, ["subj02", "subj01"])
    assert both["subject"].unique().tolist() == ["subj02", "subj01"]
    assert len(both) == 5 * 7 * 18
    frame[:7].assign(method="ceiling").to_csv(tmp_path / "subj02/controls.csv", index=False)
    assert len(metrics.read_metrics(tmp_path, ["subj02", "subj01"])) == 5 * 7 * 18 + 7
    refuses("subj03.*05_metrics", metrics.read_metrics, tmp_path, ["subj03"])
    refuses("at least one", metrics.read_metrics, tmp_path, [])
