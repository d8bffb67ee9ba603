#!/bin/sh
# A model that returned its hidden states once can no longer be pickled.
#
# Expectation: Whether a model can be pickled does not depend on how it was called before.
#
# Behavior: The first call with `output_hidden_states=True` or `output_attentions=True` leaves hooks on the modules,
# and these hooks are local functions. From then on, `pickle.dumps` of the model raises AttributeError.
# `copy.deepcopy` works, because it does not copy functions. After a call that requests neither output, the model
# can be pickled.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0:
#   transformers 5.18.0, plain call: can be pickled
#   transformers 5.18.0, output_hidden_states: AttributeError: Can't pickle local object
#     'install_output_capuring_hook.<locals>.output_capturing_hook'
#   transformers 5.18.0, output_attentions: the same error
#   transformers 5.24.0: the same three lines
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
for version in 5.18.0 5.24.0; do
    venv/bin/python -m pip install --quiet --no-compile transformers==$version
    venv/bin/python -I - <<'PYTHON'
import copy
import pickle

import torch
import transformers
from transformers import LlamaConfig, LlamaModel

SIZES = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
ids = torch.tensor([[1, 2, 3]])


def outcome(**options):
    model = LlamaModel(LlamaConfig(**SIZES)).eval()
    model(input_ids=ids, **options)
    copy.deepcopy(model)
    try:
        pickle.dumps(model)
    except AttributeError as error:
        return f"AttributeError: {error}"
    return "can be pickled"


plain = outcome()
print(f"transformers {transformers.__version__}, plain call:", plain)
assert plain == "can be pickled"  # the control
for option in ("output_hidden_states", "output_attentions"):
    found = outcome(**{option: True})
    print(f"transformers {transformers.__version__}, {option}:", found)
    assert found.startswith("AttributeError") and "<locals>" in found, found
PYTHON
done
