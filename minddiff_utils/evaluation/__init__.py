"""What the images are worth: metrics, controls, statistics, tables.

Below, what follows from `settings.ROWS`, the methods and baselines that the tables know.
"""

from collections.abc import Iterable

from minddiff_utils.settings import ROWS

METHODS = {name: row.label for name, row in ROWS.items()}
# Baselines that know nothing of what was seen: they never look at the test responses, or their
# decoders were fitted to the wrong pictures. The best of them is the floor.
BLIND = tuple(name for name, row in ROWS.items() if row.sees == "nothing")
# Both stages, whichever solver ran: where a run has several, the first stands for the method.
FULL = ("stage2", "algorithm_1")


def full_method(names: Iterable[str]) -> str | None:
    """Return the method of `FULL` that stands for both stages; None if neither ran."""
    names = set(names)
    return next((name for name in FULL if name in names), None)


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Sort names as in `METHODS` or `METRICS`; unknown ones follow in the order they came."""
    names = list(dict.fromkeys(names))
    return [name for name in known if name in names] + [n for n in names if n not in known]
