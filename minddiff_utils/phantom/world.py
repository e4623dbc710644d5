"""The phantom's world: pictures and captions, each drawn from an integer id alone.

A picture is 64 x 64 RGB. Most show one to three things (a red house, a small yellow bird) in a
scene with a horizon; about one in seven is a 10 x 10 contrast pattern on grey, as in Miyawaki et
al. 2008. Shapes are polygons with vertices on an integer grid, drawn at four times the size and
averaged down, so that the same id gives the same bytes on every machine.
"""

import math
import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from minddiff_utils.datasets.patterns import pattern_picture

TRAINING_IDS = range(1_000_000, 1_048_000)  # what the phantom's models were trained on
FIRST_WIDER_ID = 3_000_000  # from here on: patterns of more forms than those models were shown
SIZE = 64
OVERSAMPLING = 4
KINDS = ("sun", "tree", "house", "fish", "boat", "star", "flower", "bird", "car", "cat")
SKY_KINDS = ("sun", "star", "bird")
COLOURS = {
    "red": (222, 52, 48),
    "orange": (246, 146, 40),
    "yellow": (250, 218, 62),
    "green": (44, 154, 74),
    "blue": (44, 98, 214),
    "purple": (140, 70, 178),
    "pink": (246, 138, 184),
    "white": (246, 246, 242),
}
SETTINGS = ("day", "sunset", "night", "sea", "snow", "desert")
PATTERN_KINDS = ("random", "frame", "cross", "letter")
OUTLINE = (38, 32, 48)


class Thing(NamedTuple):
    """One thing in a scene; `size` is its diameter, lengths in pixels from the top left corner."""

    kind: str
    colour: str
    size: float
    x: float
    y: float
    angle: float
    flip: bool


class Scene(NamedTuple):
    """What a picture shows; `things` is empty and `pattern` set where `setting` is "pattern"."""

    setting: str
    horizon: float
    things: tuple[Thing, ...]
    pattern: np.ndarray | None
    pattern_kind: str | None


# ---------------------------------------------------------------------------------- what is shown


def scene(i: int) -> Scene:
    """Return what picture `i` shows.

    Parameters
    ----------
    i : int
        Any integer from 0; the same id gives the same scene everywhere. From `FIRST_WIDER_ID` on
        all are contrast patterns, with their forms at more places and in more proportions.

    Returns
    -------
    Scene
    """
    rng = _generator(i, "scene")
    if _shows_pattern(i, rng):
        kind, grid, _ = _drawn_pattern(i, rng)
        return Scene("pattern", SIZE / 2, (), grid, kind)
    setting = _pick(rng, SETTINGS)
    horizon = 28 + 12 * rng.random()
    n_things = _weighted(rng, (1, 2, 3), (0.4, 0.4, 0.2))
    slots = {1: ((14, 50),), 2: ((12, 24), (40, 52)), 3: ((10, 15), (28, 36), (49, 54))}[n_things]
    things = sorted(
        (_thing(rng, n_things, slot, horizon) for slot in slots), key=lambda thing: thing.y
    )
    return Scene(setting, horizon, tuple(things), None, None)


def _generator(i: int, purpose: str) -> random.Random:
    # Python guarantees the sequence of random() for a seed across versions; NumPy does not.
    return random.Random(f"minddiff world {purpose} {int(i)}")


def _shows_pattern(i: int, rng: random.Random) -> bool:
    return rng.random() < 1 / 7 or i >= FIRST_WIDER_ID


def _drawn_pattern(i: int, rng: random.Random) -> tuple[str, np.ndarray, str]:
    kind = _pick(rng, PATTERN_KINDS)
    return kind, *(_pattern if i < FIRST_WIDER_ID else _wider_pattern)(kind, rng)


def _pick(rng: random.Random, options):
    return options[int(rng.random() * len(options))]


def _weighted(rng: random.Random, options, weights):
    draw = rng.random() * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        draw -= weight
        if draw < 0:
            return option
    return options[-1]


