"""What the hand-written pages tell a reader to type is what the programs understand."""

import re
import shlex

import pytest
import typer
from dummy_project import ROOT

from minddiff_utils import cli
from minddiff_utils.book.plan import Plan, load_plan
from minddiff_utils.datasets.areas import is_early
from minddiff_utils.models import hub as checkpoints

PAGES = sorted((ROOT / "book").glob("*.md"))
PARAMS = ROOT / "notebooks" / "params"


def commands(start: str) -> list[tuple[str, str]]:
    """Page and line of every command in a shell block that starts with a word."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line) for line in lines if line.startswith(f"{start} ")]
    return found


def parse(words: list[str]) -> None:
    """Let the command line's own parser read the words, without running anything."""
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words)


@pytest.mark.parametrize(("page", "line"), commands("minddiff"))
def test_commands_of_the_pages_are_understood(page, line):
    words = shlex.split(line, comments=True)[1:]
    parse(words)


def test_a_wrong_command_is_noticed():
    with pytest.raises(Exception, match="No such option"):
        parse(["book", "nsd", "--no-such-option"])


@pytest.mark.parametrize(("page", "line"), commands("make book"))
def test_books_of_the_pages_are_made_with_what_the_makefile_reads(page, line):
    given = dict(word.split("=", 1) for word in shlex.split(line, comments=True)[2:])
    read = set(re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(given) <= read
    assert (PARAMS / f"{given['PARAMS']}.yaml").is_file()


def plans(page: str) -> list[tuple[str, Plan]]:
    """What every SET="…" of a page makes of the page's own parameter file."""
    params = PARAMS / f"{'own' if page == 'own_data.md' else 'nsd'}.yaml"
    texts = re.findall(r'SET="([^"]*)"', (ROOT / "book" / page).read_text("utf-8"))
    return [(text, load_plan(params, ROOT, dict(map(cli._change, text.split())))) for text in texts]


@pytest.mark.parametrize("page", ["run_nsd.md", "own_data.md", "run_cluster.md"])
def test_changes_of_the_pages_are_parameters(page):
    assert plans(page)


def test_what_the_page_sets_on_nsd_goes_together():
    for text, plan in plans("run_nsd.md"):
        given = plan.values
        if not given["models"].startswith("/"):
            assert given["models"] in checkpoints.REVISIONS
        # Sessions, and people with fewer than forty of them, exclude the 1,000 pictures.
        others = set(plan.subjects) - {"subj01", "subj02", "subj05", "subj07"}
        assert given["protocol"] is None or not (given["sessions"] or others), text
        # One region, or an atlas without early areas, cannot be had in Takagi & Nishimoto's way.
        parts = re.split("[:,+]", given["rois"])
        early = any(part in ("kastner2015", "streams") or is_early(part) for part in parts)
        assert early or "takagi" not in given["controls"], text


def test_models_of_the_page_are_those_that_are_loaded():
    for _, line in commands("hf"):
        words = shlex.split(line)
        assert words[:2] == ["hf", "download"]
        assert checkpoints.REVISIONS[words[2]] == words[words.index("--revision") + 1]
        chosen = {words[i + 1] for i, word in enumerate(words) if word == "--include"}
        clip = "clip" in words[2]
        assert chosen == set(checkpoints.CLIP_FILES if clip else checkpoints.DIFFUSION_FILES)
