"""A parameter file read and checked: which notebooks, for whom, with which parameters."""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import nbformat
import yaml
from pydantic import TypeAdapter
from yaml.reader import ReaderError

from minddiff_utils.io import InputError
from minddiff_utils.settings import ADAPTERS, ADVANCED, MAPPING, check_type, no_such, resolve

# Keys of a parameter file that are for the book, and of what type each is.
BOOK_KEYS: dict[str, Any] = {
    "title": str | int | float | None,
    "about": str | None,
    "pages": list[str],
    "subjects": list[str] | str,
    "phantom": dict[str, int] | None,
    "shards": int,
}
BOOK_ADAPTERS = {name: TypeAdapter(kind) for name, kind in BOOK_KEYS.items()}
PHANTOM_KEYS = {"n_train", "n_test", "repetitions", "seed"}


@dataclass(frozen=True)
class Sheet:
    """One notebook of the chain: its name, source file and declared parameters with defaults."""

    name: str
    path: Path
    defaults: Mapping[str, Any]

    @property
    def group(self) -> bool:
        """Whether it looks at all subjects together."""
        return "subjects" in self.defaults


@dataclass(frozen=True)
class Plan:
    """One run of the book.

    `values` holds what the parameter file and the command line say; `shards` is the number of
    parts that stage 2 of each subject is computed in, on which no result depends.
    """

    name: str
    root: Path
    values: Mapping[str, Any]
    sheets: tuple[Sheet, ...]

    @property
    def run(self) -> Path:
        """The folder that everything of this run goes to."""
        return resolve(self.values["run_dir"], self.root)

    @property
    def title(self) -> str:
        """Of the book."""
        return str(self.values.get("title") or self.name)

    @property
    def subjects(self) -> list[str]:
        """Names, in the order of the file."""
        named = self.values.get("subjects", ["subj01"])
        if isinstance(named, list):
            return named
        return [name.strip() for name in named.split(",") if name.strip()]

    @property
    def pages(self) -> list[str]:
        """The hand-written pages."""
        return self.values.get("pages", ["method"])

    @property
    def shards(self) -> int:
        """How many jobs share stage 2 of a subject."""
        return self.values.get("shards", 1)

    @property
    def chapters(self) -> list[Sheet]:
        """The notebooks that run once a subject."""
        return [sheet for sheet in self.sheets if not sheet.group]

    @property
    def group(self) -> list[Sheet]:
        """The notebooks that run once, after all subjects."""
        return [sheet for sheet in self.sheets if sheet.group]

    def given(self, sheet: Sheet, subject: str) -> dict[str, Any]:
        """Return what a notebook is given: what differs from its defaults, and for whom."""
        named = {"subject": subject} if subject else {"subjects": ",".join(self.subjects)}
        own = {k: v for k, v in self.values.items() if sheet.defaults.get(k, v) != v}
        usual = ADVANCED.get(sheet.name, {})
        advanced = {k: v for k, v in self.values.items() if usual.get(k, v) != v}
        declared = {k: v for k, v in (own | named).items() if k in sheet.defaults}
        return declared | ({"advanced": advanced} if advanced else {})


