#!/bin/sh
# If a part of a model was compiled with torch.compile, the saved model loads with random weights in that part.
#
# Expectation: `model.vision_model = torch.compile(model.vision_model)` only affects speed. A model saved with
# `save_pretrained` loads unchanged.
#
# Behavior: The keys of that part contain `_orig_mod.`. During loading, these keys are unexpected, the part's real
# keys are missing, and the missing weights are initialized randomly. This is logged in a report, but no error is
# raised. Compiling in place with `model.vision_model.compile()` avoids the problem.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0:
#   torch.compile(model.vision_model): 138 keys saved, 30 with _orig_mod, vision weights as saved: False, others as saved: True
#   model.vision_model.compile(): 138 keys saved, 0 with _orig_mod, vision weights as saved: True, others as saved: True
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
import tempfile

import torch
from safetensors import safe_open
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration
from transformers.utils import logging

logging.disable_progress_bar()
torch.manual_seed(0)
config = InstructBlipConfig(
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 8,
        "patch_size": 4,
        "initializer_range": 0.1,
    },
    qformer_config={
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "encoder_hidden_size": 32,
    },
    text_config={
        "model_type": "t5",
        "vocab_size": 64,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    num_query_tokens=2,
    image_token_index=63,
)
image = torch.randn(1, 3, 8, 8)


def study(name, compile_vision_model):
    model = InstructBlipForConditionalGeneration(config).eval()
    saved = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    compile_vision_model(model)
    model.vision_model(image)
    folder = tempfile.mkdtemp(dir=".")
    model.save_pretrained(folder)
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        keys = list(file.keys())
    loaded = InstructBlipForConditionalGeneration.from_pretrained(folder).state_dict()
    is_kept = {"vision": True, "other": True}
    for key, tensor in saved.items():
        is_kept["vision" if key.startswith("vision_model.") else "other"] &= torch.equal(tensor, loaded[key])
    num_renamed = sum("_orig_mod" in key for key in keys)
    vision, others = is_kept["vision"], is_kept["other"]
    saved_keys = f"{len(keys)} keys saved, {num_renamed} with _orig_mod"
    print(f"{name}: {saved_keys}, vision weights as saved: {vision}, others as saved: {others}")
    return num_renamed > 0, vision, others


def replaced(model):
    model.vision_model = torch.compile(model.vision_model, backend="eager")


def in_place(model):
    model.vision_model.compile(backend="eager")


assert study("torch.compile(model.vision_model)", replaced) == (True, False, True)
assert study("model.vision_model.compile()", in_place) == (False, True, True)  # the control
PYTHON
