"""Lines of code by room: what counts, and where a room has too many; and commands on pages."""

import re

from builders import ROOT
from typer.testing import CliRunner

from studies.__main__ import STUDIES, app
from studies.size import BUDGETS, code_lines, room_sizes

SOURCE = '''"""Docstring
of a module."""

# a comment
import os


def text():
    """One line."""
    return """two
lines"""  # behind code
'''


def test_a_room_with_too_many_lines_is_an_exit_status(tmp_path):
    assert code_lines(SOURCE) == 4  # neither blanks nor comments nor docstrings
    files = {"minddiff_utils/cli.py": 3, "minddiff_utils/book/run.py": 4, "studies/a.py": 2}
    files["minddiff_utils/datasets/nsd/load.py"] = 5
    for name, lines in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a = 1\n\n" * lines)
    sizes = {"minddiff_utils": 12, "book": 7, "datasets": 5, "studies": 2}
    assert room_sizes(tmp_path) == sizes
    assert CliRunner().invoke(app, ["size", "--root", str(tmp_path)]).exit_code == 0
    (tmp_path / "studies/a.py").write_text("a = 1\n" * (BUDGETS["studies"] + 1))
    shown = CliRunner().invoke(app, ["size", "--root", str(tmp_path)])
    assert shown.exit_code == 1 and "too many" in shown.output


def test_pages_name_studies_that_there_are():
    pages = [ROOT / "README.md", ROOT / "minddiff_utils/phantom/weights/MODEL_CARD.md"]
    for folder in ("book", "notebooks", "studies"):
        for suffix in ("md", "ipynb", "yaml"):
            pages += (ROOT / folder).rglob(f"*.{suffix}")
    text = "".join(page.read_text("utf-8") for page in pages)
    named = set(re.findall(r"-m studies[. ](\w+)", text))
    assert {"compare", "stage2", "model_card"} <= named - {"NAME"} <= set(STUDIES.split())
