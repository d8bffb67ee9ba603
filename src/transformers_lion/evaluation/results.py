"""What an evaluation found, as JSON and as a table beside the paper's figures."""

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from ..inference import Lion
from .settings import EvaluationSettings

RESULT = "result.json"
"""In the output folder."""

PACKAGES = ("transformers-lion", "transformers", "torch", "numpy", "pillow")
"""Whose versions are noted."""


@dataclass(frozen=True)
class Result:
    """An evaluation's result.

    Attributes:
        task: its name.
        dataset: the paper's, if one was named.
        figures: by name, as the task explains.
        headline: the figure that the paper gives.
        paper: its values, by model.
        counts: of `examples`, of those that are `missing` an answer and count as wrong, and `answered_in_this_run`.
        data: name and hash of the file, and the limit to its examples.
        predictions: the file that was scored, where there was no model.
        setup: what the predictions depend on.
        model: dtype, device, generation settings and so on.
        versions: of Python and packages.
        batch_size: of this run.
        seconds: that answering took in this run.
        check: of batching.
    """

    task: str
    dataset: str | None
    figures: dict[str, float]
    headline: str
    paper: dict[str, float]
    counts: dict[str, int]
    data: dict[str, Any]
    predictions: str | None
    setup: dict[str, Any] | None
    model: dict[str, Any] | None
    versions: dict[str, str]
    batch_size: int
    seconds: float
    check: dict[str, Any] | None

    @property
    def is_complete(self) -> bool:
        """Whether every example has an answer, and batching made no difference."""
        return not self.counts["missing"] and not (self.check and self.check["differ"])

    @property
    def paper_figure(self) -> str:
        """The figure that the paper gives; of a group alone, where the data set is one of several in the data."""
        of_group = f"{self.headline} {(self.dataset or '').rpartition(' ')[2]}"
        return of_group if of_group in self.figures else self.headline

    def rows(self) -> list[tuple[str, str, list[str]]]:
        """Each figure's name, its value, and the paper's by model, "" where it has none."""
        return [
            (
                name,
                f"{value:.2f}",
                [f"{paper:.2f}" if name == self.paper_figure else "" for paper in self.paper.values()],
            )
            for name, value in self.figures.items()
        ]

    def columns(self) -> list[str]:
        """The heads of the columns of `rows`."""
        return [self.task, "here", *(f"paper, {model}" for model in self.paper)]

    def to_table(self) -> Table:
        """The figures beside those of the paper."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in self.columns():
            table.add_column(column, justify="left" if column == self.task else "right", no_wrap=True)
        for name, value, paper in self.rows():
            table.add_row(name, value, *paper)
        return table

    def to_sentence(self) -> str:
        """How many examples there are, and what those without an answer count as."""
        missing, total = self.counts["missing"], self.counts["examples"]
        if not missing:
            return f"{total} examples."
        return f"{total} examples, of which {missing} have no answer and count as wrong."

    def to_json(self) -> str:
        """The content of `result.json`; missing answers are explained in it."""
        fields = asdict(self)
        fields["counts"]["missing_count_as"] = "wrong"
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def describe_versions() -> dict[str, str]:
    """Versions of Python and of what figures may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe_model(lion: Lion, settings: EvaluationSettings) -> dict[str, Any]:
    """What a model is run with; its generation settings are the checkpoint's with those of the evaluation."""
    config = lion.model.generation_config.to_dict()
    generation = {**config, **settings.generate_options}
    kept = {name: value for name, value in generation.items() if value is not None and not name.startswith("_")}
    return {
        "name": settings.model,
        "dtype": str(lion.model.dtype).removeprefix("torch."),
        "device": str(lion.model.device),
        "tag_source": settings.tag_source,
        "tagger": lion.tagger is not None,
        "seed": settings.seed,
        "generation": kept,
    }


__all__ = ["RESULT", "Result", "describe_model", "describe_versions"]
