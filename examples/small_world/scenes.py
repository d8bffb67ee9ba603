"""Scenes of colored shapes on textured backgrounds, sampled from a seed and drawn at any size.

A scene is geometry in fractions of the image, so that the same scene can be drawn at 100 or 1000 pixels. The splits
(`SPLITS`) are disjoint streams of scenes: each scene has its own random generator, seeded by the seed of the world, the
split and the index of the scene. Some pairs of color and shape (`HELD_OUT_PAIRS`) occur only in the split `heldout`.
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
"""Range of diameters of each size, in fractions of the image."""

BACKGROUNDS = ("plain", "striped", "dotted", "checkered", "noisy", "shaded")
SPLITS = ("train", "validation", "test", "heldout")
HELD_OUT_PAIRS = frozenset(zip(COLORS, np.roll(SHAPES, 3).tolist(), strict=True))
"""Pairs of color and shape; each color and each shape occurs once."""

MAX_NUM_OBJECTS = 5
MIN_VISIBLE = 0.72
"""Minimum fraction of an object that must be visible behind other objects."""

MAX_TILT = {"circle": 0.0, "ring": 0.0, "square": 14.0, "triangle": 25.0, "star": 36.0, "cross": 18.0, "heart": 22.0,
            "moon": 40.0}  # fmt: skip
"""Maximum rotation of a shape in either direction, in degrees."""

Point = tuple[float, float]


@dataclass(frozen=True)
class SceneObject:
    """An object in a scene.

    Attributes:
        shape, color, size: words in `SHAPES`, `COLORS` and `SIZES`.
        center: (x, y) in fractions of the image.
        diameter: diameter of the circumscribed circle, as a fraction of the image.
        tilt: rotation in degrees.
        rgb: the color as drawn, close to the named color.
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
        """The corners of its outline, (N, 2), in fractions of the image."""
        return place(unit_outline(self.shape), self.center, self.diameter, self.tilt)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 in fractions of the image, including hidden parts."""
        (x1, y1), (x2, y2) = self.outline.min(axis=0), self.outline.max(axis=0)
        return float(x1), float(y1), float(x2), float(y2)


@dataclass(frozen=True)
class Scene:
    """Objects on a background.

    Attributes:
        objects: 1 to `MAX_NUM_OBJECTS` objects, from the rearmost to the foremost.
        background: a word in `BACKGROUNDS`.
        texture_seed: seed of the background's colors and pattern.
    """

    objects: tuple[SceneObject, ...]
    background: str
    texture_seed: int

    @property
    def tags(self) -> list[str]:
        """The tags that a perfect tagger would find, in the order of `TAGS`."""
        present = {self.background, *(thing.shape for thing in self.objects), *(thing.color for thing in self.objects)}
        return [tag for tag in TAGS if tag.removesuffix(" background") in present]


TAGS = (*SHAPES, *COLORS, *(f"{background} background" for background in BACKGROUNDS))
"""All tags of the small world's tagger."""


@cache
def unit_outline(shape: str) -> np.ndarray:
    """Return the corners (N, 2) of an upright shape in the circle of diameter 1 around the origin.

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
    """Return the corners (corners, 2) of a regular polygon, with the first corner at the top."""
    angles = np.radians(turned - 90 + 360 * np.arange(corners) / corners)
    return 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def place(outline: np.ndarray, center: Point, diameter: float, tilt: float) -> np.ndarray:
    """Rotate, scale and move an outline, (N, 2) -> (N, 2)."""
    angle = math.radians(tilt)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return outline @ turn * diameter + np.asarray(center)


def _scene_generator(split: str, index: int, seed: int = 0) -> np.random.Generator:
    """Return the random generator of a scene.

    Raises:
        ValueError: if there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; the splits are {', '.join(SPLITS)}.")
    return np.random.default_rng([seed, SPLITS.index(split), index])


