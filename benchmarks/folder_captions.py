"""Images per second and memory of `lion caption FOLDER`, beside an older build and a plain loop over the pipeline.

    python benchmarks/folder_captions.py [--images 2000] [--before OTHER_CHECKOUT/src] [--runs 1]

The images are JPEG files of 2000x1500 with random content, each about 0.6 MB. The model is the example checkpoint of
this checkout, whose tagger and language model are tiny, so that reading the images takes a large part of the time. Each
row runs in a process of its own, once on the folder and once on a single image, and the difference is reported. All
rows but the first read a quarter of the folder, since they take much longer for an image.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SOURCE = Path(__file__).resolve().parents[1] / "src"
SIZE = (2000, 1500)
LOOP = """
import sys
from pathlib import Path
import transformers_lion
from transformers import pipeline
pipe = pipeline("image-to-text", model=sys.argv[1])
for path in sorted(Path(sys.argv[2]).iterdir()):
    print(path, pipe(str(path))[0]["generated_text"])
"""
MODEL = str(SOURCE / "transformers_lion" / "example_checkpoint")
COMMAND = ["-m", "transformers_lion.cli", "caption", "--model", MODEL]
OTHERS = 4
"""Fraction of the folder, 1 / OTHERS, that all rows but the first read."""


class Cost(NamedTuple):
    """Wall seconds, processor seconds and peak memory in MB of a process or, for the first two, per image."""

    wall: float
    processor: float
    memory: float


def write_image(path: Path) -> None:
    """Write a JPEG file with smooth colors and some noise, seeded by its name."""
    rng = np.random.default_rng(int(path.stem))
    smooth = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    noise = Image.fromarray(rng.integers(0, 255, (SIZE[1] // 4, SIZE[0] // 4, 3), dtype=np.uint8)).resize(SIZE)
    Image.blend(smooth, noise, 0.15).save(path, quality=90)


def write_images(folder: Path, count: int) -> None:
    """Write JPEG files."""
    folder.mkdir()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(write_image, (folder / f"{index:05}.jpg" for index in range(count))))


def run(arguments: list[str], source: Path, folder: Path) -> Cost:
    """Run a process that imports the package from `source`."""
    start, environment = time.perf_counter(), {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, *arguments, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--before", type=Path, help="the folder src of another checkout")
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    rows = {
        "`lion caption FOLDER`": (COMMAND, SOURCE),
        "a loop over the pipeline": (["-c", LOOP, MODEL], SOURCE),
    }
    if options.before:
        before = options.before.resolve()
        rows["`lion caption FOLDER` of the older build"] = COMMAND, before
    costs: dict[str, list[Cost]] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as place:
        one, few, many = (Path(place, name) for name in ("one", "few", "many"))
        write_images(many, options.images + 1)
        fewer = options.images // OTHERS
        for folder, count in ((one, 1), (few, fewer + 1)):
            folder.mkdir()
            for file in sorted(many.iterdir())[:count]:
                os.link(file, folder / file.name)
        size = sum(file.stat().st_size for file in many.iterdir()) / (options.images + 1) / 1e6
        for _ in range(options.runs):
            for index, (name, row) in enumerate(rows.items()):
                folder, count = (few, fewer) if index else (many, options.images)
                short, long = run(*row, one), run(*row, folder)
                wall, processor = long.wall - short.wall, long.processor - short.processor
                costs[name].append(Cost(wall / count, processor / count, long.memory))
                print(f"{name}: {1 / costs[name][-1].wall:.1f} images/s", file=sys.stderr, flush=True)
    medians = {name: Cost(*map(statistics.median, zip(*found, strict=True))) for name, found in costs.items()}
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads of torch; torch {version('torch')}, "
        f"transformers {version('transformers')}; {options.images} JPEG files of {SIZE[0]}x{SIZE[1]}, {size:.1f} MB "
        f"each; {options.runs} run(s) in turns.\n"
    )
    print("| | images/s | processor ms per image | peak MB | time relative to the first row |\n|---|---|---|---|---|")
    first = next(iter(medians.values())).wall
    for name, cost in medians.items():
        times = f"{1 / cost.wall:.1f} | {1000 * cost.processor:.0f}"
        print(f"| {name} | {times} | {cost.memory:.0f} | {cost.wall / first:.2f} |")


if __name__ == "__main__":
    main()
