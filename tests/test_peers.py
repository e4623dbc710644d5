"""Other methods as presets: which voxels say what."""

from dataclasses import fields, replace

import h5py
import numpy as np
import pytest
import torch
from dummy_project import ROOT

from minddiff_utils.book.plan import find_sheets, load_plan
from minddiff_utils.datasets import Split, Subject
from minddiff_utils.decoding.decode import decode_subject, read_decoded
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.evaluation import peers
from minddiff_utils.io import InputError
from minddiff_utils.models.stable_diffusion import load_generator
from minddiff_utils.reconstruction.guided_sampling import guided_pass
from minddiff_utils.settings import ADVANCED, Settings

NOTEBOOKS = ROOT / "notebooks"


class Nothing:
    ids = np.arange(60)


def recording(tmp_path, rng):
    """A brain whose early voxels are `z` and whose higher voxels are `c`, and nothing else."""
    z, c = rng.normal(size=(60, 1, 2, 4)), rng.normal(size=(60, 2, 4))
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["stimulus_id"], file["z"], file["c"] = np.arange(60), z, c
    responses = np.concatenate([z.reshape(60, -1), c.reshape(60, -1)], axis=1)
    early = np.arange(16) < 8
    roi = {"V1": early & (np.arange(16) < 4), "V3": early & (np.arange(16) >= 4), "LO": ~early}
    split = Split("only", np.arange(10, 60), np.arange(10))
    responses = (responses + 0.01 * rng.normal(size=responses.shape)).astype("f4")
    subject = Subject(
        "S", "own", responses, np.arange(60), np.ones(60, int), roi, (split,), Nothing()
    )
    return subject, z[:10], c[:10]


def settings(name):
    """How chapter 2 decodes with a file of parameters, but for sizes that the recording has not."""
    (sheet,) = [one for one in find_sheets(NOTEBOOKS) if one.name == "02_decoding"]
    plan = load_plan(NOTEBOOKS / "params" / f"{name}.yaml", NOTEBOOKS.parent)
    given = {
        **sheet.defaults,
        **ADVANCED[sheet.name],
        **plan.values,
        "n_voxels_z": 5,
        "n_voxels_c": 3,
    }
    given |= {"target_components": min(given["target_components"], 4)}
    how = {name: given[name] for name in ("keep_structure", "n_components", "n_folds")}
    return how | {"method": Method(**{part.name: given[part.name] for part in fields(Method)})}


def decode(subject, tmp_path, **how):
    """What chapter 2 decodes, and Takagi's row after it."""
    paths = tmp_path / "features.h5", tmp_path / "decoded.h5"
    decoded = read_decoded(decode_subject(subject, *paths, **how))
    return decoded, peers.decode_takagi(subject, *paths)


@pytest.mark.parametrize("name", ["phantom", "paper", "nsd"])
def test_the_peer_decodes_with_the_settings_of_the_run(tmp_path, name):
    """A recording of its voxels alone is decoded alike: nothing else sets the two apart."""
    how = settings(name)
    subject, _, _ = recording(tmp_path, np.random.default_rng(0))
    _, found = decode(subject, tmp_path, **how)
    for family, roi in (("z", ("V1", "V3")), ("c", ("LO",))):
        voxels = np.any([subject.roi[name] for name in roi], axis=0)
        masks = {name: subject.roi[name][voxels] for name in roi}
        alone = replace(subject, responses=subject.responses[:, voxels], roi=masks)
        path = decode_subject(alone, tmp_path / "features.h5", tmp_path / "alone.h5", **how)
        np.testing.assert_allclose(found[family], read_decoded(path)[family], atol=1e-5)


def test_early_areas_say_where_and_higher_ones_what(tmp_path):
    subject, z, c = recording(tmp_path, np.random.default_rng(0))
    _, found = decode(subject, tmp_path, n_folds=3)
    assert found["z"].shape == z.shape and found["c"].shape == c.shape
    np.testing.assert_array_equal(found["stimulus_id"], np.arange(10))
    for decoded, true in ((found["z"], z), (found["c"], c)):
        assert np.corrcoef(decoded.ravel(), true.ravel())[0, 1] > 0.98
    # With the regions swapped, neither knows its part.
    swapped = {"LO": subject.roi["V1"] | subject.roi["V3"], "V1": subject.roi["LO"]}
    other = Subject(**{**vars(subject), "roi": swapped})
    _, found = decode(other, tmp_path, n_folds=3)
    assert abs(np.corrcoef(found["z"].ravel(), z.ravel())[0, 1]) < 0.6


def test_regions_are_told_apart_by_name():
    masks = np.eye(4, dtype=bool)
    early, higher = peers.early_and_higher(
        dict(zip(["V1v", "early", "hV4", "IPS"], masks, strict=True))
    )
    assert early.tolist() == [True, True, False, False]
    assert higher.tolist() == [False, False, True, True]
    # A voxel in both counts as early.
    early, higher = peers.early_and_higher({"V2": masks[0], "ventral": masks[0] | masks[1]})
    assert higher.tolist() == [False, True, False, False]
    for names, lacking in ((["V1", "V2"], "higher"), (["LO", "IPS"], "early")):
        with pytest.raises(InputError, match=f"no voxel of {lacking}"):
            peers.early_and_higher(dict(zip(names, masks, strict=False)))


@pytest.mark.parametrize(("steps", "guided"), [(37, 7), (35, 7), (5, 1), (1, 1), (50, 9)])
def test_neuraldiffuser_guides_seven_of_thirty_seven(steps, guided):
    assert peers.guided_steps(steps) == guided


def test_neuraldiffuser_is_a_change_of_settings_alone():
    ours = Settings(
        n_steps=9,
        strength=0.56,
        step_size=0.4,
        gradient_steps=3,
        guide_every=2,
        z_evidence_weight=2.0,
    )
    theirs = peers.neuraldiffuser(ours, 37)
    found = (theirs.solver, theirs.n_guided_steps, theirs.guide_every, theirs.gradient_steps)
    assert found == ("guided", 7, 1, 1)
    changed = {"solver", "n_guided_steps", "guide_every", "gradient_steps", "z_evidence_weight"}
    assert all(
        value == vars(ours)[name] for name, value in vars(theirs).items() if name not in changed
    )


def test_only_the_first_steps_are_guided(tiny_models):
    """Steps that are not guided are those of stage 1, to the last digit."""
    generator = load_generator(tiny_models, "cpu", "float32")
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    c, noise = generator.empty_condition(), torch.zeros_like(z)
    looked = []

    def loss_of(pictures):
        looked.append(len(pictures))
        return pictures.square().mean((1, 2, 3))[:, None]

    settings = Settings(n_steps=6, strength=1.0, gradient_steps=1, z_evidence_weight=0.0)
    for guided, n_looks in ((0, 6), (2, 2), (9, 6)):
        looked.clear()
        _, iterates, _ = guided_pass(
            generator, z, c, loss_of, None, noise, replace(settings, n_guided_steps=guided)
        )
        assert len(looked) == len(iterates) == n_looks
