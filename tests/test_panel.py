"""The panel of papers on NSD: its wiring, with and without torchvision."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from builders import refuses
from scipy.stats import pearsonr
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from minddiff_utils.evaluation import panel
from minddiff_utils.models.clip import load_clip

HAS_VISION = importlib.util.find_spec("torchvision") is not None


def pictures(n=6, side=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def published(stack, side):
    """Resize as the published code: to 256 pixels first, then to `side`, without smoothing."""
    rgb = torch.from_numpy(stack / 255).float().permute(0, 3, 1, 2)
    for size in (256, side):
        rgb = torch.nn.functional.interpolate(rgb, (size, size), mode="bilinear")
    return rgb


@pytest.mark.parametrize("side", [64, 256, 300])
def test_pixcorr_and_ssim_are_those_of_the_published_code(side):
    truth, made = pictures(3, side), pictures(3, side, 1) // 2 + pictures(3, side) // 2
    x, y = (published(stack, 425).numpy() for stack in (truth, made))
    expected = [pearsonr(a.ravel(), b.ravel())[0] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(panel.pixcorr(truth, made), expected, atol=1e-5)
    grey = [rgb2gray(stack.transpose(0, 2, 3, 1).astype(float)) for stack in (x, y)]
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(*grey, strict=True)
    expected = [structural_similarity(*pair, data_range=1.0, **how) for pair in pairs]
    np.testing.assert_allclose(panel.panel_ssim(truth, made), expected, atol=1e-6)


def test_two_way_identification_is_that_of_the_published_code():
    """One matrix of correlations of all features, of the seen and the made pictures."""
    truth, made = pictures(7), pictures(7, seed=1) // 2 + pictures(7) // 3
    x, y = (published(stack, 256).mean(dim=1).flatten(1) for stack in (truth, made))
    r = np.corrcoef(x.numpy(), y.numpy())[:7, 7:]
    expected = 100 * np.mean((r < np.diag(r)).sum(axis=0) / 6)
    found = panel.panel(truth, made, {"Alex(2)": grey_of})
    assert found["Alex(2)"].mean() == pytest.approx(expected)


def grey_of(rgb):
    """Undo the normalisation of AlexNet, then mean over the colours."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in panel.IMAGENET)
    return (rgb * deviation + mean).mean(dim=1)


def test_pictures_are_resized_and_normalised_as_the_network_wants():
    network = panel.Network("x", "y", 11, panel.IMAGENET, "distance")
    seen = []
    grey = np.full((5, 20, 20, 3), 51, np.uint8)  # 0.2
    panel.network_features(grey, network, lambda x: seen.append(x) or x.mean((2, 3)), batch=2)
    assert [len(x) for x in seen] == [2, 2, 1] and seen[0].shape[1:] == (3, 11, 11)
    mean, deviation = np.array(panel.IMAGENET)
    np.testing.assert_allclose(seen[0][0, :, 0, 0], (0.2 - mean) / deviation, rtol=1e-5)


def test_panel_takes_each_measure_from_its_network(tiny_models):
    clip = load_clip(tiny_models / "clip_judge", "cpu", "float32")
    side = clip.edge
    networks = {"Alex(2)": torch.nn.Conv2d(3, 4, 9, 9), "Eff": torch.nn.AvgPool2d(32)}
    networks["CLIP"] = lambda x: panel._clip_embedding(clip, x[..., :side, :side])
    truth = pictures()
    same = panel.panel(truth, truth, networks)
    assert set(same) == {"PixCorr", "SSIM", "Alex(2)", "Eff", "CLIP"}
    assert np.all(same["Alex(2)"] == 100) and np.all(same["CLIP"] == 100)  # in per cent
    np.testing.assert_allclose(same["Eff"], 0, atol=1e-6)
    np.testing.assert_allclose(same["PixCorr"], 1)
    other = panel.panel(truth, np.roll(truth, 1, axis=0), networks)
    assert other["Alex(2)"].mean() < 60 and other["Eff"].mean() > 0.5


def test_only_the_full_panel_needs_torchvision(monkeypatch, tiny_models):
    assert panel.load_networks("none") == {} == panel.load_networks("published")
    clip = load_clip(tiny_models / "clip_judge", "cpu", "float32")
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it were not installed
    refuses(r"needs torchvision.*minddiffuser-book\[panel\]", panel.load_networks, "full", clip)


@pytest.mark.skipif(not HAS_VISION, reason="torchvision is not installed")
def test_networks_of_torchvision_with_random_weights(tiny_models):
    clip = load_clip(tiny_models / "clip_judge", "cpu", "float32")
    networks = panel.load_networks("full", clip, pretrained=False)
    assert set(networks) == set(panel.NETWORKS)
    del networks["CLIP"]  # the small one wants other pictures
    found = panel.panel(pictures(3, 64), pictures(3, 64, 1), networks)
    assert all(np.isfinite(values).all() and values.shape == (3,) for values in found.values())
