"""Processor seconds until commands and imports are done, beside what transformers and torch take by themselves.

    python benchmarks/startup.py

Each row runs in processes of its own, in turns with all others, and the table has the median. Figures are user and
system time on one thread. `benchmarks/startup.md` holds a result.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "src" / "transformers_lion" / "demo" / "pictures" / "scene-00.png"
BASE = "import transformers, torch"
REGISTRIES = "from transformers import AutoModel, AutoProcessor, AutoImageProcessor, pipeline"
MODELS = "from transformers import PreTrainedModel, AutoProcessor"
PYTHON = {
    name: ["-c", name]
    for name in (
        BASE,
        MODELS,
        REGISTRIES,
        "import transformers_lion",
        "import transformers_lion, transformers",
        "from transformers_lion import Lion",
    )
}
COMMANDS = {
    f"lion {' '.join(words)}": ["-m", "transformers_lion.cli", *words]
    for words in (["--help"], ["--version"], ["caption", "--help"])
}
CAPTION = {"lion caption one.png": ["-m", "transformers_lion.cli", "caption", str(PICTURE)]}
ROWS = {**PYTHON, **COMMANDS, **CAPTION}


def processor_seconds(arguments: list[str]) -> float:
    """User and system time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(runs: int) -> dict[str, float]:
    """The median of each row, the first round not counted."""
    rounds = [{name: processor_seconds(row) for name, row in ROWS.items()} for _ in range(runs + 1)][1:]
    return {name: statistics.median(found[name] for found in rounds) for name in ROWS}


def render(seconds: dict[str, float], runs: int) -> str:
    """The page."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    lines = [
        f"`python benchmarks/startup.py`: median of {runs} on Python {platform.python_version()}, {versions}.",
        "",
        f"| | processor seconds | of `{BASE}` |",
        "|---|---|---|",
        *(f"| `{name}` | {taken:.2f} | {taken / seconds[BASE]:.2f} |" for name, taken in seconds.items()),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each row")
    runs = parser.parse_args().runs
    print(render(measure(runs), runs))


if __name__ == "__main__":
    main()
