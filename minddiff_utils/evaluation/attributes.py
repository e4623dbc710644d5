"""What a picture shows, read from its captions, and what pictures that fail have in common."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from minddiff_utils.evaluation.statistics import group_difference, holm
from minddiff_utils.evaluation.tables import as_markdown, interval_text
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
        kinds = tuple(word.strip().lower() for word in (words or name).split("/"))
        if not name or name in found or not all(kinds):
            raise InputError(
                f"{item!r} in {text!r}: expected different names, each alone or as "
                "name=word/other word."
            )
        found[name] = kinds
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
    texts = [[caption.lower() for caption in each] for each in captions]
    for family, given in (("kind", kinds), ("size", sizes), ("scene", scenes)):
        for name, words in read_words(given).items():
            counts = [[_count(text, words) > 0 for text in each] for each in texts]
            columns[family, name] = np.array([np.mean(each or [0]) >= 0.5 for each in counts])
    if kinds:
        words = [word for each in read_words(kinds).values() for word in each]
        n = [int(np.median([_count(text, words) for text in each] or [0])) for each in texts]
        for count in sorted(set(n)):
            columns["things", str(count)] = np.array(n) == count
    names = pd.MultiIndex.from_tuples(columns, names=["family", "trait"])
    return pd.DataFrame(
        np.stack(list(columns.values()), axis=1) if columns else np.zeros((len(texts), 0), bool),
        columns=names if columns else pd.MultiIndex.from_arrays([[], []]),
    )


def _count(text: str, words: Sequence[str]) -> int:
    """How often whole words, or their plurals, occur in a text."""
    pattern = "|".join(re.escape(word) for word in words)
    return len(re.findall(rf"\b(?:{pattern})s?\b", text))


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
        `family, trait, metric, n, with, without, difference, low, high, p_holm`: means of the
        metric, their difference with its 95 % bootstrap interval, and the p of a permutation test
        corrected for all traits and metrics. Traits of fewer than three pictures, or that fewer
        than three lack, are left out. The lowest difference comes first.
    """
    rows = []
    for metric, group in values.groupby("metric", sort=False):
        value = group.set_index("stimulus_id")["value"].reindex(stimulus_id).to_numpy()
        for family, trait in attributes.columns:
            has = attributes[family, trait].to_numpy()
            if not FEWEST <= has.sum() <= len(has) - FEWEST:
                continue
            found = group_difference(value[has], value[~has], seed=seed)
            row = {"family": family, "trait": trait, "metric": metric, "n": int(has.sum())}
            rows.append(row | found)
    columns = [
        "family",
        "trait",
        "metric",
        "n",
        "with",
        "without",
        "difference",
        "low",
        "high",
        "p",
    ]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = holm(table.pop("p"))
    return table.sort_values(["metric", "difference"], kind="stable", ignore_index=True)


def traits_table(traits: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Write `common_traits` for people: a trait a row, a metric a column.

    Parameters
    ----------
    traits : DataFrame
        From `common_traits`.
    names : mapping of metric to the name that people read

    Returns
    -------
    DataFrame of str
        The trait with the lowest difference in the first metric of `names` comes first.
    """
    if traits.empty:
        table = pd.DataFrame(index=pd.Index([], name="trait"))
        table.attrs["note"] = (
            "No trait to compare by: `kinds`, `sizes` and `scenes` name none that enough pictures "
            "show."
        )
        return table
    rows = []
    for (family, trait), group in traits.groupby(["family", "trait"], sort=False):
        found = group.set_index("metric")
        row = {"trait": as_markdown(f"{family}: {trait}"), "n": str(found["n"].iloc[0])}
        for metric, name in names.items():
            row[name] = _text(found.loc[metric]) if metric in found.index else "–"
        rows.append(row)
    first = traits[traits["metric"] == next(iter(names))]
    pairs = zip(first["family"], first["trait"], strict=True)
    order = [as_markdown(f"{family}: {trait}") for family, trait in pairs]
    table = pd.DataFrame(rows, columns=["trait", "n", *names.values()]).set_index("trait")
    table = table.loc[order]
    table.attrs["note"] = (
        "Mean over the pictures that show it minus the mean over all others, with its 95\u00a0% "
        "bootstrap interval; a star: p < 0.05 in a permutation test, corrected by Holm for all "
        "cells of the table. n is the number of pictures that show it."
    )
    return table


def _text(row: pd.Series) -> str:
    star = " *" if row["p_holm"] < 0.05 else ""
    return interval_text(row["difference"], row["low"], row["high"], "+") + star
