"""What NSD with Stable Diffusion v1-4 takes, estimated: `python -m studies.costs`.

Bytes of files follow from their shapes. Operations and memory of the models are counted on tensors
without content (PyTorch's meta device): no weights, no GPU and little memory are needed. Only the
share of a GPU's peak that is reached is assumed.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from minddiff_utils.datasets.fetch.recordings import CAPTIONS_ZIP_BYTES

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
TRIALS = 750  # a session
PICTURES = (73_000, 425, 425, 3)  # of nsd_stimuli.hdf5, uint8
TEST_PICTURES = 982  # seen by the subjects 1, 2, 5 and 7 in 37 sessions

# Dense bfloat16 peak in operations a second, from the maker's data sheets.
GPUS = {"24 GB (RTX 4090)": 165e12, "80 GB (A100)": 312e12}
SHARE = 0.4  # of the peak that is reached: assumed

# The parts of Stable Diffusion v1-4 whose configuration differs from diffusers' defaults.
UNET = {"sample_size": 64, "cross_attention_dim": 768}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
OTHERS = {"text encoder": 123_060_480, "CLIP ViT-B/32": 151_277_313}  # parameters
JUDGE = {"CLIP ViT-L/14": 427_616_513}  # judges the pictures when all are made

# What `features.h5` keeps of a picture: values, bytes of each.
FEATURES = {
    "z": (4 * 64 * 64, 4),
    "c": (77 * 768, 4),
    "blocks": (6 * 50 * 768, 2),
    "embedding": (512, 4),
}
SEEN = 10_000  # pictures that a subject sees in 40 sessions
TESTED = 1_000  # of them
TRAINED = SEEN - TESTED
PAPERS = ("subj01", "subj02", "subj05", "subj07")  # the paper's subjects
COMPONENTS = 128  # of `z` and each block, that stage 2 compares
BETWEEN = 512  # components of a family, that its decoder decodes
METHODS = 9  # pictures in `reconstructions.h5`: seen, both stages, ablations, four controls
RUNS = 4  # of stage 2: the result, without z, without c, control
VOXELS = 11_694  # of the paper's eleven regions in subject 1


@dataclass(frozen=True)
class Loop:
    """Algorithm 1: so many denoising steps, each with and without condition, many times over."""

    denoising: int
    iterations: int

    @property
    def forwards(self) -> int:
        """Passes through the UNet, one picture and one condition each."""
        return self.denoising * 2 * self.iterations

    @property
    def equivalents(self) -> int:
        """The same with the way back: compute, compute again, and twice as much for gradients."""
        return 4 * self.forwards

    def operations(self, counts: "Counts") -> float:
        """Operations a picture; the autoencoder's decoder runs once an iteration, and back."""
        return self.equivalents * counts.unet + 3 * self.iterations * counts.decoder

    def saved(self, counts: "Counts", recompute: bool) -> int:
        """Bytes that are kept of a picture for the way back."""
        if recompute:
            return max(counts.unet_saved, counts.decoder_saved)
        return self.denoising * counts.unet_saved + counts.decoder_saved


@dataclass(frozen=True)
class Pass:
    """The guided pass: some looks at every denoising step, then the step itself.

    A look goes through the half under the text alone (`through="text"`), the step through both.
    """

    denoising: int
    looks: int

    @property
    def forwards(self) -> int:
        """Passes through the UNet, one picture and one condition each."""
        return self.denoising * (self.looks + 2)

    @property
    def equivalents(self) -> int:
        """The same with the way back of each look, which takes twice as long as the way there."""
        return self.denoising * (3 * self.looks + 2)

    def operations(self, counts: "Counts") -> float:
        """Operations a picture; the decoder runs once a look, and back, and once at the end."""
        decoded = 3 * self.looks * self.denoising + 1
        return self.equivalents * counts.unet + decoded * counts.decoder

    def saved(self, counts: "Counts", recompute: bool = False) -> int:
        """Bytes that are kept of a picture for the way back: at most of a step and the decoder."""
        return counts.unet_saved + counts.decoder_saved


