"""The guided pass against a plain transcription; what the responses say about z; going astray."""

import dataclasses

import numpy as np
import pytest
import torch
from test_reconstruction import decoded, inputs, plain_structure

from minddiff_utils.decoding.components import PrincipalComponents, evidence
from minddiff_utils.io import InputError
from minddiff_utils.models.stable_diffusion import load_generator, to_pictures
from minddiff_utils.reconstruction import stages as reconstruction
from minddiff_utils.reconstruction.guided_sampling import add_z_evidence, follow
from minddiff_utils.reconstruction.losses import Belief, Evidence, belief_from
from minddiff_utils.reconstruction.stages import (
    picture_losses,
    read_failed,
    read_pictures,
    read_trace,
    reconstruct,
    stage1,
    stage2,
)
from minddiff_utils.settings import Settings

QUICK = Settings(
    n_steps=5, strength=0.6, guidance_scale=2.0, structure_target="values", z_evidence_weight=0.0
)
N = 3


@pytest.fixture(scope="module")
def generator(tiny_models):
    return load_generator(tiny_models, "cpu")


def some_belief(n=N, n_values=1024, n_components=6, n_splits=1):
    source = torch.Generator().manual_seed(5)
    basis = torch.stack(
        [
            torch.linalg.qr(torch.randn(n_values, n_components, generator=source))[0]
            for _ in range(n_splits)
        ]
    )
    variance = torch.rand(n_splits, n_components, generator=source) + 0.1
    spread = 5 * torch.rand(n_splits, n_components, generator=source) + 0.1
    value = 3 * torch.randn(n, n_components, generator=source)
    return Belief(value, basis, variance, spread, torch.arange(n) % n_splits)


# --- one pass, once more, without the package ---------------------------------------------------


def plain_loss(generator, rgb, target):
    total, inverse = 0, [1 / torch.nan_to_num(v).norm() for v in target.values()]
    for k, (found, value) in enumerate(
        zip(plain_structure(generator, rgb), target.values(), strict=True)
    ):
        kept = torch.isfinite(value)
        weight = (1.5, 1.2, 1, 1, 1, 1)[k] * inverse[k] / sum(inverse)
        total = total + weight * (found[kept] - value[kept]).square().mean()
    return total


def plain_pass(generator, z, c, target, belief, noise, settings):
    """One picture."""
    alphas = generator.scheduler.alphas_cumprod
    stride = 1000 // settings.n_steps
    steps = [k * stride + 1 for k in range(round(settings.n_steps * settings.strength))][::-1]
    empty = generator.empty_condition()
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

        guided = number % settings.guide_every == 0
        for _ in range(settings.gradient_steps * guided):
            x = x.detach().requires_grad_(True)
            clean = seen_by_the_loss(x) / generator.vae.config.scaling_factor
            rgb = generator.vae.decode(clean).sample
            g = torch.autograd.grad(plain_loss(generator, rgb, target), x)[0]
            open_ = ((1 - a) / a) / (1 + (1 - a) / a)
            length = settings.step_size / settings.gradient_steps * open_.sqrt()
            x = x.detach() - length * g / g.square().mean().sqrt()
        with torch.no_grad():
            clean = clean_of(x)
        if guided:
            s2 = (1 - a) / a
            flat = clean.flatten().clone()
            for k in range(belief.value.shape[1]):
                u = belief.basis[0, :, k]
                known = s2 * belief.spread[0, k] / (s2 + belief.spread[0, k])
                share = known / (known + belief.variance[0, k] / settings.z_evidence_weight)
                flat += share * (belief.value[0, k] - clean.flatten() @ u) * u
            clean = flat.view_as(clean)
        eps = (x - a.sqrt() * clean) / (1 - a).sqrt()
        x = following.sqrt() * clean + (1 - following).sqrt() * eps
    return generator.vae.decode(x / generator.vae.config.scaling_factor).sample


