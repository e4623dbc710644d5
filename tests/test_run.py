"""How the book's jobs are shared out: shards, threads, profiles, interrupts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dummy_project import make_project, plan_of

from minddiff_utils.book import BookError, record, run
from minddiff_utils.io import claim_run, lock_file


def test_failures_name_the_shard_and_its_progress_is_told(tmp_path, monkeypatch, capsys):
    project = make_project(tmp_path)
    (project / "notebooks/02_second.ipynb").rename(project / f"notebooks/{run.SHARDED}.ipynb")
    plan = plan_of(project, shards=2)
    (project / "notebooks/params/tiny.yaml").unlink()  # a parameter file may lie anywhere
    (claim_run(plan.run) / "subj01").mkdir()
    (plan.run / "subj01/run.json").write_text(json.dumps({"01_data": {"seed": 3}}))
    plan.state.mkdir()
    run._snakemake(plan, 1, None)
    given = []

    def compute(parameters, number, count, project):
        given.append((parameters, number, count, project))
        if number == 2:
            raise RuntimeError("out of memory")

    monkeypatch.setattr("minddiff_utils.reconstruction.stage2.compute_shard", compute)
    monkeypatch.chdir(plan.state)
    run.run_job(Path(), "subj01", run.SHARDED, 1)
    said = capsys.readouterr().out.splitlines()
    label = "subj01 · 04_stage2 · shard 1 of 2"
    assert said[0] == f"{label} · started" and said[-1].startswith(f"{label} · done in")
    (parameters, *rest) = given[0]
    assert rest == [1, 2, plan.root] and parameters["run_dir"] == str(plan.run)
    assert parameters["seed"] == 3 and parameters["gain"] == 0.5  # recalled, and a default
    with pytest.raises(BookError, match="shard 2 of 2: failed: .*out of memory"):
        run.run_job(Path(), "subj01", run.SHARDED, 2)
    with pytest.raises(BookError, match="shard 2 of 2: failed: .*out of memory"):
        run._explain(plan)


def test_what_shards_have_computed_is_the_notebooks_own(tmp_path, monkeypatch):
    project = make_project(tmp_path)
    source = project / f"notebooks/{run.SHARDED}.ipynb"
    (project / "notebooks/02_second.ipynb").rename(source)
    plan = plan_of(project, shards=2)
    claim_run(plan.run)

    def gather(folder):
        (folder / "stage2.h5").touch()

    monkeypatch.setattr("minddiff_utils.reconstruction.stage2.gather", gather)
    monkeypatch.setattr(run, "run_notebook", lambda *given: shutil.copy(source, given[1]))
    run.execute(plan, plan.sheets[-1], "subj01")
    outputs = record.read_record(plan.run / "subj01")[run.SHARDED]["outputs"]
    assert outputs.keys() == {"stage2.h5", f"notebooks/{run.SHARDED}.ipynb"}
    assert run.is_done(plan, plan.sheets[-1], "subj01")
    (plan.run / "subj01/stage2.h5").write_text("damaged")
    assert not run.is_done(plan, plan.sheets[-1], "subj01")


def dry_run(project, count, cores=1, profile=None):
    """What Snakemake would execute, job by job, where `02_second` is the sharded chapter."""
    plan = plan_of(project, shards=count)
    claim_run(plan.run)
    assert run._mark_done(plan) == 5
    command = run._snakemake(plan, cores, profile) + ["--dry-run"]
    config = plan.state / "plan.json"
    config.write_text(config.read_text().replace("04_stage2", "02_second"))
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


THREADS = [("", 16, {2, 8}), ("3", 16, {3})]


@pytest.mark.parametrize(("wanted", "cores", "threads"), THREADS)
def test_a_job_a_subject_and_shard_and_threads_share_the_cores(
    monkeypatch, tmp_path, wanted, cores, threads
):
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    said = dry_run(make_project(tmp_path), 4, cores)
    assert said.count("rule shard:") == 2 * 4 and said.count("rule chapter:") == 4
    assert said.count("rule group_page:") == 1
    run._snakemake(plan := plan_of(tmp_path), cores, tmp_path)
    assert json.loads((plan.state / "plan.json").read_text())["cores"] == 0  # the profile says
    found = {int(n) for n in re.findall(r"threads: (\d+)", said)} or {1}
    assert found == threads


@pytest.mark.parametrize("cluster", [True, False])
def test_interrupted_on_a_cluster_snakemake_cancels_its_jobs(tmp_path, monkeypatch, cluster):
    """It gets the chance to; on one machine all of it is killed at once."""
    begun, mark = tmp_path / "begun", tmp_path / "cancelled"
    source = (
        "import pathlib, signal, time\n"
        # A shell that starts the tests in the background has interrupts ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"try:\n    pathlib.Path({str(begun)!r}).touch()\n    time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    pathlib.Path({str(mark)!r}).touch()"
    )

    def interrupt():
        while not begun.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(run, "_snakemake", lambda *_: [sys.executable, "-c", source])
    threading.Thread(target=interrupt).start()
    plan, end = plan_of(make_project(tmp_path)), time.monotonic() + 10
    claim_run(plan.run)
    with open(tmp_path / "lock", "w") as lock, pytest.raises(KeyboardInterrupt):
        run.run_notebooks(plan, 1, tmp_path if cluster else None, lock.fileno())
    signal.signal(signal.SIGINT, before)
    with open(tmp_path / "lock") as lock:
        while not lock_file(lock):  # until the last of them is gone
            assert time.monotonic() < end
            time.sleep(0.05)
    assert mark.exists() == cluster
