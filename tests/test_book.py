"""The book's machinery on a small project: order, changes, failures, kills, pages."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from bs4 import BeautifulSoup
from builders import ROOT, refuses, run_cli
from dummy_project import make_project, notebook, plan_of, write_params
from nbformat.v4 import new_markdown_cell, new_notebook, new_output

from minddiff_utils.book import BookError, build, known_environment, record, run
from minddiff_utils.book.plan import declared_parameters
from minddiff_utils.io import code_digest, lock_file

# What a user's shell may hold: none of it may show in a book.
SURROUNDINGS = {"MPLBACKEND": "Agg", "SNAKEMAKE_PROFILE": "/nowhere", "HOME": "/proc/nohome"}
TITLE = "</title><script>alert(1)</script> & $x$"


def minddiff(project, *arguments, around=None):
    """Run the command line in a project's folder, with some variables of the shell around it."""
    command = [sys.executable, "-m", "minddiff_utils.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(around or {})}
    return subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)


def stamps(folder):
    """When each executed notebook was written."""
    paths = sorted(folder.rglob("notebooks/[0-9]*.ipynb"))
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in paths}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A project whose book has been built once, in a folder with an odd name."""
    project = make_project(tmp_path_factory.mktemp("built") / "grant{7} [2024]")
    write_params(project, title=TITLE)
    answer = minddiff(project, "book", "tiny", around=SURROUNDINGS)
    assert answer.returncode == 0, answer.stderr
    return project, answer


@pytest.fixture
def copy(built, tmp_path):
    """A copy of the built project under another name: what was done there is done here."""
    return shutil.copytree(built[0], tmp_path / "moved", symlinks=True)


def left(project, **changes):
    """What the book would run again, as `subject-notebook`."""
    plan = plan_of(project, **changes)
    again = [(who, sheet) for who, sheet in plan.jobs if not run.is_done(plan, sheet, who)]
    return [f"{who or 'all'}-{sheet.name}" for who, sheet in again]


# --- the whole road -------------------------------------------------------------------------------


def test_book_is_built_and_its_path_is_printed(built):
    project, answer = built
    index = Path(answer.stdout.strip())
    assert index == project / "runs/tiny/html/index.html" and index.is_file()
    assert ".500 (.500,\u00a0.500)" in index.read_text()  # the results' table
    page = (project / "runs/tiny/html/subj02/01_first.html").read_text()
    assert "First — subj02" in page and 'id="fig-first-subj02"' in page
    assert 'alt="A line."' in page and page.count("Figure 1.1") == 2  # its caption, and cited
    assert 'title="A box."' in (index.parent / "method.html").read_text()


def test_terminal_names_subject_and_notebook_and_nothing_of_snakemake(built):
    _, answer = built
    assert "subj01 · 01_first · done" in answer.stderr
    assert "all subjects · 03_group · done" in answer.stderr
    assert "snakemake" not in answer.stderr.lower() and "jobid" not in answer.stderr


def test_a_record_says_what_a_notebook_came_from_and_what_it_left(built):
    project, _ = built
    page = nbformat.read(project / "runs/tiny/subj02/notebooks/02_second.ipynb", 4)
    assert page.metadata.papermill.parameters == {"subject": "subj02"}  # the rest are defaults
    record = json.loads((project / "runs/tiny/subj02/provenance.json").read_text())
    outputs = record["notebooks"]["02_second"]["outputs"]
    assert set(outputs) == {"second.txt", "metrics.csv", "notebooks/02_second.ipynb"}
    assert record["packages"]["papermill"]


def test_a_title_is_text(built):
    html = built[0] / "runs/tiny/html"
    for path in [*html.glob("*.html"), *html.glob("subj*/*.html")]:
        page = BeautifulSoup(path.read_text(), "html.parser")
        assert TITLE in page.title.string
        assert "alert" not in "".join(script.text for script in page.find_all("script"))
        assert page.select_one(".logo__title").string == TITLE


# --- what is done again ---------------------------------------------------------------------------


def test_the_same_again_does_nothing(copy):
    run_dir = copy / "runs/tiny"
    before, index = stamps(run_dir), run_dir / "html/index.html"
    html = index.stat().st_mtime_ns
    for name in before:  # dates say nothing
        os.utime(run_dir / name, ns=(0, 2**62))
    before, begun = stamps(run_dir), time.monotonic()
    answer = minddiff(copy, "book", "tiny")
    assert answer.returncode == 0 and "up to date" in answer.stderr, answer.stderr
    assert stamps(run_dir) == before and index.stat().st_mtime_ns == html
    assert time.monotonic() - begun < 30
    assert left(copy, gain=2.0) == ["subj01-02_second", "subj02-02_second"]


def test_what_lies_beside_a_recording_and_where_it_lies_changes_nothing(copy):
    for name in ("notes.txt", ".DS_Store", "subj09.csv"):
        (copy / "data" / name).write_text("x")
    (copy / "data" / "subj07").mkdir()
    (copy / "data" / "subj07" / "betas.h5").write_text("another's")
    os.utime(copy / "data" / "recording.csv", ns=(1, 1))
    moved = copy.rename(copy.with_name("renamed"))
    assert left(moved) == []
    (moved / "data" / "subj01.txt").write_text("notes about this one")
    assert left(moved) == []
    (moved / "data" / "recording.csv").write_text("4,5,6")
    assert left(moved)[0] == "subj01-01_first" and len(left(moved)) == 4


@pytest.mark.parametrize(
    ("name", "change", "again"),
    [
        ("subj01/second.txt", None, ["subj01-02_second"]),
        ("subj02/first.txt", "half", ["subj02-01_first"]),
        ("subj01/notebooks/02_second.ipynb", '{"cells"', ["subj01-02_second"]),
        ("subj01/provenance.json", "{", ["subj01-01_first", "subj01-02_second", "all-03_group"]),
        ("results.csv", "subject", ["all-03_group"]),
    ],
)
def test_what_is_missing_or_damaged_is_made_again(copy, name, change, again):
    path = copy / "runs/tiny" / name
    path.write_text(change) if change else path.unlink()
    assert left(copy) == again


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(project := make_project(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("x")
    for folder in ("..", ".", "notebooks", "mine", "book"):
        words = ("book", "tiny", "--set", f"run_dir={folder}")
        code, said = run_cli(capsys, monkeypatch, *words)
        assert code == 2 and "is not empty, and no run has made it" in said.err
        assert "make the file .minddiff-run in it" in said.err
    assert (tmp_path / "mine" / "thesis.doc").exists() and not (tmp_path / "html").exists()
    for name in ("book", "html", "notebooks"):
        refuses("should be a name of letters", plan_of, project, subjects=[name])


def test_code_counts_but_comments_do_not(tmp_path, monkeypatch):
    for name, text in {"a/b.py": '"""A."""\nx = 1', "c.py": "y = 1"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("minddiff_utils.io.PACKAGE", tmp_path)

    def digest():
        code_digest.cache_clear()
        return code_digest("a", "c.py")

    before = digest()
    (tmp_path / "a/b.py").write_text('"""Other words."""\n# more\nx = 1\n')
    assert digest() == before
    (tmp_path / "a/b.py").write_text('"""A."""\nx = 2')
    assert digest() != before


# --- failures -------------------------------------------------------------------------------------


BROKEN = """x = 1
if subject == "subj01":
    raise RuntimeError("no such luck")
