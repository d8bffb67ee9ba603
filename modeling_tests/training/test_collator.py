"""Batches: what the processor makes of records, which images are in them once, and what becomes of bad records."""

import copy
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from ram.factories import tiny_tagger
from training.record_files import good_record, make_image, png, write_images, write_json
from transformers_lion import LionForConditionalGeneration, LionProcessor
from transformers_lion.training import (
    CollatorEpochCallback,
    ImageAugmentation,
    LionDataCollator,
    RecordError,
    RecordReport,
    load_records,
    mix_datasets,
)

ALWAYS = ImageAugmentation(scale=(0.5, 0.5), flip_probability=1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, and one that was cut off."""
    write_images(tmp_path, 4)
    (tmp_path / "cut.png").write_bytes(png()[:150])
    return tmp_path


def assert_same(batch: dict[str, torch.Tensor], expected: Any) -> None:
    assert set(batch) == set(expected)
    for name, tensor in batch.items():
        assert torch.equal(tensor, expected[name]), name


def several(*answers: str, **fields: Any) -> dict[str, Any]:
    """A record with as many questions as answers."""
    questions = [f"Question {index}?" for index in range(len(answers))]
    record = good_record(question=..., answer=..., category=..., **fields)
    return {**record, "questions": questions, "answers": list(answers)}


def half_image() -> Image.Image:
    """An image that is dark on the left and bright on the right."""
    array = np.zeros((40, 60, 3), dtype=np.uint8)
    array[:, 30:] = 255
    return Image.fromarray(array)


def test_a_batch_is_what_the_processor_makes_of_its_records(folder: Path, lion_processor: LionProcessor) -> None:
    records = [
        good_record(0, answer="a long answer of noise", tags=["dog", "grass"], category="ref"),
        good_record(1, tags=[]),
        good_record(2, answer=3),
    ]
    batch = LionDataCollator(lion_processor)(list(load_records(records, folder)))
    expected = lion_processor(
        images=[make_image(seed) for seed in range(3)],
        text=["What is a0?", "What is a1?", "What is a2?"],
        tags=[["dog", "grass"], [], None],
        task_type=["region_level", "image_level", "image_level"],
        text_target=["a long answer of noise", "Noise 1", "3"],
        return_tensors="pt",
    )
    assert_same(batch, expected)
    assert (batch["labels"][1:] == -100).any(dim=1).all()
    assert not (batch["labels"] == lion_processor.tokenizer.pad_token_id).any()
    assert next(iter(batch)) == "input_ids"  # the Trainer counts the rows of the first


def test_raw_records_make_the_same_batch(folder: Path, lion_processor: LionProcessor) -> None:
    records = [good_record(0, tags="dog, grass"), several("1", "2", image=png(1))]
    collator = LionDataCollator(lion_processor, image_folder=folder)
    assert_same(collator(records), collator(list(load_records(records, folder))))


def test_tags_may_be_left_out(folder: Path, lion_processor: LionProcessor) -> None:
    batch = LionDataCollator(lion_processor, tag_source="none", image_folder=folder)([good_record(tags=["dog"])])
    assert_same(batch, LionDataCollator(lion_processor, image_folder=folder)([good_record()]))


def test_tags_may_come_from_the_tagger(folder: Path, lion_processor: LionProcessor) -> None:
    seen: list[Image.Image] = []

    def tagger(images: list[Image.Image]) -> list[list[str]]:
        seen.extend(images)
        return [["dark" if image.getpixel((0, 0))[0] < 128 else "bright", f"{image.width} wide"] for image in images]

    left, right = half_image(), half_image().rotate(180)
    records = [several("1", "2", image=left, tags=["dog"]), good_record(1, image=right)]
    batch = LionDataCollator(lion_processor, tag_source="tagger", tagger=tagger, augmentation=ALWAYS)(records)
    tagged = [{**records[0], "tags": ["dark", "60 wide"]}, {**records[1], "tags": ["bright", "60 wide"]}]
    plain = LionDataCollator(lion_processor)
    assert torch.equal(batch["input_ids"], plain(tagged)["input_ids"])
    assert not torch.equal(batch["pixel_values"], plain(tagged)["pixel_values"])
    assert len(seen) == 2
    assert_same(LionDataCollator(lion_processor, tagger=tagger)(records), plain([records[0], tagged[1]]))
    assert len(seen) == 3
    assert_same(LionDataCollator(lion_processor, tag_source="data", tagger=tagger)(records), plain(records))
    assert len(seen) == 3


def test_an_image_is_tagged_once_in_all_epochs(lion_processor: LionProcessor) -> None:
    tagger = tiny_tagger()
    sizes: list[int] = []
    tagger.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    collator = LionDataCollator(lion_processor, tag_source="tagger", tagger=tagger, augmentation=ALWAYS)
    for epoch in range(3):
        collator.set_epoch(epoch)
        collator([good_record(0, image=make_image(0)), good_record(1, image=make_image(1))])
    assert sum(sizes) == 2


def test_a_missing_tagger_is_missed_at_once(lion_processor: LionProcessor) -> None:
    with pytest.raises(ValueError, match="there is no tagger"):
        LionDataCollator(lion_processor, tag_source="tagger")


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_a_worker_that_shares_no_memory_tags_too(start_method: str, lion_processor: LionProcessor) -> None:
    collator = LionDataCollator(lion_processor, tagger=tiny_tagger())
    records = [good_record(image=make_image(seed)) for seed in range(2)]
    (batch,) = DataLoader(
        records, 2, collate_fn=collator, num_workers=1, multiprocessing_context=start_method, timeout=300
    )
    assert_same(batch, collator(records))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"tag_source": "record"}, "tag_source is 'record', but must be one of 'data'"),
        ({"on_error": "stop"}, "on_error is 'stop'"),
    ],
)
def test_an_unknown_option_is_refused(option: dict[str, Any], words: str, lion_processor: LionProcessor) -> None:
    with pytest.raises(ValueError, match=words):
        LionDataCollator(lion_processor, **option)


def test_an_image_with_several_questions_is_in_the_batch_once(folder: Path, lion_processor: LionProcessor) -> None:
    records = [
        several("1", "2", image="a0.png", categories=["ref", "vqa"], tags=["dog"]),
        good_record(1),
        several("3", "4", image="a2.png"),
    ]
    batch = LionDataCollator(lion_processor, image_folder=folder)(records)
    assert batch["image_indices"].tolist() == [0, 0, 1, 2, 2]
    assert batch["image_indices"].dtype == torch.int64
    expected = lion_processor(
        images=[make_image(index) for index in (0, 0, 1, 2, 2)],
        text=["Question 0?", "Question 1?", "What is a1?", "Question 0?", "Question 1?"],
        tags=[["dog"], ["dog"], None, None, None],
        task_type=["region_level", *["image_level"] * 4],
        text_target=["1", "2", "Noise 1", "3", "4"],
        return_tensors="pt",
    )
    indices = batch.pop("image_indices")
    assert batch["pixel_values"].shape[0] == 3
    assert_same({**batch, "pixel_values": batch["pixel_values"][indices]}, expected)


def test_the_model_takes_an_image_once_for_several_questions(
    folder: Path, lion_processor: LionProcessor, lion_model: LionForConditionalGeneration
) -> None:
    batch = LionDataCollator(lion_processor, image_folder=folder)([several("1", "2"), good_record(1)])
    repeated = {**batch, "pixel_values": batch["pixel_values"][batch["image_indices"]]}
    del repeated["image_indices"]
    with torch.no_grad():
        once, each = lion_model(**batch), lion_model(**repeated)
    assert torch.allclose(once.logits, each.logits, atol=1e-5)
    assert torch.allclose(once.loss, each.loss)


def test_records_of_the_same_image_may_share_it(folder: Path, lion_processor: LionProcessor) -> None:
    embedded = png(2)
    records = [
        good_record(0), good_record(1), {**good_record(0), "question": "Else?"},
        good_record(2, image=embedded), good_record(3, image=png(2)),
    ]  # fmt: skip
    plain = LionDataCollator(lion_processor, image_folder=folder)(records)
    shared = LionDataCollator(lion_processor, image_folder=folder, share_images=True)(records)
    assert "image_indices" not in plain
    indices = shared.pop("image_indices")
    assert indices.tolist() == [0, 1, 0, 2, 2]
    assert_same({**shared, "pixel_values": shared["pixel_values"][indices]}, plain)


def test_a_shared_image_is_opened_once(
    folder: Path, lion_processor: LionProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *rest: opened.append(str(file)) or original(file, *rest))
    LionDataCollator(lion_processor, image_folder=folder, share_images=True)([good_record(0)] * 3)
    assert len(opened) == 1


BAD_RECORDS: dict[str, tuple[Any, str]] = {
    "missing": (good_record(1, image="none.png"), "missing file"),
    "folder": (good_record(1, image="."), "missing file"),
    "truncated": (good_record(1, image="cut.png"), "unreadable image"),
    "truncated bytes": (good_record(1, image={"bytes": png()[:150], "path": None}), "unreadable image"),
    "no answer": (good_record(1, answer=None), "no answer"),
    "no object": (None, "no object"),
}


@pytest.mark.parametrize("share_images", [False, True])
@pytest.mark.parametrize(("bad", "kind"), BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_a_batch_with_bad_records_is_made_of_the_others(
    bad: Any, kind: str, share_images: bool, folder: Path, lion_processor: LionProcessor,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    report = RecordReport()
    collator = LionDataCollator(
        lion_processor, image_folder=folder, on_error="skip", report=report, share_images=share_images
    )
    good = [good_record(0), good_record(2)]
    with caplog.at_level(logging.WARNING):
        batch = collator([good[0], bad, good[1]])
    assert_same(batch, collator(good))
    assert report.counts == {kind: 1}
    assert f"Left out of a batch: {report.faults[0]}" in caplog.text


@pytest.mark.parametrize(("bad", "kind"), BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_a_bad_record_stops_the_collator_by_default(
    bad: Any, kind: str, folder: Path, lion_processor: LionProcessor
) -> None:
    collator = LionDataCollator(lion_processor, image_folder=folder)
    with pytest.raises(RecordError) as caught:
        collator([good_record(0), bad])
    assert caught.value.kind == kind
    assert collator.report.counts == {kind: 1}


@pytest.mark.parametrize("share_images", [False, True])
def test_a_batch_without_good_records_says_so_and_names_them(
    share_images: bool, folder: Path, lion_processor: LionProcessor
) -> None:
    file = write_json(folder / "train.jsonl", [good_record(0, image="cut.png"), good_record(1, image="cut.png")])
    rows = list(load_records(file))
    collator = LionDataCollator(lion_processor, on_error="skip", share_images=share_images)
    with pytest.raises(ValueError, match=r"None of the 2 records of a batch can be used") as caught:
        collator(rows)
    assert f"{file}:1: " in str(caught.value)
    assert f"{file}:2: " in str(caught.value)
    assert 'check_images="decode"' in str(caught.value)
    assert [fault.source for fault in collator.report.faults] == [f"{file}:1", f"{file}:2"]
    with pytest.raises(ValueError, match="None of the 0 records"):
        collator([])


def test_what_workers_leave_out_is_in_the_report(folder: Path, lion_processor: LionProcessor) -> None:
    rows = load_records([good_record(seed) for seed in range(4)], folder)
    (folder / "a2.png").write_bytes(png(2)[:150])
    report = RecordReport()
    collator = LionDataCollator(lion_processor, on_error="skip", report=report)
    sizes = [len(batch["input_ids"]) for batch in DataLoader(rows, 2, collate_fn=collator, num_workers=2)]
    assert sizes == [2, 1]
    assert [fault.source for fault in report.faults] == ["records[2]"]


def test_an_error_in_a_worker_names_the_record(folder: Path, lion_processor: LionProcessor) -> None:
    rows = load_records([good_record(0, image="cut.png")], folder)
    loader = DataLoader(rows, 2, collate_fn=LionDataCollator(lion_processor), num_workers=1)
    with pytest.raises(RecordError, match=r"records\[0\]: .*cut.png"):
        list(loader)


def pixels(processor: LionProcessor, record: Any, epoch: int = 0, **augmentation: Any) -> torch.Tensor:
    """What the model sees of a record."""
    settings = {"scale": (0.5, 0.5), "flip_probability": 1.0, **augmentation}
    collator = LionDataCollator(processor, augmentation=ImageAugmentation(**settings))
    collator.set_epoch(epoch)
    return collator([record])["pixel_values"]


def test_images_are_not_changed_unless_that_is_wished(lion_processor: LionProcessor) -> None:
    record = good_record(image=make_image(1))
    plain = LionDataCollator(lion_processor)([record])["pixel_values"]
    assert torch.equal(plain, lion_processor(images=[make_image(1)], return_tensors="pt")["pixel_values"])
    assert not torch.equal(pixels(lion_processor, record), plain)


@pytest.mark.parametrize(
    "record",
    [
        good_record(category="ref"),
        good_record(answer="It is at [0.1,0.2,0.3,0.4]."),
        good_record(question="What is at [0.1,0.2,0.3,0.4]?"),
        {**several("1", "2"), "categories": ["vqa", "ref"]},
    ],
    ids=["region level", "box in the answer", "box in the question", "one of two questions"],
)
def test_an_image_with_boxes_is_never_changed(record: dict[str, Any], lion_processor: LionProcessor) -> None:
    record["image"] = make_image(1)
    plain = LionDataCollator(lion_processor)([record])["pixel_values"]
    assert torch.equal(pixels(lion_processor, record), plain)


def test_an_image_that_a_region_level_record_shares_is_never_changed(
    folder: Path, lion_processor: LionProcessor
) -> None:
    records = [good_record(0), good_record(0, category="ref")]
    arguments: dict[str, Any] = {"share_images": True, "image_folder": folder}
    changed = LionDataCollator(lion_processor, augmentation=ALWAYS, **arguments)(records)
    assert_same(changed, LionDataCollator(lion_processor, **arguments)(records))


@pytest.mark.parametrize(
    "fields",
    [
        {"answer": "The one on the LEFT."}, {"question": "Which is rightmost?"}, {"tags": ["left hand"]},
        {"answer": "counterclockwise"},
    ],
)  # fmt: skip
def test_an_image_with_sides_in_its_words_is_cropped_but_not_mirrored(
    fields: dict[str, Any], lion_processor: LionProcessor
) -> None:
    record = {**good_record(image=half_image()), **fields}
    seen = pixels(lion_processor, record, scale=(0.9, 0.9))[0, 0]
    assert seen[:, 0].mean() < seen[:, -1].mean()
    assert torch.equal(pixels(lion_processor, record), pixels(lion_processor, record, flip_probability=0.0))


@pytest.mark.parametrize("answer", ["A bright day.", "The cleft chin."])
def test_other_images_are_mirrored(answer: str, lion_processor: LionProcessor) -> None:
    seen = pixels(lion_processor, good_record(image=half_image(), answer=answer), scale=(0.9, 0.9))[0, 0]
    assert seen[:, 0].mean() > seen[:, -1].mean()


def test_crops_keep_to_their_bounds() -> None:
    augmentation = ImageAugmentation()
    ratios, areas = [], []
    for seed in range(300):
        left, top, right, bottom = augmentation.crop_box((640, 480), random.Random(seed))
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 480
        areas.append((right - left) * (bottom - top) / (640 * 480))
        ratios.append((right - left) / (bottom - top))
    assert 0.495 < min(areas) < 0.55
    assert 0.9 < max(areas) <= 1
    assert 0.74 < min(ratios) < max(ratios) < 1.345
    assert augmentation.crop_box((1, 1000), random.Random(0)) == (0, 0, 1, 1000)
    assert augmentation.crop_box((1, 1), random.Random(0)) == (0, 0, 1, 1)


def test_a_change_follows_from_seed_epoch_and_record_alone(folder: Path, lion_processor: LionProcessor) -> None:
    rows = list(load_records([good_record(seed) for seed in range(2)], folder))
    first = pixels(lion_processor, rows[0])
    both = LionDataCollator(lion_processor, augmentation=ALWAYS)(rows[::-1])["pixel_values"]
    assert torch.equal(first[0], both[1])
    assert not torch.equal(first, pixels(lion_processor, rows[0], epoch=1))
    assert not torch.equal(first, pixels(lion_processor, rows[0], seed=1))
    assert torch.equal(pixels(lion_processor, rows[0], epoch=1), pixels(lion_processor, rows[0], epoch=1))


def test_unnamed_images_are_told_apart_by_their_pixels(lion_processor: LionProcessor) -> None:
    record = good_record(image=make_image(1, 60, 40))
    twin = good_record(image=make_image(1, 60, 40))
    assert torch.equal(pixels(lion_processor, record), pixels(lion_processor, twin))


def test_workers_see_the_epoch_change(folder: Path, lion_processor: LionProcessor) -> None:
    rows = load_records([good_record(0), good_record(1)], folder)
    collator = LionDataCollator(lion_processor, augmentation=ALWAYS)
    loader = DataLoader(rows, 2, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 0):
        collator.set_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["pixel_values"], collator(list(rows))["pixel_values"])
        assert collator.epoch == epoch


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scale": (0.0, 1.0)}, "scale"), ({"scale": (0.8, 0.5)}, "scale"), ({"scale": (0.5, 1.5)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"), ({"flip_probability": 1.5}, "flip_probability"),
    ],
)  # fmt: skip
def test_an_impossible_augmentation_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ImageAugmentation(**fields)


def arguments(folder: Path, **fields: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder / "out"), use_cpu=True, report_to=[], disable_tqdm=True, remove_unused_columns=False,
        logging_steps=1, learning_rate=1e-3, **{"save_strategy": "no", "per_device_train_batch_size": 4, **fields},
    )  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
def test_the_trainer_takes_a_mixture_of_both_tasks(
    streaming: bool, folder: Path, lion_processor: LionProcessor, lion_model: LionForConditionalGeneration
) -> None:
    regions = [good_record(seed, category="ref", answer="[0.1,0.2,0.3,0.4]") for seed in range(3)]
    captions = [several("1", "2", image="a3.png", tags=["dog"]), good_record(1, image="cut.png"), good_record(2)]
    sources = [
        load_records(write_json(folder / f"{name}.jsonl", records), streaming=streaming)
        for name, records in (("regions", regions), ("captions", captions))
    ]
    collator = LionDataCollator(lion_processor, on_error="skip", share_images=True)
    batches: list[dict[str, torch.Tensor]] = []
    model: Any = copy.deepcopy(lion_model)
    model.register_forward_pre_hook(lambda module, args, kwargs: batches.append(kwargs), with_kwargs=True)
    trainer = Trainer(
        model, arguments(folder, max_steps=2), data_collator=collator, train_dataset=mix_datasets(sources, [1, 1])
    )
    trainer.train()
    tasks = torch.cat([batch["task_type_ids"] for batch in batches])
    assert set(tasks.tolist()) == {0, 1}
    assert any("image_indices" in batch for batch in batches)
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    before = lion_model.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert collator.report.counts.keys() <= {"unreadable image"}


def test_the_trainers_loss_is_the_models_on_the_collated_batch(
    folder: Path, lion_processor: LionProcessor, lion_model: LionForConditionalGeneration
) -> None:
    rows = load_records([several("1", "a longer answer"), good_record(1, category="ref")], folder)
    collator = LionDataCollator(lion_processor)
    with torch.no_grad():
        expected = lion_model(**collator(list(rows))).loss.item()
    trainer = Trainer(copy.deepcopy(lion_model), arguments(folder), data_collator=collator, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_callback_counts_epochs_also_after_a_resumed_training(
    folder: Path, lion_processor: LionProcessor, lion_model: LionForConditionalGeneration
) -> None:
    rows = load_records([good_record(0)], folder)

    def epochs(num_train_epochs: int, resume: bool) -> list[int]:
        seen: list[int] = []

        class Recorder(LionDataCollator):
            def __call__(self, records: Any) -> Any:
                seen.append(self.epoch)
                return super().__call__(records)

        collator = Recorder(lion_processor)
        settings = arguments(folder, num_train_epochs=num_train_epochs, save_strategy="epoch", optim="sgd")
        callbacks: list[Any] = [CollatorEpochCallback(collator)]
        model = copy.deepcopy(lion_model)
        trainer = Trainer(model, settings, data_collator=collator, train_dataset=rows, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return seen

    assert epochs(2, resume=False) == [0, 1]
    assert epochs(4, resume=True) == [2, 3]
