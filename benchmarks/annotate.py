"""What `lion annotate` costs, and whether it keeps its promises.

    python benchmarks/annotate.py [--rows 2000] [--small] [--output benchmarks/annotate.md]

Four parts, each in processes of its own:

- overhead: the job with one actor of one CPU against a plain loop of `Lion.answer` over the same images;
- actors: two actors of one CPU against one;
- memory: the peak of the driver and of the object store at 10,000 and at 100,000 rows, with an annotator that computes
  nothing;
- kills: rows with broken images among them, killed five times at random moments, against an undisturbed run.

Loading the model and starting Ray are not counted in the first two. The images are 64 x 64 scenes, and the model is the
example checkpoint, so that overhead weighs more than with any real model. `--small` runs all parts with few rows, as a
test of this script.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from machine import cpu_name

from transformers_lion.jobs import AnnotationTask, JobSettings, annotate, read_results
from transformers_lion.jobs.schema import to_table

NUM_KILLS = 5
BROKEN_EACH = 50
"""One of so many images is broken."""
TASK = AnnotationTask(caption=True, generation={"num_beams": 1, "max_new_tokens": 20})
BATCH_SIZE = 8


class NoAnnotator:
    """Computes nothing."""

    def __init__(self, **options: Any):
        pass

    def __call__(self, rows: pa.Table) -> pa.Table:
        return to_table({"key": key, "caption": "a caption of some words"} for key in rows["key"].to_pylist())


# --- sources ----------------------------------------------------------------------------------------------------------


def write_images(folder: Path, count: int, broken: bool) -> Path:
    """Write small images, and files that are none among them."""
    from transformers_lion.example import sketch

    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:06d}.png"
        if broken and number % BROKEN_EACH == BROKEN_EACH // 2:
            path.write_bytes(b"no image")
        else:
            sketch(64 + number % 64, 64).save(path)
    return folder


def write_manifest(path: Path, count: int) -> Path:
    """Write a manifest of images that do not exist."""
    with path.open("w") as file:
        file.writelines(f'{{"image": "images/{number:09d}.jpg", "category": "mug"}}\n' for number in range(count))
    return path


# --- parts, each in a process of its own ------------------------------------------------------------------------------


def measure_loop(source: str) -> None:
    """Print the seconds of a plain loop of `Lion.answer`."""
    import torch

    from transformers_lion import Lion
    from transformers_lion.inference import Request

    torch.set_num_threads(1)
    lion = Lion.from_pretrained()
    paths = sorted(Path(source).iterdir())

    def answer(chosen: list[Path]) -> None:
        for start in range(0, len(chosen), BATCH_SIZE):
            requests = [
                Request(str(path), lion.processor.caption_prompt) for path in chosen[start : start + BATCH_SIZE]
            ]
            lion.answer(requests, batch_size=BATCH_SIZE, **dict(TASK.generation))

    answer(paths[: 4 * BATCH_SIZE])  # warm up
    start = time.perf_counter()
    answer(paths)
    print(time.perf_counter() - start)


def measure_job(source: str, output: str, actors: str) -> None:
    """Print the seconds from the first to the last result of a job, scaled to all rows."""
    import ray

    from transformers_lion.jobs import output as output_module

    times: list[float] = []
    write_part = output_module.Output.write_part

    def record(self: Any, chunk: int, content: bytes) -> None:
        write_part(self, chunk, content)
        times.append(time.perf_counter())

    output_module.Output.write_part = record  # type: ignore[method-assign]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    settings = JobSettings(source, output, TASK, batch_size=BATCH_SIZE, num_actors=int(actors), num_cpus_per_actor=1)
    annotate(settings, say=lambda text: None)
    first = 2 * int(actors)  # each actor has loaded the model and is at work
    print((times[-1] - times[first - 1]) * len(times) / (len(times) - first))


def measure_memory(source: str, output: str) -> None:
    """Print the peak memory of the driver, and of the object store in use, in MB."""
    import resource
    import threading

    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    total = ray.cluster_resources()["object_store_memory"]
    most, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.5):
            most = max(most, total - ray.available_resources().get("object_store_memory", total))

    watcher = threading.Thread(target=watch)
    watcher.start()
    settings = JobSettings(source, output, TASK, key_column="image")
    annotate(settings, say=lambda text: None, make_annotator=NoAnnotator)
    ended.set()
    watcher.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, most / 2**20)


def run_to_the_end(source: str, output: str) -> None:
    """Run a job on all CPUs; this process may be killed."""
    annotate(JobSettings(source, output, TASK, batch_size=BATCH_SIZE), say=lambda text: print(text, file=sys.stderr))


PARTS: dict[str, Callable[..., None]] = {
    "loop": measure_loop,
    "job": measure_job,
    "memory": measure_memory,
    "run": run_to_the_end,
}


def command(part: str, *arguments: object) -> list[str]:
    return [sys.executable, __file__, "--part", part, *map(str, arguments)]


def numbers(part: str, *arguments: object) -> list[float]:
    """Return the numbers that a part prints."""
    printed = subprocess.check_output(command(part, *arguments), text=True)
    return [float(word) for word in printed.splitlines()[-1].split()]


# --- kills ------------------------------------------------------------------------------------------------------------


def kill_and_resume(source: Path, output: Path, seed: int = 0) -> list[int]:
    """Kill a job five times at random moments, then let it end. Return the number of parts at each kill."""
    generator = random.Random(seed)
    parts = []
    for _ in range(NUM_KILLS):
        process = subprocess.Popen(command("run", source, output), stderr=subprocess.DEVNULL)
        before = count_parts(output)
        while count_parts(output) == before and process.poll() is None:
            time.sleep(0.1)  # until it is at work
        time.sleep(generator.uniform(0, 10))
        process.send_signal(signal.SIGKILL)
        process.wait()
        parts.append(count_parts(output))
    subprocess.run(command("run", source, output), stderr=subprocess.DEVNULL, check=True)
    return parts


def count_parts(output: Path) -> int:
    return len(list(output.glob("_parts/*.parquet")))


def compare(source: Path, first: Path, second: Path) -> dict[str, Any]:
    """Compare the results of two jobs with each other and with the files of the source."""
    tables = [read_results(folder).to_table().drop_columns(["seconds"]) for folder in (first, second)]
    keys = tables[0]["key"].to_pylist()
    return {
        "rows": len(keys),
        "distinct keys": len(set(keys)),
        "keys equal the files": keys == sorted(str(path) for path in source.iterdir()),
        "errors": tables[0].num_rows - tables[0]["error"].null_count,
        "equal rows": sum(a == b for a, b in zip(tables[0].to_pylist(), tables[1].to_pylist(), strict=True)),
    }


# --- report -----------------------------------------------------------------------------------------------------------


def report(rows: int, kill_rows: int, memory_rows: tuple[int, int]) -> str:
    """Run all parts and return the results in Markdown."""
    import ray
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        images = write_images(folder / "images", rows, broken=False)
        [loop] = numbers("loop", images)
        [one] = numbers("job", images, folder / "one", 1)
        [two] = numbers("job", images, folder / "two", 2)
        memory = [
            numbers("memory", write_manifest(folder / f"{count}.jsonl", count), folder / f"memory{count}")
            for count in memory_rows
        ]
        mixed = write_images(folder / "mixed", kill_rows, broken=True)
        undisturbed = folder / "undisturbed"
        start = time.perf_counter()
        subprocess.run(command("run", mixed, undisturbed), stderr=subprocess.DEVNULL, check=True)
        seconds = time.perf_counter() - start
        parts = kill_and_resume(mixed, folder / "killed")
        found = compare(mixed, folder / "killed", undisturbed)
    counts = [f"{count:,} rows" for count in memory_rows]
    (driver, store), (large_driver, large_store) = memory
    results = [
        ("plain loop of `Lion.answer`, one thread", f"{rows / loop:.1f} rows/s", ""),
        ("job, one actor", f"{rows / one:.1f} rows/s: {100 * (one / loop - 1):+.1f} % time", "at most +10 %"),
        ("job, two actors", f"{rows / two:.1f} rows/s: {one / two:.2f} x one actor", "at least 1.7 x"),
        (f"driver and object store, {counts[0]}", f"{driver:.0f} + {store:.0f} MB", ""),
        (
            f"driver and object store, {counts[1]}",
            f"{large_driver:.0f} + {large_store:.0f} MB: {(large_driver + large_store) / (driver + store):.2f} x",
            "at most 1.2 x",
        ),
        (f"undisturbed run, {found['rows']:,} rows, {found['errors']} broken", f"{seconds:.0f} s", ""),
        (
            f"killed {NUM_KILLS} times, at {', '.join(map(str, parts))} parts",
            f"{found['distinct keys']:,} distinct keys in {found['rows']:,} rows; the source's: "
            f"{found['keys equal the files']}; {found['equal rows']:,} equal the undisturbed run",
            "each once, all equal",
        ),
    ]
    lines = [
        "# Jobs",
        "",
        f"`python benchmarks/annotate.py --rows {rows} --kill-rows {kill_rows} --memory-rows "
        f"{' '.join(map(str, memory_rows))}`: the example checkpoint, captions with one beam, batches of {BATCH_SIZE} "
        f"images of 64 to 127 x 64 pixels, on {cpu_name()}, {os.cpu_count()} cores, ray {ray.__version__}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}. One run of each.",
        "",
        "| part | result | target |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in results),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="images of the first two parts")
    parser.add_argument("--kill-rows", type=int, default=20_000)
    parser.add_argument("--memory-rows", type=int, nargs=2, default=(10_000, 100_000))
    parser.add_argument("--small", action="store_true", help="few rows, as a test of this script")
    parser.add_argument("--output", type=Path, help="write the table there too")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        name, *values = arguments.part
        PARTS[name](*values)
        return
    if arguments.small:
        text = report(320, 1000, (1000, 10_000))
    else:
        text = report(arguments.rows, arguments.kill_rows, tuple(arguments.memory_rows))
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
