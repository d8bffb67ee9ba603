"""Scenes of coloured shapes on textured backgrounds: sampled from a seed, drawn at any size, with what is true of them.

A scene is geometry in fractions of the image, so that the same scene can be drawn at 100 or at 1000 pixels. The worlds
(`SPLITS`) are streams of scenes that never meet: each scene has a random generator of its own, seeded by the world, its
split and its number. Some pairs of colour and shape (`HELD_OUT_PAIRS`) occur in the split `heldout` only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40), "orange": (250, 140, 20), "yellow": (245, 225, 50), "green": (45, 160, 65),
    "blue": (40, 85, 220), "purple": (145, 60, 185), "white": (248, 248, 248), "black": (18, 18, 18),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
SIZES: dict[str, tuple[float, float]] = {"small": (0.19, 0.25), "large": (0.34, 0.46)}
"""Range of the diameter of a size, in fractions of the image."""

BACKGROUNDS = ("plain", "striped", "dotted", "checkered", "noisy", "shaded")
SPLITS = ("train", "validation", "test", "heldout")
HELD_OUT_PAIRS = frozenset(zip(COLORS, np.roll(SHAPES, 3).tolist(), strict=True))
"""Colour and shape: each colour and each shape once."""

MAX_NUM_OBJECTS = 5
MIN_VISIBLE = 0.72
"""Share of an object that the objects in front of it leave visible."""

MAX_TILT = {"circle": 0.0, "ring": 0.0, "square": 14.0, "triangle": 25.0, "star": 36.0, "cross": 18.0, "heart": 22.0,
            "moon": 40.0}  # fmt: skip
"""Degrees by which a shape may be turned either way."""

Point = tuple[float, float]


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene.

    Attributes:
        shape, color, size: words of `SHAPES`, `COLORS` and `SIZES`.
        center: (x, y), fractions of the image.
        diameter: of the circle around it before it was turned, a fraction of the image.
        tilt: degrees.
        rgb: the colour as drawn, near the one of its name.
    """

    shape: str
    color: str
    size: str
    center: Point
    diameter: float
    tilt: float
    rgb: tuple[int, int, int]

    @property
    def outline(self) -> np.ndarray:
        """(N, 2), the corners of its outline in fractions of the image."""
        return place(unit_outline(self.shape), self.center, self.diameter, self.tilt)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 in fractions of the image; parts that are hidden count."""
        (x1, y1), (x2, y2) = self.outline.min(axis=0), self.outline.max(axis=0)
        return float(x1), float(y1), float(x2), float(y2)


@dataclass(frozen=True)
class Scene:
    """Objects from the rearmost to the foremost, and what is behind them.

    Attributes:
        objects: 1 to `MAX_NUM_OBJECTS`.
        background: a word of `BACKGROUNDS`.
        texture_seed: decides on the background's colours and pattern.
    """

    objects: tuple[SceneObject, ...]
    background: str
    texture_seed: int

    @property
    def tags(self) -> list[str]:
        """What a perfect tagger would say, in the order of `TAGS`."""
        present = {self.background, *(thing.shape for thing in self.objects), *(thing.color for thing in self.objects)}
        return [tag for tag in TAGS if tag.removesuffix(" background") in present]


TAGS = (*SHAPES, *COLORS, *(f"{background} background" for background in BACKGROUNDS))
"""What the tagger of this world knows, and nothing more."""


@cache
def unit_outline(shape: str) -> np.ndarray:
    """(N, 2), the corners of an upright shape within the circle of diameter one around the origin.

    Raises:
        ValueError: if there is no such shape.
    """
    if shape in ("circle", "ring"):
        return _regular(48)
    if shape == "square":
        return _regular(4, turned=45.0)
    if shape == "triangle":
        return _regular(3)
    if shape == "star":
        return np.stack([_regular(5), 0.42 * _regular(5, turned=36.0)], axis=1).reshape(-1, 2)
    if shape == "cross":
        arm, end = 0.16, 0.47
        quarter = np.array([[arm, -end], [arm, -arm], [end, -arm]])
        turns = [quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return np.concatenate(turns)
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return np.stack([x, y - 2.5], axis=1) / 34
    if shape == "moon":
        outer = np.radians(np.linspace(50, 310, 32))
        inner = np.radians(np.linspace(286, 74, 28))
        arc = np.stack([0.5 * np.cos(outer), 0.5 * np.sin(outer)], axis=1)
        bite = np.stack([0.21 + 0.40 * np.cos(inner), 0.42 * np.sin(inner)], axis=1)
        return np.concatenate([arc, bite])
    raise ValueError(f"There is no shape {shape!r}; there are {', '.join(SHAPES)}.")


def _regular(corners: int, turned: float = 0.0) -> np.ndarray:
    """(corners, 2), a regular polygon whose first corner is on top."""
    angles = np.radians(turned - 90 + 360 * np.arange(corners) / corners)
    return 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def place(outline: np.ndarray, center: Point, diameter: float, tilt: float) -> np.ndarray:
    """Turn, scale and move an outline, (N, 2) -> (N, 2)."""
    angle = math.radians(tilt)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return outline @ turn * diameter + np.asarray(center)


def _scene_generator(split: str, index: int, seed: int = 0) -> np.random.Generator:
    """The random generator of one scene.

    Raises:
        ValueError: if there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SPLITS)}.")
    return np.random.default_rng([seed, SPLITS.index(split), index])


