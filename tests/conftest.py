"""What several test files share."""

import os
from functools import cache, partial
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
SMALL_TREE = {"n_train": 60, "n_test": 4, "repetitions": 2}


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

    The folder holds `stable_diffusion`, `clip_guide` and `clip_judge`. Copy it before
    changing anything. Tests thus need no trained weights.
    """
    # Imported here, so that tests without models start fast.
    import torch

    from studies import training

    folder = tmp_path_factory.mktemp("tiny_models")
    torch.manual_seed(0)
    parts = {name: training.untrained(name) for name in training.PARTS}
    parts["vae"].register_to_config(scaling_factor=0.18215)
    clips = {name: training.untrained(name) for name in ("clip_guide", "clip_judge")}
    training.save_models(folder, parts, clips)
    return folder


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
    return write_tree(folder, subjects=["subj01"], progress=False, **SMALL_TREE)


@pytest.fixture(scope="session")
def three_sessions(brains, tmp_path_factory) -> Path:
    """A small phantom of one subject in three sessions; copy it before changing anything."""
    from minddiff_utils.phantom.nsd_writer import write_tree

    folder = tmp_path_factory.mktemp("phantom") / "tree"
    size = {"n_train": 56, "n_test": 4, "repetitions": 10}
    return write_tree(folder, subjects=["subj01"], progress=False, **size)


@pytest.fixture(scope="session")
def run_plan():
    """A function that executes the notebooks of a plan of one subject as `minddiff book` does.

    All in one kernel that is emptied in between: importing torch for each anew would take longer
    than they do. It returns the executed notebooks by name.
    """
    import nbformat
    import papermill
    from jupyter_client import AsyncKernelManager
    from jupyter_core.utils import run_sync
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    from minddiff_utils.book.plan import Plan
    from minddiff_utils.book.run import execute
    from minddiff_utils.io import claim_run

    kernel = AsyncKernelManager(kernel_name="python3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        # `minddiff book --cores 1` computes on one thread; another number rounds otherwise.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MINDDIFF_PROGRESS", "text")
        run_sync(kernel.start_kernel)(cwd=str(NOTEBOOKS))
    emptying = new_notebook(cells=[new_code_cell("%reset -f")])

    def run(plan: Plan) -> dict[str, nbformat.NotebookNode]:
        executed = {}
        with pytest.MonkeyPatch.context() as patch:
            in_kernel = partial(papermill.execute_notebook, km=kernel)
            patch.setattr(papermill, "execute_notebook", in_kernel)
            claim_run(plan.run)
            for sheet in plan.sheets:
                NotebookClient(emptying, km=kernel, startup_timeout=600).execute()
                subject = "" if sheet.group else plan.subjects[0]
                output = execute(plan, sheet, subject)
                executed[sheet.name] = nbformat.read(output, as_version=4)
        return executed

    yield run
    run_sync(kernel.shutdown_kernel)(now=True)
