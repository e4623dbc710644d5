"""Bad input to the reader of NSD's layout: one clear error each, naming the thing."""

import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest
from builders import read_hdf5, refuses, write_hdf5
from test_nsd_writer import BETAS

from minddiff_utils.datasets import load_subject
from minddiff_utils.datasets.check import check_nsd
from minddiff_utils.datasets.nsd import NsdStimuli, NsdTree
from minddiff_utils.datasets.nsd.responses import inspect_betas, read_stored

DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
ROI = "nsddata/ppdata/subj01/func1pt8mm/roi/Kastner2015.nii.gz"
TABLE = "nsddata/freesurfer/fsaverage/label/Kastner2015.mgz.ctab"
SESSION = BETAS.format("subj01") + "/betas_session{:02d}.hdf5"
NCSNR = BETAS.format("subj01") + "/ncsnr.nii.gz"
PICTURES = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
STIMULI = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
CAPTIONS = "coco/annotations/captions_train2017.json"
VAL = CAPTIONS.replace("train", "val")
FILES = [DESIGN, STIMULI, PICTURES, CAPTIONS, VAL, ROI, TABLE, NCSNR]


@pytest.fixture
def tree(three_sessions, tmp_path):
    return shutil.copytree(three_sessions, tmp_path / "tree")


def load(tree, sessions=1, **more):
    return load_subject("nsd", tree, "subj01", sessions=sessions, **more)


def everything(tree):
    stimuli = load(tree).stimuli
    return stimuli.pictures([0, 59]), stimuli.captions([0, 59])


def wrong(tree, **more):
    """What `minddiff check` says of a tree: state and note of the files that are not well."""
    entries = [entry for entry in check_nsd(tree, **more) if entry.state != "present"]
    return {str(one.path.relative_to(tree)): (one.state, one.note) for one in entries}


def stimuli_of(tree):
    return NsdStimuli(NsdTree(tree, "subj01"), np.arange(60))


def fails(tree, message, **more):
    refuses(message, load, tree, **more)


def edit_betas(tree, change, number=1):
    """Replace a session's betas by what `change` makes of them, as float32."""
    path = tree / SESSION.format(number)
    write_hdf5(path, {"betas": change(read_hdf5(path)["betas"].astype(np.float32))})


def test_not_a_tree_unknown_subject_or_no_sessions(tree, tmp_path):
    said = "nothing/nsddata_betas/.*_session01.hdf5 is missing; .* sessions none, .* subjects none"
    refuses(said, load_subject, "nsd", tmp_path / "nothing", "subj01")
    said = "subj05/.*is missing; its subject has sessions none, and there are subjects subj01"
    refuses(said, load_subject, "nsd", tree, "subj05")
    for path in (tree / BETAS.format("subj01")).glob("betas_*"):
        path.unlink()
    fails(tree, "session01.hdf5 is missing; its subject has sessions none.* Fetch it")


@pytest.mark.parametrize("file", [*FILES, SESSION.format(1)])
def test_missing_or_truncated_file_is_named_alone_by_reader_and_check(tree, file):
    content = (tree / file).read_bytes()
    # The last labels of the atlas belong to no region of the paper.
    for share in (0.0, 0.3, 0.4 if file == TABLE else 0.9):
        (tree / file).write_bytes(content[: int(share * len(content))])
        refuses((tree / file).name, everything, tree)
        ((name, (state, note)),) = wrong(tree).items()
        assert name == file and state == "damaged" and note
    (tree / file).unlink()
    refuses(f"{(tree / file).name} is missing", everything, tree)
    assert wrong(tree) == {file: ("missing", "")}


def test_missing_session_is_named(tree):
    (tree / SESSION.format(1)).unlink()
    fails(tree, "session01.hdf5 is missing; its subject has sessions 2, 3, and", sessions=None)
    assert load(tree, sessions=[2, 3]).sessions.tolist() == [2, 3]
    fails(tree, "betas_session09.hdf5 is missing", sessions=[2, 9])
    fails(tree, "sessions=0: expected how many", sessions=0)
    fails(tree, "sessions='2-x': expected how many", sessions="2-x")
    assert load(tree, sessions="2-3").sessions.tolist() == [2, 3]


def test_sessions_of_another_length_or_shape(tree):
    shutil.copy(tree / SESSION.format(3), tree / SESSION.format(4))
    fails(tree, "betas_session04.hdf5 has 200 trials; .* 600 in all", sessions=None)
    edit_betas(tree, lambda betas: betas[:-1], number=2)
    fails(tree, "betas_session02.hdf5 has 199 trials; expected 200", sessions=[1, 2])
    edit_betas(tree, lambda betas: betas.transpose(0, 3, 2, 1))
    fails(tree, r"betas are float32 \(38, 50, 44, 200\); expected \(44, 50, 38\)")


def test_nan_in_some_trials(tree):
    x, y, z = load(tree).voxel_ijk[7]

    def spoil(betas):
        betas[11, z, y, x] = np.nan
        return betas

    edit_betas(tree, spoil)
    fails(tree, "betas_session01.hdf5: .* are NaN .* for 1 of .* first in trial 11 ")


