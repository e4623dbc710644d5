"""What studies of settings begin from: training pictures that are held out from the decoders.

So a choice between settings says nothing about the test pictures.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minddiff_utils.datasets import Split, Subject, load_subject
from minddiff_utils.decoding.features import write_features
from minddiff_utils.io import InputError
from minddiff_utils.models.clip import load_clip
from minddiff_utils.models.hub import clip_name
from minddiff_utils.models.stable_diffusion import Generator, load_generator

MODELS = Path(__file__).parents[1] / "minddiff_utils" / "phantom" / "weights"
TREE = Path("runs/phantom/tree")
METRICS = ("clip_judge", "clip_guide", "ssim", "pcc")


class HeldOut(NamedTuple):
    """A subject with held-out training pictures, and what is needed to rebuild and judge them.

    `features` is the file of true features of all its pictures; `truth` uint8 (n, h, w, 3), in the
    order of the split's test stimuli; `embed` turns pictures into what a metric compares.
    """

    subject: Subject
    generator: Generator
    features: Path
    truth: np.ndarray
    embed: Mapping[str, Callable]


def hold_out(subject: Subject, n: int) -> Subject:
    """Return the subject with some of its training stimuli in the place of the test stimuli.

    Parameters
    ----------
    subject : Subject
    n : int
        How many training stimuli to hold out.

    Returns
    -------
    Subject
        With one split, "tuning"; no test stimulus of `subject` is in it, and no copy of a picture
        that is held out trains.

    Raises
    ------
    InputError
        If too few training stimuli would be left.
    """
    train = subject.splits[0].train
    if not 1 <= n <= len(train) - 4:
        raise InputError(f"n={n}: expected from 1 to {len(train) - 4} held-out training pictures.")
    held_out = np.random.default_rng(0).choice(np.sort(train), n, replace=False)
    copies = np.isin(subject.picture_of(train), subject.picture_of(held_out))
    split = Split("tuning", np.sort(train[~copies]), held_out)
    return replace(subject, splits=(split,))


def open_held_out(
    data: Path, subject: str, n: int, models: str, device: str, work: Path, n_blocks: int = 6
) -> HeldOut:
    """Load a subject of a recording in NSD's layout, hold pictures out, and load the models.

    Parameters
    ----------
    data : Path
    subject : str
    n : int
        Held-out training pictures.
    models : str
        Folder or name.
    device : str
    work : Path
        Folder for the features, which stay for the next time.
    n_blocks : int
        Of the guide, among the features.
    """
    person = hold_out(load_subject("nsd", data, subject, cache=work), n)
    generator = load_generator(models, device, "float32")
    features = write_features(work / "features.h5", person, generator, n_blocks)
    truth = generator.resize(person.stimuli.pictures(person.splits[0].test))
    judge = load_clip(clip_name(models, "judge"), device, "float32")
    embed = {"clip_judge": judge.embed, "clip_guide": generator.guide.embed}
    return HeldOut(person, generator, features, truth, embed)
