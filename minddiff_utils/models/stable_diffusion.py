"""Stable Diffusion and CLIP behind one class: pictures to features, and differentiably back.

The only module that knows diffusers, and with `clip` the only one that knows transformers. It knows
no brain.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minddiff_utils.io import Ids, InputError, content_hash
from minddiff_utils.models import clip, hub
from minddiff_utils.settings import check, recall


def noise_like(z: Tensor, seed: int, stimulus_ids: Ids) -> Tensor:
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
    seeds = [int(seed) * 1_000_003 + int(stimulus) for stimulus in stimulus_ids]
    sources = [torch.Generator().manual_seed(number) for number in seeds]
    return torch.stack([torch.randn(z.shape[1:], generator=one) for one in sources]).to(z)


class Generator:
    """Stable Diffusion's parts, frozen, and the CLIP whose low layers guide stage 2.

    Parameters
    ----------
    pipeline : diffusers.StableDiffusionPipeline
    guide : Clip
    n_tokens : int
        Length of the text condition `c`; 0 takes the tokenizer's own.
    save_memory : str
        As for `load_generator`.
    load_tiny : callable
        Returns the small decoder; called when it is first needed.

    Attributes
    ----------
    device : torch.device
        Where the models are.
    compute_dtype : torch.dtype
        In what precision the models compute.
    dtype : torch.dtype
        Precision of `z`, `c`, pictures and gradients: at least float32. The models may compute in
        bfloat16, of which 1.00 and 1.01 are neighbours: an update of stage 2 would be lost there,
        and so would the small steps of the sampler.
    empty : Tensor, shape (1, tokens, width)
        The condition of the empty caption.
    size : int
        Side in pixels of the pictures that the UNet was made for: 512 for version 1.
    """

    def __init__(self, pipeline, guide: clip.Clip, n_tokens: int, save_memory: str, load_tiny):
        self.vae, self.unet = pipeline.vae, pipeline.unet
        self.text_encoder, self.tokenizer = pipeline.text_encoder, pipeline.tokenizer
        self.device, self.compute_dtype = self.unet.device, self.unet.dtype
        self.dtype = torch.promote_types(self.compute_dtype, torch.float32)
        halvings = len(self.vae.config.block_out_channels) - 1
        self.size = self.unet.config.sample_size * 2**halvings
        # Stable Diffusion v1-4 comes with PNDM; the method samples with DDIM at the same levels.
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        self.guide, self._load_tiny = guide, load_tiny
        self.n_tokens = n_tokens or self.tokenizer.model_max_length
        most = self.text_encoder.config.max_position_embeddings
        if self.n_tokens > most:
            raise InputError(f"n_tokens={n_tokens}: the text encoder has places for {most} tokens.")
        for part in (self.vae, self.unet, self.text_encoder):
            part.eval().requires_grad_(False)
        self.tokenizer.model_max_length = self.n_tokens
        # Most of a gradient step at small pictures goes into decoding, which is faster so on a CPU.
        if self.device.type == "cpu":
            self.vae.to(memory_format=torch.channels_last)
        _save_memory(pipeline, self.size, save_memory)
        self.empty = self.encode_captions([("",)])

    @cached_property
    def tiny(self) -> Any:
        """A small decoder of the same latents, fast and not quite exact: for gradients.

        Raises
        ------
        InputError
            If it is not there, and cannot be downloaded.
        """
        tiny: Any = self._load_tiny().eval().requires_grad_(False)
        if self.device.type == "cpu":
            tiny.to(memory_format=torch.channels_last)
        # Not by the method of diffusers, which warns of layers to keep in float32: there are none.
        return torch.nn.Module.to(tiny, self.device, self.compute_dtype)

    @cached_property
    def tiny_fingerprint(self) -> str:
        """Digest of the small decoder's weights in their precision, and of its settings."""
        return _digest({"tiny": self.tiny}, {"tiny": _settings(self.tiny.config)})

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights in their precision, and of all settings that results depend on."""
        parts = {"vae": self.vae, "unet": self.unet}
        parts |= {"text": self.text_encoder, "guide": self.guide.model}
        settings = {
            **{name: _settings(part.config) for name, part in parts.items()},
            "scheduler": _settings(self.scheduler.config),
            "tokenizer": json.loads(self.tokenizer.backend_tokenizer.to_str())["model"],
            "guide_size": (self.guide.edge, self.guide.shortest),
            "guide_scale": (self.guide.mean.tolist(), self.guide.deviation.tolist()),
            "n_tokens": self.n_tokens,
            "tiling": self.vae.use_tiling,
        }
        return _digest(parts, settings)

    # ------------------------------------------------------------------------ pictures to features

    def prepare(self, pictures: np.ndarray) -> Tensor:
        """Turn pictures into what `decode` would have painted: in [-1, 1], of the model's size.

        Features are computed from these, so that the seen and the painted picture go through the
        same hands.

        Parameters
        ----------
        pictures : ndarray of uint8, shape (n, h, w, 3)
            Others than square ones are cut to the square in their middle.

        Returns
        -------
        Tensor of `dtype`, shape (n, 3, size, size)
        """
        rgb = clip.to_rgb(pictures, self.device).to(self.dtype)
        side = min(rgb.shape[-2:])
        top, left = ((length - side) // 2 for length in rgb.shape[-2:])
        rgb = rgb[..., top : top + side, left : left + side]
        if side == self.size:
            return rgb
        resized = F.interpolate(rgb, (self.size, self.size), mode="bicubic", antialias=True)
        return resized.clamp(-1, 1)

    def resize(self, pictures: np.ndarray, batch: int = 64) -> np.ndarray:
        """Give pictures the size of painted ones, to compare them pixel by pixel.

        Parameters
        ----------
        pictures : ndarray of uint8, shape (n, h, w, 3)
        batch : int
            Pictures at a time.

        Returns
        -------
        ndarray of uint8, shape (n, size, size, 3)
        """
        parts = [pictures[start : start + batch] for start in range(0, len(pictures), batch)]
        return np.concatenate([clip.to_pictures(self.prepare(part)) for part in parts])

    @torch.no_grad()
    def encode_pictures(self, pictures: np.ndarray) -> Tensor:
        """Return the latents `z` of pictures: the posterior's mean, in unit variance.

        Parameters
        ----------
        pictures : ndarray of uint8, shape (n, h, w, 3)
            Of any size; see `prepare`.

        Returns
        -------
        Tensor, shape (n, channels, size / f, size / f)
        """
        rgb = self.prepare(pictures).to(self.compute_dtype)
        z = self.vae.encode(rgb).latent_dist.mean.to(self.dtype)
        return z * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[Sequence[str]]) -> Tensor:
        """Return the text condition `c`: the text encoder's output, averaged over captions.

        Parameters
        ----------
        captions : sequence of n sequences of str
            All captions of each picture.

        Returns
        -------
        Tensor, shape (n, tokens, width)
        """
        texts = [text for one in captions for text in one]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        hidden = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
        parts = hidden.to(self.dtype).split([len(one) for one in captions])
        return torch.stack([part.mean(0) for part in parts])

    # ------------------------------------------------------------------------ features to pictures

    def decode(self, z: Tensor, decoder: str = "full") -> Tensor:
        """Turn latents into pictures, differentiably: (n, 3, h, w), about in [-1, 1].

        Parameters
        ----------
        z : Tensor, shape (n, channels, size / f, size / f)
            In unit variance.
        decoder : {"full", "tiny"}
            The autoencoder's, or the small one that was made to paint the same.
        """
        vae = self.vae if decoder == "full" else self.tiny
        scaled = (z / vae.config.scaling_factor).to(self.compute_dtype)
        return vae.decode(scaled).sample.to(z.dtype)

    @torch.no_grad()
    def decode_pictures(self, z: np.ndarray) -> np.ndarray:
        """Turn latents into pictures as they are, with nothing painted.

        Parameters
        ----------
        z : float array, shape (n, channels, size / f, size / f)
            In unit variance, as `encode_pictures` returns them.

        Returns
        -------
        ndarray of uint8, shape (n, size, size, 3)
        """
        rows = torch.as_tensor(z, dtype=self.dtype, device=self.device).split(32)
        return np.concatenate([clip.to_pictures(self.decode(part)) for part in rows])

    def spans(self, n_steps: int) -> bool:
        """Whether a schedule of so many steps begins a step below the noisiest tenth, or higher.

        The scheduler rounds the distance of levels down: 334 steps of 1000 levels, 2 apart, begin
        at 667. It is left with that number of steps.
        """
        n_levels = self.scheduler.config.num_train_timesteps
        self.scheduler.set_timesteps(n_steps)
        levels = self.scheduler.timesteps
        return len(levels) == n_steps and int(levels[0]) + n_levels // n_steps >= 0.9 * n_levels

    def spanning_steps(self, most: int) -> int:
        """Return the largest number of steps, at most so many, of which `spans` is true."""
        return next(n for n in range(most, 0, -1) if self.spans(n))

    def timesteps(self, n_steps: int, strength: float) -> Tensor:
        """Return the noise levels that img2img passes through, from noisy to clean.

        Those of diffusers' DDIM for the model's own scheduler file, and the last of them as in its
        img2img pipeline; where `n_steps * strength` is no whole number, that one rounds down.

        Parameters
        ----------
        n_steps : int
            Steps of the whole schedule.
        strength : float
            Share of the schedule, from the clean end, that is noised and denoised; 1 is all.

        Returns
        -------
        Tensor of int64, shape (max(1, round(n_steps * strength)),)

        Raises
        ------
        InputError
            If a value is out of its range, or the schedule leaves out the noisiest levels.
        """
        n_levels = self.scheduler.config.num_train_timesteps
        if not 0 < strength <= 1 or not 1 <= n_steps < n_levels:
            most = n_levels - 1
            raise InputError(f"{strength=}, {n_steps=}: expected above 0 to 1, and 1 to {most}.")
        if not self.spans(n_steps):
            levels = self.scheduler.timesteps.tolist()
            raise InputError(
                f"n_steps={n_steps}: the scheduler turns this into {len(levels)} noise levels from "
                f"{levels[0]} to {levels[-1]}; they must begin near the noisiest, {n_levels - 1}. "
                f"{self.spanning_steps(n_steps)} steps do."
            )
        kept = max(1, round(n_steps * strength))
        return self.scheduler.timesteps[n_steps - kept :].to(self.device)

    def add_noise(self, z: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Return `z` at the noise level `step`: sqrt(a) z + sqrt(1 - a) noise."""
        return self.scheduler.add_noise(z, noise, step.repeat(len(z)))

    def denoise(
        self, z: Tensor, c: Tensor, steps: Tensor, guidance_scale: float, recompute: bool = False
    ) -> Tensor:
        """Denoise under a text condition with classifier-free guidance and deterministic DDIM.

        Parameters
        ----------
        z : Tensor, shape (n, channels, h, w)
            Latents at the noise level of the first step.
        c : Tensor, shape (n, tokens, width)
        steps : Tensor of int64
            From `timesteps`, all or a part of them.
        guidance_scale : float
            Weight of the condition; 1 leaves the unconditional half out.
        recompute : bool
            Keep no activations, compute them again in the backward pass: the memory of one step.

        Returns
        -------
        Tensor, shape of `z`
            Differentiable in `z` and `c`.
        """
        predict = self._predict
        if recompute:
            predict = partial(checkpoint, self._predict, use_reentrant=False)
        for step in steps:
            out = predict(z, c, step, guidance_scale)
            z = self.scheduler.step(out, step, z, eta=0.0).prev_sample
        return z

    def predict_clean(self, z: Tensor, c: Tensor, step: Tensor, guidance_scale: float) -> Tensor:
        """Return the clean latents that the UNet sees behind noisy ones, differentiably."""
        out = self._predict(z, c, step, guidance_scale)
        return self.scheduler.step(out, step, z, eta=0.0).pred_original_sample

    def noise_variance(self, step: Tensor) -> float:
        """Return (1 - a) / a of a step, the variance of the noise around the clean latent."""
        a = float(self.scheduler.alphas_cumprod[step])
        return (1 - a) / a

    def step_to(self, z: Tensor, z_0: Tensor, step: Tensor) -> Tensor:
        """Take the DDIM step from `z` to the next noise level, towards the clean latent `z_0`.

        The number of steps is that of the last call of `timesteps`.
        """
        alphas = self.scheduler.alphas_cumprod
        following = int(step) - len(alphas) // self.scheduler.num_inference_steps
        a = float(alphas[step])
        b = float(alphas[following] if following >= 0 else self.scheduler.final_alpha_cumprod)
        eps = (z - a**0.5 * z_0) / (1 - a) ** 0.5
        return b**0.5 * z_0 + (1 - b) ** 0.5 * eps

    def _predict(self, z, c, step, guidance_scale: float) -> Tensor:
        """One guided UNet prediction; both halves of the guidance in one batch."""
        if guidance_scale == 1:
            return self._unet(z, step, c)
        empty = self.empty.to(c).expand(len(c), -1, -1)
        both = self._unet(torch.cat([z, z]), step, torch.cat([empty, c]))
        without, with_text = both.chunk(2)
        return without + guidance_scale * (with_text - without)

    def _unet(self, z: Tensor, step: Tensor, c: Tensor) -> Tensor:
        """The UNet in its own precision, between inputs and output in theirs."""
        out = self.unet(z.to(self.compute_dtype), step, c.to(self.compute_dtype)).sample
        return out.to(z.dtype)