def test_region_without_voxels(tree):
    subject = load(tree)

    def blank(betas):
        x, y, z = subject.voxel_ijk[subject.roi["hV4"]].T
        betas[:, z, y, x] = 0
        return betas

    edit_betas(tree, blank)
    fails(tree, "RR: every voxel of region hV4 is NaN or constant")
    rewrite_region(tree, lambda labels: np.where(labels == 12, 0, labels))
    fails(tree, r"ROI MST is empty.*label \[12\]")


def rewrite_region(tree, volume=lambda v: v, affine=lambda a: a):
    image = nib.load(tree / ROI)
    labels = np.asarray(image.dataobj, np.float64)
    nib.save(nib.Nifti1Image(volume(labels), affine(image.affine.copy())), tree / ROI)


def test_labels_and_grids_that_are_off_by_rounding_change_nothing(tree):
    whole = load(tree)

    def jitter(scale):
        rng = np.random.default_rng(0)
        return lambda array: array + scale * rng.uniform(-1, 1, array.shape)

    rewrite_region(tree, jitter(9e-4), jitter(1e-6))
    # What is not a number is in no region.
    rewrite_region(tree, lambda v: np.where(v < 0.5, np.nan, v))
    found = load(tree)
    np.testing.assert_array_equal(found.voxel_ijk, whole.voxel_ijk)
    for name, mask in whole.roi.items():
        np.testing.assert_array_equal(found.roi[name], mask)


def shift(*voxels):
    return lambda affine: affine @ nib.affines.from_matvec(np.eye(3), voxels)


OTHER = [
    ({"volume": lambda v: np.where(v == 3, 2.6, v)}, "no whole number as label, such as 2.6"),
    ({"volume": lambda v: np.where(v == 3, np.inf, v)}, "no whole number as label"),
    ({"affine": shift(2, 0, 0)}, "axes RAS against RAS, up to 2 voxels apart"),
    ({"affine": shift(0, 0, 0.5)}, "another grid than ncsnr.nii.gz"),
    ({"affine": lambda a: a @ np.diag([-1, 1, 1, 1])}, "axes LAS against RAS"),
]


@pytest.mark.parametrize(("change", "said"), OTHER)
def test_regions_on_another_grid_or_resampled_are_refused_by_reader_and_check(tree, change, said):
    rewrite_region(tree, **change)
    fails(tree, f"Kastner2015.nii.gz.*{said}")
    ((name, (_, note)),) = wrong(tree).items()
    assert name == ROI and said in note


def test_pictures_missing_or_damaged(tree):
    stimuli = stimuli_of(tree)
    refuses(r"stimulus ids \[3, 60\]: expected some of 0 to 59", stimuli.pictures, [3, 60])
    black = np.where(np.arange(12)[:, None, None, None] == 6, 0, stimuli.pictures(range(12)))
    for name, value, said in (
        ("imgBrick", np.zeros((2, 8, 8), np.uint8), r"imgBrick is uint8 \(2, 8, 8\)"),
        ("imgBrick", black, "picture 6 has one colour"),
        ("other", 1, "no dataset 'imgBrick'; it has other"),
    ):
        write_hdf5(tree / PICTURES, {name: value})
        refuses(said, stimuli.pictures, [1, 6] if value is black else [1])


def test_captions_missing_or_damaged(tree):
    for text, said in (
        ('{"annotations": []}', r"stimulus 1 \(COCO id 700001\) has 0 captions"),
        ('{"annotat', "no COCO caption file"),
        (None, "annotations_trainval2017.zip"),
    ):
        (tree / CAPTIONS).write_text(text) if text else (tree / CAPTIONS).unlink()
        refuses(said, stimuli_of(tree).captions, [1])
    (tree / STIMULI).write_text("nsdId\n1\n")
    refuses("no table of nsdId and cocoId", stimuli_of(tree).captions, [1])


@pytest.mark.parametrize("chunks", [None, (1, 5, 6, 7), (7, 1, 6, 7), (4, 2, 3, 3)])
def test_any_chunking_and_float_betas(tmp_path, chunks, monkeypatch):
    monkeypatch.setattr("minddiff_utils.datasets.nsd.responses.BLOCK_BYTES", 3000)
    rng = np.random.default_rng(0)
    stored = rng.integers(-3000, 3000, (11, 5, 6, 7)).astype(np.int16)
    ijk = np.argwhere(rng.random((7, 6, 5)) < 0.2)
    for name, values, scale in (("i", stored, 300), ("f", stored.astype(np.float32), 1)):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file.create_dataset("betas", data=values, chunks=chunks)
        found = inspect_betas(tmp_path / f"{name}.hdf5", (7, 6, 5))
        expected = [[values[t, z, y, x] for x, y, z in ijk] for t in range(11)]
        np.testing.assert_array_equal(read_stored(found, ijk), expected)
        assert (found.n_trials, found.scale) == (11, scale)
