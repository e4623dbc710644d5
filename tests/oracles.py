"""What other programs make of the same inputs, for several test files."""

import copy

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image


def img2img(generator, z, c, seeds, n_steps, strength, guidance):
    """Latents by diffusers' own pipeline, for the same condition and noise; and the pipeline."""
    names = ("vae", "unet", "text_encoder", "tokenizer")
    parts = {name: getattr(generator, name) for name in names}
    parts["scheduler"] = copy.deepcopy(generator.scheduler)
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionImg2ImgPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        image=z,
        prompt_embeds=c,
        negative_prompt_embeds=generator.empty.expand_as(c),
        strength=strength,
        num_inference_steps=n_steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
    ).images
    return latents, pipeline


def structure_by_hooks(model, pixels):
    """Outputs of the MLP's second layers and the embedding, by hooks on transformers' own model."""
    found, hooks = {}, []
    for number, layer in enumerate(model.vision_model.encoder.layers, start=1):

        def keep(module, given, out, number=number):
            found[f"block_{number}"] = out

        hooks.append(layer.mlp.fc2.register_forward_hook(keep))
    with torch.no_grad():
        out = model.get_image_features(pixel_values=pixels)
    for hook in hooks:
        hook.remove()
    found["embedding"] = out if isinstance(out, torch.Tensor) else out.pooler_output
    return found


def pixels_by_pillow(pictures, mean, deviation, clip):
    """What CLIP's processor does to uint8 (n, h, w, 3), but for its rounding to 8 bits.

    Pillow resizes the processor's pictures, too; in floating point it rounds nothing.
    """
    height, width = pictures.shape[1:3]
    size = [clip.shortest * length // min(height, width) for length in (width, height)]
    top, left = ((length - clip.edge) // 2 for length in size[::-1])
    planes = np.moveaxis(pictures, 3, 1).reshape(-1, height, width).astype(np.float32)
    large = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in planes]
    cut = np.stack(large)[:, top : top + clip.edge, left : left + clip.edge].clip(0, 255) / 255
    rgb = torch.tensor(cut).view(-1, 3, clip.edge, clip.edge)
    return (rgb - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