import errno, os
try:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
except OSError:
    raise RuntimeError("Can't close the file")  # as HDF5 does"""
REFUSING = 'from minddiff_utils.io import InputError\nraise InputError("Fetch x.")'


def test_failures_are_told_and_then_all_that_is_missing_is_made(copy, monkeypatch):
    """A bug and a full disk, what a user can mend; the last book stays, nothing is deleted."""
    path, run_dir = copy / "notebooks" / "02_second.ipynb", copy / "runs/tiny"
    page = nbformat.read(path, 4)
    whole, page.cells[2].source = page.cells[2].source, BROKEN
    nbformat.write(page, path)
    before = stamps(run_dir)
    answer = minddiff(copy, "book", "tiny")
    assert answer.returncode == 1 and "Can't close" not in answer.stderr
    for said in ("subj01 · 02_second: cell 3: failed", "x = 1", "RuntimeError: no such luck"):
        assert said in answer.stderr
    said = f"subj02 · 02_second: cell 3: no space is left on the disk that holds {copy / 'runs'}"
    assert said in answer.stderr and "Make room there" in answer.stderr
    assert "last good book stays" in answer.stderr and stamps(run_dir).items() >= before.items()
    assert ".500 (.500,\u00a0.500)" in (run_dir / "html/index.html").read_text()
    assert (run_dir / "subj01/notebooks/02_second.failed.ipynb").is_file()

    page.cells[2].source = REFUSING
    nbformat.write(page, path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (plan_of(copy).state / "done/subj02-02_second-0.failure").unlink()
    said = "subj01 · 02_second: cell 3: Fetch x."
    with pytest.raises(BookError, match=f"^{said}$"):
        run.run_job(plan_of(copy).state, "subj01", "02_second")
    with pytest.raises(BookError, match=f"^{said}\n\nThe last good book stays"):
        run._explain(plan_of(copy))

    page.cells[2].source = whole
    nbformat.write(page, path)
    (run_dir / "html/index.html").unlink()
    (run_dir / "subj02/first.txt").write_text("half")
    (run_dir / "subj02/features.h5").write_text("days of work")
    # All notebooks run; then a warning of the page builder fails, and the pages stay.
    (copy / "book" / "method.md").write_text("# Method\n\n[nowhere](missing.md)\n")
    answer = minddiff(copy, "book", "tiny", "--set", "gain=2")
    assert answer.returncode == 1 and "missing.md" in answer.stderr
    assert "Said by" in (run_dir / "html/method.html").read_text()
    assert "2.000 (2.000,\u00a02.000)" in (run_dir / "book/generated/results.md").read_text()
    assert left(copy, gain=2.0) == []
    kept = {name for name, stamp in stamps(run_dir).items() if stamp == before.get(name)}
    assert kept == {"subj01/notebooks/01_first.ipynb"}
    assert (run_dir / "subj02/first.txt").read_text() == "subj02 0"
    assert (run_dir / "subj02/features.h5").read_text() == "days of work"


def test_killed_run_goes_on(copy, monkeypatch):
    """Killed in a notebook that then runs to its end, as what follows from it does."""
    write_params(copy, subjects=["subj01"])
    path, run_dir = copy / "notebooks" / "02_second.ipynb", copy / "runs/tiny"
    slow = nbformat.read(path, 4)
    # So slow that it cannot end before the signal works, until it may go on.
    allowed, running = copy / "go", copy / "running"
    waiting = f"import os, time\nopen({str(running)!r}, 'w').close()\n"
    waiting += f"os.path.exists({str(allowed)!r}) or time.sleep(50)\n"
    slow.cells[2].source = waiting + slow.cells[2].source
    nbformat.write(slow, path)
    command = [sys.executable, "-m", "minddiff_utils.cli", "book", "tiny"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (run_dir / "subj01/notebooks/02_second.ipynb").unlink()  # to see it appear
    before = stamps(run_dir)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process, end = subprocess.Popen(command, cwd=copy, **quiet), time.monotonic() + 90
    while not running.exists():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    process.kill()
    process.wait(timeout=30)
    assert stamps(run_dir) == before
    allowed.touch()
    plan = plan_of(copy)
    with open(plan.state / "lock", "a") as lock:
        while not lock_file(lock):  # until the last of what it has started is gone
            time.sleep(0.05)
        run.run_notebooks(plan, 1, None, lock.fileno())
    after = stamps(run_dir)
    redone = {name for name in after if before.get(name) != after[name]}
    assert redone == {"subj01/notebooks/02_second.ipynb", "notebooks/03_group.ipynb"}
    assert (run_dir / "subj01/second.txt").read_text() == "subj01 0 0.5"


# --- parameters -----------------------------------------------------------------------------------


def test_a_notebook_is_given_what_differs_from_its_defaults(tmp_path):
    plan = plan_of(make_project(tmp_path), gain=2.0, subjects="subj01, subj02")
    first, second, group = plan.sheets
    assert plan.subjects == ["subj01", "subj02"] and group.group and not second.group
    assert plan.given(first, "subj01") == {"subject": "subj01"}
    assert plan.given(second, "subj02") == {"subject": "subj02", "gain": 2.0}
    assert plan.given(group, "") == {"subjects": "subj01,subj02"}


def test_bad_parameters_are_named(tmp_path):
    refuse = functools.partial(refuses, call=plan_of, project=make_project(tmp_path))
    refuse("Did you mean `gain`", gian=1.0)
    refuse("`reach` is called `step_size` now", reach=1.0)
    for subjects in ([], ["a", "a"]):
        refuse("should be a list of different names", subjects=subjects)
    refuse("should be a name of letters and digits", subjects=["../x"])
    refuse("greater than 0", shards=0)


def test_parameters_cell_must_hold_plain_values():
    for source in ("seed = int('3')", "import os", "a = b = 3", "a, b = 1, 2"):
        refuses("plain value", declared_parameters, notebook("T", source))
    refuses("found 0", declared_parameters, new_notebook())
    assert declared_parameters(notebook("T", "a = -0.5  # s\nb = {}")) == {"a": -0.5, "b": {}}


# --- single parts ---------------------------------------------------------------------------------


def test_a_notebook_run_by_hand_holds_its_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    lines = "from minddiff_utils.figures.style import sentence\nsentence('x')"
    grid = "import numpy as np\nfrom minddiff_utils.figures.reconstruction import picture_grid\n"
    grid += "picture_grid({'seen': np.zeros((2, 8, 8, 3), np.uint8)})"
    nbformat.write(notebook("T", "a = 1", lines, grid), tmp_path / "in.ipynb")
    done = papermill.execute_notebook(tmp_path / "in.ipynb", None, kernel_name="python3")
    kinds = [{*cell.outputs[-1].data} - {"text/plain"} for cell in done.cells[-2:]]
    assert kinds == [{"image/svg+xml"}, {"image/png"}]


def test_surroundings_of_a_job(tmp_path, monkeypatch):
    """In a home that cannot be written to."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "startup.py"))
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with known_environment():
        found = dict(os.environ)
        scratch = Path(found["IPYTHONDIR"]).parent
        assert scratch.is_dir() and not scratch.is_relative_to(tmp_path)
    assert not scratch.exists()
    assert found["MATPLOTLIBRC"] == os.devnull and "PYTHONSTARTUP" not in found
    assert found["TRANSFORMERS_VERBOSITY"] == "info" and found["HOME"] == str(scratch)


def test_of_bars_single_lines_are_told(capsys):
    progress = run.Progress("subj01 · 04_stage2")
    for text in ("a warning\n\rstage 2:   0%|     | 0/30", "\rstage 2:  10%|█    | 3/30 [00:10]"):
        progress.write(text)
    progress.write("\rstage 2: 100%|█████| 30/30")
    assert capsys.readouterr().out == "subj01 · 04_stage2 · stage 2:  10%|█    | 3/30 [00:10]\n"


def test_a_file_is_told_from_another_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "WHOLE", 1000)
    monkeypatch.setattr(record, "PART", 10)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"a" * 999)
    large.write_bytes(b"a" * 3200)
    before = [record.file_digest(path) for path in (small, large)]
    small.touch()
    assert record.file_digest(small) == before[0]
    small.write_bytes(b"a" * 500 + b"b" + b"a" * 498)
    large.write_bytes(b"a" * 3201)
    assert all(record.file_digest(p) != d for p, d in zip((small, large), before, strict=True))


# --- pages ----------------------------------------------------------------------------------------


def test_names_of_figures_carry_the_subject_and_prose_does_not():
    page = notebook("T", "a = 1", "1")
    page.cells.append(new_markdown_cell("{numref}`fig-a` {eq}`eq-x`; fig-a is a word."))
    page.cells[2].metadata["mystnb"] = {"figure": {"name": "fig-a", "caption": "c"}}
    page.cells[2].outputs = [new_output("display_data", {"image/png": "x"})]
    source = build.finish_page(page, "subj01").cells[-1].source
    assert source == "{numref}`fig-a-subj01` {eq}`eq-x`; fig-a is a word."


def test_page_has_title_folded_parameters_and_alternative_text():
    page = notebook("Title", "a = 1", "1")
    page.cells[2].metadata["mystnb"] = {"figure": {"name": "fig-a"}}
    page.cells[2].outputs = [new_output("display_data", {"image/svg+xml": "x"})]
    page.cells.append(new_markdown_cell("What is seen.", metadata={"tags": ["caption"]}))
    page = build.finish_page(page, "subj07")
    assert page.cells[2].metadata["mystnb"]["figure"]["caption"] == "What is seen."
    assert "# Title — subj07\n" in page.cells[0].source
    assert page.cells[1].metadata["tags"] == ["parameters", "remove-cell"]
    assert page.cells[2].metadata["mystnb"]["image"]["alt"] == "What is seen."
    assert page.cells[2].metadata["mystnb"]["figure"]["name"] == "fig-a-subj07"
    assert len(page.cells) == 3


def test_a_chapter_whose_figure_was_not_drawn_fails():
    page = notebook("T", "a = 1", "figure", "figure")
    for cell, kind in zip(page.cells[2:], ("image/png", "text/plain"), strict=True):
        cell.metadata["mystnb"] = {"figure": {"name": f"fig-{kind[:4]}"}}
        cell.outputs = [new_output("display_data", {kind: "x"})]
    with pytest.raises(BookError, match="the cell of fig-text has drawn no figure"):
        build.finish_page(page, "s")
