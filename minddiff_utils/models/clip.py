"""The picture side of a CLIP, and pictures as tensors.

Beside `generator`, the only module that knows transformers.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
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
        self.edge = _side(settings["crop_size"], "height")
        self.shortest = _side(settings["size"], "shortest_edge")
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
        size = [self.shortest * height // short, self.shortest * width // short]
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
            not normalised. Differentiable; of the dtype of `rgb`, whatever the model computes in.
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
            pixels = self.preprocess(rgb).to(self.model.dtype)
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        finally:
            for hook in hooks:
                hook.remove()
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
        rows = []
        for start in range(0, len(pictures), batch):
            rgb = to_rgb(pictures[start : start + batch], self.device)
            rows.append(self.structure(rgb, ())["embedding"])
        return F.normalize(torch.cat(rows), dim=1).cpu().numpy()


def _side(size: int | Mapping[str, int], key: str) -> int:
    """One side in pixels, as `preprocessor_config.json` gives it."""
    return int(size if isinstance(size, int) else size[key])


def to_rgb(pictures: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """Turn uint8 (n, h, w, 3) into float32 (n, 3, h, w) in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(rgb: torch.Tensor) -> np.ndarray:
    """Turn (n, 3, h, w) in [-1, 1] into uint8 (n, h, w, 3); what lies outside is cut off."""
    scaled = ((rgb.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