def _thing(rng: random.Random, n_things: int, slot: tuple[float, float], horizon: float) -> Thing:
    weights = {1: (0.15, 0.35, 0.5), 2: (0.3, 0.55, 0.15), 3: (0.5, 0.5, 0.0)}[n_things]
    low, high = _weighted(rng, ((16, 19), (22, 26), (31, 38)), weights)
    size = low + (high - low) * rng.random()
    kind = _pick(rng, KINDS)
    colour = _pick(rng, tuple(COLOURS))
    margin = min(size / 2, 17)
    x = min(max(slot[0] + (slot[1] - slot[0]) * rng.random(), margin), SIZE - margin)
    if kind in SKY_KINDS:
        y = margin + 2 + (horizon - margin) * rng.random()
        angle = 30 * rng.random() - 15
    else:
        y = horizon + (SIZE - 4 - horizon) * (0.15 + 0.75 * rng.random()) - 0.25 * size
        angle = 16 * rng.random() - 8
    y = min(max(y, margin), SIZE - 1 - margin)
    return Thing(kind, colour, size, x, y, angle, rng.random() < 0.5)


# ------------------------------------------------------------------------------- contrast patterns

LETTERS = {
    "a": (".##.", "#..#", "####", "#..#", "#..#"),
    "c": ("####", "#...", "#...", "#...", "####"),
    "e": ("####", "#..#", "####", "#...", "####"),
    "f": ("####", "#...", "###.", "#...", "#..."),
    "h": ("#..#", "#..#", "####", "#..#", "#..#"),
    "l": ("#...", "#...", "#...", "#...", "####"),
    "n": ("####", "#..#", "#..#", "#..#", "#..#"),
    "o": ("####", "#..#", "#..#", "#..#", "####"),
    "p": ("####", "#..#", "####", "#...", "#..."),
    "r": ("####", "#...", "#...", "#...", "#..."),
    "t": ("####", ".##.", ".##.", ".##.", ".##."),
    "u": ("#..#", "#..#", "#..#", "#..#", "####"),
}


def _pattern(kind: str, rng: random.Random) -> tuple[np.ndarray, str]:
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
        _square(grid, half, row, column, True)
        if rng.random() > 0.25 or half > 3:
            _square(grid, inner, row, column, False)
            return grid, "frame"
        return grid, "square"
    if kind == "cross":
        axis = np.arange(10)[:, None] + 0.5 - 5 - row, np.arange(10)[None] + 0.5 - 5 - column
        arm = 3 + 1.5 * rng.random()
        inside = np.maximum(abs(axis[0]), abs(axis[1])) < arm
        if rng.random() < 0.5:
            grid |= inside & (np.minimum(abs(axis[0]), abs(axis[1])) < 1)
            return grid, "plus"
        grid |= inside & (np.minimum(abs(axis[0] - axis[1]), abs(axis[0] + axis[1])) < 1.5)
        return grid, "cross"
    letter, shape = _letter(rng)
    if rng.random() < 0.3:
        grid[:, 1:9] = shape.repeat(2, 0).repeat(2, 1)
    else:
        grid[2 + row : 7 + row, 3 + column : 7 + column] = shape
    return grid, letter


def _square(grid: np.ndarray, half: int, row: int, column: int, value: bool) -> None:
    grid[5 + row - half : 5 + row + half, 5 + column - half : 5 + column + half] = value


def _letter(rng: random.Random) -> tuple[str, np.ndarray]:
    letter = _pick(rng, tuple(LETTERS))
    return letter, np.array([[mark == "#" for mark in line] for line in LETTERS[letter]])


