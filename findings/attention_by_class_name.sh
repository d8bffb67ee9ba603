#!/bin/sh
# The name of a class in the source file decides whether you can change a model's attention implementation.
#
# Expectation: `set_attn_implementation` decides by class attributes of the model, such as `_supports_sdpa`, or by
# its attention layers.
#
# Behavior: It reads the source code of the module that defines the model's class. If a class there has
# `Attention` in its name and derives directly from `nn.Module`, and the file does not contain the text of a call
# to the attention interface, the change is refused with a logged warning and the model keeps its implementation.
# In this script, the class only wraps T5's attention, which does use the interface. With a different class name,
# the same code can be changed.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0:
#   wrapper called AttentionBlock: attention stays sdpa
#   wrapper called MixingBlock: attention becomes eager
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 transformers==5.24.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
for name in AttentionBlock MixingBlock; do
    cat > "$name.py" <<PYTHON
from torch import nn
from transformers import T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention


class $name(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.inner = T5Attention(config)


class Model(T5EncoderModel):
    def __init__(self, config):
        super().__init__(config)
        self.wrapper = $name(config)
PYTHON
done
venv/bin/python - <<'PYTHON'
import importlib
import sys

from transformers import T5Config

sys.path.insert(0, ".")
config = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
found = {}
for name in ("AttentionBlock", "MixingBlock"):
    model = importlib.import_module(name).Model(T5Config(**config))
    model.set_attn_implementation("eager")
    found[name] = model.config._attn_implementation
    print(f"wrapper called {name}: attention {'becomes' if found[name] == 'eager' else 'stays'} {found[name]}")
assert found == {"AttentionBlock": "sdpa", "MixingBlock": "eager"}
PYTHON
