"""Results of an evaluation, as JSON and as a table with the paper's values."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ..inference import Lion
from .settings import EvaluationSettings

RESULT = "result.json"
"""File name in the output folder."""

PACKAGES = ("transformers-lion", "transformers", "torch", "numpy", "pillow")
"""Packages whose versions are recorded."""


@dataclass(frozen=True)
class Result:
    """Result of an evaluation.

    Attributes:
        task: Name of the task.
        dataset: Dataset in the paper, if one was named.
        metrics: Metrics by name; see the task.
        headline: The metric that the paper reports.
        paper: The paper's values by model.
        counts: Number of `examples`, of examples that are `missing` an answer and count as wrong, and of examples
            `answered_in_this_run`.
        data: Name and hash of the data file, and the limit on the number of examples.
        predictions: File that was scored if no model was used.
        setup: Everything that the predictions depend on.
        model: Dtype, device, generation settings and so on.
        versions: Versions of Python and packages.
        batch_size: Batch size of this run.
        seconds: Time spent on answering in this run.
        check: Result of the batching check.
    """

    task: str
    dataset: str | None
    metrics: dict[str, float]
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
        """Whether each example has an answer, and batching made no difference."""
        return not self.counts["missing"] and not (self.check and self.check["differ"])

    @property
    def paper_value(self) -> str:
        """Name of the metric that the paper reports. It is that of a group if the dataset is one of several in the
        data.
        """
        of_group = f"{self.headline} {(self.dataset or '').rpartition(' ')[2]}"
        return of_group if of_group in self.metrics else self.headline

    def rows(self) -> list[tuple[str, str, list[str]]]:
        """Return name, value and the paper's values by model for each metric. The latter are "" if there are none."""
        return [
            (
                name,
                f"{value:.2f}",
                [f"{paper:.2f}" if name == self.paper_value else "" for paper in self.paper.values()],
            )
            for name, value in self.metrics.items()
        ]

    def columns(self) -> list[str]:
        """Return the column headers for `rows`."""
        return [self.task, "here", *(f"paper, {model}" for model in self.paper)]

    def to_table(self) -> Table:
        """Create a table of the metrics and the paper's values."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in self.columns():
            table.add_column(column, justify="left" if column == self.task else "right", no_wrap=True)
        for name, value, paper in self.rows():
            table.add_row(name, value, *paper)
        return table

    def to_sentence(self) -> str:
        """Describe the number of examples and how missing answers are counted."""
        missing, total = self.counts["missing"], self.counts["examples"]
        if not missing:
            return f"{total} examples."
        return f"{total} examples, of which {missing} have no answer and count as wrong."

    def to_json(self) -> str:
        """Return the content of `result.json`, including how missing answers are counted."""
        fields = asdict(self)
        fields["counts"]["missing_count_as"] = "wrong"
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def describe_model(lion: Lion, settings: EvaluationSettings) -> dict[str, Any]:
    """Describe a model. Generation settings combine those of the checkpoint and of the evaluation."""
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


__all__ = ["PACKAGES", "RESULT", "Result", "describe_model"]
