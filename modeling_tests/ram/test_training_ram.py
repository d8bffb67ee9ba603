"""The asymmetric loss, and training with it."""

import math

import pytest
import torch
from transformers import Trainer, TrainingArguments

from ram.factories import tiny_pixels, tiny_ram
from transformers_lion.ram.modeling_ram import asymmetric_loss


def by_the_paper(logit: float, label: int, gamma_positive: float, gamma_negative: float, clip: float) -> float:
    """One tag's loss, straight from equations 4 to 6."""
    p = 1 / (1 + math.exp(-logit))
    if label:
        return -((1 - p) ** gamma_positive) * math.log(p)
    shifted = max(p - clip, 0)
    return -(shifted**gamma_negative) * math.log(1 - shifted)


@pytest.mark.parametrize(
    ("gamma_positive", "gamma_negative", "clip"), [(0, 7, 0.05), (1, 4, 0.05), (2, 2, 0), (0, 0, 0)]
)
def test_the_loss_is_the_papers(gamma_positive: float, gamma_negative: float, clip: float) -> None:
    logits = torch.tensor([-4.0, -1.0, 0.0, 0.5, 3.0] * 2)
    labels = torch.tensor([0] * 5 + [1] * 5)
    losses = asymmetric_loss(logits, labels, gamma_positive, gamma_negative, clip)
    pairs = zip(logits.tolist(), labels.tolist(), strict=True)
    expected = [by_the_paper(logit, label, gamma_positive, gamma_negative, clip) for logit, label in pairs]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_without_focus_and_clip_it_is_the_binary_cross_entropy() -> None:
    logits, labels = torch.randn(4, 5), torch.randint(0, 2, (4, 5)).float()
    reference = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(asymmetric_loss(logits, labels, 0, 0, 0), reference)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_tag_that_is_far_off_has_a_finite_loss_and_gradient(logit: float, label: float) -> None:
    logits = torch.tensor([logit], requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([label]), 0, 7, 0.05).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_the_configurations_exponents_are_the_losss() -> None:
    pixels, labels = tiny_pixels(), torch.tensor([[1, 0, 0, 0, 1]] * 3)
    losses = {gamma: tiny_ram(loss_gamma_negative=gamma)(pixels, labels=labels).loss.item() for gamma in (7.0, 1.0)}
    assert losses[1.0] > losses[7.0] + 1e-3


def test_unknown_labels_do_not_count() -> None:
    model, pixels = tiny_ram(), tiny_pixels(1)
    logits = model(pixels).logits
    loss = model.compute_loss(logits, torch.tensor([[1, 0, -100, -100, -100]]))
    each = asymmetric_loss(logits, torch.tensor([[1, 0, 0, 0, 0]]), 0, 7, 0.05)
    torch.testing.assert_close(loss, each[0, :2].sum() * 5 / 2)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_labels_of_another_shape_are_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 5\)"):
        tiny_ram()(tiny_pixels(), labels=torch.tensor([0, 1, 2]))


def test_accumulated_batches_add_up_to_the_whole() -> None:
    model, pixels = tiny_ram(), tiny_pixels(4)
    labels = torch.tensor([[1, 0, 0, 1, 0], [0, 1, -100, 0, 0], [0, 0, 0, 0, 1], [1, 1, -100, -100, 0]])
    count = (labels != -100).sum()
    parts = [model(pixels[rows], labels=labels[rows], num_items_in_batch=count).loss for rows in ([0], [1, 2, 3])]
    torch.testing.assert_close(sum(parts), model(pixels, labels=labels).loss)


def shapes_and_colours(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 32, 32) in which three tags are easy to see, and which they show."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count, 3), generator=generator)
    pixels = 0.1 * torch.randn(count, 3, 32, 32, generator=generator)
    pixels[:, 0] += 2.0 * labels[:, 0, None, None]  # red
    pixels[:, :, :, ::2] += 2.0 * labels[:, 1, None, None, None]  # striped
    pixels[:, 2, 8:24, 8:24] += 3.0 * labels[:, 2, None, None]  # a blue square
    return pixels, labels


def test_a_tiny_tagger_learns_three_tags() -> None:
    torch.manual_seed(0)
    names = ("red", "striped", "square")
    model = tiny_ram(names=names, thresholds=[0.5] * 3, loss_gamma_negative=2.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pixels, labels = shapes_and_colours(64, seed=0)
    losses = []
    for _ in range(150):
        loss = model(pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
    unseen, truth = shapes_and_colours(32, seed=1)
    with torch.no_grad():
        tags = model.eval().post_process_tagging(model(unseen))
    expected = [[name for name, here in zip(names, row, strict=True) if here] for row in truth.tolist()]
    right = sum([tag["label"] for tag in image] == wanted for image, wanted in zip(tags, expected, strict=True))
    assert right >= 30


def test_the_trainer_trains_it_and_reports_logits_alone(tmp_path: object) -> None:
    pytest.importorskip("accelerate")
    pixels, labels = shapes_and_colours(8, seed=0)
    data = [{"pixel_values": pixels[row], "labels": labels[row].float()} for row in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1, learning_rate=0.0,
    )  # fmt: skip
    model = tiny_ram(names=("red", "striped", "square"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    expected = model(pixels, labels=labels).loss.item()
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(logged) / len(logged) == pytest.approx(expected, rel=0.15)  # dropped paths differ
    assert trainer.predict(data).predictions.shape == (8, 3)
