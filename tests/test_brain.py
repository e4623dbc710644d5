"""The phantom's cortex and its answers to pictures."""

import numpy as np
import pytest

from minddiff_utils.phantom import brain, world
from minddiff_utils.phantom.brain import feature_maps

IDS = list(range(120))


@pytest.fixture(scope="module")
def subjects(brains):
    return [brains("subj01", 0), brains("subj02", 0)]


def test_signal_depends_on_the_picture_alone(subjects):
    one = subjects[0].signal([5, 9, 5])
    np.testing.assert_array_equal(one[0], one[2])
    np.testing.assert_allclose(one[1], subjects[0].signal([9])[0], atol=1e-5)
    other = brain.Brain("subj01", seed=1)
    assert not np.allclose(other.signal_sd[:10], subjects[0].signal_sd[:10])


def test_early_voxels_see_only_their_receptive_field(subjects):
    """A spot far from the field changes nothing; one inside it does."""
    subject = subjects[0]
    near = np.abs(subject.prf[:, :2] - [45, 20]).max(1) < 6
    voxel = np.flatnonzero((subject.group == "V1") & near)
    grey = np.full((64, 64, 3), 128, np.uint8)
    inside, outside = grey.copy(), grey.copy()
    for x, y in np.round(subject.prf[voxel, :2]).astype(int):
        inside[y - 2 : y + 3, x - 2 : x + 3] = 255
    outside[50:60, 4:14] = 255
    signal = subject._local(feature_maps(np.stack([grey, inside, outside])))
    blank, near, far = signal[:, :, voxel].transpose(1, 0, 2)
    assert voxel.size > 3
    assert (np.abs(near - blank)[1] > 20 * np.abs(far - blank)[1] + 1e-3).all()


def test_higher_areas_follow_content(subjects):
    """The voxels of VO tell red from blue things better than those of IPS tell them."""
    subject = subjects[0]
    content = subject._content([world.scene(i) for i in IDS])
    settings = [world.scene(i).setting for i in IDS]
    phc = content[:, subject.group == "PHC"]
    between = np.var([phc[[s == v for s in settings]].mean(0) for v in set(settings)], axis=0)
    assert np.median(between / phc.var(axis=0)) > 0.3
    assert (content[:, subject.group == "V1"] == 0).all()


def test_betas_have_the_asked_noise(subjects):
    subject = subjects[0]
    rng = np.random.default_rng(0)
    noise = subject.betas(np.zeros((600, len(subject.area)), np.float32), rng)
    # One session: its gain, of a spread of 6 per cent, is in the noise too.
    ratio = noise.std(axis=0) / subject.noise_sd
    assert abs(ratio.mean() - 1) < 0.02 and ratio.std() < 0.09
    # Neighbours share noise, distant voxels hardly do.
    some = slice(1500)
    r = np.corrcoef(noise[:, some].T)
    distance = np.linalg.norm(subject.ijk[some, None] - subject.ijk[None, some], axis=2)
    assert r[(distance > 0) & (distance < 1.5)].mean() > 0.1
    assert r[distance > 15].mean() < 0.08
