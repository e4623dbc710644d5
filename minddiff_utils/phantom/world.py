"""The phantom's world: pictures and captions, each drawn from an integer id alone.

A picture is 64 x 64 RGB. Most show one to three things (a red house, a small yellow bird) in a
scene with a horizon; about one in seven is a 10 x 10 contrast pattern on grey, as in Miyawaki et
al. 2008. Shapes are polygons with vertices on an integer grid, drawn at four times the size and
averaged down, so that the same id gives the same bytes on every machine. The drawings are in
`world.svg`, which a browser shows, and the captions' words in `words.csv`. Ids from
`FIRST_OUTSIDE_ID` on are pictures from outside of this world: what its models were never shown.
"""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from minddiff_utils.datasets.miyawaki import pattern_captions, pattern_picture, pattern_size
from minddiff_utils.phantom.patterns import pattern, pick, wider_pattern

# Settings and things, as a browser shows them.
DRAWN = ElementTree.parse(Path(__file__).with_name("world.svg")).getroot()
TRAINING_IDS = range(1_000_000, 1_048_000)  # what the phantom's models were trained on
FIRST_WIDER_ID = 3_000_000  # from here on: patterns of more forms than those models were shown
FIRST_OUTSIDE_ID = 1_000_000_000  # from here on: pictures from outside, of each kind in turn
SIZE = 64
OVERSAMPLING = 4
KINDS = ("sun", "tree", "house", "fish", "boat", "star", "flower", "bird", "car", "cat")
SKY_KINDS = ("sun", "star", "bird")
COLOURS = {
    "red": (222, 52, 48), "orange": (246, 146, 40), "yellow": (250, 218, 62),
    "green": (44, 154, 74), "blue": (44, 98, 214), "purple": (140, 70, 178),
    "pink": (246, 138, 184), "white": (246, 246, 242),
}  # fmt: skip
OUTSIDE_COLOURS = {
    "brown": (120, 72, 34), "teal": (8, 138, 140), "black": (34, 30, 38), "lime": (178, 236, 32),
}  # fmt: skip
SETTINGS = ("day", "sunset", "night", "sea", "snow", "desert")
OUTSIDE_SETTINGS = ("cave", "lava", "jungle")
PATTERN_KINDS = ("random", "frame", "cross", "letter")
# Named as in LAION-fMRI, but for `noise`, which is of NSD-synthetic.
OUTSIDE_KINDS = ("gabor", "shape", "cropped", "gaudy", "unusual", "noise")
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
    """What a picture shows; `things` is empty and `pattern` set where `setting` is "pattern".

    `outside` is the kind of a picture from outside of the world.
    """

    setting: str
    horizon: float
    things: tuple[Thing, ...]
    pattern: np.ndarray | None = None
    pattern_kind: str = ""
    pattern_word: str = ""
    outside: str = ""


# ---------------------------------------------------------------------------------- what is shown


def scene(i: int) -> Scene:
    """Return what picture `i` shows.

    Parameters
    ----------
    i : int
        Any integer from 0; the same id gives the same scene everywhere. From `FIRST_WIDER_ID` on
        all are contrast patterns, with their forms at more places and in more proportions; from
        `FIRST_OUTSIDE_ID` on, all are from outside of the world.

    Returns
    -------
    Scene
    """
    if i >= FIRST_OUTSIDE_ID:
        return _outside(i)
    rng = _generator(i, "scene")
    if rng.random() < 1 / 7 or i >= FIRST_WIDER_ID:
        kind = pick(rng, PATTERN_KINDS)
        grid, word = (pattern if i < FIRST_WIDER_ID else wider_pattern)(kind, rng)
        return Scene("pattern", SIZE / 2, (), grid, kind, word)
    return _landscape(rng)


def _landscape(rng: random.Random) -> Scene:
    """Return one to three things in a setting."""
    setting = pick(rng, SETTINGS)
    horizon = 28 + 12 * rng.random()
    (n_things,) = rng.choices((1, 2, 3), (0.4, 0.4, 0.2))
    slots = {1: ((14, 50),), 2: ((12, 24), (40, 52)), 3: ((10, 15), (28, 36), (49, 54))}[n_things]
    things = [_thing(rng, n_things, slot, horizon) for slot in slots]
    return Scene(setting, horizon, tuple(sorted(things, key=lambda thing: thing.y)))


