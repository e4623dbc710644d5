"""The lock, conda's file, the package's own list and the licence files agree."""

import re
import shutil
import subprocess
import tomllib
from importlib import metadata

import pytest
from builders import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_lock_holds_every_direct_dependency_in_a_fitting_version(lock, project):
    # torchvision has no build that fits every torch; whoever wants the extra chooses one.
    extras = {k: v for k, v in project["optional-dependencies"].items() if k != "panel"}
    wanted = project["dependencies"] + sum(extras.values(), [])
    for requirement in map(Requirement, wanted):
        pin = lock[canonicalize_name(requirement.name)]
        (specifier,) = pin.specifier
        assert requirement.specifier.contains(specifier.version), requirement


def test_lock_is_closed(lock):
    """What a locked package needs on this machine is locked too."""
    for name in lock:
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            # A CUDA build of torch brings NVIDIA's packages, a CPU build does not.
            if name == "torch" and re.match("nvidia|cuda|triton", needed.name):
                continue
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in lock, f"{name} needs {needed}"


def test_installed_packages_are_those_of_the_lock(lock):
    for name, pin in lock.items():
        (specifier,) = pin.specifier
        assert metadata.version(name).split("+")[0] == specifier.version, name


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_makefile_hands_data_only_to_the_book_that_reads_them():
    def shown(*arguments):
        command = ["make", "--dry-run", "--always-make", "book", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout

    assert "minddiff book phantom" in (said := shown("MIYAWAKI=x.mat")) and "--data" not in said
    assert 'book miyawaki --data "x.mat"' in shown("PARAMS=miyawaki", "MIYAWAKI=x.mat")
    assert 'book paper --data "x"' in shown("PARAMS=paper", "NSD=x")
    assert 'book own --data "x.h5"' in shown("PARAMS=own", "OWN=x.h5")
    assert "--set seed=1 --set gain=2" in shown("SET=seed=1 gain=2")
