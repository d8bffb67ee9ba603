#!/bin/sh
# A custom T5 decoder that passes on `past_key_values` generates different tokens in transformers 5.24.
#
# Expectation: A subclass of `T5Stack` with `**kwargs` that names `past_key_values` in its forward and passes it
# on works as in 5.23. At worst, it raises a TypeError, or runs without a cache, which is slower but generates the
# same tokens.
#
# Behavior: transformers 5.24 passes the cache as `cache`. This argument ends up in `**kwargs` and is not passed
# on, so each step only sees the last token, as if the answer started there. No error is raised. The only hint is
# a FutureWarning about the name of the argument.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0:
#   stock class:            [0, 28, 5, 45, 63, 63, 63, 63, 63]
#   subclass, no cache:     [0, 28, 5, 45, 63, 63, 63, 63, 63]
#   subclass, with a cache: [0, 28, 15, 46, 9, 63, 34, 5, 6]
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
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Stack


class OwnDecoder(T5Stack):
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        past_key_values=None,
        use_cache=None,
        encoder_hidden_states=None,
        **kwargs,
    ):
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=kwargs.get("encoder_attention_mask"),
        )


torch.manual_seed(0)
config = T5Config(
    vocab_size=64,
    d_model=32,
    d_kv=8,
    d_ff=64,
    num_layers=2,
    num_heads=4,
    decoder_start_token_id=0,
    initializer_factor=3.0,
)
model = T5ForConditionalGeneration(config).eval()
question = torch.randint(2, 64, (1, 7))


def answer(**options):
    return model.generate(question, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options)[0].tolist()


stock = answer()
model.decoder.__class__ = OwnDecoder
uncached, cached = answer(use_cache=False), answer()
print("stock class:           ", stock)
print("subclass, no cache:    ", uncached)
print("subclass, with a cache:", cached)
assert uncached == stock  # the control: without a cache the subclass is the stock class
assert cached != stock
PYTHON
