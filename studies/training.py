"""Train the phantom's small models from nothing: autoencoder, two CLIPs, UNet and text encoder."""

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from minddiff_utils.io import atomic_path
from minddiff_utils.models.clip import to_rgb
from minddiff_utils.phantom import world
from studies.architecture import pipeline_of
from studies.held_out import MODELS

FIRST_TRAINING_ID = world.TRAINING_IDS.start
STAGES = ("autoencoder", "decoder", "clip_guide", "clip_judge", "unet")
# Share of the time budget, pictures a step, peak learning rate of each stage.
SHARES = dict(zip(STAGES, (0.15, 0.1, 0.125, 0.125, 0.5), strict=True))
LEARNT = (*STAGES, "tiny_decoder")  # the last by a study of its own
BATCH = dict(zip(LEARNT, (16, 16, 192, 128, 48, 32), strict=True))
LEARNING_RATE = dict(zip(LEARNT, (1.5e-3, 1e-3, 1e-3, 1e-3, 1e-3, 2e-3), strict=True))
CHECKPOINT_SECONDS = 60
WARM_UP_STEPS = 150
EMA_DECAY = 0.998
NO_CAPTION, ALL_CAPTIONS = 0.1, 0.3
MIN_SNR_GAMMA = 5.0
# A share of the latents' deviation: what the UNet hands over is never exact.
DECODER_JITTER = 0.02
CLIP_MEAN, CLIP_STD = 0.5, 0.3  # of the colours, for both CLIPs
PARTS = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}


# ------------------------------------------------------------------------------------------ models


def untrained(name: str) -> Any:
    """Return a model with the configuration of the trained one and random weights.

    Parameters
    ----------
    name : str
        One of `PARTS`, of Stable Diffusion, or "clip_guide" or "clip_judge", which differ in every
        dimension.
    """
    kind = PARTS.get(name, CLIPModel)
    folder = MODELS / ("stable_diffusion" if name in PARTS else "") / name
    if hasattr(kind, "load_config"):
        return kind.from_config(kind.load_config(folder))
    return kind(kind.config_class.from_pretrained(folder))


def load_tokenizer() -> CLIPTokenizer:
    """Return the tokenizer of all phantom models: CLIP's encoding, learnt from their captions."""
    return CLIPTokenizer.from_pretrained(MODELS / "clip_guide")


def load_scheduler() -> DDIMScheduler:
    """Return DDIM with Stable Diffusion v1's noise levels; the UNet predicts velocity."""
    return DDIMScheduler.from_pretrained(MODELS / "stable_diffusion" / "scheduler")


def save_models(out: Path, parts: dict[str, Any], clips: dict[str, Any]) -> None:
    """Save `PARTS` and CLIPs as folders that diffusers and transformers load."""
    tokenizer = load_tokenizer()
    for name, clip in clips.items():
        for part in (clip, tokenizer, CLIPImageProcessor.from_pretrained(MODELS / name)):
            part.save_pretrained(out / name)
    pipeline = pipeline_of(**parts, tokenizer=tokenizer, scheduler=load_scheduler())
    pipeline.save_pretrained(out / "stable_diffusion")


# --------------------------------------------------------------------------------------------- data


class TrainingSet:
    """Pictures and tokenised captions of the ids from `FIRST_TRAINING_ID`, cached on disk.

    Attributes
    ----------
    pictures : ndarray of uint8, shape (n, 64, 64, 3)
    tokens : Tensor of int64, shape (n, 5, 32)
    """

    def __init__(self, work: Path, n: int):
        path = work / f"pictures-{n}.npy"
        ids = range(FIRST_TRAINING_ID, FIRST_TRAINING_ID + n)
        if not path.exists():
            pictures = np.stack([world.picture(i) for i in tqdm(ids, "drawing", mininterval=5)])
            with atomic_path(path) as temporary:
                np.save(temporary, pictures)
        self.pictures = np.load(path, mmap_mode="r")
        sentences = [sentence for i in ids for sentence in world.captions(i)]
        self.tokens = tokenize(sentences).reshape(n, 5, -1)

    def __len__(self):
        return len(self.pictures)

    def rgb(self, rows: np.ndarray, device) -> torch.Tensor:
        """Return pictures as float32 in [-1, 1], shape (len(rows), 3, 64, 64)."""
        return to_rgb(self.pictures[rows], device)


