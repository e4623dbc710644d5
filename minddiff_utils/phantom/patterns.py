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
    if kind == "random":
        density = 0.25 + 0.3 * rng.random()
        grid = np.array([[rng.random() < density for _ in range(10)] for _ in range(10)])
        return grid, "few" if density < 0.35 else "some" if density < 0.45 else "many"
    row, column = (pick(rng, (-1, 0, 1)) for _ in range(2))
    if kind == "letter":
        word, shape = _letter(rng)
        if rng.random() < 0.3:
            row, column, shape = 0, 0, shape.repeat(2, 0).repeat(2, 1)
    elif kind == "frame":
        side = pick(rng, (4, 6, 8))
        thickness = pick(rng, (1, 2)) if side == 8 else 1
        row, column = (0, 0) if side == 8 else (row, column)
        word, shape = _frame(side, side, thickness, rng.random() > 0.25 or side == 8)
    else:
        side = 8 if 3 + 1.5 * rng.random() > 3.5 else 6
        word, shape = _cross(side, side, 2, rng.random() < 0.5)
    height, width = shape.shape
    return _placed(shape, (10 - height) // 2 + row, (10 - width) // 2 + column), word


def wider_pattern(kind: str, rng: random.Random) -> tuple[np.ndarray, str]:
    """Return what `pattern` does, its forms at any place and of any proportions.

    `pattern` has 194 forms besides its random patches; training shows them all.
    """
    if kind == "random":
        return pattern(kind, rng)
    height, width = (pick(rng, range(5, 11)) for _ in range(2))
    thickness = pick(rng, (1, 2))
    if kind == "letter":
        word, shape = _letter(rng)
        shape = shape.repeat(pick(rng, (1, 2)), 0).repeat(pick(rng, (1, 2)), 1)
    elif kind == "frame":
        word, shape = _frame(height, width, thickness, rng.random() >= 0.15)
    else:
        word, shape = _cross(height, width, thickness, rng.random() < 0.5)
    row, column = (pick(rng, range(11 - side)) for side in shape.shape)
    return _placed(shape, row, column), word


def _letter(rng: random.Random) -> tuple[str, np.ndarray]:
    letter = pick(rng, tuple(LETTERS))
    return letter, np.array([[mark == "#" for mark in row] for row in LETTERS[letter].split()])


def _frame(height: int, width: int, thickness: int, hollow: bool) -> tuple[str, np.ndarray]:
    """Return a frame, or a square as wide as high."""
    if not hollow:
        return "square", np.ones((height, height), bool)
    inside = np.zeros((height - 2 * thickness, width - 2 * thickness), bool)
    return "frame", np.pad(inside, thickness, constant_values=True)


def _cross(height: int, width: int, thickness: int, upright: bool) -> tuple[str, np.ndarray]:
    """Return a plus sign, or a diagonal cross as wide as high."""
    if not upright:
        side = np.arange(height)
        diagonal = abs(side[:, None] - side) < thickness
        return "diagonal cross", diagonal | diagonal[:, ::-1]
    shape = np.zeros((height, width), bool)
    shape[(height - thickness) // 2 :][:thickness] = True
    shape[:, (width - thickness) // 2 :][:, :thickness] = True
    return "plus sign", shape


def _placed(shape: np.ndarray, row: int, column: int) -> np.ndarray:
    below, right = 10 - row - shape.shape[0], 10 - column - shape.shape[1]
    return np.pad(shape, ((row, below), (column, right)))
