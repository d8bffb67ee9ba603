#!/bin/sh
# A model that once returned its hidden states can no longer be pickled.
#
# Guess: whether a model can be pickled does not depend on how it was called before.
#
# Behaviour: the first call with `output_hidden_states=True`, or `output_attentions=True`, leaves hooks on the modules
# for good, which are local functions. From then on `pickle.dumps` and `torch.save` of the model raise AttributeError,
# and so does what pickles a model to start a process with it. `copy.deepcopy` works, since it takes functions as they
# are. After a call that asks for neither, the model can be pickled.
#
# Seen on 2026-11-28 with Python 3.11 and torch 2.13.0:
#   transformers 5.18.0, plain call: can be pickled
#   transformers 5.18.0, output_hidden_states: AttributeError: Can't pickle local object 'install_output_capuring_hook.<locals>.output_capturing_hook'
#   transformers 5.18.0, output_attentions: (the same)
#   transformers 5.24.0, plain call: can be pickled
#   transformers 5.24.0, output_hidden_states: AttributeError: Can't pickle local object 'install_output_capuring_hook.<locals>.output_capturing_hook'
#   transformers 5.24.0, output_attentions: (the same)
#
# Exits with 0 as long as this holds, and with another status once the behaviour changes.
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
