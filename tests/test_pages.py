"""What the hand-written pages tell a reader to type is what the programs understand."""

import re
import shlex

import pytest
import typer
from builders import ROOT

from minddiff_utils import cli
from minddiff_utils.datasets.subject import is_early
from minddiff_utils.models import hub as checkpoints

PAGES = {page.name: page.read_text("utf-8") for page in sorted((ROOT / "book").glob("*.md"))}
PARAMS = ROOT / "notebooks" / "params"


def commands(start: str) -> list[list[str]]:
    """The words of every command in a shell block that starts with some words."""
    blocks = [b for text in PAGES.values() for b in re.findall(r"```bash\n(.*?)```", text, re.S)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{start} ")]


def parse(words: list[str]) -> None:
    """Let the command line's own parser read the words, without running anything."""
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words)


def test_commands_of_the_pages_are_understood():
    assert commands("minddiff")
    for words in commands("minddiff"):
        parse(words[1:])
    with pytest.raises(Exception, match="No such option"):
        parse(["book", "nsd", "--no-such-option"])


def test_books_of_the_pages_are_made_with_what_the_makefile_reads():
    read = set(re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for words in commands("make book"):
        given = dict(word.split("=", 1) for word in words[2:])
        assert set(given) <= read and (PARAMS / f"{given['PARAMS']}.yaml").is_file(), words


PRESETS = {
    "own_data.md": "own",
    "run_laion.md": "laion",
    "run_nsd.md": "nsd",
    "run_cluster.md": "nsd",
}


@pytest.mark.parametrize("page", PRESETS)
def test_changes_of_the_pages_are_parameters_that_go_together(page):
    params = PARAMS / f"{PRESETS[page]}.yaml"
    texts = re.findall(r'SET="([^"]*)"', PAGES[page])
    assert texts
    for text in texts:
        plan = cli._plan(str(params), text.split(), ROOT)
        given = plan.values
        if page != "run_nsd.md":
            continue
        assert given["models"].startswith("/") or given["models"] in checkpoints.REVISIONS
        # Sessions, and people with fewer than forty of them, exclude the 1,000 pictures.
        others = set(plan.subjects) - {"subj01", "subj02", "subj05", "subj07"}
        assert given["protocol"] is None or not (given["sessions"] or others), text
        # One region, or an atlas without early areas, cannot be had in Takagi & Nishimoto's way.
        parts = re.split("[:,+]", given["rois"])
        early = any(part in ("kastner2015", "streams") or is_early(part) for part in parts)
        assert early or "takagi" not in given["controls"], text


def test_models_of_the_page_are_those_that_are_loaded():
    for words in commands("hf download"):
        assert checkpoints.REVISIONS[words[2]] == words[words.index("--revision") + 1]
        chosen = {words[i + 1] for i, word in enumerate(words) if word == "--include"}
        clip = "clip" in words[2]
        assert chosen == set(checkpoints.CLIP_FILES if clip else checkpoints.DIFFUSION_FILES)
