#!/bin/sh
# If a sharded model is saved over an older single-file model, the older one is loaded.
#
# Expectation: `save_pretrained` replaces the model in the folder. It does so in the opposite case, and it removes
# old shards.
#
# Behavior: `model.safetensors` remains next to the new shards and their index, and `from_pretrained` prefers it,
# so the old weights are loaded without a warning. This happens if the older model is smaller and the newer one
# larger than `max_shard_size`, or if `max_shard_size` changes.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0:
#   shards over a single file: loaded the old: True, the new: False
#   a single file over shards: loaded the old: False, the new: True
#   shards over shards: loaded the old: False, the new: True
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 transformers==5.24.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python -I - <<'PYTHON'
import os
import tempfile

import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import logging

logging.disable_progress_bar()
config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
old, new = T5ForConditionalGeneration(config), T5ForConditionalGeneration(config)
SHARDS, SINGLE = {"max_shard_size": "20KB"}, {}


def save_twice(name, first, second):
    folder = tempfile.mkdtemp(dir=".")
    old.save_pretrained(folder, **first)
    new.save_pretrained(folder, **second)
    loaded = T5ForConditionalGeneration.from_pretrained(folder).shared.weight
    found = torch.equal(loaded, old.shared.weight), torch.equal(loaded, new.shared.weight)
    print(f"{name}: loaded the old: {found[0]}, the new: {found[1]}")
    return found, os.listdir(folder)


found, files = save_twice("shards over a single file", SINGLE, SHARDS)
assert {"model.safetensors", "model.safetensors.index.json"} <= set(files)
assert found == (True, False)
assert save_twice("a single file over shards", SHARDS, SINGLE)[0] == (False, True)  # the controls
assert save_twice("shards over shards", {"max_shard_size": "40KB"}, SHARDS)[0] == (False, True)
PYTHON
