"""How good the phantom's models are on pictures they never saw, and their model card.

`python -m studies.training --evaluate` calls both. The models are loaded and used
through `minddiff_utils.models.stable_diffusion`, so the bars test what the notebooks use.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import CLIPTokenizer

from minddiff_utils.evaluation.metrics import cosine, ssim
from minddiff_utils.io import atomic_path
from minddiff_utils.models.stable_diffusion import (
    Clip,
    Generator,
    load_clip,
    load_generator,
    noise_like,
    to_pictures,
)
from minddiff_utils.phantom import world
from minddiff_utils.reconstruction.stage1 import stage1
from minddiff_utils.settings import Settings

FIRST_HELD_OUT_ID = 900_000
CAPTION = 0  # which of the five captions stands for a picture in retrieval and generation
CAPTION_STEPS, CAPTION_GUIDANCE = 50, 5.0  # pictures from a caption alone
BATCH = 32
NOISE_SEED = 0


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

    def __str__(self) -> str:
        digits = 1 if self.unit else 3
        value, least = f"{self.value:.{digits}f}", f"{self.least:.{digits}f}"
        return f"{self.name:<66} {value:>6} ≥ {least:>5} {self.unit:<2} {self.verdict}"


# -------------------------------------------------------------------------------------- the bars


def evaluate(
    weights: str | Path,
    device: str = "auto",
    *,
    n_pictures: int = 256,
    n_steps: int = Settings.n_steps,
    strength: float = Settings.strength,
    guidance_scale: float = Settings.guidance_scale,
) -> dict[str, Bar]:
    """Measure the models on held-out pictures and print each bar as it is known.

    Parameters
    ----------
    weights : str or Path
        Folder with `stable_diffusion`, `clip_guide` and `clip_judge`.
    device : str
        "auto" or a torch device. Everything is computed in float32.
    n_pictures : int
        The pictures are the ids from 900,000, none of which any model has been trained on; as many
        captions are the candidates of each retrieval.
    n_steps, strength, guidance : int, float, float
        Of stage 1, for the img2img bars; see `minddiff_utils.settings.Settings`.

    Returns
    -------
    dict of str to Bar

    Raises
    ------
    InputError
        If a model is missing or damaged, or the device cannot be used.
    """
    weights, ids = Path(weights), range(FIRST_HELD_OUT_ID, FIRST_HELD_OUT_ID + n_pictures)
    found: dict[str, Bar] = {}
    stage1_settings = Settings(n_steps=n_steps, strength=strength, guidance_scale=guidance_scale)
    for key, bar in _measure(weights, device, ids, stage1_settings):
        print(bar, flush=True)
        found[key] = bar
    return found


def _measure(
    weights: Path, device: str, ids: range, settings: Settings
) -> Iterator[tuple[str, Bar]]:
    """Yield the bars one by one; the slow ones come last."""
    pictures = np.stack([world.picture(i) for i in ids])
    sentences = [world.captions(i)[CAPTION] for i in ids]
    generator = load_generator(weights, device, "float32")
    each, pooled = _psnr(pictures, _autoencoded(generator, pictures))
    yield "psnr", Bar("Autoencoder, mean of the pictures' PSNR", each, 30, "dB")
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
    again = _image_to_image(generator, ids, pictures, settings)
    where = f"True z, c, {settings.n_steps} steps, strength {settings.strength:g}"
    where += f", guidance {settings.guidance_scale:g}"
    yield "img2img_ssim", Bar(f"{where}: SSIM", ssim(pictures, again).mean(), 0.80)
    alike = cosine(clip.embed(pictures), clip.embed(again)).mean()
    yield "img2img_judge", Bar(f"{where}: judge", alike, 0.85)


def _batches(n: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, n, BATCH)]


@torch.no_grad()
def _autoencoded(generator: Generator, pictures: np.ndarray) -> np.ndarray:
    """Pictures through the autoencoder and back, uint8 (n, h, w, 3)."""
    return np.concatenate(
        [
            to_pictures(generator.decode(generator.encode_pictures(pictures[rows])))
            for rows in _batches(len(pictures))
        ]
    )


def _psnr(truth: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the mean over pictures of the peak signal-to-noise ratio, and that of the mean, dB."""
    error = np.square(truth.astype(np.float64) - other).mean(axis=(1, 2, 3)).clip(min=1e-3)
    decibels = 10 * np.log10(255**2 / np.array([*error, error.mean()]))
    return float(decibels[:-1].mean()), float(decibels[-1])


