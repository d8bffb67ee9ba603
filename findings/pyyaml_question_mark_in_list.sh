#!/bin/sh
# PyYAML cannot read a list of questions in brackets unless they are in quotes.
#
# Expectation: In YAML 1.2, and in PyYAML outside of brackets, a plain text may contain a question mark. A recipe with
# `ask: [Is it red?]` has a list of one question, as it has in block style.
#
# Behavior: PyYAML follows YAML 1.1 and ends a plain text at a question mark before a bracket or comma. It raises a
# ParserError that speaks of a missing ',' or ']'. `ruamel.yaml` reads the same text. With quotes, or one question per
# line, both agree.
#
# Observed on 2026-11-28 with Python 3.11 and PyYAML 6.0.4, ruamel.yaml 0.18.16:
#   PyYAML, [Is it red?]: ParserError
#   PyYAML, ["Is it red?"]: {'ask': ['Is it red?']}
#   PyYAML, one per line: {'ask': ['Is it red?']}
#   ruamel.yaml, [Is it red?]: {'ask': ['Is it red?']}
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile pyyaml==6.0.4 ruamel.yaml==0.18.16
cd "$folder"
venv/bin/python -I - <<'PYTHON'
import yaml
from ruamel.yaml import YAML

TEXT = "ask: [Is it red?]"
EXPECTED = {"ask": ["Is it red?"]}
try:
    found = yaml.safe_load(TEXT)
except yaml.YAMLError as error:
    found = type(error).__name__
print("PyYAML, [Is it red?]:", found)
assert found == "ParserError"

quoted = yaml.safe_load('ask: ["Is it red?"]')
lines = yaml.safe_load("ask:\n- Is it red?")
other = YAML(typ="safe", pure=True).load(TEXT)
print('PyYAML, ["Is it red?"]:', quoted)
print("PyYAML, one per line:", lines)
print("ruamel.yaml, [Is it red?]:", other)
assert quoted == lines == other == EXPECTED  # controls
PYTHON
