"""Every method and baseline that the tables know: one row each, from which all others derive.

A new baseline needs a row here and its function in `baselines.FUNCTIONS`. Nothing is imported
from the package, so that parameters can be checked against this table.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Row(NamedTuple):
    """What one row of the tables is.

    `label`: its name in tables. `sees`: what it may look at, "brain" (the responses to the test
    pictures), "truth" (the test pictures themselves) or "nothing" of either. `notebook`: which
    makes it. `short`: its name where two methods are compared.
    """

    label: str
    sees: str
    notebook: str
    short: str = ""


# In the order of the tables: the paper's rows, what others do with the same parts, then baselines
# from the best that can be had to none of the brain.
ROWS = {
    "no_z": Row("no z", "brain", "04_stage2"),
    "no_c": Row("no c", "brain", "04_stage2"),
    "stage1": Row("no stage 2", "brain", "03_stage1", "stage 1"),
    "algorithm_1": Row(
        "both stages, Algorithm 1 as published", "brain", "04_stage2", "Algorithm 1"
    ),
    "stage2": Row("both stages, this book's solver", "brain", "04_stage2", "both stages"),
    "takagi": Row("Takagi & Nishimoto's way", "brain", "06_controls"),
    "neuraldiffuser": Row("NeuralDiffuser's schedule", "brain", "06_controls"),
    "ceiling": Row("true features", "truth", "06_controls", "ceiling"),
    "blur": Row("blurred truth", "truth", "06_controls"),
    "retrieval": Row("nearest training picture", "brain", "06_controls"),
    "mean": Row("mean picture", "nothing", "06_controls"),
    "mean_features": Row("mean features", "nothing", "06_controls"),
    "shuffled": Row("shuffled responses", "nothing", "04_stage2"),
    "prior": Row("no brain at all", "nothing", "06_controls"),
}
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
