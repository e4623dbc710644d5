"""Both stages against a plain transcription of Algorithm 1; resuming; the file of pictures."""

import dataclasses

import h5py
import numpy as np
import pytest
import torch
from builders import assert_same, counted, read_hdf5, refuses

from minddiff_utils.models.clip import to_pictures
from minddiff_utils.models.stable_diffusion import load_generator, noise_like
from minddiff_utils.reconstruction import Inputs, ablate, stage_inputs
from minddiff_utils.reconstruction import stage2 as module
from minddiff_utils.reconstruction.losses import Evidence, evidence_loss, structure_loss
from minddiff_utils.reconstruction.results import check_inputs, read_pictures, read_trace
from minddiff_utils.reconstruction.stage1 import reconstruct_stage1, stage1
from minddiff_utils.reconstruction.stage2 import reconstruct, stage2
from minddiff_utils.settings import Settings

PAPERS = {"solver": "algorithm_1", "structure_target": "values", "iterations": 2}
QUICK = Settings(n_steps=3, strength=0.7, guidance_scale=2.0, learning_rate=0.1, **PAPERS)
N = 3


def inputs(generator, n=N, seed=0):
    """Latents, conditions and a target that has holes."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=source).to(generator.dtype)

    z, c = draw(n, 4, 16, 16), draw(n, generator.n_tokens, 128)
    with torch.no_grad():
        target = generator.guide.structure(draw(n, 3, 64, 64) / 2, range(1, 7))
    del target["embedding"]
    for number, values in enumerate(target.values()):
        values += 0.1 * draw(*values.shape)
        values.reshape(n, -1)[:, number::3] = torch.nan
    return Inputs(z, c, target, noise_like(z, 0, range(n)))


def decoded(generator, n=N):
    """The same as arrays, as a decoder leaves them."""
    z, c, target, *_ = inputs(generator, n)
    arrays = {name: value.float().numpy() for name, value in {"z": z, "c": c, **target}.items()}
    return {**arrays, "stimulus_id": np.arange(n)}


# --- Algorithm 1, once more, without the package --------------------------------------------------


def plain_schedule(generator, settings):
    """The steps from the first to the last, how far apart they are, and the levels of all."""
    stride = 1000 // settings.n_steps
    steps = [k * stride + 1 for k in range(round(settings.n_steps * settings.strength))][::-1]
    return steps, stride, generator.scheduler.alphas_cumprod


def plain_picture(generator, z, c, noise, settings):
    """Noise, denoise with DDIM and guidance, decode: closed forms for a model of velocity."""
    steps, stride, alphas = plain_schedule(generator, settings)
    empty = generator.empty
    a = alphas[steps[0]]
    z = a.sqrt() * z + (1 - a).sqrt() * noise
    for step in steps:
        a = alphas[step]
        before = alphas[step - stride] if step >= stride else alphas[0]
        without = generator.unet(z, step, empty).sample
        v = without + settings.guidance_scale * (generator.unet(z, step, c).sample - without)
        clean, eps = a.sqrt() * z - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * z
        z = before.sqrt() * clean + (1 - before).sqrt() * eps
    return generator.vae.decode(z / generator.vae.config.scaling_factor).sample


def plain_structure(generator, rgb):
    """The MLP outputs of vision blocks 1 to 6, layer after layer."""
    tower = generator.guide.model.vision_model
    mean, deviation = generator.guide.mean.to(rgb), generator.guide.deviation.to(rgb)
    h = tower.pre_layrnorm(tower.embeddings(((rgb.clamp(-1, 1) + 1) / 2 - mean) / deviation))
    found = []
    for layer in tower.encoder.layers[:6]:
        h = h + layer.self_attn(layer.layer_norm1(h), attention_mask=None)[0]
        found.append(layer.mlp(layer.layer_norm2(h)))
        h = h + found[-1]
    return found


def plain_loss(generator, rgb, target):
    kept = [value[torch.isfinite(value)] for value in target.values()]
    inverse = [1 / value.norm() for value in kept]
    extra = [1.5, 1.2, 1, 1, 1, 1]
    total, structure = 0, plain_structure(generator, rgb)
    for k, (found, value) in enumerate(zip(structure, target.values(), strict=True)):
        weight = extra[k] * inverse[k] / sum(inverse)
        total = total + weight * (found[torch.isfinite(value)] - kept[k]).square().mean()
    return total


def plain_stage2(generator, z, c, target, noise, settings):
    """One picture; Adam written out."""
    values = {"z": z.clone(), "c": c.clone()}
    losses, names = [], settings.optimise
    first, second = ({name: torch.zeros_like(values[name]) for name in names} for _ in range(2))
    for k in range(settings.iterations):
        values = {name: value.detach().requires_grad_(True) for name, value in values.items()}
        rgb = plain_picture(generator, values["z"], values["c"], noise, settings)
        loss = plain_loss(generator, rgb, target)
        losses.append(loss.item())
        rate = settings.learning_rate * settings.learning_rate_decay**k
        gradients = torch.autograd.grad(loss, [values[name] for name in names])
        for name, g in zip(names, gradients, strict=True):
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            m, v = first[name] / (1 - 0.9 ** (k + 1)), second[name] / (1 - 0.999 ** (k + 1))
            values[name] = values[name].detach() - rate * m / (v.sqrt() + 1e-8)
    with torch.no_grad():
        rgb = plain_picture(generator, values["z"], values["c"], noise, settings)
        losses.append(plain_loss(generator, rgb, target).item())
    return rgb, losses


CASES = [(torch.float64, "zc", 1e-5), (torch.float32, "z", 1e-4), (torch.float32, "c", 1e-4)]


@pytest.mark.parametrize(("dtype", "optimise", "tolerance"), CASES)
def test_stage2_is_algorithm_1(tiny_models, dtype, optimise, tolerance):
    generator = load_generator(tiny_models, "cpu", dtype)
    given = inputs(generator, n=2)
    before = given.z.clone(), given.c.clone()
    settings = dataclasses.replace(QUICK, iterations=2, learning_rate_decay=0.9, optimise=optimise)
    found = stage2(generator, given, settings)
    part = {name: value[1:] for name, value in given.target.items()}
    z, c, noise = given.z[1:], given.c[1:], given.noise[1:]
    picture, losses = plain_stage2(generator, z, c, part, noise, settings)
    assert (found.pictures[1:] - picture).norm() <= tolerance * picture.norm()
    np.testing.assert_allclose(found.losses[1].sum(1), losses, rtol=tolerance)
    assert torch.equal(given.z, before[0]) and torch.equal(given.c, before[1])


# --- the loss on small numbers --------------------------------------------------------------------


def test_gradient_ignores_holes():
    target = {"block_1": torch.tensor([[1.0, torch.nan]])}
    found = {"block_1": torch.tensor([[3.0, torch.inf]], requires_grad=True)}
    structure_loss(found, target).sum().backward()
    np.testing.assert_array_equal(found["block_1"].grad, [[6.0, 0.0]])


# --- evidence -------------------------------------------------------------------------------------


def evidence_of(generator, n=N, n_splits=2, n_components=4, seed=3):
    """Two blocks' evidence for pictures of different splits, and structure to compare with it."""
    source = torch.Generator().manual_seed(seed)
    target = inputs(generator, n).target
    found, evidence = {}, {}
    for name in ("block_1", "block_2"):
        found[name] = torch.nan_to_num(target[name])
        size = found[name][0].numel()
        evidence[name] = Evidence(
            torch.randn(n, n_components, generator=source).to(generator.dtype),
            torch.randn(n_splits, size, n_components, generator=source).to(generator.dtype) / 100,
            torch.arange(n) % n_splits,
            torch.ones(n_splits, n_components),
        )
    return found, evidence


