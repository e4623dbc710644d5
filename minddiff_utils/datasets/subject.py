"""One person's recording: responses, what was seen, where the voxels are, and the splits."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from minddiff_utils.io import Ids, InputError

if TYPE_CHECKING:
    from minddiff_utils.datasets.nsd.responses import StoredResponses


class Stimuli(Protocol):
    """Where the pictures and captions of a recording come from."""

    @property
    def ids(self) -> np.ndarray:
        """int64 (n,), sorted."""

    def pictures(self, ids: Ids) -> np.ndarray:
        """Return uint8 (n, height, width, 3), in the order of `ids`."""

    def captions(self, ids: Ids) -> list[tuple[str, ...]]:
        """Return the captions of each picture, in the order of `ids`."""


def check_ids(ids: Ids, n: int) -> np.ndarray:
    """Return stimulus ids as int64 (n_ids,).

    Raises
    ------
    InputError
        Unless each is one of 0 to `n` - 1, and there is one.
    """
    ids = np.atleast_1d(np.asarray(ids, dtype=np.int64))
    if ids.size == 0 or ids.min() < 0 or ids.max() >= n:
        raise InputError(f"stimulus ids {ids.tolist()[:5]}: expected some of 0 to {n - 1}")
    return ids


@dataclass(frozen=True)
class Split:
    """Which stimuli train the decoders and which test them.

    Parameters
    ----------
    name : str
        Also the name of a folder, so letters, digits, `_` and `-` only.
    train, test : int64 arrays
        Stimulus ids; no id is in both.
    """

    name: str
    train: np.ndarray
    test: np.ndarray

    def __post_init__(self) -> None:
        if np.intersect1d(self.train, self.test).size:
            raise ValueError(f"split {self.name}: some stimuli are in train and in test")
        if not len(self.train) or not len(self.test):
            counts = f"{len(self.train)} training and {len(self.test)} test stimuli"
            raise InputError(f"split {self.name} has {counts}; load more sessions")


@dataclass(frozen=True)
class Subject:
    """A recording of one subject, the same for every dataset.

    Parameters
    ----------
    name, dataset : str
    responses : float32 array of shape (n_trials, n_voxels), or StoredResponses
        One row a trial, in the dataset's own unit (per cent signal change for NSD). What is on
        disk is read when indexed.
    stimulus_id, session : int64 arrays of shape (n_trials,)
        What was seen, and in which session (from 1).
    roi : dict of str to bool array of shape (n_voxels,)
    splits : tuple of Split
    stimuli : Stimuli
    ncsnr : float32 array of shape (n_voxels,) or None
        Noise-ceiling signal-to-noise ratio of a single trial; None if the dataset gives none.
    voxel_ijk : int array of shape (n_voxels, 3) or None
        Place in the volume; None if unknown, as are then `volume_shape` and `affine`.
    volume_shape : tuple of three int, or None
    affine : float array of shape (4, 4) or None
        From voxel indices to millimetres.
    n_dropped : int
        Voxels of the regions that were left out because they never changed.
    repetitions : {"average", "keep"}
        Whether decoders see the mean of a training picture's trials or each trial.
    copy_of : dict of int to int
        For each stimulus, the least id of those with the same picture, pixel for pixel; where
        there is none, the picture has no copy.
    test_sets : tuple of Split
        Further tests of how far decoding generalises, each with the training stimuli of its
        decoders. A stimulus may be in several; a session may hold nothing else.
    kind_of : dict of int to str
        What the recording calls the kind of a stimulus, if anything.
    """

    name: str
    dataset: str
    responses: "np.ndarray | StoredResponses"
    stimulus_id: np.ndarray
    session: np.ndarray
    roi: dict[str, np.ndarray]
    splits: tuple[Split, ...]
    stimuli: Stimuli
    ncsnr: np.ndarray | None = None
    voxel_ijk: np.ndarray | None = None
    volume_shape: tuple[int, ...] | None = None
    affine: np.ndarray | None = None
    n_dropped: int = 0
    repetitions: str = "average"
    copy_of: Mapping[int, int] = field(default_factory=dict)
    test_sets: tuple[Split, ...] = ()
    kind_of: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.repetitions not in ("average", "keep"):
            raise InputError(f"repetitions={self.repetitions!r}; expected average or keep")
        n_trials, n_voxels = self.responses.shape
        if not self.stimulus_id.shape == self.session.shape == (n_trials,):
            raise ValueError(f"stimulus_id and session must have shape {(n_trials,)}")
        if any(mask.shape != (n_voxels,) or mask.dtype != bool for mask in self.roi.values()):
            raise ValueError(f"each ROI must be a bool array of {n_voxels} voxels")

    @property
    def sessions(self) -> np.ndarray:
        """Numbers of the sessions that show stimuli of `splits`, sorted; int64 (n_sessions,)."""
        ids = [part for split in self.splits for part in (split.train, split.test)]
        return np.unique(self.session[np.isin(self.stimulus_id, np.concatenate(ids))])

    @property
    def stimulus_ids(self) -> np.ndarray:
        """Ids of stimuli seen in `sessions`, but for those that further sets alone test, sorted."""
        used = [split.train for split in self.test_sets]
        used += [part for split in self.splits for part in (split.train, split.test)]
        tested = [split.test for split in self.test_sets] or [np.empty(0, np.int64)]
        alone = np.setdiff1d(np.concatenate(tested), np.concatenate(used))
        return np.setdiff1d(self.stimulus_id[np.isin(self.session, self.sessions)], alone)

    def picture_of(self, ids: Ids) -> np.ndarray:
        """Return one id for all copies of a picture; int64, in the order of `ids`."""
        return np.array([self.copy_of.get(int(one), one) for one in ids], np.int64)

    def n_repetitions(self, ids: Ids) -> np.ndarray:
        """How many trials showed each stimulus; int64, in the order of `ids`."""
        count = Counter(self.stimulus_id.tolist())
        return np.array([count[int(one)] for one in ids], np.int64)


class Fold(NamedTuple):
    """What a decoder sees: one row a stimulus, standardised and averaged over repetitions.

    Where the repetitions of training stimuli are kept, each trial of theirs is a row.

    `train_x` float32 (n_train, n_voxels), `train_id` int64 (n_train,), likewise for test.
    """

    split_name: str
    train_x: np.ndarray
    train_id: np.ndarray
    test_x: np.ndarray
    test_id: np.ndarray


def prepare_fold(subject: Subject, split: Split) -> Fold:
    """Standardise the responses with training statistics, then average the repetitions.

    Each voxel is z-scored in each session with mean and standard deviation of that session's
    *training* trials; test trials never enter a statistic, but in a session that holds nothing
    but one of the subject's further test sets. A voxel that is constant or not finite in such a
    session is 0 there, its mean in training: it tells nothing, and the decoders stay as they are.
    One session is in memory at a time.

    Parameters
    ----------
    subject : Subject
    split : Split

    Returns
    -------
    Fold
        Rows are in the order of `split.train` and `split.test`. If the subject's `repetitions`
        are kept, a training stimulus has as many neighbouring rows as trials; trials of a test
        stimulus are averaged all the same, for one picture is reconstructed from them.

    Raises
    ------
    InputError
        If a stimulus of the split was never seen, a session has fewer than two training trials,
        or a voxel is constant or not finite in the training trials of a session.
    """
    ids = np.concatenate([split.train, split.test]).astype(np.int64)
    unseen = ids[subject.n_repetitions(ids) == 0]
    if unseen.size:
        where = f"{subject.name}: stimulus {unseen[0]} of split {split.name}"
        raise InputError(f"{where} was not seen in the loaded sessions: load more")
    places = {one: place for place, one in enumerate(ids.tolist())}
    row = np.array([places.get(one, -1) for one in subject.stimulus_id.tolist()])
    n_train, train_id = len(split.train), ids[: len(split.train)]
    training = (row >= 0) & (row < n_train)
    if subject.repetitions == "keep":
        trials = np.flatnonzero(training)
        trials = trials[np.argsort(row[trials], kind="stable")]
        row[row >= n_train] += len(trials) - n_train
        row[trials] = np.arange(len(trials))
        n_train, train_id = len(trials), subject.stimulus_id[trials]
    total = np.zeros((n_train + len(split.test), subject.responses.shape[1]), np.float32)
    usual = subject.sessions
    for session in np.unique(subject.session):
        trials = np.flatnonzero((subject.session == session) & (row >= 0))
        if trials.size:
            x, where = subject.responses[trials], f"{subject.name}, session {session}"
            known = training[trials] if session in usual else None
            z = _standardise(x, known, where)
            # np.add.at takes a hundred times as long.
            for place, values in zip(row[trials], z, strict=True):
                total[place] += values
    total /= np.bincount(row[row >= 0], minlength=len(total))[:, None].astype(np.float32)
    return Fold(split.name, total[:n_train], train_id, total[n_train:], ids[len(split.train) :])


def training_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each voxel's mean and standard deviation, and whether it changes at all.

    Parameters
    ----------
    x : array of shape (n_trials, n_voxels)
        Training trials of a session.

    Returns
    -------
    mean, sd : float64 arrays of shape (n_voxels,)
    changes : bool array of shape (n_voxels,)
        False where values are not finite, too.
    """
    mean, sd = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    # Rounding leaves a constant voxel with a tiny non-zero spread, hence the relative bound.
    return mean, sd, np.isfinite(sd) & (sd > 1e-6 * np.abs(mean))


