"""Run the notebooks of a plan: contents decide what is left to do, Snakemake in which order."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat

from minddiff_utils.book import say
from minddiff_utils.book.plan import Plan, Sheet, load_plan
from minddiff_utils.io import BookError, InputError, atomic_path
from minddiff_utils.storage import code_digest, content_hash, file_digest

SHARDED = "04_stage2"  # the chapter whose pictures can be shared out among jobs
# What decides a notebook's results and figures; a change elsewhere makes no notebook run again.
ROOMS = ("datasets", "models", "decoding", "reconstruction", "evaluation", "figures", "settings.py")
DATA = (".h5", ".hdf5", ".mat", ".nii", ".gz", ".npz", ".csv", ".tsv", ".json")
MODEL = (".safetensors", ".json", ".txt")
KEPT = "book/results"  # what was computed once, in hours; some chapters show it
PATHS = ("run_dir", "data_path", "models")  # not they but what lies there decides
CANCEL_SECONDS = 60.0  # for Snakemake to cancel its jobs on a cluster
# Runs a command, and ends it and all that it has started when the input does: when we are gone.
GUARD = ("sh", "-c", 'exec 3<&0 </dev/null; (cat <&3; kill -KILL 0) & exec "$@" 3<&-', "sh")


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `provenance.json` of a folder says of each notebook; if damaged, of none."""
    try:
        return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["notebooks"]
    except (FileNotFoundError, ValueError):
        return {}


def recording_files(path: Path, subject: str) -> list[Path]:
    """Return the files of a recording that belong to a subject, whatever else lies beside them."""
    if path.is_file():
        return [path]
    another = re.compile(rf"\.|(?!{subject}\b)subj\d\d\b")  # a hidden file, or a subject's
    found = sorted(path.glob(f"{subject}.*")) or sorted(path.rglob("*"))
    return [
        file
        for file in found
        if file.suffix in DATA
        and file.is_file()
        and not any(map(another.match, file.relative_to(path).parts))
    ]


def inputs_digest(plan: Plan, sheet: Sheet, subject: str) -> str:
    """Digest all that a notebook's results follow from, by content.

    Its own cells and parameters, our code, the recording and the models, what the notebooks before
    it have left, and what is kept in the repository where its cells read that.
    """
    given = {k: v for k, v in plan.given(sheet, subject).items() if k not in PATHS}
    cells = nbformat.read(sheet.path, as_version=4).cells
    text = [given, [[cell.cell_type, cell.source, cell.metadata] for cell in cells]]
    folders = [subject] if subject else plan.subjects
    before = {name: _left_before(plan.run / name, sheet.name) for name in folders}
    parts = [text, before, code_digest(*ROOMS)]
    if subject:
        names = ("data_path", "models", "guide", "judge")
        parts += [_files_digest(plan, name, subject) for name in names]
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
    return json.dumps([[str(f.relative_to(path)), file_digest(f)] for f in files])


def _left_before(folder: Path, chapter: str) -> dict[str, str]:
    """Digest of each file that notebooks before this one have left, as the last of them left it."""
    known = read_record(folder)
    earlier = [known[name]["outputs"] for name in sorted(known) if name < chapter]
    return {name: digest for outputs in earlier for name, digest in outputs.items()}


def output_digest(path: Path) -> str:
    """Digest what a notebook has left; `run.json` only has to be there.

    Each chapter begins by adding to it what it was given, which `inputs_digest` knows.
    """
    return "" if path.name == "run.json" else file_digest(path)


def is_done(plan: Plan, sheet: Sheet, subject: str) -> bool:
    """Whether a notebook has run from just these inputs, and what it left is still there, whole."""
    folder = plan.run / subject
    known = read_record(folder).get(sheet.name)
    if not known or known["inputs"] != inputs_digest(plan, sheet, subject):
        return False
    latest = _left_before(folder, "99")
    return all(
        (folder / name).is_file() and output_digest(folder / name) == latest[name]
        for name in known["outputs"]
    )


