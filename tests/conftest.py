"""What several test files share."""

import os
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import NOTEBOOKS, one_kernel, recording, write_features

from minddiff_utils.datasets import Split

SMALL_TREE = {"n_train": 60, "n_test": 4, "repetitions": 2}


LONG = ("test_notebooks", "test_presets", "test_book")  # minutes each


def pytest_configure(config):
    """Let xdist begin with the first file, not with that of the most tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The long files come first: at the end, one of them would keep a single processor busy."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def environment():
    """Commands that a test calls in this process set variables; the next test has none of them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """The phantom's models with random weights, saved as training saves them, in float32.

    Their latents have Stable Diffusion's scale: one of 1 would not tell `*` from `/`.

    The folder holds `stable_diffusion`, `clip_guide`, `clip_judge`, `tiny_decoder`. Copy it before
    changing anything. Tests thus need no trained weights.
    """
    # Imported here, so that tests without models start fast.
    import torch
    from diffusers import AutoencoderTiny

    from studies import tiny_decoder, training

    folder = tmp_path_factory.mktemp("tiny_models")
    torch.manual_seed(0)
    parts = {name: training.untrained(name) for name in training.PARTS}
    parts["vae"].register_to_config(scaling_factor=0.18215)
    clips = {name: training.untrained(name) for name in ("clip_guide", "clip_judge")}
    training.save_models(folder, parts, clips)
    AutoencoderTiny(**tiny_decoder.SHAPE).save_pretrained(folder / "tiny_decoder")
    return folder


@pytest.fixture(scope="session")
def generator(tiny_models):
    """The phantom's models as stages 1 and 2 use them; load them anew before changing anything."""
    from minddiff_utils.models.stable_diffusion import load_generator

    return load_generator(tiny_models, "cpu")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Features of 150 stimuli with gaps between their ids, and a subject with one split."""
    ids = np.arange(150) * 7 + 3
    path = write_features(tmp_path_factory.mktemp("features") / "features.h5", ids)
    return path, ids, recording(path, [Split("main", ids[30:], ids[:30])])


@pytest.fixture(scope="session")
def brains():
    """Make each brain once: what it knows of its reference pictures takes seconds."""
    from minddiff_utils.phantom import laion_writer, nsd_writer
    from minddiff_utils.phantom.brain import Brain

    made = cache(Brain)
    with pytest.MonkeyPatch.context() as patch:
        for writer in (nsd_writer, laion_writer):
            patch.setattr(writer, "Brain", made)
        yield made


@pytest.fixture(scope="session")
def tree(brains, tmp_path_factory) -> Path:
    """A small phantom of one subject."""
    from minddiff_utils.phantom.nsd_writer import write_tree

    folder = tmp_path_factory.mktemp("phantom") / "tree"
    return write_tree(folder, subjects=["subj01"], **SMALL_TREE)


@pytest.fixture(scope="session")
def three_sessions(brains, tmp_path_factory) -> Path:
    """A small phantom of one subject in three sessions; copy it before changing anything."""
    from minddiff_utils.phantom.nsd_writer import write_tree

    folder = tmp_path_factory.mktemp("phantom") / "tree"
    size = {"n_train": 56, "n_test": 4, "repetitions": 10}
    return write_tree(folder, subjects=["subj01"], **size)


@pytest.fixture(scope="session")
def run_plan():
    """A function that executes the notebooks of a plan of one subject as `minddiff book` does.

    All in one kernel that is emptied in between: importing torch for each anew would take longer
    than they do. It takes the names of some notebooks, or none for all, and returns the executed
    notebooks by name.
    """
    import nbformat
    import papermill

    from minddiff_utils.book import record
    from minddiff_utils.book.plan import Plan
    from minddiff_utils.book.run import execute
    from minddiff_utils.io import claim_run

    def run(plan: Plan, *names: str) -> dict[str, nbformat.NotebookNode]:
        executed = {}
        with pytest.MonkeyPatch.context() as patch:
            # Saved once, not after each cell; and no list of packages, which takes as long.
            how = {"km": kernel, "request_save_on_cell_execute": False}
            patch.setattr(papermill, "execute_notebook", partial(papermill.execute_notebook, **how))
            patch.setattr(record, "metadata", SimpleNamespace(distributions=tuple))
            claim_run(plan.run)
            for sheet in [sheet for sheet in plan.sheets if not names or sheet.name in names]:
                empty()
                output = execute(plan, sheet, "" if sheet.group else plan.subjects[0])
                executed[sheet.name] = nbformat.read(output, as_version=4)
        return executed

    # `minddiff book --cores 1` computes on one thread; another number rounds otherwise.
    known = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MINDDIFF_PROGRESS": "text"}
    with one_kernel(NOTEBOOKS, known) as (kernel, empty):
        yield run


@pytest.fixture
def one_thread():
    """Another number of threads rounds otherwise."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
