"""The phantom's tree, read by an independent few-line reader and by the project's own."""

import gzip
import hashlib
import re
import shutil

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io
from builders import assert_follows_signal, correlations, refuses, stamps
from test_subject import slow_ncsnr

from minddiff_utils.datasets import load_subject
from minddiff_utils.phantom import laion_writer, nsd_writer, world
from minddiff_utils.phantom.nsd_writer import FIRST_COCO_ID, plan_experiment, write_tree

SMALL = {"n_train": 180, "n_test": 20, "repetitions": 3}
TINY = {**SMALL, "n_train": 30, "n_test": 10}
BETAS = "nsddata_betas/ppdata/{}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
SUBJECTS = ("subj01", "subj02")


@pytest.fixture(scope="module")
def tree(brains, tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("phantom") / "tree", SUBJECTS, **SMALL)


@pytest.fixture(scope="module")
def tiny(brains, tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tiny") / "tree", SUBJECTS, **TINY)


@pytest.fixture
def copy(tree, tmp_path):
    """A tree that a test may change."""
    return shutil.copytree(tree, tmp_path / "tree")


def read(tree, name="subj01", rois="kastner2015"):
    """By the project's reader, without NSD-synthetic."""
    return load_subject("nsd", tree, name, rois=rois, split="shared")


def world_ids(tree):
    """The id in the phantom's world of each of a tree's pictures."""
    return pd.read_csv(tree.stimulus_table)["cocoId"].to_numpy() - FIRST_COCO_ID


def contents(folder):
    """Bytes of every file but `phantom.json`; HDF5 by what it holds, it may note times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".hdf5":
            with h5py.File(path) as file:
                found |= {f"{name}/{key}": file[key][()].tobytes() for key in file}
        elif path.suffix == ".mat":
            mat = scipy.io.loadmat(path)
            found |= {f"{name}/{k}": v.tobytes() for k, v in mat.items() if k[:2] != "__"}
        elif path.suffix == ".gz":
            found[name] = gzip.decompress(path.read_bytes())
        elif path.is_file() and path.name != "phantom.json":
            found[name] = path.read_bytes()
    return found


def test_another_content_needs_another_version(tree):
    """Trees of users are kept while the version stays: raise it with these numbers."""
    found = contents(tree)
    total = {True: hashlib.sha256(), False: hashlib.sha256()}
    for name in sorted(found):
        # Not what rounds otherwise on other machines: answers, and gratings.
        if not re.search(r"betas|ncsnr|nsdsynthetic_\w*stimuli", name):
            total["nsdsynthetic" in name].update(name.encode() + found[name])
    betas = read(tree).responses[0]
    assert total[False].hexdigest()[:16] == "fd4b2fbdb2bcb7e4"  # as before NSD-synthetic came
    assert {nsd_writer.VERSION: total[True].hexdigest()[:16]} == {3: "f4b697b0c5711b41"}
    np.testing.assert_allclose(betas[[0, 1000, 4000]], [4.397, 1.843, -0.23], atol=0.01)


@pytest.mark.parametrize("name", SUBJECTS)
def test_reader_agrees_trial_for_trial_and_voxel_for_voxel(tree, name):
    subject = read(tree, name)
    design = scipy.io.loadmat(tree / "nsddata/experiments/nsd/nsd_expdesign.mat")
    place = design["masterordering"][0]  # integers, and so indices
    pictures = design["subjectim"][int(name[4:]) - 1][place - 1] - 1
    np.testing.assert_array_equal(subject.stimulus_id, pictures)
    shared = place <= design["sharedix"].size
    np.testing.assert_array_equal(np.isin(pictures, subject.splits[0].test), shared)
    betas, sessions = [], []
    for number, path in enumerate(sorted((tree / BETAS.format(name)).glob("*.hdf5")), start=1):
        with h5py.File(path) as file:
            assert file["betas"].dtype == np.int16
            betas.append(file["betas"][()].transpose(0, 3, 2, 1)[:, *subject.voxel_ijk.T])
            sessions += [number] * len(betas[-1])
    np.testing.assert_allclose(subject.responses, np.concatenate(betas) / 300, rtol=1e-6)
    assert subject.session.tolist() == sessions and len(sessions) == 3 * 200


def test_regions_agree_with_atlas_and_table(tree):
    subject = read(tree)
    folder = tree / "nsddata/ppdata/subj01/func1pt8mm/roi"
    atlas = nib.load(folder / "Kastner2015.nii.gz")
    label = np.asarray(atlas.dataobj)
    table = tree / "nsddata/freesurfer/fsaverage/label/Kastner2015.mgz.ctab"
    names = dict(line.split() for line in table.read_text().splitlines())
    areas = [names[str(v)] for v in label[tuple(subject.voxel_ijk.T)]]
    groups = {name: {name + "v", name + "d"} for name in ("V1", "V2", "V3")}
    groups |= {name: {name + "1", name + "2"} for name in ("VO", "PHC", "LO")}
    groups |= {"MT": {"TO1"}, "MST": {"TO2"}, "V3ab": {"V3A", "V3B"}, "hV4": {"hV4"}}
    groups["IPS"] = {f"IPS{i}" for i in range(6)}
    for name, mask in subject.roi.items():
        assert {area for area, here in zip(areas, mask, strict=True) if here} == groups[name]
    assert list(subject.roi) == "V1 V2 V3 V3ab hV4 VO PHC MT MST LO IPS".split()
    # Every voxel of the groups is there, each once; all lie in nsdgeneral.
    assert len(subject.voxel_ijk) == (label > 0).sum()
    assert np.sum(list(subject.roi.values()), axis=0).tolist() == [1] * len(areas)
    general = np.asarray(nib.load(folder / "nsdgeneral.nii.gz").dataobj)
    assert (general[label > 0] == 1).all() and set(np.unique(general)) == {0, 1}
    np.testing.assert_array_equal(subject.affine, atlas.affine)


def test_ncsnr_is_that_of_the_trials(tree):
    subject = read(tree, rois="V1")
    np.testing.assert_allclose(subject.ncsnr, slow_ncsnr(subject), rtol=1e-3, atol=2e-3)


def test_pictures_and_captions_are_those_of_the_world(tree):
    stimuli = read(tree, "subj02").stimuli
    chosen = plan_experiment(2, 180, 20, 3, seed=0).pictures
    np.testing.assert_array_equal(world_ids(stimuli.tree), chosen)
    replaced = stimuli.ids[chosen[stimuli.ids] != stimuli.ids]
    ids = np.concatenate([stimuli.ids[[5, 0, 17, 5]], replaced])
    assert len(replaced)
    shown = stimuli.pictures(ids), stimuli.captions(ids), chosen[ids].tolist()
    for picture, texts, i in zip(*shown, strict=True):
        np.testing.assert_array_equal(picture, world.picture(i))
        assert texts == world.captions(i)


def test_responses_follow_the_signal(tree, brains):
    subject = read(tree, rois="V1")
    ids = world_ids(subject.stimuli.tree)[subject.stimulus_id]
    assert_follows_signal(subject, brains("subj01", 0), ids)


@pytest.mark.parametrize("name", SUBJECTS)
def test_nsd_synthetic_is_what_the_subject_saw_and_answered(tree, brains, name):
    """By NSD's own account: first the pictures of all, then the subject's; linear in luminance."""
    folder = tree / "nsddata/experiments/nsdsynthetic"
    order = scipy.io.loadmat(folder / "nsdsynthetic_expdesign.mat")["masterordering"][0]
    assert np.bincount(order)[1:].tolist() == [3] * 42
    bricks = []
    for kind in ("stimuli", f"colorstimuli_{name}"):
        with h5py.File(
            tree / f"nsddata_stimuli/stimuli/nsdsynthetic/nsdsynthetic_{kind}.hdf5"
        ) as f:
            bricks.append(f["imgBrick"][()])
    assert [len(brick) for brick in bricks] == [36, 6]
    wide = np.concatenate(bricks)
    pictures = nsd_writer.plan_synthetic(name, seed=0)[1]
    shown = np.sqrt(wide[:, :, 32:96] / 255) * 255
    np.testing.assert_allclose(shown, [world.picture(i) for i in pictures], atol=12)
    assert np.ptp(wide[:, :, [*range(32), *range(96, 128)]]) == 0
    table = pd.read_csv(folder / "nsdsyntheticimageinformation.csv")
    assert table["Image class"].tolist() == [world.scene(i).outside for i in pictures]
    assert table["Image number"].tolist() == list(range(1, 43))
    path = tree / BETAS.format(name).replace("/betas_", "/nsdsyntheticbetas_")
    brain = brains(name, 0)
    with h5py.File(path / "betas_nsdsynthetic.hdf5") as file:
        x, y, z = brain.ijk.T
        betas = file["betas"][()][:, z, y, x][:, brain.group == "V1"]
    signal = brain.signal(pictures)[order - 1][:, brain.group == "V1"]
    assert correlations(betas, signal).mean() > 0.45


# ------------------------------------------------------------------------- writing and resuming


def test_second_call_does_nothing(copy):
    before = stamps(copy)
    write_tree(copy, ("subj01",), **SMALL)
    assert stamps(copy) == before


def test_killed_midway_and_run_again(tiny, tmp_path, monkeypatch):
    """What is half written is not taken for a tree."""
    write, calls = nsd_writer._write_betas, []

    def killed(path, ijk, betas):
        if calls:
            raise KeyboardInterrupt
        calls.append(path)
        write(path, ijk, betas)

    monkeypatch.setattr(nsd_writer, "_write_betas", killed)
    with pytest.raises(KeyboardInterrupt):
        write_tree(tmp_path, SUBJECTS, **TINY)
    monkeypatch.setattr(nsd_writer, "_write_betas", write)
    write_tree(tmp_path, SUBJECTS, **TINY)
    assert contents(tmp_path) == contents(tiny)


def test_other_settings_replace_the_tree(copy):
    write_tree(copy, ("subj01",), **TINY)
    assert len(read(copy).stimulus_id) == 120
    refuses("there are subjects subj01", load_subject, "nsd", copy, "subj02")


WRITERS = pytest.mark.parametrize("writer", [nsd_writer, laion_writer])


@WRITERS
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, writer):
    thesis = tmp_path / "stimuli/thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("precious")
    refuses("did not write", writer.write_tree, tmp_path)
    assert thesis.read_text() == "precious" and len(list(tmp_path.rglob("*"))) == 2


@WRITERS
def test_settings_out_of_range(tmp_path, writer):
    new, first = tmp_path / "new", writer.SUBJECTS[0]
    for name, value in (("n_train", 3), ("n_test", 0), ("repetitions", 0), ("seed", -1)):
        refuses(f"{name}={value}", writer.write_tree, new, **{name: value})
    for subjects, said in ((("sub-02",), "sub-02"), ((), "")):
        refuses(f"{said}.*expected some of {first}", writer.write_tree, new, subjects)
    assert not new.exists()
