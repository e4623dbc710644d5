"""The phantom's tree in LAION-fMRI's layout, read by an independent reader and by the project's."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from builders import assert_follows_signal, run_cli

from minddiff_utils.datasets import load_subject, prepare_fold
from minddiff_utils.phantom import laion_writer, nsd_writer, world
from minddiff_utils.phantom.laion_writer import write_tree

SMALL = {"n_train": 70, "n_test": 10}
SUBJECTS = ("sub-01", "sub-03")
SPLITS = "tau,random_0,cluster_k5,ood"


@pytest.fixture(scope="module")
def tree(brains, tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("laion") / "tree", SUBJECTS, **SMALL)


@pytest.fixture(scope="module")
def plan():
    return laion_writer.plan_experiment(2, 70, 10, 4, seed=0)


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request, tree):
    return load_subject("laion", tree, request.param, split=SPLITS)


def world_ids(names):
    """The id in the phantom's world stands in each picture's name."""
    return [int(re.search(r"phantom_(\d+)", name)[1]) for name in names]


def parts(split, names):
    """The ids in the world of what trains and what tests."""
    return (world_ids(names[i] for i in ids) for ids in (split.train, split.test))


def volumes(tree, name):
    """Betas of all sessions and what was shown, read with nothing of the project's."""
    folder = tree / "derivatives/glmsingle-tedana" / name
    betas = [nib.load(path).get_fdata() for path in sorted(folder.glob("ses-*/func/*Betas_stat*"))]
    shown = [pd.read_csv(path, sep="\t") for path in sorted(folder.glob("ses-*/func/*_trials.tsv"))]
    assert all(one["beta_index"].tolist() == list(range(len(one))) for one in shown)
    assert [one["session"].unique().tolist() for one in shown] == [["ses-01"], ["ses-02"]]
    return np.concatenate(betas, axis=3), pd.concat(shown, ignore_index=True)


def test_reader_agrees_voxel_for_voxel_and_trial_for_trial(tree, subject, plan):
    betas, shown = volumes(tree, subject.name)
    assert betas.shape[3] == len(shown) == 4 * 90
    np.testing.assert_allclose(subject.responses, betas[tuple(subject.voxel_ijk.T)].T, rtol=1e-6)
    names = subject.stimuli.names
    assert [names[i] for i in subject.stimulus_id] == shown["label"].tolist()
    seen = plan.trials(SUBJECTS.index(subject.name))
    assert world_ids(shown["label"]) == plan.pictures[seen].tolist()
    assert np.unique(shown["label"], return_counts=True)[1].tolist() == [4] * 90


def test_responses_follow_the_signal(subject, brains):
    brain = brains(nsd_writer.SUBJECTS[SUBJECTS.index(subject.name)], 0)
    assert len(subject.voxel_ijk) == len(brain.area)
    ids = world_ids(subject.stimuli.names[i] for i in subject.stimulus_id)
    assert_follows_signal(subject, brain, ids)
    for split in (*subject.splits, *subject.test_sets):
        fold = prepare_fold(subject, split)
        assert np.isfinite(fold.train_x).all() and np.isfinite(fold.test_x).all()


def test_pictures_and_captions_are_those_of_the_world(tree, subject):
    ids = subject.stimuli.ids
    names = [subject.stimuli.names[i] for i in ids]
    drawn = np.stack([world.picture(i) for i in world_ids(names)])
    apart = np.abs(subject.stimuli.pictures(ids) - drawn.astype(int)).mean(axis=(1, 2, 3))
    png = np.array([name.endswith(".png") for name in names])
    assert png.sum() == 4 and (apart[png] == 0).all() and (apart < 3).all()
    for name, i, texts in zip(names, world_ids(names), subject.stimuli.captions(ids), strict=True):
        assert texts == world.captions(i)[: 3 if "unique" in name else 5]
    table = pd.read_csv(tree / "stimuli/task-images_desc-captions.csv")
    of_ai = table[table["source"] == "ai"]
    assert set(of_ai["caption_idx"]) == {0} and len(of_ai) == 10
    assert of_ai["image_name"].str.startswith("shared_4rep_LAION").all()


def test_splits_leave_out_what_their_names_say(tree, subject, plan):
    names, splits = subject.stimuli.names, {s.name: s for s in subject.test_sets}
    tau, random = subject.splits[0], splits["random_0"]
    assert [tau.name, *splits] == ["tau", "random_0", *(f"cluster_k5_{k}" for k in range(5)), "ood"]
    pool = set(splits["ood"].train.tolist())
    assert len(pool) == 80 and len(tau.test) == len(random.test) == 10
    for split in (tau, random, *(splits[f"cluster_k5_{k}"] for k in range(5))):
        assert pool == {*split.train.tolist(), *split.test.tolist()}
    settings = []
    for k in range(5):
        train, test = parts(splits[f"cluster_k5_{k}"], names)
        left_out = {world.scene(i).setting for i in test}
        assert not left_out & {world.scene(i).setting for i in train}
        settings += left_out
    assert sorted(settings) == sorted((*world.SETTINGS, "pattern"))
    train, test = parts(splits["ood"], names)
    assert max(train) < world.FIRST_OUTSIDE_ID <= min(test)
    kinds = [subject.kind_of[i] for i in splits["ood"].test.tolist()]
    assert kinds == [world.scene(i).outside for i in test]
    assert set(kinds) == set(world.OUTSIDE_KINDS) - {"noise"}


def test_no_picture_that_may_test_is_one_that_the_models_were_trained_on(plan):
    shown = [world.scene(i).pattern for i in plan.pictures.tolist()]
    shown = [pattern.ravel() for pattern in shown if pattern is not None]
    trained = nsd_writer.trained_patterns()
    assert len(shown) > 10 and min((one != trained).sum(axis=1).min() for one in shown) >= 10
    assert len(np.unique(shown, axis=0)) == len(shown)


# ------------------------------------------------------------------------------------- writing


def test_command(brains, tmp_path, monkeypatch, capsys):
    given = ["--layout", "laion", "--n-train", 20, "--n-test", 5, "--subjects", "sub-03"]
    code, said = run_cli(capsys, monkeypatch, "phantom", tmp_path / "tree", *given)
    assert code == 0 and said.out.strip() == str(tmp_path / "tree")
    facts = json.loads((tmp_path / "tree/phantom.json").read_text())
    assert facts["layout"] == "laion" and facts["subjects"] == ["sub-03"]
    assert facts["repetitions"] == 4
