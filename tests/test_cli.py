"""The command line: one clear line and exit code 2 for what a user can mend."""

import fcntl
import os
import subprocess
import sys

import pytest
from dummy_project import ROOT, make_project, write_params

from minddiff_utils import cli
from minddiff_utils.book import runs
from minddiff_utils.book.execution import NotebookError
from minddiff_utils.io import InputError


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def call(capsys, monkeypatch, *arguments):
    """Run `main` in this process; return exit code and what went to the terminal."""
    monkeypatch.setattr(sys, "argv", ["minddiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, capsys.readouterr()


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "check own nothing.h5",
        "check nsd .",
        "fetch nsd --help",
        "bench --help",
        "data tiny --root {}",
    ],
)
def test_commands_start_at_once_and_quietly(project, words):
    """Large libraries take seconds and memory, which would count as a bench's own."""
    program = (
        "import atexit, sys; from minddiff_utils.cli import main;"
        "atexit.register(lambda: print(*sys.modules)); main()"
    )
    command = [sys.executable, "-c", program, *words.format(project).split()]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    large = {"torch", "sklearn", "himalaya", "nilearn", "matplotlib", "transformers", "diffusers"}
    large |= set() if words.startswith(("bench", "data")) else {"pandas", "scipy.io", "nbformat"}
    assert not large & set(answer.stdout.split())
    assert "torch" not in answer.stderr and answer.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["book", "nothing"], "nothing.yaml. Known: tiny"),
        (["book", "tiny", "--data", "/no/such.mat"], "There is no /no/such.mat"),
        (["book", "tiny", "--set", "gain"], "expected KEY=VALUE"),
        (["book", "tiny", "--set", "gain=much"], "gain='much' should be a number"),
        (["book", "tiny", "--set", "seed=[1"], "not valid YAML"),
        (["run", "09_none", "tiny", "subj01"], "Known: 01_first subj01"),
        (["run", "01_first", "tiny", "subj09"], "Known: 01_first subj01"),
        (["book", "tiny", "--set", "phantom={n_trian: 3}"], "expected n_train, n_test"),
    ],
)
def test_what_a_user_can_mend_is_one_line(project, capsys, monkeypatch, arguments, said):
    code, shown = call(capsys, monkeypatch, *arguments, "--root", project)
    assert code == 2
    assert said in shown.err
    assert shown.err.count("\n") == 1 and "Traceback" not in shown.err
    assert not (project / "runs" / "tiny" / "html").exists()


def test_recording_without_a_path_says_how_to_give_one(project, capsys, monkeypatch):
    write_params(project, data_path="")
    code, shown = call(capsys, monkeypatch, "book", "tiny", "--root", project)
    assert code == 2 and "make book PARAMS=tiny TINY=path" in shown.err


def test_no_space_left_is_one_line(project, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(cli, "_plan", full)
    code, shown = call(capsys, monkeypatch, "book", "tiny", "--root", project)
    assert code == 1 and shown.err.count("\n") == 1
    assert shown.err.startswith("Error: no space is left on the disk that holds runs. Make room")


def test_no_space_left_for_the_note_of_a_failure(tmp_path, monkeypatch):
    """Snakemake's log says nothing of it then, and may be cut off itself."""
    project = make_project(tmp_path)
    plan = runs.load_plan(project / "notebooks/params/tiny.yaml", project / "notebooks")
    (tmp_path / "snakemake.log").write_text("WorkflowError:\nAt least one job did not complete.")
    with pytest.raises(NotebookError, match="Snakemake stopped"):
        cli._explain_failure(plan, tmp_path)
    monkeypatch.setattr(cli, "NOTE_BYTES", 2**63)
    with pytest.raises(NotebookError, match="no space is left on the disk that holds .*runs/tiny"):
        cli._explain_failure(plan, tmp_path)


def test_run_executes_one_notebook(project, capsys, monkeypatch):
    code, shown = call(capsys, monkeypatch, "run", "01_first", "tiny", "subj02", "--root", project)
    assert code == 0 and "subj02 · 01_first · done" in shown.err
    assert (project / "runs/tiny/subj02/notebooks/01_first.ipynb").is_file()
    assert not (project / "runs/tiny/subj01").exists()


def test_a_busy_folder_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "WAIT_SECONDS", 0.3)
    with cli._locked(tmp_path):
        with open(tmp_path / ".state" / "lock") as other:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(InputError, match="Another process is at work"):
            with cli._locked(tmp_path):
                pass
    with cli._locked(tmp_path):
        pass  # free again


def test_command_is_there_as_a_module():
    command = [sys.executable, "-m", "minddiff_utils.cli", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0 and "book" in answer.stdout
