"""Distil a small decoder from the phantom's autoencoder: for the gradient of stage 2."""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderTiny
from torch import Tensor
from tqdm import tqdm

from minddiff_utils.io import atomic_path
from minddiff_utils.models.stable_diffusion import Generator, load_generator
from minddiff_utils.phantom import world
from studies.held_out import MODELS
from studies.training import FIRST_TRAINING_ID, TrainingSet, learning_rate, update

# The shape of TAESD, thinner and two levels less deep: 4 × 16 × 16 to 64 × 64 pixels. Its encoder,
# which nothing uses, comes along because diffusers loads both.
SHAPE = {
    "encoder_block_out_channels": (4, 4, 4),
    "num_encoder_blocks": (1, 1, 1),
    "decoder_block_out_channels": (16, 16, 16),
    "num_decoder_blocks": (6, 3, 1),
}
BATCH, RATE = 32, 2e-3
BLOCKS = range(1, 7)  # of the guide: what stage 2 compares
LARGEST_JITTER = 0.3  # of the latents' deviation
PIXELS_ALONE = 0.6  # of the time; then the guide looks too, which costs three times as much


def main(
    out: Annotated[Path, typer.Option(help="Folder of models; the decoder goes there.")] = MODELS,
    work: Annotated[Path, typer.Option(help="For drawings.")] = Path("runs/training"),
    minutes: Annotated[float, typer.Option(help="Time to train.")] = 30,
    pictures: Annotated[int, typer.Option(help="Of the training set.")] = 8_000,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train it until the time is spent, save it, and say how well gradients agree."""
    work.mkdir(parents=True, exist_ok=True)
    generator = load_generator(out, device, "float32")
    data = TrainingSet(work, pictures)
    tiny, losses = distil(generator, data, minutes)
    tiny.half().save_pretrained(out / "tiny_decoder")
    cuda, n = generator.device.type == "cuda", torch.get_num_threads()
    about = {"pictures": pictures, "batch": BATCH, "learning_rate": RATE, "seed": 0}
    about["device"] = torch.cuda.get_device_name(device) if cuda else f"CPU, {n} core(s)"
    record(out, {**about, "steps": len(losses), "minutes": minutes}, losses)
    found = agreement(generator, tiny.float())
    print(pd.Series(found).to_string(float_format="{:.3f}".format))


def record(out: Path, about: dict, losses: list[float]) -> None:
    """Put settings and losses beside those of the other models, for the model card."""
    path, curves = out / "training.json", out / "curves.csv"
    known = json.loads(path.read_text(encoding="utf-8"))
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**known, "tiny_decoder": about}, indent=1) + "\n")
    step = np.arange(50, len(losses) + 1, 50)
    means = [np.mean(losses[end - 50 : end]).round(6) for end in step]
    mine = {"stage": "tiny_decoder", "step": step, "loss": means}
    mine["minutes"] = (step * about["minutes"] / len(losses)).round(2)
    others = pd.read_csv(curves).query("stage != 'tiny_decoder'")
    with atomic_path(curves) as temporary:
        pd.concat([others, pd.DataFrame(mine)]).to_csv(temporary, index=False)


def distil(
    generator: Generator, data: TrainingSet, minutes: float
) -> tuple[AutoencoderTiny, list[float]]:
    """Train a small decoder to paint what the full one does, first in pixels, then for the guide.

    Returns
    -------
    tiny : AutoencoderTiny
        The running mean of its weights.
    losses : list of float
        Of each step, in pixels.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    latents, painted = teach(generator, data)
    tiny = AutoencoderTiny(**SHAPE).to(generator.device, memory_format=torch.channels_last)
    learning = list(tiny.decoder.parameters())
    optimiser = torch.optim.AdamW(learning, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    ema = {name: value.clone() for name, value in tiny.state_dict().items()}
    losses, began, bar = [], time.monotonic(), tqdm(desc="tiny decoder", mininterval=20)
    while (share := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate("decoder", len(losses), share) * RATE / 1e-3
        rows = rng.choice(len(data), min(BATCH, len(data)), replace=False)
        found, wanted = tiny.decode(latents[rows]).sample, painted[rows].float()
        loss = F.mse_loss(found, wanted) + 0.1 * F.l1_loss(found, wanted)
        losses.append(loss.item())
        if share > PIXELS_ALONE:
            loss = loss + 0.1 * guide_error(generator, found, wanted)
        update(tiny, ema, optimiser, loss, len(losses))
        bar.update()
        if len(losses) % 100 == 0:
            bar.set_postfix(loss=float(np.mean(losses[-100:])))
    tiny.load_state_dict(ema)
    return tiny.eval(), losses


@torch.no_grad()
def teach(generator: Generator, data: TrainingSet) -> tuple[Tensor, Tensor]:
    """Return latents, and what the full decoder paints of them in half precision.

    Every second latent is mixed with that of another drawing, and all are jittered: what the UNet
    predicts early in a pass is far from any drawing's.
    """
    latents, painted = [], []
    for rows in np.array_split(np.arange(len(data)), -(-len(data) // 64)):
        z = generator.encode_pictures(data.pictures[rows])
        share = torch.rand(len(z), 1, 1, 1, device=z.device)
        share[::2] = 1
        jitter = LARGEST_JITTER * torch.rand(len(z), 1, 1, 1, device=z.device) ** 2
        z = share * z + (1 - share) * z.flip(0) + jitter * torch.randn_like(z)
        latents.append(z)
        painted.append(generator.decode(z).half())
    return torch.cat(latents), torch.cat(painted)


def guide_error(generator: Generator, found: Tensor, wanted: Tensor) -> Tensor:
    """Error of the guide's blocks as a share of their variance, the mean over blocks."""
    with torch.no_grad():
        true = generator.structure(wanted, BLOCKS)
    seen = generator.structure(found, BLOCKS)
    names = [f"block_{number}" for number in BLOCKS]
    shares = [F.mse_loss(seen[name], true[name]) / true[name].var(0).mean() for name in names]
    return torch.stack(shares).mean()


def agreement(generator: Generator, tiny: AutoencoderTiny, n: int = 64) -> dict[str, float]:
    """Compare both decoders on drawings that neither was trained on.

    Returns
    -------
    dict of str to float
        Weights of the decoder; its PSNR against the full one in dB; mean cosine of the gradients,
        with respect to the latents, of the distance of the guide's blocks to another drawing's.
    """
    ids = range(FIRST_TRAINING_ID - n, FIRST_TRAINING_ID)
    pictures = np.stack([world.picture(number) for number in ids])
    z = generator.encode_pictures(pictures)
    target = generator.structure(generator.prepare(pictures[::-1].copy()), BLOCKS)
    gradients, painted = [], []
    for decode in (generator.decode, lambda z: tiny.decode(z).sample):
        leaf = z.clone().requires_grad_(True)
        rgb = decode(leaf)
        found = generator.structure(rgb, BLOCKS)
        loss = sum((found[f"block_{k}"] - target[f"block_{k}"]).square().sum() for k in BLOCKS)
        gradients.append(torch.autograd.grad(loss, leaf)[0].flatten(1))
        painted.append(rgb.detach().clamp(-1, 1))
    error = (painted[0] - painted[1]).square().mean()
    return {
        "weights of the decoder": sum(value.numel() for value in tiny.decoder.parameters()),
        "PSNR, dB": float(10 * torch.log10(4 / error)),
        "cosine of the gradients": F.cosine_similarity(*gradients).mean().item(),
    }
