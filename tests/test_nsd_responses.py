"""NSD's betas against a few lines of h5py and nibabel, and against running out of memory or time.

The tree is a phantom made awkward: one session as NSD's HDF5, one as NIfTI integers, one as NIfTI
in per cent.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import nibabel as nib
import numpy as np
import pytest
from builders import counted, read_hdf5, refuses, write_hdf5
from test_nsd_writer import BETAS

from minddiff_utils import io
from minddiff_utils.datasets import load_subject, prepare_fold
from minddiff_utils.datasets.nsd import NsdTree, responses
from minddiff_utils.datasets.nsd.responses import StoredResponses
from studies.betas import make_tree

SUBJECT = "subj01"


def volumes(path):
    """A session as nibabel or h5py gives it, in per cent, (X, Y, Z, trial)."""
    if path.name.endswith(".hdf5"):
        return read_hdf5(path)["betas"].transpose(3, 2, 1, 0) / 300
    image = nib.load(path)
    return image.get_fdata() / (1 if image.get_data_dtype().kind == "f" else 300)


def as_nifti(path, change, suffix):
    """Turn a session's HDF5 file into a NIfTI file of what `change` makes of its integers."""
    betas = change(read_hdf5(path)["betas"].transpose(3, 2, 1, 0))
    nib.save(nib.Nifti1Image(betas, np.eye(4)), path.with_name(path.stem + suffix))
    path.unlink()


@pytest.fixture(scope="module")
def awkward(three_sessions, tmp_path_factory):
    tree = shutil.copytree(three_sessions, tmp_path_factory.mktemp("awkward") / "tree")
    folder = tree / BETAS.format(SUBJECT)
    with h5py.File(folder / "betas_session01.hdf5", "r+") as file:  # in NSD's chunks
        betas = file["betas"][()]
        del file["betas"]
        file.create_dataset("betas", data=betas, chunks=(len(betas), 1, 1, 1))
    as_nifti(folder / "betas_session02.hdf5", np.array, ".nii.gz")
    as_nifti(folder / "betas_session03.hdf5", lambda b: (b / 300).astype(np.float32), ".nii")
    return tree


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("rois", ["kastner2015", "nsdgeneral"])
def test_agrees_trial_for_trial_and_voxel_for_voxel(awkward, tmp_path, on_disk, rois):
    sessions = [1, 3] if rois == "nsdgeneral" else [1, 2, 3]
    chosen = {"rois": rois, "sessions": sessions, "split": "shared"}
    subject = load_subject("nsd", awkward, SUBJECT, **chosen, cache=tmp_path if on_disk else None)
    tree = NsdTree(awkward, SUBJECT)
    with open(tree.responses) as file:
        rows = [r for r in csv.DictReader(file, delimiter="\t") if int(r["SESSION"]) in sessions]
    assert isinstance(subject.responses, StoredResponses) == on_disk
    theirs = [volumes(tree.session(number))[tuple(subject.voxel_ijk.T)].T for number in sessions]
    np.testing.assert_allclose(subject.responses[:], np.concatenate(theirs), rtol=1e-6, atol=1e-7)
    assert subject.session.tolist() == [int(row["SESSION"]) for row in rows]
    assert subject.stimulus_id.tolist() == [int(row["73KID"]) - 1 for row in rows]
    shared = {int(row["73KID"]) - 1 for row in rows if int(row["10KID"]) <= 4}
    assert set(subject.splits[0].test) == shared
    atlas = tree.roi("nsdgeneral" if rois == "nsdgeneral" else "Kastner2015")
    assert len(subject.voxel_ijk) == (np.asarray(nib.load(atlas).dataobj) > 0).sum()


def test_responses_on_disk_index_like_an_array(awkward, tmp_path):
    plain = load_subject("nsd", awkward, SUBJECT, rois="V1,MT")
    stored = load_subject("nsd", awkward, SUBJECT, rois="V1,MT", cache=tmp_path)
    there, n = plain.responses, len(plain.responses)
    rows = (3, -1, slice(None), slice(5, 9), [4, 2, 2, 400], np.arange(n) % 7 == 0)
    both = ((slice(None), 4), (7, 3), (slice(2, 5), plain.roi["MT"]))
    for index in rows + both:
        got = stored.responses[index]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, there[index])
    found, wanted = stored.responses[[1, 0], [5, 2, 2]], there[np.ix_([1, 0], [5, 2, 2])]
    np.testing.assert_array_equal(found, wanted)
    assert stored.responses.shape == there.shape
    one, two = (prepare_fold(subject, subject.splits[0]) for subject in (plain, stored))
    np.testing.assert_array_equal(one.train_x, two.train_x)
    np.testing.assert_array_equal(one.test_x, two.test_x)


def test_kept_repetitions_are_the_trials_of_each_picture(awkward):
    subject = load_subject("nsd", awkward, SUBJECT, rois="hV4")
    mean, each = subject, replace(subject, repetitions="keep")
    mean, each = (prepare_fold(subject, subject.splits[0]) for subject in (mean, each))
    assert len(each.train_x) > len(mean.train_x)
    for row, picture in zip(mean.train_x, mean.train_id, strict=True):
        trials = np.flatnonzero(each.train_id == picture)
        assert np.ptp(trials) == len(trials) - 1  # neighbours
        np.testing.assert_allclose(each.train_x[trials].mean(axis=0), row, atol=1e-6)
    np.testing.assert_array_equal(each.test_x, mean.test_x)
    np.testing.assert_array_equal(each.test_id, mean.test_id)
    refuses("expected average or keep", replace, subject, repetitions="all")


