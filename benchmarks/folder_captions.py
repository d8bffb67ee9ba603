"""Images a second of `lion caption FOLDER`, beside an older build and beside a plain pipeline loop.

    python benchmarks/folder_captions.py [--images 300] [--before OTHER_CHECKOUT/src] [--runs 3]

The images are random JPEG files of 640x480, the model is the example checkpoint. All rows take turns, in processes of
their own whose startup is subtracted: each is also run on one image. No result is published yet.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

SOURCE = Path(__file__).resolve().parents[1] / "src"
LOOP = """
import sys
from pathlib import Path
import transformers_lion
from transformers import pipeline
from transformers_lion.example import example_checkpoint
pipe = pipeline("image-to-text", model=example_checkpoint(), optimize=False)
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path, pipe(str(path))[0]["generated_text"])
"""
COMMAND = ["-m", "transformers_lion.cli", "caption"]


def write_images(folder: Path, count: int) -> None:
    """Write JPEG files of smooth random colors."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{index:05}.jpg", quality=90)


def run(arguments: list[str], source: Path, folder: Path) -> tuple[float, float]:
    """Wall seconds and processor seconds of a process that imports the package from `source`."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(source)}
    subprocess.run([sys.executable, *arguments, str(folder)], check=True, capture_output=True, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--before", type=Path, help="the folder src of another checkout")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    rows = {
        "`lion caption FOLDER`": (COMMAND, SOURCE),
        "`lion caption --no-optimize FOLDER`": ([*COMMAND, "--no-optimize"], SOURCE),
        "a loop over the pipeline, `optimize=False`": (["-c", LOOP], SOURCE),
    }
    if options.before:
        rows["`lion caption FOLDER` of the older build"] = COMMAND, options.before.resolve()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as place:
        one, many = Path(place, "one"), Path(place, "many")
        write_images(one, 1)
        write_images(many, options.images + 1)
        for _ in range(options.runs):
            for name, row in rows.items():
                pairs = zip(run(*row, many), run(*row, one), strict=True)
                wall, processor = (long - short for long, short in pairs)
                seconds[name].append((wall, processor))
    medians = {
        name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in seconds.items()
    }
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads of torch; "
        f"torch {version('torch')}, transformers {version('transformers')}; "
        f"{options.images} images, medians of {options.runs} runs in turns.\n"
    )
    print(
        "| | images a second | processor ms for an image | time relative to the first row |\n| --- | --- | --- | --- |"
    )
    first = next(iter(medians.values()))[0]
    for name, (wall, processor) in medians.items():
        rate, cost = options.images / wall, 1000 * processor / options.images
        print(f"| {name} | {rate:.1f} | {cost:.0f} | {wall / first:.2f} |")


if __name__ == "__main__":
    main()