def _standardise(x: np.ndarray, training: np.ndarray | None, where: str) -> np.ndarray:
    """Z-score trials (n_trials, n_voxels) with the statistics of those that are `training`.

    Without any, with those of all; voxels of no use are zero then.
    """
    if training is None:
        mean, sd, changes = training_moments(x)
        return np.where(changes, (x - mean) / np.where(changes, sd, 1), 0).astype(np.float32)
    if training.sum() < 2:
        n = int(training.sum())
        raise InputError(f"{where}: {n} training trials; it takes 2 to standardise. Leave it out.")
    mean, sd, changes = training_moments(x[training])
    bad = np.flatnonzero(~changes)
    if bad.size:
        n = f"{bad.size} of {sd.size} voxels are constant or not finite in the training trials"
        raise InputError(f"{where}: {n} (the first is voxel {bad[0]}). Leave them out.")
    return ((x - mean) / sd).astype(np.float32)


def noise_ceiling(ncsnr: np.ndarray, n: float | np.ndarray = 1) -> np.ndarray:
    r"""Share of a voxel's variance that any model could explain, in per cent.

    .. math:: 100 \, \frac{s^2}{s^2 + 1/n}

    Parameters
    ----------
    ncsnr : array
        Signal-to-noise ratio `s` of a single trial (Allen et al. 2022).
    n : float
        How many repetitions are averaged; for pictures shown differently often, the
        `mean_repetitions` of them.

    Returns
    -------
    array of the shape of `ncsnr`
    """
    power = np.square(np.asarray(ncsnr, dtype=np.float64))
    return 100 * power / (power + 1 / np.asarray(n))


