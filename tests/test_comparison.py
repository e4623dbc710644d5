"""Ways of decoding, side by side, on recordings whose answer is known."""

import dataclasses

import numpy as np
import pytest
from test_decoding import recording, world  # noqa: F401

from minddiff_utils.datasets import prepare_fold
from minddiff_utils.decoding.decode import decode_subject, read_decoded, training_design
from minddiff_utils.decoding.decoders import Method, fit_family
from minddiff_utils.decoding.features import read_values
from minddiff_utils.io import InputError
from studies import comparison
from studies.comparison import WAYS, compare_ways, decode_ways

CHOSEN = {"z": np.array([0, 3, 9]), "block_1": np.array([1, 23])}


@pytest.fixture(scope="module")
def found(world):  # noqa: F811
    features, _, subject = world
    return decode_ways(subject, features, list(WAYS), CHOSEN)[0]


def test_the_first_way_is_what_chapter_02_does(world, found, tmp_path):  # noqa: F811
    features, ids, subject = world
    whole = read_decoded(decode_subject(subject, features, tmp_path / "decoded.h5"))
    for name, places in CHOSEN.items():
        wanted = whole[name].reshape(30, -1)[:, places]
        np.testing.assert_allclose(found["ridge"][name], wanted, atol=1e-4)


def test_the_papers_way_is_that_of_the_decoder(world, found):  # noqa: F811
    features, _, subject = world
    (split,) = subject.splits
    fold = prepare_fold(subject, split)
    design = training_design(subject, split, fold)
    for name, places in CHOSEN.items():
        y = read_values(features, name, split.train)
        decoder = fit_family(design, y, name, Method(decoder="voxel_selected", rescale_z="none"))[0]
        wanted = decoder.predict(fold.test_x)[:, places]
        np.testing.assert_allclose(found["paper"][name], wanted, atol=1e-3)


def test_every_way_finds_the_signal_in_z_and_none_elsewhere(world, found):  # noqa: F811
    features, ids, _ = world
    true = {
        name: read_values(features, name, ids[:30])[:, places] for name, places in CHOSEN.items()
    }
    table = compare_ways(found, true, 200).set_index(["way", "family"])
    for way in WAYS:
        assert table.correlation[way, "z"] > 0.6, table
        assert abs(table.correlation[way, "block_1"]) < 0.5, table
    first = table.loc["ridge"]
    assert (first[["gain", "low", "high"]] == 0).all(axis=None)
    # A second band is for `c` and the embedding: without it these are decoded alike, but for the
    # rounding of single precision.
    alike = table.loc["one_band", ["gain", "low", "high"]]
    assert (alike.abs() < 1e-6).all(axis=None)
    table = table.drop("one_band")
    assert (table.low <= table.gain + 1e-9).all() and (table.gain <= table.high + 1e-9).all()


def test_unknown_ways_are_named(world):  # noqa: F811
    with pytest.raises(InputError, match="way 'magic'"):
        decode_ways(world[2], world[0], ["ridge", "magic"], CHOSEN)


@pytest.fixture
def run(world, tmp_path):  # noqa: F811
    """Folder of a run with the features of one subject."""
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "features.h5").symlink_to(world[0])
    return tmp_path, world[2]


def test_training_pictures_are_held_out_and_a_line_a_family_printed(run, monkeypatch, capsys):
    tmp_path, subject = run
    monkeypatch.setattr(comparison, "load_subject", lambda *_: subject)
    options = ["--run", str(tmp_path), "--subject", "s1", "--families", "z,c"]
    comparison.main([*options, "--ways", "ridge,values", "--pictures", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("s1, 20 training pictures")
    assert [line.split()[0] for line in lines[1:]] == ["ridge:", "z", "c", "values:", "z", "c"]
    with pytest.raises(InputError, match="02_decoding"):
        comparison.main(["--run", str(tmp_path), "--subject", "s2"])


def test_bands_are_voxels_of_regions_and_one_band_is_plain_ridge(world):  # noqa: F811
    features, _, subject = world
    odd = np.arange(100) % 10 == 0  # in no region
    subject = dataclasses.replace(subject, roi={k: m & ~odd for k, m in subject.roi.items()})
    bench = comparison._open(subject)
    train, _, size = comparison.band_kernels(bench)
    scaled = bench.design.models[0][0].transform(bench.design.x)
    assert len(train) == 3
    whole = np.tensordot(size, train, 1)
    np.testing.assert_allclose(whole, scaled @ scaled.T, atol=1e-2)
    y = read_values(features, "z", subject.splits[0].train)
    found = comparison.decode_banded(bench, y, n_shares=1)
    wanted = bench.design.fit(y, "z", Method()).predict(bench.fold.test_x)
    np.testing.assert_allclose(found, wanted, atol=1e-2)
