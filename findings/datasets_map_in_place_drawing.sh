#!/bin/sh
# `Dataset.map` loses in-place changes to an image, such as drawing or scaling, if the image was loaded from a file.
#
# Expectation: `map` stores the image that the function returns. A function that draws boxes on `row['image']` or
# calls its `thumbnail` method and then returns the row creates a dataset of annotated or small images.
#
# Behavior: An image that Pillow opened from a path still has this path, and `datasets` stores the path instead of
# the pixels. In-place changes are lost without an error. Methods that return a new image (`resize`, `copy`) drop
# the path, so the pixels are stored. For images that were loaded from bytes, such as those in Parquet files, the
# same function keeps the changes. As a result, it works on one dataset but not on another.
#
# Observed on 2026-11-28 with Python 3.11 and datasets 5.2.0, pillow 13.0.0:
#   files, drawn in place: size (32, 32), pixel (255, 255, 255)
#   files, drawn on a copy: size (32, 32), pixel (255, 0, 0)
#   files, thumbnail: size (32, 32), pixel (255, 255, 255)
#   files, resize: size (8, 8), pixel (255, 255, 255)
#   bytes, drawn in place: size (32, 32), pixel (255, 0, 0)
#   bytes, thumbnail: size (8, 8), pixel (255, 255, 255)
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
import datasets
from PIL import Image, ImageDraw

datasets.disable_progress_bars()
Image.new("RGB", (32, 32), "white").save("white.png")
with open("white.png", "rb") as file:
    content = file.read()
of_files = datasets.Dataset.from_dict({"image": ["white.png"]}).cast_column("image", datasets.Image())
of_bytes = datasets.Dataset.from_dict({"image": [{"bytes": content, "path": None}]}).cast_column(
    "image", datasets.Image()
)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def draw(row):
    ImageDraw.Draw(row["image"]).rectangle([2, 2, 20, 20], fill="red")
    return row


def draw_on_a_copy(row):
    return draw({"image": row["image"].copy()})


def thumbnail(row):
    row["image"].thumbnail((8, 8))
    return row


def resize(row):
    return {"image": row["image"].resize((8, 8))}


def study(title, rows, function):
    image = rows.map(function)[0]["image"]
    found = image.size, image.getpixel((4, 4))
    print(f"{title}: size {found[0]}, pixel {found[1]}")
    return found


assert study("files, drawn in place", of_files, draw) == ((32, 32), WHITE)
assert study("files, drawn on a copy", of_files, draw_on_a_copy) == ((32, 32), RED)  # a control
assert study("files, thumbnail", of_files, thumbnail) == ((32, 32), WHITE)
assert study("files, resize", of_files, resize) == ((8, 8), WHITE)  # a control
assert study("bytes, drawn in place", of_bytes, draw) == ((32, 32), RED)
assert study("bytes, thumbnail", of_bytes, thumbnail) == ((8, 8), WHITE)
PYTHON
