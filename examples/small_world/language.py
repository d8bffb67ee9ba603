"""Sentences about scenes: captions, questions with answers, referring expressions with boxes, descriptions of a box.

All are true by construction: they are generated from the scene's geometry, and referring expressions are used only if
they fit exactly one object. Wordings vary, but answers have a fixed form. `KIND_WEIGHTS` lists the kinds of samples and
their frequencies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transformers_lion.grounding import format_boxes

from .scenes import COLORS, HELD_OUT_PAIRS, SHAPES, SIZES, Scene, SceneObject

MARGIN = 0.08
"""Minimum distance, in fractions of the image, for an object to count as left of or above another."""

KIND_WEIGHTS = {
    "caption": 0.14, "existence": 0.12, "color": 0.08, "shape": 0.08, "count": 0.1, "relation": 0.09, "size": 0.05,
    "background": 0.03, "locate": 0.24, "describe": 0.07,
}  # fmt: skip
"""Kinds of samples and their weights."""

REGION_LEVEL_KINDS = frozenset({"locate", "describe"})

WORDS = {
    "image": ("image", "picture", "photo", "scene"),
    "object": ("object", "thing"),
    "small": ("small", "small", "little"),
    "large": ("large", "large", "big"),
    "color": ("color", "color", "colour"),
}
"""Synonyms of words in the templates."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    kind: tuple(block.strip().splitlines())
    for kind, block in {
        "caption": """
Please describe the {image} using a single short sentence.
Please describe the {image} using a single short sentence.
Describe the {image}.
Please describe this {image}.
What is in the {image}?
What does the {image} show?
Write a short caption for the {image}.
A short {image} caption:
What can you see in this {image}?
Can you describe the {image} briefly?
Provide a one sentence caption for the provided {image}.
Give a short description of the {image}.
""",
        "existence": """
Is there {a} in the {image}?
Is there {a}?
Is there {a} in the {image}?
Does the {image} contain {a}?
Can you see {a}?
Do you see {a} in the {image}?
Is {a} present in the {image}?
Does the {image} show {a}?
Is {a} in this {image}?
Are there any {plural} in the {image}?
Are there any {plural}?
""",
        "color": """
What {color} is {the}?
What is the {color} of {the}?
Which {color} is {the}?
What {color} does {the} have?
Tell me the {color} of {the}.
What {color} is {the} in the {image}?
""",
        "shape": """
What shape is {the}?
What is the shape of {the}?
Which shape does {the} have?
What shape does {the} have?
Tell me the shape of {the}.
What kind of shape is {the} in the {image}?
What is {the}?
""",
        "count": """
How many {plural} are there?
How many {plural} are in the {image}?
How many {plural} are there in the {image}?
How many {plural} can you see?
Count the {plural}.
What is the number of {plural} in the {image}?
How many {plural} does the {image} show?
""",
        "relation": """
Is {the} {relation} {other}?
Is {the} {relation} {other} in the {image}?
Can you tell if {the} is {relation} {other}?
""",
        "size": """
Is {the} small or large?
What size is {the}?
How large is {the}?
Is {the} large or small?
What is the size of {the}?
How big is {the}?
""",
        "background": """
What is the background like?
What kind of background is it?
Describe the background.
What pattern does the background have?
What does the background of the {image} look like?
How does the background look?
""",
        "locate": """
How can I locate {the} in the {image}? Please provide the coordinates.
How can I locate {the} in the {image}? Please provide the coordinates.
In the image <image>, can you locate {the} and let me know its coordinates?
In the {image}, can you locate {the} and let me know its coordinates?
Where is {the}?
Where is {the} in the {image}?
Locate {the}.
Locate {the} in the {image}.
Find {the}.
Can you find {the} in the {image}?
What are the coordinates of {the}?
Give the coordinates of {the}.
Please provide the bounding box of {the}.
What is the bounding box of {the} in the {image}?
Please give me the box of {the} in the {image}.
Point out {the} and provide its coordinates.
I want to know where {the} is. Please give the coordinates.
Detect {the}.
Show me {the}.
""",
        "describe": """
What is in the region {box}?
What is in the region {box} of the {image}?
Describe the region {box}.
Please describe the region {box} in the {image}.
What {object} is at {box}?
What is at {box}?
Can you provide a description of the region {box} in the {image}?
What can you see in {box}?
Please describe the {object} in the box {box}.
What is inside the box {box}?
""",
    }.items()
}
"""Wordings of the questions of each kind, in the order of `KIND_WEIGHTS`; duplicates are used more often."""

