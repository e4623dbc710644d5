"""The house: imports go one way, functions are small, what is declared is used."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from statistics import median

import pytest
from builders import ROOT

PACKAGE = ROOT / "minddiff_utils"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Each room may import those before it, and those that stand beside it.
ORDER = [
    {"io", "settings"},
    {"datasets", "models"},
    {"decoding", "reconstruction"},
    {"evaluation"},
    {"figures"},
    {"book"},
    {"phantom"},
    {"cli"},
]


def room(module):
    """The place in `ORDER` of a module such as `minddiff_utils.decoding.ridge`."""
    name = module.split(".")[1]
    return next(number for number, names in enumerate(ORDER) if name in names)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(PACKAGE)) for p in SOURCES])
def test_imports_go_one_way(path):
    if path.parent == PACKAGE and path.stem == "__init__":
        return
    here = room(module_of(path))
    for name in imports(path):
        assert not name.startswith("studies"), name
        if name.startswith("minddiff_utils.") and name.count(".") > 1:
            assert room(name) <= here, f"{path.name} imports {name}"
            assert name.split(".")[1] != "phantom" or ORDER[here] & {"phantom", "cli"}, name
            # Models know no brain, decoding nothing of how pictures are painted.
            apart = {"models": "datasets", "datasets": "models", "decoding": "reconstruction"}
            assert name.split(".")[1] != apart.get(path.parent.name), name


def functions():
    for path in SOURCES:
        tree = ast.parse(path.read_text("utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in [*tree.body, *(member for one in classes for member in one.body)]:
            if isinstance(node, ast.FunctionDef):
                yield path, node


def n_lines(node):
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_small():
    lengths = {f"{path.name} {node.name}": n_lines(node) for path, node in functions()}
    assert {name: n for name, n in lengths.items() if n > 60} == {}
    assert median(lengths.values()) <= 12


def test_no_public_function_takes_a_dictionary_of_anothers_arguments():
    # They take eight things at most: ruff's PLR0913.
    found = {node.name: path.name for path, node in functions() if node.args.kwarg}
    assert not [name for name in found if name[0] != "_" and found[name] != "settings.py"]


def test_what_is_declared_is_imported_and_what_is_imported_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w.-]+", text)[0].lower() for text in project["dependencies"]}
    known = metadata.packages_distributions()
    imported, texts = set(), ""
    for path in [*SOURCES, *(ROOT / "studies").glob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]:
        text = path.read_text("utf-8")
        texts += text
        if path.suffix == ".py":
            imported |= {name.split(".")[0] for name in imports(path)}
    imported |= set(re.findall(r'"(?:from|import) (\w+)', texts))
    found = {d.lower() for name in imported - sys.stdlib_module_names for d in known.get(name, [])}
    # Called by their commands, or by another package: the book's builder and its extensions, the
    # kernel, tqdm's bars, pandas' tables, the panel's networks where somebody has torchvision.
    commands = {"jupyter-book", "sphinxcontrib-bibtex", "sphinx-mathjax-offline", "ipykernel"}
    commands |= {"snakemake", "tabulate", "accelerate", "ipywidgets"}
    assert names - found - commands == set()
    optional = {"torchvision", "torch", "ipython", "matplotlib-inline", "typing_extensions"}
    dev = {"fastl2lir", "minddiffuser-book", "psutil"}
    assert found - names - optional - dev == set()
