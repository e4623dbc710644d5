"""Measurements and comparisons behind the book's settings: `python -m studies NAME`; see README."""