RELATIONS: dict[str, tuple[int, int]] = {
    "to the left of": (0, -1), "left of": (0, -1), "to the right of": (0, 1), "right of": (0, 1), "above": (1, -1),
    "below": (1, 1),
}  # fmt: skip
"""Words, the axis, and the side on it: -1 for the smaller coordinate."""

SUPERLATIVES: dict[str, tuple[int, int]] = {
    "leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "lowest": (1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One question about a scene and its answer.

    Attributes:
        kind: a key of `KIND_WEIGHTS`.
        about: indices of the objects that the question is about; `None` if it is not about specific objects.
    """

    kind: str
    question: str
    answer: str
    about: tuple[int, ...] | None = None

    @property
    def target(self) -> int:
        """Index of the only object that the question is about."""
        assert self.about is not None
        return self.about[0]

    @property
    def task_type(self) -> str:
        """The task type for LION's router."""
        return "region_level" if self.kind in REGION_LEVEL_KINDS else "image_level"


@dataclass(frozen=True)
class _Description:
    """A description of objects by size, color and shape, each of which may be unspecified."""

    size: str | None = None
    color: str | None = None
    shape: str | None = None

    def fits(self, thing: SceneObject) -> bool:
        """Whether the description fits an object."""
        return all(getattr(self, name) in (None, getattr(thing, name)) for name in ("size", "color", "shape"))

    def words(self, generator: np.random.Generator, plural: bool = False) -> str:
        """The words in their order, without an article."""
        noun = self.shape or pick(generator, WORDS["object"])
        if plural:
            noun = pluralize(noun)
        size = self.size and pick(generator, WORDS[self.size])
        return " ".join(word for word in (size, self.color, noun) if word)


def pick(generator: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options."""
    return options[int(generator.integers(len(options)))]


def pluralize(noun: str) -> str:
    """The plural of a shape or of an object."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def article(words: str) -> str:
    """`a` or `an` before the words."""
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def full_description(thing: SceneObject) -> str:
    """`a small red circle`."""
    return article(f"{thing.size} {thing.color} {thing.shape}")


def caption(scene: Scene) -> str:
    """Caption the scene: all objects from left to right, and the background."""
    things = [full_description(thing) for thing in sorted(scene.objects, key=lambda thing: thing.center[0])]
    listed = things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"
    return f"{listed} on {article(scene.background)} background"


def describe(generator: np.random.Generator, thing: SceneObject, detail: int | None = None) -> _Description:
    """Describe an object with one to three of its attributes, most often its color and shape."""
    use = (
        (False, False, True), (False, True, False), (False, True, True), (False, True, True), (True, False, True),
        (True, True, False), (True, True, True), (True, True, True), (True, False, False),
    )[int(generator.integers(9)) if detail is None else detail]  # fmt: skip
    values = (thing.size, thing.color, thing.shape)
    return _Description(*(value if used else None for value, used in zip(values, use, strict=True)))


def is_beside(thing: SceneObject, other: SceneObject, axis: int, side: int, margin: float = MARGIN) -> bool:
    """Whether an object is clearly on one side of another."""
    return side * (thing.center[axis] - other.center[axis]) > margin


def unique_phrase(
    generator: np.random.Generator, scene: Scene, target: int, without: str | None = None, tries: int = 12
) -> str | None:
    """Return an expression, with `the`, that fits only one object of the scene.

    Args:
        target: index of the object.
        without: an attribute that must not be mentioned.

    Returns:
        The expression; `None` if none was found.
    """
    thing = scene.objects[target]
    for _ in range(tries):
        description = describe(generator, thing)
        if without and getattr(description, without):
            continue
        rivals = [other for other in scene.objects if description.fits(other) and other is not thing]
        words = description.words(generator)
        if not rivals:
            return f"the {words}"
        phrase = superlative(generator, thing, rivals, words) if generator.random() < 0.6 else None
        if phrase is None:
            phrase = _beside_phrase(generator, scene, thing, rivals, words)
        if phrase is not None:
            return phrase
    return None


def superlative(
    generator: np.random.Generator, thing: SceneObject, rivals: list[SceneObject], words: str
) -> str | None:
    """Return an expression such as `the leftmost red circle`, if it is true."""
    fitting = [
        name for name, (axis, side) in SUPERLATIVES.items() if all(is_beside(thing, x, axis, side) for x in rivals)
    ]
    return f"the {pick(generator, fitting)} {words}" if fitting else None


def _beside_phrase(
    generator: np.random.Generator, scene: Scene, thing: SceneObject, rivals: list[SceneObject], words: str
) -> str | None:
    """Return an expression such as `the red circle to the left of the blue star`, if it fits only this object."""
    others = [other for other in scene.objects if other is not thing and other not in rivals]
    for index in generator.permutation(len(others)):
        anchor = others[index]
        description = describe(generator, anchor)
        if sum(description.fits(other) for other in scene.objects) != 1:
            continue
        for name in generator.permutation(list(RELATIONS)):
            axis, side = RELATIONS[name]
            if is_beside(thing, anchor, axis, side) and all(is_beside(x, anchor, axis, -side, 0) for x in rivals):
                return f"the {words} {name} the {description.words(generator)}"
    return None


def _fill(generator: np.random.Generator, kind: str, **parts: str) -> str:
    """Return a question in a random wording of its kind."""
    words = {name: pick(generator, options) for name, options in WORDS.items()}
    return pick(generator, TEMPLATES[kind]).format(**{**words, **parts})


def _ask_caption(generator: np.random.Generator, scene: Scene) -> Sample | None:
    """Ask for a description of the whole scene."""
    return Sample("caption", _fill(generator, "caption"), caption(scene))


def _ask_existence(generator: np.random.Generator, scene: Scene) -> Sample | None:
    """Ask whether an object exists; yes and no are equally frequent, and absent objects resemble present ones."""
    present = bool(generator.random() < 0.5)
    thing = scene.objects[int(generator.integers(len(scene.objects)))]
    for _ in range(20):
        description = describe(generator, thing, int(generator.integers(8)))
        if not present:
            description = change(generator, description)
        held_out = (description.color, description.shape) in HELD_OUT_PAIRS
        if any(description.fits(other) for other in scene.objects) == present and (present or not held_out):
            break
    else:
        return None
    a, plural = article(description.words(generator)), description.words(generator, plural=True)
    about = tuple(index for index, other in enumerate(scene.objects) if description.fits(other))
    return Sample("existence", _fill(generator, "existence", a=a, plural=plural), "yes" if present else "no", about)


def change(generator: np.random.Generator, description: _Description) -> _Description:
    """Replace one word of a description."""
    options: dict[str, Sequence[str]] = {"size": list(SIZES), "color": list(COLORS), "shape": SHAPES}
    used = [name for name in options if getattr(description, name)]
    name = pick(generator, used)
    values = {key: getattr(description, key) for key in options}
    return _Description(**{**values, name: pick(generator, [x for x in options[name] if x != values[name]])})


def _ask_attribute(kind: str) -> Callable[[np.random.Generator, Scene], Sample | None]:
    """Ask for the color, shape or size of an object."""

    def ask(generator: np.random.Generator, scene: Scene) -> Sample | None:
        target = int(generator.integers(len(scene.objects)))
        phrase = unique_phrase(generator, scene, target, without=kind)
        if phrase is None:
            return None
        return Sample(kind, _fill(generator, kind, the=phrase), getattr(scene.objects[target], kind), (target,))

    return ask


def _ask_count(generator: np.random.Generator, scene: Scene) -> Sample | None:
    """Ask how many objects fit a description, from none to all."""
    thing = scene.objects[int(generator.integers(len(scene.objects)))]
    detail = int(generator.choice([0, 0, 1, 1, 2, 8, 9]))
    description = _Description() if detail == 9 else describe(generator, thing, detail)
    if detail < 8 and generator.random() < 0.12:
        description = change(generator, description)
    about = tuple(index for index, other in enumerate(scene.objects) if description.fits(other))
    question = _fill(generator, "count", plural=description.words(generator, plural=True))
    return Sample("count", question, str(len(about)), about)


def _ask_relation(generator: np.random.Generator, scene: Scene) -> Sample | None:
    """Ask about the relation of two objects; yes and no are equally frequent, and close calls are avoided."""
    if len(scene.objects) < 2:
        return None
    first, second = (int(index) for index in generator.permutation(len(scene.objects))[:2])
    the, other = unique_phrase(generator, scene, first), unique_phrase(generator, scene, second)
    relation = pick(generator, list(RELATIONS))
    axis, side = RELATIONS[relation]
    if the is None or other is None:
        return None
    yes = is_beside(scene.objects[first], scene.objects[second], axis, side)
    no = is_beside(scene.objects[first], scene.objects[second], axis, -side)
    if not yes and not no:
        return None
    question = _fill(generator, "relation", the=the, other=other, relation=relation)
    return Sample("relation", question, "yes" if yes else "no", (first, second))


def _ask_background(generator: np.random.Generator, scene: Scene) -> Sample | None:
    """Ask what the background looks like."""
    return Sample("background", _fill(generator, "background"), scene.background)


def _ask_locate(generator: np.random.Generator, scene: Scene) -> Sample | None:
    """Ask for the box of the object of a referring expression."""
    target = int(generator.integers(len(scene.objects)))
    phrase = unique_phrase(generator, scene, target)
    if phrase is None:
        return None
    return Sample("locate", _fill(generator, "locate", the=phrase), _locate_answer(scene.objects[target]), (target,))


def _locate_answer(thing: SceneObject) -> str:
    """`Answer: [x1,y1,x2,y2]`."""
    return f"Answer: {format_boxes([thing.box])}"


def _ask_describe(generator: np.random.Generator, scene: Scene) -> Sample | None:
    target = int(generator.integers(len(scene.objects)))
    thing = scene.objects[target]
    box = format_boxes([thing.box], decimals=3 if generator.random() < 0.8 else 2)
    return Sample("describe", _fill(generator, "describe", box=box), full_description(thing), (target,))


ASKERS: dict[str, Callable[[np.random.Generator, Scene], Sample | None]] = {
    "caption": _ask_caption, "existence": _ask_existence, "color": _ask_attribute("color"),
    "shape": _ask_attribute("shape"), "count": _ask_count, "relation": _ask_relation, "size": _ask_attribute("size"),
    "background": _ask_background, "locate": _ask_locate, "describe": _ask_describe,
}  # fmt: skip


def ask(
    generator: np.random.Generator,
    scene: Scene,
    kinds: Sequence[str] = tuple(KIND_WEIGHTS),
    kind_weights: Mapping[str, float] = KIND_WEIGHTS,
) -> Sample:
    """Return a random sample of one of the kinds.

    Args:
        generator: the random number generator.
        kinds: kinds to draw from. If a scene does not allow one (relations need two objects), another is drawn.
        kind_weights: relative frequencies of the kinds.
    """
    weights = np.array([kind_weights[kind] for kind in kinds])
    while True:
        kind = str(generator.choice(list(kinds), p=weights / weights.sum()))
        sample = ASKERS[kind](generator, scene)
        if sample is not None:
            return sample
        if len(kinds) == 1:
            kinds, weights = ("caption",), np.ones(1)


def roughen(generator: np.random.Generator, question: str) -> str:
    """Vary a question: sometimes in lowercase, without the final punctuation mark, or with a `please`."""
    if generator.random() < 0.25:
        question = question[0].lower() + question[1:]
    if generator.random() < 0.15:
        question = question.rstrip(".?:")
    if generator.random() < 0.05:
        question = f"please {question[0].lower()}{question[1:]}"
    return question


OPENINGS = (
    "so", "well,", "hi!", "hello,", "quick question:", "can you say", "I would like to know:", "ok.", "um,",
    "look at this.", "now", "and", "one more thing:", "excuse me,", "do you know",
)  # fmt: skip
ENDINGS = ("please", "thank you", "or not", "here", "now", "I need it.", "I am not sure.", "!", "!!", "...", "in there")
SWAPS = (("the ", "this "), ("What ", "And what "), ("there", "here"), (" a ", " any "), (" is ", "'s "), (" ", "  "))


def chatter(generator: np.random.Generator, question: str) -> str:
    """Add words around and within a question that do not change its meaning."""
    if generator.random() < 0.15:
        question = question.upper()
    if generator.random() < 0.3:
        question = question.replace(*SWAPS[int(generator.integers(len(SWAPS)))])
    if generator.random() < 0.5:
        question = f"{pick(generator, OPENINGS)} {question}"
    if generator.random() < 0.5:
        question = f"{question} {pick(generator, ENDINGS)}"
    return question


__all__ = ["KIND_WEIGHTS", "REGION_LEVEL_KINDS", "Sample", "ask", "caption", "chatter", "roughen", "unique_phrase"]
