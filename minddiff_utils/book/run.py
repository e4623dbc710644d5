"""Run the notebooks of a plan: contents decide what is left to do, Snakemake in which order."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat

from minddiff_utils.book.plan import Plan, Sheet, load_plan
from minddiff_utils.io import NotebookError, atomic_path
from minddiff_utils.settings import resolve
from minddiff_utils.storage import code_digest, content_hash, file_digest

SHARDED = "04_stage2"  # the chapter whose pictures can be shared out among jobs
# What decides a notebook's results and figures; a change elsewhere makes no notebook run again.
ROOMS = ("datasets", "models", "decoding", "reconstruction", "evaluation", "figures", "settings.py")
DATA = (".h5", ".hdf5", ".mat", ".nii", ".gz", ".npz", ".csv", ".tsv", ".json")
MODEL = (".safetensors", ".json", ".txt")
KEPT = "book/results"  # what was computed once, in hours; some chapters show it
PATHS = ("run_dir", "data_path", "models")  # not they but what lies there decides
CANCEL_SECONDS = 60.0  # for Snakemake to cancel its jobs on a cluster


def state_folder(plan: Plan) -> Path:
    """Where the book keeps what only it needs: marks, logs, the plan."""
    return plan.run / ".state"


def subject_folder(plan: Plan, subject: str) -> Path:
    """The folder of a subject's results; "" is the folder of the run."""
    return plan.run / subject


def read_record(folder: Path) -> dict[str, Any]:
    """Return `provenance.json` of a folder; what is no JSON counts as none."""
    try:
        return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def recording_files(path: Path, subject: str) -> list[Path]:
    """Return the files of a recording that belong to a subject, whatever else lies beside them."""
    if path.is_file():
        return [path]
    if named := [file for file in sorted(path.glob(f"{subject}.*")) if file.suffix in DATA]:
        return named
    found = []
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        others = [p for p in parts if re.fullmatch(r"subj\d\d(\..*)?", p) and p[:6] != subject]
        if file.suffix in DATA and not others and parts[-1][0] != "." and file.is_file():
            found.append(file)
    return found


def inputs_digest(plan: Plan, sheet: Sheet, subject: str) -> str:
    """Digest all that a notebook's results follow from, by content.

    Its own cells and parameters, our code, the recording and the models, what the notebooks before
    it have left, and what is kept in the repository where its cells read that.
    """
    given = {k: v for k, v in plan.given(sheet, subject).items() if k not in PATHS}
    cells = nbformat.read(sheet.path, as_version=4).cells
    text = [given, [[cell.cell_type, cell.source, cell.metadata] for cell in cells]]
    folders = [subject] if subject else plan.subjects
    before = {name: _left_before(subject_folder(plan, name), sheet.name) for name in folders}
    parts = [text, before, code_digest(*ROOMS)]
    if subject:
        names = ("data_path", "models", "guide", "judge")
        parts += [_files_digest(plan, name, subject) for name in names]
    if any(KEPT in cell.source for cell in cells):
        parts += [file_digest(file) for file in sorted(plan.root.glob(f"{KEPT}/*"))]
    return content_hash([(json.dumps(parts, sort_keys=True, default=str), b"")])


def _files_digest(plan: Plan, name: str, subject: str) -> str:
    text = str(plan.values.get(name) or "")
    path = resolve(text, plan.root)
    if not text or not path.exists():
        return text  # a model of the hub
    files = [file for file in sorted(path.rglob("*")) if file.suffix in MODEL]
    if name == "data_path":
        files = recording_files(path, subject)
    return json.dumps([[str(f.relative_to(path)), file_digest(f)] for f in files])


def _left_before(folder: Path, chapter: str) -> dict[str, str]:
    """Digest of each file that notebooks before this one have left, as the last of them left it."""
    known = read_record(folder).get("notebooks", {})
    earlier = [known[name]["outputs"] for name in sorted(known) if name < chapter]
    return {name: digest for outputs in earlier for name, digest in outputs.items()}


def output_digest(path: Path) -> str:
    """Digest what a notebook has left; `run.json` only has to be there.

    Each chapter begins by adding to it what it was given, which `inputs_digest` knows.
    """
    return "" if path.name == "run.json" else file_digest(path)


def is_done(plan: Plan, sheet: Sheet, subject: str) -> bool:
    """Whether a notebook has run from just these inputs, and what it left is still there, whole."""
    folder = subject_folder(plan, subject)
    known = read_record(folder).get("notebooks", {})
    if sheet.name not in known or known[sheet.name]["inputs"] != inputs_digest(
        plan, sheet, subject
    ):
        return False
    latest = _left_before(folder, "99")
    return all(
        (folder / name).is_file() and output_digest(folder / name) == latest[name]
        for name in known[sheet.name]["outputs"]
    )


def write_plan(plan: Plan) -> Path:
    """Keep what jobs need to read the same plan again."""
    path = state_folder(plan) / "plan.json"
    with atomic_path(path) as temporary:
        text = json.dumps({"name": plan.name, "root": str(plan.root), "values": dict(plan.values)})
        temporary.write_text(text, encoding="utf-8")
    return path


