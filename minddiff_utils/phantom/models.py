"""The phantom's small models without their training: Stable Diffusion's parts and two CLIPs.

Their shapes are those of the trained ones, whose configurations lie in `weights/`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

WEIGHTS = Path(__file__).parent / "weights"
MAX_LENGTH = 32
CLIP_MEAN = (0.5, 0.5, 0.5)
CLIP_STD = (0.3, 0.3, 0.3)


def build_tokenizer(sentences: Iterable[str]) -> CLIPTokenizer:
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
    merges: Any = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder, of the shape of the guide's."""
    folder = WEIGHTS / "stable_diffusion" / "text_encoder"
    config_class: Any = CLIPTextModel.config_class
    return CLIPTextModel(config_class.from_pretrained(folder, vocab_size=len(tokenizer)))


def build_clip(name: str, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return an untrained CLIP, `name` "clip_guide" or "clip_judge"; embeddings of 128.

    The guide has six low blocks for the structure and two above them; the judge differs in every
    dimension.
    """
    config: Any = CLIPConfig.from_pretrained(WEIGHTS / name)
    config.text_config.vocab_size = len(tokenizer)
    return CLIPModel(config)


def build_image_processor(name: str) -> CLIPImageProcessor:
    """Return the preprocessing of a phantom CLIP: resize, then its own mean and deviation."""
    return CLIPImageProcessor.from_pretrained(WEIGHTS / name)


def build_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder, 64 x 64 RGB to 4 x 16 x 16 latents."""
    config = AutoencoderKL.load_config(WEIGHTS / "stable_diffusion" / "vae")
    return AutoencoderKL.from_config(config, scaling_factor=0.18215)


def build_unet() -> UNet2DConditionModel:
    """Return an untrained UNet on 4 x 16 x 16 latents, text attention at 8 x 8 and 4 x 4."""
    config = UNet2DConditionModel.load_config(WEIGHTS / "stable_diffusion" / "unet")
    return UNet2DConditionModel.from_config(config)


def build_scheduler() -> DDIMScheduler:
    """Return DDIM with Stable Diffusion v1's noise levels; the UNet predicts velocity."""
    return DDIMScheduler.from_pretrained(WEIGHTS / "stable_diffusion" / "scheduler")
