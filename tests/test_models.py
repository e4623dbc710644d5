"""Shapes of the phantom's models, and that diffusers and transformers load what is saved."""

import json

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from minddiff_utils.phantom import models, world


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return CLIPTokenizer.from_pretrained(tiny_models / "clip_guide")


def test_pipeline_loads_with_diffusers_and_draws(tiny_models):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_models / "stable_diffusion")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red house", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)


def test_judge_is_not_the_guide(tiny_models):
    guide, judge = (
        CLIPModel.from_pretrained(tiny_models / f"clip_{n}") for n in ("guide", "judge")
    )
    for tower in ("vision_config", "text_config"):
        a, b = getattr(guide.config, tower), getattr(judge.config, tower)
        assert a.hidden_size != b.hidden_size and a.num_hidden_layers != b.num_hidden_layers
    assert guide.config.vision_config.patch_size == 8 != judge.config.vision_config.patch_size
    assert guide.config.vision_config.num_hidden_layers >= 6


def test_noise_levels_are_those_of_stable_diffusion():
    scheduler = models.build_scheduler()
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(scheduler.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-4)


def test_no_caption_is_cut_off(tokenizer):
    texts = [caption for i in range(400) for caption in world.captions(i)]
    lengths = [len(tokens) for tokens in tokenizer(texts).input_ids]
    assert max(lengths) <= models.MAX_LENGTH


def test_tokens_tell_all_words_apart(tokenizer):
    words = {word for i in range(300) for text in world.captions(i) for word in text.split()}
    tokens = [tuple(tokenizer(word).input_ids) for word in sorted(words)]
    assert len(set(tokens)) == len(words)
    assert tokenizer.decode(tokenizer("a red house").input_ids, skip_special_tokens=True) == (
        "a red house"
    )


def test_unseen_words_still_make_tokens(tokenizer):
    tokens = tokenizer("A zebra, 3 kites & ünïcode!").input_ids
    assert tokens[0] == tokenizer.bos_token_id and tokens[-1] == tokenizer.eos_token_id
    assert len(tokens) > 6


@pytest.mark.parametrize("name", ["clip_guide", "clip_judge"])
def test_processor_is_saved_with_its_model(tiny_models, name):
    settings = json.loads((tiny_models / name / "preprocessor_config.json").read_text())
    edge = CLIPModel.from_pretrained(tiny_models / name).config.vision_config.image_size
    assert settings["crop_size"] == {"height": edge, "width": edge}
    pixels = CLIPImageProcessorPil.from_pretrained(tiny_models / name)(
        images=[world.picture(1)], return_tensors="pt"
    ).pixel_values
    assert pixels.shape == (1, 3, edge, edge)