def test_voxels_at_fault_are_left_out(tmp_path):
    tree = NsdTree(tmp_path / "tree", "subj01")
    make_tree(tree, (6, 6, 6), 12, 40, 3)
    whole = load_subject("nsd", tree.root, "subj01", rois="nsdgeneral")
    x, y, z = whole.voxel_ijk[:4].T
    betas = volumes(tree.session(2)).T.astype(np.float32)
    tree.session(2).unlink()  # it is a link to the others' file
    betas[:, z[:2], y[:2], x[:2]] = 0
    betas[:, z[2], y[2], x[2]] = np.nan
    betas[:, z[3], y[3], x[3]] = 1.5
    write_hdf5(tree.session(2), {"betas": betas})
    for cache in (None, tmp_path / "cache"):
        subject = load_subject("nsd", tree.root, "subj01", rois="nsdgeneral", cache=cache)
        assert (subject.n_dropped, subject.responses.shape[1]) == (4, 36)
        np.testing.assert_array_equal(subject.voxel_ijk, whole.voxel_ijk[4:])
        np.testing.assert_array_equal(subject.ncsnr, whole.ncsnr[4:])
        i, j, k = subject.voxel_ijk.T
        expected = volumes(tree.session(1)).T[:, k, j, i]
        np.testing.assert_allclose(subject.responses[:12], expected, rtol=1e-6)
        np.testing.assert_allclose(subject.responses[12:24], betas[:, k, j, i], rtol=1e-6)


# --- one file, written once, whatever happens -----------------------------------------------------


@pytest.fixture
def small(tmp_path):
    tree = NsdTree(tmp_path / "tree", "subj01")
    make_tree(tree, (7, 6, 5), 20, 60, 4)
    return tree


def load_small(tree, cache, **more):
    return load_subject("nsd", tree.root, "subj01", rois="nsdgeneral", cache=cache, **more)


@pytest.fixture
def reads(monkeypatch):
    """The reads of files from now on."""
    return counted(monkeypatch, responses, "read_stored")


def test_gathered_once_and_again_when_something_changed(small, tmp_path, reads):
    cache = tmp_path / "cache"
    first = load_small(small, cache)
    values = first.responses[:]
    assert len(reads) == 4
    np.testing.assert_array_equal(load_small(small, cache).responses[:], values)
    assert len(reads) == 4
    load_small(small, cache, sessions=2)
    assert len(reads) == 6
    refuses("gathered anew with other parameters", first.responses.__getitem__, 0)
    os.utime(small.session(1), (1, 1))
    load_small(small, cache, sessions=2)
    assert len(reads) == 8
    with open(cache / responses.GATHERED, "r+b") as file:
        file.truncate(100)
    np.testing.assert_array_equal(load_small(small, cache).responses[:], values)
    assert [path.name for path in cache.iterdir()] == [responses.GATHERED]


def test_nothing_is_left_of_a_gathering_that_stopped(small, tmp_path, reads, monkeypatch):
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(io.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
        refuses("no space is left .* or choose another folder", load_small, small, cache)
    assert not reads  # no room is said before reading
    monkeypatch.setattr(responses, "_faulty", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        load_small(small, cache)
    assert [file.path.name for file, *_ in reads] == ["betas_session01.hdf5"]
    assert not list(cache.iterdir())


PEAK = """
import json, sys
import numpy as np
from studies.betas import peak_memory
from minddiff_utils.datasets import load_subject, prepare_fold

before = peak_memory()
how = {"rois": "nsdgeneral", "sessions": int(sys.argv[3]), "cache": sys.argv[2] or None}
subject = load_subject("nsd", sys.argv[1], "subj01", **how)
gathered = peak_memory()
fold = prepare_fold(subject, subject.splits[0])
size = subject.responses.shape[0] * subject.responses.shape[1] * 4
print(json.dumps([before, gathered, peak_memory(), size, float(np.abs(fold.train_x).sum())]))
"""


def test_memory_does_not_grow_with_the_sessions(tmp_path):
    """Twelve sessions take the memory of three, though nine times 18 MB of responses are more."""
    tree = NsdTree(tmp_path / "tree", "subj01")
    make_tree(tree, (30, 30, 20), 300, 15000, 12, (300, 1, 30, 30))

    def peak(n_sessions, cache):
        arguments = [sys.executable, "-c", PEAK, str(tree.root), str(cache), str(n_sessions)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    few, many = peak(3, tmp_path / "few"), peak(12, tmp_path / "many")
    assert many[3] == 300 * 12 * 15000 * 4
    for stage in (1, 2):
        growth = [found[stage] - found[0] for found in (few, many)]
        # The allocator's ups and downs are a quarter of that at the most.
        assert growth[1] < growth[0] + (many[3] - few[3]) / 4, (stage, growth)
    # The measurement sees what it is there to see: read into memory, they do fill it.
    held = peak(12, "")
    assert held[1] - held[0] > many[3]
    assert held[4] == pytest.approx(many[4])
