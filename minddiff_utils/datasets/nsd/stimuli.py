"""Pictures and captions of the Natural Scenes Dataset, read when asked for."""

import ast
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minddiff_utils.datasets.content import flat_pictures
from minddiff_utils.datasets.nsd.tree import NsdTree
from minddiff_utils.datasets.reading import MAX_SIDE, existing, open_hdf5, read_rows, read_table
from minddiff_utils.io import InputError

if TYPE_CHECKING:
    import pandas as pd

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
    content = existing(path, ANNOTATIONS).read_bytes()
    try:
        items = list(json.loads(content)["annotations"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is truncated, or not a COCO caption file. {ANNOTATIONS}"
        ) from error
    found: dict[int, list[tuple[int, str]]] = {}
    for place, item in enumerate(items):
        try:
            # Through text: 7 and "7" are numbers of a picture, 7.5 and null are not.
            picture, order = int(str(item["image_id"])), int(str(item.get("id", place)))
            text = item["caption"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            text = ""
        if not text:
            raise InputError(
                f"{path}: annotation {place} is {str(item):.80}; expected a whole number as "
                f"image_id, one or none as id, and a text as caption. {ANNOTATIONS}"
            )
        found.setdefault(picture, []).append((order, text))
    return {picture: [text for _, text in sorted(texts)] for picture, texts in found.items()}


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

    def pictures(self, ids: Sequence[int]) -> np.ndarray:
        """Return uint8 (n, height, width, 3), in the order of `ids`.

        Raises
        ------
        InputError
            If the file is missing, damaged, or has no such picture, or one of a single colour.
        """
        ids = np.asarray(ids, dtype=np.int64)
        with open_hdf5(self.tree.pictures, "imgBrick") as brick:
            fits = brick.ndim == 4 and brick.shape[-1] == 3 and max(brick.shape[1:3]) <= MAX_SIDE
            if not fits or brick.dtype != np.uint8:
                raise InputError(
                    f"{self.tree.pictures}: imgBrick is {brick.dtype} {brick.shape}; expected "
                    f"uint8 (n, height, width, 3), sides to {MAX_SIDE}. Fetch it again."
                )
            if ids.size and (ids.min() < 0 or ids.max() >= len(brick)):
                raise InputError(
                    f"{self.tree.pictures} has pictures 0 to {len(brick) - 1}; asked for "
                    f"{ids.min() if ids.min() < 0 else ids.max()}. Fetch it again."
                )
            found = read_rows(brick, ids)
        flat = np.flatnonzero(flat_pictures(found))
        if flat.size:
            raise InputError(
                f"{self.tree.pictures}: picture {ids[flat[0]]} has one colour throughout, so was "
                "never written. Fetch it again."
            )
        return found

    def captions(self, ids: Sequence[int]) -> list[tuple[str, ...]]:
        """Return five captions a picture, in the order of `ids`.

        Raises
        ------
        InputError
            If a file is missing or damaged, or a picture has no five captions.
        """
        return [self._captions_of(int(i)) for i in ids]

    def crops(self, ids: Sequence[int]) -> np.ndarray:
        """Return what was cut off each COCO photograph before it was shown.

        Returns
        -------
        float64 array of shape (n, 4)
            `cropBox` as NSD's table has it: the shares of the photograph's height or width that
            were cut off its top, bottom, left and right.

        Raises
        ------
        InputError
            If the table is missing or damaged, or has no such picture.
        """
        path = self.tree.stimulus_table
        table = self._table("cropBox").set_index("nsdId")["cropBox"]
        try:
            boxes = [ast.literal_eval(str(table.loc[int(i)])) for i in ids]
            return np.array(boxes, dtype=np.float64).reshape(-1, 4)
        except KeyError as error:
            raise InputError(f"{path} has no picture with nsdId {error}") from error
        except (ValueError, SyntaxError) as error:
            raise InputError(f"{path}: a cropBox is not four numbers ({error})") from error

    def _captions_of(self, stimulus: int) -> tuple[str, ...]:
        coco = self._coco_ids.get(stimulus)
        texts = self._texts.get(coco, [])
        if len(texts) < 5:
            raise InputError(
                f"stimulus {stimulus} (COCO id {coco}) has {len(texts)} captions in "
                f"{self.tree.captions[0].parent}; expected 5. {ANNOTATIONS}"
            )
        # A few COCO pictures have six or seven; the method averages five.
        return tuple(texts[:5])

    def _table(self, *columns: str) -> "pd.DataFrame":
        return read_table(self.tree.stimulus_table, ",", ("nsdId", *columns))

    @cached_property
    def _coco_ids(self) -> dict[int, int]:
        table = self._table("cocoId")
        try:
            return dict(zip(table["nsdId"].astype(int), table["cocoId"].astype(int), strict=True))
        except (ValueError, TypeError) as error:
            path = self.tree.stimulus_table
            raise InputError(f"{path}: nsdId or cocoId is no whole number ({error})") from error

    @cached_property
    def _texts(self) -> dict[int, list[str]]:
        wanted = {self._coco_ids.get(int(i)) for i in self.ids}
        found: dict[int, list[str]] = {}
        for path in self.tree.captions:
            for coco, texts in read_captions(path).items():
                if coco in wanted:
                    found.setdefault(coco, []).extend(texts)
        return found
