"""A small LION that comes with the package, trained from nothing on scenes of coloured shapes.

It is a LION with all parts, 5.2 million parameters at 100 x 100 pixels, for trying things out, for tests and for the
documentation: it captions, answers, locates and tags in its small world and knows nothing of any other. How it was
trained stands in `transformers_lion.training.small_world`, what it reaches in `docs/example-checkpoint.md`.

`python -m transformers_lion.example_answers [FOLDER]` shows it at work on two pictures.
"""

from PIL import Image, ImageDraw

from .example_folder import FOLDER, example_checkpoint

TAGGER = "tagger"
EXAMPLE_SCENE = 3


def example_image(size: int = 400) -> Image.Image:
    """A scene of the small world that no training saw, with two objects of one colour.

    Args:
        size: width and height in pixels.
    """
    from .training.small_world.scenes import render, sample_scene

    return render(sample_scene("test", EXAMPLE_SCENE), size)


def sketch(width: int = 640, height: int = 480) -> Image.Image:
    """Shapes as no training saw them: by a pen on ruled paper, with black outlines, and not square.

    Args:
        width, height: in pixels.
    """
    paper = Image.new("RGB", (width, height), (196, 190, 176))
    pen = ImageDraw.Draw(paper)
    for y in range(0, height, height // 16):
        pen.line((0, y, width, y), fill=(170, 176, 190), width=1)

    def at(*values: float) -> list[tuple[float, float]]:
        return [(x * width, y * height) for x, y in zip(values[::2], values[1::2], strict=True)]

    line = max(2, width // 160)
    pen.ellipse(at(0.08, 0.12, 0.42, 0.55), fill=(210, 45, 50), outline="black", width=line)
    pen.polygon(at(0.70, 0.18, 0.90, 0.60, 0.52, 0.58), fill=(50, 90, 215), outline="black", width=line)
    pen.rectangle(at(0.20, 0.68, 0.40, 0.92), fill=(245, 222, 60), outline="black", width=line)
    return paper


__all__ = ["FOLDER", "TAGGER", "example_checkpoint", "example_image", "sketch"]
