"""Processor seconds until commands and imports are done, beside what transformers and torch take by themselves.

    python benchmarks/startup.py [--before OTHER_CHECKOUT/src]

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

SOURCE = Path(__file__).resolve().parents[1] / "src"
IMAGE = SOURCE / "transformers_lion" / "demo" / "images" / "scene-00.png"
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
CAPTION = {"lion caption one.png": ["-m", "transformers_lion.cli", "caption", str(IMAGE)]}
ROWS = {**PYTHON, **COMMANDS, **CAPTION}


def processor_seconds(arguments: list[str], source: Path) -> float:
    """User and system time of a Python process that imports the package from a folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(sources: list[Path], runs: int) -> dict[str, list[float]]:
    """For each row its median with each source; a first round is not counted."""
    rounds = [
        {name: [processor_seconds(row, source) for source in sources] for name, row in ROWS.items()}
        for _ in range(runs + 1)
    ][1:]
    return {
        name: [statistics.median(found[name][index] for found in rounds) for index in range(len(sources))]
        for name in ROWS
    }


def render(seconds: dict[str, list[float]], runs: int) -> str:
    """The page."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    columns = ["", "processor seconds", f"of `{BASE}`", "before", "of before"]
    rows = []
    for name, (taken, *others) in seconds.items():
        comparison = [f"{other:.2f} | {taken / other:.2f}" for other in others]
        rows.append(f"| {' | '.join([f'`{name}`', f'{taken:.2f}', f'{taken / seconds[BASE][0]:.2f}', *comparison])} |")
    shown = columns if len(seconds[BASE]) > 1 else columns[:3]
    lines = [
        f"`python benchmarks/startup.py`: median of {runs} on Python {platform.python_version()}, {versions}.",
        "",
        f"| {' | '.join(shown)} |",
        f"|{'---|' * len(shown)}",
        *rows,
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each row")
    parser.add_argument("--before", type=Path, help="folder of the sources to compare with")
    arguments = parser.parse_args()
    sources = [SOURCE, *([arguments.before] if arguments.before else [])]
    print(render(measure(sources, arguments.runs), arguments.runs))


if __name__ == "__main__":
    main()
