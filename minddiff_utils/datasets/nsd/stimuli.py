"""Pictures and captions of the Natural Scenes Dataset, read when asked for."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from minddiff_utils.datasets.content import flat_pictures
from minddiff_utils.datasets.nsd.design import NsdTree
from minddiff_utils.datasets.reading import MAX_SIDE, open_hdf5, read_rows, reading
from minddiff_utils.datasets.subject import check_ids
from minddiff_utils.io import Ids, InputError

HINT = "It is part of NSD's nsddata/experiments/nsd."
ANNOTATIONS = "Get annotations_trainval2017.zip from cocodataset.org and put its files there."


def read_captions(path: Path) -> dict[int, list[str]]:
    """Read a file of captions in COCO's form.

    Parameters
    ----------
    path : Path
        JSON with `annotations`, each with the whole number `image_id` and the text `caption`.

    Returns
    -------
    dict of int to list of str
        Captions by `image_id`, in the order of their `id`; in that of the file without one.

    Raises
    ------
    InputError
        If the file is missing or no such file, or an annotation is no caption.
    """
    with reading(path, "COCO caption file", ANNOTATIONS):
        items = json.loads(path.read_bytes())["annotations"]
        rows = [(int(str(i["image_id"])), int(str(i["id"])), i["caption"].strip()) for i in items]
    found: dict[int, list[str]] = {}
    for picture, _, text in sorted(rows):
        found.setdefault(picture, []).append(text)
    return found


class NsdStimuli:
    """Pictures from `nsd_stimuli.hdf5` and captions from COCO's files, read when asked for.

    Parameters
    ----------
    tree : NsdTree
    ids : int64 array
        NSD ids (from 0) of the stimuli that were seen.

    Notes
    -----
    Every NSD picture is a square cut from a COCO photograph; `nsd_stim_info_merged.csv` gives the
    photograph as `cocoId` and what was cut off as `cropBox`. COCO's captions describe the whole
    photograph, so a caption may name something that the crop has lost.
    """

    def __init__(self, tree: NsdTree, ids: np.ndarray):
        self.tree = tree
        self.ids = np.unique(ids).astype(np.int64)

    def pictures(self, ids: Ids) -> np.ndarray:
        """Return uint8 (n, height, width, 3), in the order of `ids`.

        Raises
        ------
        InputError
            If the file is missing, damaged, or has no such picture, or one of a single colour.
        """
        path = self.tree.pictures
        with open_hdf5(path, "imgBrick") as brick:
            if brick.ndim != 4 or brick.dtype != np.uint8 or max(brick.shape[1:3]) > MAX_SIDE:
                raise InputError(
                    f"{path}: imgBrick is {brick.dtype} {brick.shape}; expected uint8 (n, height, "
                    f"width, 3), sides to {MAX_SIDE}. Fetch it again."
                )
            found = read_rows(brick, check_ids(ids, len(brick)))
        flat = np.flatnonzero(flat_pictures(found))
        if flat.size:
            raise InputError(f"{path}: picture {ids[flat[0]]} has one colour: fetch it again")
        return found

    def captions(self, ids: Ids) -> list[tuple[str, ...]]:
        """Return five captions a picture, in the order of `ids`.

        Raises
        ------
        InputError
            If a file is missing or damaged, or a picture has no five captions.
        """
        coco = [self._coco_ids.get(int(one)) for one in ids]
        found = [self._texts.get(one, []) for one in coco]
        for stimulus, one, texts in zip(ids, coco, found, strict=True):
            if len(texts) < 5:
                n = f"stimulus {stimulus} (COCO id {one}) has {len(texts)} captions"
                raise InputError(
                    f"{n} in {self.tree.captions[0].parent}; expected 5. {ANNOTATIONS}"
                )
        # A few COCO pictures have six or seven; the method averages five.
        return [tuple(texts[:5]) for texts in found]

    @cached_property
    def _coco_ids(self) -> dict[int, int]:
        columns = ["nsdId", "cocoId"]
        with reading(self.tree.stimulus_table, "table of nsdId and cocoId", HINT):
            import pandas as pd  # takes a second, and `minddiff check` needs it rarely

            table = pd.read_csv(self.tree.stimulus_table, usecols=columns).astype(int)
        return dict(table[columns].to_numpy().tolist())

    @cached_property
    def _texts(self) -> Mapping[int | None, list[str]]:
        wanted = {self._coco_ids.get(int(i)) for i in self.ids}
        files = map(read_captions, self.tree.captions)
        return {coco: texts for file in files for coco, texts in file.items() if coco in wanted}
