"""Both readers of Miyawaki et al. (2008): the real small file, and a tree in nilearn's layout."""

import os
import shutil
from pathlib import Path

import miyawaki_tree
import nibabel as nib
import numpy as np
import pytest
import scipy.io
from builders import refuses
from miyawaki_tree import response_of

from minddiff_utils.datasets import load_subject, prepare_fold
from minddiff_utils.datasets.miyawaki import CAPTIONS, pattern_picture
from minddiff_utils.phantom import world

DEFAULT = Path(__file__).parents[2] / "shared/data/miyawaki2008/V1_mean_figure.mat"
WORDS = {word for i in range(2000) for text in world.captions(i) for word in text.split()}


def upright(subject, trial):
    (picture,) = subject.stimuli.pictures([subject.stimulus_id[trial]])
    return (picture[5::6, 5::6, 0][:10, :10] == 235).astype(int)


@pytest.fixture(scope="module")
def recording():
    path = Path(os.environ.get("MINDDIFF_MIYAWAKI", DEFAULT))
    if not path.is_file():
        pytest.skip(f"no recording at {path}: set MINDDIFF_MIYAWAKI to V1_mean_figure.mat")
    return path


def test_trial_for_trial(recording):
    subject = load_subject("miyawaki", recording, "S1")
    raw = scipy.io.loadmat(recording)
    assert subject.responses.shape == (80, 797)
    for trial in range(80):
        np.testing.assert_allclose(subject.responses[trial], raw["R2"][:, trial], rtol=1e-6)
        pattern = raw["I2"][:, trial].reshape(10, 10).T
        np.testing.assert_array_equal(upright(subject, trial), pattern)


def test_splits_leave_one_picture_out(recording):
    subject = load_subject("miyawaki", recording, "S1")
    assert [split.test.tolist() for split in subject.splits] == [[i] for i in range(10)]
    for split in subject.splits:
        fold = prepare_fold(subject, split)
        assert fold.train_x.shape == (9, 797)
        # Standardised on the training trials alone: their mean is zero, the test's is not.
        np.testing.assert_allclose(fold.train_x.mean(axis=0), 0, atol=1e-4)


def test_captions_name_the_pictures_in_the_words_of_the_world(recording):
    subject = load_subject("miyawaki", recording, "S1")
    letters = subject.stimuli.captions(range(5, 10))
    assert "".join(texts[0].split()[3] for texts in letters) == "neuro"
    assert subject.stimuli.captions(range(10)) == list(CAPTIONS.values())
    assert all(len(set(texts)) == 5 for texts in CAPTIONS.values())


def test_unknown_subject_region_and_id(recording):
    said = "'hV4' is unknown; give all or some of V1"
    refuses(said, load_subject, "miyawaki", recording, "S1", rois="hV4")
    stimuli = load_subject("miyawaki", recording, "S1").stimuli
    for ask, ids in ((stimuli.pictures, [10]), (stimuli.captions, [-1])):
        refuses("0 to 9", ask, ids)


def test_missing_or_truncated_file_is_named(recording, tmp_path):
    path = tmp_path / "short.mat"
    refuses(r"short.mat is missing.*KamitaniLab/VBCCA", load_subject, "miyawaki", path, "S1")
    for length in (0, 100, 3000):
        path.write_bytes(recording.read_bytes()[:length])
        refuses("short.mat", load_subject, "miyawaki", path, "S1")


SHOWN = np.zeros((100, 4), np.uint8)
OTHER = [
    ({"I2": SHOWN}, "lacks R2"),
    ({"I2": SHOWN[1:], "R2": np.zeros((5, 4))}, r"\(99, 4\)"),
    ({"I2": SHOWN, "R2": np.zeros((5, 3))}, r"\(5, 3\)"),
    ({"I2": SHOWN, "R2": np.zeros((5, 4))}, "1 distinct pictures"),
]


@pytest.mark.parametrize(("content", "message"), OTHER)
def test_another_file(tmp_path, content, message):
    path = tmp_path / "other.mat"
    scipy.io.savemat(path, content)
    refuses(message, load_subject, "miyawaki", path, "S1")


# --- the full recording ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miyawaki")
    return folder, miyawaki_tree.write_tree(folder)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "tree")


