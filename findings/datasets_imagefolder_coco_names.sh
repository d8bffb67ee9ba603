#!/bin/sh
# `imagefolder` drops captions if files have COCO-style names, and drops images if one file name contains "test".
#
# Expectation: `load_dataset('imagefolder')` reads all images in a folder and joins `metadata.jsonl` by
# `file_name`, regardless of the file names.
#
# Behavior: Words such as train, val and test in file and folder names are interpreted as splits.
# `COCO_train2014_*.png` creates a split that only contains the images: the name metadata.jsonl has no such word,
# so the file belongs to no split, and the column `caption` is missing. If only one of many images is named
# `*_test.png`, the dataset consists of this one image. There is no warning in either case. `data_files={'train':
# '**'}` reads all files.
#
# Observed on 2026-11-28 with Python 3.11 and datasets 5.2.0, pillow 13.0.0:
#   a.png, b.png, c.png: {'train': (3, ['image', 'caption'])}
#   COCO_train2014_1.png, COCO_train2014_2.png, COCO_train2014_3.png: {'train': (3, ['image'])}
#   train2014/a.png, train2014/b.png: {'train': (2, ['image'])}
#   a.png, b.png, c_test.png: {'test': (1, ['image'])}
#   the same with data_files: {'train': (3, ['image', 'caption'])}
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
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
