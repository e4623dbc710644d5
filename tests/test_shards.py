"""Stage 2 in shards: the same files to the last bit, resumed, and only when they fit together."""

import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
import torch
import yaml
from dummy_project import ROOT, make_project, write_params
from test_reconstruction import decoded as decoded_arrays

from minddiff_utils import cli
from minddiff_utils.book import execution, runs
from minddiff_utils.io import InputError
from minddiff_utils.models.stable_diffusion import load_generator
from minddiff_utils.reconstruction import shards
from minddiff_utils.reconstruction import stage2 as reconstruction
from minddiff_utils.reconstruction.inputs import ablate
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings

N = 7  # four batches
NAMES = ("trace", "trace_no_z", "trace_no_c", "trace_shuffled")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def generator(tiny_models):
    return load_generator(tiny_models, "cpu")


@pytest.fixture(scope="module")
def inputs(generator):
    """What the chapter on decoding leaves, and the same from shuffled responses."""
    found = decoded_arrays(generator, N)
    found["split"] = np.zeros(N, np.int64)
    return found, {**found, "z": found["z"][::-1].copy()}


@pytest.fixture
def parameters(tiny_models, inputs, tmp_path):
    """Parameters of the chapter, of which the subject's folder holds what it needs."""
    folder = tmp_path / "run" / "s"
    folder.mkdir(parents=True)
    for name, arrays in zip(("decoded", "decoded_shuffled"), inputs, strict=True):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            for key, values in arrays.items():
                file[key] = values
    (sheet,) = [s for s in runs.find_sheets(ROOT / "notebooks") if s.name == execution.SHARDED]
    quick = {
        "n_steps": 2,
        "z_evidence_weight": 0.0,
        "gradient_steps": 1,
        "batch": 2,
        "structure_target": "values",
        "device": "cpu",
    }
    place = {"run_dir": "run", "subject": "s", "models": str(tiny_models)}
    return {**sheet.defaults, **quick, **place}


def compute(parameters, folder, count):
    for number in range(1, count + 1):
        shards.compute_shard(parameters, number, count, folder)
    return shards.gather(folder / "run" / "s")


def content(path):
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}, dict(file.attrs)


def same(one, two):
    (a, attributes), (b, others) = content(one), content(two)
    assert list(a) == list(b) and attributes == others
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# --- the same result ------------------------------------------------------------------------------


def test_shards_leave_what_one_process_leaves(parameters, inputs, generator, tmp_path):
    """Four batches in three shards; the films of the first six pictures span all three."""
    written = compute(parameters, tmp_path, 3)
    assert [path.stem for path in written] == sorted(NAMES)
    names = Settings.__dataclass_fields__.keys() & parameters.keys()
    settings = Settings(**{name: parameters[name] for name in names})
    cases = {
        "trace": (inputs[0], settings),
        "trace_no_z": ablate(generator, inputs[0], settings, "z"),
    }
    for name, (given, chosen) in cases.items():
        whole = reconstruct(generator, given, chosen, tmp_path / f"{name}.h5", batch=2)
        same(tmp_path / f"run/s/{name}.h5", whole)


def test_a_stopped_shard_goes_on_and_a_whole_one_is_left(parameters, tmp_path, monkeypatch):
    parameters = {**parameters, "ablations": False}
    calls = []
    original = reconstruction.stage2

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(reconstruction, "stage2", stopping)
    with pytest.raises(KeyboardInterrupt):
        shards.compute_shard(parameters, 1, 2, tmp_path)
    kept = tmp_path / "run/s/shards/trace-1-of-2.h5.partial"
    assert content(kept)[1]["done"] == 2
    shards.compute_shard(parameters, 1, 2, tmp_path)
    assert len(calls) == 2 + 1 + 2  # the second batch again, and the two of the control
    shards.compute_shard(parameters, 1, 2, tmp_path)
    assert len(calls) == 5


def test_only_shards_that_fit_are_gathered(parameters, tmp_path):
    parameters = {**parameters, "ablations": False, "batch": 4}
    folder = tmp_path / "run" / "s"
    shards.compute_shard(parameters, 1, 2, tmp_path)
    assert shards.gather(folder) == []
    shards.compute_shard({**parameters, "seed": 5}, 2, 2, tmp_path)
    assert shards.gather(folder) == [] and not (folder / "trace.h5").exists()
    shards.compute_shard(parameters, 2, 2, tmp_path)
    assert len(shards.gather(folder)) == 2


def test_more_shards_than_batches_and_wrong_numbers(parameters, tmp_path):
    assert shards.compute_shard(parameters, 9, 9, tmp_path) == []
    with pytest.raises(InputError, match="shard 3 of 2"):
        shards.compute_shard(parameters, 3, 2, tmp_path)
    (tmp_path / "run/s/decoded.h5").unlink()
    with pytest.raises(InputError, match="02_decoding"):
        shards.compute_shard(parameters, 1, 2, tmp_path)


# --- their jobs -----------------------------------------------------------------------------------


def job(parameters, folder):
    return runs.Job(
        notebook=execution.SHARDED,
        subject="s",
        source="",
        output=str(folder / "run/s/notebooks/04_stage2.ipynb"),
        cwd=str(folder),
        run=str(folder / "run"),
        parameters=parameters,
        data="A",
        page="",
    )


