"""The picture side of a CLIP, how it is loaded, and pictures as tensors."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel
from transformers.utils import logging

from minddiff_utils.io import InputError
from minddiff_utils.models import hub
from minddiff_utils.settings import check


class Clip:
    """The picture side of a CLIP: embeddings, and what its vision blocks compute.

    Parameters
    ----------
    model : transformers.CLIPModel
    settings : dict
        Preprocessing as in `preprocessor_config.json`; sizes are whole numbers in the files of
        the hub, mappings in newer ones.

    Attributes
    ----------
    device : torch.device
        Where the model is.
    n_blocks : int
        How many transformer blocks the vision tower has.
    """

    def __init__(self, model: CLIPModel, settings: dict):
        self.model, self.device = model.eval().requires_grad_(False), model.device
        self.n_blocks = len(model.vision_model.encoder.layers)
        self._embedded: dict[bytes, np.ndarray] = {}
        crop, size = settings["crop_size"], settings["size"]
        self.edge = crop if isinstance(crop, int) else crop["height"]
        self.shortest = size if isinstance(size, int) else size["shortest_edge"]
        self.mean = torch.tensor(settings["image_mean"]).view(3, 1, 1)
        self.deviation = torch.tensor(settings["image_std"]).view(3, 1, 1)

    def preprocess(self, rgb: Tensor) -> Tensor:
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
        size = [self.shortest * height // short, self.shortest * width // short]
        if size != [height, width]:
            rgb = F.interpolate(rgb, size, mode="bicubic", antialias=True)
        top, left = (size[0] - self.edge) // 2, (size[1] - self.edge) // 2
        rgb = rgb[..., top : top + self.edge, left : left + self.edge]
        return (rgb.clamp(-1, 1) / 2 + 0.5 - self.mean.to(rgb)) / self.deviation.to(rgb)

    def structure(self, rgb: Tensor, blocks: Sequence[int]) -> dict[str, Tensor]:
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
            not normalised. Differentiable; of the dtype of `rgb`, whatever the model computes in.
        """
        found: dict[str, Tensor] = {}
        tower = self.model.vision_model
        with ExitStack() as hooks:
            for block in blocks:
                keep = partial(_keep, found, f"block_{block}")
                layer = tower.encoder.layers[block - 1].mlp.fc2
                hooks.enter_context(layer.register_forward_hook(keep))
            pixels = self.preprocess(rgb).to(self.model.dtype)
            pooled = tower(pixel_values=pixels).pooler_output
        found["embedding"] = self.model.visual_projection(pooled)
        return {name: values.to(rgb.dtype) for name, values in found.items()}

    @torch.no_grad()
    def embed(self, pictures: np.ndarray, batch: int = 64) -> np.ndarray:
        """Return the last-layer embedding of pictures; each is computed once, and remembered.

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
        rows: list[np.ndarray] = []
        for start in range(0, len(pictures), batch):
            some = pictures[start : start + batch]
            keys = [hashlib.blake2b(picture.tobytes()).digest() for picture in some]
            new = [row for row, key in enumerate(keys) if key not in self._embedded]
            if new:
                found = self.structure(to_rgb(some[new], self.device), ())["embedding"]
                unit = F.normalize(found, dim=1).cpu().numpy()
                self._embedded.update(zip([keys[row] for row in new], unit, strict=True))
            rows += [self._embedded[key] for key in keys]
        return np.stack(rows)


def _keep(found: dict[str, Tensor], name: str, module, given, out: Tensor) -> None:
    found[name] = out


def to_rgb(pictures: np.ndarray, device: torch.device | str) -> Tensor:
    """Turn uint8 (n, h, w, 3) into float32 (n, 3, h, w) in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(rgb: Tensor) -> np.ndarray:
    """Turn (n, 3, h, w) in [-1, 1] into uint8 (n, h, w, 3); what lies outside is cut off."""
    scaled = ((rgb.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Load models: damaged files are told in one message.

    Without bars, which would stand where the work's belong.

    Raises
    ------
    InputError
        If the files in `folder` are damaged, or those of something else.
    """
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder} cannot be loaded: {reason} Restore the folder.") from None


def load_clip(name: str | Path, device: str = "auto", dtype: str | torch.dtype = "auto") -> Clip:
    """Load a CLIP in the format of transformers, from a folder or by its name on the hub.

    Parameters
    ----------
    name : str or Path
        A folder, or a repository of the Hugging Face hub such as "openai/clip-vit-base-patch32",
        with "@revision" after it if another one than the pinned is wanted.
    device, dtype : str, or torch.dtype
        As for `resolve_device` and `resolve_dtype`.

    Returns
    -------
    Clip

    Raises
    ------
    InputError
        If a part is missing and cannot be downloaded; the message says how to get it.
    """
    place = resolve_device(device)
    dtype = resolve_dtype(dtype, place)
    folder = hub.find_model(name, hub.CLIP_FILES, hub.CLIP_PARTS)
    with loading(folder):
        model: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=dtype)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
    return Clip(model.to(place), settings)


def resolve_device(device: str) -> torch.device:
    """Turn "auto" into the accelerator, CUDA or Apple's MPS, or else the CPU; check other names.

    Raises
    ------
    InputError
        If torch does not know the device, or the machine lacks it.
    """
    if device == "auto":
        device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f'device={device!r}: {reason}. Use "auto" or "cpu".') from None


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Turn "auto" into bfloat16 on a CUDA device that has it, into float32 elsewhere.

    Parameters
    ----------
    dtype : str or torch.dtype
        "auto", "float32", "bfloat16", "float16" or "float64".
    device : torch.device

    Raises
    ------
    InputError
        If the name is another.
    """
    if dtype == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if half else torch.float32
    return getattr(torch, check(dtype=str(dtype).removeprefix("torch."))["dtype"])
