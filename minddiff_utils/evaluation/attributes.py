"""What a picture shows, read from its captions, and what pictures that fail have in common."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from minddiff_utils.evaluation.statistics import group_difference, holm
from minddiff_utils.evaluation.tables import as_markdown, interval_text, wide_table
from minddiff_utils.io import InputError

FEWEST = 3  # pictures with a trait, and without it, below which nothing is said about it


def read_words(text: str) -> dict[str, tuple[str, ...]]:
    """Read a parameter such as "tree, house, night=dark/night": names and the words that tell them.

    Parameters
    ----------
    text : str
        Names with commas between them; after `=`, the words with `/` between them. A name alone is
        its own word.

    Returns
    -------
    dict of name to tuple of words, lower case

    Raises
    ------
    InputError
        If a name occurs twice or has an empty word.
    """
    found: dict[str, tuple[str, ...]] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, words = item.partition("=")
        name = name.strip()
        wanted = tuple(word.strip().lower() for word in (words or name).split("/"))
        if not name or name in found or not all(wanted):
            raise InputError(
                f"{item!r} in {text!r}: expected different names, each alone or as "
                "name=word/other word."
            )
        found[name] = wanted
    return found


def attribute_table(
    captions: Sequence[Sequence[str]], kinds: str = "", sizes: str = "", scenes: str = ""
) -> pd.DataFrame:
    """Tell from its captions what each picture shows.

    A picture has a trait if at least half of its captions hold one of the trait's words. The number
    of things is how often words for kinds occur in a caption, the median over captions.

    Parameters
    ----------
    captions : sequence of sequences of str
        One a picture.
    kinds, sizes, scenes : str
        Names and words as `read_words` reads them; "" leaves the family out.

    Returns
    -------
    DataFrame of bool
        A row a picture, in the given order; columns (family, trait).
    """
    columns: dict[tuple[str, str], np.ndarray] = {}
    for family, given in (("kind", kinds), ("size", sizes), ("scene", scenes)):
        for name, words in read_words(given).items():
            counts = _counts(captions, words)
            columns[family, name] = np.array([np.mean(each > 0) >= 0.5 for each in counts])
    if kinds:
        every = [word for words in read_words(kinds).values() for word in words]
        n = np.array([int(np.median(each)) for each in _counts(captions, every)])
        columns |= {("things", str(count)): n == count for count in np.unique(n)}
    table = pd.DataFrame(columns, index=range(len(captions)), dtype=bool)
    return table.set_axis(pd.MultiIndex.from_tuples(columns, names=["family", "trait"]), axis=1)


def _counts(captions: Sequence[Sequence[str]], words: Sequence[str]) -> list[np.ndarray]:
    """How often whole words, or their plurals, occur in each picture's captions."""
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})s?\b")
    counts = ([len(pattern.findall(text.lower())) for text in each] for each in captions)
    return [np.array(each or [0]) for each in counts]


def common_traits(
    values: pd.DataFrame, stimulus_id: np.ndarray, attributes: pd.DataFrame, seed: int = 0
) -> pd.DataFrame:
    """Compare the pictures that have a trait with those that lack it.

    Parameters
    ----------
    values : DataFrame
        `stimulus_id, metric, value` of one method.
    stimulus_id : int (n,)
        Of the rows of `attributes`.
    attributes : DataFrame of bool
        From `attribute_table`.
    seed : int

    Returns
    -------
    DataFrame
        `family, trait, metric, n, difference, low, high, p_holm`: n with the trait, difference of
        the means with its 95 % bootstrap interval, and the p of a permutation test corrected for
        all traits and metrics. Traits of fewer than three pictures, or that fewer than three lack,
        are left out. The lowest difference comes first.
    """
    rows = []
    for metric, group in values.groupby("metric", sort=False):
        value = group.set_index("stimulus_id")["value"].reindex(stimulus_id).to_numpy()
        for family, trait in attributes.columns:
            has = attributes[family, trait].to_numpy()
            if FEWEST <= has.sum() <= len(has) - FEWEST:
                found = group_difference(value[has], value[~has], seed=seed)
                row = {"family": family, "trait": trait, "metric": metric, "n": int(has.sum())}
                rows.append(row | found)
    columns = ["family", "trait", "metric", "n", "difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = holm(table.pop("p"))
    return table.sort_values(["metric", "difference"], kind="stable", ignore_index=True)


def traits_table(traits: pd.DataFrame) -> pd.DataFrame:
    """Write `common_traits` for people: a trait a row, a metric a column.

    Returns
    -------
    DataFrame of str
        The trait with the lowest difference in the first metric comes first.
    """
    if traits.empty:
        table = pd.DataFrame(index=pd.Index([], name="trait"))
        table.attrs["note"] = (
            "Too few pictures show any of `kinds`, `sizes` or `scenes` to compare."
        )
        return table
    numbers = traits.assign(text="")
    for row in traits.itertuples():
        star = " *" if row.p_holm < 0.05 else ""
        text = interval_text(row.difference, row.low, row.high, "+") + star
        numbers.loc[row.Index, ["trait", "text"]] = as_markdown(f"{row.family}: {row.trait}"), text
    return wide_table(
        numbers,
        ["trait"],
        "Mean over the pictures that show it minus the mean over all others, with its 95\u00a0% "
        "bootstrap interval; a star: p < 0.05 in a permutation test, corrected by Holm for all "
        "cells of the table. n is the number of pictures that show it.",
    )
