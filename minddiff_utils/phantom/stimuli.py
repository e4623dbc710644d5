"""Chooses the experiment's pictures: no two alike, and none in the test that training has shown.

Scenes differ by many numbers, but contrast patterns come from few forms. Those that training shows,
to the models or to a subject, would be no test.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from minddiff_utils.phantom import world

NEAR = 10  # patches of 100; patterns that differ in fewer are near twins
N_TRIES = 200  # spare pictures among which one of the same kind is sought
N_SPARE = 1000  # for each stimulus


def choose_pictures(test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Choose the picture of each stimulus: the one of its own id, where nothing speaks against it.

    No pattern is chosen twice. A pattern of the test differs in `NEAR` patches or more from all
    that the phantom's models were trained on and from all training patterns of all subjects.
    What does not is replaced by another pattern, of the same kind while there are any.

    Parameters
    ----------
    test, train : int arrays of shapes (n_test,) and (n_subjects * n_train,)
        Stimulus ids, from 0; together they are 0 to n - 1. What is chosen for a subject does not
        depend on those with higher ids.

    Returns
    -------
    int64 array of shape (n,)
        Of each stimulus, the id of its picture in the world.
    """
    chosen = np.arange(len(test) + len(train))
    shown: set[bytes] = set()

    def choose(ids: np.ndarray, others: np.ndarray) -> list[np.ndarray]:
        patterns = []
        for stimulus in np.sort(ids):
            for picture in _candidates(int(stimulus)):
                pattern = world.scene(picture).pattern
                if pattern is None:
                    break
                if pattern.tobytes() not in shown and _far(pattern, others):
                    chosen[stimulus] = picture
                    shown.add(pattern.tobytes())
                    patterns.append(pattern.ravel())
                    break
        return patterns

    tested = choose(test, trained_patterns())
    choose(train, np.reshape(tested, (-1, 100)))
    return chosen


@cache
def trained_patterns() -> np.ndarray:
    """Return the patterns that the models were trained on, each once; bool (n, 100)."""
    patterns = (world.scene(i).pattern for i in world.TRAINING_IDS)
    return np.unique([each.ravel() for each in patterns if each is not None], axis=0)


def _far(pattern: np.ndarray, others: np.ndarray) -> bool:
    """Return whether a pattern differs from all `others`, bool (n, 100), in enough patches."""
    return (pattern.ravel() != others).sum(axis=1).min(initial=pattern.size) >= NEAR


def _candidates(stimulus: int) -> Iterator[int]:
    """Yield pictures that may be shown as a stimulus, best first."""
    yield stimulus
    kind = world.scene(stimulus).pattern_kind
    first = world.FIRST_WIDER_ID + N_SPARE * stimulus
    for picture in range(first, first + N_SPARE):
        if world.scene(picture).pattern_kind == kind or picture >= first + N_TRIES:
            yield picture
