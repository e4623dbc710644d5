"""The generator against diffusers, transformers and finite differences."""

import shutil

import numpy as np
import pytest
import torch
from builders import refuses
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from oracles import img2img, pixels_by_pillow, structure_by_hooks
from safetensors import torch as safetensors
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionModelWithProjection,
)

from minddiff_utils.models.clip import load_clip, to_pictures, to_rgb
from minddiff_utils.models.stable_diffusion import load_generator, noise_like
from minddiff_utils.phantom import world
from studies import architecture

IDS = (3, 7)


@pytest.fixture(scope="module")
def exact(tiny_models):
    """The same models in float64, for finite differences."""
    return load_generator(tiny_models, "cpu", torch.float64)


@pytest.fixture(scope="module")
def pictures():
    return np.stack([world.picture(i) for i in IDS])


@pytest.fixture(scope="module")
def captions():
    return [world.captions(i) for i in IDS]


def generate(generator, z, c, noise, n_steps=4, strength=0.5, guidance_scale=2.0, recompute=False):
    steps = generator.timesteps(n_steps, strength)
    z = generator.add_noise(z, noise, steps[:1])
    return generator.denoise(z, c, steps, guidance_scale, recompute)


# ------------------------------------------------------------------------------- against diffusers


HOW = [(10, 0.6, 2.0), (50, 0.1, 1.0), (4, 1.0, 3.0), (3, 0.4, 2.0)]


@pytest.mark.parametrize("how", HOW)  # steps, strength and guidance
def test_img2img_equals_the_pipeline_of_diffusers(generator, pictures, captions, how):
    z, c = generator.encode_pictures(pictures), generator.encode_captions(captions)
    seeds = [5 * 1_000_003 + i for i in IDS]
    theirs, pipeline = img2img(generator, z, c, seeds, *how)
    with torch.no_grad():
        ours = generate(generator, z, c, noise_like(z, 5, IDS), *how)
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    rgb = pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample
    decoded = pipeline.image_processor.postprocess(rgb, output_type="np")
    found = to_pictures(generator.decode(ours))
    assert np.abs(found - 255 * decoded).max() < 0.6


# ------------------------------------------------------------------------------------- the noise


def test_noise_depends_on_seed_and_stimulus_alone():
    z = torch.zeros(3, 4, 16, 16)
    noise = noise_like(z, 1, (5, 6, 7))
    torch.testing.assert_close(noise_like(z, 1, (7, 5, 6))[[1, 2, 0]], noise, rtol=0, atol=0)
    torch.testing.assert_close(noise_like(z[:1], 1, (6,)), noise[1:2], rtol=0, atol=0)
    torch.manual_seed(123)
    torch.testing.assert_close(noise_like(z, 1, np.array([5, 6, 7])), noise, rtol=0, atol=0)
    assert not torch.allclose(noise_like(z, 2, (5, 6, 7)), noise)
    assert not torch.allclose(noise[0], noise[1])
    double = noise_like(z.double(), 1, (5, 6, 7))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), noise, rtol=0, atol=0)


# ----------------------------------------------------------------------------------- text and z


def test_condition_is_the_mean_over_captions(generator):
    several = generator.encode_captions([("a red house", "one house , red"), ("a blue cat",)])
    single = generator.encode_captions([("a red house",), ("one house , red",), ("a blue cat",)])
    torch.testing.assert_close(several[0], single[:2].mean(0))
    torch.testing.assert_close(several[1], single[2])
    assert several.shape == (2, 32, 128)