@pytest.mark.parametrize(
    ("guide_every", "gradient_through"), [(1, "text"), (2, "text"), (1, "both")]
)
def test_the_guided_pass_is_that_of_a_plain_transcription(
    tiny_models, guide_every, gradient_through
):
    generator = load_generator(tiny_models, "cpu", torch.float64)
    z, c, target, noise = inputs(generator)
    belief = some_belief()
    belief = belief._replace(value=belief.value.double(), basis=belief.basis.double())
    settings = dataclasses.replace(
        QUICK,
        step_size=0.5,
        z_evidence_weight=2.0,
        guide_every=guide_every,
        gradient_through=gradient_through,
    )
    found = stage2(generator, z, c, target, noise, settings, belief)
    assert len(found.iterates) == len(range(0, 3, guide_every)) + 1
    for i in range(N):
        row = slice(i, i + 1)
        part = {name: value[row] for name, value in target.items()}
        alone = belief._replace(value=belief.value[row])
        wanted = plain_pass(generator, z[row], c[row], part, alone, noise[row], settings)
        difference = (found.pictures[row] - wanted).norm() / wanted.norm()
        assert float(difference) < 1e-5


def test_without_reach_and_pull_the_pass_is_stage_1(generator):
    z, c, target, noise = inputs(generator)
    found = stage2(generator, z, c, target, noise, dataclasses.replace(QUICK, step_size=0.0))
    torch.testing.assert_close(
        found.pictures, stage1(generator, z, c, noise, QUICK), rtol=0, atol=1e-4
    )


def test_the_loss_ends_below_that_of_stage_1(generator, tmp_path):
    arrays = decoded(generator)
    settings = dataclasses.replace(QUICK, step_size=0.6)
    losses, films, pictures = read_trace(reconstruct(generator, arrays, settings, tmp_path / "a"))
    z, c, _, noise = inputs(generator)
    first = to_pictures(stage1(generator, z, c, noise, settings))
    before = picture_losses(generator, arrays, first, settings, batch=2)
    assert (losses[:, -1].sum(1) < before.sum(1)).all()
    np.testing.assert_array_equal(films[:, -1], pictures)
    # Grey levels are rounded in the file.
    np.testing.assert_allclose(
        picture_losses(generator, arrays, pictures, settings), losses[:, -1], rtol=0.02
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_batch_and_order_change_nothing_but_rounding(generator, batch):
    z, c, target, noise = inputs(generator)
    belief = some_belief()
    settings = dataclasses.replace(QUICK, z_evidence_weight=1.0)
    whole = stage2(generator, z, c, target, noise, settings, belief).pictures
    for rows in ([2, 0], [1])[:: (1, -1)[batch == 1]]:
        part = {name: value[rows] for name, value in target.items()}
        about = belief._replace(value=belief.value[rows], split=belief.split[rows])
        found = stage2(generator, z[rows], c[rows], part, noise[rows], settings, about).pictures
        torch.testing.assert_close(found, whole[rows], rtol=0, atol=1e-4)


def test_a_look_moves_every_picture_by_its_reach(generator):
    z, _, _, _ = inputs(generator)
    settings = dataclasses.replace(QUICK, step_size=0.4, gradient_steps=1)

    def loss_of(pictures):
        scale = torch.tensor([1.0, 1e3, 1e-3]).view(-1, 1)
        return scale * pictures.square().flatten(1).mean(1, keepdim=True)

    moved, _, _ = follow(generator, z, lambda z_t: z_t, loss_of, 3.0, settings)
    length = (moved - z).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(length, torch.full((N,), 0.4 * (3 / 4) ** 0.5))


# --- what the responses say about z -------------------------------------------------------------


def test_pull_is_bayes_rule_for_gaussians():
    """Against the posterior mean written with whole covariance matrices."""
    belief = some_belief(n=2, n_values=32, n_splits=2)
    z = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    found = add_z_evidence(z, belief, 1.7, 1.0)
    for row in range(2):
        u, lam = belief.basis[row].double(), belief.spread[row].double()
        prior = u @ torch.diag(1.7 * lam / (1.7 + lam)) @ u.T
        noise = torch.diag(belief.variance[row].double())
        gain = prior @ u @ torch.linalg.inv(u.T @ prior @ u + noise)
        flat = z[row].flatten().double()
        wanted = flat + gain @ (belief.value[row].double() - u.T @ flat)
        torch.testing.assert_close(found[row].flatten().double(), wanted, rtol=0, atol=1e-5)


def test_components_that_say_nothing_do_not_pull(generator):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((32, 4)))[0].astype(np.float32)
    components = PrincipalComponents(4)
    components.mean_, components.components_ = rng.standard_normal(32).astype("f4"), basis.T
    components.explained_variance_ = np.array([4, 3, 2, 1], np.float32)
    r2 = np.array([0.5, 0.0, 0.2, -0.3])
    scores = rng.standard_normal((2, 4)).astype(np.float32)
    projection, value = evidence(components, scores, r2)
    held = Evidence(
        torch.from_numpy(value), torch.from_numpy(projection)[None], torch.zeros(2).long()
    )
    belief = belief_from(held, torch.from_numpy(components.explained_variance_)[None])
    np.testing.assert_allclose(belief.variance[0, [0, 2]], [4.0, 8.0], rtol=1e-5)
    assert torch.isinf(belief.variance[0, [1, 3]]).all()
    np.testing.assert_allclose(belief.basis[0, :, [0, 2]], basis[:, [0, 2]], atol=1e-6)
    wanted = scores[:, [0, 2]] / r2[[0, 2]] + (components.mean_ @ basis)[[0, 2]]
    np.testing.assert_allclose(belief.value[:, [0, 2]], wanted, rtol=1e-4)
    z = torch.from_numpy(rng.standard_normal((2, 2, 4, 4)).astype(np.float32))
    moved = (add_z_evidence(z, belief, 1.0, 1.0) - z).flatten(1) @ torch.from_numpy(basis)
    assert (moved[:, [1, 3]].abs() < 1e-5).all() and (moved[:, [0, 2]].abs() > 1e-3).all()


