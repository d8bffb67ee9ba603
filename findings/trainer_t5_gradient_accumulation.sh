#!/bin/sh
# The Trainer multiplies T5's loss and gradients by the number of gradient accumulation steps.
#
# Expectation: A step over four samples has the same loss and gradient whether the samples come as one batch of
# four, two batches of two, or four batches of one.
#
# Behavior: T5's `forward` accepts `**kwargs`. From this, the Trainer infers that the model divides its loss by
# `num_items_in_batch`, so it does not divide by the number of accumulation steps. However, T5 ignores this
# argument. The loss and the gradients are two and four times as large, and gradient clipping sets in that much
# earlier. Llama, which uses the argument, is correct.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0, accelerate 1.15.0:
#   T5, 1 batch of 4: loss 5.18, gradient norm 2.88
#   T5, 2 batches of 2: loss 10.37, gradient norm 5.76
#   T5, 4 batches of 1: loss 20.73, gradient norm 11.53
#   Llama, 1 batch of 4: loss 4.14, gradient norm 1.90
#   Llama, 4 batches of 1: loss 4.14, gradient norm 1.90
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python -I - <<'PYTHON'
import tempfile

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

torch.manual_seed(0)
ids, labels = torch.randint(2, 64, (4, 7)), torch.randint(2, 64, (4, 7))


def t5():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=64,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    )


def llama():
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    )


def one_step(name, build, batch_size):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir="."),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=4 // batch_size,
        max_steps=1,
        max_grad_norm=1e9,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    samples = [{"input_ids": sample, "labels": label} for sample, label in zip(ids, labels)]
    trainer = Trainer(build(), arguments, train_dataset=samples)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    found = trainer.state.log_history[0]
    batches = f"{4 // batch_size} batch{'es' if batch_size < 4 else ''} of {batch_size}"
    print(f"{name}, {batches}: loss {found['loss']:.2f}, gradient norm {found['grad_norm']:.2f}")
    return torch.tensor([float(found["loss"]), float(found["grad_norm"])])


whole = one_step("T5", t5, 4)
assert torch.allclose(one_step("T5", t5, 2) / whole, torch.tensor(2.0), rtol=0.02)
assert torch.allclose(one_step("T5", t5, 1) / whole, torch.tensor(4.0), rtol=0.02)
whole = one_step("Llama", llama, 4)
assert torch.allclose(one_step("Llama", llama, 1) / whole, torch.tensor(1.0), rtol=0.02)  # the control
PYTHON
