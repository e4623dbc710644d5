"""Stage 2 in shards: the same files to the last bit, resumed, and only when they fit together."""

import numpy as np
import pytest
from builders import ROOT, assert_same, counted, write_hdf5
from test_reconstruction import content
from test_reconstruction import decoded as decoded_arrays

from minddiff_utils.book.plan import find_sheets
from minddiff_utils.book.run import SHARDED
from minddiff_utils.io import method_file
from minddiff_utils.reconstruction import ablate
from minddiff_utils.reconstruction import stage2 as shards
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import ADVANCED, Settings

N = 7  # four batches
NAMES = ("stage2", "stage2_seed_1", "no_z", "no_c", "shuffled")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def inputs(generator):
    """What the chapter on decoding leaves, and the same from shuffled responses."""
    found = decoded_arrays(generator, N)
    found["split"] = np.zeros(N, np.int64)
    return found, {**found, "z": found["z"][::-1].copy()}


@pytest.fixture
def parameters(tiny_models, inputs, tmp_path):
    """Parameters of the chapter, of which the subject's folder holds what it needs."""
    for name, arrays in zip(("decoded", "decoded_shuffled"), inputs, strict=True):
        write_hdf5(tmp_path / "run" / "s" / f"{name}.h5", arrays)
    (sheet,) = [s for s in find_sheets(ROOT / "notebooks") if s.name == SHARDED]
    quick = {"n_steps": 2, "z_evidence_weight": 0.0, "gradient_steps": 1, "batch": 2}
    quick |= {"structure_target": "values", "device": "cpu"}
    place = {"run_dir": "run", "subject": "s", "models": str(tiny_models)}
    memory = {"dtype": "float32", "guide": "", "save_memory": "", "n_tokens": 0, "strength": 0.56}
    memory |= {"guidance_scale": 3.0, "seed": 0, "n_seeds": 2}
    return {**memory, **sheet.defaults, **ADVANCED[SHARDED], **quick, **place}


def compute(parameters, folder, count):
    for number in range(1, count + 1):
        shards.compute_shard(parameters, number, count, folder)
    return shards.gather(folder / "run" / "s")


def same(one, two):
    (a, attributes), (b, others) = content(one), content(two)
    assert attributes == others
    assert [values.dtype for values in a.values()] == [values.dtype for values in b.values()]
    assert_same(a, b)


# --- the same result ------------------------------------------------------------------------------


def test_shards_leave_what_one_process_leaves(parameters, inputs, generator, tmp_path):
    """Four batches in three shards; the iterates of the first six pictures span all three."""
    written = compute(parameters, tmp_path, 3)
    assert [path.stem for path in written] == sorted(NAMES)
    names = Settings.__dataclass_fields__.keys() & parameters.keys()
    settings = Settings(**{name: parameters[name] for name in names})
    cases = {
        "stage2": (inputs[0], settings, 0),
        "stage2_seed_1": (inputs[0], settings, 1),
        "no_z": (*ablate(generator, inputs[0], settings, "z"), 0),
    }
    for name, (given, chosen, seed) in cases.items():
        path = tmp_path / f"{name}.h5"
        reconstruct(generator, given, chosen, path, batch=2, seed=seed)
        same(method_file(tmp_path / "run/s", name), path)


def test_a_stopped_shard_goes_on_and_a_whole_one_is_left(parameters, tmp_path, monkeypatch):
    parameters = {**parameters, "ablations": False, "n_seeds": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, shards, "stage2", 1)
        shards.compute_shard(parameters, 1, 2, tmp_path)
    kept = tmp_path / "run/s/shards/stage2-1-of-2.h5.partial"
    assert content(kept)[1]["done"] == 2
    calls = counted(monkeypatch, shards, "stage2")
    for _ in range(2):
        shards.compute_shard(parameters, 1, 2, tmp_path)
        assert len(calls) == 1 + 2  # the second batch, and the two of the control


def test_only_shards_that_fit_are_gathered(parameters, tmp_path):
    parameters = {**parameters, "ablations": False, "n_seeds": 1, "batch": 4}
    folder = tmp_path / "run" / "s"
    shards.compute_shard(parameters, 1, 2, tmp_path)
    assert shards.gather(folder) == []
    shards.compute_shard({**parameters, "seed": 5}, 2, 2, tmp_path)
    assert shards.gather(folder) == [] and not method_file(folder, "stage2").exists()
    shards.compute_shard(parameters, 2, 2, tmp_path)
    assert len(shards.gather(folder)) == 2
