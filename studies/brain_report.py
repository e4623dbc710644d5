"""Does the phantom's brain measure up? Noise ceilings by area, and what a linear decoder gets.

`python -m studies.brain_report TREE` prints it.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from minddiff_utils.datasets import Subject, load_subject, noise_ceiling, prepare_fold
from minddiff_utils.datasets.areas import is_early
from minddiff_utils.phantom import world
from minddiff_utils.phantom.brain import AREAS, QUALITIES
from minddiff_utils.phantom.nsd_writer import world_ids


def decoding_check(subject: Subject) -> tuple[float, float, float]:
    """Decode 16 x 16 colour pictures with ridge regression.

    Most of what differs between two pictures' pixels is the setting, which is easily told. So
    the correlation is given for whole pictures, for what is left of them when the mean picture of
    their setting is taken away, and for that mean picture alone.

    Returns
    -------
    tuple of three float
        Correlations over the test pictures, averaged over 16 x 16 x 3 pixels.
    """
    fold = prepare_fold(subject, subject.splits[0])
    train, test = (
        subject.stimuli.pictures(ids)
        .reshape(len(ids), 16, 4, 16, 4, 3)
        .mean(axis=(2, 4))
        .reshape(len(ids), -1)
        for ids in (fold.train_id, fold.test_id)
    )
    settings_train, settings_test = (_settings(subject, i) for i in (fold.train_id, fold.test_id))
    means = np.linalg.lstsq(settings_train, train, rcond=None)[0]
    rest_train, rest_test = train - settings_train @ means, test - settings_test @ means
    return (
        _mean_correlation(_ridge(fold.train_x, train, fold.test_x), test),
        _mean_correlation(_ridge(fold.train_x, rest_train, fold.test_x), rest_test),
        _mean_correlation(settings_test @ means, test),
    )


def _scenes(subject: Subject, ids: np.ndarray) -> list[world.Scene]:
    """Return what the phantom's stimuli of these ids show."""
    return [world.scene(i) for i in world_ids(subject.stimuli.tree)[ids].tolist()]


def _settings(subject: Subject, ids: np.ndarray) -> np.ndarray:
    """Return which setting each picture has, as indicators (n, 7)."""
    settings = np.array([scene.setting for scene in _scenes(subject, ids)])
    return (settings[:, None] == np.array([*world.SETTINGS, "pattern"])).astype(float)


def _mean_correlation(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(np.nanmean(_columnwise_correlation(predicted, truth)))


def label_check(subject: Subject) -> dict[str, float]:
    """Tell from the areas beyond hV4 which kinds, colours and settings a picture has.

    Returns
    -------
    dict of str to float
        Area under the ROC curve, averaged over the kinds, the colours and the settings.
    """
    fold = prepare_fold(subject, subject.splits[0])
    higher = np.any([mask for name, mask in subject.roi.items() if not is_early(name)], axis=0)
    names, train = _labels(_scenes(subject, fold.train_id))
    _, test = _labels(_scenes(subject, fold.test_id))
    predicted = _ridge(fold.train_x[:, higher], train, fold.test_x[:, higher])
    scores: dict[str, list[float]] = {}
    for name, score, truth in zip(names, predicted.T, test.T, strict=True):
        if 0 < truth.sum() < len(truth):
            scores.setdefault(name, []).append(_area_under_curve(score, truth.astype(bool)))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _labels(scenes: Sequence[world.Scene]) -> tuple[list[str], np.ndarray]:
    """Return for each label what it is about, and presence (n, n_labels)."""
    columns = [("kind", k, [any(t.kind == k for t in s.things) for s in scenes])
               for k in world.KINDS]  # fmt: skip
    columns += [("colour", c, [any(t.colour == c for t in s.things) for s in scenes])
                for c in world.COLOURS]  # fmt: skip
    columns += [("setting", v, [s.setting == v for s in scenes])
                for v in (*world.SETTINGS, "pattern")]  # fmt: skip
    return [name for name, _, _ in columns], np.array([c for _, _, c in columns], float).T


def _ridge(x: np.ndarray, y: np.ndarray, x_new: np.ndarray) -> np.ndarray:
    """Predict by ridge regression; the penalty is the best on the last sixth of the training."""
    n = len(x) * 5 // 6
    penalties = x.shape[1] * np.array([0.03, 0.1, 0.3, 1, 3])
    trials = [_mean_correlation(_dual(x[:n], y[:n], x[n:], p), y[n:]) for p in penalties]
    return _dual(x, y, x_new, penalties[int(np.argmax(trials))])


def _dual(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, penalty: float) -> np.ndarray:
    """Ridge regression through the kernel: there are more voxels than pictures."""
    mean, centre = x.mean(axis=0), y.mean(axis=0)
    x, x_new = x - mean, x_new - mean
    kernel = x @ x.T + penalty * np.eye(len(x), dtype=x.dtype)
    return x_new @ (x.T @ np.linalg.solve(kernel, y - centre)) + centre


def _columnwise_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of each column of `a` with the same column of `b`; NaN if constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return (a * b).sum(axis=0) / np.where(norm > 0, norm, np.nan)


def _area_under_curve(score: np.ndarray, truth: np.ndarray) -> float:
    """Chance that a positive scores above a negative."""
    return float(np.mean(score[truth][:, None] > score[~truth][None]))


def report(tree: str, subject: str) -> str:
    """Describe one phantom subject as read from the tree: ceilings by area, and what decodes.

    Parameters
    ----------
    tree : str
        The folder that `write_tree` wrote.
    subject : str

    Returns
    -------
    str
        Text of several lines.
    """
    data = load_subject("nsd", tree, subject)
    index = int(subject[4:]) - 1
    quality = QUALITIES[index % len(QUALITIES)]
    aims = {roi: quality * area.ceiling for roi, area in AREAS.items()}
    ceiling = noise_ceiling(data.ncsnr, 3)
    lines = [
        f"{subject}: {data.responses.shape[0]} trials, {data.responses.shape[1]} voxels",
        "Noise ceiling, three repetitions, per cent:",
        f"{'ROI':8s}{'voxels':>8s}{'aim':>8s}{'mean':>8s}{'median':>8s}{'90th':>8s}",
    ]
    for name, mask in [*data.roi.items(), ("all", np.ones(len(ceiling), bool))]:
        values = ceiling[mask]
        aim = f"{aims[name]:8.0f}" if name in aims else f"{'':8s}"
        lines.append(
            f"{name:8s}{mask.sum():8d}{aim}{values.mean():8.1f}{np.median(values):8.1f}"
            f"{np.percentile(values, 90):8.1f}"
        )
    whole, rest, setting = decoding_check(data)
    lines.append("Ridge to 16 x 16 pixels, test correlation:")
    lines.append(
        f"  whole pictures {whole:.3f} (the mean picture of the setting alone: {setting:.3f})"
    )
    lines.append(f"  without the mean picture of the setting {rest:.3f}")
    for name, value in label_check(data).items():
        lines.append(f"{name} from areas beyond hV4, area under the curve: {value:.3f}")
    return "\n".join(lines)


def main() -> None:
    """Print the report of a tree on the terminal."""
    parser = argparse.ArgumentParser(prog="python -m studies.brain_report")
    parser.add_argument("--report", metavar="TREE", required=True, help="folder of the phantom")
    parser.add_argument("--subjects", default="subj01,subj02", help="separated by commas")
    options = parser.parse_args()
    for subject in options.subjects.split(","):
        print(report(options.report, subject))


if __name__ == "__main__":
    main()
