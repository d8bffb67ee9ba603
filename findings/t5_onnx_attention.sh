#!/bin/sh
# T5's encoder with a dynamic batch size: torch.export works, but the ONNX exporter only works with eager attention.
#
# Expectation: `torch.onnx.export(dynamo=True)` can convert whatever `torch.export` exports. BERT with the same
# attention implementation can be converted.
#
# Behavior: With `sdpa`, T5's attention output is captured as a view that is valid for the strides of PyTorch's
# own kernel. The exporter decomposes this kernel into operators with different strides and fails with an error
# about a view.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0, onnxscript 0.7.2:
#   T5 sdpa: torch.export works, ONNX stops
#   T5 eager: torch.export works, ONNX works
#   BERT sdpa: torch.export works, ONNX works
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 transformers==5.24.0 onnxscript==0.7.2
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python -I - 2>log <<'PYTHON' || { tail -n 20 log >&2; exit 1; }
import contextlib
import io

import torch
from torch.export import Dim
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel


class Encoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, states, mask):
        return self.model(inputs_embeds=states, attention_mask=mask).last_hidden_state


def works(export):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            export()
    except Exception as error:
        assert "Cannot view a tensor" in str(error) + str(error.__cause__), error
        return False
    return True


def attempt(model, attention):
    model.set_attn_implementation(attention)
    encoder, batch, length = Encoder(model).eval(), Dim("batch"), Dim("length", min=2, max=64)
    inputs = torch.ones(2, 7, 128), torch.ones(2, 7, dtype=torch.long)
    shapes = {0: batch, 1: length}, {0: batch, 1: length}
    return (
        works(lambda: torch.export.export(encoder, inputs, dynamic_shapes=shapes)),
        works(lambda: torch.onnx.export(encoder, inputs, "model.onnx", dynamo=True, dynamic_shapes=shapes)),
    )


t5 = T5EncoderModel(T5Config(vocab_size=64, d_model=128, d_kv=64, d_ff=64, num_layers=1, num_heads=2))
bert = BertModel(
    BertConfig(vocab_size=64, hidden_size=128, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
)
found = []
for name, model, attention in (("T5", t5, "sdpa"), ("T5", t5, "eager"), ("BERT", bert, "sdpa")):
    found.append(attempt(model, attention))
    exported, converted = ("works" if each else "stops" for each in found[-1])
    print(f"{name} {attention}: torch.export {exported}, ONNX {converted}")
assert found == [(True, False), (True, True), (True, True)]
PYTHON
