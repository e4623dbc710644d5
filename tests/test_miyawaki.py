"""The real recording of Miyawaki et al. (2008), where the file is there."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from minddiff_utils.datasets import load_subject, prepare_fold
from minddiff_utils.datasets.miyawaki import CAPTIONS, pattern_picture
from minddiff_utils.io import InputError
from minddiff_utils.phantom import world

DEFAULT = Path(__file__).parents[2] / "shared/data/miyawaki2008/V1_mean_figure.mat"


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
        upright = raw["I2"][:, trial].reshape(10, 10).T
        (picture,) = subject.stimuli.pictures([subject.stimulus_id[trial]])
        np.testing.assert_array_equal(picture[5::6, 5::6, 0][:10, :10] == 235, upright == 1)


def test_splits_leave_one_picture_out(recording):
    subject = load_subject("miyawaki", recording, "S1")
    assert [split.test.tolist() for split in subject.splits] == [[i] for i in range(10)]
    for split in subject.splits:
        fold = prepare_fold(subject, split)
        assert fold.train_x.shape == (9, 797)
        # Standardised on the training trials alone: their mean is zero, the test's is not.
        np.testing.assert_allclose(fold.train_x.mean(axis=0), 0, atol=1e-4)


def test_captions_name_the_pictures(recording):
    subject = load_subject("miyawaki", recording, "S1")
    letters = subject.stimuli.captions(range(5, 10))
    assert "".join(texts[0].split()[3] for texts in letters) == "neuro"
    assert all(len(set(texts)) == 5 for texts in subject.stimuli.captions(range(10)))


def words(texts):
    return {word for text in texts for word in text.split()}


def test_captions_use_the_words_of_the_world():
    known = set().union(*(words(world.captions(i)) for i in range(2000)))
    assert words(text for texts in CAPTIONS.values() for text in texts) <= known


def test_stimuli_look_like_the_worlds_patterns():
    for i in range(40):
        scene = world.scene(i)
        if scene.pattern is not None:
            np.testing.assert_array_equal(world.picture(i), pattern_picture(scene.pattern))


def test_unknown_subject_and_region(recording):
    with pytest.raises(InputError, match="S1 only"):
        load_subject("miyawaki", recording, "S2")
    with pytest.raises(InputError, match="'hV4' is unknown; give all or some of V1"):
        load_subject("miyawaki", recording, "S1", rois="hV4")


def test_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"nothing.mat is missing.*KamitaniLab/VBCCA"):
        load_subject("miyawaki", tmp_path / "nothing.mat", "S1")


@pytest.mark.parametrize("length", [0, 100, 3000])
def test_truncated_file(recording, tmp_path, length):
    path = tmp_path / "short.mat"
    path.write_bytes(recording.read_bytes()[:length])
    with pytest.raises(InputError, match="short.mat"):
        load_subject("miyawaki", path, "S1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"I2": np.zeros((100, 4), np.uint8)}, "lacks R2"),
        ({"I2": np.zeros((99, 4), np.uint8), "R2": np.zeros((5, 4))}, r"\(99, 4\)"),
        ({"I2": np.zeros((100, 4), np.uint8), "R2": np.zeros((5, 3))}, r"\(5, 3\)"),
        ({"I2": np.zeros((100, 4), np.uint8), "R2": np.zeros((5, 4))}, "1 distinct pictures"),
    ],
)
def test_another_file(tmp_path, content, message):
    path = tmp_path / "other.mat"
    scipy.io.savemat(path, content)
    with pytest.raises(InputError, match=message):
        load_subject("miyawaki", path, "S1")


def test_ids_out_of_range(recording):
    subject = load_subject("miyawaki", recording, "S1")
    with pytest.raises(InputError, match="0 to 9"):
        subject.stimuli.pictures([10])
    with pytest.raises(InputError, match="0 to 9"):
        subject.stimuli.captions([-1])
