"""Pages made from a run's files: what they say is what the files hold."""

import json
import re

import pytest
from dummy_project import notebook
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minddiff_utils.book import pages
from minddiff_utils.phantom import world
from minddiff_utils.phantom.pages import caption_list


def executed(*cells):
    """A notebook of headings (str) and of code cells that took some seconds (float)."""
    made = [
        new_markdown_cell(cell)
        if isinstance(cell, str)
        else new_code_cell("1", metadata={"papermill": {"duration": cell}})
        for cell in cells
    ]
    return new_notebook(cells=made)


def test_steps_add_up_below_their_headings():
    page = executed(
        "# Title", 1.5, 2.0, "text\n\n## Load\n\nmore", 3.0, "prose", 4.0, "## Load", 1.0
    )
    assert pages.step_times(page) == {"Title": 3.5, "Load": 8.0}
    assert pages.step_times(notebook("T", "a = 1")) == {"T": 0.0}  # never executed


@pytest.fixture
def run(tmp_path):
    for subject, factor in (("anna", 1), ("ben", 10)):
        folder = tmp_path / subject / "notebooks"
        folder.mkdir(parents=True)
        write(executed("# Title", 0.2, "## Fit | try", 60.0 * factor), folder / "02_second.ipynb")
        record = {
            "python": "3.11",
            "machine": "Linux, 2 cores",
            "packages": {"torch": "2.0"},
            "notebooks": {
                "02_second": {"wall_time_s": 65.4 * factor},
                "01_first": {"wall_time_s": 3599.0 * factor},
            },
        }
        (tmp_path / subject / "provenance.json").write_text(json.dumps(record))
    return tmp_path


def test_costs_are_those_of_the_records(run):
    text = pages.cost_table(run, ["anna", "ben", "nobody"])
    assert text.startswith("The machine: Linux, 2 cores, Python 3.11, torch 2.0.\n")
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if "|" in line]
    assert rows == [
        ["chapter and step", "anna", "ben"],
        ["---", "---:", "---:"],
        ["**`01_first`**", "**59 min 59 s**", "**9 h 59 min**"],
        ["**`02_second`**", "**1 min 05 s**", "**10 min 54 s**"],
        ["&emsp;Fit / try", "1 min 00 s", "10 min 00 s"],
        ["**all chapters**", "**1 h 01 min**", "**10 h 10 min**"],
    ]


def test_machines_that_differ_are_told_apart_and_no_record_makes_no_table(run):
    path = run / "ben" / "provenance.json"
    record = json.loads(path.read_text()) | {"machine": "Linux, 64 cores"}
    path.write_text(json.dumps(record))
    text = pages.cost_table(run, ["anna", "ben"])
    assert "anna: Linux, 2 cores" in text and "ben: Linux, 64 cores" in text
    assert pages.cost_table(run, ["nobody"]) == ""


def test_captions_of_the_page_are_the_worlds_without_space_before_a_comma():
    assert any(" ," in caption for i in range(9) for caption in world.captions(i))
    for i in range(9):
        shown = [line.removeprefix("- ") for line in caption_list(i).splitlines()]
        assert [text.replace(" ", "") for text in shown] == [
            caption.replace(" ", "") for caption in world.captions(i)
        ]
        assert not [text for text in shown if " ," in text or " :" in text]
