"""The paper's claims at small scale: runs with the same budget in the small world, compared over several seeds.

    python -m examples.small_world.pretrain tower FOLDER
    python -m examples.small_world.pretrain language FOLDER
    python -m examples.small_world.pretrain tag_language FOLDER
    python -m examples.small_world.stage_training alignment FOLDER
    python -m benchmarks.claims FOLDER [--seeds 0 1 2] [--steps 150] [--scenes 200] [--only CLAIM ...]

All runs start from the same stage 0 and, if they have an aggregator, from the same aligned one. They see the same
scenes in the same order. The seed determines the initialization of the other new parts and the data. `--steps` is the
budget of a run in batches of 96 questions. Finished runs are kept in FOLDER/claims and not repeated, and interrupted
ones are resumed. The table in `benchmarks/claims.md` and its plot are generated from the runs that exist. The table
lists the number of seeds in each row.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.small_world.evaluation import evaluate
from examples.small_world.scene_records import KINDS, SceneRecords
from examples.small_world.stage_training import (
    BATCH_IMAGES,
    NUM_QUESTIONS,
    make_base,
    make_processor,
    train,
)
from transformers_lion import LionConfig, LionForConditionalGeneration
from transformers_lion.training import STAGES, Stage, combine_stages, start_stage
from transformers_lion.training.stages import AGGREGATOR_PARTS, BASE_PARTS, part_of

RATE, AGGREGATOR_LR_MULTIPLIER = 2e-3, 0.05
REUSED = (*BASE_PARTS, *AGGREGATOR_PARTS, "soft_prompt")
"""Parts that every run takes from stage 0 and the alignment."""

FIRST_SCENE = 10_000_000
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """What one run trains and how it is evaluated.

    Attributes:
        claim: Claim that the run belongs to.
        name: Side of the comparison.
        train: Function of the folder, the seed, the budget and the output folder that trains and saves the model.
        tags: Evaluations by column name, each with `None` for no tags or the share of wrong tags.
        kinds: Kinds of questions to ask.
    """

    claim: str
    name: str
    train: Callable[[Path, int, int, Path], None]
    tags: dict[str, float | None]
    kinds: tuple[str, ...] = KINDS["mixture"]


def records(kinds: tuple[str, ...], steps: int, seed: int, offset: int = 0, **options: Any) -> SceneRecords:
    """Create the data of a run. All runs with the same seed and `offset` (in batches) see the same scenes."""
    start = FIRST_SCENE + seed * 1_000_000 + offset * BATCH_IMAGES
    return SceneRecords("train", BATCH_IMAGES * steps, kinds, NUM_QUESTIONS, start, seed, **options)


def one_run(
    stage: str, fields: dict[str, Any] | None = None, kinds: str = "mixture", **options: Any
) -> Callable[[Path, int, int, Path], None]:
    """Create a run with a single stage.

    Args:
        stage: Stage whose parts are trained.
        fields: Configuration fields that differ from those of the stage.
        kinds: Kinds of questions, a key of `KINDS`.
        **options: Options of `SceneRecords`.
    """

    def run(folder: Path, seed: int, steps: int, output: Path) -> None:
        model, chosen = build(folder, seed, STAGES[stage], fields or {})
        train(model, chosen, records(KINDS[kinds], steps, seed, **options), output, steps, RATE, seed,
              AGGREGATOR_LR_MULTIPLIER)  # fmt: skip

    return run


def build(folder: Path, seed: int, stage: Stage, fields: dict[str, Any]) -> tuple[LionForConditionalGeneration, Stage]:
    """Build the model of a stage, with only `REUSED` parts taken from the base and some fields changed."""
    base = make_base(folder, seed)
    config = base.config.to_dict()
    num_adapters = fields.get("num_adapters", stage.num_adapters)
    config |= {name: value for name, value in fields.items() if name not in ("num_adapters", "adapter_hidden_size")}
    config["visual_branch"] = stage.visual_branch
    config["text_config"] |= {"num_adapters": num_adapters}
    config["text_config"] |= {name: value for name, value in fields.items() if name == "adapter_hidden_size"}
    torch.manual_seed(seed)
    model = LionForConditionalGeneration(LionConfig.from_dict(config))
    kept = {name: x for name, x in base.state_dict().items() if ".adapter." not in name}
    kept = {name: x for name, x in kept.items() if part_of(name) in REUSED}
    missing, unexpected = model.load_state_dict(kept, strict=False)
    absent = {part_of(name) for name in unexpected}
    assert absent <= {"vision_model.post_layernorm", *AGGREGATOR_PARTS, "soft_prompt"}, absent
    assert not {part_of(name) for name in missing} & {"vision_model", "language_model"}, missing
    model.generation_config = base.generation_config
    parts = tuple(part for part in stage.parts if part != "soft_prompt" or model.config.use_soft_prompt)
    return model, replace(stage, num_adapters=num_adapters, parts=parts)


def stage_wise(folder: Path, seed: int, steps: int, output: Path) -> None:
    """Spend a third of the budget on each stage."""
    third = steps // 3
    for place, stage in enumerate(("image_level", "region_level", "mixture")):
        target = output if stage == "mixture" else output.with_name(f"{output.name}-{stage}")
        if (target / "model.safetensors").exists():
            continue
        if stage == "mixture":
            parts = [output.with_name(f"{output.name}-{name}") for name in ("image_level", "region_level")]
            model = combine_stages(*parts).model
        else:
            torch.manual_seed(seed)
            model = start_stage(stage, make_base(folder, seed)).model
        data = records(KINDS[stage], third, seed, place * third)
        train(model, stage, data, target, third, RATE, seed, AGGREGATOR_LR_MULTIPLIER)


PLAIN = {"no tags": None}
NOISY = {"clean tags": 0.0, "30% wrong tags": 0.3}
RUNS = (
    Run("aggregator", "with", one_run("mixture"), PLAIN),
    Run("aggregator", "without", one_run("image_level"), PLAIN),
    Run("training", "stage-wise", stage_wise, PLAIN),
    Run("training", "all at once", one_run("mixture"), PLAIN),
    Run("adapters", "two with a router", one_run("mixture"), PLAIN),
    Run("adapters", "one shared", one_run("mixture", {"num_adapters": 1}), PLAIN),
    Run("adapters", "one shared of double width", one_run("mixture", {"num_adapters": 1, "adapter_hidden_size": 128}),
        PLAIN),
    Run("tags", "none", one_run("image_level", {}, "image_level", tag_share=0.0), PLAIN, KINDS["image_level"]),
    Run("tags", "as plain text", one_run("image_level", {"use_soft_prompt": False}, "image_level", tag_share=1.0,
        wrong_tags=0.15), NOISY, KINDS["image_level"]),
    Run("tags", "with the soft prompt", one_run("image_level", {}, "image_level", tag_share=1.0, wrong_tags=0.15),
        NOISY, KINDS["image_level"]),
)  # fmt: skip
SAME = {("training", "all at once"): ("aggregator", "with"), ("adapters", "two with a router"): ("aggregator", "with")}
"""Runs that are identical to another run."""


def file_of(folder: Path, run: Run, seed: int, steps: int) -> Path:
    """Return the file for the metrics of a run."""
    claim, name = SAME.get((run.claim, run.name), (run.claim, run.name))
    return folder / "claims" / f"{claim}-{name.replace(' ', '-')}-{steps}-{seed}.json"


def do(folder: Path, run: Run, seed: int, steps: int, num_scenes: int) -> None:
    """Train and evaluate, unless the run is already done."""
    file = file_of(folder, run, seed, steps)
    if file.exists():
        return
    print(f"{run.claim}: {run.name}, seed {seed}", flush=True)
    output = file.with_suffix("")
    run.train(folder, seed, steps, output)
    model = LionForConditionalGeneration.from_pretrained(output).eval()
    metrics = {
        column: evaluate(model, make_processor(), "test", num_scenes, run.kinds, wrong, seed=100 + seed)
        for column, wrong in run.tags.items()
    }
    file.write_text(json.dumps(metrics, indent=2) + "\n")
    for leftover in folder.glob(f"claims/{output.name}*-training"):
        shutil.rmtree(leftover)


FIGURES = {"rec": "REC, IoU 0.5", "caption_f1": "caption F1", "questions": "questions", "describe": "describe"}


def table(folder: Path, seeds: list[int], steps: int, num_scenes: int) -> tuple[str, list[Any]]:
    """Return the table in Markdown, and its rows."""
    lines = [f"| claim | run | tags | seeds | {' | '.join(FIGURES.values())} |", "|" + "---|" * (4 + len(FIGURES))]
    rows = []
    for run in RUNS:
        files = [file_of(folder, run, seed, steps) for seed in seeds]
        found = [json.loads(file.read_text()) for file in files if file.exists()]
        for column in run.tags if found else ():
            values = {name: [metrics[column][name] for metrics in found if name in metrics[column]] for name in FIGURES}
            cells = [spread(values[name]) for name in FIGURES]
            lines.append(f"| {run.claim} | {run.name} | {column} | {len(found)} | {' | '.join(cells)} |")
            rows.append((run, column, values))
    return "\n".join(lines), rows


def spread(values: list[float]) -> str:
    """Format the mean and range over seeds in percent."""
    if not values:
        return ""
    mean, low, high = (100 * float(f(values)) for f in (np.mean, np.min, np.max))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})" if len(values) > 1 else f"{mean:.1f}"


def plot(rows: list[Any], file: Path) -> None:
    """Plot a dot for each seed and a bar for each mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(FIGURES), figsize=(4 * len(FIGURES), 0.42 * len(rows) + 1.4), sharey=True)
    names = [f"{run.claim}: {run.name}" + ("" if column == "no tags" else f", {column}") for run, column, _ in rows]
    for axis, (key, title) in zip(axes, FIGURES.items(), strict=True):
        for place, (_, _, values) in enumerate(rows):
            if values[key]:
                axis.barh(place, 100 * np.mean(values[key]), color="#9db8d9")
                axis.plot([100 * x for x in values[key]], [place] * len(values[key]), "o", color="#1d3557", ms=4)
        axis.set(title=title, xlim=(0, 100), xlabel="%")
        axis.set_yticks(range(len(rows)), names)
        axis.invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def main() -> None:
    """Execute missing runs, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=sorted({run.claim for run in RUNS}))
    parser.add_argument("--output", type=Path, default=HERE / "claims.md")
    options = parser.parse_args()
    (options.folder / "claims").mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for run in RUNS:
            if options.only is None or run.claim in options.only:
                do(options.folder, run, seed, options.steps, options.scenes)
    text, rows = table(options.folder, options.seeds, options.steps, options.scenes)
    plot(rows, options.output.with_suffix(".png"))
    heading = (
        f"# The paper's claims at small scale\n\nEach run trains on {options.steps} batches of "
        f"{BATCH_IMAGES * NUM_QUESTIONS} questions. The evaluation uses {options.scenes} unseen scenes, with one "
        f"question of each kind. The table shows the mean and the range over the seeds, in percent. See "
        f"`benchmarks/claims.py` for details.\n\n"
    )
    options.output.write_text(f"{heading}{text}\n\n![The same results as a plot]({options.output.stem}.png)\n")
    print(text)


if __name__ == "__main__":
    main()