def read_plan(path: Path) -> Plan:
    """Read what `write_plan` has kept."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    root = Path(kept["root"])
    return load_plan(root / "notebooks" / "params" / f"{kept['name']}.yaml", root, kept["values"])


def run_notebooks(
    plan: Plan,
    cores: int,
    profile: Path | None,
    more: list[str],
    lock: int,
    say: Callable[[str], None],
) -> None:
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
    say : callable
        Takes lines about the progress.

    Raises
    ------
    NotebookError
        With what the jobs that failed have said.
    """
    state = state_folder(plan)
    left = _mark_done(plan, state)
    if not left:
        return
    log = state / "progress.log"
    log.write_text("", encoding="utf-8")
    for note in state.glob("*.failure"):
        note.unlink()
    command = _snakemake(plan, state, cores, profile) + more
    with open(state / "snakemake.log", "w", encoding="utf-8") as chatter:
        process = subprocess.Popen(
            command,
            stdout=chatter,
            stderr=chatter,
            stdin=subprocess.DEVNULL,
            process_group=0,
            pass_fds=(lock,),
        )
        try:
            _follow(log, process, left, say)
        except BaseException:
            _stop(process, cancel=profile is not None)
            raise
    if process.returncode:
        _explain(plan, state)


def _mark_done(plan: Plan, state: Path) -> int:
    """Keep a mark for each notebook that is done, up to the first that is not; count the others."""
    (state / "done").mkdir(parents=True, exist_ok=True)
    left = 0
    for subject in [*plan.subjects, ""]:
        done = bool(subject) or not left
        for sheet in plan.chapters if subject else plan.group:
            done = done and is_done(plan, sheet, subject)
            mark = state / "done" / f"{subject or 'all'}-{sheet.name}"
            mark.touch() if done else mark.unlink(missing_ok=True)
            left += not done
    return left


def _snakemake(plan: Plan, state: Path, cores: int, profile: Path | None) -> list[str]:
    """Return the command; the Snakefile reads its `--config`."""
    n_jobs = [len(plan.subjects) * n for n in (1, plan.shards)]
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    usual = [1 if profile else max(1, cores // n) for n in n_jobs]
    threads = [int(wanted)] * 2 if wanted.isdigit() and int(wanted) else usual
    config = {
        "subjects": plan.subjects,
        "chapters": [sheet.name for sheet in plan.chapters],
        "group": [sheet.name for sheet in plan.group],
        "sharded": SHARDED,
        "shards": plan.shards,
        "threads": threads,
        "command": shlex.join([sys.executable, "-m", "minddiff_utils.cli"]),
        "options": shlex.join(["--parent", f"{os.uname().nodename}:{os.getpid()}"]),
    }
    order = state / "order.json"
    with atomic_path(order) as temporary:
        temporary.write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--snakefile"]
    command += [str(plan.root / "notebooks" / "Snakefile"), "--directory", str(state)]
    command += ["--configfile", str(order), "--nolock", "--rerun-triggers", "params"]
    command += ["--drop-metadata", "--keep-going"]
    return command + (["--workflow-profile", str(profile)] if profile else ["--cores", str(cores)])


def _follow(log: Path, process: subprocess.Popen, left: int, say: Callable[[str], None]) -> None:
    """Tell what the jobs append to `log` until the process has ended, and how much is done."""
    done = 0
    with open(log, encoding="utf-8") as lines:
        while True:
            ended = process.poll() is not None
            for line in lines:
                finished = "· done in" in line and "· shard" not in line
                done += finished
                say(line.rstrip("\n") + (f" ({done} of {left} notebooks)" if finished else ""))
            if ended:
                return
            time.sleep(0.2)


def _stop(process: subprocess.Popen, cancel: bool) -> None:
    """End Snakemake and its jobs; those of a cluster it has to cancel itself."""
    if cancel:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(CANCEL_SECONDS)
    # All of it bears being killed, and Snakemake would wait for notebooks that run here.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _explain(plan: Plan, state: Path) -> None:
    """Raise the errors that the jobs left; without any, show what Snakemake said."""
    failures = [json.loads(path.read_text("utf-8")) for path in sorted(state.glob("*.failure"))]
    if not failures:
        said = (state / "snakemake.log").read_text(encoding="utf-8").strip().splitlines()
        # What became of a cluster's jobs, and where each one's own log is.
        told = [line.strip() for line in said if re.search(r"SLURM-job|sbatch|\slog: ", line)]
        shown = "\n".join(dict.fromkeys(told) or said[-15:])
        raise NotebookError(f"Snakemake stopped:\n{shown}\nAll of it: {state}/snakemake.log")
    kept = "The last good book stays: " if (plan.run / "html").exists() else "No book was built: "
    text = "\n\n".join(failure["message"] for failure in failures)
    user = all(failure["user"] for failure in failures)
    raise NotebookError(f"{text}\n\n{kept}{plan.run / 'html'}", user)