def _outside(i: int) -> Scene:
    """Return a picture from outside; things the world knows may be in it, or parts of them."""
    rng, kind = _generator(i, "outside"), OUTSIDE_KINDS[(i - FIRST_OUTSIDE_ID) % len(OUTSIDE_KINDS)]
    if kind == "gaudy":
        return _landscape(rng)._replace(outside=kind)
    if kind == "unusual":
        known = _landscape(rng)
        things = tuple(_changed(thing, ("mushroom", "balloon"), 0.5, rng) for thing in known.things)
        return Scene(pick(rng, OUTSIDE_SETTINGS), known.horizon, things, outside=kind)
    thing = _thing(rng, 1, (14, 50), SIZE / 2)
    if kind == "shape":
        thing = _changed(thing, ("triangle", "pentagon", "hexagon"), 1, rng)
    return Scene("grey", SIZE / 2, () if kind in TEXTURES else (thing,), outside=kind)


def _changed(thing: Thing, kinds: tuple[str, ...], share: float, rng: random.Random) -> Thing:
    """Give a thing a colour that training never shows and, with the chance `share`, a new kind."""
    kind = pick(rng, kinds) if rng.random() < share else thing.kind
    return thing._replace(kind=kind, colour=pick(rng, tuple(OUTSIDE_COLOURS)))


def _generator(i: int, purpose: str) -> random.Random:
    # Python guarantees the sequence of random() for a seed across versions; NumPy does not.
    # Of the other methods only `choices` and `uniform` are used, which take one random() a draw.
    return random.Random(f"minddiff world {purpose} {int(i)}")


def _thing(rng: random.Random, n_things: int, slot: tuple[float, float], horizon: float) -> Thing:
    weights = {1: (0.15, 0.35, 0.5), 2: (0.3, 0.55, 0.15), 3: (0.5, 0.5, 0.0)}[n_things]
    size = rng.uniform(*rng.choices(((16, 19), (22, 26), (31, 38)), weights)[0])
    kind, colour = pick(rng, KINDS), pick(rng, tuple(COLOURS))
    margin = min(size / 2, 17)
    x = min(max(rng.uniform(*slot), margin), SIZE - margin)
    if kind in SKY_KINDS:
        y = margin + 2 + (horizon - margin) * rng.random()
        angle = 30 * rng.random() - 15
    else:
        y = horizon + (SIZE - 4 - horizon) * (0.15 + 0.75 * rng.random()) - 0.25 * size
        angle = 16 * rng.random() - 8
    y = min(max(y, margin), SIZE - 1 - margin)
    return Thing(kind, colour, size, x, y, angle, rng.random() < 0.5)


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
    if what.outside in TEXTURES:
        return TEXTURES[what.outside](_generator(decoration_seed, "texture"))
    canvas = _background(what.setting, what.horizon)
    rng, decoration = _generator(decoration_seed, "decoration"), DECORATIONS.get(what.setting)
    for colour, corners in decoration(what.horizon, rng) if decoration else ():
        _fill(canvas, corners, colour)
    for thing in what.things:
        own = (COLOURS | OUTSIDE_COLOURS)[thing.colour]
        tints = {name: _blend(own, *tint) for name, tint in TINTS.items()}
        for colour, outlined, corners in SHAPES[thing.kind]:
            _fill(canvas, _placed(corners, thing), tints.get(colour, colour), outlined)
    drawn = np.asarray(canvas.reduce(OVERSAMPLING))
    if what.outside == "gaudy":  # each channel at its darkest or brightest: Cowley & Pillow (2020)
        return np.where(drawn > drawn.mean(axis=(0, 1)), np.uint8(255), np.uint8(0))
    return drawn


def _gabor(rng: random.Random) -> np.ndarray:
    """Draw a patch of stripes on grey, of any orientation, wavelength and width."""
    rows, columns = (axis - 20 - 24 * rng.random() for axis in np.indices((SIZE, SIZE)))
    angle, wavelength, width = math.pi * rng.random(), 4 + 12 * rng.random(), 5 + 15 * rng.random()
    phase = (columns * math.cos(angle) + rows * math.sin(angle)) / wavelength + rng.random()
    envelope = np.exp(-(np.square(rows) + np.square(columns)) / (2 * width**2))
    stripes = np.rint(128 + 120 * envelope * np.cos(2 * math.pi * phase)).astype(np.uint8)
    return np.repeat(stripes[..., None], 3, axis=2)


def _noise(rng: random.Random) -> np.ndarray:
    """Draw squares of random grey, or of random colours, fine or coarse."""
    side, n_channels = pick(rng, (1, 2, 4, 8)), pick(rng, (1, 3))
    n = SIZE // side
    levels = np.array([rng.random() for _ in range(n * n * n_channels)])
    cells = (256 * levels).astype(np.uint8).reshape(n, n, n_channels)
    return np.broadcast_to(cells.repeat(side, 0).repeat(side, 1), (SIZE, SIZE, 3))