def declared_parameters(notebook: nbformat.NotebookNode, name: str = "notebook") -> dict[str, Any]:
    """Names and defaults of the cell tagged `parameters`: plain values, read without running it.

    Raises
    ------
    InputError
        If there is not exactly one such cell, or it holds anything else than `name = value`.
    """
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise InputError(f"{name}: expected one cell tagged `parameters`, found {len(cells)}.")
    values = {}
    for node in ast.parse(cells[0].source).body:
        try:
            (target,) = node.targets
            values[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError, TypeError):
            raise InputError(
                f"{name}: `{ast.unparse(node)}` in the cell tagged `parameters`; expected lines "
                "such as `seed = 0`: one name, one plain value."
            ) from None
    return values


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
            notebook = nbformat.read(path, as_version=4)
        except (nbformat.reader.NotJSONError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not a notebook: {error}") from None
        sheets.append(Sheet(path.stem, path.resolve(), declared_parameters(notebook, path.name)))
    if not sheets:
        raise InputError(f"{notebooks} holds no notebooks named NN_name.ipynb.")
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
        plan = Plan(path.stem, root, _checked(values, sheets), sheets)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if plan.values.get("dataset") == "own" and len(plan.subjects) > 1:
        if resolve(plan.values["data_path"], root).is_file():
            raise InputError(
                f"{plan.values['data_path']} is one file for {len(plan.subjects)} subjects: "
                "expected a folder with a file for each."
            )
    return plan


def _checked(values: Mapping[str, Any], sheets: tuple[Sheet, ...]) -> dict[str, Any]:
    """The values as they are meant: each of the book or of some notebook, of its type, in range."""
    usual = {name: value for sheet in sheets for name, value in sheet.defaults.items()}
    usual |= {name: value for known in ADVANCED.values() for name, value in known.items()}
    meant = {}
    # A notebook takes the rarer ones in a mapping; a parameter file needs none, and may have it.
    rare = check_type("advanced", values.get("advanced", {}), MAPPING)
    for name, value in (rare | {k: v for k, v in values.items() if k != "advanced"}).items():
        if name not in usual and name not in BOOK_KEYS:
            raise InputError(no_such(name, usual))
        # A notebook of the user's own may have others than this book.
        kind = Any if usual.get(name) is None else type(usual[name])
        adapter = BOOK_ADAPTERS.get(name) or ADAPTERS.get(name) or TypeAdapter(kind)
        meant[name] = check_type(name, value, adapter)
    if "run_dir" not in meant:
        raise InputError("`run_dir` is missing; for example runs/mine.")
    subjects = Plan("", Path(), meant, sheets).subjects
    if not subjects or len(set(subjects)) < len(subjects):
        raise InputError(f"`subjects` is {subjects!r}; expected a list of different names.")
    for subject in subjects:
        check_type("subject", subject, ADAPTERS["subject"])
    if meant.get("shards", 1) < 1:
        raise InputError(f"`shards` is {meant['shards']}; expected a whole number from 1.")
    if strange := (meant.get("phantom") or {}).keys() - PHANTOM_KEYS:
        raise InputError(f"phantom: {no_such(min(strange), PHANTOM_KEYS)}")
    return meant


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise InputError(f"There is no parameter file {path}. Known: {known or 'none'}.")
    try:
        values = parse_yaml(path.read_bytes())
    except ReaderError as error:
        raise InputError(
            f"{path} is not text in UTF-8 ({error.reason}): save it as such."
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{path}: expected lines `name: value`.")
    return values


class _Yaml12(yaml.SafeLoader):
    """YAML by the core schema of version 1.2.

    What most people expect: 1e-3 is a number, 010 is ten, 1:10 and a date are texts. No key may
    stand twice.
    """

    # https://yaml.org/spec/1.2.2/#103-core-schema; None: whatever the text begins with.
    yaml_implicit_resolvers: ClassVar = {
        None: [
            (f"tag:yaml.org,2002:{name}", re.compile(f"({pattern})$"))
            for name, pattern in {
                "null": "null|Null|NULL|~|",
                "bool": "true|True|TRUE|false|False|FALSE",
                "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
                "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
                r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            }.items()
        ]
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    problem=f"`{key}` stands twice", problem_mark=node.value[place][0].start_mark
                )
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        return int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10))


_Yaml12.add_constructor("tag:yaml.org,2002:int", _Yaml12.construct_whole)


def parse_yaml(text: str | bytes) -> Any:
    """Read YAML as version 1.2 means it, without names or types of its own.

    Raises
    ------
    yaml.YAMLError
        If it is none, or a key stands twice.
    """
    return yaml.load(text, Loader=_Yaml12)
