"""Own recordings: the page's example, the reader, and every fault in words."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import ROOT, refuses, write_hdf5

from minddiff_utils.book.plan import load_plan
from minddiff_utils.datasets import check_own, load_subject, prepare_fold
from minddiff_utils.datasets.own import LAYOUT, REQUIRED
from minddiff_utils.phantom.world import captions

PAGE = ROOT / "book" / "own_data.md"


def example() -> str:
    """The page's own example."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    return source


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The file that the page's example writes, run as a reader runs it."""
    folder = tmp_path_factory.mktemp("own")
    subprocess.run([sys.executable, "-c", example()], cwd=folder, check=True)
    return folder / "own.h5"


@pytest.fixture
def made(tmp_path):
    """A valid file with everything optional, and the arrays in it."""
    rng = np.random.default_rng(1)
    content = {
        "responses": rng.normal(5, 2, (48, 10)),
        "stimulus_id": rng.permutation(np.repeat(np.arange(12), 4)),
        "pictures": rng.integers(0, 256, (12, 8, 8, 3), np.uint8),
        "captions": [[f"picture {i}", "words" if i % 2 else ""] for i in range(12)],
        "split": ["train"] * 8 + ["test"] * 4,
        "roi": ["V1"] * 4 + [""] + ["LO"] * 5,
        "session": np.repeat([1, 2, 3], 16),
        "ncsnr": rng.random(10),
        "voxel_ijk": rng.integers(0, 5, (10, 3)),
        "affine": np.diag([2.0, 2, 2, 1]),
        "volume_shape": [5, 5, 5],
    }
    return tmp_path / "made.h5", content


# --- the page -------------------------------------------------------------------------------------


def test_example_writes_a_good_file_that_the_reader_reads(written):
    assert check_own(written) == []
    subject = load_subject("own", written, "S1", rois="all")
    assert subject.responses.shape == (120, 48) and subject.dataset == "own"
    (split,) = subject.splits
    assert (len(split.train), len(split.test)) == (32, 8)
    pictures = subject.stimuli.pictures(subject.stimulus_id)
    # Each voxel sees one colour of one square, so picture and response go together.
    seen = pictures[:, ::16, ::16].reshape(120, 48).astype(float)
    assert np.corrcoef(seen.ravel(), subject.responses.ravel())[0, 1] > 0.9
    fold = prepare_fold(subject, split)
    assert fold.train_x.shape == (32, 48)


