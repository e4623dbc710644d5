"""NSD's experiment: which sessions there are, and which picture was shown in which trial."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minddiff_utils.datasets.matlab import read_matlab
from minddiff_utils.datasets.nsd.tree import NsdTree
from minddiff_utils.io import InputError

# Test pictures of the two protocols in use, and the sessions that show them: 37 were public at
# first, all 40 are now.
PROTOCOLS = {982: 37, 1000: 40}

Sessions = int | str | Sequence[int] | None


@dataclass(frozen=True)
class Design:
    """Which picture was to be shown when; ids count from 0.

    Parameters
    ----------
    pictures : int64 array of shape (n_pictures,)
        Ids of the pictures of this subject, NSD's `subjectim`.
    order : int64 array of shape (n_trials,)
        Which of them was to be shown in each trial of the experiment, NSD's `masterordering`.
    n_shared : int
        So many first of the pictures are those that all subjects saw.
    """

    pictures: np.ndarray
    order: np.ndarray
    n_shared: int

    @property
    def stimulus_id(self) -> np.ndarray:
        """int64 (n_trials,): all trials as planned, session after session."""
        return self.pictures[self.order]


def choose_sessions(
    tree: NsdTree, sessions: Sessions = None, protocol: int | None = None
) -> list[int]:
    """Return the numbers of the sessions to read, sorted; the betas of each are there.

    Parameters
    ----------
    tree : NsdTree
    sessions : int, str, sequence of int, or None
        The first so many; exactly these, from 1, also as text such as "1-10,12"; or all.
    protocol : {982, 1000, None}
        Test pictures of a protocol: 982 takes the first 37 sessions, 1000 the first 40.

    Raises
    ------
    InputError
        If a session is missing, or the parameters make no sense.
    """
    found = tree.sessions
    if not found:
        raise InputError(f"{tree.betas} has no betas_session01.hdf5, …: fetch the subject's betas")
    if protocol is not None:
        if protocol not in PROTOCOLS or sessions is not None:
            raise InputError(
                f"protocol={protocol!r} with sessions={sessions!r}: give protocol 982 (the first "
                "37 sessions) or 1000 (the first 40) without sessions, or sessions alone"
            )
        sessions = PROTOCOLS[protocol]
    wanted = _parse_sessions(found[-1] if sessions is None else sessions)
    missing = [number for number in wanted if number not in found]
    if missing:
        what = "name the sessions to read with `sessions`"
        if protocol is not None:
            what = f"leave out `protocol`, whose {protocol} test pictures take {sessions} sessions"
        raise InputError(
            f"{tree.session(missing[0])} is missing; {tree.subject} has sessions "
            f"{_spans(found)}. Fetch it, or {what}."
        )
    return wanted


def _parse_sessions(sessions: int | str | Sequence[int]) -> list[int]:
    """Return the numbers that were meant, sorted, each once."""
    if isinstance(sessions, int):
        text = f"1-{sessions}"
    else:
        text = sessions if isinstance(sessions, str) else ",".join(map(str, np.ravel(sessions)))
    parts = [re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part) for part in text.split(",")]
    ends = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    numbers = sorted({number for first, last in ends for number in range(first, last + 1)})
    if not all(parts) or not numbers or numbers[0] < 1:
        raise InputError(
            f"sessions={sessions!r}: expected how many (from the first), or which, such as 1-10,12"
        )
    return numbers


def _spans(numbers: Sequence[int]) -> str:
    """Write sorted numbers shortly: "1-10, 12"."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)


def read_design(tree: NsdTree) -> Design:
    """Read which picture was to be shown in which trial.

    Returns
    -------
    Design

    Raises
    ------
    InputError
        If the file is missing or damaged, lacks a variable, or has no such subject.
    """
    names = ("masterordering", "subjectim", "sharedix")
    hint = "It is part of NSD's nsddata/experiments/nsd."
    content = read_matlab(tree.design, names, hint)
    order = content["masterordering"].ravel().astype(np.int64)
    pictures = content["subjectim"].astype(np.int64)
    row = int(tree.subject[4:]) - 1
    if row >= len(pictures) or order.min() < 1 or order.max() > pictures.shape[1]:
        raise InputError(
            f"{tree.design}: subjectim has shape {pictures.shape} and masterordering values "
            f"{order.min()} to {order.max()}; expected a row for {tree.subject} and a column for "
            "every value"
        )
    # MATLAB counts from 1, NSD's own ids from 0.
    return Design(pictures[row] - 1, order - 1, content["sharedix"].size)


def read_trials(
    tree: NsdTree, n_trials: Mapping[int, int], protocol: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find what was shown in each trial of some sessions, all equally long, as was planned.

    Parameters
    ----------
    tree : NsdTree
    n_trials : dict of int to int
        How many trials the betas of each session have; the keys are the sessions' numbers.
    protocol : {982, 1000, None}
        How many test pictures there must be.

    Returns
    -------
    stimulus_id, session : int64 arrays of shape (n_trials,)
        What was shown, ids from 0, and in which session, from 1.
    shared : bool array of shape (n_trials,)
        Whether the picture is one that all subjects saw.

    Raises
    ------
    InputError
        If a session has another number of trials than the others or than was planned, or the
        number of test pictures is not that of the protocol.
    """
    design = read_design(tree)
    usual = max(n_trials.values())
    for number, n in n_trials.items():
        if n != usual or number * n > len(design.order):
            raise InputError(
                f"{tree.session(number)} has {n} trials; expected {usual} in each session and "
                f"{len(design.order)} in all, as in {tree.design}. Fetch it again."
            )
    numbers = np.array(list(n_trials), np.int64)
    order = design.order[((numbers[:, None] - 1) * usual + np.arange(usual)).ravel()]
    n_test = len(np.unique(order[order < design.n_shared]))
    if protocol is not None and n_test != protocol:
        raise InputError(
            f"protocol={protocol}: {tree.subject} saw {n_test} of the shared pictures in these "
            f"sessions, as {tree.design} has it. Leave protocol out to take these."
        )
    return design.pictures[order], np.repeat(numbers, usual), order < design.n_shared
