"""The book's machinery on a small project: order, changes, failures, kills, pages."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from dummy_project import ROOT, make_project, notebook, write_params
from nbformat.v4 import new_markdown_cell, new_notebook, new_output

from minddiff_utils.book import build as book
from minddiff_utils.book import execution, runs
from minddiff_utils.book.environment import job_environment, known_environment
from minddiff_utils.io import InputError, NotebookError, lock_file

# What a user's shell may hold: none of it may show in a book.
SURROUNDINGS = {"MPLBACKEND": "Agg", "SNAKEMAKE_PROFILE": "/nowhere", "HOME": "/proc/nohome"}
TITLE = "</title><script>alert(1)</script> & $x$"


def minddiff(*arguments, around=None):
    """Run the command line as the Makefile does, with some variables of the shell around it."""
    command = [sys.executable, "-m", "minddiff_utils.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(around or {})}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def executed(project):
    """When each executed notebook was written."""
    paths = sorted((project / "runs" / "tiny").rglob("notebooks/[0-9]*.ipynb"))
    return {str(p.relative_to(project / "runs" / "tiny")): p.stat().st_mtime_ns for p in paths}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A project whose book has been built once, in a folder with an odd name."""
    project = make_project(tmp_path_factory.mktemp("built") / "grant{7} [2024]")
    write_params(project, title=TITLE)
    answer = minddiff("book", "tiny", "--root", project, around=SURROUNDINGS)
    assert answer.returncode == 0, answer.stderr
    return project, answer


@pytest.fixture
def plan(tmp_path):
    project = make_project(tmp_path)
    return runs.load_plan(project / "notebooks/params/tiny.yaml", project / "notebooks")


# --- the whole road -------------------------------------------------------------------------------


def test_book_is_built_and_its_path_is_printed(built):
    project, answer = built
    index = Path(answer.stdout.strip())
    assert index == project / "runs/tiny/html/index.html" and index.is_file()
    assert ".500 (.500,\u00a0.500)" in index.read_text()  # the results' table
    page = (project / "runs/tiny/html/subj02/01_first.html").read_text()
    assert "First — subj02" in page and 'id="fig-first-subj02"' in page
    assert 'alt="A line."' in page


def test_terminal_names_subject_and_notebook_and_nothing_of_snakemake(built):
    _, answer = built
    assert "subj01 · 01_first · done" in answer.stderr
    assert "all subjects · 03_group · done" in answer.stderr
    assert "snakemake" not in answer.stderr.lower() and "jobid" not in answer.stderr


def test_executed_notebooks_hold_their_parameters(built):
    project, _ = built
    page = nbformat.read(project / "runs/tiny/subj02/notebooks/02_second.ipynb", 4)
    assert "image/png" in page.cells[-1].outputs[0].data
    assert page.metadata.papermill.parameters["subject"] == "subj02"
    record = json.loads((project / "runs/tiny/subj02/provenance.json").read_text())
    assert record["notebooks"]["02_second"]["parameters"]["gain"] == 0.5
    assert record["packages"]["papermill"]


def test_a_title_is_text(built):
    html = built[0] / "runs/tiny/html"
    for path in [*html.glob("*.html"), *html.glob("subj*/*.html")]:
        page = BeautifulSoup(path.read_text(), "html.parser")
        assert TITLE in page.title.string
        assert "alert" not in "".join(script.text for script in page.find_all("script"))
        assert page.select_one(".logo__title").string == TITLE


def test_changes_redo_what_depends_on_them_and_no_more(built):
    project, _ = built
    before = executed(project)
    index = project / "runs/tiny/html/index.html"
    html = index.stat().st_mtime_ns

    begun = time.monotonic()
    answer = minddiff("book", "tiny", "--root", project)
    assert answer.returncode == 0 and "up to date" in answer.stderr
    assert executed(project) == before and index.stat().st_mtime_ns == html
    assert time.monotonic() - begun < 60

    answer = minddiff("book", "tiny", "--root", project, "--set", "gain=2")
    after = executed(project)
    assert answer.returncode == 0, answer.stderr
    redone = {name for name in before if before[name] != after[name]}
    assert redone == {
        "subj01/notebooks/02_second.ipynb",
        "subj02/notebooks/02_second.ipynb",
        "notebooks/03_group.ipynb",
    }
    assert "2.000 (2.000,\u00a02.000)" in index.read_text()


