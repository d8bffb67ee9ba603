#!/bin/sh
# `imagefolder` leaves the captions out if file names look like COCO's, and pictures if one is called a test.
#
# Guess: `load_dataset('imagefolder')` reads every picture of a folder and joins `metadata.jsonl` by
# `file_name`, whatever the files are called.
#
# Behaviour: words such as train, val and test in names of files and folders are taken for splits.
# `COCO_train2014_*.png` makes a split of the pictures alone: metadata.jsonl has no such word in its name, so it
# is in no split, and the column `caption` is gone. If a single picture of many is called `*_test.png`, the data
# set is this one picture. Neither is said. `data_files={'train': '**'}` reads all of it.
#
# Seen on 2026-11-28 with Python 3.11 and datasets 5.2.0, pillow 13.0.0:
#   a.png, b.png, c.png: {'train': (3, ['image', 'caption'])}
#   COCO_train2014_1.png, COCO_train2014_2.png, COCO_train2014_3.png: {'train': (3, ['image'])}
#   train2014/a.png, train2014/b.png: {'train': (2, ['image'])}
#   a.png, b.png, c_test.png: {'test': (1, ['image'])}
#   the same with data_files: {'train': (3, ['image', 'caption'])}
#
# Exits with 0 as long as this holds, and with another status once the behaviour changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile datasets==5.2.0 pillow==13.0.0
cd "$folder"
export HF_HUB_OFFLINE=1 HF_DATASETS_CACHE="$folder/cache"
venv/bin/python -I - <<'PYTHON'
import json
import os
import tempfile

import datasets
from PIL import Image

datasets.disable_progress_bars()


def folder_of(names):
    folder = tempfile.mkdtemp(dir=".", prefix="pictures")
    with open(f"{folder}/metadata.jsonl", "w") as file:
        for name in names:
            os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
            Image.new("RGB", (8, 8)).save(f"{folder}/{name}")
            file.write(json.dumps({"file_name": name, "caption": f"what {name} shows"}) + "\n")
    return folder


def study(title, folder, **options):
    loaded = datasets.load_dataset("imagefolder", data_dir=folder, **options)
    found = {split: (len(rows), rows.column_names) for split, rows in loaded.items()}
    print(f"{title}: {found}")
    return found


def of_names(*names):
    return study(", ".join(names), folder_of(names))


whole = {"train": (3, ["image", "caption"])}
assert of_names("a.png", "b.png", "c.png") == whole  # the control
assert of_names(*(f"COCO_train2014_{number}.png" for number in (1, 2, 3))) == {"train": (3, ["image"])}
assert of_names("train2014/a.png", "train2014/b.png") == {"train": (2, ["image"])}
names = ["a.png", "b.png", "c_test.png"]
assert of_names(*names) == {"test": (1, ["image"])}
assert study("the same with data_files", folder_of(names), data_files={"train": "**"}) == whole  # a control
PYTHON
