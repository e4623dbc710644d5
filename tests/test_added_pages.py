"""Pages made from a run's files: what they say is what the files hold."""

import json
import re

import pytest
from dummy_project import notebook
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minddiff_utils.book import pages


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
    page = executed("# Title", 1.5, 2.0, "text\n\n## Load\n\nmore", 3.0, "prose", 4.0)
    assert pages.step_times(page) == {"Title": 3.5, "Load": 7.0}
    assert pages.step_times(notebook("T", "a = 1")) == {"T": 0.0}  # never executed


@pytest.mark.parametrize("machines", [("2 cores", "2 cores"), ("2 cores", "64 cores")])
def test_costs_are_those_of_the_records(tmp_path, machines):
    for subject, factor, machine in zip(("anna", "ben"), (1, 10), machines, strict=True):
        folder = tmp_path / subject / "notebooks"
        folder.mkdir(parents=True)
        write(executed("# Title", 0.02 * factor), folder / "01_first.ipynb")
        write(executed("# Title", 0.2, "## Fit | try", 60.0 * factor), folder / "02_second.ipynb")
        times = {"02_second": 65.4 * factor, "01_first": 3599.0 * factor}
        record = {"python": "3.11", "machine": machine, "packages": {"torch": "2.0"}}
        record["notebooks"] = {name: {"wall_time_s": took} for name, took in times.items()}
        (tmp_path / subject / "provenance.json").write_text(json.dumps(record))
    text = pages.cost_table(tmp_path, ["anna", "ben", "nobody"])
    said = "2 cores, Python 3.11, torch 2.0 (anna"
    several = machines[0] != machines[1]
    said += "); 64 cores, Python 3.11, torch 2.0 (ben)." if several else ", ben)."
    assert text.startswith(f"The machine: {said}\n")
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if "|" in line]
    assert rows[:1] + rows[2:] == [
        ["chapter and step", "anna", "ben"],
        ["**`01_first`**", "**0:59:59**", "**9:59:50**"],
        ["**`02_second`**", "**0:01:05**", "**0:10:54**"],
        ["&emsp;Fit / try", "0:01:00", "0:10:00"],
        ["**all chapters**", "**1:01:04**", "**10:10:44**"],
    ]
    assert pages.cost_table(tmp_path, ["nobody"]) == ""
