"""Train the phantom's small models from nothing: autoencoder, two CLIPs, UNet and text encoder."""

import json
import math
import time
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
from minddiff_utils.phantom import world
from studies.architecture import pipeline_of
from studies.held_out import MODELS

FIRST_TRAINING_ID = world.TRAINING_IDS.start
STAGES = ("autoencoder", "decoder", "clip_guide", "clip_judge", "unet")
# Share of the time budget, pictures a step, peak learning rate of each stage.
SHARES = dict(zip(STAGES, (0.15, 0.1, 0.125, 0.125, 0.5), strict=True))
BATCH = dict(zip(STAGES, (16, 16, 192, 128, 48), strict=True))
LEARNING_RATE = dict(zip(STAGES, (1.5e-3, 1e-3, 1e-3, 1e-3, 1e-3), strict=True))
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
        return to_rgb(self.pictures[np.sort(rows)], device)


def to_rgb(pictures: np.ndarray, device) -> torch.Tensor:
    """Turn uint8 (n, h, w, 3) into float32 (n, 3, h, w) in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


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
    rows = np.sort(rows)
    z = latents[rows].to(device)
    out = model.decode(z + DECODER_JITTER * torch.randn_like(z)).sample.float()
    rgb = data.rgb(rows, device)
    return F.mse_loss(out, rgb) + 0.1 * F.l1_loss(out, rgb)


def clip_loss(model: nn.Module, data: TrainingSet, rows, device) -> torch.Tensor:
    """Symmetric contrastive loss of pictures and one of their five captions (CLIP, 2103.00020)."""
    rows = np.sort(rows)
    which = torch.randint(0, 5, (len(rows),))
    edge = model.config.vision_config.image_size
    rgb = clip_normalise(data.rgb(rows, device), edge)
    tokens = data.tokens[rows, which].to(device)
    logits = model(input_ids=tokens, pixel_values=rgb).logits_per_image.float()
    target = torch.arange(len(rows), device=device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def clip_normalise(rgb: torch.Tensor, edge: int) -> torch.Tensor:
    """Resize pictures in [-1, 1] to `edge` and apply the phantom CLIPs' mean and deviation."""
    if rgb.shape[-1] != edge:
        rgb = F.interpolate(rgb, (edge, edge), mode="bicubic", antialias=True, align_corners=False)
    return (rgb.clamp(-1, 1) / 2 + 0.5 - CLIP_MEAN) / CLIP_STD


class ConditionedUNet(nn.Module):
    """The UNet and the text encoder that learns with it, as one thing to optimise."""

    def __init__(self, unet: nn.Module, text: nn.Module):
        super().__init__()
        self.unet, self.text = unet, text


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


def unet_loss(model: ConditionedUNet, batch, levels: torch.Tensor) -> torch.Tensor:
    """Error of the predicted velocity, weighted by min(SNR, 5) (Hang et al. 2303.09556)."""
    latents, tokens, empty = batch
    step = torch.sigmoid(torch.randn(len(latents), device=latents.device) * 1.2 + 0.2)
    step = (step * len(levels)).long().clamp(0, len(levels) - 1)
    signal = levels[step].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noised = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    out = model.unet(noised, step, conditions(model.text, tokens, empty)).sample.float()
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


def load_checkpoint(path: Path, model, optimiser) -> tuple[dict, dict]:
    """Restore what `save_checkpoint` wrote; return the running mean and the progress."""
    kept = read_checkpoint(path)
    model.load_state_dict(kept["model"])
    optimiser.load_state_dict(kept["optimiser"])
    return kept["ema"], kept["progress"]


