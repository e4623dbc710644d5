"""`minddiff check`: exactly what is missing or wrong is named, and where to get it."""

import shlex
import shutil
import sys

import h5py
import miyawaki_tree
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import test_kay
from test_nsd import CAPTIONS, DESIGN, NCSNR, PICTURES, ROI, SESSION, STIMULI, TABLE
from test_nsd_writer import SMALL

from minddiff_utils import cli
from minddiff_utils.datasets.check import download_size, is_ready, report, take_stock
from minddiff_utils.datasets.check.nsd import atlases_of, session_count
from minddiff_utils.io import InputError
from minddiff_utils.phantom.nsd_writer import write_tree

RESPONSES = "nsddata/ppdata/subj01/behav/responses.tsv"  # read if it is there
FILES = [DESIGN, STIMULI, PICTURES, CAPTIONS, CAPTIONS.replace("train", "val"), ROI, TABLE, NCSNR]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("phantom") / "tree", ("subj01",), **SMALL)


@pytest.fixture
def tree(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "tree")


def check(capsys, monkeypatch, *arguments):
    """Run `minddiff check`; return exit code and lines."""
    monkeypatch.setattr(sys, "argv", ["minddiff", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, capsys.readouterr().out.splitlines()


def faults(path, **more):
    """State and note of every file that is not as it should be, by name."""
    entries = take_stock("nsd", path, **more)
    return {
        entry.path.relative_to(path).as_posix(): (entry.state, entry.note)
        for entry in entries
        if entry.state != "present"
    }


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return len(content)


def reshape(path):
    """Take one plane off every volume of a session."""
    with h5py.File(path) as file:
        betas = file["betas"][:, :-1]
    with h5py.File(path, "w") as file:
        file["betas"] = betas


def test_whole_tree_is_ready(capsys, monkeypatch, tree):
    code, lines = check(capsys, monkeypatch, "nsd", tree)
    assert code == 0
    listed = {line.split()[-1] for line in lines[1:-2]}
    assert listed == {*FILES, RESPONSES, *(SESSION.format(n) for n in (1, 2, 3))}
    assert all(line.startswith("present ") for line in lines[1:-2])
    assert lines[-1].startswith(f"Ready: all 12 files of {tree} are there (")


def test_empty_folder(capsys, monkeypatch, tmp_path):
    code, lines = check(capsys, monkeypatch, "nsd", tmp_path)
    assert code == 1
    table = lines[1 : lines.index("")]
    assert [line.split()[0] for line in table] == ["missing"] * 48
    assert {line.split()[-1] for line in table} == {
        *FILES,
        *(SESSION.format(n) for n in range(1, 41)),
    }
    assert lines[-3] == (
        "NSD: public bucket s3://natural-scenes-dataset, after signing the data-access agreement "
        f"at naturalscenesdataset.org: minddiff fetch nsd {tmp_path}"
    )
    assert lines[-2].startswith("COCO: annotations_trainval2017.zip of cocodataset.org")
    # 40 sessions of 750 volumes, 81 x 104 x 83 voxels of 2 bytes; 73,000 pictures; captions.
    size = 40 * 750 * 81 * 104 * 83 * 2 + 73_000 * 425 * 425 * 3 + 252_907_541
    assert download_size(take_stock("nsd", tmp_path)) == pytest.approx(size, rel=0.001)
    assert lines[-1] == (
        "Not ready: 0 of 48 files are there, 48 missing; about 81.8 GB to download."
    )


def test_one_removed_one_truncated_one_of_wrong_shape(capsys, monkeypatch, tree):
    """The three are named with what is wrong with them, and nothing else is."""
    (tree / STIMULI).unlink()
    expected = cut(tree / SESSION.format(2))
    reshape(tree / SESSION.format(3))
    code, lines = check(capsys, monkeypatch, "nsd", tree)
    assert code == 1
    wrong = [line for line in lines[1 : lines.index("")] if not line.startswith("present")]
    session = (tree / SESSION.format(2)).stat().st_size
    assert [line.split()[0:2] for line in wrong[:2]] == [["missing", "~15.0"], ["wrong", "size"]]
    assert [line.split()[-1] for line in wrong if line[0] != " "] == [
        STIMULI,
        SESSION.format(2),
        SESSION.format(3),
    ]
    notes = [line.strip() for line in wrong if line[0] == " "]
    shape = nib.load(tree / ROI).shape
    assert notes == [
        f"{session} bytes; expected {expected}: it is cut short",
        f"volumes of {(*shape[:2], shape[2] - 1)} voxels; expected {shape}",
    ]
    assert lines[-1].startswith(
        "Not ready: 9 of 12 files are there, 1 missing, 1 wrong size, 1 wrong shape; about 2."
    )


def test_command_that_gets_what_is_missing(capsys, monkeypatch, tmp_path):
    asked = ["--subject", "subj02,subj05", "--rois", "streams:early,V1 x", "--sessions", "3"]
    _, lines = check(capsys, monkeypatch, "nsd", tmp_path, *asked)
    command = lines[-3].partition(": minddiff ")[2]
    assert shlex.split(command) == ["fetch", "nsd", str(tmp_path), *asked]
    # Without being asked for, those that are there.
    (tmp_path / "nsddata_betas/ppdata/subj07").mkdir(parents=True)
    _, lines = check(capsys, monkeypatch, "nsd", tmp_path)
    assert lines[-3].endswith(f"minddiff fetch nsd {tmp_path} --subject subj07")


def test_check_names_every_dataset(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["minddiff", "check", "nds", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    known = "choose one of nsd, miyawaki, miyawaki_full, kay, own"
    assert stop.value.code == 2 and known in capsys.readouterr().err


@pytest.mark.parametrize("file", [*FILES, SESSION.format(1), SESSION.format(3)])
def test_each_missing_file_is_named_alone(tree, file):
    (tree / file).unlink()
    assert faults(tree) == {file: ("missing", "")}


@pytest.mark.parametrize("file", [*FILES, RESPONSES, SESSION.format(1), SESSION.format(3)])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_each_truncated_file_is_named_alone(tree, file, share):
    # The last labels of the atlas belong to no region of the paper: cut off more than those.
    cut(tree / file, min(share, 0.4) if file == TABLE else share)
    found = faults(tree)
    assert list(found) == [file]
    assert found[file][0] in ("wrong size", "wrong shape", "damaged") and found[file][1]


def nifti(path, shape):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), path)


@pytest.mark.parametrize("file", [ROI, NCSNR])
def test_volume_of_wrong_shape_is_named_alone(tree, file):
    nifti(tree / file, (5, 6, 7))
    found = faults(tree)
    assert list(found) == [file] and found[file][0] == "wrong shape"
    assert found[file][1].startswith("volumes of (5, 6, 7) voxels; expected (")


def test_session_with_other_trials_is_named_alone(tree):
    path = tree / SESSION.format(2)
    with h5py.File(path) as file:
        betas = file["betas"][:-3]
    with h5py.File(path, "w") as file:
        file["betas"] = betas
    n = len(betas)
    assert faults(tree) == {SESSION.format(2): ("wrong shape", f"{n} trials; expected {n + 3}")}


def test_session_that_was_cut_short_by_the_recording_is_right(tree):
    path = tree / SESSION.format(2)
    with h5py.File(path) as file:
        betas = file["betas"][:-3]
    with h5py.File(path, "w") as file:
        file["betas"] = betas
    table = pd.read_csv(tree / RESPONSES, sep="\t")
    last = table.index[table["SESSION"] == 2][-3:]
    table.drop(last).to_csv(tree / RESPONSES, sep="\t", index=False)
    assert faults(tree) == {}
    # Without that table all sessions must be equally long.
    (tree / RESPONSES).unlink()
    assert list(faults(tree)) == [SESSION.format(2)]


def test_pictures_of_wrong_shape_are_named_alone(tree):
    with h5py.File(tree / PICTURES, "w") as file:
        file["imgBrick"] = np.zeros((10, 8, 8, 3), np.uint8)
    state, note = faults(tree)[PICTURES]
    assert state == "wrong shape"
    assert note == "imgBrick is uint8 (10, 8, 8, 3); expected uint8 (200 or more, height, width, 3)"


def test_sessions_as_nifti_count_as_there(tree):
    path = tree / SESSION.format(2)
    with h5py.File(path) as file:
        betas = file["betas"][()]
    path.unlink()
    named = path.with_name("betas_session02.nii.gz")
    nib.save(nib.Nifti1Image(betas.T, np.eye(4)), named)
    assert faults(tree) == {}


def test_other_regions_need_other_files(tree):
    entries = take_stock("nsd", tree, ("subj01",), rois="nsdgeneral")
    names = {entry.path.name for entry in entries}
    assert "nsdgeneral.nii.gz" in names and "Kastner2015.nii.gz" not in names
    assert "Kastner2015.mgz.ctab" not in names and is_ready(entries)


def test_subjects_and_sessions_that_are_asked_for(tree):
    missing = faults(tree, subjects=("subj01", "subj05"), sessions=2)
    # The phantom's design has one subject only.
    state, note = missing.pop(DESIGN)
    assert state == "damaged" and "expected a row for subj05" in note
    assert len(missing) == 4 and all("subj05" in name for name in missing)
    assert not faults(tree, subjects=("subj01",), sessions=2)
    with pytest.raises(InputError, match="'subj09' is unknown"):
        take_stock("nsd", tree, ("subj09",))


@pytest.mark.parametrize(
    ("rois", "atlases"),
    [
        ("kastner2015", ["Kastner2015"]),
        ("V1, hV4", ["Kastner2015"]),
        ("nsdgeneral", ["nsdgeneral"]),
        ("streams:ventral,lateral", ["streams"]),
        ("nsdgeneral+floc-faces+V1", ["nsdgeneral", "floc-faces", "Kastner2015"]),
    ],
)
def test_atlases_of_regions(rois, atlases):
    assert atlases_of(rois) == atlases


@pytest.mark.parametrize(
    ("subject", "sessions", "count"),
    [("subj01", None, 40), ("subj03", None, 32), ("subj04", 37, 30), ("subj02", 37, 37)],
)
def test_sessions_of_nsds_subjects(subject, sessions, count):
    assert session_count(subject, sessions) == count


def test_unknown_dataset():
    with pytest.raises(InputError, match="'nds' is unknown; choose one of nsd, miyawaki"):
        take_stock("nds", "anywhere")


# ------------------------------------------------------------------------------ other recordings


@pytest.fixture
def runs(tmp_path):
    miyawaki_tree.write_tree(tmp_path)
    return tmp_path


def wrong(dataset, path):
    found = [e for e in take_stock(dataset, path) if e.state != "present"]
    return {entry.path.name: entry.state for entry in found}


def test_miyawaki_whole_and_empty(capsys, monkeypatch, runs, tmp_path):
    code, lines = check(capsys, monkeypatch, "miyawaki", runs)
    assert code == 0 and lines[-1].startswith("Ready: all 81 files")
    code, lines = check(capsys, monkeypatch, "miyawaki", tmp_path / "nothing")
    assert code == 1 and "81 missing; about 153 MB to download" in lines[-1]
    assert lines[-2] == (
        "nilearn: nilearn.datasets.fetch_miyawaki2008: minddiff fetch miyawaki "
        f"{tmp_path / 'nothing'}"
    )


def test_miyawaki_names_exactly_what_is_wrong(runs):
    top = runs / "miyawaki2008"
    (top / "mask/LHVP.nii.gz").unlink()
    cut(top / "func/data_random_run03.nii.gz")
    table = top / "label/data_figure_run02_label.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-4]))
    nifti(top / "mask/RHV3.nii.gz", (3, 3, 3))
    nifti(top / "func/data_figure_run05.nii.gz", (*miyawaki_tree.SHAPE, 7))
    (top / "label/data_random_run09_label.csv").write_text("no table")
    assert wrong("miyawaki", runs) == {
        "LHVP.nii.gz": "missing",
        "RHV3.nii.gz": "wrong shape",
        "data_random_run03.nii.gz": "wrong size",
        "data_random_run09_label.csv": "damaged",
        "data_figure_run02_label.csv": "wrong shape",
        "data_figure_run05.nii.gz": "wrong shape",
    }


def test_small_miyawaki_file(tmp_path):
    path = tmp_path / "V1_mean_figure.mat"
    (entry,) = take_stock("miyawaki", path)
    assert entry.state == "missing" and "KamitaniLab/VBCCA" in report([entry], path)
    path.write_bytes(b"something else")
    (state,) = wrong("miyawaki", path).values()
    assert state in ("damaged", "wrong size")


def test_photographs(capsys, monkeypatch, tmp_path):
    code, lines = check(capsys, monkeypatch, "kay", tmp_path)
    assert code == 1 and lines[1].startswith("missing       ~249 MB  OSF")
    assert lines[-2] == f"OSF: osf.io/ymnjv, nothing to sign: minddiff fetch kay {tmp_path}"
    path, _ = test_kay.make(tmp_path)
    code, lines = check(capsys, monkeypatch, "kay", path)
    assert code == 0 and lines[-1].startswith("Ready: the one file of")
    cut(path)
    assert wrong("kay", path) == {"kay_images.npz": "wrong size"}
    test_kay.make(tmp_path, responses=np.zeros((3, 40)))
    assert wrong("kay", path) == {"kay_images.npz": "wrong shape"}
