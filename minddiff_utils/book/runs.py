"""What a run is: parameters, the notebooks' order, and what must be done again after a change.

A *plan* is a file of `notebooks/params/` read and checked. From it come *jobs*, one a notebook and
subject: small JSON files, rewritten only when something that the notebook depends on has changed.
Snakemake compares their dates with those of the executed notebooks and so knows what is left.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import nbformat
import yaml
from pydantic import TypeAdapter
from yaml.reader import ReaderError

from minddiff_utils.io import InputError, atomic_path
from minddiff_utils.parameters import ADAPTERS, check_type, no_such

PACKAGE = Path(__file__).parents[1]
# Modules that draw, build pages or only check: a change there redoes the page, not the computation.
DISPLAY = frozenset({"figures", "book", "cli", "parameters"})
# Keys of a parameter file that are for the book, not for the notebooks.
BOOK_KEYS = frozenset({"title", "about", "pages", "subjects", "phantom", "parameters", "shards"})
HASHED_WHOLE = 256 * 2**20  # bytes; files that are more than this count by size and date


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
    """One run: which notebooks, for whom, with which parameters, written where.

    `shards` is the number of parts that stage 2 of each subject is computed in; no result depends
    on it.
    """

    name: str
    title: str
    about: str
    pages: tuple[str, ...]
    subjects: tuple[str, ...]
    phantom: Mapping[str, Any] | None
    parameters: Mapping[str, Any]
    notebooks: Path
    sheets: tuple[Sheet, ...] = field(default=())
    shards: int = 1

    def path(self, parameter: str) -> Path:
        """A path parameter, which is relative to the folder of the notebooks, made absolute."""
        return (self.notebooks / str(self.parameters[parameter])).resolve()

    @property
    def run(self) -> Path:
        """The folder that everything of this run goes to."""
        return self.path("run_dir")

    @property
    def chapters(self) -> tuple[Sheet, ...]:
        """The notebooks that run once a subject."""
        return tuple(sheet for sheet in self.sheets if not sheet.group)

    @property
    def group(self) -> tuple[Sheet, ...]:
        """The notebooks that run once, after all subjects."""
        return tuple(sheet for sheet in self.sheets if sheet.group)


@dataclass(frozen=True)
class Job:
    """One notebook to execute. `subject` is "" for a notebook about all subjects."""

    notebook: str
    subject: str
    source: str
    output: str
    cwd: str
    run: str
    parameters: dict[str, Any]
    data: str
    page: str

    @property
    def label(self) -> str:
        """Subject and notebook, for messages."""
        return f"{self.subject or 'all subjects'} · {self.notebook}"


def declared_parameters(notebook: nbformat.NotebookNode, name: str = "notebook") -> dict[str, Any]:
    """Names and defaults of the cell tagged `parameters`: plain scalars, read without running it.

    Raises
    ------
    InputError
        If there is not exactly one such cell, or it holds anything else than `name = scalar`.
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