def test_evidence_loss_is_that_of_a_plain_loop(generator):
    found, evidence = evidence_of(generator)
    loss = evidence_loss(found, evidence)
    assert loss.shape == (N, 2)
    for row in range(N):
        for k, (name, weight) in enumerate([("block_1", 1.5 / 2.7), ("block_2", 1.2 / 2.7)]):
            value, projection, split, _ = evidence[name]
            total = 0.0
            for j in range(value.shape[1]):
                column = projection[split[row], :, j]
                total += float((found[name][row].flatten() @ column - value[row, j]) ** 2)
            assert float(loss[row, k]) == pytest.approx(weight * total, rel=1e-4)


def arrays_with_evidence(generator):
    _, evidence = evidence_of(generator)
    arrays = {name: values for name, values in decoded(generator).items() if "block" not in name}
    for number in (1, 2):
        part = evidence[f"block_{number}"]
        arrays[f"block_{number}"] = decoded(generator)[f"block_{number}"]
        arrays[f"evidence_{number}"] = part.value.numpy()
        arrays[f"projection_{number}"] = part.projection.numpy()
        arrays[f"variance_{number}"] = part.spread.numpy()
    return {**arrays, "split": part.split.numpy()}


def test_stage2_fits_the_evidence_of_each_pictures_own_split(generator, tmp_path):
    arrays = arrays_with_evidence(generator)
    settings = dataclasses.replace(QUICK, structure_target="components", optimise="z")
    whole = read_trace(reconstruct(generator, arrays, settings, tmp_path / "a.h5", batch=N))
    alone = read_trace(reconstruct(generator, arrays, settings, tmp_path / "b.h5", batch=1))
    assert whole[0].shape == (N, 3, 2)
    assert (whole[0].sum(2)[:, -1] < whole[0].sum(2)[:, 0]).all()
    np.testing.assert_allclose(whole[0], alone[0], rtol=1e-3)
    z, c = (torch.from_numpy(arrays[name]) for name in "zc")
    first = stage1(generator, z, c, noise_like(z, 0, range(N)), settings)
    with torch.no_grad():
        found = generator.guide.structure(first, [1, 2])
    wanted = evidence_loss(found, evidence_of(generator)[1])
    np.testing.assert_allclose(whole[0][:, 0], wanted, rtol=1e-3)


