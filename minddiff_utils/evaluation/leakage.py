"""Is it remembered from training?

Near twins of a test image among the training images are told by their pixels, and how far the
nearest one is by CLIP. A decoder that only recognises a twin, or which of the familiar kinds was
seen, fails on a kind it has not met. So a whole kind of images is left out of training, and its
test images are decoded. Leaving images out costs something by itself; what is compared with is
therefore a training set of the same size, from which as many images were left out at random.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.cluster import KMeans

from minddiff_utils.datasets import Split
from minddiff_utils.datasets.recording import digests, stream_pictures
from minddiff_utils.datasets.subject import Stimuli
from minddiff_utils.decoding.features import read_features
from minddiff_utils.evaluation.metrics import unit_rows
from minddiff_utils.io import Ids, InputError

MOST = 1000  # training pictures that are compared among themselves
# Near twins: of this many patches a side, fewer than so many differ by more than so many levels.
N_PATCHES = 10
DIFFERENT_PATCHES = 10
DIFFERENT_LEVELS = 24  # of 255, in one of the colours
N_CLUSTERS = 10  # of captions, where no kinds are named
FEWEST = 3  # test pictures of a group that is held out


# --- kinds of thing, read from captions ----------------------------------------------------


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


def kinds_shown(captions: Sequence[Sequence[str]], kinds: str) -> dict[str, np.ndarray]:
    """Tell from its captions which kinds of thing each image shows.

    An image shows a kind if at least half of its captions hold one of the kind's words, or their
    plurals.

    Parameters
    ----------
    captions : sequence of n sequences of str
        Some an image.
    kinds : str
        Names and words as `read_words` reads them.

    Returns
    -------
    dict of kind to bool array of shape (n,)
    """
    found = {}
    for kind, words in read_words(kinds).items():
        pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})s?\b")
        told = ([bool(pattern.search(text.lower())) for text in each] for each in captions)
        found[kind] = np.array([np.mean(each or [False]) >= 0.5 for each in told])
    return found


# --- near training pictures ----------------------------------------------------------------


def count_copies(stimuli: Stimuli, splits: Sequence[Split]) -> pd.DataFrame:
    """Count by their pixels the training images that a test image may be recognised from.

    Near twins are images of which, shrunk to 10 by 10 patches, fewer than 10 patches differ by
    more than a tenth of the range in one of the colours. Images are read once, some at a time.

    Parameters
    ----------
    stimuli : Stimuli
    splits : sequence of Split
        Each test image is compared with the training images of its split.

    Returns
    -------
    DataFrame
        A row a test image, in the order of the splits: `stimulus_id`, and the numbers of training
        images that have the same pixels (`exact`), or are near twins but no copies (`near`).
    """
    ids = np.unique(np.concatenate([part for s in splits for part in (s.train, s.test)]))
    keys, small = [], []
    for _, pictures in stream_pictures(stimuli, ids):
        keys += digests(pictures)
        images = map(Image.fromarray, pictures)
        small += [image.resize((N_PATCHES, N_PATCHES), Image.Resampling.BOX) for image in images]
    keys, small = np.array(keys, "S32"), np.stack([np.asarray(i) for i in small]).astype(np.int16)
    found = []
    for split in splits:
        train = np.searchsorted(ids, split.train)
        for number, place in zip(split.test, np.searchsorted(ids, split.test), strict=True):
            change = np.abs(small[train] - small[place]).max(axis=-1) > DIFFERENT_LEVELS
            near = change.sum(axis=(1, 2)) < DIFFERENT_PATCHES
            exact = keys[train] == keys[place]
            found.append((number, exact.sum(), (near & ~exact).sum()))
    return pd.DataFrame(found, columns=["stimulus_id", "exact", "near"])


class Overlap(NamedTuple):
    """Distances to the nearest training image, 1 - cosine of two embeddings.

    `stimulus_id` (n_test,), `distance` float64 (n_test,) and, for comparison, `among_training`
    float64 (n,): the same for training images, each to the nearest other one.
    """

    stimulus_id: np.ndarray
    distance: np.ndarray
    among_training: np.ndarray


def overlap(test: np.ndarray, train: np.ndarray, stimulus_id: Ids, seed: int = 0) -> Overlap:
    """Compare test images with training images.

    Parameters
    ----------
    test, train : float (n_test, d), (n_train, d)
        Their embeddings.
    stimulus_id : sequence of n_test
        Number or name of each test image.
    seed : int
        Of the choice among many training images, of which at most 1,000 are compared among
        themselves.

    Returns
    -------
    Overlap
    """
    test, train = unit_rows(test), unit_rows(train)
    some = train
    if len(train) > MOST:
        some = train[np.random.default_rng(seed).choice(len(train), MOST, replace=False)]
    among = some @ some.T
    np.fill_diagonal(among, -np.inf)
    distance = 1 - (test @ train.T).max(axis=1)
    return Overlap(np.asarray(stimulus_id), distance, 1 - among.max(axis=1))


def split_overlap(splits: Sequence[Split], features_path: str | Path, seed: int = 0) -> Overlap:
    """Compare the test images of every split with its training images.

    Parameters
    ----------
    splits : sequence of Split
    features_path : str or Path
        From `write_features`; "embedding" is that of the guide.
    seed : int
        As for `overlap`.

    Returns
    -------
    Overlap
        Test images in the order of the splits; training images of the first.
    """
    read = partial(read_features, features_path, "embedding")
    found = [overlap(read(s.test), read(s.train), s.test, seed) for s in splits]
    test, distance, _ = (np.concatenate(part) for part in zip(*found, strict=True))
    return Overlap(test, distance, found[0].among_training)


# --- kinds of pictures that are left out of training ---------------------------------------


def picture_groups(
    features_path: str | Path, stimulus_ids: Ids, shown: Mapping[str, np.ndarray], seed: int = 0
) -> dict[str, np.ndarray]:
    """Group images by the kinds of thing they show; by their captions where none are named.

    Parameters
    ----------
    features_path : str or Path
        From `write_features`; `c`, averaged over its tokens, stands for the captions, which k-means
        puts into clusters.
    stimulus_ids : sequence of n int
    shown : mapping of kind to bool array of shape (n,)
        From `kinds_shown`; an image may show several.
    seed : int

    Returns
    -------
    dict of name to int64 array of stimulus ids
        A kind each, or "cluster_1" …: ten, or as many as half the images.
    """
    ids = np.asarray(stimulus_ids, np.int64)
    if shown:
        return {kind: ids[there] for kind, there in shown.items()}
    n_clusters = max(2, min(N_CLUSTERS, len(ids) // 2))
    rows = read_features(features_path, "c", ids).mean(axis=1)
    label = KMeans(n_clusters, n_init=4, random_state=seed).fit_predict(rows)
    return {f"cluster_{k + 1}": ids[label == k] for k in range(n_clusters)}


def hold_out(
    split: Split, groups: Mapping[str, np.ndarray], n: int, seed: int = 0
) -> dict[str, tuple[Split, Split]]:
    """Make the splits that leave a group of images out of training.

    Taken are the `n` groups with the most test images, among those with at least three that
    leave half of the training images or more.

    Parameters
    ----------
    split : Split
    groups : mapping of name to stimulus ids
    n : int
        How many groups, at most; 0 for none.
    seed : int
        Of the images that are left out at random for comparison.

    Returns
    -------
    dict of group to (without, matched)
        Both test the group's test images. `without` trains on no image of the group, `matched`
        on as many images, a random part of all.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, tuple[Split, Split]] = {}
    for name in sorted(groups, key=lambda name: -np.isin(split.test, groups[name]).sum()):
        test = split.test[np.isin(split.test, groups[name])]
        train = split.train[~np.isin(split.train, groups[name])]
        if len(found) < n and len(test) >= FEWEST and 2 * len(train) >= len(split.train):
            word = re.sub(r"[^A-Za-z0-9_-]", "_", name)
            part = np.sort(rng.choice(split.train, len(train), replace=False))
            matched = Split(f"matched_{word}", part, test)
            found[name] = Split(f"without_{word}", train, test), matched
    return found