@torch.no_grad()
def _embed_sentences(clip: Clip, folder: Path, sentences: list[str]) -> np.ndarray:
    """Return a CLIP's embeddings of sentences, float32 (n, dimensions), rows of length 1."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(
        sentences,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids.to(clip.device)
    pooled = clip.model.text_model(input_ids=tokens).pooler_output
    return F.normalize(clip.model.text_projection(pooled), dim=1).cpu().numpy()


def _retrieved(pictures: np.ndarray, texts: np.ndarray, sentences: list[str]) -> float:
    """Share of pictures whose nearest text is their own sentence; equal sentences are one."""
    nearest = (pictures @ texts.T).argmax(axis=1)
    return float(np.mean([sentences[k] == own for k, own in zip(nearest, sentences, strict=True)]))


@torch.no_grad()
def _drawn_from_captions(generator: Generator, ids: range, sentences: list[str]) -> np.ndarray:
    """Pictures made of pure noise under one caption each, uint8 (n, h, w, 3)."""
    edge = generator.unet.config.sample_size
    channels = generator.unet.config.in_channels
    drawn = []
    for rows in _batches(len(ids)):
        c = generator.encode_captions([(sentence,) for sentence in sentences[rows]])
        z = noise_like(c.new_empty(len(c), channels, edge, edge), NOISE_SEED, ids[rows])
        z = z * generator.scheduler.init_noise_sigma
        steps = generator.timesteps(CAPTION_STEPS, 1.0)
        drawn.append(
            to_pictures(generator.decode(generator.denoise(z, c, steps, CAPTION_GUIDANCE)))
        )
    return np.concatenate(drawn)


def _image_to_image(generator: Generator, ids: range, pictures, settings: Settings) -> np.ndarray:
    """Stage 1 from the true features of pictures, uint8 (n, h, w, 3)."""
    made = []
    for rows in _batches(len(ids)):
        z = generator.encode_pictures(pictures[rows])
        c = generator.encode_captions([world.captions(i) for i in ids[rows]])
        noise = noise_like(z, NOISE_SEED, ids[rows])
        made.append(to_pictures(stage1(generator, z, c, noise, settings)))
    return np.concatenate(made)


# ------------------------------------------------------------------------------------ model card

PARTS = {
    "stable_diffusion/vae": "Autoencoder",
    "stable_diffusion/unet": "Denoising UNet",
    "stable_diffusion/text_encoder": "Text encoder",
    "clip_guide": "CLIP, the guide",
    "clip_judge": "CLIP, the judge",
}
STAGE_NAMES = {
    "autoencoder": "Autoencoder",
    "decoder": "Its decoder, further",
    "clip_guide": "CLIP, the guide",
    "clip_judge": "CLIP, the judge",
    "unet": "UNet and text encoder",
}

RECOVERED = """
\\* Trained before trainings wrote their settings down. Pictures, batch, rate and seed are read from
the training's code of that day (commit f408d18), steps, minutes and loss from its log.
"""
INTRODUCTION = """# Model card of the phantom's models

Small models with the parts and the file formats of Stable Diffusion v1 and CLIP, trained from
nothing on the phantom's drawn world. They know that world and nothing else.
`python -m studies.training` trains them again; with `--evaluate` it measures them
and writes this card.
"""

DATA = """## What they were trained on

Pictures of 64 × 64 pixels and their five captions, drawn from the ids 1,000,000 to 1,047,999.
No test picture of the experiment is among them, and each contrast pattern of the test differs from
all of theirs in at least 10 of 100 patches. The pictures of the table above (ids from 900,000 on)
are other drawings, but three in four of their contrast patterns stand in training too: besides
random patches there are 194 forms. Captions come from a few templates in English, so the text
encoders understand those words and no others. There are no people in this world and no personal
data.
"""

TRAINING = """## How they were trained

