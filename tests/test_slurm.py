"""The fast book through a real Slurm of one node, which this test starts: `pytest -m slurm`."""

import json
import os
import subprocess
import sys
import time

import pytest
import slurm_node
from builders import ROOT
from test_shards import same

from minddiff_utils.book.plan import parse_yaml
from minddiff_utils.io import method_file

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(slurm_node.missing()), reason=slurm_node.missing() or "none"),
]
SHARDS = 4
# The quick look at the phantom, with two batches a shard.
CHANGES = {"batch": 1, "n_curve": 2}
# What a small node does not have, or does sooner, than the repository's profile says.
NODE = {"set-resources": {"chapter": {"gpu": 0}, "shard": {"gpu": 0}}, "latency-wait": 10}
NODE |= {"set-threads": {"chapter": 1, "shard": 1}, "slurm-status-command": "squeue"}
NODE |= {"default-resources": {"mem_mb": 1500, "runtime": 60}}
NODE |= {"slurm-init-seconds-before-status-checks": 5}


def book(folder, *more, **changes):
    """The command that makes the book of this test in a folder beside its tree."""
    values = {**CHANGES, "run_dir": folder, "data_path": folder.parent / "tree", **changes}
    sets = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "minddiff_utils.cli", "book", "fast", *more, *sets]


def environment(more=None):
    """The same number of threads for both books: another one rounds otherwise."""
    ours = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return {**os.environ, **(more or {}), **ours, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The book without Slurm, stage 2 in one piece."""
    folder = tmp_path_factory.mktemp("slurm") / "local"
    subprocess.run(book(folder, "--cores", "1"), check=True, env=environment())
    return folder


def wait_for_running_shard(process, known, folder):
    """The number of a Slurm job that computes a shard and has a batch behind it."""
    while process.poll() is None:
        begun = list((folder / "subj01" / "shards").glob("*.partial"))
        running = [n for n, said in slurm_node.queue(known).items() if "RUNNING rule_shard" in said]
        if running and any(path.stat().st_size > 20_000 for path in begun):
            return running[0]
        time.sleep(0.1)
    raise AssertionError("the book ended before a shard could be cancelled")


def test_book_through_slurm_is_that_of_one_machine(local):
    """Stage 2 in four shards, one of them cancelled on its way: the numbers are the same."""
    folder = local.parent / "slurm"
    with slurm_node.one_node(local.parent / "node") as known:
        profile = local.parent / "profile"
        profile.mkdir()
        known_profile = parse_yaml((ROOT / "notebooks/profiles/slurm/config.yaml").read_bytes(), "")
        (profile / "config.yaml").write_text(json.dumps(known_profile | NODE))
        command = book(folder, "--profile", profile, shards=SHARDS)
        process = subprocess.Popen(command, env=environment(known))
        try:
            cancelled = wait_for_running_shard(process, known, folder)
            subprocess.run(["scancel", cancelled], check=True, env=environment(known))
            assert process.wait() == 0
        finally:
            process.kill()
        jobs = slurm_node.queue(known)
    state, what = jobs[cancelled].split(" ", 1)
    assert state == "CANCELLED"
    assert list(jobs.values()).count(f"COMPLETED {what}") == 1  # the same shard once more
    shards = [said for said in jobs.values() if said.startswith("COMPLETED rule_shard")]
    assert len(shards) == len(set(shards)) == SHARDS

    one, four = local / "subj01", folder / "subj01"
    for name in ("stage2", "stage2_seed_1", "no_z", "shuffled"):
        same(method_file(one, name), method_file(four, name))
    assert (one / "metrics.csv").read_bytes() == (four / "metrics.csv").read_bytes()
    assert (folder / "html" / "index.html").is_file()
    record = json.loads((four / "provenance.json").read_text())
    assert set(record["notebooks"]) >= {"01_data", "04_stage2", "06_controls"}
