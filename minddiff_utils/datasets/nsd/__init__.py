"""The Natural Scenes Dataset, and anything else written in its layout of folders and files."""
