"""The guided pass against a plain transcription; what the responses say about z; going astray."""

import dataclasses

import numpy as np
import pytest
import torch
from builders import read_hdf5
from test_reconstruction import decoded, inputs, plain_loss, plain_schedule

from minddiff_utils.decoding.components import PrincipalComponents, evidence
from minddiff_utils.models.clip import to_pictures
from minddiff_utils.models.stable_diffusion import load_generator
from minddiff_utils.reconstruction.guided_sampling import add_z_evidence
from minddiff_utils.reconstruction.losses import Evidence
from minddiff_utils.reconstruction.results import choose_iterates, read_pictures, read_trace
from minddiff_utils.reconstruction.stage1 import stage1
from minddiff_utils.reconstruction.stage2 import picture_losses, reconstruct, stage2
from minddiff_utils.settings import Settings

ALONE = {"structure_target": "values", "z_evidence_weight": 0.0}
QUICK = Settings(n_steps=5, strength=0.6, guidance_scale=2.0, **ALONE)
N = 3


def gaussians(n=N, n_values=1024, n_components=6, n_splits=1):
    """Of each split an orthonormal basis, and the variance of a score there; scores said."""
    source = torch.Generator().manual_seed(5)
    draws = torch.randn(n_splits, n_values, n_components, generator=source, dtype=torch.float64)
    basis = torch.linalg.qr(draws)[0]
    variance = torch.rand(n_splits, n_components, generator=source, dtype=torch.float64) + 0.1
    score = 3 * torch.randn(n, n_components, generator=source, dtype=torch.float64)
    return basis, variance, score


def as_evidence(basis, variance, score):
    """The same as a decoder leaves it: columns of the length 1 / sqrt(K v)."""
    length = (variance.shape[1] * variance) ** -0.5
    split = torch.arange(len(score)) % len(basis)
    spread = 5 * torch.rand(variance.shape, generator=torch.Generator().manual_seed(6)).to(variance)
    return Evidence(score * length[split], basis * length[:, None], split, spread + 0.1)


# --- one pass, once more, without the package ---------------------------------------------------


def plain_pass(generator, given, row, settings, basis, variance, score, spread):
    """One picture; what the responses say about z comes as Gaussians."""
    z, c, noise = given.z[row], given.c[row], given.noise[row]
    target = {name: value[row] for name, value in given.target.items()}
    steps, stride, alphas = plain_schedule(generator, settings)
    empty = generator.empty
    n_guided = settings.n_guided_steps or max(1, sum(alphas[step] < 1 / 1.2 for step in steps))
    x = alphas[steps[0]].sqrt() * z + (1 - alphas[steps[0]]).sqrt() * noise
    for number, step in enumerate(steps):
        a = alphas[step]
        following = alphas[step - stride] if step >= stride else alphas[0]

        def clean_of(x, step=step, a=a):
            without = generator.unet(x, step, empty).sample
            v = without + settings.guidance_scale * (generator.unet(x, step, c).sample - without)
            return a.sqrt() * x - (1 - a).sqrt() * v

        def seen_by_the_loss(x, step=step, a=a, clean_of=clean_of):
            if settings.gradient_through == "both":
                return clean_of(x)
            return a.sqrt() * x - (1 - a).sqrt() * generator.unet(x, step, c).sample

        guided = number < n_guided and number % settings.guide_every == 0
        for _ in range(settings.gradient_steps * guided):
            x = x.detach().requires_grad_(True)
            clean = seen_by_the_loss(x)
            if settings.gradient_decoder == "tiny":
                rgb = generator.tiny.decode(clean).sample
            else:
                rgb = generator.vae.decode(clean / generator.vae.config.scaling_factor).sample
            g = torch.autograd.grad(plain_loss(generator, rgb, target), x)[0]
            open_ = ((1 - a) / a) / (1 + (1 - a) / a)
            length = settings.step_size / settings.gradient_steps * open_.sqrt()
            x = x.detach() - length * g / g.square().mean().sqrt()
        with torch.no_grad():
            clean = clean_of(x)
        if guided:
            s2 = (1 - a) / a
            flat = clean.flatten().clone()
            for k in range(score.shape[1]):
                u = basis[0, :, k]
                known = s2 * spread[0, k] / (s2 + spread[0, k])
                share = known / (known + variance[0, k] / settings.z_evidence_weight)
                flat += share * (score[row][0, k] - clean.flatten() @ u) * u
            clean = flat.view_as(clean)
        eps = (x - a.sqrt() * clean) / (1 - a).sqrt()
        x = following.sqrt() * clean + (1 - following).sqrt() * eps
    return generator.vae.decode(x / generator.vae.config.scaling_factor).sample


