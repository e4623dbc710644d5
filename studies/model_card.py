"""How good the phantom's models are on pictures they never saw, and their model card.

The models are loaded and used as the notebooks do, so the bars test what the notebooks use.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio as psnr
from transformers import CLIPTokenizer

from minddiff_utils.evaluation.metrics import cosine, ssim
from minddiff_utils.io import atomic_path
from minddiff_utils.models.clip import Clip, load_clip, to_pictures
from minddiff_utils.models.stable_diffusion import Generator, load_generator, noise_like
from minddiff_utils.phantom import world
from minddiff_utils.reconstruction.stage1 import stage1
from minddiff_utils.settings import Settings
from studies.held_out import MODELS

FIRST_HELD_OUT_ID = 900_000
CAPTION = 0  # which of the five captions stands for a picture in retrieval and generation
CAPTION_STEPS, CAPTION_GUIDANCE = 50, 5.0  # pictures from a caption alone
NOISE_SEED = 0
# Name of each part, and its shape by the entries of its `config.json`.
CLIP_SHAPE = (
    "pictures {vision_config[image_size]} px, patches {vision_config[patch_size]} px, "
    "{vision_config[num_hidden_layers]} blocks of {vision_config[hidden_size]}; "
    "text {text_config[num_hidden_layers]} blocks of {text_config[hidden_size]}"
)
PARTS = {
    "stable_diffusion/vae": (
        "Autoencoder",
        "channels {block_out_channels}; latents {latent_channels} × 16 × 16",
    ),
    "tiny_decoder": ("Small decoder, for gradients", "channels {decoder_block_out_channels}"),
    "stable_diffusion/unet": (
        "Denoising UNet",
        "channels {block_out_channels}; text of width {cross_attention_dim}",
    ),
    "stable_diffusion/text_encoder": (
        "Text encoder",
        "{num_hidden_layers} blocks of {hidden_size}; {max_position_embeddings} tokens",
    ),
    "clip_guide": ("CLIP, the guide", CLIP_SHAPE),
    "clip_judge": ("CLIP, the judge", CLIP_SHAPE),
}


class Bar(NamedTuple):
    """One figure of merit: what it is, its value, the least it should be, and its unit."""

    name: str
    value: float
    least: float
    unit: str = ""

    @property
    def verdict(self) -> str:
        """Return "ok" or "below"."""
        return "ok" if self.value >= self.least else "below"


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the models.")] = MODELS,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Measure the phantom's models on held-out pictures, and write their card beside them."""
    write_model_card(weights, evaluate(weights, device))


# -------------------------------------------------------------------------------------- the bars


def evaluate(
    weights: Path, device: str = "auto", n_pictures: int = 256, settings: Settings | None = None
) -> dict[str, Bar]:
    """Measure the models on held-out pictures and print each bar as it is known.

    Parameters
    ----------
    weights : Path
        Folder with `stable_diffusion`, `clip_guide` and `clip_judge`.
    device : str
        "auto" or a torch device. Everything is computed in float32.
    n_pictures : int
        The pictures are the ids from 900,000, none of which any model has been trained on; as many
        captions are the candidates of each retrieval.
    settings : Settings, optional
        Of stage 1, for the img2img bars; the defaults if not given.

    Returns
    -------
    dict of str to Bar

    Raises
    ------
    InputError
        If a model is missing or damaged, or the device cannot be used.
    """
    ids = range(FIRST_HELD_OUT_ID, FIRST_HELD_OUT_ID + n_pictures)
    found: dict[str, Bar] = {}
    for key, bar in _measure(weights, device, ids, settings or Settings()):
        print(*_bar_row(bar), flush=True)
        found[key] = bar
    return found


def _measure(
    weights: Path, device: str, ids: range, settings: Settings
) -> Iterator[tuple[str, Bar]]:
    """Yield the bars one by one; the slow ones come last."""
    pictures = np.stack([world.picture(i) for i in ids])
    sentences = [world.captions(i)[CAPTION] for i in ids]
    generator = load_generator(weights, device, "float32")
    with torch.no_grad():
        again = to_pictures(generator.decode(generator.encode_pictures(pictures)))
    each = [psnr(*pair, data_range=255) for pair in zip(pictures, again, strict=True)]
    pooled = psnr(pictures, again, data_range=255)
    yield "psnr", Bar("Autoencoder, mean of the pictures' PSNR", float(np.mean(each)), 30, "dB")
    yield "psnr_pooled", Bar("Autoencoder, PSNR of the mean squared error", pooled, 30, "dB")
    among = f"top-1 of {len(ids)}"
    for name in ("guide", "judge"):
        clip = load_clip(weights / f"clip_{name}", device, "float32")
        texts = _embed_sentences(clip, weights / f"clip_{name}", sentences)
        share = _retrieved(clip.embed(pictures), texts, sentences)
        yield f"retrieval_{name}", Bar(f"Picture finds its caption, {name}'s {among}", share, 0.70)
    # The judge is the last of the two.
    drawn = _drawn_from_captions(generator, ids, sentences)
    share = _retrieved(clip.embed(drawn), texts, sentences)
    what = f"Picture made from a caption finds it, judge's {among}"
    yield "caption_to_picture", Bar(what, share, 0.60)
    z = generator.encode_pictures(pictures)
    c = generator.encode_captions([world.captions(i) for i in ids])
    again = to_pictures(stage1(generator, z, c, noise_like(z, NOISE_SEED, ids), settings))
    where = f"True z, c, {settings.n_steps} steps, strength {settings.strength:g}"
    where += f", guidance {settings.guidance_scale:g}"
    yield "img2img_ssim", Bar(f"{where}: SSIM", ssim(pictures, again).mean(), 0.80)
    alike = cosine(clip.embed(pictures), clip.embed(again)).mean()
    yield "img2img_judge", Bar(f"{where}: judge", alike, 0.85)