def mean_repetitions(count: np.ndarray) -> float:
    r"""Harmonic mean of how often pictures were shown, for their noise ceiling.

    Averaging `n` trials leaves 1/n of the noise variance, so it is 1/n that is averaged over the
    pictures: with A pictures shown three times, B twice and C once, NSD's manual has

    .. math:: \frac{1}{n} = \frac{A/3 + B/2 + C/1}{A + B + C}

    Parameters
    ----------
    count : int array of shape (n_pictures,)
        Trials of each picture; at least 1.

    Returns
    -------
    float
    """
    return float(1 / np.mean(1 / np.asarray(count, dtype=np.float64)))


def estimate_ncsnr(
    responses: np.ndarray, stimulus_id: np.ndarray, session: np.ndarray | None = None
) -> np.ndarray:
    """Estimate each voxel's noise-ceiling signal-to-noise ratio from repeated trials.

    As Allen et al. (2022) do: z-score each voxel within a session; the noise variance is the
    variance over the repetitions of a stimulus, averaged over stimuli; the signal variance is
    what is left of the total, and not below zero.

    Parameters
    ----------
    responses : array of shape (n_trials, n_voxels)
    stimulus_id : int array of shape (n_trials,)
    session : int array of shape (n_trials,), optional
        Without it, all trials are one session.

    Returns
    -------
    float32 array of shape (n_voxels,)
        Zero for a voxel that never changes.

    Raises
    ------
    InputError
        If no stimulus was shown twice.
    """
    session = np.ones(len(stimulus_id), int) if session is None else np.asarray(session)
    unique, rows, count = np.unique(stimulus_id, return_inverse=True, return_counts=True)
    repeated = count > 1
    if not repeated.any():
        raise InputError("no stimulus was shown twice: a noise ceiling needs repetitions")
    total, squares = np.zeros((2, len(unique), responses.shape[1]))
    for value in np.unique(session):
        trials = np.flatnonzero(session == value)
        x = responses[trials].astype(np.float64)
        sd = x.std(axis=0, ddof=1)
        x = (x - x.mean(axis=0)) / np.where(sd > 0, sd, 1)
        np.add.at(total, rows[trials], x)
        np.add.at(squares, rows[trials], np.square(x))
    n = count[repeated, None]
    within = (squares[repeated] - np.square(total[repeated]) / n) / (n - 1)
    noise = within.mean(axis=0)
    noise = np.where(noise > 0, noise, 1)  # a voxel that never changes has no signal
    return np.sqrt(np.maximum(1 - noise, 0) / noise).astype(np.float32)