LOOPS = {
    "the paper's: 35 steps, 300 iterations": Loop(35, 300),
    "this book's: 14 steps, 2 looks each": Pass(14, 2),
}


@dataclass(frozen=True)
class Counts:
    """Operations (a multiplication and an addition are two) and bytes of the models."""

    unet: float  # operations of one pass, one picture, one condition
    decoder: float  # of the autoencoder's decoder
    parameters: dict[str, int]
    unet_saved: int  # bytes kept for the gradient of one denoising step, bfloat16, two conditions
    decoder_saved: int  # bytes kept for the gradient of the decoder, bfloat16


def betas_bytes(subject: str) -> int:
    """Bytes of one session's betas: trials × voxels of the volume × 2."""
    (x, y, z), _ = VOLUMES[subject]
    return TRIALS * x * y * z * 2


def files() -> pd.DataFrame:
    """Sizes of the large files, in gigabytes of 10⁹ bytes, one row a subject."""
    rows = {
        subject: {
            "volume": " × ".join(map(str, shape)),
            "sessions": sessions,
            "a session, GB": betas_bytes(subject) / 1e9,
            "all, GB": sessions * betas_bytes(subject) / 1e9,
        }
        for subject, (shape, sessions) in VOLUMES.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def stimuli_bytes() -> int:
    """Bytes of `nsd_stimuli.hdf5`."""
    pictures, height, width, colours = PICTURES
    return pictures * height * width * colours


def download_bytes(*subjects: str, sessions: int | None = None) -> int:
    """Bytes to download for subjects: betas of all or the first sessions, pictures, captions."""
    betas = sum(betas_bytes(name) * (sessions or VOLUMES[name][1]) for name in subjects)
    return betas + stimuli_bytes() + CAPTIONS_ZIP_BYTES


def feature_bytes() -> int:
    """Bytes that `features.h5` keeps of one picture."""
    return sum(values * size for values, size in FEATURES.values())


def decoder_bytes(n_between: int, n_voxels: int, n_targets: int) -> int:
    """Bytes of a saved decoder: from voxels to what is between, and on to targets, in float32."""
    return 4 * n_between * (n_voxels + n_targets)


def projection_bytes() -> int:
    """Bytes of the projections of `z` and all blocks, which stage 2 holds in float32."""
    values = FEATURES["blocks"][0] + FEATURES["z"][0]
    return 4 * values * COMPONENTS


def result_bytes() -> dict[str, int]:
    """Bytes of a subject's results on disk, file by file.

    Returns
    -------
    dict of str to int
        Pictures are counted as they are in memory; `reconstructions.h5` compresses them.
    """
    values = sum(number for number, _ in FEATURES.values())
    # The six blocks of CLIP are six files of decoders.
    families = len(FEATURES) + 5
    decoders = decoder_bytes(BETWEEN, families * VOXELS, values)
    decoded = 4 * TESTED * (values + 7 * COMPONENTS) + projection_bytes()
    pictures = TESTED * 512 * 512 * 3
    return {
        "betas.h5": 2 * 40 * TRIALS * VOXELS,
        "features.h5": SEEN * feature_bytes(),
        "decoders": decoders,
        "decoded.h5, decoded_shuffled.h5": 2 * decoded,
        "stage1.h5, trace*.h5": (1 + RUNS) * pictures,
        "reconstructions.h5": METHODS * pictures,
    }


def count() -> Counts:
    """Count operations and bytes on Stable Diffusion v1-4's architecture, for 512 × 512 pictures.

    Returns
    -------
    Counts
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET).bfloat16()
        vae = AutoencoderKL(**VAE).bfloat16()
        z = torch.empty(2, 4, 64, 64, dtype=torch.bfloat16)
        c = torch.empty(2, 77, 768, dtype=torch.bfloat16)
    unet.requires_grad_(False)
    vae.requires_grad_(False)
    step = torch.zeros((), device="meta")

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

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _flash():
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _Flash(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: not the matrix of all pairs of places."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _flash():
    """Let attention on the meta device keep as little as on a GPU."""

    def attention(query, key, value, *_, **__):
        return _Flash.apply(query, key, value)

    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attention):
        yield


def time_table(counts: Counts) -> pd.DataFrame:
    """Estimate stage 2 on each GPU: one row a loop.

    Returns
    -------
    DataFrame
        Passes through the UNet, as many as the way back makes of them, and 10¹⁵ operations a
        picture; for each GPU, seconds a picture and hours for all test pictures of a subject.
    """
    rows = {}
    for name, loop in LOOPS.items():
        operations = loop.operations(counts)
        row = {"UNet passes": loop.forwards, "as much as, with gradients": loop.equivalents}
        row |= {"10^15 operations": operations / 1e15}
        for gpu, peak in GPUS.items():
            seconds = operations / (SHARE * peak)
            row |= {f"{gpu}: s": seconds, f"{gpu}: h": TEST_PICTURES * seconds / 3600}
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def memory(counts: Counts, loop: Loop | Pass, batch: int, recompute: bool) -> float:
    """Estimate the bytes on the GPU in stage 2: weights, projections, and what the way back needs.

    Parameters
    ----------
    counts : Counts
    loop : Loop or Pass
    batch : int
        Pictures at a time.
    recompute : bool
        Of Algorithm 1: whether denoising steps are computed again on the way back, one after the
        other.
    """
    kept = batch * loop.saved(counts, recompute)
    return 2 * sum(counts.parameters.values()) + projection_bytes() + kept


def main() -> None:
    """Print sizes, counts, times and memory."""
    print("Betas (10^9 bytes):")
    print(files().round(2).to_string())
    print(f"\nnsd_stimuli.hdf5: {stimuli_bytes() / 1e9:.1f} GB")
    for names, few in ((("subj01",), None), (PAPERS, None), (("subj01",), 3)):
        size = download_bytes(*names, sessions=few) / 1e9
        print(f"to download for {', '.join(names)}, {few or 'all'} sessions: {size:.0f} GB")
    print(f"features.h5: {feature_bytes()} bytes a picture, {SEEN * feature_bytes() / 1e9:.1f} GB")
    print(f"voxels of subj01: {40 * TRIALS * VOXELS * 4 / 1e9:.1f} GB in float32")
    results = result_bytes()
    print(f"c of {TRAINED} training pictures: {TRAINED * FEATURES['c'][0] * 4 / 1e9:.1f} GB")
    print("\nResults of a subject (10^9 bytes):")
    for name, size in {**results, "all": sum(results.values())}.items():
        print(f"  {name}: {size / 1e9:.1f}")
    print(f"projections that stage 2 holds: {projection_bytes() / 1e9:.2f} GB")
    counts = count()
    print(f"\nOne pass through the UNet: {counts.unet / 1e12:.2f} · 10^12 operations")
    print(f"One pass through the decoder: {counts.decoder / 1e12:.2f} · 10^12 operations")
    total = sum(counts.parameters.values())
    for name, number in {**counts.parameters, **JUDGE}.items():
        size = 4 * number / 1e9
        print(f"{name}: {number / 1e6:.0f} million parameters, {size:.2f} GB in float32")
    print(f"All but the judge: {total / 1e6:.0f} million, {2 * total / 1e9:.1f} GB in bfloat16")
    for name in ("unet_saved", "decoder_saved"):
        print(f"{name}: {getattr(counts, name) / 1e9:.1f} GB")
    print(f"\nStage 2, estimated at {SHARE:.0%} of each GPU's peak:")
    print(time_table(counts).round(2).T.to_string())
    print("\nMemory of stage 2, estimated, GB:")
    for name, loop in LOOPS.items():
        for batch in (1, 2, 4, 12):
            for recompute in (True, False) if isinstance(loop, Loop) else (False,):
                size = memory(counts, loop, batch, recompute) / 1e9
                print(f"  {name}; batch={batch}, recompute={recompute}: {size:.1f}")


if __name__ == "__main__":
    main()
