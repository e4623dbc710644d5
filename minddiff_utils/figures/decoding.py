"""Figures of chapter 02: how well features are decoded, and where in the brain they are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from nilearn import plotting

from minddiff_utils.datasets import Subject
from minddiff_utils.figures import style
from minddiff_utils.figures.cortex import flat_maps
from minddiff_utils.figures.reconstruction import picture_bands

RELIABILITY = "highest that the decoder's reliability allows"
ANATOMY = "nsddata/ppdata/{}/func1pt8mm/T1_to_func1pt8mm.nii.gz"


def _in_words(frame: pd.DataFrame) -> pd.DataFrame:
    """Write the feature spaces of a tidy table as people read them, in their order."""
    return frame.assign(feature_space=style.in_words(frame["feature_space"], style.FEATURE_SPACES))


@style.figure
def accuracy_and_reliability(
    accuracy: pd.DataFrame, reliability: Mapping[str, np.ndarray]
) -> Figure:
    """Draw the test correlation of every decoded value, a violin for each feature space.

    Parameters
    ----------
    accuracy : DataFrame
        One row a decoded value: `feature_space`, `correlation`, `control` (bool: by decoders that
        were trained on shuffled responses). NaN correlations are left out.
    reliability : mapping of feature space to float array
        What noise allows each decoder, from `decoder_reliability`; the median is drawn as a line.
        NaN where not known.

    Returns
    -------
    Figure
        Thick bar: middle half of the values; dot: median.
    """
    kinds = {False: "decoded from the brain", True: "shuffled training responses"}
    frame = _in_words(accuracy.assign(kind=accuracy["control"].map(kinds)))
    spaces = frame["feature_space"].cat.categories
    fig, axes = style.canvas(1.4 + 0.55 * len(spaces))
    sns.violinplot(
        frame, x="correlation", y="feature_space", hue="kind", hue_order=list(kinds.values()),
        palette=[style.BLUE, style.GREY], density_norm="width", cut=0, linewidth=0.6, alpha=0.55,
        inner_kws={"box_width": 4, "whis_width": 0, "marker": "o"},
    )  # fmt: skip
    axes.axvline(0, color=style.DARK, linewidth=0.8)
    for name, values in reliability.items():
        if np.isfinite(values).any():
            place = spaces.get_loc(style.FEATURE_SPACES.get(name, name))
            ends = [place - 0.42, place + 0.42]
            reached = [np.nanmedian(values)] * 2
            axes.plot(reached, ends, color=style.ORANGE, linewidth=2.2, label=RELIABILITY)
    axes.set(xlabel="correlation on test images", ylabel="")
    style.legend_above(axes)
    return fig


@style.figure
def decoded_latents(
    true: np.ndarray, decoded: np.ndarray, labels: Sequence[str] | None = None
) -> Figure:
    """Draw latent channels as small images: the true `z` at the left, the decoded at the right.

    Parameters
    ----------
    true, decoded : float (n_pictures, channels, h, w)
        In units of the latent's standard deviation.
    labels : sequence of n_pictures str, optional
        Written at the left of each row.

    Returns
    -------
    Figure
    """
    limit = float(np.nanpercentile(np.abs(true), 99)) or 1.0
    scale = mpl.colors.Normalize(-limit, limit)
    colours = mpl.colormaps["RdBu_r"](scale(np.concatenate([true, decoded], axis=1)), bytes=True)
    names = [f"{kind}\nch. {i + 1}" for kind in ("true", "decoded") for i in range(true.shape[1])]
    fig = picture_bands([colours[..., :3]], list(labels or []), [names], below=0.7)
    height = fig.get_figheight()
    bar = fig.add_axes((0.3, 0.45 / height, 0.4, 0.11 / height))
    mappable = mpl.cm.ScalarMappable(scale, "RdBu_r")
    fig.colorbar(mappable, cax=bar, orientation="horizontal", label="latent value (SD)")
    return fig


@style.figure
def roi_accuracy(frame: pd.DataFrame) -> Figure:
    """Draw the mean test correlation of each feature space (row) decoded from each ROI (column).

    Parameters
    ----------
    frame : DataFrame
        `feature_space`, `roi`, `correlation`; those of one feature space and ROI are averaged, NaN
        left out. A cell without any value is blank.

    Returns
    -------
    Figure
    """
    groups = _in_words(frame).groupby(["feature_space", "roi"], sort=False, observed=False)
    means = groups["correlation"].mean().unstack().sort_index()[frame["roi"].unique()]
    fig, axes = style.canvas(1.7 + 0.38 * len(means))
    sns.heatmap(
        means, annot=True, fmt=".2f", annot_kws={"fontsize": 10}, cmap="cividis",
        cbar_kws={"label": "mean correlation", "location": "bottom", "aspect": 40, "pad": 0.02},
    )  # fmt: skip
    axes.tick_params(length=0, rotation=0)
    axes.xaxis.tick_top()
    axes.set(xlabel="", ylabel="")
    return fig


@style.figure
def pattern_density(table: pd.DataFrame) -> Figure:
    """Draw how much the voxels of each region follow what is decoded, by feature space.

    Parameters
    ----------
    table : DataFrame
        From `density_by_region`.

    Returns
    -------
    Figure
    """
    table = _in_words(table)
    n = table["feature_space"].nunique()
    colours = [style.BLUE, style.ORANGE, style.GREY, style.RED]
    fig, axes = style.canvas(1.5 + 0.33 * table["roi"].nunique())
    sns.pointplot(
        table, x="density", y="roi", hue="feature_space", dodge=0.16 * (n - 1) or False,
        errorbar=None, linestyle="none", palette=colours[:n], markers=list("oDs^")[:n],
        markersize=7, markeredgewidth=0,
    )  # fmt: skip
    axes.axvline(1, color=style.DARK, linewidth=0.8)
    axes.set(xlim=(0, None), xlabel="variance with what is decoded (1: the average voxel's)")
    axes.set_ylabel("")
    style.legend_above(axes)
    return fig


@style.figure
def pattern_maps(
    subject: Subject, shares: Mapping[str, np.ndarray], anatomy: str | Path | None = None
) -> Figure:
    """Draw where in the brain the patterns lie, for each feature space.

    Parameters
    ----------
    subject : Subject
    shares : mapping of feature space to float array, shape (n_voxels,)
        From `pattern_shares`.
    anatomy : str or Path, optional
        A volume of the subject's brain, in the space of the responses, to draw on.

    Returns
    -------
    Figure
        Four slices from above on the anatomy; without one, the cortex spread flat.
    """
    density = {name: share * len(share) for name, share in shares.items()}
    titles = {style.FEATURE_SPACES.get(name, name): part for name, part in density.items()}
    if anatomy is None or subject.voxel_ijk is None or subject.volume_shape is None:
        return flat_maps(subject, titles, "variance with what is decoded\n(1: the average voxel's)")
    heights = nib.affines.apply_affine(subject.affine, subject.voxel_ijk)[:, 2]
    cuts = np.unique(np.round(np.percentile(heights, [15, 40, 60, 85]), 1))
    top = float(np.percentile(np.concatenate([*density.values()]), 98))
    size = style.WIDTH, 2.1 * len(shares)
    fig, panels = plt.subplots(len(shares), 1, figsize=size, squeeze=False)
    fig.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.95, hspace=0.2)
    for axes, (name, values) in zip(panels[:, 0], titles.items(), strict=True):
        volume = np.zeros(subject.volume_shape, np.float32)
        volume[tuple(subject.voxel_ijk.T)] = values
        display = plotting.plot_stat_map(
            nib.Nifti1Image(volume, subject.affine), bg_img=str(anatomy),
            display_mode="z", cut_coords=cuts, axes=axes, cmap="cividis", symmetric_cbar=False,
            vmin=0, vmax=top, threshold=1e-6, annotate=False, draw_cross=False, black_bg=False,
            resampling_interpolation="nearest",
        )  # fmt: skip
        display.annotate(size=11)
        axes.set_title(name, loc="left", fontweight="bold", pad=2)
    return fig


def anatomy_path(data_path: str | Path, subject: str) -> Path | None:
    """Return where NSD keeps a subject's anatomy in the space of the betas, if it is there."""
    path = Path(data_path) / ANATOMY.format(subject)
    return path if path.is_file() else None
