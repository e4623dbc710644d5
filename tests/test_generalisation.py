"""Further test sets: by the run's decoders or their own, and scored beside wrong pictures."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from builders import assert_same, make_subject, refuses, write_hdf5

from minddiff_utils.datasets import Split
from minddiff_utils.decoding import decode
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.evaluation import generalisation
from minddiff_utils.evaluation.baselines import Bench
from minddiff_utils.figures import evaluation as figures
from minddiff_utils.settings import Settings

N, N_VOXELS, SHAPES = 80, 12, {"z": (2, 2, 2), "c": (3, 4), "block_1": (2, 3)}
METHOD = Method(target_components=6, n_components=4, n_folds=3)


class Pictures:
    """Each stimulus has a picture of its own, 16 pixels wide."""

    def pictures(self, ids):
        return np.stack([np.random.default_rng(i).integers(0, 256, (16, 16, 3)) for i in ids])


@pytest.fixture
def bench(tmp_path):
    """Thirteen of the pictures test the book; "near" shares its training, "far_0" and "far_1" not.

    What "blind" shows, in a session of its own, the responses do not tell.
    """
    rng = np.random.default_rng(0)
    spaces = {k: rng.normal(size=(N, *shape)).astype("f4") for k, shape in SHAPES.items()}
    write_hdf5(tmp_path / "features.h5", {"stimulus_id": np.arange(N), **spaces})
    features = np.concatenate([values.reshape(N, -1) for values in spaces.values()], axis=1)
    ids = np.concatenate([rng.permutation(np.repeat(np.arange(N), 2)), np.repeat(np.arange(8), 2)])
    seen = features[ids] @ rng.normal(size=(features.shape[1], N_VOXELS))
    seen[-16:] = rng.normal(size=(16, N_VOXELS))
    session = np.repeat([1, 2, 3], [N, N, 16])
    ids[-16:] += 1000
    train, early = np.arange(30, N), np.arange(N_VOXELS) < 4
    sets = [Split("near", train[::-1], np.arange(13, 20))]
    sets += [Split(f"far_{i}", np.arange(20, N), np.arange(20)[i::2]) for i in (0, 1)]
    sets += [Split("blind", train, np.arange(1000, 1008))]
    splits, roi = [Split("usual", train, np.arange(13))], {"V1": early, "LO": ~early}
    more = {"session": session, "roi": roi, "stimuli": Pictures(), "test_sets": tuple(sets)}
    kinds = {13: "in two sets", 1000: "noise", 1001: "noise"}
    person = make_subject(seen, ids, splits, kind_of=kinds, **more)
    path = decode.decode_subject(person, tmp_path / "features.h5", tmp_path / "decoded.h5", METHOD)
    generator = SimpleNamespace(device="cpu", resize=np.uint8)
    decoded, settings = decode.read_decoded(path), Settings()
    return Bench(person, generator, decoded, tmp_path / "features.h5", tmp_path, settings, settings)


def test_sets_change_nothing_in_what_the_book_decodes(bench, tmp_path):
    alone = replace(bench.person, test_sets=())
    (wanted,) = decode.decode_tests(alone, bench.features, alone.splits, METHOD)
    assert_same(bench.decoded, wanted)
    names = {path.stem for path in (tmp_path / "test_sets").iterdir()}
    assert names == {"near", "blind"}


def test_each_set_is_decoded_as_a_split_of_its_own(bench):
    found = dict(generalisation.decode_sets(bench, 1000))
    assert list(found) == ["near", "blind", "far_0", "far_1"]
    for split in bench.person.test_sets:
        (wanted,) = decode.decode_tests(bench.person, bench.features, [split], METHOD)
        decoded = found[split.name]
        np.testing.assert_array_equal(decoded["stimulus_id"], split.test)
        for name in ("z", "c", "evidence_1", "projection_1", "reliability_1"):
            np.testing.assert_allclose(decoded[name], wanted[name], atol=2e-3, err_msg=name)
    some = dict(generalisation.decode_sets(bench, 3))["near"]
    assert some["stimulus_id"].tolist() == [13, 16, 19] and some["z"].shape == (3, 2, 2, 2)
    (bench.folder / "test_sets" / "near.h5").unlink()
    refuses("02_decoding", lambda: list(generalisation.decode_sets(bench, 3)))


@pytest.fixture
def scores(bench, monkeypatch):
    """What is painted of "near" and of the book's own pictures is what was seen; else noise."""

    def paint(self, decoded, settings, name):
        ids = decoded["stimulus_id"]
        known = ids if name == "test_set_near" else ids + 5000
        return self.seen(known)

    monkeypatch.setattr(Bench, "run", paint)
    own = bench.seen(bench.decoded["stimulus_id"])
    return generalisation.score_sets(bench, {}, None, own, 1000)


def test_a_set_whose_pictures_are_painted_is_told_from_one_whose_are_not(bench, scores):
    pcc = scores[scores["metric"] == "pcc"].set_index(["test_set", "scored_with"])["value"]
    right, wrong = generalisation.OWN, generalisation.WRONG
    for name in ("usual", "near"):
        np.testing.assert_allclose(pcc[name, right], 1)
        assert abs(pcc[name, wrong]).max() < 0.2
    assert abs(pcc["blind", right]).max() < 0.2 and len(pcc["far", right]) == 20
    table = generalisation.generalisation_table(scores)
    assert table.index.tolist() == ["usual", "near", "blind", "far"]
    assert table["n"].tolist() == ["13", "7", "8", "20"]
    assert table.loc["near", "PCC"].startswith("1.000 [1.000,\xa01.000]; +")
    kinds = generalisation.generalisation_table(scores, "kind")
    assert kinds.index.tolist() == ["in two sets", "noise"] and kinds["n"].tolist() == ["1", "2"]
    said = generalisation.fall_text(scores, "pcc")
    assert "near not shown to differ from usual" in said and "blind less than usual" in said
    names = [text.get_text() for text in figures.generalisation(scores).axes[-1].get_xticklabels()]
    assert names == ["usual", "near", "blind", "far"]