# The last step of three is not guided, and of two with little noise the first alone is.
CHANGES = [{}, {"n_guided_steps": 3}, {"n_steps": 8, "guide_every": 2, "gradient_through": "both"}]
CHANGES += [{"n_guided_steps": 1, "gradient_decoder": "tiny"}, {"n_steps": 9, "strength": 0.2}]


@pytest.mark.parametrize("changes", CHANGES)
def test_the_guided_pass_is_that_of_a_plain_transcription(tiny_models, changes):
    generator = load_generator(tiny_models, "cpu", torch.float64)
    said = gaussians(n=2)
    given = inputs(generator, n=2)._replace(z_evidence=as_evidence(*said))
    settings = dataclasses.replace(QUICK, step_size=0.5, z_evidence_weight=2.0, **changes)
    found = stage2(generator, given, settings)
    assert len(found.iterates) == 1 + changes.get("n_guided_steps", 2 - ("strength" in changes))
    row = slice(1, 2)
    wanted = plain_pass(generator, given, row, settings, *said, given.z_evidence.spread)
    assert (found.pictures[row] - wanted).norm() < 1e-5 * wanted.norm()


def test_the_loss_ends_below_that_of_stage_1(generator, tmp_path):
    arrays = decoded(generator)
    settings = dataclasses.replace(QUICK, step_size=0.6)
    path = reconstruct(generator, arrays, settings, tmp_path / "a")
    losses, iterates, pictures = read_trace(path)
    given = inputs(generator)
    first = to_pictures(stage1(generator, given.z, given.c, given.noise, settings))
    before = picture_losses(generator, arrays, first, settings, batch=2)
    assert (losses[:, -1].sum(1) < before.sum(1)).all()
    np.testing.assert_array_equal(iterates[:, -1], pictures)
    # Grey levels are rounded in the file.
    again = picture_losses(generator, arrays, pictures, settings)
    np.testing.assert_allclose(again, losses[:, -1], rtol=0.02)


def test_batch_and_order_change_nothing_but_rounding(generator):
    z, c, target, noise, _ = inputs(generator)
    said = as_evidence(*(value.float() for value in gaussians(n_splits=2)))
    settings = dataclasses.replace(QUICK, z_evidence_weight=1.0)
    given = inputs(generator)._replace(z_evidence=said)
    whole = stage2(generator, given, settings).pictures
    rows = [2, 1]
    part = {name: value[rows] for name, value in target.items()}
    about = said._replace(value=said.value[rows], split=said.split[rows])
    given = given._replace(z=z[rows], c=c[rows], target=part, noise=noise[rows], z_evidence=about)
    found = stage2(generator, given, settings).pictures
    torch.testing.assert_close(found, whole[rows], rtol=0, atol=1e-4)


# --- what the responses say about z -------------------------------------------------------------


