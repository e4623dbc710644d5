"""What a notebook came from and what it left: contents decide whether it is done."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat

from minddiff_utils.book import ask_git
from minddiff_utils.book.plan import Plan, Sheet
from minddiff_utils.datasets.recording import recording_files
from minddiff_utils.io import code_digest, content_hash, write_text
from minddiff_utils.models.hub import revisions
from minddiff_utils.settings import PATHS

# What decides a notebook's results and figures; a change elsewhere makes no notebook run again.
ROOMS = ("datasets", "models", "decoding", "reconstruction", "evaluation", "figures", "settings.py")
WHOLE = 64 * 2**20  # bytes of a file that are read to tell it from another
PART = 2**18  # bytes, of each of 16 parts of a larger file
MODEL = (".safetensors", ".json", ".txt")
KEPT = "book/results"  # what was computed once, in hours; some chapters show it


def file_digest(path: str | Path) -> str:
    """Return a digest of a file's content; of one above 64 MiB, of 16 parts and its size."""
    size = Path(path).stat().st_size
    total = hashlib.blake2b(str(size).encode(), digest_size=16)
    starts, length = ([0], WHOLE) if size <= WHOLE else (range(0, size, size // 16), PART)
    with open(path, "rb") as file:
        for start in starts:
            file.seek(start)
            total.update(file.read(length))
    return total.hexdigest()


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `provenance.json` of a folder says of each notebook; if damaged, of none."""
    try:
        return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["notebooks"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def inputs_digest(plan: Plan, sheet: Sheet, subject: str) -> str:
    """Digest all that a notebook's results follow from, by content.

    Its own cells and parameters, our code, the recording and the models, what the notebooks before
    it have left, and what is kept in the repository where its cells read that.
    """
    # Of paths not they but what lies there decides.
    given = {k: v for k, v in plan.given(sheet, subject).items() if k not in PATHS}
    cells = nbformat.read(sheet.path, as_version=4).cells
    text = [given, [[cell.cell_type, cell.source, cell.metadata] for cell in cells]]
    folders = [subject] if subject else plan.subjects
    before = {name: _left_before(plan.run / name, sheet.name) for name in folders}
    parts = [text, before, code_digest(*ROOMS)]
    if subject:
        parts += [_files_digest(plan, name, subject) for name in PATHS if name != "run_dir"]
    if any(KEPT in cell.source for cell in cells):
        parts += [file_digest(file) for file in sorted(plan.root.glob(f"{KEPT}/*"))]
    return content_hash([(json.dumps(parts, sort_keys=True, default=str), b"")])


def _files_digest(plan: Plan, name: str, subject: str) -> str:
    path = plan.place(name)
    if path is None:
        return str(plan.values.get(name) or "")  # a model of the hub
    files = [file for file in sorted(path.rglob("*")) if file.suffix in MODEL]
    if name == "data_path":
        files = recording_files(path, subject)
    return digest_files(path, files)


def digest_files(folder: Path, files: Iterable[Path]) -> str:
    """Return names and digests of files in a folder."""
    return json.dumps([[str(file.relative_to(folder)), file_digest(file)] for file in files])


def _left_before(folder: Path, chapter: str) -> dict[str, str]:
    """Digest of each file that notebooks before this one have left, as the last of them left it."""
    known = read_record(folder)
    earlier = [known[name]["outputs"] for name in sorted(known) if name < chapter]
    return {name: digest for outputs in earlier for name, digest in outputs.items()}


def output_digest(path: Path) -> str | None:
    """Digest what a notebook has left, None if it is gone; `run.json` only has to be there.

    Each chapter begins by adding to it what it was given, which `inputs_digest` knows.
    """
    if not path.is_file():
        return None
    return "" if path.name == "run.json" else file_digest(path)


def is_done(plan: Plan, sheet: Sheet, subject: str) -> bool:
    """Whether a notebook has run from just these inputs, and what it left is still there, whole."""
    folder = plan.run / subject
    known = read_record(folder).get(sheet.name)
    if not known or known["inputs"] != inputs_digest(plan, sheet, subject):
        return False
    latest = _left_before(folder, "99")
    return all(output_digest(folder / name) == latest[name] for name in known["outputs"])


def _files(folder: Path, subject: str) -> dict[str, tuple[int, int]]:
    """Size and date of what lies in a subject's folder, or beside the subjects' folders."""
    found = filter(Path.is_file, folder.rglob("*") if subject else folder.glob("*"))
    facts = {str(path.relative_to(folder)): path.stat() for path in found}
    ours = (".", "shards", "notebooks", "provenance.json")
    kept = {name: fact for name, fact in facts.items() if not name.startswith(ours)}
    return {name: (fact.st_size, fact.st_mtime_ns) for name, fact in kept.items()}


@contextmanager
def recorded(plan: Plan, sheet: Sheet, subject: str) -> Iterator[None]:
    """Add the notebook that a block executes to the `provenance.json` of its folder."""
    folder, begun = plan.run / subject, time.monotonic()
    inputs, before = inputs_digest(plan, sheet, subject), _files(folder, subject)
    yield
    known, after = read_record(folder), _files(folder, subject)
    changed = {name for name, facts in after.items() if before.get(name) != facts}
    kept = known.get(sheet.name, {}).get("outputs", {}).keys() & after.keys()
    names = [*sorted(changed | kept), f"notebooks/{sheet.name}.ipynb"]
    known[sheet.name] = {
        "parameters": plan.given(sheet, subject),
        "model_revisions": model_revisions(plan),
        "inputs": inputs,
        "outputs": {name: output_digest(folder / name) for name in names},
        "wall_time_s": round(time.monotonic() - begun, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    # The commit that is checked out, with "+changes" if files differ from it.
    commit = ("describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*")
    record = {
        "notebooks": known,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": ask_git(plan.root, *commit) or None,
        "packages": {dist.name: dist.version for dist in metadata.distributions() if dist.name},
    }
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
    write_text(folder / "provenance.json", text)


def model_revisions(plan: Plan) -> dict[str, str]:
    """The repositories of the Hugging Face hub that a run's models come from, if any."""
    names = ("models", "guide", "judge")
    models, *clips = [str(plan.place(name) or plan.values.get(name) or "") for name in names]
    return revisions(models, *clips) if models else {}