# --- a whole recording ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(generator, tmp_path_factory):
    """All pictures in one batch, run without a stop."""
    path = tmp_path_factory.mktemp("whole") / "trace.h5"
    return reconstruct(generator, decoded(generator), QUICK, path, batch=N, n_kept=2)


def content(path):
    """Datasets and attributes."""
    with h5py.File(path) as file:
        return read_hdf5(path), dict(file.attrs)


def test_result_has_its_shapes_and_begins_with_stage_1(generator, whole, tmp_path):
    losses, iterates, pictures = read_trace(whole)
    assert losses.shape == (N, 3, 6) and iterates.shape == (2, 3, 64, 64, 3)
    assert pictures.shape == (N, 64, 64, 3) and pictures.dtype == np.uint8
    assert (losses.sum(2)[:, -1] < losses.sum(2)[:, 0]).all()
    np.testing.assert_array_equal(iterates[:, -1], pictures[:2])
    assert not whole.with_name("trace.h5.partial").exists()
    path = reconstruct_stage1(generator, decoded(generator), QUICK, tmp_path / "a.h5", batch=N)
    np.testing.assert_array_equal(read_pictures(path)[:2], iterates[:, 0])
    z, c, _, noise, _ = inputs(generator)
    first = to_pictures(stage1(generator, z, c, noise, QUICK))
    np.testing.assert_array_equal(read_pictures(path), first)


def test_batch_and_order_change_nothing_but_rounding(generator, whole, tmp_path):
    arrays, order = decoded(generator), [2, 0, 1]
    given = {name: values[order] for name, values in arrays.items()}
    path = reconstruct(generator, given, QUICK, tmp_path / "t.h5", batch=2, n_kept=N)
    found, wanted = read_trace(path), read_trace(whole)
    assert np.abs(found[2].astype(int) - wanted[2][order]).max() <= 1
    np.testing.assert_allclose(found[0], wanted[0][order], atol=1e-4)


def test_a_file_made_from_other_features_is_named_with_its_chapter(generator, whole):
    given = decoded(generator)
    check_inputs(whole, given, "04_stage2")
    swapped = {**given, "z": given["z"][[1, 0, 2]]}
    said = r"trace.h5 was made from other .*\. Run 04_stage2 again"
    refuses(said, check_inputs, whole, swapped, "04_stage2")


def test_stopped_run_goes_on_with_the_same_result(generator, tmp_path, monkeypatch):
    given = decoded(generator)
    quick = dataclasses.replace(QUICK, iterations=0)
    straight = reconstruct(generator, given, quick, tmp_path / "straight.h5", batch=1, n_kept=2)
    path = tmp_path / "stopped.h5"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, module, "stage2_rows", 1)
        reconstruct(generator, given, quick, path, batch=1, n_kept=2)
    assert not path.exists() and path.with_name("stopped.h5.partial").exists()
    computed = counted(monkeypatch, module, "stage2_rows")
    reconstruct(generator, given, quick, path, batch=1, n_kept=2)
    assert [rows.start for *_, rows in computed] == [1, 2]
    assert_same(read_hdf5(path), read_hdf5(straight))


@pytest.mark.parametrize("change", ["settings", "seed", "inputs", "damage"])
def test_what_another_run_left_is_not_taken_over(generator, tmp_path, monkeypatch, change):
    given, path = decoded(generator), tmp_path / "trace.h5"
    quick = dataclasses.replace(QUICK, iterations=0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, module, "stage2_rows", 1)
        reconstruct(generator, given, quick, path, batch=1)
    if change == "damage":
        partial = path.with_name("trace.h5.partial")
        partial.write_bytes(partial.read_bytes()[:100])
    settings = dataclasses.replace(quick, guidance_scale=1.5) if change == "settings" else quick
    if change == "inputs":
        given = {**given, "c": given["c"] + 1}
    computed = counted(monkeypatch, module, "stage2_rows")
    reconstruct(generator, given, settings, path, batch=1, seed=int(change == "seed"))
    assert [rows.start for *_, rows in computed] == [0, 1, 2]


# --- ablations and the file of pictures -----------------------------------------------------------


def test_without_z_the_picture_begins_from_noise_and_passes_as_many_steps(generator):
    given = decoded(generator)
    settings = Settings(n_steps=10, strength=0.6, iterations=0)
    changed, whole = ablate(generator, given, settings, "z")
    assert not changed["z"].any() and changed["z"].shape == given["z"].shape
    np.testing.assert_array_equal(changed["c"], given["c"])
    assert (whole.n_steps, whole.strength) == (6, 1.0)
    assert dataclasses.replace(whole, n_steps=10, strength=0.6, z_evidence_weight=1.0) == settings
    steps = generator.timesteps(whole.n_steps, whole.strength)
    assert len(steps) == len(generator.timesteps(10, 0.6))


def test_without_c_the_caption_is_empty(generator):
    given = decoded(generator)
    changed, settings = ablate(generator, given, QUICK, "c")
    assert settings == QUICK
    np.testing.assert_array_equal(changed["z"], given["z"])
    empty = generator.encode_captions([("",)])[0]
    for row in stage_inputs(generator, changed, slice(N), QUICK).c:
        torch.testing.assert_close(row, empty, rtol=0, atol=0)