def test_failing_notebook_stops_the_build_and_the_last_book_stays(tmp_path):
    project = make_project(tmp_path)
    assert minddiff("book", "tiny", "--root", project).returncode == 0
    path = project / "notebooks" / "02_second.ipynb"
    broken = nbformat.read(path, 4)
    broken.cells[2].source = "x = 1\nraise RuntimeError('no such luck')"
    nbformat.write(broken, path)

    answer = minddiff("book", "tiny", "--root", project)
    assert answer.returncode == 1
    for said in ("subj01 · 02_second", "cell 3 failed", "x = 1", "RuntimeError: no such luck"):
        assert said in answer.stderr
    assert "last good book stays" in answer.stderr
    assert ".500 (.500,\u00a0.500)" in (project / "runs/tiny/html/index.html").read_text()
    folder = project / "runs/tiny/subj01/notebooks"
    assert (folder / "02_second.failed.ipynb").is_file()
    assert not (folder / "02_second.ipynb").exists()

    broken.cells[
        2
    ].source = (
        "from minddiff_utils.io import InputError\nraise InputError('x is missing. Fetch x.')"
    )
    nbformat.write(broken, path)
    answer = minddiff("book", "tiny", "--root", project)
    assert answer.returncode == 2
    assert "subj01 · 02_second: cell 3: x is missing. Fetch x." in answer.stderr
    assert "raise InputError" not in answer.stderr