def tokenize(sentences: list[str]) -> torch.Tensor:
    """Return token ids, int64 (n, 32), padded with the end token."""
    return load_tokenizer()(
        sentences, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


# ------------------------------------------------------------------------------------------- losses


def autoencoder_loss(model: nn.Module, data: TrainingSet, rows, device) -> torch.Tensor:
    """Squared and absolute error of the reconstruction, and a small pull of latents to N(0, 1)."""
    rgb = data.rgb(rows, device)
    posterior = model.encode(rgb).latent_dist
    out = model.decode(posterior.sample()).sample.float()
    return F.mse_loss(out, rgb) + 0.1 * F.l1_loss(out, rgb) + 2e-7 * posterior.kl().mean()


def decoder_loss(model: nn.Module, data: TrainingSet, latents, rows, device) -> torch.Tensor:
    """Squared and absolute error of pictures decoded from fixed latents, slightly jittered."""
    z = latents[rows]
    out = model.decode(z + DECODER_JITTER * torch.randn_like(z)).sample.float()
    rgb = data.rgb(rows, device)
    return F.mse_loss(out, rgb) + 0.1 * F.l1_loss(out, rgb)


def clip_loss(model: nn.Module, data: TrainingSet, rows, device) -> torch.Tensor:
    """Symmetric contrastive loss of pictures and one of their five captions (CLIP, 2103.00020)."""
    which = torch.randint(0, 5, (len(rows),))
    edge = model.config.vision_config.image_size
    rgb = data.rgb(rows, device)
    if rgb.shape[-1] != edge:
        rgb = F.interpolate(rgb, (edge, edge), mode="bicubic", antialias=True)
    rgb = (rgb.clamp(-1, 1) / 2 + 0.5 - CLIP_MEAN) / CLIP_STD
    tokens = data.tokens[rows, which].to(device)
    logits = model(input_ids=tokens, pixel_values=rgb).logits_per_image.float()
    target = torch.arange(len(rows), device=device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def conditions(text: nn.Module, tokens: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Encode captions as stage 1 meets them: one, the mean over all five, or none.

    Parameters
    ----------
    text : CLIPTextModel
    tokens : Tensor of int64, shape (n, 5, 32)
    empty : Tensor of int64, shape (1, 32)
        The empty caption, which guidance needs.

    Returns
    -------
    Tensor, shape (n, 32, 128)
    """
    n = len(tokens)
    n_all, n_none = round(ALL_CAPTIONS * n), round(NO_CAPTION * n)
    which = torch.randint(0, 5, (n - n_all - n_none,))
    single = tokens[torch.arange(n_all, n - n_none), which]
    # The averages cost five passes each, so the text encoder itself learns from the others.
    with torch.no_grad():
        hidden = text(input_ids=tokens[:n_all].flatten(0, 1)).last_hidden_state
    averaged = hidden.unflatten(0, (n_all, 5)).mean(1)
    others = text(input_ids=torch.cat([single, empty.expand(n_none, -1)])).last_hidden_state
    return torch.cat([averaged, others])


def unet_loss(model: nn.ModuleDict, batch, levels: torch.Tensor) -> torch.Tensor:
    """Error of the predicted velocity, weighted by min(SNR, 5) (Hang et al. 2303.09556)."""
    latents, tokens, empty = batch
    step = torch.sigmoid(torch.randn(len(latents), device=latents.device) * 1.2 + 0.2)
    step = (step * len(levels)).long().clamp(0, len(levels) - 1)
    signal = levels[step].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noised = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    c = conditions(model["text"], tokens, empty)
    out = model["unet"](noised, step, c).sample.float()
    snr = signal / (1 - signal)
    weight = snr.clamp(max=MIN_SNR_GAMMA) / (snr + 1)
    return (weight * (out - velocity).square()).mean() / weight.mean()


# ---------------------------------------------------------------------------------- the loop itself


def save_checkpoint(path: Path, model, ema: dict, optimiser, progress: dict) -> None:
    """Write weights, their running mean, Adam's moments and the progress."""
    kept = {"model": model.state_dict(), "ema": ema, "optimiser": optimiser.state_dict()}
    with atomic_path(path) as temporary:
        torch.save({**kept, "progress": progress}, temporary)


def read_checkpoint(path: Path) -> dict:
    """Return what `save_checkpoint` wrote: `model`, `ema`, `optimiser`, `progress`."""
    return torch.load(path, map_location="cpu", weights_only=True)


def learning_rate(stage: str, step: int, share: float) -> float:
    """Return the rate: a linear warm-up, then half a cosine over the `share` of time spent."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return LEARNING_RATE[stage] * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)


def train_stage(stage: str, work: Path, minutes: float, n_pictures: int, device: str) -> Path:
    """Train one model until its time is spent; go on from its checkpoint where there is one.

    Parameters
    ----------
    stage : {"autoencoder", "decoder", "clip_guide", "clip_judge", "unet"}
        "decoder" goes on with the decoding half alone, so that the latents stay as they are. It and
        "unet" need the checkpoint of "autoencoder"; "unet" starts its text encoder from the guide's
        text tower.
    work : Path
        Folder of checkpoints and cached pictures.
    minutes : float
        Time to train in all, earlier runs counted in.
    n_pictures : int
        Size of the training set.
    device : str
        A torch device.

    Returns
    -------
    Path
        The checkpoint.
    """
    path = work / f"{stage}.pt"
    if path.exists() and read_checkpoint(path)["progress"]["seconds"] >= 60 * minutes:
        return path
    torch.manual_seed(STAGES.index(stage))
    data = TrainingSet(work, n_pictures)
    model, loss_of = _prepare(stage, work, data, device)
    return train(stage, model, loss_of, data, work, minutes)


def train(
    stage: str,
    model: nn.Module,
    loss_of: Callable[[nn.Module, np.ndarray], torch.Tensor],
    data: TrainingSet,
    work: Path,
    minutes: float,
) -> Path:
    """Lower a loss, a function of the model and of rows of `data`; otherwise as `train_stage`."""
    seed, path, device = LEARNT.index(stage), work / f"{stage}.pt", next(model.parameters()).device
    kept = read_checkpoint(path) if path.exists() else {}
    decay = 0.1 if stage.startswith("clip") else 1e-4
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    progress = {"seconds": 0.0, "losses": []}
    if kept:
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        progress = kept["progress"]
    ema = {k: v.to(device, copy=True) for k, v in kept.get("ema", model.state_dict()).items()}
    place = f"CPU, {torch.get_num_threads()} core(s)"
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    progress["settings"] = {
        "pictures": len(data),
        "batch": BATCH[stage],
        "learning_rate": LEARNING_RATE[stage],
        "seed": seed,
        "device": place,
    }
    losses = progress["losses"]
    torch.manual_seed(1000 + len(losses))
    rng = np.random.default_rng(len(losses))

    started, saved = time.monotonic() - progress["seconds"], time.monotonic()
    bar = tqdm(desc=stage, initial=len(losses), mininterval=20, unit=" steps")
    while (elapsed := time.monotonic() - started) < 60 * minutes:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(stage, len(losses), elapsed / (60 * minutes))
        rows = np.sort(rng.choice(len(data), min(BATCH[stage], len(data)), replace=False))
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, rows)
        update(model, ema, optimiser, loss, len(losses))
        losses.append(loss.item())
        progress["seconds"] = time.monotonic() - started
        bar.update()
        bar.set_postfix(loss=np.mean(losses[-50:]), refresh=False)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save_checkpoint(path, model, ema, optimiser, progress)
            saved = time.monotonic()
    progress["seconds"] = time.monotonic() - started
    save_checkpoint(path, model, ema, optimiser, progress)
    return path


def update(model: nn.Module, ema: dict, optimiser, loss: torch.Tensor, step: int) -> None:
    """Step down the gradient of a loss; the running mean of the weights follows, at first fast."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                ema[name].lerp_(value, 1 - decay)


def _prepare(stage: str, work: Path, data: TrainingSet, device: str):
    """Return an untrained model of a stage and its loss as a function of (model, rows)."""
    if stage == "autoencoder":
        model = untrained("vae").to(device, memory_format=torch.channels_last)
        return model, lambda m, rows: autoencoder_loss(m, data, rows, device)
    if stage == "decoder":
        model = trained_autoencoder(work).to(device, memory_format=torch.channels_last).train()
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
        latents = encode_latents(work, data, device) / model.config.scaling_factor
        return model, lambda m, rows: decoder_loss(m, data, latents, rows, device)
    if stage.startswith("clip"):
        model = untrained(stage).to(device)
        # On short sequences and a CPU, plain attention trains twice as fast as the fused kernel.
        model.set_attn_implementation("eager")
        return model, lambda m, rows: clip_loss(m, data, rows, device)
    text = untrained("text_encoder")
    ema = read_checkpoint(work / "clip_guide.pt")["ema"]
    tower = {k.removeprefix("text_model."): v for k, v in ema.items() if "text_model." in k}
    text.load_state_dict(tower, strict=False)
    text.set_attn_implementation("eager")
    model = nn.ModuleDict({"unet": untrained("unet"), "text": text}).to(device)
    model["unet"].set_attn_processor(AttnProcessor())
    latents, tokens = encode_latents(work, data, device), data.tokens.to(device)
    levels = load_scheduler().alphas_cumprod.to(device)
    empty = tokenize([""]).to(device)
    return model, lambda m, rows: unet_loss(m, (latents[rows], tokens[rows], empty), levels)


@torch.no_grad()
def encode_latents(work: Path, data: TrainingSet, device: str) -> torch.Tensor:
    """Return the latents of all training pictures in unit variance, float32 (n, 4, 16, 16)."""
    model = trained_autoencoder(work).to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        latents = [
            model.encode(data.rgb(rows, device)).latent_dist.mean.float()
            for rows in np.array_split(np.arange(len(data)), max(1, len(data) // 256))
        ]
    return torch.cat(latents) * model.config.scaling_factor


# ------------------------------------------------------------------------------------------- export


def load_ema(model: nn.Module, path: Path) -> nn.Module:
    """Give a model the running mean of the weights that a checkpoint holds."""
    model.load_state_dict(read_checkpoint(path)["ema"])
    return model.eval()


def trained_autoencoder(work: Path):
    """Return the autoencoder as far as it is, its `scaling_factor` set for unit variance."""
    paths = [work / f"{stage}.pt" for stage in ("decoder", "autoencoder")]
    path = next(path for path in paths if path.exists() or path == paths[-1])
    model = load_ema(untrained("vae"), path)
    ids = range(FIRST_TRAINING_ID, FIRST_TRAINING_ID + 256)
    rgb = to_rgb(np.stack([world.picture(i) for i in ids]), "cpu")
    with torch.no_grad():
        latents = model.encode(rgb).latent_dist.mean
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return model


def export(work: Path, out: Path) -> None:
    """Save what has been trained as folders that diffusers and transformers load, in float16."""
    names = ("clip_guide", "clip_judge")
    clips = {name: load_ema(untrained(name), work / f"{name}.pt").half() for name in names}
    both = nn.ModuleDict({"unet": untrained("unet"), "text": untrained("text_encoder")})
    both = load_ema(both, work / "unet.pt").half()
    vae = trained_autoencoder(work).half()
    save_models(out, {"vae": vae, "unet": both["unet"], "text_encoder": both["text"]}, clips)
    for name in (*names, "stable_diffusion/text_encoder"):
        _open_as_float32(out / name)
    record(STAGES, work, out)


def _open_as_float32(folder: Path) -> None:
    """Let transformers open half-precision weights in float32, as diffusers does.

    Otherwise a pipeline that is loaded without naming a precision is float16 in one part
    and float32 in another, and fails.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def record(stages: Iterable[str], work: Path, out: Path) -> None:
    """Put settings and losses of some stages beside those of the others, for the model card."""
    path, curves = out / "training.json", out / "curves.csv"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = pd.read_csv(curves) if curves.exists() else pd.DataFrame({"stage": []})
    tables = [known[~known.stage.isin(stages)]]
    for stage in stages:
        its = read_checkpoint(work / f"{stage}.pt")["progress"]
        losses, minutes = its["losses"], round(its["seconds"] / 60, 1)
        settings[stage] = {**its["settings"], "steps": len(losses), "minutes": minutes}
        ends = np.arange(50, len(losses) + 1, 50)
        curve = {"stage": stage, "step": ends, "minutes": (ends * minutes / len(losses)).round(2)}
        curve["loss"] = [np.mean(losses[end - 50 : end]).round(6) for end in ends]
        tables.append(pd.DataFrame(curve))
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n")
    with atomic_path(curves) as temporary:
        pd.concat(tables).to_csv(temporary, index=False)


# ------------------------------------------------------------------------------------- command line


def main(
    out: Annotated[Path, typer.Option(help="For the models; then run model_card.")] = MODELS,
    work: Annotated[Path, typer.Option(help="For checkpoints.")] = Path("runs/training"),
    minutes: Annotated[float, typer.Option(help="Time for all stages together.")] = 240,
    pictures: Annotated[int, typer.Option(help="Of the training set.")] = len(world.TRAINING_IDS),
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train the phantom's models, or go on after a stop; then export them."""
    work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        train_stage(stage, work, minutes * SHARES[stage], pictures, device)
    export(work, out)
