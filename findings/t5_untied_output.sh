#!/bin/sh
# T5 cannot be created with a separate output layer, and loading one with `load_state_dict` overwrites the embedding.
#
# Expectation: `T5Config(tie_word_embeddings=False)`, which is in FlanT5's configuration, creates a model whose
# `lm_head` is separate from the embedding, as for Llama. A checkpoint with both tensors loads key by key.
#
# Behavior: The config sets `tie_word_embeddings` back to True and only records the False value in
# `scale_decoder_outputs`. The new model is tied, so `load_state_dict` writes both matrices of the checkpoint into
# one tensor, in key order. The input embedding becomes the output matrix, and the method returns 'All keys
# matched successfully'. `from_pretrained` unties them and works correctly.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0:
#   T5, tie_word_embeddings=False: lm_head is the embedding: True, config says tie_word_embeddings True
#   Llama, tie_word_embeddings=False: lm_head is the embedding: False
#   a checkpoint with embedding 1.0 and output 2.0
#   load_state_dict: <All keys matched successfully>, embedding 2.0, output 2.0
#   from_pretrained: embedding 1.0, output 2.0
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
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration
from transformers.utils import logging

logging.disable_progress_bar()
config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, tie_word_embeddings=False)
model = T5ForConditionalGeneration(config)
is_tied = model.lm_head.weight is model.shared.weight
of_config = config.tie_word_embeddings
print(
    f"T5, tie_word_embeddings=False: lm_head is the embedding: {is_tied}, config says tie_word_embeddings {of_config}"
)
assert is_tied and config.tie_word_embeddings and not config.scale_decoder_outputs
llama = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
)
print(
    "Llama, tie_word_embeddings=False: lm_head is the embedding:",
    llama.lm_head.weight is llama.model.embed_tokens.weight,
)
assert llama.lm_head.weight is not llama.model.embed_tokens.weight  # the control

checkpoint = {key: tensor.clone() for key, tensor in model.state_dict().items()}
for key in checkpoint:
    if "embed_tokens" in key or key == "shared.weight":
        checkpoint[key] = torch.full((64, 32), 1.0)
checkpoint["lm_head.weight"] = torch.full((64, 32), 2.0)
print("a checkpoint with embedding 1.0 and output 2.0")
message = str(model.load_state_dict(checkpoint))
embedding, output = model.shared.weight, model.lm_head.weight
print(f"load_state_dict: {message}, embedding {embedding[0, 0].item()}, output {output[0, 0].item()}")
assert model.shared.weight.eq(2.0).all() and model.lm_head.weight.eq(2.0).all() and "All keys matched" in message

config.save_pretrained("t5")
save_file(checkpoint, "t5/model.safetensors", metadata={"format": "pt"})
loaded = T5ForConditionalGeneration.from_pretrained("t5")
print(f"from_pretrained: embedding {loaded.shared.weight[0, 0].item()}, output {loaded.lm_head.weight[0, 0].item()}")
assert loaded.shared.weight.eq(1.0).all() and loaded.lm_head.weight.eq(2.0).all()  # a control
PYTHON
