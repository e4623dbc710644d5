"""Figures of chapter 02: how well features are decoded, and where in the brain they are read."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from nilearn import plotting

from minddiff_utils.datasets import Subject
from minddiff_utils.decoding.moments import column_moments, constant_columns
from minddiff_utils.figures.common import (
    BLUE,
    FAMILIES,
    GREY,
    ORANGE,
    RED,
    WIDTH,
    _finish,
    in_order,
    style,
)
from minddiff_utils.figures.common import accuracy_distribution as _violins

RELIABILITY = "highest that the decoder's reliability allows"
ANATOMY = "nsddata/ppdata/{}/func1pt8mm/T1_to_func1pt8mm.nii.gz"


def accuracy_and_reliability(
    accuracy: pd.DataFrame, reliability: Mapping[str, np.ndarray]
) -> Figure:
    """Draw test correlations as violins, with what noise allows each decoder as a line.

    Parameters
    ----------
    accuracy : DataFrame
        As `accuracy_distribution` takes it.
    reliability : mapping of family to float array
        From `decoder_reliability`; the median is drawn. NaN where not known.

    Returns
    -------
    Figure
    """
    fig = _violins(accuracy)
    axes = fig.axes[0]
    families = in_order(accuracy["family"], FAMILIES)
    drawn = []
    for place, family in enumerate(families):
        values = np.asarray(reliability.get(family, [np.nan]))
        if np.isfinite(values).any():
            ends = [place - 0.42, place + 0.42]
            height = [np.nanmedian(values)] * 2
            (line,) = axes.plot(ends, height, color=ORANGE, linewidth=2.2, label=RELIABILITY)
            drawn.append(line)
    if drawn:
        axes.legend(handles=drawn[:1], loc="lower left", frameon=False)
    return _finish(fig)


def region_loss(by_region: pd.DataFrame) -> Figure:
    """Draw how much correlation each family loses when one region is left out.

    Parameters
    ----------
    by_region : DataFrame
        From `region_accuracies`.

    Returns
    -------
    Figure
        A panel a family: a bar a region, the mean over values; a sentence where there is but one
        region.
    """
    means = by_region.groupby(["voxels", "family", "roi"]).correlation.mean()
    if "without" not in means.index.get_level_values("voxels"):
        return _sentence("This recording has one region only: none can be left out.")
    families = in_order(by_region["family"], FAMILIES)
    rois = list(dict.fromkeys(by_region["roi"][by_region["voxels"] == "without"]))
    with style():
        fig, panels = plt.subplots(
            1, len(families), figsize=(WIDTH, 0.9 + 0.2 * len(rois)), sharey=True, sharex=True,
            squeeze=False, layout="constrained",
        )  # fmt: skip
        for axes, family in zip(panels[0], families, strict=True):
            loss = [means["all", family, ""] - means["without", family, roi] for roi in rois]
            axes.barh(rois, loss, color=BLUE)
            axes.axvline(0, color="#555555", linewidth=0.8)
            axes.set_title(FAMILIES.get(family, family), loc="left", fontweight="bold")
            axes.grid(axis="y", visible=False)
            axes.locator_params(axis="x", nbins=2)
        panels[0][0].invert_yaxis()
        fig.supxlabel("loss of mean correlation without the region", fontsize=10)
    return _finish(fig)


def _sentence(text: str) -> Figure:
    """Stand where a figure would, and say why there is none."""
    with style():
        # IPython shows no figure without axes.
        fig, axes = plt.subplots(figsize=(WIDTH, 0.6))
        axes.axis("off")
        axes.text(0.5, 0.5, text, ha="center", va="center")
    return _finish(fig)


def pattern_density(table: pd.DataFrame) -> Figure:
    """Draw how much the voxels of each region follow what is decoded, family by family.

    Parameters
    ----------
    table : DataFrame
        From `density_by_region`.

    Returns
    -------
    Figure
    """
    rois = list(dict.fromkeys(table["roi"]))
    families = in_order(table["family"], FAMILIES)
    looks = ((BLUE, "o"), (ORANGE, "D"), (GREY, "s"), (RED, "^"))
    with style():
        fig, axes = plt.subplots(figsize=(WIDTH, 3.0), layout="constrained")
        for number, family in enumerate(families):
            values = table[table["family"] == family].set_index("roi")["density"]
            colour, marker = looks[number % len(looks)]
            places = np.arange(len(rois)) + 0.16 * (number - (len(families) - 1) / 2)
            axes.plot(
                places, values.reindex(rois), marker, color=colour, markersize=7,
                label=FAMILIES.get(family, family),
            )  # fmt: skip
        axes.axhline(1, color="#555555", linewidth=0.8)
        axes.set_xticks(range(len(rois)), rois)
        axes.set(ylim=(0, None), ylabel="variance with what is decoded\n(1: the average voxel's)")
        axes.grid(axis="x", visible=False)
        fig.legend(loc="outside upper center", ncols=len(families))
    return _finish(fig)


def pattern_maps(
    subject: Subject, shares: Mapping[str, np.ndarray], anatomy: str | Path | None = None
) -> Figure:
    """Draw where in the volume the patterns lie, five slices from above for each family.

    Parameters
    ----------
    subject : Subject
    shares : mapping of family to float array, shape (n_voxels,)
        From `pattern_shares`.
    anatomy : str or Path, optional
        A volume of the subject's brain, in the space of the responses, to draw on.

    Returns
    -------
    Figure
        Without a known place of the voxels, a figure that says so.
    """
    if subject.voxel_ijk is None or subject.volume_shape is None:
        return _nothing("The recording does not say where its voxels are.")
    affine = np.eye(4) if subject.affine is None else subject.affine
    heights = nib.affines.apply_affine(affine, subject.voxel_ijk)[:, 2]
    cuts = np.unique(np.round(np.percentile(heights, [8, 28, 48, 68, 88]), 1))
    density = {family: share * len(share) for family, share in shares.items()}
    top = float(np.percentile(np.concatenate([*density.values()]), 98))
    with style():
        fig, panels = plt.subplots(
            len(shares), 1, figsize=(WIDTH, 1.75 * len(shares)), squeeze=False
        )
        fig.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.95, hspace=0.2)
        for axes, (family, values) in zip(panels[:, 0], density.items(), strict=True):
            volume = np.zeros(subject.volume_shape, np.float32)
            volume[tuple(subject.voxel_ijk.T)] = values
            display = plotting.plot_stat_map(
                nib.Nifti1Image(volume, affine),
                bg_img=None if anatomy is None else str(anatomy),
                display_mode="z", cut_coords=cuts, axes=axes, cmap="YlGnBu", symmetric_cbar=False,
                vmin=0, vmax=top, threshold=1e-6, annotate=False, draw_cross=False,
                black_bg=False, resampling_interpolation="nearest",
            )  # fmt: skip
            display.annotate(size=8)
            axes.set_title(FAMILIES.get(family, family), loc="left", fontweight="bold", pad=2)
    return _finish(fig)


def anatomy_path(data_path: str | Path, subject: str) -> Path | None:
    """Return where NSD keeps a subject's anatomy in the space of the betas, if it is there."""
    path = Path(data_path) / ANATOMY.format(subject)
    return path if path.is_file() else None


