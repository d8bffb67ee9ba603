#!/bin/sh
# Whether a model's attention implementation can be changed depends on the name of a class in its source file.
#
# Guess: `set_attn_implementation` asks the model, by class attributes such as `_supports_sdpa`, or its attention layers.
#
# Behaviour: it reads the source of the module that the model's class is in. A class there with `Attention` in its name
# that derives from `nn.Module` directly, while the file does not hold the text of a call of the interface, has the
# change refused with a logged warning, and the model stays as it was. Here the class is only a wrapper around T5's
# attention, which follows the interface. Under another name the same code is changed.
#
# Seen on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0:
#   wrapper called AttentionBlock: attention stays sdpa
#   wrapper called MixingBlock: attention becomes eager
#
# Exits with 0 as long as this holds, and with another status once the behaviour changes.
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
