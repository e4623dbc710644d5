"""Stable Diffusion and CLIP, which know no brain."""

import os

# Importing diffusers says twice that torchvision is not there, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
