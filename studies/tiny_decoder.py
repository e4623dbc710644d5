"""Distil a small decoder from the phantom's autoencoder: for the gradient of stage 2."""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderTiny
from torch import Tensor

from minddiff_utils.models.stable_diffusion import Generator, load_generator
from studies.held_out import MODELS
from studies.training import LEARNT, TrainingSet, load_ema, record, train

# The shape of TAESD, thinner and two levels less deep: 4 × 16 × 16 to 64 × 64 pixels. Its encoder,
# which nothing uses, comes along because diffusers loads both.
SHAPE = {
    "encoder_block_out_channels": (4, 4, 4),
    "num_encoder_blocks": (1, 1, 1),
    "decoder_block_out_channels": (16, 16, 16),
    "num_decoder_blocks": (6, 3, 1),
}
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
    """Train it until the time is spent, save it, and say how large it is.

    What its gradients are worth, `compare --change gradient_decoder=tiny` shows.
    """
    work.mkdir(parents=True, exist_ok=True)
    generator = load_generator(out, device, "float32")
    data = TrainingSet(work, pictures)
    tiny = distil(generator, data, work, minutes)
    tiny.half().save_pretrained(out / "tiny_decoder")
    record(["tiny_decoder"], work, out)
    print(f"{sum(value.numel() for value in tiny.decoder.parameters()):,} weights in the decoder")


def distil(generator: Generator, data: TrainingSet, work: Path, minutes: float) -> AutoencoderTiny:
    """Train a small decoder to paint what the full one does, first in pixels, then for the guide.

    Returns
    -------
    AutoencoderTiny
        With the running mean of its weights. The noted loss is that in pixels.
    """
    torch.manual_seed(LEARNT.index("tiny_decoder"))
    latents, painted = teach(generator, data)
    tiny = AutoencoderTiny(**SHAPE).to(generator.device, memory_format=torch.channels_last)
    tiny.encoder.requires_grad_(False)
    began = time.monotonic()

    def loss_of(tiny: AutoencoderTiny, rows: np.ndarray) -> Tensor:
        with torch.autocast(generator.device.type, enabled=False):
            found, wanted = tiny.decode(latents[rows]).sample, painted[rows].float()
            loss = F.mse_loss(found, wanted) + 0.1 * F.l1_loss(found, wanted)
            if time.monotonic() - began > PIXELS_ALONE * 60 * minutes:
                error = 0.1 * guide_error(generator, found, wanted)
                loss = loss + error - error.detach()  # its gradient alone
            return loss

    (work / "tiny_decoder.pt").unlink(missing_ok=True)  # of another autoencoder, perhaps
    return load_ema(tiny, train("tiny_decoder", tiny, loss_of, data, work, minutes))


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
        true = generator.guide.structure(wanted, BLOCKS)
    seen = generator.guide.structure(found, BLOCKS)
    names = [f"block_{number}" for number in BLOCKS]
    shares = [F.mse_loss(seen[name], true[name]) / true[name].var(0).mean() for name in names]
    return torch.stack(shares).mean()
