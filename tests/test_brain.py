"""The phantom's cortex and its answers to pictures."""

import numpy as np
import pytest
from scipy.ndimage import label

from minddiff_utils.phantom import anatomy, brain, world
from minddiff_utils.phantom.brain import feature_maps

IDS = list(range(120))


@pytest.fixture(scope="module")
def subjects(brains):
    return [brains("subj01", 0), brains("subj02", 0)]


def test_areas_are_contiguous_in_each_hemisphere(subjects):
    for subject in subjects:
        for area in anatomy.AREAS:
            volume = np.zeros(anatomy.SHAPE, bool)
            volume[tuple(subject.ijk[subject.area == area].T)] = True
            assert label(volume, np.ones((3, 3, 3)))[1] == 2, area


def test_receptive_fields_grow_along_the_hierarchy_and_cross_the_midline(subjects):
    for subject in subjects:
        groups = ("V1", "V2", "V3", "hV4", "PHC")
        width = [np.median(subject.prf[subject.group == g, 2]) for g in groups]
        assert (np.diff(width) > 0).all()
        left = subject.ijk[:, 0] < anatomy.SHAPE[0] / 2
        assert (subject.prf[left, 0] > 32).all() and (subject.prf[~left, 0] < 32).all()
        upper = np.char.endswith(subject.area, "v")
        assert (subject.prf[upper, 1] < 32).all()
        early = subject.group == "V1"
        eccentricity = np.hypot(*(subject.prf[early, :2] - 32).T)
        assert np.corrcoef(eccentricity, subject.prf[early, 2])[0, 1] > 0.6


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


def test_energy_prefers_its_orientation_and_wavelength():
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    for w, wavelength in enumerate(brain.WAVELENGTHS):
        for o, angle in enumerate(brain.ORIENTATIONS):
            along = x * np.cos(angle) + y * np.sin(angle)
            grating = 128 + 60 * np.sin(2 * np.pi * along / wavelength)
            picture = np.repeat(grating[None, :, :, None], 3, axis=3).astype(np.uint8)
            energy = feature_maps(picture)[:12, 0].reshape(12, 32, 32)[:, 8:24, 8:24].mean((1, 2))
            assert energy.argmax() == 4 * w + o


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


def test_noise_ceilings_resemble_the_targets(subjects):
    for subject, quality in zip(subjects, brain.QUALITIES, strict=False):
        snr2 = np.square(subject.signal_sd / subject.noise_sd)
        ceiling = 100 * snr2 / (snr2 + 1 / 3)
        for roi, area in brain.AREAS.items():
            assert abs(ceiling[subject.group == roi].mean() - quality * area.ceiling) < 10
        assert np.percentile(ceiling[subject.group == "V1"], 95) > 75


def test_higher_areas_know_nothing_of_what_is_outside_but_its_known_things(subjects):
    """By their own answer to things: shapes, gratings and new things evoke as much as grey."""
    subject, first = subjects[0], world.FIRST_OUTSIDE_ID
    scenes = [world.scene(i) for i in range(first, first + 24)]
    content = subject._content(scenes)
    blank = [scene._replace(things=()) for scene in scenes]
    for row, scene in enumerate(scenes):
        known = [thing for thing in scene.things if thing.kind in world.KINDS]
        if scene.outside == "gaudy":
            landscape = scene._replace(outside="")
            np.testing.assert_array_equal(content[row], subject._content([landscape])[0])
        else:
            assert not subject._content(blank[row : row + 1]).any()
            assert content[row].any() == bool(known)
    one = next(s for s in scenes if s.outside == "cropped").things[0]
    new = subject._response_to(one._replace(colour="teal"))
    others = [subject._response_to(one._replace(colour=colour)) for colour in world.COLOURS]
    likes = np.array(list(subject._tuning["colour"].values())) * (subject._response_to(one) != 0)
    near = np.mean(others, axis=0) - new  # what is liked in colours, on average, where it lies
    assert np.corrcoef(near, likes.mean(axis=0))[0, 1] > 0.5


def test_early_areas_see_what_is_outside(subjects):
    subject, first = subjects[0], world.FIRST_OUTSIDE_ID
    signal = subject.signal(range(first, first + 12))[:, subject.group == "V1"]
    assert np.isfinite(signal).all()
    assert (np.corrcoef(signal)[np.triu_indices(12, 1)] < 0.9).all()
