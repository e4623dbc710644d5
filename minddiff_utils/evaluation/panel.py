"""The eight numbers that papers on NSD report, by the preprocessing that their code uses.

PixCorr, SSIM, two-way identification by AlexNet (two layers), Inception v3 and CLIP ViT-L/14, and
the distance by EfficientNet-B1 and SwAV, as MindEye's published code computes them
(`src/Reconstruction_Metrics.py` of MedARC-AI/fMRI-reconstruction-NSD; MindEye2's
`final_evaluations.ipynb` does the same). There every image, seen or made, is first resized to
256 × 256 pixels, and only then to the side that a measure wants; both times linearly and without
smoothing, which was torchvision's default for tensors then. The networks need torchvision, the
extra `panel`.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from skimage.color import rgb2gray

from minddiff_utils.evaluation.identification import pairwise_identification
from minddiff_utils.evaluation.metrics import check_rows, cosine, ssim_grey
from minddiff_utils.io import InputError
from minddiff_utils.models.clip import Clip

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FIRST = 256  # pixels, to which all pictures are resized before anything else
SIDE = 425  # pixels, at which PixCorr and SSIM are computed
HUB = "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"


class Network(NamedTuple):
    """How one network of the panel is used.

    `model` is its name; `layer` the node whose output counts; `side` the pixels that images
    are resized to; `normal` mean and deviation of the colours; `measure` "two-way" (per cent,
    higher is better) or "distance" (lower is better).
    """

    model: str
    layer: str
    side: int
    normal: tuple[tuple[float, ...], tuple[float, ...]]
    measure: str


NETWORKS = {
    "Alex(2)": Network("alexnet", "features.4", 256, IMAGENET, "two-way"),
    "Alex(5)": Network("alexnet", "features.11", 256, IMAGENET, "two-way"),
    "Incep": Network("inception_v3", "avgpool", 342, IMAGENET, "two-way"),
    "CLIP": Network("clip", "embedding", 224, OPENAI, "two-way"),
    "Eff": Network("efficientnet_b1", "avgpool", 255, IMAGENET, "distance"),
    "SwAV": Network("swav", "avgpool", 224, IMAGENET, "distance"),
}
NetworkFunction = Callable[[torch.Tensor], torch.Tensor]
COLUMNS = ("PixCorr", "SSIM", *NETWORKS)
NAN = float("nan")
# Means over the subjects 1, 2, 5 and 7 of NSD, as printed; "rerun": by MindEye2's authors, not by
# its own. One hour: trained on one session of a subject, the others on all.
PUBLISHED = {
    "Takagi & Nishimoto 2023, rerun": (0.246, 0.410, 78.9, 85.6, 83.8, 82.1, 0.811, 0.504),
    "Brain-Diffuser 2023, rerun": (0.273, 0.365, 94.4, 96.6, 91.3, 90.9, 0.728, 0.421),
    "MindEye1, rerun": (0.319, 0.360, 92.8, 96.9, 94.6, 93.3, 0.648, 0.377),
    "MindEye2 2024": (0.322, 0.431, 96.1, 98.6, 95.4, 93.0, 0.619, 0.344),
    "MindTuner 2025": (0.322, 0.421, 95.8, 98.8, 95.6, 93.8, 0.612, 0.340),
    "Brain-IT 2026": (0.386, 0.486, 98.4, 99.5, 97.3, 96.4, 0.564, 0.320),
    "MindEye2, one hour": (0.195, 0.419, NAN, NAN, NAN, NAN, NAN, NAN),
    "Brain-IT, one hour": (0.331, 0.473, NAN, NAN, NAN, NAN, NAN, NAN),
}
# Where they are printed, by the first word of the name; the others are in MindEye2's table.
SOURCES = {"MindTuner": "arXiv 2404.12630", "Brain-IT": "arXiv 2510.25976"}
MINDEYE2 = "arXiv 2403.11207"


def load_networks(
    choice: str, clip: Clip | None = None, pretrained: bool = True
) -> dict[str, NetworkFunction]:
    """Load the networks of the panel.

    Parameters
    ----------
    choice : {"none", "published", "full"}
        Only "full" loads anything.
    clip : Clip
        CLIP ViT-L/14, for "full"; the others are put on its device.
    pretrained : bool
        False leaves random weights, to test the wiring without a download.

    Returns
    -------
    dict of name in `NETWORKS` to function
        From normalised images (n, 3, side, side) to features (n, …).

    Raises
    ------
    InputError
        If torchvision is missing or does not fit torch.
    """
    if choice != "full":
        return {}
    try:
        from torchvision import models
        from torchvision.models.feature_extraction import create_feature_extractor
    except (ImportError, RuntimeError) as error:  # one built for another torch fails at run time
        raise InputError(
            f"panel='full' needs torchvision, which cannot be imported ({error}). Install the "
            "build for your torch: pip install 'minddiffuser-book[panel]'; or panel='published'."
        ) from None
    assert clip is not None
    found: dict[str, NetworkFunction] = {}
    for name, network in NETWORKS.items():
        if network.model == "clip":
            found[name] = partial(_clip_embedding, clip)
            continue
        swav = network.model == "swav"
        weights = "DEFAULT" if pretrained and not swav else None
        model = models.get_model("resnet50" if swav else network.model, weights=weights)
        if swav and pretrained:
            state = torch.hub.load_state_dict_from_url(HUB, map_location="cpu", weights_only=True)
            state = {key.removeprefix("module."): value for key, value in state.items()}
            model.load_state_dict(state, strict=False)  # it has no `fc`, which is not used
        model.eval().requires_grad_(False).to(clip.device)
        extractor = create_feature_extractor(model, {network.layer: "features"})
        found[name] = partial(_features, extractor, clip.device)
    return found


def _features(model: torch.nn.Module, device: torch.device, pictures: torch.Tensor) -> torch.Tensor:
    return model(pictures.to(device))["features"]


def _clip_embedding(clip: Clip, pictures: torch.Tensor) -> torch.Tensor:
    pixels = pictures.to(clip.device, clip.model.dtype)
    pooled = clip.model.vision_model(pixel_values=pixels).pooler_output
    return clip.model.visual_projection(pooled)


@torch.no_grad()
def network_features(
    pictures: np.ndarray, network: Network, function: NetworkFunction, batch: int = 32
) -> np.ndarray:
    """Features of images by one network: resized as published, then normalised.

    Parameters
    ----------
    pictures : uint8 (n, h, w, 3)
    network : Network
    function : function
        From `load_networks`.
    batch : int
        Images at a time.

    Returns
    -------
    float32 (n, n_features)
    """
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in network.normal)
    rows = []
    for start in range(0, len(pictures), batch):
        rgb = _resized(pictures[start : start + batch], network.side)
        rows.append(function((rgb - mean) / deviation).flatten(1).float().cpu())
    return torch.cat(rows).numpy()


def _resized(pictures: np.ndarray, side: int) -> torch.Tensor:
    """Images float32 (n, 3, side, side) in [0, 1], by way of `FIRST` pixels."""
    rgb = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    for size in (FIRST, side):
        if rgb.shape[-2:] != (size, size):
            rgb = F.interpolate(rgb, (size, size), mode="bilinear", align_corners=False)
    return rgb


def pixcorr(truth: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Pearson correlation of all pixel values at 425 × 425 pixels: PixCorr of the field.

    Parameters
    ----------
    truth, made : uint8 (n, h, w, 3)

    Returns
    -------
    float64 (n,)
        Between -1 and 1; 0 where an image is flat.
    """
    found = np.zeros(len(truth))
    for row, pair in enumerate(zip(truth, made, strict=True)):
        # Resizing rounds: what was flat is so no longer, and would correlate a little.
        if all(np.ptp(picture) > 0 for picture in pair):
            found[row] = np.corrcoef([_pixels(picture).ravel() for picture in pair])[0, 1]
    return found


