"""A parameter file read and checked: which notebooks, for whom, with which parameters."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveInt, TypeAdapter
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from minddiff_utils import settings
from minddiff_utils.io import InputError


def _names(subjects: Any) -> Any:
    """A list of names, from a text with commas between them as well."""
    names = settings.comma_separated(subjects) if isinstance(subjects, str) else subjects
    if isinstance(names, list) and len({*map(str, names)}) < max(1, len(names)):
        raise ValueError("should be a list of different names")
    return names


SUBJECT = settings.PARAMETERS["subject"]
# Keys of a parameter file that are for the book, and of what type each is.
BOOK_KEYS: dict[str, Any] = {
    "title": str | int | float | None,
    "about": str | None,
    "pages": list[str],
    "subjects": Annotated[list[SUBJECT], BeforeValidator(_names)],  # type: ignore[valid-type]
    "phantom": dict[Literal["n_train", "n_test", "repetitions", "seed"], int] | None,
    "shards": PositiveInt,
}
KNOWN = settings.ADAPTERS | {name: TypeAdapter(kind) for name, kind in BOOK_KEYS.items()}
USUAL = {"pages": ["method"], "subjects": ["subj01"], "shards": 1}


@dataclass(frozen=True)
class Sheet:
    """One notebook of the chain: name, title, source file, declared parameters with defaults."""

    name: str
    title: str
    path: Path
    defaults: Mapping[str, Any]

    @property
    def group(self) -> bool:
        """Whether it looks at all subjects together."""
        return "subjects" in self.defaults


@dataclass(frozen=True)
class Plan:
    """One run of the book.

    `values` holds what the parameter file and the command line say. Among them `shards` is the
    number of parts that stage 2 of each subject is computed in, on which no result depends.
    """

    name: str
    root: Path
    values: Mapping[str, Any]
    sheets: tuple[Sheet, ...]

    @property
    def run(self) -> Path:
        """The folder that everything of this run goes to."""
        return settings.resolve(self.values["run_dir"], self.root)

    @property
    def state(self) -> Path:
        """Where the book keeps what only it needs: marks, logs, the plan."""
        return self.run / ".state"

    @property
    def subjects(self) -> list[str]:
        """Names, in the order of the file."""
        return self.values["subjects"]

    @property
    def jobs(self) -> list[tuple[str, Sheet]]:
        """Every notebook with its subject, those of one subject in their order; "" is for all."""
        alone = [sheet for sheet in self.sheets if not sheet.group]
        group = [("", sheet) for sheet in self.sheets if sheet.group]
        return [(subject, sheet) for subject in self.subjects for sheet in alone] + group

    def place(self, name: str) -> Path | None:
        """Return the file or folder that a parameter names; None if it names none that is there."""
        text = self.values.get(name) or ""
        path = settings.resolve(text, self.root)
        return path if text and path.exists() else None

    def given(self, sheet: Sheet, subject: str) -> dict[str, Any]:
        """Return what a notebook is given: what differs from its defaults, and for whom."""
        named = {"subject": subject} if subject else {"subjects": ",".join(self.subjects)}
        usual = {**settings.ADVANCED.get(sheet.name, {}), **sheet.defaults}
        other = {k: v for k, v in {**self.values, **named}.items() if usual.get(k, v) != v}
        declared = {k: v for k, v in (other | named).items() if k in sheet.defaults}
        advanced = {k: v for k, v in other.items() if k not in declared}
        return declared | ({"advanced": advanced} if advanced else {})


def declared_parameters(notebook: Mapping[str, Any], name: str = "notebook") -> dict[str, Any]:
    """Names and defaults of the cell tagged `parameters`: plain values, read without running it.

    Raises
    ------
    InputError
        If there is not exactly one such cell, or it holds anything else than `name = value`.
    """
    cells = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    try:
        (cell,) = cells
        source: Any = "".join(cell["source"])
        lines = [(node.targets, node.value) for node in ast.parse(source).body]
        return {target.id: ast.literal_eval(value) for (target,), value in lines}
    except (AttributeError, ValueError, TypeError, SyntaxError):
        expected = "of lines such as `seed = 0` alone: one name, one plain value"
        found = f"expected one cell tagged `parameters`, found {len(cells)}, {expected}."
        raise InputError(f"{name}: {found}") from None


def find_sheets(notebooks: str | Path) -> tuple[Sheet, ...]:
    """The notebooks `NN_name.ipynb` of a folder in their order, with their declared parameters.

    Raises
    ------
    InputError
        If there are none, or one cannot be read.
    """
    sheets = []
    for path in sorted(Path(notebooks).glob("[0-9][0-9]_*.ipynb")):
        try:
            notebook = json.loads(path.read_bytes())
            defaults = declared_parameters(notebook, path.name)
            title = "".join(notebook["cells"][0]["source"]).partition("\n")[0].lstrip("# ")
        except (json.JSONDecodeError, KeyError) as error:
            raise InputError(f"{path} is not a notebook: {error}") from None
        sheets.append(Sheet(path.stem, title, path.resolve(), defaults))
    return tuple(sheets)


def load_plan(path: str | Path, root: Path, changes: Mapping[str, Any] | None = None) -> Plan:
    """Read and check a parameter file.

    Parameters
    ----------
    path : str or Path
        A YAML file: `title`, `about`, `pages`, `subjects`, `phantom`, `shards` for the book, every
        other key a parameter of at least one notebook.
    root : Path
        The project's folder: its `notebooks` are run, and paths in the file are relative to it.
    changes : mapping, optional
        Values that replace those of the file.

    Raises
    ------
    InputError
        If the file is missing or no YAML, or a key or a value's type does not fit.
    """
    path, root = Path(path), Path(root).resolve()
    values = {**_read_yaml(path), **(changes or {})}
    sheets = find_sheets(root / "notebooks")
    try:
        plan = Plan(path.stem, root, USUAL | _checked(values, sheets), sheets)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    data = plan.place("data_path")
    if values.get("dataset") == "own" and len(plan.subjects) > 1 and data and data.is_file():
        found = f"{values['data_path']} is one file for {len(plan.subjects)} subjects"
        raise InputError(f"{found}: expected a folder with a file for each.")
    return plan


def _checked(values: Mapping[str, Any], sheets: tuple[Sheet, ...]) -> dict[str, Any]:
    """The values as they are meant: each of the book or of some notebook, of its type, in range."""
    usual = {name: value for sheet in sheets for name, value in sheet.defaults.items()}
    usual |= {name: value for known in settings.ADVANCED.values() for name, value in known.items()}
    meant, rest = dict[str, Any](), dict(values)
    # A notebook takes the rarer ones in a mapping; a parameter file needs none, and may have it.
    rare = settings.check_type("advanced", rest.pop("advanced", {}), settings.ADAPTERS["advanced"])
    for name, value in (rare | rest).items():
        if name not in usual and name not in BOOK_KEYS:
            raise InputError(settings.no_such(name, usual))
        # A notebook of the user's own may have others than this book.
        kind = Any if usual.get(name) is None else type(usual[name])
        meant[name] = settings.check_type(name, value, KNOWN.get(name) or TypeAdapter(kind))
    if "run_dir" not in meant:
        raise InputError("`run_dir` is missing; for example runs/mine.")
    return meant


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise InputError(f"There is no parameter file {path}. Known: {known or 'none'}.")
    return parse_yaml(path.read_bytes(), str(path))


def parse_yaml(text: str | bytes, origin: str) -> dict[str, Any]:
    """Read names and values from YAML as version 1.2 means it: 1e-3 is a number, 010 is ten.

    Raises
    ------
    InputError
        If it is none, or a name stands twice; the message begins with `origin`.
    """
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        said = " ".join(str(error).partition("To suppress")[0].split())
        raise InputError(f"{origin} is not valid YAML, as text in UTF-8: {said}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        expected = "expected a name and its value, `seed: 1` in a file, KEY=VALUE after --set"
        raise InputError(f"{origin}: {expected}.")
    return values