def write_plan(plan: Plan) -> Path:
    """Write what the Snakefile reads, and jobs to know the same plan again."""
    content = {
        "name": plan.name,
        "root": str(plan.root),
        "values": plan.values,
        "chapters": [sheet.name for sheet in plan.chapters],
        "group": [sheet.name for sheet in plan.group],
        "sharded": SHARDED,
        "command": shlex.join([sys.executable, "-m", "minddiff_utils.cli", "job", "."]),
    }
    path = plan.state / "plan.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    return path


def read_plan(path: Path) -> Plan:
    """Read what `write_plan` has kept."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    root = Path(kept["root"])
    return load_plan(root / "notebooks" / "params" / f"{kept['name']}.yaml", root, kept["values"])


def run_notebooks(plan: Plan, cores: int, profile: Path | None, more: list[str], lock: int) -> None:
    """Let Snakemake run the notebooks that are not done, and tell how far they are.

    Parameters
    ----------
    plan : Plan
    cores : int
        That all jobs share.
    profile : Path or None
        Folder of a Snakemake profile, for a cluster.
    more : list of str
        Further arguments for Snakemake.
    lock : int
        Descriptor of a file that stays locked as long as Snakemake lives.

    Raises
    ------
    InputError, BookError
        With what the jobs that failed have said.
    """
    if not _mark_done(plan):
        return
    command = _snakemake(plan, cores, profile) + more
    log = plan.state / "progress.log"
    log.write_text("", encoding="utf-8")
    for note in plan.state.glob("*.failure"):
        note.unlink()
    with open(plan.state / "snakemake.log", "w", encoding="utf-8") as chatter:
        with subprocess.Popen(
            command if profile else [*GUARD, *command],
            stdin=subprocess.PIPE,
            stdout=chatter,
            stderr=chatter,
            process_group=0,
            pass_fds=(lock,),
        ) as process:
            try:
                _follow(log, process)
            except BaseException:
                if profile:  # Snakemake has to cancel its jobs on a cluster
                    process.send_signal(signal.SIGINT)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(CANCEL_SECONDS)
                raise
    if process.returncode:
        _explain(plan)


def _mark_done(plan: Plan) -> int:
    """Leave marks for Snakemake of what is done, each newer than those before; count the rest."""
    shutil.rmtree(plan.state / "done", ignore_errors=True)
    (plan.state / "done").mkdir(parents=True)
    left = 0
    for subject, sheet in plan.jobs:
        if is_done(plan, sheet, subject):
            (plan.state / "done" / f"{subject or 'all'}-{sheet.name}").touch()
        else:
            left += 1
    return left


def _snakemake(plan: Plan, cores: int, profile: Path | None) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile"]
    command += [str(plan.root / "notebooks" / "Snakefile"), "--directory", str(plan.state)]
    command += ["--configfile", str(write_plan(plan)), "--nolock", "--rerun-triggers", "mtime"]
    command += ["--drop-metadata", "--keep-going"]
    return command + (["--workflow-profile", str(profile)] if profile else ["--cores", str(cores)])


def _follow(log: Path, process: subprocess.Popen) -> None:
    """Tell what the jobs append to `log` until the process has ended."""
    with open(log, encoding="utf-8") as lines:
        running = True
        while running:
            running = process.poll() is None
            for line in lines:
                say(line.rstrip("\n"))
            time.sleep(0.2 * running)


def _explain(plan: Plan) -> None:
    """Raise the errors that the jobs left; without any, show what Snakemake said."""
    notes = sorted(plan.state.glob("*.failure"))
    failures = [json.loads(note.read_text(encoding="utf-8")) for note in notes]
    if not failures:
        log = plan.state / "snakemake.log"
        said = log.read_text(encoding="utf-8").strip().splitlines()
        # What became of a cluster's jobs, and where each one's own log is.
        told = [line.strip() for line in said if re.search(r"SLURM-job|sbatch|\slog: ", line)]
        shown = "\n".join(dict.fromkeys(told) or said[-15:])
        raise BookError(f"Snakemake stopped:\n{shown}\nAll of it: {log}")
    kept = "The last good book stays: " if (plan.run / "html").exists() else "No book was built: "
    text = "\n\n".join(failure["message"] for failure in failures)
    kind = InputError if all(failure["user"] for failure in failures) else BookError
    raise kind(f"{text}\n\n{kept}{plan.run / 'html'}")
