"""How many dimensions do features fill, and how much of the responses do the images rest on?

Where a few dimensions of the responses give what all of them give, the rest of an image comes
from the generator (BrainBits: Mayo et al., NeurIPS 2024, arXiv 2411.02783). BrainBits learns the
dimensions together with the decoder; here they are principal components of the responses, which
know no images, so that as few learned ones might do better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from minddiff_utils.datasets import Split, Subject, prepare_fold
from minddiff_utils.decoding import decode, ridge
from minddiff_utils.decoding.components import PrincipalComponents
from minddiff_utils.decoding.decoders import Design, Method, fit_decoders, make_design
from minddiff_utils.decoding.features import feature_spaces, read_features, read_values
from minddiff_utils.evaluation.baselines import Bench
from minddiff_utils.evaluation.statistics import effective_dimension
from minddiff_utils.reconstruction import pictures_of

SPACES = ("z", "c")  # what stage 1 is painted from
COMPONENTS = (1, 2, 5, 10, 30, 100)
SHARES = (0.1, 0.25, 0.5)  # of the sessions, beside the first one
FEWEST = 20  # training pictures that decoders are fitted to

Features = dict[str, np.ndarray]
Components = dict[str, PrincipalComponents | None]


def dimension_table(decoded: Mapping[str, np.ndarray], features_path: str | Path) -> pd.DataFrame:
    """Compare the effective dimension of decoded features with that of the true ones.

    Parameters
    ----------
    decoded : mapping of str to array, shape (n_test, …)
        What `read_decoded` returns. Of a block the values that were decoded count, and the same
        ones of the true features.
    features_path : str or Path
        From `write_features`.

    Returns
    -------
    DataFrame of str
        A row a feature space: how many values, and both dimensions of `effective_dimension`,
        decoded and true, over the test images.
    """
    rows = {}
    for space in feature_spaces(features_path):
        found = decoded[space].reshape(len(decoded[space]), -1)
        kept = np.isfinite(found).all(axis=0)
        true = read_values(features_path, space, decoded["stimulus_id"])
        pairs = zip(*(effective_dimension(part[:, kept]) for part in (found, true)), strict=True)
        numbers = [f"{value:.1f}" for pair in pairs for value in pair]
        rows[space.replace("_", " ")] = [f"{kept.sum():,}", *numbers]
    heads = ["values", "PR, decoded", "PR, true", "entropy, decoded", "entropy, true"]
    return pd.DataFrame(rows, heads).T.rename_axis("feature space")


# --- few components of the responses --------------------------------------------------------


def decode_components(bench: Bench, counts: Sequence[int] = COMPONENTS) -> dict[int, Features]:
    r"""Decode the test images from the first principal components of the responses alone.

    Responses are standardised and averaged as in the run. With their mean :math:`m` and the
    reliability :math:`s` of each voxel, both of training responses alone, the components are those
    of :math:`(x - m) \odot s`, which ridge regression is given. In its place it gets the projection
    on the first k, :math:`V_k V_k^\top ((x - m) \odot s)`; penalties, folds and bands stay the
    run's. All components give what the run has decoded, but for one case: where voxels outnumber
    training rows, `c` with early areas scaled down depends on a part of the test responses outside
    of all components. For "all", take the run itself. The paper's decoder chooses among the axes
    of the projection as it does among voxels.

    Parameters
    ----------
    bench : Bench
    counts : sequence of int
        Numbers of components k; those above `all_components` are left out.

    Returns
    -------
    dict of int to dict
        For each k `z` and `c` of the test images, float32 (n_test, …).

    Raises
    ------
    InputError
        If responses or features cannot be decoded.
    """
    person, method = bench.person, bench.decoding()
    counts = [k for k in counts if k <= all_components(person)]
    parts: dict[int, list[Features]] = {k: [] for k in counts}
    for split in person.splits:
        fold, early = prepare_fold(person, split), decode.early_voxels(person)
        folds = decode.training_folds(person, split.train, method.n_folds)
        stimulus = decode.stimulus_of_rows(split, fold)
        scaler = ridge.ReliabilityScaler(decode.voxel_weights(person, split)).fit(fold.train_x)
        train, test = scaler.transform(fold.train_x), scaler.transform(fold.test_x)
        basis = PrincipalComponents(max(counts)).fit(train).components_.T
        targets, known = _targets(bench, split), Components()
        for k in counts:
            axes, weights, is_early = projected_axes(basis[:, :k], scaler.scale_, early)
            design = make_design(train @ axes, folds, weights, stimulus, is_early, method)
            parts[k].append(_decode(design, targets, method, test @ axes, known))
    return {k: _joined(found) for k, found in parts.items()}


def all_components(person: Subject) -> int:
    """How many components the training responses of every split have at most."""
    return min(person.responses.shape[1], *(len(split.train) - 1 for split in person.splits))


def projected_axes(
    basis: np.ndarray, scale: np.ndarray, early: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    r"""Return few axes on which ridge regression does what it does on projected voxels.

    Projected responses of a set of voxels, :math:`x V V_m^\top` with the rows :math:`V_m` of the
    basis, have k dimensions at most. With the decomposition :math:`V_m = Q R` their products are
    those of :math:`x V R^\top`. Early areas and all others are such sets, for ridge regression
    may scale the former down.

    Parameters
    ----------
    basis : float array, shape (n_voxels, k)
        Orthonormal columns.
    scale : float array, shape (n_voxels,)
        What voxels were multiplied by before.
    early : bool array, shape (n_voxels,), optional

    Returns
    -------
    axes : float array, shape (n_voxels, n_axes)
        Weighted responses times these are what `make_design` is to be given.
    weights : float array, shape (n_axes,)
        Together each set's axes have the weight of its voxels.
    early : bool array, shape (n_axes,), or None
    """
    sets = [np.ones(len(scale), bool)] if early is None else [early, ~early]
    turns = [np.linalg.qr(basis[voxels]).R.T for voxels in sets]
    size = [turn.shape[1] for turn in turns]
    power = [np.square(scale[voxels]).sum() for voxels in sets]
    weights = np.repeat(np.sqrt(np.divide(power, size)), size).astype(np.float32)
    axes = basis @ np.concatenate(turns, axis=1) / weights
    return axes, weights, None if early is None else np.repeat([True, False], size)


# --- few sessions ---------------------------------------------------------------------------


def session_counts(person: Subject, shares: Sequence[float] = SHARES) -> list[int]:
    """Return the numbers of sessions to decode from: the first one, and shares of all.

    Parameters
    ----------
    person : Subject
    shares : sequence of float
        Of the sessions, rounded up.

    Returns
    -------
    list of int
        Fewer than all, ascending, each with 20 training images or more in every split. None for
        a recording of one session, which does not tell in which order its trials were recorded.
    """
    n = len(person.sessions)
    found = []
    for count in sorted({1, *(int(np.ceil(share * n)) for share in shares)} - {n}):
        parts = [first_sessions(person, split, count)[1] for split in person.splits]
        if min(len(part.train) for part in parts) >= FEWEST:
            found.append(count)
    return found


def first_sessions(person: Subject, split: Split, n: int) -> tuple[Subject, Split]:
    """Leave out what was recorded in training after the first n sessions.

    Parameters
    ----------
    person : Subject
    split : Split
    n : int

    Returns
    -------
    person : Subject
        Later training trials have no stimulus of the split. Later test trials count for the last
        session that is left, since a session needs training trials to be standardised.
    split : Split
        With the training images that are left.
    """
    last = person.sessions[n - 1]
    later = (person.session > last) & ~np.isin(person.stimulus_id, split.test)
    ids, session = np.where(later, -1, person.stimulus_id), np.minimum(person.session, last)
    left = split.train[np.isin(split.train, ids)]
    return replace(person, stimulus_id=ids, session=session), Split(split.name, left, split.test)


def decode_sessions(bench: Bench, counts: Sequence[int]) -> dict[int, Features]:
    """Decode the test images by decoders of the first sessions' training trials.

    Repetitions, reliability of voxels, folds and penalties are those of these trials alone. Test
    trials are the same for all, standardised as in the run by mean and deviation of the training
    responses of their own session, be it a later one. MindEye2, the field's row of one hour of
    data, standardises before it leaves sessions out, too (arXiv 2403.11207, appendix A.2).

    Parameters
    ----------
    bench : Bench
    counts : sequence of int
        Numbers of sessions; see `session_counts`.

    Returns
    -------
    dict of int to dict
        As `decode_components`.

    Raises
    ------
    InputError
        If responses or features cannot be decoded.
    """
    method = bench.decoding()
    parts: dict[int, list[Features]] = {n: [] for n in counts}
    for split in bench.person.splits:
        test_x = prepare_fold(bench.person, split).test_x
        for n in counts:
            person, part = first_sessions(bench.person, split, n)
            design = decode.training_design(person, part, prepare_fold(person, part), method)
            parts[n].append(_decode(design, _targets(bench, part), method, test_x, {}))
    return {n: _joined(found) for n, found in parts.items()}


# --- both -----------------------------------------------------------------------------------


def paint_each(
    bench: Bench, decoded: Mapping[int, Features], rows: slice, name: str
) -> dict[int, np.ndarray]:
    """Paint stage 1 of some test images from each of several decodings.

    Parameters
    ----------
    bench : Bench
    decoded : mapping of int to dict
        From `decode_components` or `decode_sessions`.
    rows : slice
        Of the test images, in the order of `bench.decoded`.
    name : str
        Of the files, `<name>_<number>`.

    Returns
    -------
    dict of int to uint8 array, shape (n, H, W, 3)
    """
    run, pictures = pictures_of(bench.decoded, rows), {}
    for number, found in decoded.items():
        some = {space: values[rows] for space, values in found.items()}
        pictures[number] = bench.run({**run, **some}, bench.first, f"{name}_{number}")
    return pictures


def _targets(bench: Bench, split: Split) -> Features:
    return {space: read_features(bench.features, space, split.train) for space in SPACES}


def _decode(
    design: Design, targets: Features, method: Method, test_x: np.ndarray, known: Components
) -> Features:
    """Fit decoders and decode; `known` keeps the components of the targets for the next fit."""
    found = {}
    for space, y in targets.items():
        flat = y.reshape(len(y), -1)
        decoder, _, known[space] = fit_decoders(design, flat, space, method, known.get(space))
        assert decoder is not None  # as that of a block may be
        found[space] = decoder.predict(test_x).reshape(-1, *y.shape[1:])
    return found


def _joined(parts: list[Features]) -> Features:
    """Put the splits together, in the order of decoded features."""
    return {space: np.concatenate([part[space] for part in parts]) for space in SPACES}
