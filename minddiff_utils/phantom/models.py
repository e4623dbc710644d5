"""Shapes of the phantom's small models: Stable Diffusion's parts and two CLIPs, in miniature."""

import json
from collections.abc import Iterable

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

MAX_LENGTH = 32
CLIP_MEAN = (0.5, 0.5, 0.5)
CLIP_STD = (0.3, 0.3, 0.3)
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
CLIP_SHAPES = {
    # Six low blocks for the structure, two above them; the judge differs in every dimension.
    "clip_guide": {"image": 64, "patch": 8, "width": 128, "depth": 8, "text": (128, 4)},
    "clip_judge": {"image": 60, "patch": 6, "width": 144, "depth": 5, "text": (96, 3)},
}


def build_tokenizer(sentences: Iterable[str]) -> transformers.CLIPTokenizer:
    """Learn CLIP's byte-pair encoding from captions.

    Parameters
    ----------
    sentences : iterable of str
        Captions; their common words become single tokens.

    Returns
    -------
    CLIPTokenizer
        With `model_max_length` 32.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(k) for k in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(sentences, trainer)
    vocabulary = tokenizer.get_vocab()
    # The last letter of a word carries the suffix: CLIP needs every such letter as a token too.
    for letter in letters:
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def build_text_encoder(
    tokenizer: transformers.CLIPTokenizer, width: int, depth: int
) -> transformers.CLIPTextModel:
    """Return an untrained text encoder: `depth` blocks of `width`, heads of 32."""
    shape = _text_shape(tokenizer, width, depth)
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**shape))


def _text_shape(tokenizer: transformers.CLIPTokenizer, width: int, depth: int) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 32,
        "max_position_embeddings": MAX_LENGTH,
        "projection_dim": 128,
        **{name: getattr(tokenizer, name) for name in SPECIAL_TOKENS},
    }


def build_clip(name: str, tokenizer: transformers.CLIPTokenizer) -> transformers.CLIPModel:
    """Return an untrained CLIP, `name` "clip_guide" or "clip_judge"; embeddings of 128."""
    shape = CLIP_SHAPES[name]
    vision = {
        "image_size": shape["image"],
        "patch_size": shape["patch"],
        "hidden_size": shape["width"],
        "intermediate_size": 4 * shape["width"],
        "num_hidden_layers": shape["depth"],
        "num_attention_heads": 4,
        "projection_dim": 128,
    }
    text = _text_shape(tokenizer, *shape["text"])
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    return transformers.CLIPModel(config)


def build_image_processor(name: str) -> transformers.CLIPImageProcessor:
    """Return the preprocessing of a phantom CLIP: resize, then its own mean and deviation."""
    edge = CLIP_SHAPES[name]["image"]
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge},
        image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD),
    )  # fmt: skip


def build_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder, 64 x 64 RGB to 4 x 16 x 16 latents."""
    return AutoencoderKL(
        block_out_channels=(16, 48, 96), layers_per_block=1, latent_channels=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8, mid_block_add_attention=False,
    )  # fmt: skip


def build_unet() -> UNet2DConditionModel:
    """Return an untrained UNet on 4 x 16 x 16 latents, text attention at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, cross_attention_dim=128, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip


def build_scheduler() -> DDIMScheduler:
    """Return DDIM with Stable Diffusion v1's noise levels; the UNet predicts velocity."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip


def n_parameters(model: torch.nn.Module) -> int:
    """Return how many numbers a model holds."""
    return sum(parameter.numel() for parameter in model.parameters())