def test_progress_and_failures_name_the_shard(parameters, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(execution, "QUIET_SECONDS", 0)
    few = {**parameters, "ablations": False}
    execution.execute_shard(job(few, tmp_path), 2, 2, said.append)
    label = "s · 04_stage2 · shard 2 of 2"
    assert said[0] == f"{label} · started" and said[-1].startswith(f"{label} · done in")
    assert any(f"{label} · trace shuffled:" in line and "2/2" in line for line in said)

    with pytest.raises(execution.NotebookError, match=f"{label}: .*no_such") as caught:
        wrong = {**parameters, "models": "no_such", "seed": 1}
        execution.execute_shard(job(wrong, tmp_path), 2, 2, said.append)
    assert caught.value.user

    def full(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(reconstruction, "stage2", full)
    with pytest.raises(execution.NotebookError, match="out of memory") as caught:
        execution.execute_shard(job({**parameters, "seed": 1}, tmp_path), 2, 2, said.append)
    assert not caught.value.user


def test_a_new_computation_forgets_its_shards(parameters, tmp_path):
    todo = job(parameters, tmp_path)
    execution.begin(todo)
    left = tmp_path / "run/s/shards/trace-1-of-2.h5"
    left.parent.mkdir()
    left.write_text("old")
    execution.begin(todo)
    assert left.exists()
    execution.begin(runs.Job(**{**vars(todo), "data": "B"}))
    assert not left.exists()


def dry_run(project, count):
    """What Snakemake would execute, job by job, where `02_second` is the sharded chapter."""
    plan = runs.load_plan(
        project / "notebooks/params/tiny.yaml", project / "notebooks", {"shards": count}
    )
    state = plan.run / ".state"
    runs.make_jobs(plan, state)
    order = cli._write_order(plan, state, threads=1, shard_threads=1, options=[])
    order.write_text(order.read_text().replace("04_stage2", "02_second"))
    command = [sys.executable, "-m", "snakemake", "--snakefile", project / "notebooks/Snakefile"]
    command += ["--configfile", order, "--directory", state, "--cores", "1", "--dry-run"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return answer.stdout


def test_snakefile_has_a_job_a_subject_and_shard(tmp_path):
    project = make_project(tmp_path)
    said = dry_run(project, 3)
    assert said.count("rule shard:") == 2 * 3 and said.count("rule chapter:") == 4
    assert "minddiff_utils.cli shard" not in dry_run(project, 1)


@pytest.mark.parametrize("value", ["0", "many", "2.5", "true"])
def test_number_of_shards_is_checked(tmp_path, value):
    project = make_project(tmp_path)
    write_params(project, shards=yaml.safe_load(value))
    with pytest.raises(InputError, match="`shards` is .*expected a whole number from 1"):
        runs.load_plan(project / "notebooks/params/tiny.yaml", project / "notebooks")


def test_shards_change_no_job(tmp_path):
    project = make_project(tmp_path)
    made = []
    for count in (1, 4):
        plan = runs.load_plan(
            project / "notebooks/params/tiny.yaml", project / "notebooks", {"shards": count}
        )
        made.append([job for _, job in runs.make_jobs(plan, plan.run / ".state")])
    assert made[0] == made[1]


def test_jobs_wait_for_a_slot(tmp_path):
    (tmp_path / ".state").mkdir()
    order, may_end = [], threading.Event()

    def work(name):
        with cli._slot(tmp_path, 1):
            order.append(name)
            may_end.wait(10)

    first = threading.Thread(target=work, args=["first"])
    first.start()
    while not order:
        time.sleep(0.01)
    second = threading.Thread(target=work, args=["second"])
    second.start()
    time.sleep(3 * cli.SLOT_SECONDS)
    assert order == ["first"]
    with cli._slot(tmp_path, 0):  # no limit
        may_end.set()
    first.join()
    second.join()
    assert order == ["first", "second"]


def test_threads_share_the_cores(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [cli._threads(n, 8, None) for n in (1, 2, 3, 20)] == [8, 4, 2, 1]
    assert cli._threads(2, 8, tmp_path) == 1  # for the profile to say
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cli._threads(2, 8, None) == 3


def test_profiles_are_found_by_name_or_folder(tmp_path):
    assert cli._profile(ROOT, "slurm") == ROOT / "notebooks/profiles/slurm"
    (tmp_path / "config.yaml").write_text("jobs: 1\n")
    assert cli._profile(ROOT, str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="--profile nowhere: .*: slurm"):
        cli._profile(ROOT, "nowhere")


def test_interrupted_on_a_cluster_snakemake_cancels_its_jobs(tmp_path):
    """It gets the chance to; on one machine all of it is killed at once."""
    for cancel in (True, False):
        mark = tmp_path / f"cancelled-{cancel}"
        source = (
            "import pathlib, signal, time\n"
            # A shell that starts the tests in the background has interrupts ignored.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "try:\n    print(flush=True)\n    time.sleep(60)\n"
            f"except KeyboardInterrupt:\n    pathlib.Path({str(mark)!r}).touch()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", source], process_group=0, stdout=subprocess.PIPE
        )
        process.stdout.readline()
        cli._stop(process, cancel)
        assert mark.exists() == cancel and process.poll() is not None
