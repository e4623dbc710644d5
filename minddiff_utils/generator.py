"""Stable Diffusion and CLIP behind one class: pictures to features, and differentiably back.

The only module that knows diffusers and transformers. It knows no brain.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging as transformers_logging

from minddiff_utils.files import InputError

__all__ = ["Clip", "Generator", "load_clip", "load_generator", "noise_like", "resolve_device"]

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


def resolve_device(device: str) -> torch.device:
    """Turn "auto" into CUDA, else Apple's MPS, else the CPU; check any other name.

    Raises
    ------
    InputError
        If torch does not know the device, or the machine lacks it.
    """
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f'device={device!r} cannot be used here ({str(error).splitlines()[0]}). Use "auto" or '
            '"cpu".'
        ) from None


def noise_like(z: torch.Tensor, seed: int, stimulus_ids: Sequence[int]) -> torch.Tensor:
    """Draw the diffusion noise of each picture from its own seed, once and for all.

    Parameters
    ----------
    z : Tensor, shape (n, channels, height, width)
    seed : int
        Seed of the run.
    stimulus_ids : sequence of n int
        With `seed`, names the noise: it depends on no other picture, batch or order.

    Returns
    -------
    Tensor of the shape, device and dtype of `z`
        Standard normal, drawn on the CPU in float32 so that every device gets the same.
    """
    drawn = []
    for stimulus in stimulus_ids:
        source = torch.Generator().manual_seed(seed * 1_000_003 + int(stimulus))
        drawn.append(torch.randn(z.shape[1:], generator=source))
    return torch.stack(drawn).to(z)


class Clip:
    """The picture side of a CLIP: embeddings, and what its vision blocks compute.

    Parameters
    ----------
    model : transformers.CLIPModel
    settings : dict
        Preprocessing as in `preprocessor_config.json`.
    """

    def __init__(self, model: CLIPModel, settings: dict):
        self.model = model.eval().requires_grad_(False)
        self.edge = int(settings["crop_size"]["height"])
        self.mean = torch.tensor(settings["image_mean"]).view(3, 1, 1)
        self.deviation = torch.tensor(settings["image_std"]).view(3, 1, 1)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def n_blocks(self) -> int:
        """How many transformer blocks the vision tower has."""
        return self.model.config.vision_config.num_hidden_layers

    def preprocess(self, rgb: torch.Tensor) -> torch.Tensor:
        """Resize and normalise as the model's own processor does, differentiably.

        Parameters
        ----------
        rgb : Tensor, shape (n, 3, h, w)
            Values in [-1, 1]; what lies outside is cut off.

        Returns
        -------
        Tensor, shape (n, 3, edge, edge)
        """
        height, width = rgb.shape[-2:]
        short = min(height, width)
        # In whole numbers: 425 * (64 / 425) is less than 64.
        size = [self.edge * height // short, self.edge * width // short]
        if size != [height, width]:
            rgb = F.interpolate(rgb, size, mode="bicubic", antialias=True, align_corners=False)
            top, left = (size[0] - self.edge) // 2, (size[1] - self.edge) // 2
            rgb = rgb[..., top : top + self.edge, left : left + self.edge]
        return (rgb.clamp(-1, 1) / 2 + 0.5 - self.mean.to(rgb)) / self.deviation.to(rgb)

    def structure(self, rgb: torch.Tensor, blocks: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return what stage 2 compares: the second linear layer of the MLP of vision blocks.

        Parameters
        ----------
        rgb : Tensor, shape (n, 3, h, w)
            In [-1, 1].
        blocks : sequence of int
            Counted from 1.

        Returns
        -------
        dict of str to Tensor
            "block_1" … shape (n, tokens, width), and "embedding", shape (n, dimensions), which is
            not normalised. Differentiable.
        """
        found: dict[str, torch.Tensor] = {}
        layers = self.model.vision_model.encoder.layers
        hooks = [
            layers[block - 1].mlp.fc2.register_forward_hook(
                lambda module, given, out, name=f"block_{block}": found.__setitem__(name, out)
            )
            for block in blocks
        ]
        try:
            pooled = self.model.vision_model(pixel_values=self.preprocess(rgb)).pooler_output
        finally:
            for hook in hooks:
                hook.remove()
        return {**found, "embedding": self.model.visual_projection(pooled)}

    @torch.no_grad()
    def embed(self, pictures: np.ndarray, batch: int = 64) -> np.ndarray:
        """Return the last-layer embedding of pictures.

        Parameters
        ----------
        pictures : ndarray of uint8, shape (n, h, w, 3)
        batch : int
            Pictures at a time.

        Returns
        -------
        ndarray of float32, shape (n, dimensions)
            Rows of length 1.
        """
        rows = []
        for start in range(0, len(pictures), batch):
            rgb = to_rgb(pictures[start : start + batch], self.device)
            rows.append(self.structure(rgb, ())["embedding"].float())
        return F.normalize(torch.cat(rows), dim=1).cpu().numpy()