def _digest(parts: Mapping[str, torch.nn.Module], settings: Mapping[str, Any]) -> str:
    """Digest of all weights of some models, and of settings."""

    # One at a time: on a GPU, each is copied. NumPy has no bfloat16, hence the bytes.
    def arrays():
        yield json.dumps(settings, sort_keys=True, default=str), np.empty(0)
        for part, model in parts.items():
            for name, values in model.state_dict().items():
                yield f"{part} {name} {values.dtype}", values.cpu().reshape(-1).view(torch.uint8)

    return content_hash(arrays())


def _settings(config) -> dict:
    """A configuration of diffusers or transformers without versions and paths."""
    values = config.to_dict() if hasattr(config, "to_dict") else config
    return {k: v for k, v in values.items() if k[0] != "_" and k != "transformers_version"}


def load_generator(
    models: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    n_tokens: int = 0,
    guide: str = "",
    save_memory: str = "",
) -> Generator:
    """Load Stable Diffusion and the CLIP that guides stage 2, from folders or by name.

    Parameters
    ----------
    models : str or Path
        A folder with stable_diffusion/, clip_guide/ and tiny_decoder/, the folder of a diffusers
        pipeline, or a repository of the Hugging Face hub such as "CompVis/stable-diffusion-v1-4",
        with "@revision" after it if another one than the pinned is wanted.
    device : str
        "auto" (CUDA, else MPS, else the CPU) or a torch device.
    dtype : str or torch.dtype
        "auto" computes in bfloat16 on CUDA, in float32 elsewhere.
    n_tokens : int
        Length of the text condition; 0 takes the tokenizer's own.
    guide : str
        Folder or name of the CLIP; "" takes the one in `models`, or the paper's.
    save_memory : str
        Any of "attention" (attention a slice of its heads at a time: for stage 1 on devices
        without an efficient kernel), "tiling" (the autoencoder works on overlapping quarters of a
        picture: no longer exactly the same picture) and "checkpointing" (activations inside UNet
        and autoencoder are computed again in the backward pass), with commas between.

    Returns
    -------
    Generator

    Raises
    ------
    InputError
        If a part is missing and cannot be downloaded, or an option is not known.
    """
    place = clip.resolve_device(device)
    dtype = clip.resolve_dtype(dtype, place)
    folder = hub.find_model(hub.diffusion_name(models), hub.DIFFUSION_FILES, hub.PARTS)
    diffusers_logging.disable_progress_bar()
    # It warns at length that the phantom has no safety checker.
    diffusers_logging.set_verbosity_error()
    with clip.loading(folder):
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, dtype=dtype, safety_checker=None, feature_extractor=None
        )
    guiding = clip.load_clip(hub.clip_name(models, "guide", guide), device, dtype)
    tiny = partial(_load_tiny, hub.tiny_name(models))
    return Generator(pipeline.to(place), guiding, n_tokens, save_memory, tiny)


def _load_tiny(name: str) -> AutoencoderTiny:
    folder = hub.find_model(name, hub.TINY_FILES, hub.TINY_FILES)
    return AutoencoderTiny.from_pretrained(folder, use_safetensors=True)


def _save_memory(pipeline: Any, size: int, save_memory: str) -> None:
    """Switch on what trades time for memory; see `load_generator`."""
    check(save_memory=save_memory)
    if "attention" in save_memory:
        pipeline.enable_attention_slicing()
    if "tiling" in save_memory:
        pipeline.vae.enable_tiling()
        # By default a tile is as large as the whole picture, and nothing is saved.
        pipeline.vae.tile_sample_min_size = size // 2
        pipeline.vae.tile_latent_min_size = pipeline.unet.config.sample_size // 2
    if "checkpointing" in save_memory:
        pipeline.unet.enable_gradient_checkpointing()
        pipeline.vae.enable_gradient_checkpointing()


def reload_generator(folder: str | Path) -> Generator:
    """Load the models again that chapter 02 was given, for the subject whose folder it is."""
    given = recall(folder)
    return load_generator(
        given.models, given.device, given.dtype, given.n_tokens, given.guide, given.save_memory
    )
