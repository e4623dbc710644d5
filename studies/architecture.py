"""Stable Diffusion v1 and CLIP ViT-B/32 at their full size, with random weights.

The shapes are those of the published `config.json` files of CompVis/stable-diffusion-v1-4 and
openai/clip-vit-base-patch32, as far as they differ from the defaults of diffusers and transformers.
What a model costs in time and memory, and whether two programs agree on it, does not depend on its
weights; so nothing has to be downloaded to find out.
"""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from minddiff_utils.models.clip import Clip
from minddiff_utils.models.stable_diffusion import Generator

UNET = {"sample_size": 64, "cross_attention_dim": 768}
VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
PREPROCESSING = {
    "size": 224,
    "crop_size": 224,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
NOISE_LEVELS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
# A miniature of the same layers, to see in seconds that everything runs.
_THIN = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
SMALL = {
    "unet": {
        "sample_size": 16,
        "block_out_channels": (32, 32, 64, 64),
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
    },
    "vae": {"sample_size": 128, "block_out_channels": (32, 32, 32, 32)},
    "text": {**_THIN, "num_hidden_layers": 2},
    "vision": {**_THIN, "num_hidden_layers": 6},
}


def build_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of single letters, with the special tokens of CLIP in their places."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def pipeline_of(**parts) -> StableDiffusionPipeline:
    """Put the parts of Stable Diffusion together, without its safety checker."""
    none = dict.fromkeys(("safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(**parts, **none, requires_safety_checker=False)


def build_pipeline(small: bool = False, seed: int = 0) -> StableDiffusionPipeline:
    """Return Stable Diffusion v1's parts with random weights, in float32 on the CPU.

    Parameters
    ----------
    small : bool
        Take a miniature of the same layers.
    seed : int
        Of the weights.

    Returns
    -------
    StableDiffusionPipeline
        860 million numbers in the UNet, 84 in the autoencoder, 123 in the text encoder.
    """
    change = SMALL if small else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pipeline_of(
            vae=AutoencoderKL(**{**VAE, **change.get("vae", {})}),
            unet=UNet2DConditionModel(**{**UNET, **change.get("unet", {})}),
            text_encoder=CLIPTextModel(CLIPTextConfig(**{**TEXT, **change.get("text", {})})),
            tokenizer=build_tokenizer(),
            scheduler=PNDMScheduler(**NOISE_LEVELS),
        )


def build_clip(small: bool = False, seed: int = 1) -> Clip:
    """Return CLIP ViT-B/32 with random weights and its own preprocessing, in float32 on the CPU."""
    change = SMALL if small else {"text": {}, "vision": {}}
    config = CLIPConfig(text_config=change["text"], vision_config=change["vision"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Clip(CLIPModel(config), PREPROCESSING)


def build_generator(
    small: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    save_memory: str = "",
) -> Generator:
    """Return the generator that `load_generator` would, with random weights.

    Parameters
    ----------
    small : bool
        Take a miniature of the same layers.
    device : torch.device or str
    dtype : torch.dtype
    save_memory : str
        As for `load_generator`.
    """
    pipeline, clip = build_pipeline(small), build_clip(small)
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder, clip.model):
        # Not by the method of diffusers, which warns of layers to keep in float32: there are none.
        torch.nn.Module.to(part, device, dtype)
    # diffusers' defaults are TAESD's shape.
    return Generator(pipeline, clip, 15, save_memory, AutoencoderTiny)
