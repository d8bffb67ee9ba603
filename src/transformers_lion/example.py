"""Example checkpoint, a small LION model included in the package, and two images to try it with.

It has all parts of LION, with 5.2 million parameters at 100 x 100 pixels, and was trained from scratch on scenes of
colored shapes. It captions, answers questions, locates objects and tags images of such scenes only. See
`examples/small_world` in the repository for its training, and `docs/example-checkpoint.md` for its results.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Pillow is imported only when an image is needed, so that commands start quickly
    from PIL import Image

FOLDER = Path(__file__).parent / "example_checkpoint"
TAGGER = "tagger"
_SCENE = Path(__file__).parent / "example_images" / "scene.png"


def example_checkpoint() -> str:
    """Return the folder of the example checkpoint, for `from_pretrained` and `pipeline`. It includes a tagger.

    Raises:
        FileNotFoundError: If this installation does not include the example checkpoint.
    """
    if not (FOLDER / "config.json").exists():
        raise FileNotFoundError(f"This installation does not include the example checkpoint, expected at {FOLDER}.")
    return str(FOLDER)


def example_image() -> "Image.Image":
    """Return a scene of 400 x 400 pixels that is not in the training data of the example checkpoint.

    It shows a blue cross and a blue heart.
    """
    from PIL import Image

    with Image.open(_SCENE) as image:
        return image.convert("RGB")


def sketch(width: int = 640, height: int = 480) -> "Image.Image":
    """Draw an image that is unlike the training data: shapes with black outlines on ruled paper, and not square.

    Args:
        width, height: Size in pixels.
    """
    from PIL import Image, ImageDraw

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