def learning_rate(stage: str, step: int, share: float) -> float:
    """Return the rate: a linear warm-up, then half a cosine over the `share` of time spent."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return LEARNING_RATE[stage] * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)


def train_stage(
    stage: str, work: Path, minutes: float, n_pictures: int, device: str, seed: int = 0
) -> Path:
    """Train one model until its time is spent; go on from its checkpoint where there is one.

    Parameters
    ----------
    stage : {"autoencoder", "decoder", "clip_guide", "clip_judge", "unet"}
        "decoder" goes on with the decoding half alone, so that the latents stay as they are and
        the UNet can learn beside it. It and "unet" need the checkpoint of "autoencoder"; "unet"
        starts its text encoder from the guide's text tower where that has been trained.
    work : Path
        Folder of checkpoints, logs and cached pictures.
    minutes : float
        Time to train in all, earlier runs counted in.
    n_pictures : int
        Size of the training set.
    device : str
        A torch device.
    seed : int
        Seed of initial weights and batches.

    Returns
    -------
    Path
        The checkpoint.
    """
    torch.manual_seed(seed + STAGES.index(stage))
    data = TrainingSet(work, n_pictures)
    model, loss_of = _prepare(stage, work, data, device)
    decay = 0.1 if stage.startswith("clip") else 1e-4
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    path = work / f"{stage}.pt"
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    progress = {"step": 0, "seconds": 0.0}
    if path.exists():
        ema, progress = load_checkpoint(path, model, optimiser)
        ema = {k: v.to(device) for k, v in ema.items()}
    if progress["seconds"] < 60 * minutes:
        cuda, n = torch.device(device).type == "cuda", torch.get_num_threads()
        progress["settings"] = {
            "pictures": n_pictures,
            "batch": BATCH[stage],
            "learning_rate": LEARNING_RATE[stage],
            "seed": seed + STAGES.index(stage),
            "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {n} core(s)",
        }
    torch.manual_seed(seed + 1000 + progress["step"])
    rng = np.random.default_rng(seed + progress["step"])

    started, saved, losses = time.monotonic() - progress["seconds"], time.monotonic(), []
    bar = tqdm(desc=stage, initial=progress["step"], mininterval=20, unit=" steps")
    while (elapsed := time.monotonic() - started) < 60 * minutes:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(stage, progress["step"], elapsed / (60 * minutes))
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = loss_of(model, rng.choice(len(data), BATCH[stage], replace=False))
        update(model, ema, optimiser, loss, progress["step"])
        progress["step"] += 1
        losses.append(loss.item())
        bar.update()
        progress["seconds"] = time.monotonic() - started
        if progress["step"] % 50 == 0:
            _log(path.with_suffix(".csv"), progress, float(np.mean(losses)))
            losses.clear()
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save_checkpoint(path, model, ema, optimiser, progress)
            saved = time.monotonic()
    progress["seconds"] = max(progress["seconds"], time.monotonic() - started)
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


def _log(path: Path, progress: dict, loss: float) -> None:
    minutes = round(progress["seconds"] / 60, 2)
    row = pd.DataFrame({"step": [progress["step"]], "minutes": minutes, "loss": round(loss, 6)})
    row.to_csv(path, mode="a", index=False, header=not path.exists())


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
    if (work / "clip_guide.pt").exists():
        ema = read_checkpoint(work / "clip_guide.pt")["ema"]
        tower = {k.removeprefix("text_model."): v for k, v in ema.items() if "text_model." in k}
        text.load_state_dict(tower, strict=False)
    text.set_attn_implementation("eager")
    model = ConditionedUNet(untrained("unet"), text).to(device)
    model.unet.set_attn_processor(AttnProcessor())
    latents, tokens = encode_latents(work, data, device).to(device), data.tokens.to(device)
    levels = load_scheduler().alphas_cumprod.to(device)
    empty = tokenize([""]).to(device)
    return model, lambda m, rows: unet_loss(m, (latents[rows], tokens[rows], empty), levels)


@torch.no_grad()
def encode_latents(work: Path, data: TrainingSet, device: str) -> torch.Tensor:
    """Return the latents of all training pictures in unit variance, float32 (n, 4, 16, 16)."""
    path, trained = work / f"latents-{len(data)}.npy", work / "autoencoder.pt"
    if not path.exists() or path.stat().st_mtime < trained.stat().st_mtime:
        model = trained_autoencoder(work).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            latents = [
                model.encode(data.rgb(rows, device)).latent_dist.mean.float().cpu()
                for rows in np.array_split(np.arange(len(data)), max(1, len(data) // 256))
            ]
        with atomic_path(path) as temporary:
            np.save(temporary, (torch.cat(latents) * model.config.scaling_factor).numpy())
    return torch.from_numpy(np.load(path))


# ------------------------------------------------------------------------------------------- export


def _load_ema(model: nn.Module, path: Path) -> nn.Module:
    model.load_state_dict(read_checkpoint(path)["ema"])
    return model.eval()


def trained_autoencoder(work: Path):
    """Return the autoencoder as far as it is, its `scaling_factor` set for unit variance."""
    paths = [work / f"{stage}.pt" for stage in ("decoder", "autoencoder")]
    path = next(path for path in paths if path.exists() or path == paths[-1])
    model = _load_ema(untrained("vae"), path)
    ids = range(FIRST_TRAINING_ID, FIRST_TRAINING_ID + 256)
    rgb = to_rgb(np.stack([world.picture(i) for i in ids]), "cpu")
    with torch.no_grad():
        latents = model.encode(rgb).latent_dist.mean
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return model


def export(work: Path, out: Path) -> None:
    """Save what has been trained as folders that diffusers and transformers load, in float16."""
    names = ("clip_guide", "clip_judge")
    clips = {name: _load_ema(untrained(name), work / f"{name}.pt").half() for name in names}
    both = ConditionedUNet(untrained("unet"), untrained("text_encoder"))
    both = _load_ema(both, work / "unet.pt").half()
    vae = trained_autoencoder(work).half()
    save_models(out, {"vae": vae, "unet": both.unet, "text_encoder": both.text}, clips)
    for name in (*names, "stable_diffusion/text_encoder"):
        _open_as_float32(out / name)
    _export_records(work, out)


def _open_as_float32(folder: Path) -> None:
    """Let transformers open half-precision weights in float32, as diffusers does.

    Otherwise a pipeline that is loaded without naming a precision is float16 in one part
    and float32 in another, and fails.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def _export_records(work: Path, out: Path) -> None:
    """Write the settings and loss curves of all stages, for the model card."""
    settings, curves = {}, []
    for stage in [name for name in STAGES if (work / f"{name}.pt").exists()]:
        progress = read_checkpoint(work / f"{stage}.pt")["progress"]
        minutes = round(progress["seconds"] / 60, 1)
        known = progress.get("settings", {})
        settings[stage] = {**known, "steps": progress["step"], "minutes": minutes}
        curves.append(read_log(work / f"{stage}.csv").assign(stage=stage))
    with atomic_path(out / "training.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n")
    with atomic_path(out / "curves.csv") as temporary:
        columns = ["stage", "step", "minutes", "loss"]
        pd.concat(curves).to_csv(temporary, columns=columns, index=False)