def _wider_pattern(kind: str, rng: random.Random) -> tuple[np.ndarray, str]:
    """Return what `_pattern` does, its forms at any place and of any proportions.

    `_pattern` has 194 forms besides its random patches; training shows them all.
    """
    if kind == "random":
        return _pattern(kind, rng)
    height, width = (5 + int(rng.random() * 6) for _ in range(2))
    thickness = 1 + int(rng.random() * 2)
    if kind == "letter":
        word, shape = _letter(rng)
        shape = shape.repeat(_pick(rng, (1, 2)), 0).repeat(_pick(rng, (1, 2)), 1)
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


# ------------------------------------------------------------------------------------------ drawing


def picture(i: int) -> np.ndarray:
    """Draw picture `i`.

    Parameters
    ----------
    i : int
        Id of the picture, from 0.

    Returns
    -------
    ndarray of uint8, shape (64, 64, 3)
        RGB, rows from the top.
    """
    return render(scene(i), decoration_seed=i)


def render(what: Scene, decoration_seed: int = 0) -> np.ndarray:
    """Draw a scene; `decoration_seed` places clouds, hills, waves and the like.

    Returns
    -------
    ndarray of uint8, shape (64, 64, 3)
    """
    if what.pattern is not None:
        return pattern_picture(what.pattern)
    rng = _generator(decoration_seed, "decoration")
    canvas = _background(what.setting, what.horizon, rng)
    for thing in what.things:
        _draw_thing(canvas, thing)
    return np.asarray(canvas.reduce(OVERSAMPLING))


# Colours of each scene: sky at the top, sky at the horizon, ground at the horizon, ground below.
GRADIENTS = {
    "day": ((92, 168, 240), (200, 230, 252), (134, 196, 96), (84, 152, 66)),
    "sunset": ((94, 60, 132), (252, 156, 92), (112, 72, 90), (64, 44, 72)),
    "night": ((14, 18, 52), (40, 54, 112), (30, 56, 62), (18, 34, 44)),
    "sea": ((150, 208, 246), (226, 244, 250), (40, 136, 176), (18, 84, 138)),
    "snow": ((168, 184, 208), (216, 224, 236), (250, 252, 255), (216, 228, 242)),
    "desert": ((236, 196, 138), (252, 232, 190), (226, 178, 106), (190, 132, 70)),
}


def _background(setting: str, horizon: float, rng: random.Random) -> Image.Image:
    size, line = SIZE * OVERSAMPLING, round(horizon * OVERSAMPLING)
    top, far, near, bottom = (np.array(colour) for colour in GRADIENTS[setting])
    rows = np.empty((size, 3), dtype=np.int64)
    for start, stop, first, last in ((0, line, top, far), (line, size, near, bottom)):
        step = np.arange(stop - start)[:, None]
        rows[start:stop] = first + (last - first) * step // max(stop - start - 1, 1)
    canvas = Image.fromarray(np.repeat(rows[:, None].astype(np.uint8), size, axis=1))
    DECORATIONS[setting](_Pen(canvas), horizon, rng)
    return canvas


class _Pen:
    """Draws polygons given in pixels of the final picture, or in a thing's own coordinates."""

    def __init__(self, canvas: Image.Image, thing: Thing | None = None):
        self.draw = ImageDraw.Draw(canvas)
        self.thing = thing

    def polygon(self, points, colour, outline=False):
        corners = [self._corner(x, y) for x, y in points]
        self.draw.polygon(corners, fill=tuple(colour))
        if outline:
            self.draw.line([*corners, corners[0], corners[1]], fill=OUTLINE, width=3, joint="curve")

    def ellipse(self, x, y, width, height, colour, outline=False, start=0.0, stop=360.0):
        n = 36
        angles = [math.radians(start + (stop - start) * k / n) for k in range(n + 1)]
        points = [(x + width / 2 * math.cos(a), y + height / 2 * math.sin(a)) for a in angles]
        self.polygon(points, colour, outline)

    def _corner(self, x, y):
        if self.thing is not None:
            thing, turn = self.thing, math.radians(self.thing.angle)
            x = -x if thing.flip else x
            cosine, sine = math.cos(turn), math.sin(turn)
            x, y = x * cosine - y * sine, x * sine + y * cosine
            x, y = thing.x + x * thing.size / 2, thing.y + y * thing.size / 2
        return round(x * OVERSAMPLING), round(y * OVERSAMPLING)


