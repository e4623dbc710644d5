"""NSD's experiment: which sessions there are, and which picture was shown in which trial."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minddiff_utils.datasets.matlab import read_matlab
from minddiff_utils.datasets.nsd.tree import NsdTree
from minddiff_utils.datasets.reading import read_table
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
    stimulus_id : int64 array of shape (n_trials,)
        All trials of the experiment as planned, session after session.
    shared : bool array of shape (n_trials,)
        Whether the picture is one that all subjects saw.
    subjectim : int64 array of shape (n_pictures,)
        The subject's picture for each value of `masterordering`, from 0.
    n_shared : int
        So many first values of `masterordering` are shared pictures.
    """

    stimulus_id: np.ndarray
    shared: np.ndarray
    subjectim: np.ndarray
    n_shared: int


@dataclass(frozen=True)
class Trials:
    """What was shown in the trials of the sessions read; ids count from 0.

    `stimulus_id` and `session` are int64 (n_trials,), `shared` is bool (n_trials,).
    """

    stimulus_id: np.ndarray
    shared: np.ndarray
    session: np.ndarray


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
    wanted = list(range(1, found[-1] + 1)) if sessions is None else _parse_sessions(sessions)
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
    wrong = InputError(
        f"sessions={sessions!r}: expected how many (from the first), or which, such as 1-10,12"
    )
    if isinstance(sessions, str):
        parts = [re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", p) for p in sessions.split(",")]
        if not all(parts):
            raise wrong
        ends = [(int(part[1]), int(part[2] or part[1])) for part in parts]
        numbers = [number for first, last in ends for number in range(first, last + 1)]
    elif isinstance(sessions, int):
        numbers = list(range(1, sessions + 1))
    elif isinstance(sessions, Sequence):
        numbers = [int(number) for number in sessions]
    else:
        raise wrong
    if not numbers or min(numbers) < 1:
        raise wrong
    return sorted(set(numbers))


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
    path = tree.design
    names = ("masterordering", "subjectim", "sharedix")
    content = read_matlab(path, names, "It is part of NSD's nsddata/experiments/nsd.")
    order = content["masterordering"].ravel().astype(np.int64)
    pictures = content["subjectim"].astype(np.int64)
    row = int(tree.subject[4:]) - 1
    if row >= len(pictures) or order.min() < 1 or order.max() > pictures.shape[1]:
        raise InputError(
            f"{path}: subjectim has shape {pictures.shape} and masterordering values {order.min()} "
            f"to {order.max()}; expected a row for {tree.subject} and a column for every value"
        )
    # MATLAB counts from 1, NSD's own ids from 0.
    own = pictures[row] - 1
    n_shared = content["sharedix"].size
    return Design(own[order - 1], order <= n_shared, own, n_shared)


def read_trials(tree: NsdTree, n_trials: Mapping[int, int], protocol: int | None = None) -> Trials:
    """Find what was shown in each trial of some sessions.

    `responses.tsv` says it trial by trial, and so allows for a session that was cut short. Where
    that file is not there, the sessions must be equally long and are taken as planned.

    Parameters
    ----------
    tree : NsdTree
    n_trials : dict of int to int
        How many trials the betas of each session have; the keys are the sessions' numbers.
    protocol : {982, 1000, None}
        How many test pictures there must be.

    Returns
    -------
    Trials

    Raises
    ------
    InputError
        If a session has another number of trials than was recorded or planned, the files
        contradict one another, or the number of test pictures is not that of the protocol.
    """
    design = read_design(tree)
    trials = (_recorded if tree.responses.exists() else _planned)(tree, design, n_trials)
    n_test = len(np.unique(trials.stimulus_id[trials.shared]))
    if protocol is not None and n_test != protocol:
        raise InputError(
            f"protocol={protocol}: {tree.subject} saw {n_test} of the shared pictures in sessions "
            f"{_spans(list(n_trials))}, as {tree.design} has it. Leave protocol out to take these."
        )
    return trials


def _recorded(tree: NsdTree, design: Design, n_trials: Mapping[int, int]) -> Trials:
    """Take each session's trials from `responses.tsv`, checked against the design."""
    path = tree.responses
    table = read_table(path, "\t", ("SESSION", "73KID", "10KID"))
    rows = [np.flatnonzero(table["SESSION"] == number) for number in n_trials]
    for (number, n), here in zip(n_trials.items(), rows, strict=True):
        if not here.size:
            raise InputError(f"{path} has no trials of session {number}: fetch it again")
        if len(here) != n:
            raise InputError(
                f"{tree.session(number)} has {n} trials; expected {len(here)}, as {path} has them. "
                "One of the two is damaged: fetch it again."
            )
    picture, place = (table[name].to_numpy()[np.concatenate(rows)] for name in ("73KID", "10KID"))
    place = place.astype(np.int64) - 1
    picture = picture.astype(np.int64) - 1
    known = (place >= 0) & (place < len(design.subjectim))
    if not known.all() or (design.subjectim[place] != picture).any():
        raise InputError(
            f"{path} and {tree.design} name different pictures for {tree.subject}: one of them is "
            "damaged or of another experiment. Fetch both again."
        )
    session = np.repeat(np.array(list(n_trials), np.int64), [len(here) for here in rows])
    return Trials(picture, place < design.n_shared, session)


def _planned(tree: NsdTree, design: Design, n_trials: Mapping[int, int]) -> Trials:
    """Take the trials of equally long sessions from the design."""
    (first, n), *others = n_trials.items()
    for number, count in n_trials.items():
        if count != n or number * n > len(design.stimulus_id):
            raise InputError(
                f"{tree.session(number)} has {count} trials; expected {n} as in session {first}, "
                f"and {len(design.stimulus_id)} trials in all sessions as in {tree.design}. If it "
                f"was cut short, {tree.responses} is needed: fetch it."
            )
    places = np.concatenate([(number - 1) * n + np.arange(n) for number in n_trials])
    session = np.repeat(np.array(list(n_trials), np.int64), n)
    return Trials(design.stimulus_id[places], design.shared[places], session)
