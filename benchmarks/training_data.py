"""Time until the first batch and memory of reading training records, for growing numbers of records.

    python benchmarks/training_data.py --folder /somewhere/with/room --sizes 30000 300000

Generates records that share 1,000 small images, as JSON Lines and as Parquet. Each row of the printed table is measured
in a new process, which reads the records as `lion train` does (checks of all records, selection by task, mixture,
sampler) and opens the images of the first batch of 16. "first start" fills the cache of the
records, "later start" uses it, and "stream" reads during training. "memory" is the growth of the resident memory
without the pages of mapped files, which the system can evict at any time; "with files" includes them.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NUM_IMAGES = 1000
CHUNK = 100_000
STARTS = ("first start", "later start", "stream")
FORMS = {"JSON Lines": "records.jsonl", "Parquet": "records.parquet"}


def generate(folder: Path, size: int) -> None:
    """Write records, a tenth of them with boxes, and their images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(NUM_IMAGES):
        pixels = np.full((8, 8, 3), index % 256, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index:06d}.png")
    schema = pa.schema([(name, pa.string()) for name in ("image", "question", "answer", "category")])
    with (
        open(folder / FORMS["JSON Lines"], "w", encoding="utf-8") as lines,
        pq.ParquetWriter(folder / FORMS["Parquet"], schema) as table,
    ):
        for start in range(0, size, CHUNK):
            rows = [make_record(index) for index in range(start, min(start + CHUNK, size))]
            table.write_table(pa.Table.from_pylist(rows, schema=schema))
            lines.writelines(
                f'{{"image": "{row["image"]}", "question": "{row["question"]}", "answer": "{row["answer"]}", '
                f'"category": "{row["category"]}"}}\n'
                for row in rows
            )


def make_record(index: int) -> dict[str, str]:
    """Return a record, which needs no escapes in JSON."""
    record = {"image": f"images/{index % NUM_IMAGES:06d}.png", "question": f"Which number is this, {index}?"}
    if index % 10:
        return {**record, "answer": f"number {index}", "category": "vqa"}
    return {**record, "answer": "Answer: [0.100,0.200,0.500,0.750]", "category": "ref"}


def memory() -> tuple[int, int]:
    """Return this process's resident memory without and with mapped files, in bytes."""
    entries = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous = sum(int(entries[name].split()[0]) for name in ("RssAnon", "RssShmem"))
    return anonymous * 1024, int(entries["VmRSS"].split()[0]) * 1024


def measure(file: Path, start: str) -> dict[str, float]:
    """Read records until the first batch, and return seconds and bytes."""
    from transformers_lion.training import RecordStream, load_records, mix_datasets, stream_records
    from transformers_lion.training.data import keep_task_types
    from transformers_lion.training.records import open_image, parse_record
    from transformers_lion.training.trainer import ShuffledSampler

    before, mapped_before = memory()
    began = time.perf_counter()
    if start == "stream":
        rows: Any = iter(RecordStream([stream_records(file, task_types=("image_level",))]))
        batch = [next(rows) for _ in range(16)]
    else:
        records = keep_task_types(load_records(file), ("image_level",))
        mixture = mix_datasets([records], [1.0])
        order = iter(ShuffledSampler(len(mixture), 0))
        batch = [mixture[next(order)] for _ in range(16)]
    for row in batch:
        open_image(parse_record(row).image)
    seconds = time.perf_counter() - began
    after, mapped_after = memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds, "memory": after - before, "mapped": mapped_after - mapped_before,
        "peak": peak - mapped_before,
    }  # fmt: skip


def run(file: Path, start: str, cache: Path) -> dict[str, float]:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--measure", str(file), start]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Generate the records, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("training-data"), help="folder for the records")
    parser.add_argument("--sizes", type=int, nargs="+", default=[300_000, 3_000_000, 10_000_000])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), arguments.measure[1])))
        return
    print("| records | format | start | seconds | memory, MB | with files, MB | peak with files, MB |")
    print("|---|---|---|---|---|---|---|")
    for size in arguments.sizes:
        folder = arguments.folder / str(size)
        generate(folder, size)
        for form, name in FORMS.items():
            for start in STARTS:
                found = run(folder / name, start, folder / "cache")
                numbers = [f"{found[key] / 1e6:,.0f}" for key in ("memory", "mapped", "peak")]
                print(f"| {size:,} | {form} | {start} | {found['seconds']:.1f} | {' | '.join(numbers)} |", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