def _day(pen: _Pen, horizon: float, rng: random.Random) -> None:
    for k in range(2):
        x, y = 8 + 28 * k + 18 * rng.random(), 7 + (horizon - 20) * rng.random()
        for dx, dy, width in ((-5, 1, 8), (0, -1, 10), (5, 1, 8)):
            pen.ellipse(x + dx, y + dy, width, 6, (250, 252, 255))
    for centre, width in ((14 * rng.random(), 46), (44 + 14 * rng.random(), 56)):
        pen.ellipse(centre, horizon + 0.3, width, 16, (112, 178, 92), start=180, stop=360)


def _sunset(pen: _Pen, horizon: float, rng: random.Random) -> None:
    centre = 14 + 36 * rng.random()
    pen.ellipse(centre, horizon, 22, 22, (255, 196, 112), start=180, stop=360)
    pen.ellipse(centre, horizon, 15, 15, (255, 232, 160), start=180, stop=360)
    for x in (-4 + 16 * rng.random(), 44 + 18 * rng.random()):
        peak = horizon - 7 - 5 * rng.random()
        pen.polygon(((x - 16, horizon), (x, peak), (x + 16, horizon)), (96, 60, 104))


def _night(pen: _Pen, horizon: float, rng: random.Random) -> None:
    for _ in range(14):
        pen.ellipse(SIZE * rng.random(), (horizon - 3) * rng.random(), 1.3, 1.3, (244, 240, 208))
    x, y = 8 + 48 * rng.random(), 8
    pen.ellipse(x, y, 9, 9, (246, 238, 190))
    pen.ellipse(x + 2.2, y - 1, 8, 8, (20, 25, 64))
    pen.ellipse(20 + 24 * rng.random(), horizon + 0.3, 70, 9, (28, 50, 66), start=180, stop=360)


def _sea(pen: _Pen, horizon: float, rng: random.Random) -> None:
    for k in range(4):
        y = horizon + (SIZE - horizon) * (k + 0.6) / 4.2
        shift = 16 * rng.random()
        for n in range(-1, 5):
            x, width = 16 * n + shift, 7 + k
            points = [(x + width * s / 8, y - 1.5 * math.sin(math.pi * s / 8)) for s in range(9)]
            back = [(px, py + 1.1) for px, py in reversed(points)]
            pen.polygon(points + back, (150, 214, 230))


def _snow(pen: _Pen, horizon: float, rng: random.Random) -> None:
    for x in (4 + 14 * rng.random(), 46 + 14 * rng.random()):
        for level in range(3):
            y, half = horizon - 12 + 4 * level, 2.5 + 1.4 * level
            pen.polygon(((x - half, y + 5), (x, y), (x + half, y + 5)), (66, 112, 104))
    for _ in range(16):
        pen.ellipse(SIZE * rng.random(), 44 * rng.random(), 1.8, 1.8, (255, 255, 255))


def _desert(pen: _Pen, horizon: float, rng: random.Random) -> None:
    x = 12 + 40 * rng.random()
    pen.polygon(((x - 13, horizon), (x, horizon - 12), (x + 13, horizon)), (214, 160, 92))
    pen.polygon(((x, horizon - 12), (x + 13, horizon), (x + 4, horizon)), (188, 132, 74))
    for centre, width in ((14 * rng.random(), 60), (46 + 14 * rng.random(), 50)):
        y = horizon + 9 + 6 * rng.random()
        pen.ellipse(centre, y, width, 10, (236, 192, 124), start=180, stop=360)


DECORATIONS = {
    "day": _day,
    "sunset": _sunset,
    "night": _night,
    "sea": _sea,
    "snow": _snow,
    "desert": _desert,
}