def test_fingerprint_tells_models_apart_under_the_same_path(tiny_models, tmp_path):
    """Loading again changes nothing, use neither; one weight, one setting or one token does."""

    def fingerprint(**how):
        return load_generator(folder, "cpu", **how).fingerprint

    def flipped(content):
        weights = safetensors.load(content)
        name = max(weights, key=lambda name: weights[name].numel())
        weights[name] = weights[name].flip(0).contiguous()  # no sum tells it
        return safetensors.save(weights, {"format": "pt"})

    folder = shutil.copytree(tiny_models, tmp_path / "models")
    used = load_generator(folder, "cpu")
    used.encode_captions([("a red house",)])
    found = {fingerprint(), used.fingerprint}
    assert len(found) == 1
    for name, change in (
        ("stable_diffusion/vae/diffusion_pytorch_model.safetensors", flipped),
        ("clip_guide/model.safetensors", flipped),
        ("stable_diffusion/vae/config.json", lambda text: text.replace(b"0.18215", b"0.5")),
        (
            "stable_diffusion/scheduler/scheduler_config.json",
            lambda t: t.replace(b"0.012", b"0.02"),
        ),
    ):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(change(kept))
        found.add(fingerprint())
        (folder / name).write_bytes(kept)
    found |= {fingerprint(n_tokens=15), fingerprint(dtype="bfloat16")}
    found.add(fingerprint(save_memory="tiling"))
    assert len(found) == 8


# ----------------------------------------------------------------------------- against transformers


def reference_structure(folder, pictures):
    """Structure by transformers alone: its models, behind its own processor."""
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor(images=list(pictures), return_tensors="pt").pixel_values
    found = structure_by_hooks(CLIPModel.from_pretrained(folder).eval(), pixels)
    with torch.no_grad():
        embedder = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
        found["embedding"] = embedder(pixel_values=pixels).image_embeds
    return found


# The judge resizes; its processor rounds to 8 bits there, we cannot if it is to have a gradient.
@pytest.mark.parametrize("name, tolerance", [("clip_guide", 1e-5), ("clip_judge", 0.02)])
def test_structure_equals_hooks_on_the_model(tiny_models, pictures, name, tolerance):
    clip = load_clip(tiny_models / name, "cpu")
    theirs = reference_structure(tiny_models / name, pictures)
    ours = clip.structure(to_rgb(pictures, "cpu"), range(1, clip.n_blocks + 1))
    assert set(ours) == set(theirs) and clip.n_blocks >= 5
    for key, values in theirs.items():
        assert (ours[key] - values).norm() <= tolerance * values.norm(), key
    for order in (np.arange(len(pictures)), np.array([1, 0, 0])):
        wanted = torch.nn.functional.normalize(theirs["embedding"][order], dim=1).numpy()
        np.testing.assert_allclose(clip.embed(pictures[order], 2), wanted, atol=tolerance)