def load(path, **more):
    return load_subject("miyawaki_full", path, "S1", **more)


def test_responses_are_the_simulated_signal_change(whole):
    """Every block is a trial with its picture and the simulated answer, two volumes late."""
    folder, shown = whole
    subject = load(folder, rois="V1,V4")
    assert len(subject.stimulus_id) == 20 * 2 + 12 * 3
    voxel = np.ravel_multi_index(subject.voxel_ijk.T, miyawaki_tree.SHAPE)
    for trial, pattern in enumerate(shown["random"] + shown["figure"]):
        np.testing.assert_array_equal(upright(subject, trial), pattern)
        expected = [response_of(pattern, v) for v in voxel]
        found = subject.responses[trial]
        # In so short a run the trend that is removed holds a part of the answers.
        assert np.corrcoef(found, expected)[0, 1] > 0.9


def test_random_patterns_train_and_figures_test(whole):
    folder, shown = whole
    subject = load(folder)
    (split,) = subject.splits
    assert (split.name, len(split.train), len(split.test)) == ("figures", 40, 11)
    test = {picture.tobytes() for picture in subject.stimuli.pictures(split.test)}
    assert test == {pattern_picture(pattern).tobytes() for pattern in shown["figure"]}
    fold = prepare_fold(subject, split)
    np.testing.assert_allclose(fold.train_x.mean(axis=0), 0, atol=1e-4)
    assert fold.test_x.shape == (11, subject.responses.shape[1])


def test_regions_join_both_hemispheres_and_the_parts(whole):
    folder, _ = whole
    subject = load(folder)
    sizes = {name: int(mask.sum()) for name, mask in subject.roi.items()}
    assert sizes == {"V1": 28, "V2": 28, "V3": 28, "V3A": 14, "V4": 14}
    assert subject.n_dropped == 0 and subject.volume_shape == miyawaki_tree.SHAPE
    files = (folder / "miyawaki2008/mask").glob("[LR]HV1*.nii.gz")
    union = np.any([nib.load(path).get_fdata() > 0 for path in files], axis=0)
    refuses("'V9' is unknown", load, folder, rois="V1,V9")
    refuses("S1 only", load_subject, "miyawaki_full", folder, "S2")
    chosen = load(folder / "miyawaki2008", rois="V1")  # the folder itself is a path, too
    np.testing.assert_array_equal(chosen.voxel_ijk, np.argwhere(union))
    # A voxel without signal is left out and counted.
    subject = load(folder, rois="mask")
    assert list(subject.roi) == ["mask"] and subject.n_dropped == 1
    assert np.isfinite(subject.responses).all()


def test_captions_name_known_figures_and_count_patches(whole):
    folder, shown = whole
    subject = load(folder)
    texts = subject.stimuli.captions(subject.stimulus_id)
    assert texts[40] == CAPTIONS["small_frame"]  # figures[1] opens the first figure run
    assert texts[41][0] == "a medium figure of patches in white in the middle on grey"
    share = shown["random"][0].mean()
    assert ("many" in texts[0][0]) == (share >= 0.45)
    assert {w for five in texts for t in five for w in t.split()} <= WORDS
    assert all(len(five) == 5 for five in texts)


DAMAGES = [
    ("func/data_random_run07.nii.gz", None, "run07.nii.gz is missing.*fetch miyawaki"),
    ("label/data_figure_run12_label.csv", None, "figure_run12_label.csv is missing"),
    ("mask/RHV4v.nii.gz", None, "RHV4v.nii.gz is missing"),
    ("func/data_random_run02.nii.gz", -400, "run02.nii.gz is truncated, damaged"),
    ("label/data_random_run01_label.csv", -1, "run01.nii.gz .* its mask, `ncsnr` or table"),
]


@pytest.mark.parametrize(("file", "keep", "message"), DAMAGES)
def test_what_is_missing_or_does_not_fit_is_named(copy, file, keep, message):
    path = copy / "miyawaki2008" / file
    content = path.read_bytes()
    path.unlink()
    if keep:  # of the table, all lines but the last
        lines = content.splitlines(keepends=True)[:-1]
        path.write_bytes(b"".join(lines) if path.suffix == ".csv" else content[:keep])
    refuses(message, load, copy)
