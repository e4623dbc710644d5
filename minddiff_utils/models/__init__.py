"""Stable Diffusion and CLIP, which know no brain."""