def single_trial_ncsnr(subject: Subject) -> np.ndarray:
    """Return the dataset's own signal-to-noise ratios, or estimate them where it gives none.

    Returns
    -------
    float32 array of shape (n_voxels,)
        NaN where they cannot be known: none are given, and no stimulus was shown twice.
    """
    if subject.ncsnr is not None:
        return subject.ncsnr
    if subject.n_repetitions(subject.stimulus_ids).max() < 2:
        return np.full(subject.responses.shape[1], np.nan, np.float32)
    return estimate_ncsnr(subject.responses[:], subject.stimulus_id, subject.session)


# --- early and higher areas, by the names of regions --------------------------------------

EARLY_AREAS, HIGHER_AREAS = "early areas", "higher areas"
# What stands before a name: the atlas, the side, "ROI"; as in lh.V1, L_V1_ROI, LHV1, laion-EVC.
BEFORE = re.compile(
    r"^(.*:)?((roi|laion|[lr]h?|left|right)[\W_]+|[lr]h(?=v\d|vp|early)|roi(?=v\d))*", re.I
)
# Areas that answer to edges and colours at one place. VP is the lower half of V3; all three are
# "early" in NSD's atlas `streams` and EarlyVis in BOLD5000, hOc1 to hOc3 in the Julich atlas, and
# LVC, lower visual cortex, in Kamitani's recordings.
FIRST = r"v[123]([vd]|ventral|dorsal)?|vp|early(vis\w*)?|evc|lvc|ba1[78]|hoc[12]|hoc3[vd]"
# Areas that see the picture itself, too, rather than what is in it.
NEXT = r"v3[ab]{1,2}|h?v4([vd]|ventral|dorsal)?|hoc4\w*"


def is_early(name: str, narrow: bool = False) -> bool:
    """Whether a region is an early visual area, by its name.

    Parameters
    ----------
    name : str
        As atlases and recordings have it: "V1", "V1v", "lh.V1", "L_V1_ROI", "ROI_V1", "early".
    narrow : bool
        Only V1, V2 and V3 count, not V3A, V3B and V4.
    """
    known = FIRST if narrow else f"{FIRST}|{NEXT}"
    # After the name may come a side or a kind of file: V1_exvivo, V1-lh.
    return bool(re.fullmatch(rf"({known})([\W_].*)?", BEFORE.sub("", name), re.I))


def area_kind(name: str) -> str:
    """Return `EARLY_AREAS` or `HIGHER_AREAS`, by the name of a region."""
    return EARLY_AREAS if is_early(name) else HIGHER_AREAS


def describe_areas(roi: Mapping[str, np.ndarray]) -> str:
    """Say which regions are taken for early and which for higher areas, by their names."""
    kinds = _by_kind(roi).items()
    return "; ".join(f"{kind}: {', '.join(names) or 'none'}" for kind, names in kinds)


def area_masks(roi: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the voxels of all early areas and of all higher ones, where there are both.

    Parameters
    ----------
    roi : mapping of name to bool array, shape (n_voxels,)

    Returns
    -------
    dict of name to bool array, shape (n_voxels,)
        `EARLY_AREAS` and `HIGHER_AREAS`, or nothing.
    """
    kinds = _by_kind(roi)
    both = kinds.items() if all(kinds.values()) else ()
    return {kind: np.any([roi[name] for name in names], axis=0) for kind, names in both}


def _by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    kinds = (EARLY_AREAS, HIGHER_AREAS)
    return {kind: [name for name in names if area_kind(name) == kind] for kind in kinds}