def to_rgb(pictures: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """Turn uint8 (n, h, w, 3) into float32 (n, 3, h, w) in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(rgb: torch.Tensor) -> np.ndarray:
    """Turn (n, 3, h, w) in [-1, 1] into uint8 (n, h, w, 3); what lies outside is cut off."""
    scaled = ((rgb.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class Generator:
    """Stable Diffusion's parts, frozen, and the CLIP whose low layers guide stage 2.

    Parameters
    ----------
    pipeline : diffusers.StableDiffusionPipeline
    guide : Clip
    n_tokens : int
        Length of the text condition `c`; 0 takes the tokenizer's own.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, guide: Clip, n_tokens: int = 0):
        self.vae, self.unet = pipeline.vae, pipeline.unet
        self.text_encoder, self.tokenizer = pipeline.text_encoder, pipeline.tokenizer
        # Stable Diffusion v1-4 comes with PNDM; the method samples with DDIM at the same levels.
        settings = pipeline.scheduler.config
        self.scheduler = DDIMScheduler.from_config(settings, clip_sample=False)
        self.guide = guide
        self.n_tokens = n_tokens or self.tokenizer.model_max_length
        for part in (self.vae, self.unet, self.text_encoder):
            part.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """In what precision the models compute."""
        return self.unet.dtype

    def fingerprint(self) -> list[float]:
        """Return numbers that differ between models, to tell results of one from another's."""
        parts = (self.vae, self.unet, self.text_encoder, self.guide.model)
        return [sum(p.double().abs().sum().item() for p in part.parameters()) for part in parts]

    # ------------------------------------------------------------------------ pictures to features

    @torch.no_grad()
    def encode_pictures(self, pictures: np.ndarray) -> torch.Tensor:
        """Return the latents `z` of pictures: the posterior's mean, in unit variance.

        Parameters
        ----------
        pictures : ndarray of uint8, shape (n, h, w, 3)

        Returns
        -------
        Tensor, shape (n, channels, h / f, w / f)
        """
        rgb = to_rgb(pictures, self.device).to(self.dtype)
        return self.vae.encode(rgb).latent_dist.mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return the text condition `c`: the text encoder's output, averaged over captions.

        Parameters
        ----------
        captions : sequence of n sequences of str
            All captions of each picture.

        Returns
        -------
        Tensor, shape (n, tokens, width)
        """
        counts = [len(texts) for texts in captions]
        tokens = self.tokenizer(
            [text for texts in captions for text in texts],
            padding="max_length",
            max_length=self.n_tokens,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)
        hidden = self.text_encoder(input_ids=tokens).last_hidden_state
        return torch.stack([part.mean(0) for part in hidden.split(counts)])

    def structure(self, rgb: torch.Tensor, blocks: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the guide's structure features of pictures; see `Clip.structure`."""
        return self.guide.structure(rgb, blocks)

    # ------------------------------------------------------------------------ features to pictures

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Turn latents into pictures, differentiably: (n, 3, h, w), about in [-1, 1]."""
        return self.vae.decode(z / self.vae.config.scaling_factor).sample

    def timesteps(self, n_steps: int, strength: float) -> torch.Tensor:
        """Return the noise levels that img2img passes through, from noisy to clean.

        Parameters
        ----------
        n_steps : int
            Steps of the whole schedule.
        strength : float
            Share of the schedule, from the clean end, that is noised and denoised; 1 is all.

        Returns
        -------
        Tensor of int64, shape (round(n_steps * strength),)
        """
        if not 0 < strength <= 1 or n_steps < 1:
            raise InputError(
                f"strength={strength} and n_steps={n_steps}: expected 0 < strength ≤ 1 and at "
                "least one step."
            )
        self.scheduler.set_timesteps(n_steps)
        kept = max(1, round(n_steps * strength))
        return self.scheduler.timesteps[n_steps - kept :].to(self.device)

    def add_noise(self, z: torch.Tensor, noise: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return `z` at the noise level `step`: sqrt(a) z + sqrt(1 - a) noise."""
        return self.scheduler.add_noise(z, noise, step.repeat(len(z)))

    def denoise(
        self,
        z: torch.Tensor,
        c: torch.Tensor,
        timesteps: torch.Tensor,
        guidance: float,
        recompute: bool = False,
    ) -> torch.Tensor:
        """Denoise under a text condition with classifier-free guidance and deterministic DDIM.

        Parameters
        ----------
        z : Tensor, shape (n, channels, h, w)
            Latents at the noise level of the first step.
        c : Tensor, shape (n, tokens, width)
        timesteps : Tensor of int64
            From `timesteps`, all or a part of them.
        guidance : float
            Weight of the condition; 1 leaves the unconditional half out.
        recompute : bool
            Keep no activations, compute them again in the backward pass: the memory of one step.

        Returns
        -------
        Tensor, shape of `z`
            Differentiable in `z` and `c`.
        """
        empty = self.empty_condition().to(c).expand(len(c), -1, -1)
        for step in timesteps:
            arguments = (z, c, empty, step, guidance)
            if recompute:
                out = checkpoint(self._predict, *arguments, use_reentrant=False)
            else:
                out = self._predict(*arguments)
            z = self.scheduler.step(out, step, z, eta=0.0).prev_sample
        return z

    def _predict(self, z, c, empty, step, guidance: float) -> torch.Tensor:
        """One guided UNet prediction; both halves of the guidance in one batch."""
        if guidance == 1:
            return self.unet(z, step, c).sample
        both = self.unet(torch.cat([z, z]), step, torch.cat([empty, c])).sample
        without, with_text = both.chunk(2)
        return without + guidance * (with_text - without)

    @torch.no_grad()
    def empty_condition(self) -> torch.Tensor:
        """Return the condition of the empty caption, (1, tokens, width)."""
        return self.encode_captions([("",)])


def load_clip(folder: str | Path, device: str = "auto", dtype: torch.dtype = torch.float32) -> Clip:
    """Load a CLIP saved in the format of transformers.

    Parameters
    ----------
    folder : str or Path
    device : str
        "auto" or a torch device.
    dtype : torch.dtype

    Raises
    ------
    InputError
        If the folder or a part of it is missing.
    """
    folder = _checked_folder(folder, ("config.json", "preprocessor_config.json"))
    model = _reported(folder, CLIPModel.from_pretrained, dtype=dtype)
    settings, _ = BaseImageProcessor.get_image_processor_dict(folder)
    return Clip(model.to(resolve_device(device)), settings)


def load_generator(
    folder: str | Path,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    n_tokens: int = 0,
) -> Generator:
    """Load Stable Diffusion and the guide from `folder`/stable_diffusion and `folder`/clip_guide.

    Parameters
    ----------
    folder : str or Path
    device : str
        "auto" or a torch device.
    dtype : torch.dtype
    n_tokens : int
        Length of the text condition; 0 takes the tokenizer's own.

    Returns
    -------
    Generator

    Raises
    ------
    InputError
        If a folder or a part of the pipeline is missing; the message names it.
    """
    pipeline_folder = _checked_folder(
        Path(folder) / "stable_diffusion", ("model_index.json", *PARTS)
    )
    # The phantom has no safety checker, of which diffusers warns at length each time.
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        pipeline = _reported(
            pipeline_folder,
            StableDiffusionPipeline.from_pretrained,
            dtype=dtype,
            safety_checker=None,
            feature_extractor=None,
        )
    finally:
        diffusers_logging.set_verbosity(verbosity)
    guide = load_clip(Path(folder) / "clip_guide", device, dtype)
    return Generator(pipeline.to(resolve_device(device)), guide, n_tokens)


def _checked_folder(folder: str | Path, needed: Sequence[str]) -> Path:
    folder = Path(folder)
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}; expected a model folder as save_pretrained "
            "writes it. Check the parameter `models`, or restore the folder from the repository."
        )
    return folder


def _reported(folder: Path, load, **arguments):
    # Seconds of loading need no bar; it would stand where the bars of the work belong.
    transformers_logging.disable_progress_bar()
    try:
        return load(folder, local_files_only=True, **arguments)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"{folder} cannot be loaded: {str(error).splitlines()[0]} Restore the folder."
        ) from None
