"""Arguments and options that several commands have, and what they are together."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


class DtypeName(str, Enum):
    """Precisions of weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE", help="Files, folders, globs, URLs; - reads a list from stdin."),
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Folder or Hub id.", show_default="the example checkpoint")
]
Tags = Annotated[str | None, typer.Option("--tags", help="For all prompts: 'dog, grass'.", show_default="a tagger's")]
NoTags = Annotated[bool, typer.Option("--no-tags", help="Prompts without a tag sentence.")]
Tagger = Annotated[str | None, typer.Option("--tagger", help="Folder or Hub id.", show_default="the model's, if any")]
AsJson = Annotated[bool, typer.Option("--json", help="An object a line, with all there is to say.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="A new file for the JSON lines.", show_default="stdout")
]
Draw = Annotated[
    Path | None,
    typer.Option("--draw", help="Also draw the answers: a file for one picture, a folder for several."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pictures, and questions, at a time.")]
NumBeams = Annotated[int | None, typer.Option("--num-beams", min=1, help="Of the search.", show_default="the model's")]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Of an answer.", show_default="the model's")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda:0...", show_default="a GPU, if there is one")]
Dtype = Annotated[DtypeName | None, typer.Option("--dtype", help="Of the weights.", show_default="as saved")]


@dataclass(frozen=True)
class Settings:
    """How questions are to be answered, and where the answers go."""

    model: str | None
    tags: str | None
    no_tags: bool
    tagger: str | None
    as_json: bool
    output: Path | None
    draw: Path | None
    batch_size: int
    num_beams: int | None
    max_new_tokens: int | None
    device: str | None
    dtype: DtypeName | None

    def __post_init__(self) -> None:
        given = [name for name in ("tags", "no_tags", "tagger") if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise typer.BadParameter(f"{options} do not go together.")

    @property
    def request_tags(self) -> str | Literal[False] | None:
        """As a request has them."""
        return False if self.no_tags else self.tags

    @property
    def tagger_source(self) -> str | bool:
        """A tagger's name, or whether the model's own is needed."""
        return self.tagger if self.tagger is not None else self.request_tags is None

    @property
    def generation(self) -> dict[str, Any]:
        """The options of generation that were given."""
        options = {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens}
        return {name: value for name, value in options.items() if value is not None}
