#!/bin/sh
# InstructBLIP, BLIP-2 and Florence-2 processors save a chat template but do not load it.
#
# Expectation: `save_pretrained` writes `chat_template.jinja`, so a processor loaded from that folder has the
# template, as for LLaVA and PaliGemma.
#
# Behavior: The constructors of these three classes accept the template in `**kwargs` but do not pass it on. The
# loaded processor has no template, and `apply_chat_template` raises an error. There is no warning during loading.
# The tokenizer of the loaded processor does have the template.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0, pillow 13.0.0:
#   InstructBlipProcessor: file written: True, template after loading: None, of its tokenizer: True
#   Blip2Processor: file written: True, template after loading: None, of its tokenizer: True
#   Florence2Processor: file written: True, template after loading: None, of its tokenizer: True
#   LlavaProcessor: file written: True, template after loading: as saved, of its tokenizer: True
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 transformers==5.24.0 pillow==13.0.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python -I - <<'PYTHON'
import os
import tempfile

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    Florence2Processor,
    InstructBlipProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

TEMPLATE = "{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"


def tokenizer():
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "<image>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def template_after_loading(processor):
    processor.chat_template = TEMPLATE
    folder = tempfile.mkdtemp(dir=".")
    processor.save_pretrained(folder)
    loaded = type(processor).from_pretrained(folder)
    is_written = os.path.exists(f"{folder}/chat_template.jinja")
    template = "as saved" if loaded.chat_template == TEMPLATE else loaded.chat_template
    of_tokenizer = loaded.tokenizer.chat_template == TEMPLATE
    name = type(processor).__name__
    print(f"{name}: file written: {is_written}, template after loading: {template}, of its tokenizer: {of_tokenizer}")
    assert is_written
    return template


blip, clip = BlipImageProcessorPil(), CLIPImageProcessorPil()
assert template_after_loading(InstructBlipProcessor(blip, tokenizer(), tokenizer(), num_query_tokens=2)) is None
assert template_after_loading(Blip2Processor(blip, tokenizer(), num_query_tokens=2)) is None
assert template_after_loading(Florence2Processor(clip, tokenizer())) is None
assert template_after_loading(LlavaProcessor(clip, tokenizer(), patch_size=4)) == "as saved"  # the control
PYTHON
