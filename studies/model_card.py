"""How good the phantom's models are on pictures they never saw, and their model card.

The models are loaded and used as the notebooks do, so the bars test what the notebooks use.
"""

import json
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
BATCH = 32
NOISE_SEED = 0
PARTS = {
    "stable_diffusion/vae": "Autoencoder",
    "tiny_decoder": "Small decoder, for gradients",
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
    "tiny_decoder": "Small decoder",
}
RECOVERED = """
\\* Trained before trainings wrote their settings down. Pictures, batch, rate and seed are read from
the training's code of that day (commit f408d18), steps, minutes and loss from its log.
"""


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
        digits = 1 if bar.unit else 3
        value, least = f"{bar.value:.{digits}f}", f"{bar.least:.{digits}f}"
        print(f"{bar.name:<66} {value:>6} ≥ {least:>5} {bar.unit:<2} {bar.verdict}", flush=True)
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
    again = _image_to_image(generator, ids, pictures, settings)
    where = f"True z, c, {settings.n_steps} steps, strength {settings.strength:g}"
    where += f", guidance {settings.guidance_scale:g}"
    yield "img2img_ssim", Bar(f"{where}: SSIM", ssim(pictures, again).mean(), 0.80)
    alike = cosine(clip.embed(pictures), clip.embed(again)).mean()
    yield "img2img_judge", Bar(f"{where}: judge", alike, 0.85)


def _batches(n: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, n, BATCH)]


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
    edge, channels = generator.unet.config.sample_size, generator.unet.config.in_channels
    drawn = []
    for rows in _batches(len(ids)):
        c = generator.encode_captions([(sentence,) for sentence in sentences[rows]])
        z = noise_like(c.new_empty(len(c), channels, edge, edge), NOISE_SEED, ids[rows])
        z = z * generator.scheduler.init_noise_sigma
        steps = generator.timesteps(CAPTION_STEPS, 1.0)
        z_0 = generator.denoise(z, c, steps, CAPTION_GUIDANCE)
        drawn.append(to_pictures(generator.decode(z_0)))
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
    if " \\* |" in card:
        card += RECOVERED
    path = weights / "MODEL_CARD.md"
    with atomic_path(path) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return path


def _bar_row(bar: Bar) -> tuple[str, ...]:
    value = f"{bar.value:.1f} {bar.unit}" if bar.unit else f"{bar.value:.3f}"
    return bar.name, value, f"≥ {bar.least:g} {bar.unit}".strip(), bar.verdict


def _sizes_table(weights: Path) -> str:
    rows, total = [], 0
    for folder, name in PARTS.items():
        (path,) = (weights / folder).glob("*.safetensors")
        size, n_numbers = path.stat().st_size, sum(v.numel() for v in load_file(path).values())
        total += size
        config = json.loads((weights / folder / "config.json").read_text(encoding="utf-8"))
        rows.append((name, _shape(folder, config), f"{n_numbers:,}", f"{size / 1e6:.1f} MB"))
    rows.append(("Together", "", "", f"{total / 1e6:.1f} MB"))
    return _table(("Part", "shape", "parameters", "on disk"), rows)


def _shape(folder: str, config: dict) -> str:
    widths = ", ".join(map(str, config.get("block_out_channels", ())))
    if folder == "tiny_decoder":
        return f"channels {', '.join(map(str, config['decoder_block_out_channels']))}"
    if folder.endswith("vae"):
        edge = world.SIZE // 2 ** (len(config["block_out_channels"]) - 1)
        return f"channels {widths}; latents {config['latent_channels']} × {edge} × {edge}"
    if folder.endswith("unet"):
        return f"channels {widths}; text of width {config['cross_attention_dim']}"
    if folder.endswith("text_encoder"):
        blocks = f"{config['num_hidden_layers']} blocks of {config['hidden_size']}"
        return f"{blocks}; {config['max_position_embeddings']} tokens"
    vision, text = config["vision_config"], config["text_config"]
    return (
        f"pictures {vision['image_size']} px, patches {vision['patch_size']} px, "
        f"{vision['num_hidden_layers']} blocks of {vision['hidden_size']}; text "
        f"{text['num_hidden_layers']} blocks of {text['hidden_size']}"
    )


def _training_table(weights: Path) -> str:
    settings = json.loads((weights / "training.json").read_text(encoding="utf-8"))
    curves = pd.read_csv(weights / "curves.csv")
    rows = []
    for stage, name in STAGE_NAMES.items():
        known = settings.get(stage, {})
        losses = curves.loss[curves.stage == stage].to_numpy()
        at = [losses[int(share * (len(losses) - 1))] for share in (0, 0.1, 0.5, 1) if len(losses)]
        keys = ("pictures", "batch", "learning_rate", "steps", "minutes", "seed")
        row = [name + " \\*" * known.get("recovered", False)]
        row += [_entry(known.get(key)) for key in keys]
        row += [known.get("device", "not noted")]
        rows.append((*row, " → ".join(f"{loss:.3g}" for loss in at) or "not noted"))
    heads = ("Stage", "pictures", "batch", "rate", "steps", "minutes", "seed", "device", "loss")
    return _table(heads, rows)


def _entry(value) -> str:
    if value is None:
        return "not noted"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _table(heads: tuple[str, ...], rows) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
