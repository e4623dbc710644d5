"""What several test files share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """The phantom's models with random weights, saved as training saves them, in float32.

    Their latents have Stable Diffusion's scale: one of 1 would not tell `*` from `/`.

    The folder holds `stable_diffusion`, `clip_guide` and `clip_judge`. Copy it before
    changing anything. Tests thus need no trained weights.
    """
    # Imported here, so that tests without models start fast.
    import torch
    from diffusers import StableDiffusionPipeline

    from minddiff_utils.phantom import models, world

    folder = tmp_path_factory.mktemp("tiny_models")
    ids = range(1_000_000, 1_000_400)
    tokenizer = models.build_tokenizer(text for i in ids for text in world.captions(i))
    torch.manual_seed(0)
    vae = models.build_autoencoder()
    vae.register_to_config(scaling_factor=0.18215)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=models.build_unet(),
        text_encoder=models.build_text_encoder(tokenizer, 128, 4),
        tokenizer=tokenizer,
        scheduler=models.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "stable_diffusion")
    for name in ("clip_guide", "clip_judge"):
        models.build_clip(name, tokenizer).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        models.build_image_processor(name).save_pretrained(folder / name)
    return folder