def sample_scene(split: str, index: int, seed: int = 0) -> Scene:
    """Scene number `index` of a split.

    Args:
        split: one of `SPLITS`. In `heldout` every scene has at least one of the `HELD_OUT_PAIRS`, elsewhere none has.
        index: any number from zero on.
        seed: of the world.
    """
    generator = _scene_generator(split, index, seed)
    while True:
        things = _sample_objects(generator, split == "heldout")
        if things:
            break
    background = BACKGROUNDS[generator.integers(len(BACKGROUNDS))]
    return Scene(things, background, int(generator.integers(2**31)))


def scenes(split: str, seed: int = 0, start: int = 0) -> Iterator[Scene]:
    """The scenes of a split from number `start` on, without end."""
    while True:
        yield sample_scene(split, start, seed)
        start += 1


def _sample_objects(generator: np.random.Generator, held_out: bool) -> tuple[SceneObject, ...]:
    """Objects that fit in the image and hide little of each other; empty if no place was found for some."""
    num_objects = int(generator.integers(1, MAX_NUM_OBJECTS + 1))
    pairs = [_sample_pair(generator, held_out and index == 0) for index in range(num_objects)]
    if num_objects > 1 and generator.random() < 0.5:  # likeness is what makes referring hard
        first, second = pairs[0], pairs[1]
        mixed = (first[0], second[1]) if generator.random() < 0.5 else (second[0], first[1])
        pairs[1] = mixed if mixed not in HELD_OUT_PAIRS else pairs[1]
    things: list[SceneObject] = []
    for color, shape in pairs:
        thing = _place_object(generator, color, shape, things)
        if thing is None:
            return ()
        things.append(thing)
    return tuple(things)


def _sample_pair(generator: np.random.Generator, held_out: bool) -> tuple[str, str]:
    """A colour and a shape, of the held-out pairs or of the others."""
    while True:
        pair = list(COLORS)[generator.integers(len(COLORS))], SHAPES[generator.integers(len(SHAPES))]
        if (pair in HELD_OUT_PAIRS) == held_out:
            return pair


def _place_object(
    generator: np.random.Generator, color: str, shape: str, behind: list[SceneObject], tries: int = 40
) -> SceneObject | None:
    """Find a place in front of the objects `behind` that leaves enough of each of them visible."""
    size = "small" if generator.random() < 0.5 else "large"
    rgb = tuple(int(x) for x in np.clip(np.array(COLORS[color]) + generator.normal(0, 8, 3).clip(-16, 16), 0, 255))
    for _ in range(tries):
        diameter = float(generator.uniform(*SIZES[size]))
        tilt = float(generator.uniform(-1, 1) * MAX_TILT[shape])
        low, high = diameter / 2 + 0.01, 1 - diameter / 2 - 0.01
        center = (float(generator.uniform(low, high)), float(generator.uniform(low, high)))
        thing = SceneObject(shape, color, size, center, diameter, tilt, rgb)  # type: ignore[arg-type]
        if all(_overlap(thing, other) <= (1 - MIN_VISIBLE) / 2 for other in behind):
            return thing
    return None


def _overlap(thing: SceneObject, other: SceneObject) -> float:
    """Share of the smaller one's box that both cover."""
    a, b = thing.box, other.box
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0.0) * max(height, 0.0) / smaller


