"""The stock Trainer and PEFT on LION, without subclasses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, default_data_collator

from factories import NO_DROPOUT, tiny_inputs, tiny_labels, tiny_model
from trainer_step import samples, step
from transformers_lion import LionForConditionalGeneration
from transformers_lion.compatibility import enable_activation_checkpointing

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def whole_batch() -> dict[str, float]:
    return step(batch_size=4, accumulation=1)


def test_the_trainers_loss_is_the_models(whole_batch: dict[str, float]) -> None:
    loss = tiny_model()(**tiny_inputs(), labels=tiny_labels()).loss
    assert whole_batch["loss"] == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 2), (1, 4)])
def test_accumulated_batches_have_the_loss_and_gradient_of_one(
    batch_size: int, accumulation: int, whole_batch: dict[str, float]
) -> None:
    assert step(batch_size, accumulation) == pytest.approx(whole_batch, rel=1e-4)


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradient_of_one(whole_batch: dict[str, float]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(TESTS / "trainer_step.py"), "--batch-size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(
        next(line for line in result.stdout.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT ")
    )
    assert found == pytest.approx(whole_batch, rel=1e-4)


def test_prediction_with_generate_takes_the_training_batch(tmp_path: Path) -> None:
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), per_device_eval_batch_size=2, predict_with_generate=True, generation_max_length=6,
        use_cpu=True, report_to=[], remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    model = tiny_model()
    trainer = Seq2SeqTrainer(model, arguments, data_collator=default_data_collator)
    predictions = trainer.predict(samples())
    expected = model.generate(**tiny_inputs(), max_length=6)
    assert predictions.predictions.shape[0] == 4
    width = min(expected.shape[1], predictions.predictions.shape[1])
    assert (predictions.predictions[:, :width] == expected[:, :width].numpy()).all()
    plain = trainer.evaluate(samples())
    assert plain["eval_loss"] == pytest.approx(predictions.metrics["test_loss"])


def test_lora_trains_saves_loads_and_merges(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM", r=2, target_modules=r"language_model\..*\.(SelfAttention|EncDecAttention)\.(q|v)",
        modules_to_save=["adapter", "query_tokens", "soft_prompt"], init_lora_weights=False,
    )  # fmt: skip
    model = peft.get_peft_model(tiny_model(), settings)
    batch = {**tiny_inputs(), "labels": tiny_labels()}
    model(**batch).loss.backward()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    for part in ("lora_A", "router.0", "down_proj", "query_tokens", "soft_prompt"):
        assert any(part in name for name in trained), part
    model.eval()
    expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    assert torch.equal(loaded(**batch).logits, expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is LionForConditionalGeneration
    assert torch.allclose(merged(**batch).logits, expected, atol=1e-3)
    assert torch.equal(
        merged.generate(**tiny_inputs(), max_new_tokens=4), model.generate(**tiny_inputs(), max_new_tokens=4)
    )


@pytest.mark.parametrize("task_type", [None, "SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION"])
def test_tasks_pass_through_every_kind_of_peft_model(task_type: Any) -> None:
    peft = pytest.importorskip("peft")
    batch, base = {**tiny_inputs(), "labels": tiny_labels()}, tiny_model()
    expected = base(**batch).logits
    model = peft.get_peft_model(base, peft.LoraConfig(task_type=task_type, r=2, target_modules=["q", "v"])).eval()
    logits = model(**batch).logits
    assert (logits - expected).abs().max() < 3e-6 * expected.abs().max()  # rounding: PEFT's products are others


PARTS_TO_CHECKPOINT = ("vision_model", "qformer", "aggregator", "language_model")


@pytest.mark.parametrize("part", PARTS_TO_CHECKPOINT)
def test_activation_checkpointing_of_one_part_recomputes_that_part_alone_and_changes_no_gradient(part: str) -> None:
    torch.manual_seed(0)
    model = tiny_model(**NO_DROPOUT).train()
    inputs = {**tiny_inputs(), "labels": tiny_labels()}
    model(**inputs).loss.backward()
    expected = {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.grad is not None}
    model.zero_grad()
    module: Any = model.get_submodule(part)
    enable_activation_checkpointing(module)
    chosen = [name for name, module in model.named_modules() if getattr(module, "gradient_checkpointing", False)]
    assert chosen
    assert all(name == part or name.startswith(f"{part}.") for name in chosen)
    model(**inputs).loss.backward()
    for name, tensor in model.named_parameters():
        assert (tensor.grad is None) == (name not in expected)
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, expected[name])