def _blend(colour, other, share: float) -> tuple[int, ...]:
    return tuple(int(a + (b - a) * share) for a, b in zip(colour, other, strict=True))


def _draw_thing(canvas: Image.Image, thing: Thing) -> None:
    main = COLOURS[thing.colour]
    dark, light = _blend(main, (20, 10, 40), 0.3), _blend(main, (255, 255, 255), 0.45)
    SHAPES[thing.kind](_Pen(canvas, thing), main, dark, light)


BROWN, BLACK, CREAM = (122, 82, 52), (30, 26, 34), (250, 244, 226)


def _draw_sun(pen, main, dark, light):
    for k in range(10):
        a, b, c = (math.radians(36 * k + d) for d in (-13, 0, 13))
        tip = (math.cos(b), math.sin(b))
        pen.polygon(
            ((0.6 * math.cos(a), 0.6 * math.sin(a)), tip, (0.6 * math.cos(c), 0.6 * math.sin(c))),
            dark,
        )
    pen.ellipse(0, 0, 1.3, 1.3, main, outline=True)
    pen.ellipse(-0.15, -0.15, 0.6, 0.6, light)


def _draw_tree(pen, main, dark, light):
    pen.polygon(((-0.16, 1), (-0.1, 0.1), (0.1, 0.1), (0.16, 1)), BROWN, outline=True)
    for x, y, width in ((-0.42, 0.0, 0.95), (0.42, 0.0, 0.95), (0, -0.45, 1.1)):
        pen.ellipse(x, y, width, width * 0.95, main, outline=True)
    pen.ellipse(0, -0.12, 0.95, 0.8, main)
    for x, y in ((-0.4, -0.1), (0.1, -0.55), (0.4, 0.05)):
        pen.ellipse(x, y, 0.3, 0.24, light)


def _draw_house(pen, main, dark, light):
    pen.polygon(((-0.78, -0.1), (0.78, -0.1), (0.78, 0.95), (-0.78, 0.95)), main, outline=True)
    pen.polygon(((-1, -0.1), (0, -1), (1, -0.1)), dark, outline=True)
    pen.polygon(((-0.16, 0.95), (-0.16, 0.3), (0.22, 0.3), (0.22, 0.95)), BROWN, outline=True)
    for x in (-0.6, 0.36):
        pen.polygon(((x, 0.12), (x + 0.3, 0.12), (x + 0.3, 0.45), (x, 0.45)), (252, 240, 168), True)


def _draw_fish(pen, main, dark, light):
    pen.polygon(((0.45, 0), (1, -0.5), (0.85, 0), (1, 0.5)), dark, outline=True)
    pen.polygon(((-0.25, -0.4), (0.1, -0.8), (0.35, -0.3)), dark, outline=True)
    pen.ellipse(-0.2, 0, 1.55, 1.0, main, outline=True)
    pen.ellipse(-0.1, 0.2, 0.9, 0.4, light)
    pen.ellipse(-0.62, -0.12, 0.28, 0.28, CREAM)
    pen.ellipse(-0.65, -0.12, 0.14, 0.14, BLACK)


def _draw_boat(pen, main, dark, light):
    pen.polygon(((-0.05, 0.4), (-0.05, -1), (0.06, -1), (0.06, 0.4)), BROWN)
    pen.polygon(((0.12, -0.95), (0.12, 0.25), (0.85, 0.25)), CREAM, outline=True)
    pen.polygon(((-0.12, -0.7), (-0.12, 0.25), (-0.7, 0.25)), light, outline=True)
    pen.polygon(((-1, 0.38), (1, 0.38), (0.62, 0.95), (-0.62, 0.95)), main, outline=True)


