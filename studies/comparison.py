"""Which way of decoding is best? Several, on the same pictures, with the noise of each difference.

`python -m studies.comparison --subject subj01` prints the mean correlation that each
reaches on the phantom, family by family. With `--pictures 200` that many *training* pictures are
held out and judged by, as a choice between them should be.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from himalaya.kernel_ridge import MultipleKernelRidgeCV, generate_dirichlet_samples
from himalaya.scoring import r2_score
from sklearn.model_selection import PredefinedSplit
from tqdm import tqdm

from minddiff_utils.datasets import Fold, Subject, load_subject, prepare_fold
from minddiff_utils.decoding.components import PrincipalComponents
from minddiff_utils.decoding.decode import correlations, training_design
from minddiff_utils.decoding.decoders import Design, Method, fit_family, make_design
from minddiff_utils.decoding.features import families, read_values
from minddiff_utils.decoding.ridge import PENALTIES
from minddiff_utils.decoding.voxel_selected_ridge import VoxelSelectedRidge
from minddiff_utils.evaluation.regions import sample_values
from minddiff_utils.evaluation.statistics import resampled_correlation
from minddiff_utils.io import InputError, require
from studies.tuning import tuning_subject

Values = dict[str, np.ndarray]
Way = Callable[["Bench", Values, Values], Values]


class Bench(NamedTuple):
    """What all ways decode from: a subject's only split, made ready.

    `plain` is `design` with the same weight for every voxel.
    """

    subject: Subject
    fold: Fold
    design: Design
    plain: Design


def _open(subject: Subject) -> Bench:
    (split,) = subject.splits
    fold = prepare_fold(subject, split)
    design = training_design(subject, split, fold)
    plain = make_design(design.x, design.folds, None, design.stimulus)
    return Bench(subject, fold, design, plain)


# ------------------------------------------------------------------------------------------- ways
# Each takes the bench, the training values of families (n_stimuli, n_values) and the places of
# those that are wanted, and returns these, decoded, for the test stimuli.


def _each(decode: Callable[[Bench, str, np.ndarray, np.ndarray], np.ndarray]) -> Way:
    """Decode one family after the other."""

    def way(bench: Bench, y: Values, wanted: Values) -> Values:
        return {name: decode(bench, name, y[name], wanted[name]) for name in y}

    return way


def _predicted(
    bench: Bench, design: Design, y: np.ndarray, method: Method, name: str = ""
) -> np.ndarray:
    return fit_family(design, y, name, method)[0].predict(bench.fold.test_x)


def _ridge(bench: Bench, name: str, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Decode as this book does: components, each with its own penalty, two bands for some."""
    return _predicted(bench, bench.design, y, Method(), name)[:, wanted]