def read_log(path: Path) -> pd.DataFrame:
    """Read the losses of a stage, without lines that a run after a kill has written again."""
    if not path.exists():  # fewer than 50 steps
        return pd.DataFrame(columns=["step", "minutes", "loss"])
    return pd.read_csv(path).drop_duplicates("step", keep="last").sort_values("step")


# ------------------------------------------------------------------------------------- command line


def main(
    out: Annotated[Path, typer.Option(help="For the models; then run model_card.")] = MODELS,
    work: Annotated[Path, typer.Option(help="For checkpoints and logs.")] = Path("runs/training"),
    minutes: Annotated[float, typer.Option(help="Time for all stages together.")] = 240,
    stages: Annotated[str, typer.Option(help="Those to train, in order.")] = ",".join(STAGES),
    pictures: Annotated[int, typer.Option(help="Of the training set.")] = len(world.TRAINING_IDS),
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    threads: Annotated[int, typer.Option(help="Processor cores; 0: all.")] = 0,
) -> None:
    """Train the phantom's models, or go on after a stop; export them once all stages are there."""
    if threads:
        torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    for stage in [name for name in stages.split(",") if name]:
        train_stage(stage, work, minutes * SHARES[stage], pictures, device)
    needed = [name for name in STAGES if name != "decoder"]
    if all((work / f"{name}.pt").exists() for name in needed):
        export(work, out)
