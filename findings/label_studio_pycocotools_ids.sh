#!/bin/sh
# Perfect predictions for boxes exported from Label Studio get an AP of 0.44, because its annotation ids start at 0.
#
# Expectation: Ids in a COCO file are just names, so any integer works. A file that Label Studio writes and
# pycocotools reads without complaint is scored correctly.
#
# Behavior: Label Studio numbers annotations from 0. pycocotools stores the id of the matching annotation in an
# array in which 0 means "no match", so annotation 0 counts as missed and its prediction as a false positive.
# Perfect predictions for three boxes get an AP of 0.44 and a recall of 0.67. With ids that start at 1, both are
# 1.
#
# Observed on 2026-11-28 with Python 3.11 and label-studio-sdk 2.1.2, pycocotools 2.0.11:
#   Label Studio's annotation ids: [0, 1, 2]
#   pycocotools on the export: AP 0.44, recall 0.67
#   pycocotools, numbered from 1: AP 1.00, recall 1.00
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile label-studio-sdk==2.1.2 pycocotools==2.0.11
cd "$folder"
venv/bin/python -I - <<'PYTHON'
import contextlib
import io
import json

from label_studio_sdk.converter import Converter
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image"><Label value="cat"/></RectangleLabels>
</View>
"""


def region(x, y):
    value = {"x": x, "y": y, "width": 10, "height": 10, "rotation": 0, "rectanglelabels": ["cat"]}
    names = {"type": "rectanglelabels", "from_name": "label", "to_name": "image"}
    return {**names, "original_width": 100, "original_height": 100, "value": value}


regions = [region(0, 0), region(20, 20), region(50, 50)]
with open("tasks.json", "w") as file:
    json.dump([{"id": 1, "data": {"image": "picture.jpg"}, "annotations": [{"id": 1, "result": regions}]}], file)
Converter(CONFIG, ".", download_resources=False).convert_to_coco("tasks.json", "export", is_dir=False)
with open("export/result.json") as file:
    export = json.load(file)
ids = [annotation["id"] for annotation in export["annotations"]]
print("Label Studio's annotation ids:", ids)
assert ids == [0, 1, 2]


def score(title, first_id):
    truth = COCO()
    annotations = [{**annotation, "id": first_id + number} for number, annotation in enumerate(export["annotations"])]
    truth.dataset = {**export, "annotations": annotations}
    truth.createIndex()
    keys = ("image_id", "category_id", "bbox")
    evaluation = COCOeval(
        truth, truth.loadRes([{key: box[key] for key in keys} | {"score": 1.0} for box in annotations]), "bbox"
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0], evaluation.stats[8]


for title, first_id, expected in (("on the export", 0, (0.44, 0.67)), (", numbered from 1", 1, (1.0, 1.0))):
    with contextlib.redirect_stdout(io.StringIO()):
        precision, recall = score(title, first_id)
    print(f"pycocotools {title}: AP {precision:.2f}, recall {recall:.2f}".replace(" ,", ","))
    assert (round(precision, 2), round(recall, 2)) == expected
PYTHON