def _draw_star(pen, main, dark, light):
    points = [
        (r * math.sin(math.radians(36 * k)), -r * math.cos(math.radians(36 * k)))
        for k, r in enumerate((1.0, 0.46) * 5)
    ]
    pen.polygon(points, main, outline=True)
    pen.polygon([(0.5 * x, 0.5 * y) for x, y in points], light)


def _draw_flower(pen, main, dark, light):
    pen.polygon(((-0.07, 1), (-0.07, -0.2), (0.07, -0.2), (0.07, 1)), (52, 122, 62))
    pen.ellipse(0.28, 0.66, 0.5, 0.22, (72, 152, 76))
    for k in range(6):
        angle = math.radians(60 * k + 30)
        pen.ellipse(0.42 * math.cos(angle), -0.38 + 0.42 * math.sin(angle), 0.52, 0.52, main, True)
    pen.ellipse(0, -0.38, 0.5, 0.5, _blend(main, (255, 214, 80), 0.75), outline=True)


def _draw_bird(pen, main, dark, light):
    pen.polygon(((0.4, -0.05), (1, -0.35), (1, 0.15)), dark, outline=True)
    pen.ellipse(0.02, 0.08, 1.3, 0.8, main, outline=True)
    pen.polygon(((-0.9, -0.3), (-1, -0.1), (-0.7, -0.12)), (250, 170, 50), outline=True)
    pen.ellipse(-0.52, -0.28, 0.62, 0.6, main, outline=True)
    pen.polygon(((-0.15, 0.0), (0.5, -0.85), (0.45, 0.2)), dark, outline=True)
    pen.ellipse(-0.6, -0.32, 0.16, 0.16, BLACK)


def _draw_car(pen, main, dark, light):
    cabin = ((-0.55, -0.1), (-0.32, -0.6), (0.38, -0.6), (0.62, -0.1))
    pen.polygon(cabin, dark, outline=True)
    glass = (196, 230, 246)
    pen.polygon(((-0.4, -0.12), (-0.24, -0.48), (0.0, -0.48), (0.0, -0.12)), glass)
    pen.polygon(((0.1, -0.12), (0.1, -0.48), (0.32, -0.48), (0.48, -0.12)), glass)
    body = ((-1, 0.38), (-0.96, 0.0), (-0.7, -0.12), (0.8, -0.12), (1, 0.08), (1, 0.38))
    pen.polygon(body, main, outline=True)
    for x in (-0.54, 0.54):
        pen.ellipse(x, 0.4, 0.46, 0.46, BLACK)
        pen.ellipse(x, 0.4, 0.2, 0.2, (190, 190, 196))


def _draw_cat(pen, main, dark, light):
    pen.ellipse(0.62, 0.45, 0.62, 0.8, dark, outline=True)
    pen.ellipse(0.58, 0.35, 0.34, 0.6, main)
    pen.ellipse(0.08, 0.52, 1.0, 0.92, main, outline=True)
    pen.polygon(((-0.72, -0.3), (-0.68, -0.98), (-0.22, -0.62)), main, outline=True)
    pen.polygon(((0.42, -0.3), (0.38, -0.98), (-0.08, -0.62)), main, outline=True)
    pen.ellipse(-0.15, -0.28, 1.16, 0.92, main, outline=True)
    for x in (-0.38, 0.08):
        pen.ellipse(x, -0.34, 0.17, 0.24, BLACK)
    pen.ellipse(-0.15, -0.1, 0.2, 0.13, (240, 120, 130))
    pen.ellipse(0.02, 0.62, 0.5, 0.56, light)


SHAPES = {
    "sun": _draw_sun,
    "tree": _draw_tree,
    "house": _draw_house,
    "fish": _draw_fish,
    "boat": _draw_boat,
    "star": _draw_star,
    "flower": _draw_flower,
    "bird": _draw_bird,
    "car": _draw_car,
    "cat": _draw_cat,
}

# ----------------------------------------------------------------------------------------- captions


def size_word(size: float) -> str:
    """Return "small", "medium" or "large" for a diameter in pixels."""
    return "small" if size < 20.5 else "medium" if size < 28.5 else "large"


