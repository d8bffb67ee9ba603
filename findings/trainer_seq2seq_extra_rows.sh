#!/bin/sh
# On two processes, Seq2SeqTrainer predicts and scores some samples twice; Trainer counts each of them once.
#
# Expectation: `predict` and `evaluate` return one row per sample on any number of processes. Seq2SeqTrainer only
# differs from Trainer in that it can generate.
#
# Behavior: With batches of two on two processes, five samples are padded to eight so that both processes get full
# batches. Trainer removes the three repeated rows. Seq2SeqTrainer keeps them, with and without
# `predict_with_generate`: predictions, label_ids and the input of `compute_metrics` have eight rows, and the loss
# is the mean over eight. There is no warning. Truncate the rows to the length of the dataset yourself.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0, accelerate 1.15.0:
#   Trainer: rows of predict: 5, rows that compute_metrics got in evaluate: 5
#   Seq2SeqTrainer: rows of predict: 8, rows that compute_metrics got in evaluate: 8
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
cat >two_processes.py <<'PYTHON'
import tempfile

import torch
from transformers import (
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

torch.manual_seed(0)
model = T5ForConditionalGeneration(
    T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
)
samples = [{"input_ids": torch.randint(2, 64, (7,)), "labels": torch.randint(2, 64, (4,))} for _ in range(5)]


def num_rows(trainer_class):
    counted = []

    def count(prediction):
        counted.append(len(prediction.label_ids))
        return {}

    arguments = Seq2SeqTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_eval_batch_size=2,
        use_cpu=True,
        ddp_backend="gloo",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trainer_class(model, arguments, compute_metrics=count)
    trainer.remove_callback(PrinterCallback)
    predicted = len(trainer.predict(samples).label_ids)
    trainer.evaluate(samples)
    if arguments.process_index == 0:
        name, in_evaluate = trainer_class.__name__, counted[-1]
        print(
            f"{name}: rows of predict: {predicted}, rows that compute_metrics got in evaluate: {in_evaluate}",
            flush=True,
        )
    return predicted, counted[-1]


assert num_rows(Trainer) == (5, 5)  # the control
assert num_rows(Seq2SeqTrainer) == (8, 8)
torch.distributed.destroy_process_group()
PYTHON
OMP_NUM_THREADS=1 venv/bin/python -I -m torch.distributed.run --standalone --nproc_per_node 2 two_processes.py