def test_evidence_enters_by_bayes_rule_for_gaussians():
    """Against the posterior mean written with whole covariance matrices."""
    basis, variance, score = gaussians(n=2, n_values=32, n_splits=2)
    said = as_evidence(basis, variance, score)
    z = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    found = add_z_evidence(z, said, 1.7, 1.0)
    for row in range(2):
        u, lam = basis[row], said.spread[row]
        prior = u @ torch.diag(1.7 * lam / (1.7 + lam)) @ u.T
        gain = prior @ u @ torch.linalg.inv(u.T @ prior @ u + torch.diag(variance[row]))
        flat = z[row].flatten()
        wanted = flat + gain @ (score[row] - u.T @ flat)
        torch.testing.assert_close(found[row].flatten(), wanted, rtol=0, atol=1e-5)


def test_what_a_decoder_says_moves_z_and_components_without_reliability_do_not():
    """Component k is said to be s / R² above the mean, with variance λ (1 - R²) / R²."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((32, 4)))[0].astype(np.float32)
    spread = np.array([4, 3, 2, 1], np.float32)
    components = PrincipalComponents(4)
    components.mean_, components.components_ = rng.standard_normal(32).astype("f4"), basis.T
    components.explained_variance_ = spread
    r2, scores = np.array([0.5, 0.0, 0.2, -0.3]), rng.standard_normal((2, 4)).astype(np.float32)
    projection, value = evidence(components, scores, r2)
    split, spread = torch.zeros(2).long(), torch.from_numpy(spread)[None]
    held = Evidence(torch.from_numpy(value), torch.from_numpy(projection)[None], split, spread)
    z = rng.standard_normal((2, 32)).astype(np.float32)
    found = add_z_evidence(torch.from_numpy(z.reshape(2, 2, 4, 4)), held, 1.0, 1.0).flatten(1)
    moved = (found.numpy() - z) @ basis
    for k, variance in ((0, 4.0), (2, 8.0)):
        known = components.explained_variance_[k] / (1 + components.explained_variance_[k])
        said = scores[:, k] / r2[k] + components.mean_ @ basis[:, k]
        wanted = known / (known + variance) * (said - z @ basis[:, k])
        np.testing.assert_allclose(moved[:, k], wanted, rtol=1e-3, atol=1e-5)
    assert (np.abs(moved[:, [1, 3]]) < 1e-5).all()


# --- pictures that go astray --------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["guided", "algorithm_1"])
def test_a_picture_without_a_number_falls_back_and_leaves_the_others(generator, tmp_path, solver):
    settings = dataclasses.replace(QUICK, solver=solver, iterations=2, learning_rate=0.1)
    arrays = decoded(generator)
    whole = read_pictures(reconstruct(generator, arrays, settings, tmp_path / "whole.h5"))
    arrays["block_1"] = arrays["block_1"].copy()
    arrays["block_1"][1, 0, :3] = 1e30  # its square is beyond float32
    path = reconstruct(generator, arrays, settings, tmp_path / "astray.h5")
    assert read_hdf5(path)["failed"].tolist() == [False, True, False]
    np.testing.assert_array_equal(read_pictures(path)[[0, 2]], whole[[0, 2]])


def test_what_fails_falls_back_to_the_best_iterate():
    iterates = [torch.full((3, 3, 2, 2), float(k)) for k in range(3)]
    losses = torch.tensor([[1.0, 0.5, 2.1], [1.0, 0.5, 1.9], [1.0, 0.5, 0.4]])[..., None].unbind(1)
    iterates[2][2, 0, 1, 1] = torch.inf  # a pixel of which the loss knows nothing: it is cut off
    found = choose_iterates(iterates, losses)
    assert found.failed.tolist() == [True, False, True]
    assert found.pictures[:, 0, 0, 0].tolist() == [1.0, 2.0, 1.0]


def test_nothing_finite_at_all_is_grey_and_flagged():
    iterates = [torch.full((1, 3, 2, 2), torch.nan)] * 2
    losses = [torch.full((1, 6), torch.nan)] * 2
    found = choose_iterates(iterates, losses)
    assert found.failed.all() and torch.equal(found.pictures, torch.zeros(1, 3, 2, 2))
