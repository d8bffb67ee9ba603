"""Arguments and options shared by several commands."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..tag_source import TagSource


class DtypeName(str, Enum):
    """Names of the dtypes that weights can be loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class TagSourceName(str, Enum):
    """`TagSource` as an enumeration, for the command line."""

    data = "data"
    tagger = "tagger"
    none = "none"


Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE", help="Files, folders, globs, URLs, manifests, Parquet; - reads a list."),
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Model folder or Hub id.", show_default="the example checkpoint")
]
Tags = Annotated[str | None, typer.Option("--tags", help="Tags for all prompts: 'dog, grass'.")]
TagSourceOption = Annotated[
    TagSourceName | None,
    typer.Option("--tag-source", help="Source of tags; none omits the tag sentence.", show_default="data, else tagger"),
]
Tagger = Annotated[
    str | None, typer.Option("--tagger", help="Tagger folder or Hub id.", show_default="the model's, if any")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line, with all details.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write JSON Lines to this new file.", show_default="stdout")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an existing --output, and skip the images in it.")]
ImageColumn = Annotated[
    str | None,
    typer.Option("--image-column", help="Column of images in manifests and tables.", show_default="image or similar"),
]
KeyColumn = Annotated[
    str | None,
    typer.Option("--key-column", help="Column with the names of images; # for row numbers.", show_default="paths"),
]
ImageRoot = Annotated[
    str | None,
    typer.Option("--image-root", help="Folder of relative paths in manifests.", show_default="the manifest's"),
]
Draw = Annotated[
    Path | None,
    typer.Option("--draw", help="Also draw the answers; a file for one image, a folder for several."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images and questions per batch.")]
NumBeams = Annotated[
    int | None, typer.Option("--num-beams", min=1, help="Number of beams.", show_default="the model's")
]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Maximum tokens per answer.", show_default="the model's")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda:0...", show_default="a GPU, if there is one")]
Dtype = Annotated[DtypeName | None, typer.Option("--dtype", help="Dtype of the weights.", show_default="as saved")]
Optimize = Annotated[
    bool, typer.Option("--optimize/--no-optimize", help="Pack weights where that is exact and faster on this CPU.")
]

Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the decoder: a slower start, faster answers. Needs a C++ compiler.")
]


@dataclass(frozen=True)
class Columns:
    """How to read the images in manifests and tables."""

    image_column: ImageColumn = None
    key_column: KeyColumn = None
    image_root: ImageRoot = None


@dataclass(frozen=True)
class Place:
    """Where to write answers."""

    as_json: AsJson = False
    output: Output = None
    resume: Resume = False
    draw: Draw = None

    def __post_init__(self) -> None:
        if self.resume and self.output is None:
            raise typer.BadParameter("--resume needs --output, the file to continue.")


@dataclass(frozen=True)
class Settings:
    """Options for answering questions."""

    model: Model = None
    tags: Tags = None
    tag_source_name: TagSourceOption = None
    tagger: Tagger = None
    batch_size: BatchSize = 8
    num_beams: NumBeams = None
    max_new_tokens: MaxNewTokens = None
    device: Device = None
    dtype: Dtype = None
    optimize: Optimize = True
    compile: Compile = False

    def __post_init__(self) -> None:
        asks_tagger = self.tag_source in (None, "tagger") and self.tags is None
        if self.tags is not None and self.tag_source == "tagger":
            raise typer.BadParameter("--tags and --tag-source tagger cannot be combined.")
        if self.tagger is not None and not asks_tagger:
            other = "--tags" if self.tags is not None else f"--tag-source {self.tag_source}"
            raise typer.BadParameter(f"{other} and --tagger cannot be combined.")
        if self.compile and not self.optimize:
            raise typer.BadParameter("--compile and --no-optimize cannot be combined.")

    @property
    def tag_source(self) -> TagSource | None:
        """`tag_source` for `Request`."""
        return None if self.tag_source_name is None else self.tag_source_name.value

    @property
    def tagger_to_load(self) -> str | bool:
        """Name of the tagger to load, or whether to load the model's own."""
        return self.tagger or (self.tags is None and self.tag_source in (None, "tagger"))

    @property
    def generation(self) -> dict[str, Any]:
        """The generation options that are set."""
        options = {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens}
        return {name: value for name, value in options.items() if value is not None}


def expand_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Expose the fields of a command's dataclass argument to typer as options of the command."""
    hints = get_type_hints(command, include_extras=True)
    parameters: dict[str, inspect.Parameter] = {}
    settings: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            settings[name] = hints[name]
            parameters |= _settings_parameters(hints[name])
        else:
            parameters[name] = parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)

    @wraps(command)
    def run(**values: Any) -> None:
        built = {name: kind(**{x.name: values.pop(x.name) for x in fields(kind)}) for name, kind in settings.items()}
        command(**values, **built)

    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


def _settings_parameters(kind: Any) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    }
