"""What a training needs in memory, computed on tensors without numbers, is what it takes with them."""

import pytest
import torch

from factories import NO_DROPOUT, tiny_config, tiny_inputs, tiny_labels
from transformers_lion import LionForConditionalGeneration
from transformers_lion.training import apply_stage
from transformers_lion.training.memory import (
    LiveBytes,
    TrainingMemory,
    enable_activation_checkpointing,
    training_memory,
)

LENGTHS = {"prompt_length": 7, "question_length": 4, "answer_length": 5}


def computed(method: str = "ddp", num_devices: int = 1, batch_size: int = 4, **options: bool) -> TrainingMemory:
    return training_memory(
        tiny_config(**NO_DROPOUT), "mixture", method, num_devices, batch_size=batch_size,
        compute_dtype=torch.float32, **LENGTHS, **options,
    )  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_without_numbers_needs_what_a_step_with_them_does(checkpointing: bool) -> None:
    model = LionForConditionalGeneration(tiny_config(**NO_DROPOUT)).train()
    apply_stage(model, "mixture")
    if checkpointing:
        enable_activation_checkpointing(model)
    batch = {**tiny_inputs(), "labels": tiny_labels()}
    gradients = [torch.zeros_like(value) for value in model.parameters() if value.requires_grad]
    for parameter, gradient in zip((v for v in model.parameters() if v.requires_grad), gradients, strict=True):
        parameter.grad = gradient
    counter = LiveBytes()
    for tensor in (*model.parameters(), *model.buffers(), *gradients, *batch.values()):
        counter.see(tensor)
    before = counter.now
    with counter:
        model(**batch).loss.backward()
    expected = counter.peak - before
    found = computed(activation_checkpointing=checkpointing).step
    assert found == pytest.approx(expected, rel=0.01 if not checkpointing else 0.1)


def test_what_stays_is_counted_by_parameters() -> None:
    model = LionForConditionalGeneration(tiny_config())
    report = apply_stage(model, "mixture")
    ddp = computed("ddp", 8)
    assert (ddp.weights, ddp.gradients) == (4 * report.total, 4 * report.trainable)
    assert (ddp.optimizer, ddp.communication) == (8 * report.trainable, 4 * report.trainable)
    fsdp2 = computed("fsdp2", 8)
    assert fsdp2.weights == pytest.approx(ddp.weights / 8, abs=1)
    assert fsdp2.optimizer == pytest.approx(ddp.optimizer / 8, abs=1)
    zero3 = computed("zero3", 8)
    assert zero3.weights == pytest.approx((2 * report.total + 4 * report.trainable) / 8, abs=1)
    assert fsdp2.total == sum((fsdp2.weights, fsdp2.gradients, fsdp2.optimizer, fsdp2.communication, fsdp2.step))


def test_fsdp2_gathers_the_two_largest_units_and_the_head() -> None:
    model = LionForConditionalGeneration(tiny_config())
    apply_stage(model, "mixture")
    pixels, layer, head = (
        sum(parameter.numel() for parameter in module.parameters())
        for module in (model.vision_model.embeddings, model.qformer.encoder.layer[0], model.language_model.lm_head)
    )
    assert computed("fsdp2", 8).communication == 4 * (pixels + layer + head) + (4 + 4) * layer


def test_a_step_grows_with_the_batch_and_shrinks_by_checkpointing() -> None:
    small, large = computed(batch_size=8).step, computed(batch_size=16).step
    assert large == pytest.approx(2 * small, rel=0.1)
    assert computed(batch_size=16, activation_checkpointing=True).step < 0.5 * large


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="'fsdp1'"):
        computed("fsdp1")