TEXTURES = {"gabor": _gabor, "noise": _noise}


def _fill(canvas: Image.Image, corners, colour: tuple[int, ...], outlined: bool = False) -> None:
    """Fill a polygon; corners are in pixels of the final picture."""
    pen = ImageDraw.Draw(canvas)
    corners = [tuple(corner) for corner in np.rint(np.multiply(corners, OVERSAMPLING)).tolist()]
    pen.polygon(corners, fill=colour)
    if outlined:
        pen.line([*corners, corners[0], corners[1]], fill=OUTLINE, width=3, joint="curve")


def _placed(corners, thing: Thing) -> np.ndarray:
    """Turn corners in a thing's own coordinates, -1 to 1, into pixels of the final picture."""
    cosine, sine = math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
    x, y = np.transpose(corners) * [[-1 if thing.flip else 1], [1]]
    turned = np.column_stack([x * cosine - y * sine, x * sine + y * cosine])
    return (thing.x, thing.y) + turned * thing.size / 2


def _oval(x, y, width, height, start=0.0, stop=360.0) -> list[tuple[float, float]]:
    """Return the corners of an ellipse, or of a part of it between two angles in degrees."""
    angles = [math.radians(start + (stop - start) * k / 36) for k in range(37)]
    return [(x + width / 2 * math.cos(a), y + height / 2 * math.sin(a)) for a in angles]


def _blend(colour, other, share: float) -> tuple[int, ...]:
    return tuple(int(a + (b - a) * share) for a, b in zip(colour, other, strict=True))


# --- the scene

# Colours of each setting: sky at the top, sky at the horizon, ground at the horizon, ground below.
GRADIENTS = {
    gradient.attrib["id"]: [ImageColor.getrgb(stop.attrib["stop-color"]) for stop in gradient]
    for gradient in DRAWN.iterfind("{*}defs/{*}linearGradient")
}


def _background(setting: str, horizon: float) -> Image.Image:
    """Paint sky and ground."""
    size, line = SIZE * OVERSAMPLING, round(horizon * OVERSAMPLING)
    top, far, near, bottom = (np.array(colour) for colour in GRADIENTS[setting])
    rows = np.empty((size, 3), dtype=np.int64)
    for start, stop, first, last in ((0, line, top, far), (line, size, near, bottom)):
        step = np.arange(stop - start)[:, None]
        rows[start:stop] = first + (last - first) * step // max(stop - start - 1, 1)
    return Image.fromarray(np.repeat(rows[:, None].astype(np.uint8), size, axis=1))


# What stands in each scene: colour and corners of polygons, from the back to the front.


def _day(horizon: float, rng: random.Random):
    for k in range(2):
        x, y = 8 + 28 * k + 18 * rng.random(), 7 + (horizon - 20) * rng.random()
        for dx, dy, width in ((-5, 1, 8), (0, -1, 10), (5, 1, 8)):
            yield (250, 252, 255), _oval(x + dx, y + dy, width, 6)
    for centre, width in ((14 * rng.random(), 46), (44 + 14 * rng.random(), 56)):
        yield (112, 178, 92), _oval(centre, horizon + 0.3, width, 16, 180, 360)


def _sunset(horizon: float, rng: random.Random):
    centre = 14 + 36 * rng.random()
    yield (255, 196, 112), _oval(centre, horizon, 22, 22, 180, 360)
    yield (255, 232, 160), _oval(centre, horizon, 15, 15, 180, 360)
    for x in (-4 + 16 * rng.random(), 44 + 18 * rng.random()):
        peak = horizon - 7 - 5 * rng.random()
        yield (96, 60, 104), ((x - 16, horizon), (x, peak), (x + 16, horizon))


def _night(horizon: float, rng: random.Random):
    for _ in range(14):
        yield (244, 240, 208), _oval(SIZE * rng.random(), (horizon - 3) * rng.random(), 1.3, 1.3)
    x = 8 + 48 * rng.random()
    yield (246, 238, 190), _oval(x, 8, 9, 9)
    yield (20, 25, 64), _oval(x + 2.2, 7, 8, 8)
    yield (28, 50, 66), _oval(20 + 24 * rng.random(), horizon + 0.3, 70, 9, 180, 360)


def _sea(horizon: float, rng: random.Random):
    for k in range(4):
        y = horizon + (SIZE - horizon) * (k + 0.6) / 4.2
        shift = 16 * rng.random()
        for n in range(-1, 5):
            x, width = 16 * n + shift, 7 + k
            crest = [(x + width * s / 8, y - 1.5 * math.sin(math.pi * s / 8)) for s in range(9)]
            yield (150, 214, 230), crest + [(px, py + 1.1) for px, py in reversed(crest)]


