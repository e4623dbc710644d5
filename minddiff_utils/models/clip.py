"""The picture side of a CLIP, and pictures as tensors."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel


class Clip:
    """The picture side of a CLIP: embeddings, and what its vision blocks compute.

    Parameters
    ----------
    model : transformers.CLIPModel
    settings : dict
        Preprocessing as in `preprocessor_config.json`; sizes are whole numbers in the files of
        the hub, mappings in newer ones.
    """

    def __init__(self, model: CLIPModel, settings: dict):
        self.model = model.eval().requires_grad_(False)
        crop, size = settings["crop_size"], settings["size"]
        self.edge = crop if isinstance(crop, int) else crop["height"]
        self.shortest = size if isinstance(size, int) else size["shortest_edge"]
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
        starts = range(0, len(pictures), batch)
        parts = (to_rgb(pictures[start : start + batch], self.device) for start in starts)
        rows = [self.structure(rgb, ())["embedding"] for rgb in parts]
        return F.normalize(torch.cat(rows), dim=1).cpu().numpy()


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
