#!/bin/sh
# A T5 decoder of one's own that passes `past_key_values` on generates other tokens in transformers 5.24.
#
# Guess: a subclass of `T5Stack` with `**kwargs`, whose forward names `past_key_values` and passes it on, works
# as in 5.23; at worst it raises a TypeError or runs without a cache, which is slower and gives the same tokens.
#
# Behaviour: 5.24 hands the cache over as `cache`. The name lands in `**kwargs` and is not passed on, so every
# step sees the last token alone, as if the answer began with it. Nothing is raised. A FutureWarning about the
# name of the argument is all there is.
#
# Seen on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0:
#   stock class:            [0, 28, 5, 45, 63, 63, 63, 63, 63]
#   subclass, no cache:     [0, 28, 5, 45, 63, 63, 63, 63, 63]
#   subclass, with a cache: [0, 28, 15, 46, 9, 63, 34, 5, 6]
#
# Exits with 0 as long as this holds, and with another status once the behaviour changes.
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
