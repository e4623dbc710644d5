"""How many lines of code each room of the project has, beside what it may have."""

import ast
import io
import tokenize
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
# The most lines of code in each room of `minddiff_utils`; a module that stands beside the rooms
# counts in the room of `BESIDE`, or is one of its own.
BUDGETS = {
    "io": 150,
    "settings": 250,
    "datasets": 2300,
    "models": 380,
    "decoding": 750,
    "reconstruction": 500,
    "evaluation": 1900,
    "figures": 800,
    "phantom": 950,
    "book": 900,
    "minddiff_utils": 9000,
    "studies": 1700,
    "tests": 9000,
}
BESIDE = {"cli": "book"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def main(root: Annotated[Path, typer.Option(help="Folder of the project.")] = ROOT) -> None:
    """Print lines of code by room, without blanks, comments and docstrings.

    The exit status is 1 if a room has more than its budget.
    """
    sizes = room_sizes(root)
    over = [room for room, budget in BUDGETS.items() if sizes.get(room, 0) > budget]
    for room, lines in sorted(sizes.items()):
        budget = f"of {BUDGETS[room]:6,}" if room in BUDGETS else " " * 9
        print(f"{room:<16}{lines:7,} {budget}{'  too many' if room in over else ''}")
    if over:
        raise typer.Exit(1)


def room_sizes(root: Path) -> dict[str, int]:
    """Return the lines of code of each room of the package, of all of it, of studies and tests."""
    sizes: dict[str, int] = {}
    for top in ("minddiff_utils", "studies", "tests"):
        for path in sorted((root / top).rglob("*.py")):
            lines = code_lines(path.read_text(encoding="utf-8"))
            rooms = [top]
            if top == "minddiff_utils":
                room = path.relative_to(root / top).with_suffix("").parts[0]
                rooms.append(BESIDE.get(room, room))
            for room in rooms:
                sizes[room] = sizes.get(room, 0) + lines
    return {room: lines for room, lines in sizes.items() if room != "__init__"}


def code_lines(source: str) -> int:
    """Count the lines of a module that hold code: neither blank, nor comment, nor docstring."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT and token.string.strip():
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)