def load_plan(
    path: str | Path, notebooks: str | Path, changes: Mapping[str, Any] | None = None
) -> Plan:
    """Read and check a parameter file.

    Parameters
    ----------
    path : str or Path
        A YAML file: `title`, `about`, `pages`, `subjects`, `phantom`, `shards` for the book, every
        other key a parameter of at least one notebook. Paths in it are relative to `notebooks`.
    notebooks : str or Path
        Folder of the notebooks `NN_name.ipynb`.
    changes : mapping, optional
        Values that replace those of the file.

    Raises
    ------
    InputError
        If the file is missing or no YAML, or a key or a value's type does not fit.
    """
    path, notebooks = Path(path), Path(notebooks).resolve()
    values = {**_read_yaml(path), **(changes or {})}
    sheets = find_sheets(notebooks)
    subjects = values.get("subjects", ["subj01"])
    if isinstance(subjects, str):
        subjects = [name.strip() for name in subjects.split(",") if name.strip()]
    if not isinstance(subjects, list) or not subjects or len(set(subjects)) < len(subjects):
        raise InputError(f"{path}: `subjects` is {subjects!r}; expected a list of different names.")
    for subject in subjects:
        _check_name(path, subject)
    shards = values.get("shards", 1)
    if type(shards) is not int or shards < 1:
        raise InputError(f"{path}: `shards` is {shards!r}; expected a whole number from 1.")
    pages = values.get("pages", ["method"])
    if not isinstance(pages, list) or not all(isinstance(page, str) for page in pages):
        raise InputError(f"{path}: `pages` is {pages!r}; expected a list of names of pages.")
    _check_phantom(path, values.get("phantom"))
    parameters = {key: value for key, value in values.items() if key not in BOOK_KEYS}
    if "run_dir" not in parameters:
        raise InputError(f"{path}: `run_dir` is missing; for example ../runs/{path.stem}.")
    parameters = _check_parameters(path, parameters, sheets)
    plan = Plan(
        name=path.stem,
        title=_text(path, "title", values.get("title"), path.stem),
        about=_text(path, "about", values.get("about"), ""),
        pages=tuple(pages),
        subjects=tuple(subjects),
        phantom=values.get("phantom"),
        parameters=parameters,
        notebooks=notebooks,
        sheets=sheets,
        shards=shards,
    )
    own = parameters.get("dataset") == "own" and len(subjects) > 1
    if own and plan.path("data_path").is_file():
        raise InputError(
            f"{plan.path('data_path')} is one file for {len(subjects)} subjects, "
            f"{', '.join(subjects)}: expected a folder with a file for each."
        )
    return plan


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


def _text(path: Path, name: str, value: object, usual: str) -> str:
    """A text of the file; an empty one is as good as none."""
    if not isinstance(value, str | int | float | None):
        raise InputError(f"{path}: `{name}` is {value!r}; expected text.")
    return usual if value is None else str(value)


def _check_name(path: Path, subject: object) -> None:
    """A subject names a folder and labels in the pages, so it must be a plain word."""
    # An underscore in front would be Markdown's emphasis, and hide the name from a legend.
    if not isinstance(subject, str) or not subject.isidentifier() or subject[0] == "_":
        raise InputError(
            f"{path}: subject {subject!r}; expected a name of letters and digits such as subj01."
        )


def _check_phantom(path: Path, phantom: object) -> None:
    """What the phantom is made with: some of its settings, each a whole number."""
    known = ("n_train", "n_test", "repetitions", "seed")
    fits = isinstance(phantom, Mapping) and phantom.keys() <= set(known)
    if phantom is not None and not (fits and all(type(n) is int for n in phantom.values())):
        raise InputError(
            f"{path}: `phantom` is {phantom!r}; expected {', '.join(known[:-1])} and {known[-1]}, "
            "each with a whole number."
        )


def _check_parameters(
    path: Path, parameters: Mapping[str, Any], sheets: Iterable[Sheet]
) -> dict[str, Any]:
    """The values as they are meant: each of some notebook's parameter, of its type, in range."""
    defaults = {name: value for sheet in sheets for name, value in sheet.defaults.items()}
    meant = {}
    for name, value in parameters.items():
        if name not in defaults:
            raise InputError(f"{path}: {no_such(name, defaults)}")
        # A notebook of the user's own may have others than this book.
        usual = defaults[name]
        adapter = ADAPTERS.get(name) or TypeAdapter(Any if usual is None else type(usual))
        try:
            meant[name] = check_type(name, value, adapter)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return meant


def make_jobs(plan: Plan, state: Path, package: Path = PACKAGE) -> list[tuple[Path, Job]]:
    """Write one job file a notebook and subject into `state`, touching only those that changed.

    Parameters
    ----------
    plan : Plan
    state : Path
        Folder of the job files, `<subject>-<notebook>.json`.
    package : Path
        The source whose code the notebooks use.

    Returns
    -------
    list of (Path, Job)
        In the order of execution.
    """
    digests: dict[Path, str] = {}
    jobs, last = [], []
    for subject in plan.subjects:
        upstream = ""
        for sheet in plan.chapters:
            job = _job(plan, sheet, subject, upstream, package, digests)
            upstream = job.data
            jobs.append(job)
        last.append(upstream)
    for sheet in plan.group:
        jobs.append(_job(plan, sheet, "", "".join(last), package, digests))
    return [(_write_job(state, job), job) for job in jobs]


