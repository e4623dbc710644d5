"""No picture of the experiment stands twice, and no test picture was shown in any training.

What is said about pixels is told from pixels alone.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minddiff_utils.phantom import nsd_writer, world
from minddiff_utils.phantom.nsd_writer import plan_experiment

WEIGHTS = Path(nsd_writer.__file__).parent / "weights"
PATCH_PIXELS = 36


def bytes_of(ids):
    return [world.picture(int(i)).tobytes() for i in ids]


def patterns(pictures):
    """Pixels of those of some pictures that are contrast patterns, each once; bool (n, 4096)."""
    found = {}
    for each in set(pictures):
        pixels = np.frombuffer(each, np.uint8).reshape(-1, 3)
        if np.isin(pixels, (128, 235)).all():
            found[each] = pixels[:, 0] == 235
    return np.reshape(list(found.values()), (-1, world.SIZE**2)).astype(np.float32)


def fewest_patches(some, others):
    """In how many patches the most alike of two sets of patterns differ."""
    pixels = some.sum(1)[:, None] + others.sum(1)[None] - 2 * some @ others.T
    return pixels.min(initial=np.inf) / PATCH_PIXELS


def is_pattern(i):
    return world.scene(int(i)).pattern is not None


@pytest.fixture(scope="module", autouse=True)
def scenes():
    """Every test asks what the pictures of training show: tell each once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "scene", cache(world.scene))
        yield


@pytest.fixture(scope="module")
def trained(scenes):
    """The contrast patterns that the models were trained on."""
    return patterns(bytes_of(i for i in world.TRAINING_IDS if is_pattern(i)))


PLANS = [(2, 1200, 64, 0), (8, 24, 4, 0), (3, 100, 300, 2)]


@pytest.mark.parametrize(("n_subjects", "n_train", "n_test", "seed"), PLANS)
def test_no_test_picture_was_seen(trained, n_subjects, n_train, n_test, seed):
    plan = plan_experiment(n_subjects, n_train, n_test, 1, seed)
    assert len(plan.pictures) == len(set(plan.pictures)) == n_test + n_subjects * n_train
    is_test = np.isin(np.arange(len(plan.pictures)), plan.subjectim[0, :n_test] - 1)
    test, train = (list(filter(is_pattern, plan.pictures[of])) for of in (is_test, ~is_test))
    pictures = bytes_of([*test, *train])
    assert len(set(pictures)) == len(pictures)
    test, train = patterns(pictures[: len(test)]), patterns(pictures[len(test) :])
    assert fewest_patches(test, train) >= 10
    assert fewest_patches(test, trained) >= 10


def test_scenes_of_the_test_differ_from_all_of_training():
    """Before anything is drawn: scenes are told apart by their numbers."""
    pictures = plan_experiment(2, 1200, 64, 3, seed=0).pictures
    shown = [world.scene(i)[:3] for i in [*pictures.tolist(), *world.TRAINING_IDS]]
    scenes = [scene for scene in shown if scene[2]]
    assert len(set(scenes)) == len(scenes)


def test_every_stage_was_trained_on_the_ids_that_are_checked():
    stages = json.loads((WEIGHTS / "training.json").read_text())
    small = stages.pop("tiny_decoder")["pictures"]  # the first so many of them
    assert {stage["pictures"] for stage in stages.values()} == {len(world.TRAINING_IDS)}
    assert 0 < small <= len(world.TRAINING_IDS)
