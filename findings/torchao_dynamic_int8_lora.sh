#!/bin/sh
# LoRA on a base model with torchao's dynamic int8 quantization trains on wrong gradients.
#
# Expectation: Both int8 variants of torchao are frozen below the adapters and propagate gradients. If one of them
# did not support this, the backward pass would raise an error.
#
# Behavior: Weight-only int8 propagates gradients, and the LoRA gradients match those of the float32 model up to
# rounding. The dynamic variant has nearly the same loss, but its linear layers propagate nothing. An adapter only
# receives the gradients that flow around these layers through the residual connections, so half of the gradients
# have little to do with the true ones. There is no warning.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0, peft 0.21.2, torchao 0.18.0:
#   Int8WeightOnlyConfig: loss off by 0.00%, cosine with the true gradients: median 1.00, lowest 0.99
#   Int8DynamicActivationInt8WeightConfig: loss off by 0.08%, cosine with the true gradients: median 0.48, lowest -0.30
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 transformers==5.24.0 peft==0.21.2 torchao==0.18.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python -I - <<'PYTHON'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers import T5Config, T5ForConditionalGeneration

warnings.simplefilter("ignore")
torch.manual_seed(0)
ids, labels = torch.randint(2, 64, (4, 7)), torch.randint(2, 64, (4, 5))
config = T5Config(
    vocab_size=64, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0, dropout_rate=0.0
)


def gradients(quantization):
    torch.manual_seed(1)
    base = T5ForConditionalGeneration(config)
    if quantization is not None:  # as from_pretrained does: all linear layers but the output
        quantize_(
            base, quantization, filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and name != "lm_head"
        )
    torch.manual_seed(2)
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q", "k", "v", "o", "wi", "wo"], init_lora_weights=False)
    )
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    return loss.item(), {
        name: parameter.grad.flatten() for name, parameter in model.named_parameters() if parameter.requires_grad
    }


true_loss, true_gradients = gradients(None)


def study(quantization):
    loss, found = gradients(quantization)
    cosines = torch.stack([torch.cosine_similarity(found[name], true, dim=0) for name, true in true_gradients.items()])
    error = abs(loss / true_loss - 1)
    cosine = f"median {cosines.median():.2f}, lowest {cosines.min():.2f}"
    print(f"{type(quantization).__name__}: loss off by {error:.2%}, cosine with the true gradients: {cosine}")
    assert error < 0.02
    return cosines


assert study(Int8WeightOnlyConfig()).min() > 0.95  # the control
assert study(Int8DynamicActivationInt8WeightConfig()).median() < 0.75
PYTHON
