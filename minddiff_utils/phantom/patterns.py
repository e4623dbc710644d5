"""Contrast patterns of the phantom's world: 10 x 10 patches, random or of a few forms."""

import random

import numpy as np

# Rows of four patches, from the top.
LETTERS = {
    "a": ".##. #..# #### #..# #..#", "c": "#### #... #... #... ####",
    "e": "#### #..# #### #... ####", "f": "#### #... ###. #... #...",
    "h": "#..# #..# #### #..# #..#", "l": "#... #... #... #... ####",
    "n": "#### #..# #..# #..# #..#", "o": "#### #..# #..# #..# ####",
    "p": "#### #..# #### #... #...", "r": "#### #... #... #... #...",
    "t": "#### .##. .##. .##. .##.", "u": "#..# #..# #..# #..# ####",
}  # fmt: skip


def pick(rng: random.Random, options):
    """Return one of `options`, a sequence."""
    return options[int(rng.random() * len(options))]


def pattern(kind: str, rng: random.Random) -> tuple[np.ndarray, str]:
    """Return a 10 x 10 contrast pattern (True: bright patch) and the word for its form."""
    grid = np.zeros((10, 10), dtype=bool)
    if kind == "random":
        density = 0.25 + 0.3 * rng.random()
        grid[:] = [[rng.random() < density for _ in range(10)] for _ in range(10)]
        return grid, "few" if density < 0.35 else "some" if density < 0.45 else "many"
    row, column = int(rng.random() * 3) - 1, int(rng.random() * 3) - 1
    if kind == "frame":
        half = 2 + int(rng.random() * 3)
        row, column = (0, 0) if half == 4 else (row, column)
        inner = half - 1 if half < 4 else half - 1 - int(rng.random() * 2)
        outer, hole = (slice(5 - n, 5 + n) for n in (half, inner))
        grid[outer, outer], word = True, "square"
        if rng.random() > 0.25 or half > 3:
            grid[hole, hole], word = False, "frame"
        return np.roll(grid, (row, column), (0, 1)), word
    if kind == "cross":
        down, across = np.arange(10)[:, None] - 4.5 - row, np.arange(10)[None] - 4.5 - column
        inside = np.maximum(abs(down), abs(across)) < 3 + 1.5 * rng.random()
        if rng.random() < 0.5:
            return inside & (np.minimum(abs(down), abs(across)) < 1), "plus"
        return inside & (np.minimum(abs(down - across), abs(down + across)) < 1.5), "cross"
    letter, shape = _letter(rng)
    if rng.random() < 0.3:
        grid[:, 1:9] = shape.repeat(2, 0).repeat(2, 1)
    else:
        grid[2 + row : 7 + row, 3 + column : 7 + column] = shape
    return grid, letter


def _letter(rng: random.Random) -> tuple[str, np.ndarray]:
    letter = pick(rng, tuple(LETTERS))
    return letter, np.array([[mark == "#" for mark in row] for row in LETTERS[letter].split()])


def wider_pattern(kind: str, rng: random.Random) -> tuple[np.ndarray, str]:
    """Return what `pattern` does, its forms at any place and of any proportions.

    `pattern` has 194 forms besides its random patches; training shows them all.
    """
    if kind == "random":
        return pattern(kind, rng)
    height, width = (5 + int(rng.random() * 6) for _ in range(2))
    thickness = 1 + int(rng.random() * 2)
    if kind == "letter":
        word, shape = _letter(rng)
        shape = shape.repeat(pick(rng, (1, 2)), 0).repeat(pick(rng, (1, 2)), 1)
    elif kind == "frame":
        word, shape = "frame", np.ones((height, width), bool)
        if rng.random() < 0.15:
            word, shape = "square", shape[:, :1].repeat(height, 1)
        else:
            shape[thickness:-thickness, thickness:-thickness] = False
    elif rng.random() < 0.5:
        word, shape = "plus", np.zeros((height, width), bool)
        shape[(height - thickness) // 2 :][:thickness] = True
        shape[:, (width - thickness) // 2 :][:, :thickness] = True
    else:
        word, shape = "cross", np.eye(height, dtype=bool)
        if thickness == 2:
            shape |= np.eye(height, k=1, dtype=bool) | np.eye(height, k=-1, dtype=bool)
        shape = shape | shape[:, ::-1]
    grid = np.zeros((10, 10), dtype=bool)
    row, column = (int(rng.random() * (11 - side)) for side in shape.shape)
    grid[row : row + shape.shape[0], column : column + shape.shape[1]] = shape
    return grid, word
