#!/bin/sh
# If the first boxes consist of integers, datasets, Polars and DuckDB truncate or round the fractions in later boxes.
#
# Expectation: A reader that infers types either widens them when fractions follow, or raises an error. Each of
# the three libraries does so for some input.
#
# Behavior: The webdataset loader in datasets infers types from the first five samples, so that [0.1, 0.2, 0.3,
# 0.4] after [0, 0, 1, 1] becomes [0, 0, 0, 0]; its JSON loader reads the same boxes correctly. With the default
# strict=True, Polars infers the type of a list column from the first list and truncates 20.75 to 20; the same
# numbers in a plain column raise a TypeError. DuckDB infers JSON types from the first 20480 rows and rounds
# fractions in row 20481, such as 0.4 to 0; a string in that place raises an error. Write 0.0 and 1.0, or specify
# the types.
#
# Observed on 2026-11-28 with Python 3.11 and datasets 5.2.0, polars 2.1.0, duckdb 2.0.1:
#   datasets, webdataset: [[0, 0, 1, 1], [0, 0, 0, 0]]
#   datasets, json: [[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.3, 0.4]]
#   datasets, webdataset, 0.0 written: [[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.3, 0.4]]
#   polars, a column of lists: [[10, 20], [10, 20]]
#   polars, one of numbers: TypeError
#   polars, strict=False: [[10.0, 20.0], [10.5, 20.75]]
#   duckdb, row 20481: [0, 10, 20, 21]
#   duckdb, sample_size=-1: [0.4, 10.25, 20.0, 20.75]
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile datasets==5.2.0 polars==2.1.0 duckdb==2.0.1
cd "$folder"
export HF_HUB_OFFLINE=1 HF_DATASETS_CACHE="$folder/cache"
venv/bin/python -I - <<'PYTHON'
import io
import json
import tarfile

import datasets
import duckdb
import polars

datasets.disable_progress_bars()
WHOLE, FRACTIONS = [0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]


def with_datasets(title, whole, kind):
    records = [{"box": whole}] * 5 + [{"box": FRACTIONS}]
    name = f"{title.replace(' ', '')}.{'tar' if kind == 'webdataset' else 'jsonl'}"
    if kind == "json":
        with open(name, "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    else:
        with tarfile.open(name, "w") as archive:
            for number, record in enumerate(records):
                content = json.dumps(record).encode()
                member = tarfile.TarInfo(f"{number}.json")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    rows = datasets.load_dataset(kind, data_files=name, split="train")
    boxes = [row["json"]["box"] if kind == "webdataset" else row["box"] for row in rows]
    print(f"{title}: {boxes[-2:]}")
    return boxes[-1]


assert with_datasets("datasets, webdataset", WHOLE, "webdataset") == [0, 0, 0, 0]
assert with_datasets("datasets, json", WHOLE, "json") == FRACTIONS  # the control
assert with_datasets("datasets, webdataset, 0.0 written", [0.0, 0.0, 1.0, 1.0], "webdataset") == FRACTIONS  # a control

boxes = [[10, 20], [10.5, 20.75]]
found = polars.DataFrame({"box": boxes})["box"].to_list()
print("polars, a column of lists:", found)
assert found == [[10, 20], [10, 20]]
error = None
try:
    polars.DataFrame({"x": [10, 10.5]})
except TypeError as raised:
    error = raised
print("polars, one of numbers:", type(error).__name__)
assert error is not None  # the control
found = polars.DataFrame({"box": boxes}, strict=False)["box"].to_list()
print("polars, strict=False:", found)
assert found == boxes  # a control

with open("boxes.jsonl", "w") as file:
    file.writelines(json.dumps({"box": [0, 10, 20, 30]}) + "\n" for _ in range(20480))
    file.write(json.dumps({"box": [0.4, 10.25, 20.0, 20.75]}) + "\n")


def with_duckdb(title, options=""):
    box = duckdb.sql(f"SELECT box FROM read_json('boxes.jsonl'{options})").fetchall()[-1][0]
    print(f"{title}: {box}")
    return box


assert with_duckdb("duckdb, row 20481") == [0, 10, 20, 21]
assert with_duckdb("duckdb, sample_size=-1", ", sample_size=-1") == [0.4, 10.25, 20.0, 20.75]  # the control
PYTHON