def shrinkage(true: np.ndarray, decoded: np.ndarray) -> Figure:
    """Draw how much decoded values vary beside the true ones, against how well they are decoded.

    Parameters
    ----------
    true, decoded : float arrays, shape (n_pictures, …)

    Returns
    -------
    Figure
        A dot a value. On the diagonal, the spread is what the correlation warrants.
    """
    true, decoded = (part.reshape(len(part), -1) for part in (true, decoded))
    moments = [column_moments(part) for part in (true, decoded)]
    varied = ~constant_columns(*moments[0])
    sd, sd_decoded = (np.sqrt(variance) for _, variance in moments)
    spread = sd_decoded / np.maximum(sd, 1e-12)
    centred = [part - mean for part, (mean, _) in zip((true, decoded), moments, strict=True)]
    r = (centred[0] * centred[1]).mean(0) / np.maximum(sd * sd_decoded, 1e-12)
    with style():
        fig, axes = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
        axes.plot(r[varied], spread[varied], ".", color=BLUE, alpha=0.4, markersize=4)
        low, high = min(0, float(r[varied].min())), 1.05
        axes.plot([0, high], [0, high], color=ORANGE, label="spread = correlation")
        axes.axhline(1, color=GREY, linestyle="--", label="as the true values")
        top = max(1.2, float(np.percentile(spread[varied], 99.5)) * 1.1)
        axes.set(xlim=(low, high), ylim=(0, top))
        axes.set(xlabel="correlation on test pictures", ylabel="SD decoded / SD true")
        axes.legend(loc="upper left")
    return _finish(fig)


def _nothing(text: str) -> Figure:
    with style():
        fig, axes = plt.subplots(figsize=(WIDTH, 1.0))
        axes.text(0.5, 0.5, text, ha="center", va="center")
        axes.set_axis_off()
    return _finish(fig)