def panel_ssim(truth: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Structural similarity of the grey images at 425 × 425 pixels, as in published rows.

    `metrics.ssim` with `size=425` differs in that it goes there directly.

    Parameters
    ----------
    truth, made : uint8 (n, h, w, 3)

    Returns
    -------
    float64 (n,)
        Between -1 and 1.
    """
    pairs = zip(truth, made, strict=True)
    return np.array([ssim_grey(*(rgb2gray(_pixels(p)) for p in pair)) for pair in pairs])


def _pixels(picture: np.ndarray) -> np.ndarray:
    """One image float64 (425, 425, 3) in [0, 1]."""
    return _resized(picture[None], SIDE)[0].permute(1, 2, 0).double().numpy()


def correlation_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - Pearson's correlation of features, row by row: from 0 to 2, lower is better.

    Parameters
    ----------
    a, b : float (n, d)

    Returns
    -------
    float64 (n,)
        1 where a row is constant.
    """
    check_rows(a, b)
    a, b = (np.asarray(rows, np.float64) for rows in (a, b))
    return 1 - cosine(*(rows - rows.mean(axis=1, keepdims=True) for rows in (a, b)))


def panel(
    truth: np.ndarray, made: np.ndarray, networks: Mapping[str, NetworkFunction]
) -> dict[str, np.ndarray]:
    """Compute the panel of one method, a value an image.

    Parameters
    ----------
    truth, made : uint8 (n, h, w, 3)
    networks : mapping
        From `load_networks`; without any, only PixCorr and SSIM.

    Returns
    -------
    dict of float64 (n,)
        Two-way identification in per cent: of each image against all others.
    """
    found = {"PixCorr": pixcorr(truth, made), "SSIM": panel_ssim(truth, made)}
    for name, function in networks.items():
        network = NETWORKS[name]
        true, predicted = (network_features(p, network, function) for p in (truth, made))
        if network.measure == "two-way":
            found[name] = 100 * pairwise_identification(predicted, true)
        else:
            found[name] = correlation_distance(true, predicted)
    return found


def panel_table(
    rows: Mapping[str, Mapping[str, np.ndarray]], published: bool = True
) -> pd.DataFrame:
    """Write the panel for people, the published rows above our own.

    Parameters
    ----------
    rows : mapping of method to what `panel` returns
    published : bool
        False leaves the published rows out: they mean something beside images of NSD alone.

    Returns
    -------
    DataFrame of str
    """
    lines = {}
    for name, values in PUBLISHED.items() if published else ():
        source = SOURCES.get(re.split("[ ,]", name)[0], MINDEYE2)
        lines[name] = [*map(_number, COLUMNS, values), source]
    for method, found in rows.items():
        mean = [np.mean(found[name]) if name in found else np.nan for name in COLUMNS]
        lines[method] = [*map(_number, COLUMNS, mean), "this run"]
    heads = [f"{name} ↓" if name in ("Eff", "SwAV") else name for name in COLUMNS]
    table = pd.DataFrame.from_dict(lines, orient="index", columns=[*heads, "source"])
    table.attrs["note"] = (
        "Published rows are means over the subjects 1, 2, 5 and 7, from 982 or 1,000 images. "
        "Higher is better, but for ↓. Two-way identification in per cent, chance 50. A dash: not "
        "reported, or not computed (`panel = 'full'` needs torchvision)."
    )
    return table.rename_axis("method")


def _number(column: str, value: float) -> str:
    if not np.isfinite(value):
        return "–"
    two_way = column in NETWORKS and NETWORKS[column].measure == "two-way"
    return f"{value:.1f}" if two_way else f"{value:.3f}".lstrip("0")