@pytest.mark.parametrize("size", [(64, 64), (425, 425), (90, 71), (49, 80)])
@pytest.mark.parametrize("name", ["clip_guide", "clip_judge"])
def test_preprocessing_is_pillows_without_its_rounding(tiny_models, name, size):
    """On noise, which no two filters resize alike: Pillow's bicubic in floating point."""
    clip = load_clip(tiny_models / name, "cpu")
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    settings = CLIPImageProcessorPil.from_pretrained(tiny_models / name)
    theirs = pixels_by_pillow(picture[None], settings.image_mean, settings.image_std, clip)
    ours = clip.preprocess(to_rgb(picture[None], "cpu"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


# ------------------------------------------------------------------------------------- gradients


def some_inputs(generator):
    source = torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, 16, 16, generator=source, dtype=torch.float64)
    c = torch.randn(2, generator.n_tokens, 128, generator=source, dtype=torch.float64)
    return z, c


def loss_of(generator, z, c, recompute=False):
    """A number at the far end of the chain: noise, denoise, decode, structure."""
    z_0 = generate(generator, z, c, noise_like(z, 0, IDS), recompute=recompute)
    found = generator.guide.structure(generator.decode(z_0), (1, 6))
    return sum((values.square() * weight(values)).sum() for values in found.values())


def weight(values):
    return torch.linspace(-1, 1, values.numel(), dtype=values.dtype).view_as(values)


def assert_gradient(loss, x):
    """The gradient is that of finite differences along some direction."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(x), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x)
    direction *= 1e-5 / direction.norm()
    with torch.no_grad():
        slope = (loss(x + direction) - loss(x - direction)) / 2
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-13)


def test_gradient_equals_finite_differences(exact):
    """Of z, and of c."""
    z, c = some_inputs(exact)
    assert_gradient(lambda value: loss_of(exact, value, c), z)
    assert_gradient(lambda value: loss_of(exact, z, value), c)


def test_gradient_passes_through_the_guides_own_resizing(tiny_models):
    """The guide's processor resizes 64 to 60 pixels here, as CLIP's does 512 to 224."""
    folder = str(tiny_models / "clip_judge")
    made = load_generator(tiny_models, "cpu", torch.float64, guide=folder)
    rgb = made.decode(some_inputs(made)[0][:1])
    assert_gradient(lambda x: (made.guide.structure(x, (1,))["block_1"] * 1e3).square().mean(), rgb)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def published(request, tmp_path_factory):
    """A folder with a miniature of Stable Diffusion 1.4, or of 2.1.

    2.1 has velocity, linear projections, heads block by block, another activation in the text
    encoder, whose last layer is missing, and "!" where a caption is shorter than it may be.
    """
    folder = tmp_path_factory.mktemp("published")
    pipeline = architecture.build_pipeline(small=True)
    if request.param == "v_prediction":
        small, text = architecture.SMALL, {**architecture.TEXT, **architecture.SMALL["text"]}
        heads = {"attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True}
        unet = {**architecture.UNET, **small["unet"], **heads, "upcast_attention": True}
        text |= {"num_hidden_layers": 3, "hidden_act": "gelu"}
        levels = {k: v for k, v in architecture.NOISE_LEVELS.items() if k != "skip_prk_steps"}
        torch.manual_seed(0)
        pipeline.unet = UNet2DConditionModel(**unet)
        pipeline.text_encoder = CLIPTextModel(CLIPTextConfig(**text))
        pipeline.tokenizer.pad_token = "!"
        levels |= {"clip_sample": False, "prediction_type": "v_prediction"}
        pipeline.scheduler = DDIMScheduler(**levels)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def both(published, tiny_models):
    """Our generator, and diffusers' img2img with DDIM, from the same published folder."""
    theirs = StableDiffusionImg2ImgPipeline.from_pretrained(published, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    return load_generator(published, "cpu", guide=str(tiny_models / "clip_guide")), theirs


def test_published_features_and_pictures_are_those_of_diffusers(both, pictures):
    ours, theirs = both
    texts = ["a dog", "two boats , and a red house"]
    c, empty = theirs.encode_prompt(texts, "cpu", 1, True)
    torch.testing.assert_close(ours.encode_captions([(text,) for text in texts]), c)
    torch.testing.assert_close(ours.empty, empty[:1])
    pictures = ours.resize(pictures)
    rgb = theirs.image_processor.preprocess(pictures / 255.0).float()
    with torch.no_grad():
        z = theirs.vae.encode(rgb).latent_dist.mode() * 0.18215
        torch.testing.assert_close(ours.encode_pictures(pictures), z, rtol=1e-4, atol=1e-4)
        painted = theirs.vae.decode(z / 0.18215).sample
        torch.testing.assert_close(ours.decode(z), painted, rtol=1e-4, atol=1e-4)


def test_published_model_equals_diffusers_from_the_caption_on(both):
    ours, theirs = both
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = theirs(
        prompt="a dog", image=z, strength=0.6, num_inference_steps=10, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(2 * 1_000_003 + 7), output_type="latent",
    ).images  # fmt: skip
    c = ours.encode_captions([("a dog",)])
    with torch.no_grad():
        found = generate(ours, z, c, noise_like(z, 2, [7]), 10, 0.6, 5.0)
    assert (expected - z).norm() > 0.01 * z.norm()
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("n_steps", [1, 3, 9, 50, 142, 999])
def test_levels_are_those_of_diffusers_img2img(both, n_steps):
    ours, theirs = both
    for strength in (0.1, 0.5, 0.56, 0.7, 1.0):
        kept = max(1, round(n_steps * strength))
        theirs.scheduler.set_timesteps(n_steps)
        # Theirs rounds down.
        wanted, n = theirs.get_timesteps(n_steps, (kept + 0.5) / n_steps, "cpu")
        found = ours.timesteps(n_steps, strength)
        assert n == kept and found.tolist() == wanted.tolist()


# --------------------------------------------------------------------------- precision and memory


def test_bfloat16_leaves_latents_in_float32(generator, tiny_models, pictures, captions):
    """And gradients."""
    half = load_generator(tiny_models, "cpu", "bfloat16")
    assert half.compute_dtype == torch.bfloat16 and half.dtype == torch.float32
    assert half.guide.model.dtype == torch.bfloat16
    z, c = half.encode_pictures(pictures), half.encode_captions(captions)
    assert z.dtype == c.dtype == torch.float32
    exact = generator.encode_pictures(pictures), generator.encode_captions(captions)
    for found, wanted in zip((z, c), exact, strict=True):
        assert (found - wanted).norm() < 0.05 * wanted.norm()
    z, c = z.requires_grad_(True), c.requires_grad_(True)
    rgb = half.decode(generate(half, z, c, noise_like(z, 0, IDS)))
    found = half.guide.structure(rgb, (1, 2))
    gradients = torch.autograd.grad(sum(values.sum() for values in found.values()), (z, c))
    for values in (rgb, *found.values(), *gradients):
        assert values.dtype == torch.float32 and torch.isfinite(values).all()


@pytest.mark.parametrize("word", ["attention", "checkpointing"])
def test_saving_memory_changes_no_result(exact, tiny_models, word):
    thrifty = load_generator(tiny_models, "cpu", torch.float64, save_memory=word)
    z, c = (value.requires_grad_(True) for value in some_inputs(exact))
    losses = [loss_of(exact, z, c), loss_of(thrifty, z, c, recompute=True)]
    gradients = [torch.autograd.grad(loss, (z, c)) for loss in losses]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)


def test_tiles_are_smaller_than_the_picture_and_differentiable(exact, tiny_models):
    tiled = load_generator(tiny_models, "cpu", torch.float64, save_memory="tiling, checkpointing")
    z = some_inputs(exact)[0]
    picture = tiled.decode(z)
    assert picture.shape == exact.decode(z).shape
    assert not torch.allclose(picture, exact.decode(z))
    assert_gradient(lambda value: (tiled.decode(value) * weight(picture)).sum(), z)


# ------------------------------------------------------------------------------ pictures' own size


def test_pictures_of_another_size_are_resized_once_for_all_features(generator, pictures):
    large = np.repeat(np.repeat(pictures, 5, axis=1), 5, axis=2)  # 320 pixels a side
    prepared = generator.prepare(large)
    assert generator.size == 64 and prepared.shape == (2, 3, 64, 64)
    assert prepared.abs().max() <= 1
    assert (prepared - to_rgb(pictures, "cpu")).abs().mean() < 0.03
    both = map(generator.encode_pictures, (large, generator.resize(large)))
    torch.testing.assert_close(*both, rtol=0.1, atol=0.05)
    np.testing.assert_array_equal(generator.resize(large, batch=1), to_pictures(prepared))


# ------------------------------------------------------------------------------------- bad input


def without(source, target, missing):
    """A copy of a folder, in links, that lacks one part."""
    for path in source.rglob("*"):
        place = path.relative_to(source)
        if path.is_file() and missing not in (str(place), *map(str, place.parents)):
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            (target / place).symlink_to(path)
    return target


DAMAGES = [
    ("stable_diffusion/vae/diffusion_pytorch_model.safetensors", "truncated"),
    ("stable_diffusion/text_encoder/model.safetensors", "missing"),
    ("clip_guide/model.safetensors", "truncated"),
    ("clip_guide/preprocessor_config.json", "truncated"),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_missing_or_truncated_weights_are_one_clear_error(tiny_models, tmp_path, file, damage):
    folder = without(tiny_models, tmp_path, file)
    if damage == "truncated":
        (folder / file).write_bytes((tiny_models / file).read_bytes()[:100])
    refuses("Restore the folder", load_generator, folder, "cpu")
