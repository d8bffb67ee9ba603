"""Measure section by section, and write the tables and plots after each one.

    python -m benchmarks.speed [--quick] [--only answers] [--threads 2] [--output benchmarks/speed/results]

Sections of earlier runs are kept until they are measured again. A quick run writes to another folder by default.
"""

import argparse
import json
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from . import sections
from .advice import paper_memory
from .floors import floors
from .growth import growth
from .measures import CLOCKS, Settings
from .memory import TASKS, measure_here, memory
from .models import SIZES
from .plots import plot_bars, plot_growth
from .profiling import top_operations
from .report import HEADINGS, Results
from .sections import Bench

SECTIONS: dict[str, Callable[[Bench], list[Any]]] = {
    "sizes": paper_memory,
    "load": sections.load,
    "encode": sections.encode,
    "answers": sections.answers,
    "language": sections.language,
    "questions": sections.questions,
    "tagging": sections.tagging,
    "training": sections.training,
    "memory": memory,
    "profile": top_operations,
    "growth": growth,
    "floors": floors,
}
"""Sections in the order of execution. The one that compiles comes last."""
DRAWN = ("encode", "answers", "questions", "tagging", "training")
RESULTS, SMOKE = Path("benchmarks/speed/results"), Path(".cache/speed")
QUICK = {"repeats": 1, "new_tokens": 4, "num_questions": 2, "quick": True}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", choices=SECTIONS, nargs="+", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument(
        "--quick", action="store_true", help="smoke test: short answers, one repetition, no compilation"
    )
    parser.add_argument("--size", choices=SIZES, default="middle")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, help="default: 5")
    parser.add_argument("--new-tokens", type=int, help="default: 20")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: CPU time, for one thread on a busy machine"
    )
    parser.add_argument("--output", type=Path, help=f"default: {RESULTS}, or {SMOKE} for a quick run")
    parser.add_argument("--tables", action="store_true", help="only regenerate tables and plots")
    parser.add_argument("--peak", nargs=2, metavar=("SIDE", "TASK"), help=f"measure one peak in this process: {TASKS}")
    return parser.parse_args(arguments)


def read_settings(options: argparse.Namespace) -> Settings:
    given = {"repeats": options.repeats, "new_tokens": options.new_tokens}
    fields = {**(QUICK if options.quick else {}), **{name: value for name, value in given.items() if value}}
    return Settings(size=options.size, threads=options.threads, clock=options.clock, **fields)


def write(results: Results, changed: Collection[str]) -> None:
    """Write the tables of all sections, and the plots that show a changed one."""
    results.write()
    rows = [row for row in results.rows(*DRAWN) if row.unit == "s"]
    if rows and not set(DRAWN).isdisjoint(changed):
        plot_bars(rows, results.folder / "answers.png")
    if "growth" in changed and "growth" in results.sections:
        plot_growth(results.sections["growth"]["rows"], results.folder / "growth.png")


def run(settings: Settings, names: Sequence[str], results: Results) -> None:
    """Measure sections, and write each one when it is done.

    Raises:
        SystemExit: At the end, if outputs that must be equal differ. Such a section is not written.
    """
    bench, failed = Bench(settings), []
    for name in names:
        start = time.perf_counter()
        try:
            content = SECTIONS[name](bench)
        except AssertionError as error:
            failed.append(f"{HEADINGS[name]}: {error}")
            continue
        taken = time.perf_counter() - start
        results.put(name, settings, taken, content)
        write(results, [name])
        print(f"{HEADINGS[name]}: {taken / 60:.1f} minutes", flush=True)
    if failed:
        raise SystemExit("\n".join(failed))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    settings = read_settings(options)
    if options.peak:
        print(json.dumps(measure_here(settings, *options.peak)))
        return
    results = Results(options.output or (SMOKE if options.quick else RESULTS))
    if options.tables:
        write(results, list(SECTIONS))
    else:
        run(settings, options.only or tuple(SECTIONS), results)
    print(f"\n{results.markdown()}")


if __name__ == "__main__":
    main()
