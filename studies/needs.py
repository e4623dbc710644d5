"""What NSD with Stable Diffusion v1-4 takes, estimated: bytes, operations, hours, memory.

Bytes of files follow from their shapes. Operations and memory of the models are counted on tensors
without content (PyTorch's meta device): no weights, no GPU and little memory are needed. Only the
share of a GPU's peak that is reached is assumed. The page `run_nsd` shows these numbers.
"""

from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from minddiff_utils.datasets.fetch import CAPTIONS_ZIP_BYTES
from studies.architecture import UNET, VAE

# Shape (X, Y, Z) of each subject's func1pt8mm volume, and sessions.
VOLUMES = {
    "subj01": ((81, 104, 83), 40),
    "subj02": ((82, 106, 84), 40),
    "subj03": ((81, 106, 82), 32),
    "subj04": ((85, 99, 80), 30),
    "subj05": ((79, 97, 78), 40),
    "subj06": ((85, 113, 83), 32),
    "subj07": ((78, 95, 81), 40),
    "subj08": ((80, 103, 78), 30),
}
PAPERS = ("subj01", "subj02", "subj05", "subj07")  # the paper's subjects
TRIALS = 750  # a session
STIMULI_BYTES = 73_000 * 425 * 425 * 3  # of nsd_stimuli.hdf5, uint8
TEST_PICTURES = 982  # seen by the paper's subjects in 37 sessions
SEEN, TESTED = 10_000, 1_000  # pictures that a subject sees in 40 sessions; of them to test
# Of the paper's eleven regions in subject 1; and the share of a session's bytes that is fetched
# for as many, as `pytest -m slow -s tests/test_parts.py` measures it.
VOXELS, PART = 11_694, 0.099

# Dense bfloat16 peak in operations a second, from the maker's data sheets.
GPUS = {"24 GB (RTX 4090)": 165e12, "80 GB (A100)": 312e12}
SHARE = 0.4  # of the peak that is reached: assumed

# Parameters of what is on the GPU beside UNet and autoencoder.
OTHERS = {"text encoder": 123_060_480, "CLIP ViT-B/32": 151_277_313}

# What `features.h5` keeps of a picture: values, bytes of each.
FEATURES = {
    "z": (4 * 64 * 64, 4),
    "c": (77 * 768, 4),
    "blocks": (6 * 50 * 768, 2),
    "embedding": (512, 4),
}
COMPONENTS = 128  # of `z` and each block, that stage 2 compares
TARGETS = 512  # components of a feature space, that its decoder decodes
METHODS = 9  # files of pictures: seen, both stages, ablations, four controls
# The projections of `z` and all blocks, which stage 2 holds in float32.
PROJECTION_BYTES = 4 * (FEATURES["blocks"][0] + FEATURES["z"][0]) * COMPONENTS

# A picture's passes through the UNet (one condition each), the same with their gradients, and
# through the autoencoder's decoder. A gradient takes twice as long as its pass.
# The paper's loop makes 35 steps under both conditions in 300 iterations, and each again on the way
# back. The guided pass makes 14 steps, the first 11 after two gradient steps under the text.
PASSES = {
    "the paper's: 35 steps, 300 iterations": (35 * 2 * 300, 4 * 35 * 2 * 300, 3 * 300),
    "this book's: 14 steps, 22 gradient steps": (14 * 2 + 22, 14 * 2 + 3 * 22, 3 * 22 + 1),
}


class Counts(NamedTuple):
    """Operations (a multiplication and an addition are two) and bytes of the models."""

    unet: float  # operations of one pass, one picture, one condition
    decoder: float  # of the autoencoder's decoder
    parameters: dict[str, int]
    unet_saved: int  # bytes kept for the gradient of one denoising step, bfloat16, two conditions
    decoder_saved: int  # bytes kept for the gradient of the decoder, bfloat16


def files() -> pd.DataFrame:
    """Sizes of the large files, in gigabytes of 10⁹ bytes, one row a subject."""
    table = pd.DataFrame.from_dict(VOLUMES, orient="index", columns=["volume", "sessions"])
    voxels = table.volume.map(lambda shape: shape[0] * shape[1] * shape[2])
    table["a session, GB"] = TRIALS * voxels * 2 / 1e9
    table["all, GB"] = table.sessions * table["a session, GB"]
    return table


def download_gigabytes(*subjects: str, sessions: int | None = None, partly: bool = False) -> float:
    """Size of what is downloaded: betas of all or the first sessions, pictures, captions.

    In parts, a subject's voxels and pictures, each subject's own.
    """
    betas = files().loc[list(subjects)]
    each = betas["a session, GB"] * (sessions or betas.sessions) * (PART if partly else 1)
    pictures = STIMULI_BYTES * (len(subjects) * SEEN / 73_000 if partly else 1)
    return each.sum() + (pictures + CAPTIONS_ZIP_BYTES) / 1e9


def result_bytes() -> dict[str, int]:
    """Bytes of a subject's results on disk, file by file.

    Returns
    -------
    dict of str to int
        Pictures are counted as they are in memory.
    """
    values = sum(number for number, _ in FEATURES.values())
    spaces = len(FEATURES) + 5  # the six blocks of CLIP are six files of decoders
    pictures = TESTED * 512 * 512 * 3
    return {
        "betas.h5": 2 * 40 * TRIALS * VOXELS,
        "features.h5": SEEN * sum(number * size for number, size in FEATURES.values()),
        "decoders": 4 * TARGETS * (spaces * VOXELS + values),
        "decoded.h5, decoded_shuffled.h5": 2
        * (4 * TESTED * (values + 7 * COMPONENTS) + PROJECTION_BYTES),
        "reconstructions": METHODS * pictures,
    }


