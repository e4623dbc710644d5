"""A small recording in the layout that nilearn unpacks for Miyawaki et al. (2008)."""

from pathlib import Path

import nibabel as nib
import numpy as np

from minddiff_utils.datasets.miyawaki import FIGURES

SHAPE = (6, 5, 4)
AFFINE = np.diag([-3.0, 3.0, 3.0, 1.0])
PARTS = ("V1d", "V1v", "V2d", "V2v", "V3", "VP", "V3A", "V4v")
MASKS = [f"{side}{part}" for side in ("LH", "RH") for part in PARTS]
LAG = 2
RANDOM_BLOCK, FIGURE_BLOCK, PAUSE = 3, 6, 3  # volumes: 6 s, 12 s and 6 s at 2 s each


def pattern_of(figure: str) -> np.ndarray:
    """The 10 by 10 pattern of a known figure, upright."""
    (code,) = [code for code, name in FIGURES.items() if name == figure]
    return np.array([int(bit) for bit in f"{int(code, 16):0100b}"]).reshape(10, 10)


def response_of(pattern: np.ndarray, voxel: int) -> float:
    """Per cent signal change with which a voxel answers a pattern."""
    return 4.0 * pattern.ravel()[voxel % 100] + 0.05 * voxel * pattern.mean()


def write_tree(folder: Path) -> dict[str, list[np.ndarray]]:
    """Write 20 random and 12 figure runs below `folder`/miyawaki2008; return what was shown."""
    top = folder / "miyawaki2008"
    for name in ("func", "label", "mask"):
        (top / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    figures = [pattern_of(name) for name in FIGURES.values()]
    unknown = np.zeros((10, 10), int)
    unknown[1:3, 2:9] = 1
    shown: dict[str, list[np.ndarray]] = {"random": [], "figure": []}
    for number in range(1, 21):
        patterns = [rng.integers(0, 2, (10, 10)) for _ in range(2)]
        _write_run(top, f"random_run{number:02d}", patterns, RANDOM_BLOCK, rng)
        shown["random"] += patterns
    for number in range(1, 13):
        patterns = [figures[number % 10], unknown, figures[(number + 3) % 10]]
        _write_run(top, f"figure_run{number:02d}", patterns, FIGURE_BLOCK, rng)
        shown["figure"] += patterns
    _write_masks(top)
    return shown


def _write_run(top: Path, name: str, patterns: list, block: int, rng) -> None:
    rest = -np.ones((10, 10), int)
    screen = [rest] * 5
    for pattern in patterns:
        screen += [pattern] * block + [rest] * PAUSE
    # MATLAB's order: columns one after the other.
    rows = [image.T.ravel() for image in screen]
    np.savetxt(top / "label" / f"data_{name}_label.csv", rows, "%d", ",")
    n, voxels = len(screen), int(np.prod(SHAPE))
    change = np.zeros((n + LAG, voxels))
    for volume, image in enumerate(screen):
        if image[0, 0] >= 0:
            change[volume + LAG] = [response_of(image, voxel) for voxel in range(voxels)]
    base = 500 + rng.uniform(0, 100, voxels)  # so that no two runs are equal to the last bit
    base[-1] = 0  # outside the head
    series = base * (1 + change[:n] / 100)
    data = series.T.reshape(*SHAPE, n).astype(np.float32)
    nib.save(nib.Nifti1Image(data, AFFINE), top / "func" / f"data_{name}.nii.gz")


def _write_masks(top: Path) -> None:
    """Every mask takes some voxels of its own; `mask` holds them all and more."""
    everywhere = np.zeros(SHAPE, np.uint8)
    for number, name in enumerate(MASKS):
        volume = np.zeros(SHAPE, np.uint8)
        volume.ravel()[number * 7 : number * 7 + 7] = 1
        everywhere |= volume
        nib.save(nib.Nifti1Image(volume, AFFINE), top / "mask" / f"{name}.nii.gz")
    everywhere.ravel()[-1] = 1
    nib.save(nib.Nifti1Image(everywhere, AFFINE), top / "mask" / "mask.nii.gz")
    # Masks of visual angle, which nilearn unpacks and no reader here needs.
    for side in ("LH", "RH"):
        for lag in range(11):
            path = top / "mask" / f"{side}lag{lag}to{lag + 1}.nii.gz"
            nib.save(nib.Nifti1Image(everywhere, AFFINE), path)
    nib.save(nib.Nifti1Image(everywhere, AFFINE), top / "bg.nii.gz")