def _one_band(bench: Bench, name: str, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Decode without a smaller say for early areas."""
    return _predicted(bench, bench.design, y, Method())[:, wanted]


def _equal_say(bench: Bench, name: str, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Decode components, with the same say for every voxel."""
    return _predicted(bench, bench.plain, y, Method())[:, wanted]


def _values(bench: Bench, name: str, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Decode each value by itself, with its own penalty."""
    return _predicted(bench, bench.design, y[:, wanted], Method(target_components=0))


def _whitened(bench: Bench, name: str, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Decode whitened values, each with its own penalty, and colour them again.

    Whitened within as many components as the default decodes.
    """
    parts = PrincipalComponents(Method().target_components).fit(y)
    scale = np.sqrt(parts.explained_variance_)
    white = (parts.transform(y) / scale) @ parts.components_
    found = _predicted(bench, bench.design, white, Method(target_components=0))
    return parts.inverse_transform(found @ parts.components_.T * scale)[:, wanted]


def band_kernels(bench: Bench) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return products of responses in a band of voxels for each region, and one for the rest.

    A voxel of two regions belongs to the first.

    Returns
    -------
    train : float32 array, shape (n_bands, n_rows, n_rows)
    test : float32 array, shape (n_bands, n_test, n_rows)
        Both divided by the band's mean square over training rows.
    size : float64 array, shape (n_bands,)
        These mean squares.
    """
    scaler = bench.design.models[0][0]
    x, test_x = scaler.transform(bench.design.x), scaler.transform(bench.fold.test_x)
    left, train, test = np.ones(x.shape[1], bool), [], []
    for mask in [*bench.subject.roi.values(), left.copy()]:
        voxels = mask & left
        left &= ~mask
        if voxels.any():
            train.append(x[:, voxels] @ x[:, voxels].T)
            test.append(test_x[:, voxels] @ x[:, voxels].T)
    size = np.array([np.trace(part) / len(part) for part in train])
    scaled = (np.stack(part) / size[:, None, None].astype(np.float32) for part in (train, test))
    return *scaled, size


def decode_banded(bench: Bench, y: np.ndarray, n_shares: int = 21) -> np.ndarray:
    """Decode targets, (n_stimuli, n_targets), each with the weight of every band it is best with.

    The first weights are those of ridge regression without bands; the others are drawn.

    References
    ----------
    Dupré la Tour et al. 2022, Feature-space selection with banded ridge regression (NeuroImage).
    """
    train, test, size = band_kernels(bench)
    shares = (size / size.sum())[None]
    if n_shares > 1:
        drawn = generate_dirichlet_samples(n_shares - 1, len(size), [0.1, 1.0], 0)
        shares = np.concatenate([shares, drawn])
    model = MultipleKernelRidgeCV(
        kernels="precomputed",
        solver_params={
            "n_iter": shares.astype(np.float32),
            "alphas": (bench.design.x.shape[1] * PENALTIES / size.sum()).astype(np.float32),
            "score_func": r2_score,
            "progress_bar": False,
        },
        cv=PredefinedSplit(bench.design.folds[bench.design.stimulus]),
    )
    rows = y[bench.design.stimulus]
    mean = rows.mean(0)
    return model.fit(train, rows - mean).predict(test) + mean


def _banded(bench: Bench, y: Values, wanted: Values) -> Values:
    """Decode components, each with the weight of every region that it is best with."""
    out = {}
    for name, values in y.items():
        parts = PrincipalComponents(Method().target_components).fit(values)
        found = decode_banded(bench, parts.transform(values))
        out[name] = parts.inverse_transform(found)[:, wanted[name]]
    return out


def _paper(n_voxels: int = 0) -> Way:
    """Return the paper's decoder, with its own numbers of voxels or with another."""

    def decode(bench: Bench, name: str, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        model = VoxelSelectedRidge(n_voxels or Method().n_voxels(name), Method().alpha)
        model.fit(bench.design.x, y[bench.design.stimulus][:, wanted])
        return model.predict(bench.fold.test_x)

    return _each(decode)


WAYS: dict[str, Way] = {
    "ridge": _each(_ridge),
    "one_band": _each(_one_band),
    "values": _each(_values),
    "whitened": _each(_whitened),
    "equal_say": _each(_equal_say),
    "banded": _banded,
    "paper": _paper(),
    "paper_450": _paper(450),
    "paper_125": _paper(125),
}


# ------------------------------------------------------------------------------------- comparison


def decode_ways(
    subject: Subject, features: str | Path, ways: Sequence[str], chosen: Mapping[str, np.ndarray]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """Decode the test stimuli of a subject's only split in several ways.

    Parameters
    ----------
    subject : Subject
    features : str or Path
        From `write_features`.
    ways : sequence of str
        Some of `WAYS`.
    chosen : mapping of family to int array
        Places of the values that are compared.

    Returns
    -------
    decoded : dict of way to dict of family to float32 array, shape (n_test, n_chosen)
    seconds : dict of way to float
        Of the processor, for all families.

    Raises
    ------
    InputError
        If a way is unknown.
    """
    for way in ways:
        if way not in WAYS:
            raise InputError(f"way {way!r}: expected one of {', '.join(WAYS)}.")
    bench = _open(subject)
    y = {name: read_values(features, name, bench.subject.splits[0].train) for name in chosen}
    decoded, seconds = {}, {}
    for way in tqdm(ways, desc="ways"):
        started = time.process_time()
        decoded[way] = WAYS[way](bench, y, dict(chosen))
        seconds[way] = time.process_time() - started
    return decoded, seconds


def compare_ways(
    decoded: Mapping[str, Mapping[str, np.ndarray]],
    true: Mapping[str, np.ndarray],
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every way with the first.

    Parameters
    ----------
    decoded : mapping
        From `decode_ways`.
    true : mapping of family to float array, shape (n_test, n_chosen)
    n_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        One row a way and family: `way`, `family`, `correlation` (mean over the values that
        vary), and `gain`, `low`, `high`: the difference to the first way with its 95 % interval
        over pictures, which are drawn again with replacement, the same for both.
    """
    rows = []
    first = next(iter(decoded))
    for name, truth in true.items():
        found = {}
        for way, parts in decoded.items():
            mean = np.nanmean(correlations(truth, parts[name]))
            found[way] = mean, resampled_correlation(truth, parts[name], n_resamples, seed)
        for way, (mean, drawn) in found.items():
            low, high = np.percentile(drawn - found[first][1], [2.5, 97.5])
            row = {"way": way, "family": name, "correlation": mean}
            rows.append(row | {"gain": mean - found[first][0], "low": low, "high": high})
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what every way reaches for one subject."""
    parser = argparse.ArgumentParser(prog="python -m studies.comparison")
    parser.add_argument("--dataset", default="nsd")
    parser.add_argument("--data", default="runs/phantom/tree")
    parser.add_argument("--subject", default="subj01")
    parser.add_argument("--run", type=Path, default=Path("runs/phantom"), help="with features.h5")
    parser.add_argument(
        "--pictures", type=int, default=0, help="held-out training pictures; 0: test pictures"
    )
    parser.add_argument("--ways", default=",".join(WAYS), help="the first is compared with")
    parser.add_argument("--families", default="", help="z,c,block_1,…; all if not given")
    parser.add_argument("--values", type=int, default=100, help="of each family, drawn at random")
    options = parser.parse_args(arguments)
    features = require(options.run / options.subject / "features.h5", "02_decoding")
    person = load_subject(options.dataset, options.data, options.subject)
    if options.pictures:
        person = tuning_subject(person, options.pictures)
    names = options.families.split(",") if options.families else families(features)
    split = person.splits[0]
    chosen = sample_values(features, names, split, options.values, seed=0)
    decoded, seconds = decode_ways(person, features, options.ways.split(","), chosen)
    true = {name: read_values(features, name, split.test)[:, chosen[name]] for name in names}
    kind = "training" if options.pictures else "test"
    print(f"{options.subject}, {len(split.test)} {kind} pictures, {options.values} values at most")
    _print(compare_ways(decoded, true), seconds)


def _print(table: pd.DataFrame, seconds: Mapping[str, float]) -> None:
    """Print a line a way and family, ways below one another."""
    for way, rows in table.groupby("way", sort=False):
        print(f"{way}: {seconds[way]:.0f} s of the processor")
        for row in rows.itertuples():
            line = f"  {row.family:<10} {row.correlation:6.3f}"
            if row.low < row.high:
                line += f"  {row.gain:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            print(line)


if __name__ == "__main__":
    main()
