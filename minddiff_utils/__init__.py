"""MindDiffuser as a reproducible analysis: the functions behind the notebooks."""

__version__ = "0.1.0"
