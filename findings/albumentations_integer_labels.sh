#!/bin/sh
# Albumentations converts integers in `label_fields` to float32 and flattens pairs.
#
# Expectation: `label_fields` are carried along with the boxes unchanged; Albumentations only drops the labels of
# dropped boxes.
#
# Behavior: If all labels of a field are numbers, Albumentations puts them into the float32 array of the boxes. An
# annotation id above 16777216 may come back as a neighboring number: as a float if the ids were in a list, and as
# an integer if they were in an int64 array, where the change is invisible. Pairs come back as one flat list,
# twice as long as the boxes. If one label is a string or None, or if all ids are strings, the values stay exact.
# There is no error or warning.
#
# Observed on 2026-11-28 with Python 3.11 and albumentations 2.0.8, torch 2.13.0, opencv-python-headless 4.12.0.88:
#   ids in a list: [16777216.0, 16777216.0, 16777220.0]
#   ids in an int64 array: [16777216, 16777216, 16777220] int64
#   ids as texts: ['16777216', '16777217', '16777219']
#   ids and a None: [16777216, 16777217, None]
#   pairs: ['a cat', 'left', 'a dog', 'right', 'a cup', 'left']
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile albumentations==2.0.8 torch==2.13.0 opencv-python-headless==4.12.0.88
cd "$folder"
export NO_ALBUMENTATIONS_UPDATE=1
venv/bin/python -I - <<'PYTHON'
import albumentations
import numpy

IDS = [16777216, 16777217, 16777219]
BOXES = [[1, 1, 5, 5], [2, 2, 6, 6], [3, 3, 7, 7]]


def labels_after(labels):
    parameters = albumentations.BboxParams(format="coco", label_fields=["labels"])
    transform = albumentations.Compose([albumentations.NoOp()], bbox_params=parameters)
    found = transform(image=numpy.zeros((32, 32, 3), numpy.uint8), bboxes=BOXES, labels=labels)
    assert len(found["bboxes"]) == 3
    return found["labels"]


found = labels_after(IDS)
print("ids in a list:", found)
assert found == [16777216.0, 16777216.0, 16777220.0]
found = labels_after(numpy.array(IDS))
print("ids in an int64 array:", found.tolist(), found.dtype)
assert found.tolist() == [16777216, 16777216, 16777220] and found.dtype == numpy.int64
found = labels_after([str(number) for number in IDS])
print("ids as texts:", found)
assert found == [str(number) for number in IDS]  # the control
found = labels_after([*IDS[:2], None])
print("ids and a None:", found)
assert found == [*IDS[:2], None]  # a control
found = labels_after([("a cat", "left"), ("a dog", "right"), ("a cup", "left")])
print("pairs:", found)
assert found == ["a cat", "left", "a dog", "right", "a cup", "left"]
PYTHON
