#!/bin/sh
# A model saved in shards over an older one in a single file: the older one is loaded.
#
# Guess: `save_pretrained` into a folder that holds a model replaces it. It does the other way round, and
# removes shards that are left over from before.
#
# Behaviour: `model.safetensors` stays beside the new shards and their index, and `from_pretrained` prefers it:
# the old weights load, without a word. It takes an older model below and a newer one above `max_shard_size`, or
# another `max_shard_size`.
#
# Seen on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0:
#   shards over a single file: loaded the old: True, the new: False
#   a single file over shards: loaded the old: False, the new: True
#   shards over shards: loaded the old: False, the new: True
#
# Exits with 0 as long as this holds, and with another status once the behaviour changes.
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