def test_page_describes_every_dataset_and_no_other():
    tables = re.findall(r"^\| `(\w+)` \|", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    assert sorted(tables) == sorted(LAYOUT)
    # The captions that it recommends are made of known words.
    known = set(" ".join(text for i in range(3000) for text in captions(i)).split())
    forms = re.findall(r"^- \*(.*)\*$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    assert len(forms) == 5 and {word for form in forms for word in form.split()} <= known


# --- the reader -----------------------------------------------------------------------------------


def test_reader_agrees_with_the_arrays(made):
    path, content = made
    assert check_own(write_hdf5(path, content)) == []
    subject = load_subject("own", path, "anyone", rois="all")
    inside = np.array([name != "" for name in content["roi"]])
    np.testing.assert_allclose(subject.responses, content["responses"][:, inside], rtol=1e-6)
    np.testing.assert_array_equal(subject.stimulus_id, content["stimulus_id"])
    np.testing.assert_array_equal(subject.session, content["session"])
    np.testing.assert_allclose(subject.ncsnr, content["ncsnr"][inside], rtol=1e-6)
    np.testing.assert_array_equal(subject.voxel_ijk, content["voxel_ijk"][inside])
    assert subject.volume_shape == (5, 5, 5) and subject.affine[0, 0] == 2
    masks = {name: mask.tolist() for name, mask in subject.roi.items()}
    assert masks == {"V1": [True] * 4 + [False] * 5, "LO": [False] * 4 + [True] * 5}
    assert subject.splits[0].test.tolist() == [8, 9, 10, 11]
    ids = [11, 3, 11]
    np.testing.assert_array_equal(subject.stimuli.pictures(ids), content["pictures"][ids])
    assert subject.stimuli.captions([3, 2]) == [("picture 3", "words"), ("picture 2",)]
    some = load_subject("own", path, "S1", rois="LO")
    assert list(some.roi) == ["LO"] and some.responses.shape == (48, 5)
    assert list(load_subject("own", path, "S1").roi) == ["V1", "LO"]  # the notebooks' default
    said = "'V9' is unknown; give all or some of V1,LO"
    refuses(said, load_subject, "own", path, "S1", rois="V1,V9")


def test_folds_test_each_picture_once_and_grey_pictures_have_three_colours(made):
    path, content = made
    fold = np.arange(12) % 3
    grey = content["pictures"][..., 0]
    write_hdf5(path, {**content, "split": None, "fold": fold, "pictures": grey})
    subject = load_subject("own", path, "S1", rois="all")
    assert [split.name for split in subject.splits] == ["fold_0", "fold_1", "fold_2"]
    for number, split in enumerate(subject.splits):
        assert split.test.tolist() == np.flatnonzero(fold == number).tolist()
        assert sorted([*split.train, *split.test]) == list(range(12))
    found = subject.stimuli.pictures([4])
    np.testing.assert_array_equal(found, np.stack([grey[[4]]] * 3, axis=-1))


def test_dead_voxels_are_left_out_and_counted(made):
    path, content = made
    x = content["responses"].copy()
    x[:, 0] = np.nan
    training = np.isin(content["stimulus_id"], range(8))
    x[training & (content["session"] == 2), 6] = 3.0
    write_hdf5(path, {**content, "responses": x})
    assert check_own(path) == []
    subject = load_subject("own", path, "S1", rois="all")
    assert subject.n_dropped == 2 and subject.responses.shape == (48, 7)
    assert np.isfinite(prepare_fold(subject, subject.splits[0]).test_x).all()


def test_a_folder_has_a_file_a_subject(made):
    path, content = made
    write_hdf5(path.with_name("anna.h5"), content)
    write_hdf5(path.with_name("ben.hdf5"), {**content, "responses": content["responses"] + 1})
    folder = path.parent
    assert check_own(folder) == []
    anna, ben = (load_subject("own", folder, name) for name in ("anna", "ben"))
    np.testing.assert_allclose(ben.responses, anna.responses + 1, rtol=1e-5)
    refuses(r"carl.h5 is missing; subjects in .*: anna, ben", load_subject, "own", folder, "carl")
    params = ROOT / "notebooks/params/own.yaml"
    changes = {"data_path": str(folder / "anna.h5"), "subjects": ["anna", "ben"]}
    refuses("is one file for 2 subjects", load_plan, params, ROOT, changes)
    write_hdf5(path.with_name("ben.hdf5"), content)
    (fault,) = check_own(folder)
    assert "ben.hdf5: `responses` are those of" in fault and "anna.h5" in fault
    refuses("one brain, two subjects", load_subject, "own", folder, "anna")


# --- faults ---------------------------------------------------------------------------------------

PICTURES = np.zeros((12, 8, 8, 3), np.uint8)
SHOWN = np.repeat(np.arange(12), 4)
X = np.random.default_rng(0).normal(size=(48, 10))
HOLE = np.where(np.arange(480).reshape(48, 10) == 123, np.nan, X)
FLAT = np.where(np.arange(10) < 4, 1.0, X)
FAULTS = [
    ({"responses": X.T}, "`responses` (10, 48) lies on its side: 48 trials, 10 voxels"),
    ({"responses": HOLE}, "NaN or infinite in some trials for 1 of 10 voxels, first in trial 12"),
    ({"responses": FLAT}, "every voxel of region V1 is NaN or constant"),
    ({"stimulus_id": SHOWN + 1}, "`stimulus_id` goes from 1 to 12; `pictures` has rows 0 to 11"),
    ({"stimulus_id": SHOWN + 1}, "They seem to count from 1: subtract 1."),
    ({"stimulus_id": SHOWN / 2}, "`stimulus_id` is float64 (48,); expected whole numbers"),
    ({"stimulus_id": SHOWN % 8}, "8 shown pictures train in a split, 0 test; expected 4 and 2"),
    ({"pictures": PICTURES / 255}, "Values from 0 to 1 become it with np.uint8"),
    ({"pictures": np.moveaxis(PICTURES, -1, 1)}, "write np.moveaxis(pictures, 1, -1)"),
    ({"pictures": PICTURES[:, :6]}, "Crop, pad or resize them to one square size, 2048 or fewer"),
    ({"captions": ["a"] * 11}, "`captions` has shape (11,); expected (12,): n_pictures"),
    ({"captions": ["a", " "] * 6}, "`captions` has none for pictures 1, 3, 5 and 3 more"),
    ({"split": ["train"] * 48}, "`split` has shape (48,); expected (12,): n_pictures. It looks"),
    ({"split": ["training"] * 12}, '`split` has \'training\'; expected "train" or "test"'),
    ({"fold": np.arange(12)}, "the file has both of `split` and `fold`; expected `split`, texts"),
    ({"split": None}, "the file has neither of `split` and `fold`"),
    ({"roi": ["V1,V2"] * 10}, "`roi` names ['V1,V2']; expected some, without a comma"),
    ({"session": 1 + SHOWN // 8}, "session 2 has 0 trials with a training picture"),
    ({"ncsnr": np.full(10, -1.0)}, "`ncsnr` of voxels 0, 1, 2 and 6 more is not finite or below"),
    ({"affine": None}, "`affine` missing. Give all of voxel_ijk, affine, volume_shape"),
    ({"affine": np.zeros((4, 4))}, "`affine` cannot be inverted"),
    ({"volume_shape": [5, 5, 1]}, "lies outside `volume_shape` (5, 5, 1)"),
]
FAULTS += [({name: None}, f"there is no dataset `{name}`; expected") for name in REQUIRED]


@pytest.mark.parametrize(("changes", "said"), FAULTS, ids=[said[:50] for _, said in FAULTS])
def test_each_fault_is_explained(made, changes, said):
    path, content = made
    regular = {**content, "responses": X, "stimulus_id": SHOWN, "session": None}
    assert check_own(write_hdf5(path, regular)) == []
    faults = check_own(write_hdf5(path, {**regular, **changes}))
    assert len(faults) <= 2 and any(said in fault for fault in faults), faults
    assert all(fault.startswith(f"{path}: ") for fault in faults)


def test_the_first_fault_is_said_and_a_misspelt_dataset_recognised(made):
    path, content = made
    renamed = {**content, "stimulus_id": None, "stimulus_ids": content["stimulus_id"]}
    (fault,) = check_own(write_hdf5(path, renamed))
    assert "there is no dataset `stimulus_id`" in fault
    assert "Is it what you called `stimulus_ids`?" in fault
    write_hdf5(path, {**content, "roi": None, "split": None})
    said = refuses(f"^{path}: there is no dataset `roi`", load_subject, "own", path, "S1")
    assert "And 1 more: `minddiff check own" in said and "\n" not in said


def test_missing_and_broken_files(made, tmp_path):
    path, content = made
    whole = write_hdf5(path, content).read_bytes()
    for length in (0, 100, len(whole) - 2000):
        path.write_bytes(whole[:length])
        (fault,) = check_own(path)
        assert "is truncated, damaged or no HDF5 file" in fault
    (fault,) = check_own(tmp_path / "nothing.h5")
    assert "nothing.h5 is missing. The page 'Your own data'" in fault
    (tmp_path / "empty").mkdir()
    (fault,) = check_own(tmp_path / "empty")
    assert "holds no file *.h5" in fault