AdamW (β 0.9, 0.99), a linear warm-up, then half a cosine over the time given; what is kept is a
running mean of the weights. The CLIPs learn to match pictures and captions (the judge from another
seed, with other patches, width and depth than the guide), the UNet to predict velocity, weighted by
min(SNR, 5), under one caption, the mean of five, or none.
"""


def write_model_card(weights: str | Path, results: dict[str, Bar]) -> Path:
    """Write `MODEL_CARD.md` into a folder of models.

    Parameters
    ----------
    weights : str or Path
        Folder that `training.export` wrote; its `training.json` and `curves.csv` say how the
        models were trained.
    results : dict of str to Bar
        What `evaluate` returned.

    Returns
    -------
    Path
        The card, in markdown; headings from level 1.
    """
    weights = Path(weights)
    sections = [
        INTRODUCTION,
        _bars_section(results),
        _sizes_section(weights),
        DATA,
        TRAINING + "\n" + _training_table(weights),
    ]
    path = weights / "MODEL_CARD.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(sections), encoding="utf-8")
    return path


def _bars_section(results: dict[str, Bar]) -> str:
    rows = []
    for bar in results.values():
        value = f"{bar.value:.1f} {bar.unit}" if bar.unit else f"{bar.value:.3f}"
        rows.append((bar.name, value, f"≥ {bar.least:g} {bar.unit}".strip(), bar.verdict))
    n_below = sum(bar.verdict == "below" for bar in results.values())
    verdict = "All aims are met."
    if n_below:
        verdict = f"Aims not met: {n_below}, marked below; figures of the book suffer accordingly."
    return (
        "## What they reach on held-out pictures\n\n"
        + _table(("Measure", "value", "aim", ""), rows)
        + f"\n{verdict} A picture's caption is the first of its five. Two pictures may have the "
        "same sentence, mostly patterns; finding it counts for both. Pictures from a caption start "
        f"from pure noise: {CAPTION_STEPS} DDIM steps, guidance {CAPTION_GUIDANCE:g}. Stage 1's "
        "rows are the ceiling of the method: features that are true, not decoded.\n"
    )


def _sizes_section(weights: Path) -> str:
    rows, total = [], 0
    for folder, name in PARTS.items():
        files = sorted((weights / folder).glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        total += size
        config = json.loads((weights / folder / "config.json").read_text(encoding="utf-8"))
        count = f"{sum(map(_n_stored, files)):,}"
        rows.append((name, _shape(folder, config), count, f"{size / 1e6:.1f} MB"))
    rows.append(("Together", "", "", f"{total / 1e6:.1f} MB"))
    return "## Shapes and sizes\n\n" + _table(("Part", "shape", "parameters", "on disk"), rows)


def _n_stored(file: Path) -> int:
    with safe_open(file, "pt") as tensors:
        names = list(tensors.keys())
        return sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in names)


def _shape(folder: str, config: dict) -> str:
    if folder.endswith("vae"):
        widths = ", ".join(map(str, config["block_out_channels"]))
        edge = world.SIZE // 2 ** (len(config["block_out_channels"]) - 1)
        return f"channels {widths}; latents {config['latent_channels']} × {edge} × {edge}"
    if folder.endswith("unet"):
        widths = ", ".join(map(str, config["block_out_channels"]))
        return f"channels {widths}; text of width {config['cross_attention_dim']}"
    if folder.endswith("text_encoder"):
        return (
            f"{config['num_hidden_layers']} blocks of {config['hidden_size']}; "
            f"{config['max_position_embeddings']} tokens"
        )
    vision, text = config["vision_config"], config["text_config"]
    return (
        f"pictures {vision['image_size']} px, patches {vision['patch_size']} px, "
        f"{vision['num_hidden_layers']} blocks of {vision['hidden_size']}; text "
        f"{text['num_hidden_layers']} blocks of {text['hidden_size']}"
    )


def _training_table(weights: Path) -> str:
    path = weights / "training.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    curves = _curves(weights / "curves.csv")
    rows = []
    for stage, name in STAGE_NAMES.items():
        known, losses = settings.get(stage, {}), curves.get(stage, [])
        last = len(losses) - 1
        at = [losses[int(share * last)] for share in (0, 0.1, 0.5, 1)] if losses else []
        rows.append(
            (
                name + " \\*" * known.get("recovered", False),
                *(
                    _entry(known.get(key))
                    for key in ("pictures", "batch", "learning_rate", "steps")
                ),
                _entry(known.get("minutes")),
                _entry(known.get("seed")),
                known.get("device", "not noted"),
                " → ".join(f"{loss:.3g}" for loss in at) or "not noted",
            )
        )
    heads = ("Stage", "pictures", "batch", "rate", "steps", "minutes", "seed", "device", "loss")
    return (
        _table(heads, rows)
        + "\nThe rate is the largest. The loss, a mean over 50 steps, is that of the beginning, "
        "after a tenth of the steps, after half, and at the end; `curves.csv` beside this card has "
        "all.\n" + RECOVERED * any(known.get("recovered") for known in settings.values())
    )


def _entry(value) -> str:
    return (
        "not noted" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"
    )


def _curves(path: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["stage"], []).append(float(row["loss"]))
    return found


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
