"""How the book's jobs are shared out: shards, threads, profiles, interrupts."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from dummy_project import ROOT, make_project

from minddiff_utils import cli
from minddiff_utils.book import execution, run
from minddiff_utils.book.plan import load_plan
from minddiff_utils.io import InputError, NotebookError, claim_run


def plan_of(project, **changes):
    return load_plan(project / "notebooks/params/tiny.yaml", project, changes)


def test_failures_name_the_shard_and_its_progress_is_told(tmp_path, monkeypatch):
    plan = plan_of(make_project(tmp_path), shards=2)
    sheet = plan.chapters[1]
    plan = type(plan)(plan.name, plan.root, plan.values, (*plan.sheets[:1], chapter(sheet)))
    folder = claim_run(plan.run) / "subj01"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"01_data": {"seed": 3}}))
    said, given = [], []

    def compute(parameters, number, count, project):
        given.append((parameters, number, count, project))
        if number == 2:
            raise RuntimeError("out of memory")

    monkeypatch.setattr("minddiff_utils.reconstruction.stage2.compute_shard", compute)
    execution.execute_shard(plan, "subj01", 1, said.append)
    label = "subj01 · 04_stage2 · shard 1 of 2"
    assert said[0] == f"{label} · started" and said[-1].startswith(f"{label} · done in")
    (parameters, *rest) = given[0]
    assert rest == [1, 2, plan.root] and parameters["run_dir"] == str(plan.run)
    assert parameters["seed"] == 3 and parameters["gain"] == 0.5  # recalled, and a default
    with pytest.raises(NotebookError, match="shard 2 of 2 failed: .*out of memory"):
        execution.execute_shard(plan, "subj01", 2, said.append)


def chapter(sheet):
    """The same notebook under the name of the chapter that is shared out."""
    return type(sheet)(run.SHARDED, sheet.path, sheet.defaults)


def dry_run(project, count):
    """What Snakemake would execute, job by job, where `02_second` is the sharded chapter."""
    plan = plan_of(project, shards=count)
    state = claim_run(plan.run) / ".state"
    run.write_plan(plan)
    assert run._mark_done(plan, state) == 5
    command = run._snakemake(plan, state, 1, None) + ["--dry-run"]
    order = state / "order.json"
    order.write_text(order.read_text().replace("04_stage2", "02_second"))
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_snakefile_has_a_job_a_subject_and_shard(tmp_path):
    project = make_project(tmp_path)
    said = dry_run(project, 3)
    assert said.count("rule shard:") == 2 * 3 and said.count("rule chapter:") == 4
    assert said.count("rule group_page:") == 1
    assert "rule shard:" not in dry_run(project, 1)


def test_shards_change_no_input(tmp_path):
    project = make_project(tmp_path)
    one, four = (plan_of(project, shards=n) for n in (1, 4))
    for sheet in one.chapters:
        assert run.inputs_digest(one, sheet, "subj01") == run.inputs_digest(four, sheet, "subj01")


def test_what_is_kept_counts_where_a_chapter_shows_it(tmp_path):
    project = make_project(tmp_path)
    (project / run.KEPT).unlink()  # a link to the real one
    (project / run.KEPT).mkdir()
    plan = plan_of(project)
    shown, other = plan.chapters[0], plan.chapters[1]
    page = nbformat.read(shown.path, 4)
    page.cells[-1].source += f'\nprint(open("{run.KEPT}/a.md").read())'
    nbformat.write(page, shown.path)
    (project / run.KEPT / "a.md").write_text("1")
    before = [run.inputs_digest(plan, sheet, "subj01") for sheet in (shown, other)]
    (project / run.KEPT / "a.md").write_text("2")
    after = [run.inputs_digest(plan, sheet, "subj01") for sheet in (shown, other)]
    assert before[0] != after[0] and before[1] == after[1]


def test_progress_is_told_wherever_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    say = cli._appender(Path())
    monkeypatch.chdir("/")
    say("subj01 · 02_decoding · cell 7 of 36")
    assert "cell 7" in (tmp_path / "progress.log").read_text()


def test_threads_share_the_cores(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan = plan_of(make_project(tmp_path), shards=4)
    state = claim_run(plan.run) / ".state"
    state.mkdir()

    def threads(cores, profile=None):
        run._snakemake(plan, state, cores, profile)
        return json.loads((state / "order.json").read_text())["threads"]

    assert [threads(n) for n in (1, 2, 4, 16)] == [[1, 1], [1, 1], [2, 1], [8, 2]]
    assert threads(16, tmp_path) == [1, 1]  # for the profile to say
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(16) == [3, 3]


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
        run._stop(process, cancel)
        assert mark.exists() == cancel and process.poll() is not None
