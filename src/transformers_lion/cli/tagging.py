"""`lion tag`: tags images."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image

from ..example import example_checkpoint
from .answering import Job, Outcome, Prepared, run_job
from .checkpoints import load_tagger
from .common import Debug, run_action
from .drawings import write_below
from .options import BatchSize, Columns, Device, Images, Optimize, Place, expand_settings

if TYPE_CHECKING:
    from ..ram import ImageTagger, TaggedImage

Threshold = Annotated[
    float | None,
    typer.Option("--threshold", min=0, max=1, help="Minimum score of a tag.", show_default="each tag's own"),
]
TopK = Annotated[int | None, typer.Option("--top", min=1, help="Maximum number of tags.", show_default="all")]


class Tagging(Job):
    """Tags images."""

    def __init__(self, model: str | None, device: str | None, optimize: bool, options: dict[str, Any]):
        self.model = model
        self.device = device
        self.optimize = optimize
        self.options = options
        self.tagger: ImageTagger

    num_results = 1
    """Number of results per image."""

    def identify(self) -> dict[str, Any]:
        """Return everything that the tags depend on."""
        from ..model_identity import identify_model

        return {"model": identify_model(self.model or example_checkpoint()), **self.options}

    def load(self) -> None:
        """Load the tagger."""
        self.tagger = load_tagger(self.model, self.device, self.optimize)

    def run(self, prepared: Prepared) -> list[Outcome]:
        """Tag a batch of images."""
        images: list[Any] = [image for _, image in prepared]
        found = self.tagger.tag(images, batch_size=len(images), show_progress=False, **self.options)
        return [self.outcome(image, tagged) for image, tagged in zip(images, found, strict=True)]

    def outcome(self, image: Image.Image, tagged: "TaggedImage") -> Outcome:
        """Return the results for one image."""
        names = ", ".join(tagged.names or [])
        record = {
            "tags": tagged.names,
            "scores": [round(tag["score"], 4) for tag in tagged.tags or []],
            "width": image.width,
            "height": image.height,
        }
        return Outcome([([names], record)], partial(write_below, image, [names]))


@expand_settings
def tag(
    images: Images,
    columns: Columns,
    place: Place,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Folder or Hub id of a tagger, or of a LION model with a tagger.",
            show_default="the example checkpoint's",
        ),
    ] = None,
    threshold: Threshold = None,
    top_k: TopK = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    optimize: Optimize = True,
    debug: Debug = False,
) -> None:  # fmt: skip
    """List what is in each image as tags."""
    selection = {"threshold": threshold, "top_k": top_k, "sort_by_score": top_k is not None}
    job = Tagging(model, device, optimize, selection)
    run_action(lambda: run_job(job, images, columns, batch_size, place), debug)
