"""Reliability, patterns and constant shares, on recordings whose answers are known."""

import numpy as np
import pytest
from builders import recording

from minddiff_utils.datasets import prepare_fold
from minddiff_utils.decoding import decode as patterns
from minddiff_utils.decoding.decode import decode_subject, decoding_accuracy
from minddiff_utils.decoding.decoders import Decoder


@pytest.fixture(scope="module")
def decoded(world, tmp_path_factory):
    """Paths of the decoded file and of the decoders."""
    features, _, subject = world
    folder = tmp_path_factory.mktemp("decoded")
    decode_subject(subject, features, folder / "decoded.h5", decoders=folder / "decoders")
    return folder / "decoded.h5", folder / "decoders"


@pytest.mark.parametrize("factored", [True, False])
def test_shares_are_those_of_haufes_patterns(factored):
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((9, 4)), rng.standard_normal((4, 6)) if factored else None
    n = 6 if factored else 4
    nothing = np.zeros(n)
    decoder = Decoder(left, np.ones(9), nothing, np.ones(n, bool), nothing, nothing, right)
    x = rng.standard_normal((200, 9)) @ rng.standard_normal((9, 9)) + 1
    found, decoded = np.cov(x.T), left @ right if factored else left
    # A = cov(x) W / var(decoded), for each value by itself.
    variance = np.diag(decoded.T @ found @ decoded)
    pattern = found @ decoded / variance
    power = np.square(pattern * variance).sum(1)
    np.testing.assert_allclose(patterns.pattern_shares(decoder, x), power / power.sum())


def test_patterns_lie_in_the_region_that_knows(world, decoded):
    _, _, subject = world
    decoder = Decoder.load(decoded[1] / "main" / "z.safetensors")
    x = prepare_fold(subject, subject.splits[0]).train_x
    share = patterns.pattern_shares(decoder, x)
    table = patterns.density_by_region(subject, {"z": share}).set_index("roi").density
    assert table["A"] > 3 * table["B"]
    assert (table * [0.5, 0.5]).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("noise", [0.5, 20.0])
def test_reliability_is_above_accuracy_and_falls_with_noise(world, tmp_path, noise):
    features, ids, _ = world
    split = world[2].splits[0]
    subject = recording(features, [split], noise=noise)
    path = decode_subject(subject, features, tmp_path / "d.h5", decoders=tmp_path / "d")
    accuracy = decoding_accuracy(features, path)
    r = accuracy[accuracy.feature_space == "z"].correlation.to_numpy()
    highest = patterns.decoder_reliability(subject, tmp_path / "d", "z")
    assert highest.shape == r.shape
    clean = np.nanmean(highest)
    assert clean >= np.mean(r) - 0.1
    assert {0.5: 0.95, 20.0: 0.0}[noise] <= clean <= {0.5: 1, 20.0: 0.8}[noise]
