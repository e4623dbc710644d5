"""A Slurm of one node on loopback, for tests: munge, controller and node in one folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
SECONDS = 60  # for a daemon to answer

SLURM_CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MinJobAge=86400
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here; "" if one can."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "only root can start a Slurm of its own"


@contextmanager
def one_node(folder: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Start a Slurm whose files are all in `folder`; yield the environment its commands need."""
    folder.mkdir(parents=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    controller, node = _free_ports(2)
    host = socket.gethostname().split(".")[0]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    values = {"host": host, "folder": folder, "controller": controller, "node": node}
    values |= {"cpus": cpus, "memory": memory}
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    environment["PATH"] = f"{_srun(folder)}:{environment['PATH']}"
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    with ExitStack() as stack:
        munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge]
        for command in (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
            stack.enter_context(_daemon(command, environment, folder))
        _wait_until_idle(environment, folder)
        yield environment


def _srun(folder: Path) -> Path:
    """Make a folder with an `srun` that finds its Slurm: Snakemake takes SLURM_CONF from it."""
    script = folder / "bin" / "srun"
    script.parent.mkdir()
    found = shutil.which("srun")
    script.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {found} "$@"\n')
    script.chmod(0o755)
    return script.parent


@contextmanager
def _daemon(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with open(folder / f"{command[0]}.out", "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    """Wait until the node takes jobs; show what the daemons said if it never does."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        command = ["sinfo", "--noheader", "--format=%T"]
        answer = subprocess.run(command, capture_output=True, text=True, env=environment)
        if answer.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    said = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in folder.glob("*.*o[ug]*")]
    raise RuntimeError("Slurm did not start.\n" + "\n".join(said))


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def queue(environment: dict[str, str]) -> dict[str, str]:
    """Jobs that Slurm knows, waiting, running or ended: comment by job number."""
    command = ["squeue", "--noheader", "--states=all", "--format=%i|%T|%k"]
    lines = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    rows = [line.split("|", 2) for line in lines.stdout.splitlines()]
    return {number: f"{state} {comment}" for number, state, comment in rows}