def test_lack_of_evidence_about_z_is_named(generator, tmp_path):
    settings = dataclasses.replace(QUICK, z_evidence_weight=1.0)
    with pytest.raises(
        InputError, match="no evidence_z.*run 02_decoding again, or set z_evidence_weight=0"
    ):
        reconstruct(generator, decoded(generator), settings, tmp_path / "a.h5")


# --- pictures that go astray --------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["guided", "algorithm_1"])
def test_a_picture_without_a_number_falls_back_and_leaves_the_others(generator, tmp_path, solver):
    settings = dataclasses.replace(QUICK, solver=solver, iterations=2, learning_rate=0.1)
    arrays = decoded(generator)
    whole = read_pictures(reconstruct(generator, arrays, settings, tmp_path / "whole.h5"))
    arrays["block_1"] = arrays["block_1"].copy()
    arrays["block_1"][1, 0, :3] = 1e30  # its square is beyond float32
    path = reconstruct(generator, arrays, settings, tmp_path / "astray.h5")
    np.testing.assert_array_equal(read_failed(path), [False, True, False])
    np.testing.assert_array_equal(read_pictures(path)[[0, 2]], whole[[0, 2]])


def test_what_fails_falls_back_to_the_best_iterate():
    iterates = [torch.full((3, 3, 2, 2), float(k)) for k in range(3)]
    losses = torch.tensor([[1.0, 0.5, 2.1], [1.0, 0.5, 1.9], [1.0, 0.5, 0.4]])[..., None].unbind(1)
    iterates[2][2, 0, 1, 1] = torch.inf  # a pixel of which the loss knows nothing: it is cut off
    found = reconstruction._finished(torch.zeros(3), torch.zeros(3), iterates, list(losses))
    assert found.failed.tolist() == [True, False, True]
    assert found.pictures[:, 0, 0, 0].tolist() == [1.0, 2.0, 1.0]


def test_nothing_finite_at_all_is_grey_and_flagged():
    iterates = [torch.full((1, 3, 2, 2), torch.nan)] * 2
    losses = [torch.full((1, 6), torch.nan)] * 2
    found = reconstruction._finished(torch.zeros(1), torch.zeros(1), iterates, losses)
    assert found.failed.all() and torch.equal(found.pictures, torch.zeros(1, 3, 2, 2))