def sample_scene(split: str, index: int, seed: int = 0) -> Scene:
    """Sample a scene of a split.

    Args:
        split: one of `SPLITS`. Every scene in `heldout` has at least one of the `HELD_OUT_PAIRS`; other scenes have
            none.
        index: index of the scene, from 0.
        seed: seed of the world.
    """
    generator = _scene_generator(split, index, seed)
    while True:
        things = _sample_objects(generator, split == "heldout")
        if things:
            break
    background = BACKGROUNDS[generator.integers(len(BACKGROUNDS))]
    return Scene(things, background, int(generator.integers(2**31)))


def scenes(split: str, seed: int = 0, start: int = 0) -> Iterator[Scene]:
    """Yield endless scenes of a split, starting at index `start`."""
    while True:
        yield sample_scene(split, start, seed)
        start += 1


def _sample_objects(generator: np.random.Generator, held_out: bool) -> tuple[SceneObject, ...]:
    """Place objects so that they fit in the image and hide little of each other; an empty list if this fails."""
    num_objects = int(generator.integers(1, MAX_NUM_OBJECTS + 1))
    pairs = [_sample_pair(generator, held_out and index == 0) for index in range(num_objects)]
    if num_objects > 1 and generator.random() < 0.5:  # similar objects make referring expressions difficult
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
    """Draw a color and a shape, either from the held-out pairs or from the others."""
    while True:
        pair = list(COLORS)[generator.integers(len(COLORS))], SHAPES[generator.integers(len(SHAPES))]
        if (pair in HELD_OUT_PAIRS) == held_out:
            return pair


def _place_object(
    generator: np.random.Generator, color: str, shape: str, behind: list[SceneObject], tries: int = 40
) -> SceneObject | None:
    """Find a position in front of the objects `behind` that leaves enough of each of them visible."""
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
    """Return the intersection of two boxes as a fraction of the smaller one."""
    a, b = thing.box, other.box
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0.0) * max(height, 0.0) / smaller


def render(scene: Scene, size: int = 200) -> Image.Image:
    """Draw a scene with antialiasing.

    Args:
        size: width and height in pixels.
    """
    return paste_objects(scene, Image.fromarray(_background_pixels(scene, size)))


def paste_objects(scene: Scene, canvas: Image.Image) -> Image.Image:
    """Draw a scene's objects on a square image, in place, and return it."""
    for thing in scene.objects:
        alpha, corner = mask(thing, canvas.width)
        canvas.paste(thing.rgb, (*corner, corner[0] + alpha.width, corner[1] + alpha.height), alpha)
    return canvas


def visible_objects(scene: Scene, size: int) -> np.ndarray:
    """Return the index (size, size), int8, of the foremost object at each pixel, -1 for the background."""
    numbers = Image.new("L", (size, size), 255)
    for number, thing in enumerate(scene.objects):
        alpha, corner = mask(thing, size)
        inside = alpha.point([0] * 128 + [255] * 128)
        numbers.paste(number, (*corner, corner[0] + alpha.width, corner[1] + alpha.height), inside)
    return np.asarray(numbers).astype(np.int8)


def mask(thing: SceneObject, size: int, oversampling: int = 4) -> tuple[Image.Image, tuple[int, int]]:
    """Return an object's coverage of the pixels around it, as a grayscale image, and the window's upper left pixel."""
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
    """Draw the background, (size, size, 3) uint8: two dull tones in the scene's pattern, with slight noise."""
    generator = np.random.default_rng(scene.texture_seed)
    base = generator.uniform(95, 165) + generator.uniform(-14, 14, 3)
    contrast = generator.choice([-1, 1]) * generator.uniform(18, 38) + generator.uniform(-8, 8, 3)
    weight = pattern(scene.background, size, generator)[..., None]
    grain = generator.normal(0, generator.uniform(1, 5), (100, 100, 1))
    if size != 100:
        grain = grain[np.ix_(np.arange(size) * 100 // size, np.arange(size) * 100 // size)]
    return np.clip(base + contrast * weight + grain, 0, 255).astype(np.uint8)


def pattern(background: str, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return the fraction (size, size) of the second tone at each pixel, from 0 to 1."""
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
