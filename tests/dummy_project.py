"""A small project with notebooks that run in seconds: the machinery's tests use it."""

import json
from pathlib import Path

import nbformat
from builders import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minddiff_utils.book.plan import Plan, load_plan

FIRST = """from minddiff_utils.settings import resolve
folder = resolve(run_dir) / subject
folder.mkdir(parents=True, exist_ok=True)
(folder / "first.txt").write_text(f"{subject} {seed}")
print("first", subject)"""

FIGURE = """import matplotlib.pyplot as plt
figure, axes = plt.subplots(figsize=(3, 2))
axes.plot([0, 1]);"""

SECOND = """from minddiff_utils.settings import resolve
folder = resolve(run_dir) / subject
text = (folder / "first.txt").read_text()
(folder / "second.txt").write_text(text + f" {gain}")
row = f"{subject},stage2,1,pcc,{gain}"
(folder / "metrics.csv").write_text(f"subject,method,stimulus_id,metric,value\\n{row}\\n")"""

GROUP = """from minddiff_utils.settings import resolve
run = resolve(run_dir)
texts = [(run / name / "second.txt").read_text() for name in subjects.split(",")]
rows = [f"{who},stage2,pcc,1,{gain},," for who, _, gain in map(str.split, texts)]
head = "subject,method,metric,n,mean,low,high"
(run / "results.csv").write_text("\\n".join([head, *rows]))
print(texts)"""


def notebook(title: str, parameters: str, *sources: str) -> nbformat.NotebookNode:
    """A notebook with a title, a parameters cell and code cells."""
    name = title.lower()
    first = new_markdown_cell(f"# {title}\n\nSee {{numref}}`fig-{name}`.")
    second = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [first, second, *map(new_code_cell, sources)]
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def make_project(folder: Path) -> Path:
    """Write notebooks `01_first`, `02_second`, `03_group`, pages and `tiny.yaml` into `folder`."""
    notebooks = folder / "notebooks"
    (notebooks / "params").mkdir(parents=True)
    common = 'subject = "subj01"\nrun_dir = "runs/tiny"\ndata_path = "data"'
    first = notebook("First", f"{common}\nseed = 0  # any whole number", FIRST, FIGURE)
    first.cells[-1].metadata["mystnb"] = {"figure": {"caption": "A line.", "name": "fig-first"}}
    second = notebook("Second", f"{common}\ngain = 0.5", SECOND)
    group = notebook("Group", 'subjects = "subj01"\nrun_dir = "runs/tiny"', GROUP)
    second.cells[0].source, group.cells[0].source = "# Second", "# Group"
    for name, content in (("01_first", first), ("02_second", second), ("03_group", group)):
        nbformat.write(content, notebooks / f"{name}.ipynb")
    (notebooks / "Snakefile").write_text((ROOT / "notebooks" / "Snakefile").read_text())
    write_params(folder)
    (folder / "data").mkdir()
    (folder / "data" / "recording.csv").write_text("1,2,3")
    pages = folder / "book"
    (pages / "static").mkdir(parents=True)
    for name in ("results", "templates"):
        (pages / name).symlink_to(ROOT / "book" / name)
    for name in ("book.css", "book.js"):
        (pages / "static" / name).write_text("")
    (pages / "static" / "logo.svg").write_text((ROOT / "book" / "static" / "logo.svg").read_text())
    (pages / "extension.py").write_text((ROOT / "book" / "extension.py").read_text())
    (pages / "index.md").write_text("# Book\n\n```{include} generated/results.md\n```\n")
    (pages / "method.md").write_text("# Method\n\nA {term}`voxel`. Said by {cite}`someone2020`.\n")
    (pages / "cost.md").write_text("# Cost\n\n```{include} generated/costs.md\n```\n")
    (pages / "choices.md").write_text("# Choices\n")
    (pages / "glossary.md").write_text("# Glossary\n\n```{glossary}\nvoxel\n  A box.\n```\n")
    (pages / "references.md").write_text("# References\n\n```{bibliography}\n```\n")
    source = "@article{someone2020, author={One, Some}, title={It}, journal={J}, year={2020}}\n"
    (pages / "references.bib").write_text(source)
    (folder / "_config.yml").write_text((ROOT / "_config.yml").read_text())
    return folder


def write_params(folder: Path, **changes: object) -> None:
    """Write `tiny.yaml`, two subjects, with changed or further keys."""
    values = {"title": "Tiny", "subjects": ["subj01", "subj02"], "data_path": "data"}
    values |= {"run_dir": "runs/tiny", **changes}
    (folder / "notebooks" / "params" / "tiny.yaml").write_text(json.dumps(values))


def plan_of(project: Path, **changes: object) -> Plan:
    """The plan of `tiny.yaml`, with changed or further values."""
    return load_plan(project / "notebooks/params/tiny.yaml", project, changes)
