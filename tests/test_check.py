"""`minddiff check`: exactly what is missing or wrong is named, and where to get it."""

import re
import shutil
from pathlib import Path

import miyawaki_tree
import nibabel as nib
import pytest
import test_kay
from builders import refuses, run_cli
from test_nsd import DESIGN, FILES, ROI, SESSION, STIMULI, edit_betas, wrong

from minddiff_utils.datasets.check import check_nsd, is_ready
from minddiff_utils.datasets.nsd import NsdTree

SYNTHETIC = [str(path) for path in NsdTree(Path(), "subj01").synthetic]


@pytest.fixture
def tree(three_sessions, tmp_path):
    return shutil.copytree(three_sessions, tmp_path / "tree")


def check(capsys, monkeypatch, *arguments):
    """Run `minddiff check`; return exit code and lines."""
    code, said = run_cli(capsys, monkeypatch, "check", *arguments)
    return code, said.out.splitlines()


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def test_whole_tree_is_ready(capsys, monkeypatch, three_sessions):
    code, lines = check(capsys, monkeypatch, "nsd", three_sessions)
    assert code == 0
    listed = {line.split()[-1] for line in lines[1:-2]}
    assert listed == {*FILES, *SYNTHETIC, *(SESSION.format(n) for n in (1, 2, 3))}
    assert all(line.startswith("present ") for line in lines[1:-2])
    assert lines[-1] == f"Ready: 16 of 16 files of {three_sessions} are there."


def test_empty_folder(capsys, monkeypatch, tmp_path):
    code, lines = check(capsys, monkeypatch, "nsd", tmp_path)
    assert code == 1
    table = [line.split() for line in lines[1 : lines.index("")]]
    assert [words[0] for words in table] == ["missing"] * 48
    assert {w[-1] for w in table} == {*FILES, *(SESSION.format(n) for n in range(1, 41))}
    assert lines[-3].startswith("NSD: public bucket s3://natural-scenes-dataset, after signing the")
    assert f"minddiff fetch nsd {tmp_path}, with --subject, --rois and --sessions" in lines[-3]
    assert lines[-2].startswith("COCO: annotations_trainval2017.zip of cocodataset.org")
    # 40 sessions of 750 volumes, 81 x 104 x 83 voxels of 2 bytes; 73,000 pictures; captions.
    size = 40 * 750 * 81 * 104 * 83 * 2 + 73_000 * 425 * 425 * 3 + 252_907_541
    assert size == pytest.approx(81.8e9, rel=0.002)
    assert lines[-1].startswith("Not ready: 0 of 48 files of ")
    assert lines[-1].endswith("about 81.8GB to download.")


def test_one_removed_one_truncated_one_of_wrong_shape(capsys, monkeypatch, tree):
    """The three are named with what is wrong with them, and nothing else is."""
    (tree / STIMULI).unlink()
    cut(tree / SESSION.format(2))
    edit_betas(tree, lambda betas: betas[:, :-1], number=3)
    code, lines = check(capsys, monkeypatch, "nsd", tree)
    assert code == 1
    wrong = [line for line in lines[1 : lines.index("")] if not line.startswith("present")]
    named = [(line.split()[0], line.split()[-1]) for line in wrong if line[0] != " "]
    damaged = [("damaged", SESSION.format(number)) for number in (2, 3)]
    assert named == [("missing", STIMULI), *damaged]
    notes = [line.strip() for line in wrong if line[0] == " "]
    depth = nib.load(tree / ROI).shape[2]
    assert "is truncated" in notes[0] and str(depth - 1) in notes[1] and str(depth) in notes[1]
    assert lines[-1].startswith("Not ready: 13 of 16 files of ") and "about 2." in lines[-1]


def test_other_regions_subjects_and_sessions_need_other_files(three_sessions):
    entries = check_nsd(three_sessions, ("subj01",), rois="nsdgeneral")
    names = {entry.path.name for entry in entries}
    assert "nsdgeneral.nii.gz" in names and is_ready(entries)
    assert not names & {"Kastner2015.nii.gz", "Kastner2015.mgz.ctab"}
    missing = wrong(three_sessions, subjects=("subj01", "subj05"), sessions=2)
    # The phantom's design has one subject only.
    state, note = missing.pop(DESIGN)
    assert state == "damaged" and "expected a row for subj05" in note
    assert len(missing) == 6 and all("subj05" in name for name in missing)
    assert not wrong(three_sessions, subjects=("subj01",), sessions=2)
    refuses("'subj09' is unknown", check_nsd, three_sessions, ("subj09",))


# ------------------------------------------------------------------------------ other recordings


@pytest.mark.parametrize("dataset", ["miyawaki", "kay"])
def test_other_recordings_are_read(capsys, monkeypatch, tmp_path, dataset):
    write, lacking, how = {
        "miyawaki": (miyawaki_tree.write_tree, "mask.nii.gz", ""),
        "kay": (test_kay.make, "kay_images.npz", "Fetch it .*: "),
    }[dataset]
    code, (said,) = check(capsys, monkeypatch, dataset, tmp_path)
    assert code == 1 and re.search(f"{lacking} is missing. {how}.*minddiff fetch {dataset}", said)
    code, (said,) = check(capsys, monkeypatch, "miyawaki", tmp_path / "V1_mean_figure.mat")
    assert code == 1 and "V1_mean_figure.mat is missing. Take" in said
    write(tmp_path)
    assert check(capsys, monkeypatch, dataset, tmp_path)[0] == 0
    cut(next(file for file in tmp_path.rglob("*.n*") if file.stat().st_size > 1000))
    assert check(capsys, monkeypatch, dataset, tmp_path)[0] == 1