FULL = """import os
try:
    with open(os.environ["DISK"], "w") as file:
        file.write("x" * 10_000)
except OSError:
    raise RuntimeError("Can't close the file")  # as HDF5 does"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_named_and_after_making_room_the_run_goes_on(tmp_path, monkeypatch):
    project = make_project(tmp_path)
    path = project / "notebooks" / "02_second.ipynb"
    writing = nbformat.read(path, 4)
    writing.cells[2].source += "\n" + FULL
    nbformat.write(writing, path)
    one = ("book", "tiny", "--root", project, "--set", "subjects=subj01")

    monkeypatch.setenv("DISK", "/dev/full")
    answer = minddiff(*one)
    assert answer.returncode == 1
    said = f"subj01 · 02_second: cell 3: no space is left on the disk that holds {project / 'runs'}"
    assert said in answer.stderr and "Make room there" in answer.stderr
    assert "RuntimeError" not in answer.stderr
    before = {name: when for name, when in executed(project).items() if ".failed." not in name}

    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    answer = minddiff(*one)
    assert answer.returncode == 0, answer.stderr
    assert executed(project).items() >= before.items() and len(before) == 1


def test_warning_of_the_page_builder_fails_and_the_last_book_stays(tmp_path):
    project = make_project(tmp_path)
    assert minddiff("book", "tiny", "--root", project, "--set", "subjects=subj01").returncode == 0
    (project / "book" / "method.md").write_text("# Method\n\n[nowhere](missing.md)\n")
    answer = minddiff("book", "tiny", "--root", project, "--set", "subjects=subj01")
    assert answer.returncode == 1 and "missing.md" in answer.stderr
    assert "Said by" in (project / "runs/tiny/html/method.html").read_text()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_killed_run_goes_on_with_the_same_result(tmp_path, sent):
    project = make_project(tmp_path)
    write_params(project, subjects=["subj01"])
    path = project / "notebooks" / "02_second.ipynb"
    slow = nbformat.read(path, 4)
    # So slow that it cannot end before the signal works, until it may go on.
    allowed = project / "go"
    waiting = f"import os, time\nos.path.exists({str(allowed)!r}) or time.sleep(50)\n"
    slow.cells[2].source = waiting + slow.cells[2].source
    nbformat.write(slow, path)
    command = [sys.executable, "-m", "minddiff_utils.cli", "book", "tiny", "--root", str(project)]
    # A shell lets what it starts in the background ignore Ctrl+C, and these tests may be that.
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = project / "runs/tiny/subj01/notebooks/01_first.ipynb"
    running = project / "runs/tiny/subj01/notebooks/.02_second.running.ipynb"
    _wait_for(lambda: first.exists() and running.exists())
    process.send_signal(sent)
    process.wait(timeout=30)
    assert not (project / "runs/tiny/subj01/notebooks/02_second.ipynb").exists()
    stamp = first.stat().st_mtime_ns

    allowed.touch()
    answer = minddiff("book", "tiny", "--root", project)
    assert answer.returncode == 0, answer.stderr
    assert first.stat().st_mtime_ns == stamp  # what was done stays done
    assert (project / "runs/tiny/subj01/second.txt").read_text() == "subj01 0 0.5"


def _wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# --- parameters and digests -----------------------------------------------------------------------


def test_parameters_come_from_the_file_and_only_where_declared(plan):
    first, second = plan.chapters
    assert plan.subjects == ("subj01", "subj02") and plan.group[0].name == "03_group"
    jobs = {(j.notebook, j.subject): j for _, j in runs.make_jobs(plan, plan.run / ".state")}
    assert len(jobs) == 5
    assert "gain" not in jobs["01_first", "subj01"].parameters
    assert jobs["02_second", "subj02"].parameters["subject"] == "subj02"
    assert jobs["03_group", ""].parameters["subjects"] == "subj01,subj02"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gian": 1.0}, "Did you mean `gain`"),
        ({"seed": "many"}, "should be a whole number"),
        ({"seed": True}, "should be a number"),
        ({"subjects": []}, "expected a list of different names"),
        ({"subjects": ["a", "a"]}, "expected a list of different names"),
        ({"subjects": ["../x"]}, "expected a name of letters and digits"),
    ],
)
def test_bad_parameters_are_named(tmp_path, changes, said):
    project = make_project(tmp_path)
    write_params(project, **changes)
    with pytest.raises(InputError, match=said):
        runs.load_plan(project / "notebooks/params/tiny.yaml", project / "notebooks")


@pytest.mark.parametrize("text", ["[1, 2", "just words", "- a\n- b"])
def test_bad_yaml_is_named(tmp_path, text):
    project = make_project(tmp_path)
    path = project / "notebooks/params/tiny.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="tiny.yaml"):
        runs.load_plan(path, project / "notebooks")


def test_parameters_cell_must_hold_plain_values():
    for source in ("seed = int('3')", "import os", "a = b = 3", "a, b = 1, 2"):
        with pytest.raises(InputError, match="plain value"):
            runs.declared_parameters(notebook("T", source))
    with pytest.raises(InputError, match="found 0"):
        runs.declared_parameters(new_notebook())
    assert runs.declared_parameters(notebook("T", "a = -0.5  # s\nb = 'x'")) == {
        "a": -0.5,
        "b": "x",
    }


def _digests(plan, package=runs.PACKAGE):
    jobs = runs.make_jobs(plan, plan.run / ".state", package)
    return {(job.notebook, job.subject): (job.data, job.page) for _, job in jobs}


def test_code_counts_but_comments_do_not(plan, tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    sources = {"a": "from pack.b import f", "b": "f = 1", "c": "g = 1", "d": "h = 1"}
    sources["figures"] = "from pack.d import h"
    for name, text in sources.items():
        (package / f"{name}.py").write_text(text)
    path = plan.notebooks / "02_second.ipynb"
    source = nbformat.read(path, 4)
    source.cells[2].source += "\nfrom pack import a, figures"
    nbformat.write(source, path)
    before = _digests(plan, package)

    (package / "b.py").write_text('"""Words."""\n# more words\nf = 1')
    (package / "c.py").write_text("g = 2")
    assert _digests(plan, package) == before

    for name in ("figures", "d"):  # figures, and what only they use
        (package / f"{name}.py").write_text("colour = 'blue'\nfrom pack import d")
        drawn = _digests(plan, package)
        assert drawn["02_second", "subj01"][0] == before["02_second", "subj01"][0]
        assert drawn["02_second", "subj01"][1] != before["02_second", "subj01"][1]

    (package / "b.py").write_text("f = 2")
    after = _digests(plan, package)
    assert after["01_first", "subj01"] == before["01_first", "subj01"]
    assert after["02_second", "subj01"][0] != before["02_second", "subj01"][0]
    assert after["03_group", ""][0] != before["03_group", ""][0]


def test_job_files_are_rewritten_only_when_something_changed(plan):
    (path, job), *_ = runs.make_jobs(plan, plan.run / ".state")
    os.utime(path, ns=(1, 1))
    runs.make_jobs(plan, plan.run / ".state")
    assert path.stat().st_mtime_ns == 1
    assert runs.read_job(path) == job


def test_data_files_count_by_content(plan, tmp_path):
    data = plan.notebooks / "data.bin"
    data.write_bytes(b"one")
    changed = {**plan.parameters, "data_path": "data.bin"}
    plan = runs.Plan(**{**vars(plan), "parameters": changed})
    before = _digests(plan)
    data.write_bytes(b"two")
    assert _digests(plan)["01_first", "subj01"] != before["01_first", "subj01"]


def job_of(tmp_path, name):
    return runs.Job(
        notebook=name,
        subject="s",
        source="",
        output=str(tmp_path / "s" / "notebooks" / f"{name}.ipynb"),
        cwd=".",
        run=str(tmp_path),
        parameters={},
        data="A",
        page="",
    )


def test_a_new_computation_forgets_and_a_stopped_one_goes_on(tmp_path):
    job = job_of(tmp_path, "02_decoding")
    execution.begin(job)
    features = tmp_path / "s" / "features.h5.partial"
    features.write_text("half")
    (tmp_path / "s" / "decoders").mkdir()
    execution.begin(job)
    assert features.exists()
    execution.begin(runs.Job(**{**vars(job), "data": "B"}))
    assert not features.exists() and not (tmp_path / "s" / "decoders").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("data_path", "nowhere", "nowhere: give the recording"),
        ("models", "nowhere", "nowhere/stable_diffusion is no folder here"),
        ("models", "models", "stable_diffusion lacks unet"),
        ("guide", "nowhere", "nowhere lacks config.json"),
        ("judge", "models", "models lacks config.json"),
    ],
)
def test_a_mistyped_path_does_not_cost_the_results_of_the_right_one(tmp_path, name, value, said):
    weights = ROOT / "minddiff_utils" / "phantom" / "weights"
    shutil.copytree(weights, tmp_path / "models", ignore=shutil.ignore_patterns("unet"))
    right = {"data_path": ".", "models": str(weights), "guide": "", "judge": ""}
    job = {**vars(job_of(tmp_path, "02_decoding")), "cwd": str(tmp_path), "parameters": right}
    execution.begin(runs.Job(**job))
    features = tmp_path / "s" / "features.h5"
    features.write_text("days of work")
    job |= {"parameters": {**right, name: value}, "data": "B"}
    with pytest.raises(InputError, match=said):
        execution.begin(runs.Job(**job))
    assert features.read_text() == "days of work"
    job["parameters"] = right
    execution.begin(runs.Job(**job))
    assert not features.exists()


def test_stage_2_forgets_its_own_pictures_and_leaves_those_of_stage_1(tmp_path):
    job = job_of(tmp_path, "04_stage2")
    execution.begin(job)
    pictures = tmp_path / "s" / "reconstructions.h5"
    for names in (("truth", "stage1", "stage2", "no_z"), ("truth", "stage1")):
        with h5py.File(pictures, "w") as file:
            for name in names:
                file[name] = np.arange(3)
        (tmp_path / "s" / "trace_no_z.h5.partial").write_text("half")
        execution.forget(tmp_path / "s", "04_stage2")
        assert not (tmp_path / "s" / "trace_no_z.h5.partial").exists()
        with h5py.File(pictures) as file:
            assert set(file) == {"truth", "stage1"}
            np.testing.assert_array_equal(file["truth"], np.arange(3))


def test_a_chapter_whose_figure_was_not_drawn_fails(tmp_path):
    page = notebook("T", "a = 1", "figure", "figure")
    for cell, kind in zip(page.cells[2:], ("image/png", "text/plain"), strict=True):
        cell.metadata["mystnb"] = {"figure": {"name": f"fig-{kind[:4]}"}}
        cell.outputs = [new_output("display_data", {kind: "x"})]
    nbformat.write(page, tmp_path / "running.ipynb")
    with pytest.raises(NotebookError, match="s · 05: the cell of fig-text has drawn no figure"):
        execution._need_figures(
            job_of(tmp_path, "05"), tmp_path / "running.ipynb", tmp_path / "failed.ipynb"
        )
    assert (tmp_path / "failed.ipynb").exists()


def test_surroundings_of_a_job(tmp_path, monkeypatch):
    home = tmp_path / "home"
    for folder in (".ipython/profile_default/startup", ".cache/huggingface"):
        (home / folder).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MATPLOTLIBRC", str(home))
    monkeypatch.setenv("PYTHONSTARTUP", str(home / "startup.py"))
    with known_environment():
        found = dict(os.environ)
        assert Path(found["MATPLOTLIBRC"], "matplotlibrc").is_file()
        assert not Path(found["IPYTHONDIR"]).is_relative_to(home) and found["HOME"] == str(home)
        assert "PYTHONSTARTUP" not in found and Path(found["IPYTHONDIR"]).parent.is_dir()
    assert os.environ["PYTHONSTARTUP"] and not Path(found["IPYTHONDIR"]).parent.exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    unwritable = job_environment(tmp_path)
    assert unwritable["HOME"] == str(tmp_path)
    assert unwritable["HF_HOME"] == str(home / ".cache/huggingface")  # models are found again


def test_a_disk_without_locks_guards_nothing_and_stops_nothing(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("minddiff_utils.io.fcntl.flock", no_locks)
    with open(tmp_path / "lock", "a") as file:
        assert lock_file(file) and lock_file(file, wait=True)


# --- pages ----------------------------------------------------------------------------------------


def test_labels_carry_the_subject_and_prose_does_not():
    text = (
        "(loss)=\n# Stage 2\n\nThe loss of {eq}`loss` and [here](#loss), {ref}`so <loss>`; "
        "fig-a is a word.\n\n$$ (eq-x)\na = b\n$$\n\n```{math}\n:label: eq-y\nc\n```\n"
        "{numref}`fig-a` {eq}`eq-x` {eq}`eq-y` {eq}`elsewhere`"
    )
    page = notebook("T", "a = 1", "1")
    page.cells.append(new_markdown_cell(text))
    page.cells[2].metadata["mystnb"] = {"figure": {"name": "fig-a", "caption": "c"}}
    source = book.finish_page(page, "subj01").cells[-1].source
    for label in ("loss", "eq-x", "eq-y", "fig-a"):
        assert f"`{label}`" not in source and f"{label}-subj01" in source
    assert "(loss-subj01)=" in source and "[here](#loss-subj01)" in source
    assert "<loss-subj01>" in source and "The loss of" in source
    assert "fig-a is a word" in source and "{eq}`elsewhere`" in source
    assert "$$ (eq-x-subj01)" in source and ":label: eq-y-subj01" in source


def test_page_has_title_folded_parameters_and_alternative_text():
    page = notebook("Title", "a = 1", "1")
    page.cells[2].metadata["mystnb"] = {"figure": {"name": "fig-a", "caption": "What is seen."}}
    page = book.finish_page(page, "subj07")
    assert "# Title — subj07\n" in page.cells[0].source
    assert page.cells[1].metadata["tags"] == ["parameters", "hide-input"]
    assert page.cells[2].metadata["mystnb"]["image"]["alt"] == "What is seen."
    assert page.cells[2].metadata["mystnb"]["figure"]["name"] == "fig-a-subj07"


def test_a_notebook_with_an_error_makes_no_page():
    page = notebook("T", "a = 1")
    page.metadata["papermill"] = {"exception": True}
    with pytest.raises(InputError, match="stopped with an error"):
        book.finish_page(page, "s")


def test_contents_have_a_part_a_subject(plan):
    toc = book.table_of_contents(plan)
    assert [part["caption"] for part in toc["parts"]] == [
        "The idea",
        "Subject subj01",
        "Subject subj02",
        "Subjects compared",
        "Reference",
    ]
    assert toc["parts"][1]["chapters"][1] == {"file": "subj01/02_second", "title": "Second"}


def test_guides_stand_after_the_chapters(plan):
    plan = runs.Plan(**{**vars(plan), "pages": ("method", "own_data", "data_layouts")})
    parts = {part["caption"]: part["chapters"] for part in book.table_of_contents(plan)["parts"]}
    assert parts["The idea"] == [{"file": "method"}]
    assert parts["Run it on other data"] == [{"file": "own_data"}, {"file": "data_layouts"}]
    assert list(parts).index("Run it on other data") == len(parts) - 2


def test_included_headings_move_down_but_comments_in_code_do_not():
    text = "# A\n\n```bash\n# no heading\n```\n\n## B\n"
    assert book.demote_headings(text) == "## A\n\n```bash\n# no heading\n```\n\n### B\n"


def test_progress_says_cell_and_bar(monkeypatch):
    said = []
    now = [0.0]
    monkeypatch.setattr(execution.time, "monotonic", lambda: now[0])
    progress = execution.Progress("subj01 · 04_stage2", 12, said.append)
    progress.on_cell(None, 4)
    now[0] = 65.0
    progress.write("\rstage 2:  10%|█    | 3/30\rstage 2:  20%|██   | 6/30 [00:10<00:40]")
    progress.write("\rstage 2:  30%|███  | 9/30")
    bar = "stage 2:  20%|██   | 6/30 [00:10<00:40]"
    assert said == [f"subj01 · 04_stage2 · cell 5 of 12 · {bar} · 1:05"]


@pytest.mark.parametrize(("n_failures", "works"), [(2, True), (3, False)])
def test_a_kernel_that_does_not_start_is_started_again(tmp_path, monkeypatch, n_failures, works):
    """As where two of them chose the same port."""
    notebook = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), notebook)
    left = [RuntimeError("Kernel died before replying to kernel_info")] * n_failures

    def execute(source, output, **given):
        if left:
            raise left.pop()
        Path(output).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(execution.papermill, "execute_notebook", execute)
    job = runs.Job(**{**vars(job_of(tmp_path, "a")), "source": str(notebook)})
    expected = contextlib.nullcontext() if works else pytest.raises(RuntimeError, match="replying")
    with expected:
        execution._papermill(job, tmp_path / "out.ipynb", print)
    assert (tmp_path / "out.ipynb").exists() == works
