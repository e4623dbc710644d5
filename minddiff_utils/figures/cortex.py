"""The visual cortex spread flat: values of voxels, with the outlines and names of regions."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from matplotlib.patheffects import withStroke
from scipy.spatial import KDTree

from minddiff_utils.datasets import Subject
from minddiff_utils.figures import style

GAP = 6.0  # degrees between the hemispheres
STEP = 0.5  # degrees between two points of the map
DEPTH = 6  # voxels whose mean is shown: about as many lie below one another
NEAR = 3.5  # degrees: from a point to the nearest voxel, where there is one
SHEET = "#dcdcdc"  # cortex without a voxel


def flat_places(subject: Subject) -> np.ndarray | None:
    """Return where voxels lie if each hemisphere is spread flat about the back of the head.

    The direction of a voxel from the middle of the volume becomes a place on the map, as far from
    the map's middle as its angle from the back (azimuthal equidistant projection): the occipital
    pole lies in the middle, dorsal areas above and ventral ones below. This needs no surface, only
    the places of the voxels; the two banks of a sulcus lie over one another.

    Parameters
    ----------
    subject : Subject

    Returns
    -------
    float (n_voxels, 2) or None
        Degrees to the right and up; None if the recording does not say where its voxels are.
    """
    if subject.voxel_ijk is None or subject.volume_shape is None or subject.affine is None:
        return None
    turn, shape = subject.affine[:3, :3], np.array(subject.volume_shape)
    # As shares of the volume's half widths, for brains are no spheres.
    centred = (subject.voxel_ijk - (shape - 1) / 2) @ turn.T / (np.abs(turn) @ shape / 2)
    right, front, up = centred.T
    across = np.hypot(right, up)
    angle = np.degrees(np.arctan2(across, -front))  # from the back of the head
    places = (angle / np.maximum(across, 1e-9))[:, None] * centred[:, [0, 2]]
    places[:, 0] += np.where(right < 0, -GAP, GAP) / 2
    return places


@style.figure
def flat_maps(subject: Subject, values: Mapping[str, np.ndarray], label: str) -> Figure:
    """Draw values of voxels on the cortex spread flat, a map for each entry.

    Parameters
    ----------
    subject : Subject
    values : mapping of title to float array, shape (n_voxels,)
        NaN where a voxel has none.
    label : str
        What the values are, and in which unit.

    Returns
    -------
    Figure
        With one scale from 0 to the 98th percentile of what is drawn. Where places or values are
        not known, a figure that says so.
    """
    places = flat_places(subject)
    if places is None or not all(np.isfinite(part).any() for part in values.values()):
        return style.sentence("Not known: the voxels' places, or their values.")
    fig, grid = style.canvases(4.4 * len(values), len(values), 1)
    shown = []
    for axes, (title, part) in zip(grid[:, 0], values.items(), strict=True):
        shown.append(_draw_sheet(axes, subject.roi, places, part))
        axes.set_title(title, loc="left", fontweight="bold")
    for axes in fig.axes:
        axes.images[0].set_clim(0, np.nanpercentile(shown, 98))
    fig.colorbar(axes.images[0], ax=grid[:, 0], label=label, extend="max", shrink=0.6, aspect=30)
    return fig


def _draw_sheet(
    axes: Axes, roi: Mapping[str, np.ndarray], places: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Draw regions, and the mean of the voxels nearest to each point; return these means."""
    known = np.isfinite(values)
    n = min(DEPTH, known.sum())
    far = np.abs(places).max() + 8
    line = np.arange(-far, far, STEP)
    points = np.stack(np.meshgrid(line, line), axis=-1)
    distance, nearest = KDTree(places[known]).query(points, n)
    means = values[known][nearest].reshape(*points.shape[:2], n).mean(axis=2)
    means[distance.reshape(means.shape + (n,))[..., 0] > NEAR] = np.nan
    for side, first in ((-1, 90), (1, -90)):
        middle = side * GAP / 2, 0
        axes.add_patch(Wedge(middle, far, first, first + 180, color=SHEET, zorder=-1))
    axes.imshow(means, "cividis", origin="lower", extent=(-far, far, -far, far))
    distance, nearest = KDTree(places).query(points)
    for name, mask in roi.items():
        inside = mask[nearest] & (distance < NEAR)
        if inside.any():
            axes.contour(line, line, inside, [0.5], colors="black", linewidths=0.8)
        for side in (places[:, 0] < 0, places[:, 0] > 0):
            _name(axes, places[mask & side], name)
    axes.set(xlim=(-far - GAP, far + GAP), ylim=(-far, far))
    axes.set_axis_off()
    for word, place in {"left": 0.0, "right": 1.0}.items():
        axes.text(place, 0, f"{word} hemisphere", ha=word, transform=axes.transAxes, fontsize=11)
    return means


def _name(axes: Axes, places: np.ndarray, name: str) -> None:
    """Write a region's name on that of its voxels with the most others around it."""
    if len(places):
        around = KDTree(places).query_ball_point(places, 15, return_length=True)  # degrees
        column, row = places[np.argmax(around)]
        edge = [withStroke(linewidth=2.5, foreground="white")]
        axes.text(column, row, name, ha="center", va="center", fontsize=9.5, path_effects=edge)