@torch.no_grad()
def _embed_sentences(clip: Clip, folder: Path, sentences: list[str]) -> np.ndarray:
    """Return a CLIP's embeddings of sentences, float32 (n, dimensions), rows of length 1."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(sentences, padding="max_length", truncation=True, return_tensors="pt")
    pooled = clip.model.text_model(input_ids=tokens.input_ids.to(clip.device)).pooler_output
    return F.normalize(clip.model.text_projection(pooled), dim=1).cpu().numpy()


def _retrieved(pictures: np.ndarray, texts: np.ndarray, sentences: list[str]) -> float:
    """Share of pictures whose nearest text is their own sentence; equal sentences are one."""
    nearest = (pictures @ texts.T).argmax(axis=1)
    return float(np.mean([sentences[k] == own for k, own in zip(nearest, sentences, strict=True)]))


@torch.no_grad()
def _drawn_from_captions(generator: Generator, ids: range, sentences: list[str]) -> np.ndarray:
    """Pictures made of pure noise under one caption each, uint8 (n, h, w, 3)."""
    c = generator.encode_captions([(sentence,) for sentence in sentences])
    unet = generator.unet.config
    empty = c.new_empty(len(c), unet.in_channels, unet.sample_size, unet.sample_size)
    z = noise_like(empty, NOISE_SEED, ids) * generator.scheduler.init_noise_sigma
    z_0 = generator.denoise(z, c, generator.timesteps(CAPTION_STEPS, 1.0), CAPTION_GUIDANCE)
    return to_pictures(generator.decode(z_0))


# ------------------------------------------------------------------------------------ model card


def write_model_card(weights: Path, results: dict[str, Bar]) -> Path:
    """Write `MODEL_CARD.md` into a folder of models.

    Parameters
    ----------
    weights : Path
        Folder that `training.export` wrote; its `training.json` and `curves.csv` say how the
        models were trained.
    results : dict of str to Bar
        What `evaluate` returned.

    Returns
    -------
    Path
        The card, in markdown; headings from level 1.
    """
    n_below = sum(bar.verdict == "below" for bar in results.values())
    below = f"Aims not met: {n_below}, marked below; figures of the book suffer accordingly."
    template = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
    card = template.substitute(
        bars=_table(("Measure", "value", "aim", ""), map(_bar_row, results.values())),
        verdict=below if n_below else "All aims are met.",
        caption_steps=CAPTION_STEPS,
        caption_guidance=f"{CAPTION_GUIDANCE:g}",
        sizes=_sizes_table(weights),
        trainings=_training_table(weights),
    )
    path = weights / "MODEL_CARD.md"
    with atomic_path(path) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return path


def _bar_row(bar: Bar) -> tuple[str, ...]:
    value = f"{bar.value:.1f} {bar.unit}" if bar.unit else f"{bar.value:.3f}"
    return bar.name, value, f"≥ {bar.least:g} {bar.unit}".strip(), bar.verdict


def _sizes_table(weights: Path) -> str:
    rows, total = [], 0
    for folder, (name, shape) in PARTS.items():
        (path,) = (weights / folder).glob("*.safetensors")
        size, n_numbers = path.stat().st_size, sum(v.numel() for v in load_file(path).values())
        total += size
        config = json.loads((weights / folder / "config.json").read_text(encoding="utf-8"))
        shape = re.sub(r"[\[\]]", "", shape.format_map(config))
        rows.append((name, shape, f"{n_numbers:,}", f"{size / 1e6:.1f} MB"))
    rows.append(("Together", "", "", f"{total / 1e6:.1f} MB"))
    return _table(("Part", "shape", "parameters", "on disk"), rows)


def _training_table(weights: Path) -> str:
    settings = json.loads((weights / "training.json").read_text(encoding="utf-8"))
    curves = pd.read_csv(weights / "curves.csv")
    rows = []
    keys = ("pictures", "batch", "learning_rate", "steps", "minutes", "seed")
    for stage, known in settings.items():
        losses = curves.loss[curves.stage == stage].to_numpy()
        at = [losses[int(share * (len(losses) - 1))] for share in (0, 0.1, 0.5, 1) if len(losses)]
        name = f"`{stage}`" + " \\*" * known.get("recovered", False)
        numbers = [f"{known[key]:,g}" for key in keys]
        course = " → ".join(f"{loss:.3g}" for loss in at)
        rows.append((name, *numbers, known["device"], course))
    heads = ("Stage", "pictures", "batch", "rate", "steps", "minutes", "seed", "device", "loss")
    return _table(heads, rows)


def _table(heads: tuple[str, ...], rows) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
