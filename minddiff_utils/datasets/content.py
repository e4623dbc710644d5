"""What the pictures and responses of a recording give away about how they were written."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minddiff_utils.io import Ids, InputError

if TYPE_CHECKING:  # they read responses, which are checked here
    from minddiff_utils.datasets.subject import Split, Stimuli, Subject

BLOCK_BYTES = 32 * 2**20  # of pictures in memory at once
SAMPLE = 200  # trials from which it is judged how often equal values come by chance
BY_CHANCE = 0.01  # equal trials that are expected; above it, they say nothing


def check_content(path: Path, subject: Subject, hint: str = "") -> Subject:
    """Return `subject`, or raise InputError with the first of its `content_faults`."""
    faults = content_faults(subject)
    if faults:
        raise InputError(f"{path}: {faults[0]} {hint}".rstrip())
    return subject


def listed(unit: str, places: Ids) -> str:
    """Write "voxel 3" or "voxels 3, 4, 5 and 7 more"."""
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return f"{unit}{'s' * (len(places) > 1)} {', '.join(str(int(p)) for p in places[:3])}{more}"


def content_faults(subject: Subject) -> list[str]:
    """Say in words what is wrong with the values of a recording, given that its shapes fit.

    Parameters
    ----------
    subject : Subject
        With its responses in memory. Pictures are read once, some at a time.

    Returns
    -------
    list of str
        A sentence or two a fault: pictures of one colour, or of values 0 and 1; a test picture
        that is a training picture by its pixels; trials of zeros, or equal to one another.
    """
    ids = subject.stimulus_ids
    highest, flat, keys = 0, [], []
    for some, pictures in stream_pictures(subject.stimuli, ids):
        highest = max(highest, int(pictures.max()))
        flat += some[flat_pictures(pictures)].tolist()
        keys += digests(pictures)
    fault = ""
    if highest <= 1:
        fault = (
            f"`pictures` hold values from 0 to {highest}; expected 0 to 255. Were they cast from "
            "numbers between 0 and 1? Write np.uint8(np.round(255 * pictures)) of those."
        )
    elif flat:
        fault = f"one colour throughout in {listed('picture', flat)}, never written? Leave out."
    copied = _shared_pictures(subject.splits, dict(zip(ids.tolist(), keys, strict=True)))
    faults = (fault, copied if highest > 1 else "", trial_fault(subject.responses[:]))
    return [one for one in faults if one]


def stream_pictures(stimuli: Stimuli, ids: Ids) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids and pictures, as many at a time as 32 MiB hold."""
    ids = np.asarray(ids, np.int64)
    step = max(1, BLOCK_BYTES // stimuli.pictures(ids[:1]).nbytes) if len(ids) else 1
    for first in range(0, len(ids), step):
        yield ids[first : first + step], stimuli.pictures(ids[first : first + step])


def flat_pictures(pictures: np.ndarray) -> np.ndarray:
    """Return which pictures (n, height, width, 3) have one colour throughout; bool (n,)."""
    return (pictures == pictures[:, :1, :1]).all(axis=(1, 2, 3))


def picture_groups_by_pixels(stimuli: Stimuli, ids: Ids) -> np.ndarray:
    """Label stimuli so that those with the same pixels, under whatever ids, share a label.

    Parameters
    ----------
    stimuli : Stimuli
        Its pictures are read once, some at a time.
    ids : sequence of int
        Stimulus ids (n,).

    Returns
    -------
    int64 array of shape (n,)
        The least of the ids that have the same pixels: `groups` of a cross-validation that must
        not have copies of a picture in two folds.
    """
    keys = [key for _, pictures in stream_pictures(stimuli, ids) for key in digests(pictures)]
    least = {key: int(one) for one, key in sorted(zip(ids, keys, strict=True), reverse=True)}
    return np.array([least[key] for key in keys], np.int64)


def digests(rows: Iterable[np.ndarray]) -> list[bytes]:
    """Return the SHA-256 of each array: equal for equal pictures, or trials."""
    return [hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in rows]


def _shared_pictures(splits: Iterable[Split], keys: dict[int, bytes]) -> str:
    """Say which test pictures are training pictures too, in the first split that has some."""
    for split in splits:
        trained = {keys[i]: i for i in split.train[::-1].tolist()}
        copies = [i for i in split.test.tolist() if keys[i] in trained]
        if copies:
            return (
                f"tested and trained with the same pixels: {listed('test picture', copies)} (the "
                f"first is training picture {trained[keys[copies[0]]]}). Let all copies of a "
                "picture train or all test, best under one number."
            )
    return ""


def trial_fault(x: np.ndarray) -> str:
    """Say which trials were not written, or written twice; nothing if that may be chance.

    Parameters
    ----------
    x : array of shape (n_trials, n_voxels)

    Returns
    -------
    str
        Empty if no trial is zero throughout or equal to another in all voxels, and no voxels are
        zero in the very same trials. Few voxels with few values, such as counts, agree by chance:
        trials that may are not told.
    """
    zero = np.flatnonzero(~x.any(axis=1))
    _, first, origin = np.unique(digests(x), return_index=True, return_inverse=True)
    origin = first[origin]
    again = np.setdiff1d(np.flatnonzero(origin != np.arange(len(x))), zero)
    distinct = np.setdiff1d(origin, zero)
    sample = x[distinct[:: max(1, -(-len(distinct) // SAMPLE))]]
    if len(sample) < 2:
        return ""
    if zero.size and len(x) * _chance(sample == 0) < BY_CHANCE:
        return f"`responses` are zero in all voxels for {listed('trial', zero)}: leave them out."
    if again.size and math.comb(len(x), 2) * _chance(sample[1:] == sample[:-1]) < BY_CHANCE:
        return (
            f"`responses` repeat, value by value, in {listed('trial', again)} (the first equals "
            f"trial {origin[again[0]]}). Give each trial its own, averaged ones one row a picture."
        )
    return _zero_block(x)


def _zero_block(x: np.ndarray) -> str:
    """Say where some voxels are zero in the very same trials: half of a write was cut off."""
    zero = x == 0
    zero = zero[:, zero.any(axis=0) & ~zero.all(axis=0)]
    keys = digests(np.packbits(zero, axis=0).T)
    _, first, count = np.unique(keys, return_index=True, return_counts=True)
    share = zero[:, first].mean(axis=0)
    agree = (share**2 + (1 - share) ** 2) ** len(x)  # two voxels, in all trials, by chance
    block = np.flatnonzero((count > 1) & (agree * math.comb(len(keys), 2) < BY_CHANCE))
    if not block.size:
        return ""
    largest = block[count[block].argmax()]
    trials = np.flatnonzero(zero[:, first[largest]])
    return (
        f"`responses` are zero for {count[largest]} of {x.shape[1]} voxels together in "
        f"{listed('trial', trials)}, never written? Leave out these trials, or these voxels."
    )


def _chance(hits: np.ndarray) -> float:
    """Chance that all voxels hit at once, each as often as in `hits` (n, n_voxels) or 1 in n."""
    return float(np.prod(np.maximum(hits.mean(axis=0), 1 / len(hits))))
