#!/bin/sh
# LoRA or `modules_to_save` on T5's `shared` embedding is accepted, but has no effect and no gradient.
#
# Expectation: `shared` is the embedding of the encoder, the decoder and the output, so adapting it adapts all
# three. If this were not supported, PEFT would warn, as it does for other tied weights.
#
# Behavior: The encoder and the decoder have their own embedding modules, `embed_tokens`, and `shared` itself is
# never called. PEFT 0.21.2 wraps `shared`: the output and the loss are always those of the base model, no
# gradient arrives, and there is no warning. Targeting `embed_tokens` works, with a warning about tied weights.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0, peft 0.21.2:
#   target_modules=['shared']: output changed: False, parameters with a gradient: 0 of 2
#   modules_to_save=['shared']: gradient of the copy that is to be trained: None
#   warnings about tied weights: 0
#   target_modules=['embed_tokens']: output changed: True, parameters with a gradient: 4 of 4
#   warnings about tied weights: 1
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 transformers==5.24.0 peft==0.21.2
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python -I - <<'PYTHON'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
ids, labels = torch.randint(2, 64, (2, 7)), torch.randint(2, 64, (2, 5))
config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)


def wrap(**options):
    """The logits of a base model, and that model with an adapter which is not zero."""
    torch.manual_seed(1)
    base = T5ForConditionalGeneration(config).eval()
    before = base(input_ids=ids, labels=labels).logits.detach()
    return before, get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, **options)).eval()


def differ(left, right):
    return not torch.allclose(left, right, atol=1e-3)


def study(name):
    before, model = wrap(target_modules=[name])
    output = model(input_ids=ids, labels=labels)
    if output.loss.requires_grad:
        output.loss.backward()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_reached = sum(parameter.grad is not None for parameter in trainable)
    found = differ(output.logits, before), num_reached
    reached = f"{num_reached} of {len(trainable)}"
    print(f"target_modules=['{name}']: output changed: {found[0]}, parameters with a gradient: {reached}")
    return found


def num_warnings_of_ties(caught):
    return sum("tie_word_embeddings" in str(warning.message) for warning in caught)


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert study("shared") == (False, 0)
    _, model = wrap(target_modules=["q"], modules_to_save=["shared"])
    model(input_ids=ids, labels=labels).loss.backward()
    gradient = model.base_model.model.shared.modules_to_save["default"].weight.grad
    print("modules_to_save=['shared']: gradient of the copy that is to be trained:", gradient)
    assert gradient is None
print("warnings about tied weights:", num_warnings_of_ties(caught))
assert num_warnings_of_ties(caught) == 0

with warnings.catch_warnings(record=True) as caught:  # the control
    warnings.simplefilter("always")
    assert study("embed_tokens") == (True, 4)
print("warnings about tied weights:", num_warnings_of_ties(caught))
assert num_warnings_of_ties(caught) > 0
PYTHON