def _snow(horizon: float, rng: random.Random):
    for x in (4 + 14 * rng.random(), 46 + 14 * rng.random()):
        for level in range(3):
            y, half = horizon - 12 + 4 * level, 2.5 + 1.4 * level
            yield (66, 112, 104), ((x - half, y + 5), (x, y), (x + half, y + 5))
    for _ in range(16):
        yield (255, 255, 255), _oval(SIZE * rng.random(), 44 * rng.random(), 1.8, 1.8)


def _desert(horizon: float, rng: random.Random):
    x = 12 + 40 * rng.random()
    yield (214, 160, 92), ((x - 13, horizon), (x, horizon - 12), (x + 13, horizon))
    yield (188, 132, 74), ((x, horizon - 12), (x + 13, horizon), (x + 4, horizon))
    for centre, width in ((14 * rng.random(), 60), (46 + 14 * rng.random(), 50)):
        yield (236, 192, 124), _oval(centre, horizon + 9 + 6 * rng.random(), width, 10, 180, 360)


DECORATIONS = dict(zip(SETTINGS, (_day, _sunset, _night, _sea, _snow, _desert), strict=True))

# --- things

# Colours of `world.svg` made from a thing's own: what is mixed in, and how much of it.
TINTS = {
    "main": ((0, 0, 0), 0.0),
    "dark": ((20, 10, 40), 0.3),
    "light": ((255, 255, 255), 0.45),
    "gold": ((255, 214, 80), 0.75),
}


def _read_part(part: Mapping[str, str]) -> tuple[Any, bool, list]:
    """Return colour, whether it has an outline, and corners."""
    if "points" in part:
        corners = [tuple(map(float, pair.split(","))) for pair in part["points"].split()]
    else:
        x, y, across, down = (float(part[name]) for name in ("cx", "cy", "rx", "ry"))
        corners = _oval(x, y, 2 * across, 2 * down)
    return part.get("class") or ImageColor.getrgb(part["fill"]), "stroke" in part, corners


# Parts of each kind of thing, the lowest first.
THINGS = DRAWN.iterfind("{*}g")
SHAPES = {thing.attrib["id"]: [_read_part(part.attrib) for part in thing] for thing in THINGS}

# ----------------------------------------------------------------------------------------- captions


def size_word(size: float) -> str:
    """Return "small", "medium" or "large" for a diameter in pixels."""
    return "small" if size < 20.5 else "medium" if size < 28.5 else "large"


def place(thing: Thing) -> tuple[str, str]:
    """Return where a thing is: ("left", "middle" or "right") and ("top" or "bottom")."""
    across = "left" if thing.x < 25 else "right" if thing.x > 39 else "middle"
    return across, "top" if thing.y < 30 else "bottom"


# How each size, place and setting is called; of a texture, the captions.
LINES = Path(__file__).with_name("words.csv").read_text(encoding="utf-8").splitlines()
WORDS = {name: tuple(words) for name, *words in (line.split(",") for line in LINES)}


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
    what = scene(i)
    if what.outside in TEXTURES:
        return WORDS[what.outside]
    if what.pattern is None:
        return _scene_captions(what)
    across = np.nonzero(what.pattern)[1].mean() - 4.5
    where = "left" if across < -0.6 else "right" if across > 0.6 else "middle"
    return pattern_captions(what.pattern_kind, what.pattern_word, pattern_size(what.pattern), where)


def _scene_captions(what: Scene) -> tuple[str, ...]:
    join = " and ".join
    left_to_right = sorted(what.things, key=lambda thing: thing.x)
    by_size = sorted(what.things, key=lambda thing: -thing.size)
    first, second, third, fourth = WORDS[what.setting]
    return (
        join([f"a {_look(t, 0)} {WORDS[place(t)[0]][0]}" for t in left_to_right]) + f" {first}",
        f"{second} with " + join([f"a {_look(t, 1)} {' '.join(place(t))}" for t in by_size]),
        f"{third} : " + " , ".join(f"{place(t)[0]} a {_look(t, 2)}" for t in left_to_right),
        join([f"{_look(t, 0)} at {place(t)[1]} {WORDS[place(t)[0]][1]}" for t in by_size])
        + f" , {fourth}",
        f"picture {first} of " + join([f"a {_look(t, 1)} to the {place(t)[0]}" for t in by_size]),
    )


def _look(thing: Thing, wording: int) -> str:
    return f"{WORDS[size_word(thing.size)][wording]} {thing.colour} {thing.kind}"