def _job(
    plan: Plan, sheet: Sheet, subject: str, upstream: str, package: Path, digests: dict[Path, str]
) -> Job:
    """The job of one notebook; `data` names all that its numbers depend on, `page` all else."""
    own = {"subject": subject} if subject else {"subjects": ",".join(plan.subjects)}
    given = {**plan.parameters, **own}
    parameters = {name: given.get(name, value) for name, value in sheet.defaults.items()}
    notebook = nbformat.read(sheet.path, as_version=4)
    used = _modules(notebook, package)
    computing = _modules(notebook, package, without=DISPLAY)
    inputs = [
        _path_digest((plan.notebooks / str(parameters[name])).resolve(), digests)
        for name in ("data_path", "models")
        if parameters.get(name)
    ]
    data = _digest(parameters, upstream, inputs, code_digest(computing.values()))
    cells = [[cell.cell_type, cell.source, cell.metadata] for cell in notebook.cells]
    page = _digest(cells, code_digest(used.values()))
    folder = plan.run / subject / "notebooks"
    return Job(
        notebook=sheet.name,
        subject=subject,
        source=str(sheet.path),
        output=str(folder / f"{sheet.name}.ipynb"),
        cwd=str(plan.notebooks),
        run=str(plan.run),
        parameters=parameters,
        data=data,
        page=page,
    )


def _write_job(state: Path, job: Job) -> Path:
    """Write a job unless the same one is there: its date then says when it last changed."""
    path = state / f"{job.subject or 'group'}-{job.notebook}.json"
    text = json.dumps(vars(job), indent=1, ensure_ascii=False)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


def read_job(path: str | Path) -> Job:
    """Read a job file written by `make_jobs`."""
    return Job(**json.loads(Path(path).read_text(encoding="utf-8")))


def code_digest(paths: Iterable[Path]) -> str:
    """A digest of what Python files do: comments, docstrings and layout do not count."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.name.encode() + _without_words(path.read_text(encoding="utf-8")))
    return total.hexdigest()


@cache  # most modules are used by most notebooks
def _without_words(source: str) -> bytes:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            del body[0]
    return ast.dump(tree).encode()


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _modules(
    notebook: nbformat.NotebookNode, package: Path, without: frozenset[str] = frozenset()
) -> dict[str, Path]:
    """The package's modules that a notebook imports, directly or through one another.

    Modules in `without` do not count, nor does what only they import.
    """
    found: dict[str, Path] = {}
    waiting = set()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            waiting |= _imports(cell.source, package)
    while waiting:
        name = waiting.pop()
        path = _module_path(package, name)
        if path is None or name in found or name.split(".")[0] in without:
            continue
        found[name] = path
        waiting |= _imports(path.read_text(encoding="utf-8"), package)
    return found


@cache
def _imports(source: str, package: Path) -> set[str]:
    """Names below the package that a source text imports, `datasets.nsd` and its parents."""
    # Magics such as `%matplotlib inline` are no Python; they import nothing of ours.
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError:
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    prefix = f"{package.name}."
    ours = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    parents = {
        name.rsplit(".", depth)[0] for name in ours for depth in range(1, name.count(".") + 1)
    }
    return ours | parents


def _module_path(package: Path, name: str) -> Path | None:
    stem = package.joinpath(*name.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _path_digest(path: Path, known: dict[Path, str]) -> str:
    """A digest of a file, or of the files of a folder; of a big data tree, its `phantom.json`."""
    if path not in known:
        record = path / "phantom.json"
        if record.is_file():
            files = [record]
        elif path.is_dir():
            # Notes such as a model card change no number.
            found = sorted(path.glob("**/*"))
            files = [file for file in found if file.is_file() and file.suffix != ".md"]
        else:
            files = [path] if path.is_file() else []
        small = sum(file.stat().st_size for file in files) <= HASHED_WHOLE
        known[path] = _digest([str(path), [_file_digest(file, small) for file in files]])
    return known[path]


def _file_digest(file: Path, small: bool) -> list[str]:
    if small:
        return [str(file), hashlib.sha256(file.read_bytes()).hexdigest()]
    facts = file.stat()
    return [str(file), str(facts.st_size), str(facts.st_mtime_ns)]


def _digest(*things: object) -> str:
    text = json.dumps(things, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