def render(scene: Scene, size: int = 200) -> Image.Image:
    """Draw a scene, smooth at the edges.

    Args:
        size: width and height in pixels.
    """
    return paste_objects(scene, Image.fromarray(_background_pixels(scene, size)))


def paste_objects(scene: Scene, picture: Image.Image) -> Image.Image:
    """Draw a scene's objects on a square image, which is changed and returned."""
    for thing in scene.objects:
        alpha, corner = mask(thing, picture.width)
        picture.paste(thing.rgb, (*corner, corner[0] + alpha.width, corner[1] + alpha.height), alpha)
    return picture


def visible_objects(scene: Scene, size: int) -> np.ndarray:
    """(size, size) int8, for each pixel the number of the foremost object that covers it, -1 for the background."""
    numbers = Image.new("L", (size, size), 255)
    for number, thing in enumerate(scene.objects):
        alpha, corner = mask(thing, size)
        inside = alpha.point([0] * 128 + [255] * 128)
        numbers.paste(number, (*corner, corner[0] + alpha.width, corner[1] + alpha.height), inside)
    return np.asarray(numbers).astype(np.int8)


def mask(thing: SceneObject, size: int, oversampling: int = 4) -> tuple[Image.Image, tuple[int, int]]:
    """An object's coverage of the pixels around it, in grey levels, and the upper left pixel of that window."""
    x1, y1, x2, y2 = (value * size for value in thing.box)
    left, top = math.floor(x1), math.floor(y1)
    width, height = math.ceil(x2) - left, math.ceil(y2) - top
    large = Image.new("L", (width * oversampling, height * oversampling))
    draw = ImageDraw.Draw(large)
    origin = np.array([left, top])
    draw.polygon([tuple(point) for point in ((thing.outline * size - origin) * oversampling)], fill=255)
    if thing.shape == "ring":
        hole = place(unit_outline("circle"), thing.center, 0.52 * thing.diameter, 0.0)
        draw.polygon([tuple(point) for point in ((hole * size - origin) * oversampling)], fill=0)
    return large.reduce(oversampling), (left, top)


def _background_pixels(scene: Scene, size: int) -> np.ndarray:
    """(size, size, 3) uint8, the background alone: two dull tones in the scene's pattern, and a little grain."""
    generator = np.random.default_rng(scene.texture_seed)
    base = generator.uniform(95, 165) + generator.uniform(-14, 14, 3)
    contrast = generator.choice([-1, 1]) * generator.uniform(18, 38) + generator.uniform(-8, 8, 3)
    weight = pattern(scene.background, size, generator)[..., None]
    grain = generator.normal(0, generator.uniform(1, 5), (100, 100, 1))
    if size != 100:
        grain = grain[np.ix_(np.arange(size) * 100 // size, np.arange(size) * 100 // size)]
    return np.clip(base + contrast * weight + grain, 0, 255).astype(np.uint8)


def pattern(background: str, size: int, generator: np.random.Generator) -> np.ndarray:
    """(size, size), from 0 to 1: how much of the second tone each pixel has."""
    position = (np.arange(size) + 0.5) / size
    x, y = position[None, :], position[:, None]
    angle, pitch, phase = generator.uniform(0, math.pi), generator.uniform(0.09, 0.16), generator.uniform(0, 1, 2)
    along = (x * math.cos(angle) + y * math.sin(angle)) / pitch + phase[0]
    across = (y * math.cos(angle) - x * math.sin(angle)) / pitch + phase[1]
    if background == "plain":
        return np.zeros((size, size))
    if background == "striped":
        return (along % 1 < 0.5).astype(float)
    if background == "checkered":
        return ((along % 2 < 1) ^ (across % 2 < 1)).astype(float)
    if background == "dotted":
        return ((along % 1 - 0.5) ** 2 + (across % 1 - 0.5) ** 2 < 0.075).astype(float)
    if background == "noisy":
        coarse = generator.normal(0, 1, (25, 25))
        cells = np.arange(size) * 25 // size
        return coarse[np.ix_(cells, cells)] * 0.5
    if background == "shaded":
        slope = x * math.cos(2 * angle) + y * math.sin(2 * angle)
        return (slope - slope.min()) / (slope.max() - slope.min()) * 1.6
    raise ValueError(f"There is no background {background!r}; there are {', '.join(BACKGROUNDS)}.")


__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "HELD_OUT_PAIRS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TAGS",
    "Scene",
    "SceneObject",
    "paste_objects",
    "render",
    "sample_scene",
    "scenes",
    "visible_objects",
]