def place(thing: Thing) -> tuple[str, str]:
    """Return where a thing is: ("left", "middle" or "right") and ("top" or "bottom")."""
    across = "left" if thing.x < 25 else "right" if thing.x > 39 else "middle"
    return across, "top" if thing.y < 30 else "bottom"


WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium", "middling"),
    "large": ("large", "big", "huge"),
    "left": ("on the left", "left"),
    "middle": ("in the middle", "centre"),
    "right": ("on the right", "right"),
    "day": ("on a sunny day", "green meadow", "meadow by day", "blue sky over grass"),
    "sunset": ("at sunset", "orange evening", "evening sky", "the sun going down"),
    "night": ("at night", "dark night", "starry sky", "moon and stars"),
    "sea": ("at sea", "blue sea", "open water", "waves to the horizon"),
    "snow": ("in the snow", "white winter", "snowy field", "snow and fir trees"),
    "desert": ("in the desert", "sandy desert", "hot sand", "dunes and a pyramid"),
}


def captions(i: int) -> tuple[str, ...]:
    """Describe picture `i` five times in different words, as COCO does.

    Parameters
    ----------
    i : int
        Id of the picture, from 0.

    Returns
    -------
    tuple of 5 str
        Lower case, at most 30 words each; kind, colour, size, place of each thing and the scene.
    """
    rng = _generator(i, "scene")
    if _shows_pattern(i, rng):
        return _pattern_captions(*_drawn_pattern(i, rng))
    return describe(scene(i))


def describe(what: Scene) -> tuple[str, ...]:
    """Return five captions of a scene with things in it; see `captions`."""
    left_to_right = sorted(what.things, key=lambda thing: thing.x)
    by_size = sorted(what.things, key=lambda thing: -thing.size)
    first, second, third, fourth = WORDS[what.setting]
    return (
        _join([f"a {_look(t, 0)} {WORDS[place(t)[0]][0]}" for t in left_to_right]) + f" {first}",
        f"{second} with " + _join([f"a {_look(t, 1)} {' '.join(place(t))}" for t in by_size]),
        f"{third} : " + " , ".join(f"{place(t)[0]} a {_look(t, 2)}" for t in left_to_right),
        _join([f"{_look(t, 0)} at {place(t)[1]} {WORDS[place(t)[0]][1]}" for t in by_size])
        + f" , {fourth}",
        f"picture {first} of " + _join([f"a {_look(t, 1)} to the {place(t)[0]}" for t in by_size]),
    )


def _look(thing: Thing, wording: int) -> str:
    return f"{WORDS[size_word(thing.size)][wording]} {thing.colour} {thing.kind}"


def _join(parts: list[str]) -> str:
    return " and ".join(parts)


def _pattern_captions(kind: str, grid: np.ndarray, word: str) -> tuple[str, ...]:
    rows, columns = np.nonzero(grid)
    height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
    size = "small" if max(height, width) < 6 else "medium" if max(height, width) < 8 else "large"
    across = columns.mean() - 4.5
    where = "left" if across < -0.6 else "right" if across > 0.6 else "middle"
    if kind == "random":
        look = (f"{word} random patches", f"random pattern with {word} patches", f"{word} patches")
    elif kind == "letter":
        look = (f"{size} letter {word}", f"letter {word} of patches", f"{word} as a letter")
    else:
        name = "plus sign" if word == "plus" else "diagonal cross" if word == "cross" else word
        look = (f"{size} {name}", f"{name} of patches", f"{name} as a figure")
    return (
        f"a {look[0]} in white {WORDS[where][0]} on grey",
        f"grey background with a {look[1]} {where} , {size}",
        f"white on grey : {where} a {size} {look[2]}",
        f"a checked {look[0]} at {where} , plain grey",
        f"picture of a white {look[1]} to the {where} on grey , {size}",
    )
