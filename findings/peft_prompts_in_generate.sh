#!/bin/sh
# `generate` in transformers 5.24 ignores prefixes and prompts trained with PEFT 0.21.2.
#
# Expectation: The newest versions of PEFT and transformers work together, and for a model with a trained prefix,
# `generate` returns the same tokens as greedy decoding with `forward`.
#
# Behavior: PEFT passes the prefix as `past_key_values`, `generate` passes its own cache as `cache`, and the model
# uses the latter. With prefix tuning, T5 answers as if there were no prefix. With prompt tuning, Llama uses the
# prompt for the first token and goes wrong from the second token on. Prompt tuning of T5 works, and with
# transformers 5.23 all three work. No error is raised. In addition, the `add_adapter` method of a model requires
# PEFT 0.22.0, which had not been released on that day.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, peft 0.21.2, transformers 5.24.0 and 5.23.0:
#   transformers 5.24.0
#   T5, prefix tuning: generate agrees with forward: False, gives the base model's answer: True
#   Llama, prompt tuning: generate agrees with forward: False, gives the base model's answer: False
#   T5, prompt tuning: generate agrees with forward: True, gives the base model's answer: False
#   add_adapter: The version of PEFT you are using is not compatible, please use a version >= 0.22.0
#   transformers 5.23.0
#   T5, prefix tuning: generate agrees with forward: True, gives the base model's answer: False
#   Llama, prompt tuning: generate agrees with forward: True, gives the base model's answer: False
#   T5, prompt tuning: generate agrees with forward: True, gives the base model's answer: False
#   add_adapter: done
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 transformers==5.24.0 peft==0.21.2
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
cat >prompts.py <<'PYTHON'
import warnings

import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

warnings.simplefilter("ignore")
NUM_TOKENS = 8
IS_5_24 = transformers.__version__ == "5.24.0"
assert IS_5_24 or transformers.__version__ == "5.23.0"


def t5():
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(
        T5Config(**sizes, decoder_start_token_id=0, eos_token_id=None, initializer_factor=3.0)
    )


def llama():
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=1.0, eos_token_id=None, pad_token_id=0))


def greedy_by_forward(model, ids, is_encoder_decoder):
    answer = torch.zeros(1, 1, dtype=torch.long) if is_encoder_decoder else ids
    for _ in range(NUM_TOKENS):
        inputs = {"input_ids": ids, "decoder_input_ids": answer} if is_encoder_decoder else {"input_ids": answer}
        mask = torch.ones_like(inputs["input_ids"])
        logits = model(**inputs, attention_mask=mask, use_cache=False).logits[:, -1]
        answer = torch.cat([answer, logits.argmax(-1, keepdim=True)], dim=1)
    return answer[0, -NUM_TOKENS:].tolist()


def study(name, build, config_class, task_type):
    torch.manual_seed(0)
    base = build().eval()
    ids = torch.randint(2, 64, (1, 7))

    def generate(model):
        mask = torch.ones_like(ids)
        answer = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NUM_TOKENS, do_sample=False)
        return answer[0, -NUM_TOKENS:].tolist()

    is_encoder_decoder = task_type == "SEQ_2_SEQ_LM"
    of_base = generate(base)
    assert of_base == greedy_by_forward(base, ids, is_encoder_decoder)  # the control: without PEFT the two agree
    model = get_peft_model(base, config_class(task_type=task_type, num_virtual_tokens=4)).eval()
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    right = greedy_by_forward(model, ids, is_encoder_decoder)
    assert right != of_base  # the control: the prompt changes the answer
    answer = generate(model)
    found = answer == right, answer == of_base
    print(f"{name}: generate agrees with forward: {found[0]}, gives the base model's answer: {found[1]}")
    return found


print("transformers", transformers.__version__)
assert study("T5, prefix tuning", t5, PrefixTuningConfig, "SEQ_2_SEQ_LM") == (
    (False, True) if IS_5_24 else (True, False)
)
assert study("Llama, prompt tuning", llama, PromptTuningConfig, "CAUSAL_LM") == (not IS_5_24, False)
assert study("T5, prompt tuning", t5, PromptTuningConfig, "SEQ_2_SEQ_LM") == (True, False)
message = "done"
try:
    t5().add_adapter(LoraConfig(target_modules=["q"]))
except ValueError as error:
    message = str(error)
print("add_adapter:", message)
assert ("0.22.0" in message) == IS_5_24
PYTHON
venv/bin/python -I prompts.py
"$folder/venv/bin/python" -m pip install --quiet --no-compile transformers==5.23.0
venv/bin/python -I prompts.py
