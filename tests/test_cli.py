"""The command line: one clear line and exit code 2 for what a user can mend."""

import subprocess
import sys

import pytest
from builders import ROOT, run_cli
from dummy_project import make_project, plan_of, write_params

from minddiff_utils import cli
from minddiff_utils.io import InputError


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


WORDS = ["--help", "check own nothing.h5", "check nsd .", "fetch nsd --help", "data tiny"]


@pytest.mark.parametrize("words", WORDS)
def test_commands_start_at_once_and_quietly(project, monkeypatch, words):
    """Large libraries take seconds and memory, which would count as a bench's own."""
    program = "import atexit, sys; from minddiff_utils.cli import main;"
    program += "atexit.register(lambda: print(*sys.modules)); main()"
    command = [sys.executable, "-c", program, *words.split()]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    answer = subprocess.run(command, capture_output=True, text=True)
    large = {"torch", "sklearn", "himalaya", "nilearn", "matplotlib", "transformers", "diffusers"}
    large |= {"nbformat"} if words.startswith("data") else {"nbformat", "pandas", "scipy.io"}
    assert not large & set(answer.stdout.split())
    assert "torch" not in answer.stderr and answer.stderr.count("\n") <= 1


WRONG = [
    (["nothing"], "nothing.yaml. Known: tiny"),
    (["tiny", "--data", "/no/such.mat"], "There is no recording at '/no/such.mat'"),
    (["tiny", "--profile", "mine"], "profiles/mine/config.yaml"),
    (["tiny", "--set", "gain"], "KEY=VALUE after --set"),
    (["tiny", "--set", "gain=much"], "gain='much' should be a number"),
    (["tiny", "--set", "phantom={n_trian: 3}"], "should be 'n_train'"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_what_a_user_can_mend_is_one_line(project, capsys, monkeypatch, words, said):
    code, shown = run_cli(capsys, monkeypatch, "book", *words)
    assert code == 2
    assert said in shown.err
    assert shown.err.count("\n") == 1 and "Traceback" not in shown.err
    assert not (project / "runs" / "tiny" / "html").exists()


def test_recording_without_a_path_says_how_to_give_one(project, capsys, monkeypatch):
    write_params(project, data_path="")
    code, shown = run_cli(capsys, monkeypatch, "book", "tiny")
    assert code == 2 and "make book PARAMS=tiny TINY=path" in shown.err


def test_a_busy_folder_is_left_alone(project):
    plan = plan_of(project)
    with cli._locked(plan):
        with pytest.raises(InputError, match="Another process is at work"):
            with cli._locked(plan):
                pass
    with cli._locked(plan):
        pass  # free again
