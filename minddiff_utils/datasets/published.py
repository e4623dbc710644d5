"""What small published recordings have in common: one person, one session, grey pictures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minddiff_utils.datasets.patterns import pattern_picture
from minddiff_utils.datasets.subject import Split, Subject, check_ids
from minddiff_utils.io import Ids, InputError

EVERY = ("all", "kastner2015")  # the latter is the notebooks' default


@dataclass(frozen=True)
class GreyStimuli:
    """Pictures in grey, held in memory; the id is the place in the list.

    Parameters
    ----------
    grey : uint8 array of shape (n, height, width)
    texts : sequence of tuple of str
        Captions of each picture.
    """

    grey: np.ndarray
    texts: Sequence[tuple[str, ...]]

    @classmethod
    def of_patterns(cls, patterns: np.ndarray, texts: Sequence[tuple[str, ...]]) -> "GreyStimuli":
        """Draw contrast patterns (n, 10, 10)."""
        return cls(np.stack([pattern_picture(pattern)[..., 0] for pattern in patterns]), texts)

    @property
    def ids(self) -> np.ndarray:
        """int64 (n,), from 0."""
        return np.arange(len(self.grey))

    def pictures(self, ids: Ids) -> np.ndarray:
        """Return uint8 (n, height, width, 3), three equal channels, in the order of `ids`."""
        return np.repeat(self.grey[check_ids(ids, len(self.grey))][..., None], 3, axis=3)

    def captions(self, ids: Ids) -> list[tuple[str, ...]]:
        """Return the captions of each picture, in the order of `ids`."""
        return [self.texts[i] for i in check_ids(ids, len(self.grey))]


def choose_regions(rois: str, known: Iterable[str]) -> list[str]:
    """Return the names of the regions that are meant.

    Parameters
    ----------
    rois : str
        "all" or "kastner2015" for all, or names with commas between.
    known : iterable of str

    Raises
    ------
    InputError
        If one is not among the known.
    """
    known = list(known)
    wanted = known if rois in EVERY else [name.strip() for name in rois.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(
            f"rois={rois!r}: {unknown[0]!r} is unknown; give all or some of {','.join(known)}"
        )
    return wanted


def make_subject(
    name: str,
    dataset: str,
    responses: np.ndarray,
    stimulus_id: np.ndarray,
    roi: Mapping[str, np.ndarray],
    splits: Sequence[Split],
    stimuli: GreyStimuli,
) -> tuple[Subject, np.ndarray]:
    """Put together a recording without the voxels that never change.

    Parameters
    ----------
    name : str
        Who is asked for; the only one there is is "S1".
    dataset : str
    responses : array of shape (n_trials, n_voxels)
    stimulus_id : int array of shape (n_trials,)
    roi : mapping of str to bool array of shape (n_voxels,)
    splits : sequence of Split
    stimuli : GreyStimuli

    Returns
    -------
    subject : Subject
    keep : bool array of shape (n_voxels,)
        The voxels of the regions that change, in training if there is one split.

    Raises
    ------
    InputError
        If another person is asked for, or a region has no voxel that changes.
    """
    if name != "S1":
        raise InputError(f"subject={name!r} is unknown; this recording has S1 only")
    # Constant in training is what counts: that is what standardises.
    trains = np.isin(stimulus_id, np.concatenate([split.train for split in splits]))
    finite = np.isfinite(responses).all(axis=0)
    changes = finite & (np.ptp(np.where(finite, responses[trains], 0), axis=0) > 0)
    inside = np.any(list(roi.values()), axis=0)
    keep = inside & changes
    empty = [region for region, mask in roi.items() if not (mask & keep).any()]
    if empty:
        raise InputError(f"{dataset}: every voxel of {empty[0]} is constant or not finite.")
    subject = Subject(
        name=name,
        dataset=dataset,
        responses=np.ascontiguousarray(responses[:, keep], np.float32),
        stimulus_id=stimulus_id.astype(np.int64),
        session=np.ones(len(stimulus_id), np.int64),
        roi={region: mask[keep] for region, mask in roi.items()},
        splits=tuple(splits),
        stimuli=stimuli,
        n_dropped=int((inside & ~changes).sum()),
    )
    return subject, keep
