#!/bin/sh
# Processors of InstructBLIP, BLIP-2 and Florence-2 write a chat template and do not read it back.
#
# Guess: `save_pretrained` writes `chat_template.jinja`, so `from_pretrained` of the folder has the template, as
# for LLaVA and PaliGemma.
#
# Behaviour: the three classes take the template in `**kwargs` of their constructor and do not pass it on. The
# loaded processor has none, and `apply_chat_template` raises an error. Nothing is said on loading. The
# tokenizer of the loaded processor does have the template.
#
# Seen on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0, pillow 13.0.0:
#   InstructBlipProcessor: file written: True, template after loading: None, of its tokenizer: True
#   Blip2Processor: file written: True, template after loading: None, of its tokenizer: True
#   Florence2Processor: file written: True, template after loading: None, of its tokenizer: True
#   LlavaProcessor: file written: True, template after loading: as saved, of its tokenizer: True
#
# Exits with 0 as long as this holds, and with another status once the behaviour changes.
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
