"""Trainable parameters become float32, on a base in 16 bits too."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from factories import NO_DROPOUT, tiny_inputs, tiny_labels, tiny_model
from training.record_files import write_source
from transformers_lion import LionForConditionalGeneration, LionProcessor
from transformers_lion.training import (
    apply_stage,
    load_records,
    make_trainer,
    train,
    train_in_float32,
    training_arguments,
)
from transformers_lion.training.lora import lora_config

peft = pytest.importorskip("peft")


def prepared(kind: str, dtype: torch.dtype) -> Any:
    """A small model in `dtype` with LoRA, with the third stage applied, or with all but the vision tower trained."""
    model = tiny_model(**NO_DROPOUT).to(dtype)
    if kind == "lora":
        torch.manual_seed(0)
        return peft.get_peft_model(model, lora_config(model, rank=2, dropout=0.0))
    if kind == "mixture":
        apply_stage(model, kind)
    else:
        model.vision_model.requires_grad_(False)
    return model


def trained_dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "plain"])
@pytest.mark.parametrize("kind", ["lora", "mixture", "all but the tower"])
def test_what_trains_is_float32_beside_a_bfloat16_base(kind: str, autocast: bool) -> None:
    model, reference = prepared(kind, torch.bfloat16), prepared(kind, torch.float32)
    frozen = {name: value.dtype for name, value in model.named_parameters() if not value.requires_grad}
    assert torch.bfloat16 in trained_dtypes(model)
    train_in_float32(model)
    assert trained_dtypes(model) == {torch.float32}
    assert torch.bfloat16 in {value.dtype for value in model.parameters()}
    assert {name for name, value in model.named_parameters() if value.dtype == torch.bfloat16} <= set(frozen)
    batch = {**tiny_inputs(), "labels": tiny_labels()}
    expected = reference(**batch)
    expected.loss.backward()
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        found = model(**batch)
        assert model.generate(**batch, max_new_tokens=3).shape == (4, 4)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=0.01)
    wanted = {name: value.grad for name, value in reference.named_parameters() if value.requires_grad}
    grads = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert {grad.dtype for grad in grads.values()} == {torch.float32}
    ours, theirs = (torch.cat([table[name].flatten() for name in wanted]) for table in (grads, wanted))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.98


def test_small_steps_count_on_a_bfloat16_base(
    lion_model: LionForConditionalGeneration, lion_processor: LionProcessor, tmp_path: Path
) -> None:
    write_source(tmp_path, 2)
    base = copy.deepcopy(lion_model).to(torch.bfloat16)
    model = peft.get_peft_model(base, lora_config(base, rank=2))
    projection = model.base_model.model.language_projection.modules_to_save.default.weight
    before = projection.detach().clone()
    arguments = training_arguments(
        tmp_path / "output", per_device_train_batch_size=2, max_steps=1, learning_rate=1e-5, warmup_steps=0,
        use_cpu=True, disable_tqdm=True, weight_decay=0.0,
    )  # fmt: skip
    train(make_trainer(model, lion_processor, arguments, load_records(tmp_path / "a.json")))
    steps = (projection - before.float()).abs()
    assert steps.median().item() == pytest.approx(1e-5, rel=0.05)  # Adam's first step is the learning rate
    assert steps.max() < 1.1e-5


def test_lora_on_a_base_of_16_bits_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    lora_config(tiny_model())
    assert not caplog.records
    lora_config(tiny_model().to(torch.bfloat16))
    (record,) = caplog.records
    assert record.getMessage().startswith("adapter, soft_prompt, query_tokens,")
    assert "call train_in_float32(model)" in record.getMessage()


def test_a_model_is_float32_again_when_its_base_is() -> None:
    model, inputs = prepared("mixture", torch.bfloat16), tiny_inputs()
    train_in_float32(model)
    model.float()
    again = LionForConditionalGeneration(model.config).eval()
    again.load_state_dict(model.state_dict())
    labels = tiny_labels()
    found, expected = model(**inputs, labels=labels).logits, again(**inputs, labels=labels).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # bfloat16 anywhere is further off


def test_a_model_in_float32_is_left_as_it_is() -> None:
    model = prepared("mixture", torch.float32)
    train_in_float32(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
