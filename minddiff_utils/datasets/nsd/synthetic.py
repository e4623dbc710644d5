"""NSD-synthetic: noise, gratings, words and manipulated scenes, a test beyond photographs.

After the main experiment each of the eight subjects saw 284 such pictures in one more session of
744 trials, in half of its runs while judging a dot, in half while watching for repetitions; both
count alike here. The first 220 pictures are the same for all; the colours of the other 64 are of
equal luminance to the subject's own eyes.

Files and the order of trials and pictures are as in NSD's data manual ("Functional data
(nsdsynthetic)"), in Gifford et al. (2026, Nature Communications), and in the code of that paper
(github.com/gifale95/NSD-synthetic), from which also comes how a picture looked: the display was
linear, so that what is stored is proportional to luminance, and the middle square is what
photographs filled in the main experiment (8.4 degrees of visual angle).

NSD-Imagery is not read: NSD's design gives the order of its runs, but no document of NSD that we
could read gives that of the 720 betas within a run, and public code disagrees about it.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from minddiff_utils.datasets.nsd.design import NsdStimuli, NsdTree, open_pictures
from minddiff_utils.datasets.reading import read_matlab, read_table
from minddiff_utils.datasets.recording import flat_pictures
from minddiff_utils.io import Ids, InputError

FIRST_ID = 73_000  # of the first picture: NSD's photographs are 0 to 72,999
HINT = "It is part of NSD's nsddata/experiments/nsdsynthetic."
# How a stored value looks on a usual display, whose luminance grows about as its square does.
LOOKS = (np.sqrt(np.arange(256) / 255) * 255).astype(np.uint8)


class SyntheticStimuli:
    """NSD's photographs, and from id 73,000 on the pictures of NSD-synthetic.

    Parameters
    ----------
    photographs : NsdStimuli
    ids : int64 array
        Of the pictures of NSD-synthetic that were seen.
    """

    def __init__(self, photographs: NsdStimuli, ids: np.ndarray):
        self.photographs = photographs
        self.ids = np.union1d(photographs.ids, ids)

    def pictures(self, ids: Ids) -> np.ndarray:
        """Return uint8 (n, height, width, 3), in the order of `ids`, all as large as photographs.

        Raises
        ------
        InputError
            If a file is missing or damaged, or has no such picture.
        """
        ids, (height, width) = np.asarray(ids, np.int64), self.photographs.size
        new, found = ids >= FIRST_ID, np.empty((len(ids), height, width, 3), np.uint8)
        if not new.all():
            found[~new] = self.photographs.pictures(ids[~new])
        if new.any():
            squares = self._squares(ids[new] - FIRST_ID)
            for place, square in zip(np.flatnonzero(new), squares, strict=True):
                image = Image.fromarray(LOOKS[square])
                found[place] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        return found

    def captions(self, ids: Ids) -> list[tuple[str, ...]]:
        """Return five captions a photograph; the other pictures have none: InputError."""
        return self.photographs.captions(ids)

    @property
    def shown(self) -> np.ndarray:
        """Ids of NSD-synthetic that a test can use, int64: those whose square has a picture.

        NSD has 16 words that lie wholly left or right of it.
        """
        ids = self.ids[self.ids >= FIRST_ID]
        return ids[[not flat_pictures(one[None]).all() for one in self._squares(ids - FIRST_ID)]]

    def _squares(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the middle squares as they are stored, uint8 (side, side, 3)."""
        files = self.photographs.tree.synthetic
        with open_pictures(files.pictures) as shared, open_pictures(files.own_pictures) as own:
            n = len(shared)
            if rows.max() >= n + len(own):
                there = f"together with {files.pictures.name} it has {n + len(own)}"
                raise InputError(f"{files.own_pictures} lacks picture {rows.max() + 1}: {there}.")
            for row in rows:
                brick, row = (shared, row) if row < n else (own, row - n)
                left = max(0, brick.shape[2] - brick.shape[1]) // 2
                yield brick[row, :, left : left + brick.shape[1]]


def read_synthetic(tree: NsdTree, n_trials: int) -> tuple[np.ndarray, dict[int, str]]:
    """Find what was shown in each trial of NSD-synthetic.

    Parameters
    ----------
    tree : NsdTree
    n_trials : int
        How many the betas have.

    Returns
    -------
    stimulus_id : int64 array of shape (n_trials,)
        From `FIRST_ID`.
    kind_of : dict of int to str
        The class of each picture, as Gifford et al. name it: "Single words", "Noise", …

    Raises
    ------
    InputError
        If a file is missing or damaged, or the numbers of trials or pictures do not agree.
    """
    files = tree.synthetic
    order = read_matlab(files.design, ("masterordering",), HINT)["masterordering"].ravel()
    kinds = [kind for (kind,) in read_table(files.kinds, ("Image class",), HINT)]
    if len(order) != n_trials:
        expected = f"expected {len(order)}, as in {files.design}. Fetch it again."
        raise InputError(f"{files.betas} has {n_trials} trials; {expected}")
    if order.min() < 1 or order.max() > len(kinds):
        found = f"masterordering has {order.min()} to {order.max()}"
        raise InputError(f"{files.design}: {found}; expected 1 to {len(kinds)}, as {files.kinds}.")
    return FIRST_ID - 1 + order.astype(np.int64), dict(enumerate(kinds, start=FIRST_ID))
