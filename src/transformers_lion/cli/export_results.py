"""`lion export-results`: the results of `lion annotate` in other formats."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, require, run_action, stderr_console

Results = Annotated[Path, typer.Argument(metavar="RESULTS", help="Output folder of lion annotate.")]


class ExportFormat(str, Enum):
    """Formats to export to."""

    jsonl = "jsonl"
    coco = "coco"
    coco_detections = "coco-detections"
    coco_captions = "coco-captions"
    webdataset = "webdataset"


def export_results(
    results: Results,
    output: Annotated[Path, typer.Option("--output", "-o", help="New file; for webdataset, a new folder.")],
    format: Annotated[ExportFormat, typer.Option("--format", "-f", help="Format of the output.")],
    member: Annotated[
        str, typer.Option("--member", help="Extension of the members with results in WebDataset shards.")
    ] = "json",
    debug: Debug = False,
) -> None:
    """Export results of lion annotate: to COCO, JSON Lines, or into copies of the WebDataset shards."""

    def action() -> None:
        require("lion export-results", "ray", ["pyarrow"])
        if output.exists():
            raise FileExistsError(17, "File exists", str(output))
        count = find_export(format, member)(results, output)
        stderr_console().print(f"{output}: {count:,} {COUNTED[format]}.")

    run_action(action, debug)


COUNTED = {
    ExportFormat.jsonl: "rows",
    ExportFormat.coco: "boxes",
    ExportFormat.coco_detections: "boxes",
    ExportFormat.coco_captions: "captions",
    ExportFormat.webdataset: "images with results",
}
"""What each export counts."""


def find_export(format: ExportFormat, member: str) -> Callable[[Path, Path], int]:
    """Return the function that exports to a format."""
    from ..jobs import exports

    if format is ExportFormat.jsonl:
        return exports.to_json_lines
    if format is ExportFormat.webdataset:
        return lambda results, output: exports.to_webdataset(results, output, member)
    kinds: dict[ExportFormat, exports.CocoKind] = {
        ExportFormat.coco: "annotations",
        ExportFormat.coco_detections: "detections",
        ExportFormat.coco_captions: "captions",
    }
    return lambda results, output: exports.to_coco(results, output, kinds[format])
