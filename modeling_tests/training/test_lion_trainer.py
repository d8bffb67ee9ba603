"""What `LionTrainer` adds to the stock Trainer: label smoothing, lengths of records."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainer

from training.record_files import good_record, write_images, write_json
from transformers_lion import LionForConditionalGeneration, LionProcessor
from transformers_lion.training import (
    CollatorEpochCallback,
    LionDataCollator,
    apply_stage,
    load_records,
    make_trainer,
    train,
    training_arguments,
)
from transformers_lion.training.trainer import record_lengths

EPSILON = 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records whose answers have different lengths."""
    folder = tmp_path_factory.mktemp("records")
    write_images(folder, 4)
    answers = ["a", "a small cat on a mat", "no", "two dogs and one more"]
    write_json(folder / "a.json", [good_record(seed, answer=answer) for seed, answer in enumerate(answers)])
    return folder


@pytest.fixture
def model(lion_model: LionForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> LionForConditionalGeneration:
    """One that computes in training what it does in evaluation: it has no dropout."""
    model = copy.deepcopy(lion_model)
    apply_stage(model, "mixture")
    monkeypatch.setattr(model, "train", lambda mode=True: LionForConditionalGeneration.train(model, False))
    return model


def options(folder: Path, **more: Any) -> Any:
    return training_arguments(
        folder, bf16=False, use_cpu=True, disable_tqdm=True, learning_rate=0.0, weight_decay=0.0, max_steps=1,
        logging_steps=1, save_strategy="no", per_device_eval_batch_size=4, **more,
    )  # fmt: skip


@torch.no_grad()
def smoothed_by_hand(model: Any, processor: LionProcessor, folder: Path) -> float:
    """The loss of all records as one batch: (1 - e) * cross-entropy + e * mean over the vocabulary, per token."""
    batch = LionDataCollator(processor)(list(load_records(folder / "a.json")))
    log_probabilities = model.eval()(**batch).logits.double().log_softmax(-1)
    total, count = 0.0, 0
    for row, labels in zip(log_probabilities, batch["labels"].tolist(), strict=True):
        for position, label in enumerate(labels):
            if label != -100:
                total -= (1 - EPSILON) * row[position, label].item() + EPSILON * row[position].mean().item()
                count += 1
    return total / count


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("kind", ["make_trainer", "stock"])
def test_the_smoothed_loss_is_that_of_the_definition(
    kind: str,
    batch_size: int,
    accumulation: int,
    model: Any,
    lion_processor: LionProcessor,
    folder: Path,
    tmp_path: Path,
) -> None:
    records = load_records(folder / "a.json")
    arguments = options(
        tmp_path, label_smoothing_factor=EPSILON, per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation, eval_strategy="steps", eval_steps=1, generation_max_length=3,
    )  # fmt: skip
    if kind == "make_trainer":
        trainer: Seq2SeqTrainer = make_trainer(model, lion_processor, arguments, records, records)
        train(trainer)
    else:
        start = model.config.text_config.decoder_start_token_id
        collator = LionDataCollator(lion_processor, decoder_start_token_id=start)
        trainer = Seq2SeqTrainer(
            model, arguments, collator, records, records, processing_class=lion_processor,
            callbacks=[CollatorEpochCallback(collator)],
        )  # fmt: skip
        trainer.train()
    expected = smoothed_by_hand(model, lion_processor, folder)
    losses = {name: x[name] for x in trainer.state.log_history for name in ("loss", "eval_loss") if name in x}
    assert losses == pytest.approx({"loss": expected, "eval_loss": expected}, rel=1e-4)


def test_labels_are_shifted_by_the_model_as_by_the_collator(
    model: Any, lion_processor: LionProcessor, folder: Path
) -> None:
    batch = LionDataCollator(lion_processor, decoder_start_token_id=0)(list(load_records(folder / "a.json")))
    assert torch.equal(batch["decoder_input_ids"], model.prepare_decoder_input_ids_from_labels(batch["labels"]))
    assert (batch["decoder_input_ids"][:, 0] == 0).all()


def test_a_model_without_decoder_inputs_says_what_label_smoothing_needs(
    model: Any, lion_processor: LionProcessor, folder: Path, tmp_path: Path
) -> None:
    arguments = options(tmp_path, label_smoothing_factor=EPSILON)
    trainer = Seq2SeqTrainer(model, arguments, LionDataCollator(lion_processor), load_records(folder / "a.json"))
    with pytest.raises(ValueError, match=r"label_smoothing_factor, .* set decoder_start_token_id of LionDataCollator"):
        trainer.train()


# --- lengths ------------------------------------------------------------------------------------------------------


def test_the_length_of_a_record_is_that_of_its_texts(lion_processor: LionProcessor, tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    single = {"image": "a0.png", "question": "What?", "answer": "a cat"}
    several = {"image": "a0.png", "questions": ["What?", "What is it?"], "answers": ["a cat", "a"], "tags": ["x", "y"]}
    lengths = record_lengths(load_records([single, several], tmp_path), lion_processor)

    def count(text: str) -> int:
        return len(lion_processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    assert lengths == [count("What?") + count("a cat"), count("x, y") + count("What is it?") + count("a cat")]


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_records_are_grouped_by_length(
    strategy: str, model: Any, lion_processor: LionProcessor, folder: Path, tmp_path: Path
) -> None:
    records = load_records(folder / "a.json")
    arguments = options(
        tmp_path, train_sampling_strategy=strategy, per_device_train_batch_size=2, eval_strategy="steps", eval_steps=1,
        generation_max_length=3,
    )  # fmt: skip
    trainer = make_trainer(model, lion_processor, arguments, records, records)
    batches = [sorted(batch["labels"].shape[1:]) for batch in trainer.get_train_dataloader()]
    assert len(batches) == 2
    if strategy == "group_by_length":
        widths = sorted(batch["labels"].shape[1] for batch in trainer.get_train_dataloader())
        assert widths[0] < widths[1]  # the two short answers are in one batch
        orders = [list(sampler) for sampler in (trainer._get_train_sampler(), trainer._get_train_sampler())]
        assert orders[0] == orders[1]
    train(trainer)
    assert [x["eval_loss"] for x in trainer.state.log_history if "eval_loss" in x]