def count() -> Counts:
    """Count operations and bytes on Stable Diffusion v1-4's architecture, at 512 × 512."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET).bfloat16()
        vae = AutoencoderKL(**VAE).bfloat16()
        z = torch.empty(2, 4, 64, 64, dtype=torch.bfloat16)
        c = torch.empty(2, 77, 768, dtype=torch.bfloat16)
        step = torch.zeros(())
    unet.requires_grad_(False)
    vae.requires_grad_(False)

    def denoise(n: int) -> torch.Tensor:
        return unet(z[:n].requires_grad_(), step, encoder_hidden_states=c[:n]).sample

    def decode() -> torch.Tensor:
        return vae.decode(z[:1].requires_grad_()).sample

    return Counts(
        unet=_operations(lambda: denoise(1)),
        decoder=_operations(decode),
        parameters={"UNet": unet.num_parameters(), "autoencoder": vae.num_parameters(), **OTHERS},
        unet_saved=_saved_bytes(lambda: denoise(2)),
        decoder_saved=_saved_bytes(decode),
    )


@torch.no_grad()
def _operations(run: Callable[[], torch.Tensor]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def _saved_bytes(run: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd keeps for the way back; parameters do not count."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    # So that attention on the meta device keeps as little as on a GPU.
    attention = mock.patch(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda query, key, value, *_, **__: _Flash.apply(query, key, value),
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), attention:
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _Flash(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: not the matrix of all pairs of places."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def time_table(counts: Counts) -> pd.DataFrame:
    """Estimate stage 2 on each GPU: one row a solver.

    Returns
    -------
    DataFrame
        Passes through the UNet, as many as their gradients make of them, and 10¹⁵ operations a
        picture; for each GPU, seconds a picture and hours for all test pictures of a subject.
    """
    rows = {}
    for name, (passes, with_gradients, decoded) in PASSES.items():
        operations = with_gradients * counts.unet + decoded * counts.decoder
        row = {"UNet passes": passes, "as much as, with gradients": with_gradients}
        row |= {"10^15 operations": operations / 1e15}
        for gpu, peak in GPUS.items():
            seconds = operations / (SHARE * peak)
            row |= {f"{gpu}: s": seconds, f"{gpu}: h": TEST_PICTURES * seconds / 3600}
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def memory_table(counts: Counts) -> pd.DataFrame:
    """Estimate GB on the GPU in stage 2: a row a solver, a column a batch size.

    Weights in bfloat16, projections, and what the way back keeps of each picture: a step and the
    decoder; of the paper's loop only the larger one, or without `recompute` all steps.
    """
    unet, decoder = counts.unet_saved, counts.decoder_saved
    held = 2 * sum(counts.parameters.values()) + PROJECTION_BYTES
    kept = {
        "this book's guided pass": unet + decoder,
        "the paper's loop, recompute=true": max(unet, decoder),
        "the paper's loop, recompute=false": 35 * unet + decoder,
    }
    batches = (1, 2, 4, 12)
    rows = {name: [(held + n * each) / 1e9 for n in batches] for name, each in kept.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[f"batch={n}" for n in batches])


def main() -> None:
    """Print what NSD with Stable Diffusion takes: downloads, results, operations, time, memory."""
    print(f"Betas (10^9 bytes):\n{files().round(2).to_string()}")
    for names, few in ((("subj01",), None), (PAPERS, None), (("subj01",), 3)):
        size = download_gigabytes(*names, sessions=few)
        print(f"to download for {', '.join(names)}, {few or 'all'} sessions: {size:.0f} GB")
    print(f"in parts, for subj01, all: {download_gigabytes('subj01', partly=True):.0f} GB")
    print(f"voxels of subj01: {40 * TRIALS * VOXELS * 4 / 1e9:.1f} GB in float32")
    print(f"c of training pictures: {(SEEN - TESTED) * FEATURES['c'][0] * 4 / 1e9:.1f} GB")
    results = result_bytes()
    print("\nResults of a subject (10^9 bytes):")
    for name, size in {**results, "all": sum(results.values())}.items():
        print(f"  {name}: {size / 1e9:.1f}")
    print(f"a picture in features.h5: {results['features.h5'] / SEEN / 1e3:.0f} kB")
    print(f"projections that stage 2 holds: {PROJECTION_BYTES / 1e9:.2f} GB")
    counts = count()
    print(f"\nOne pass through the UNet: {counts.unet / 1e12:.2f} · 10^12 operations, keeping")
    print(f"{counts.unet_saved / 1e9:.1f} GB of a step for the way back; through the decoder")
    print(f"{counts.decoder / 1e12:.2f} · 10^12, keeping {counts.decoder_saved / 1e9:.1f} GB")
    for name, number in counts.parameters.items():
        print(f"{name}: {number / 1e6:.0f} million weights, {4 * number / 1e9:.2f} GB in float32")
    print(f"\nStage 2, estimated at {SHARE:.0%} of each GPU's peak:")
    print(time_table(counts).round(2).T.to_string())
    print(f"\nMemory of stage 2, estimated, GB:\n{memory_table(counts).round(0).to_string()}")
