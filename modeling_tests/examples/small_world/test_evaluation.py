from collections import Counter
from typing import Any

import numpy as np
import pytest

from examples.small_world.evaluation import (
    caption_attributes,
    evaluate,
    is_right,
    on_photograph,
    summarize,
)
from examples.small_world.language import Sample
from examples.small_world.scene_records import KINDS, SceneRecords, noisy_tags
from examples.small_world.scenes import TAGS, render, sample_scene
from transformers_lion import LionForConditionalGeneration, LionProcessor, example_checkpoint
from transformers_lion.grounding import box_iou


def test_iou_by_hand() -> None:
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert box_iou((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert box_iou((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)) == 0


def test_attributes_of_a_caption_by_hand() -> None:
    said = caption_attributes("a small red circle, a small red circle and a large blue star on a plain background")
    assert said == Counter({"small circle": 2, "red circle": 2, "large star": 1, "blue star": 1, "plain": 1})


def test_metrics_by_hand() -> None:
    truth = "a small red circle on a plain background"
    samples = [
        Sample("caption", "", truth),
        Sample("locate", "", "Answer: [0.000,0.000,0.500,0.500]", (0,)),
        Sample("locate", "", "Answer: [0.000,0.000,0.500,0.500]", (0,)),
        Sample("color", "", "red", (0,)),
        Sample("count", "", "2"),
    ]
    answers = ["a small blue circle on a plain background", "Answer: [0.0,0.0,0.5,0.4]", "no box", "red", "3"]
    figures = summarize(samples, answers)
    assert figures["caption_f1"] == pytest.approx(2 / 3)  # the size and the background of three
    assert figures["rec"] == 0.5
    assert figures["miou"] == pytest.approx(0.4)
    assert figures["questions"] == 0.5


def test_an_answer_without_a_box_is_wrong_and_no_error() -> None:
    sample = Sample("locate", "", "Answer: [0.000,0.000,0.500,0.500]", (0,))
    assert not is_right(sample, "Answer: [0.1,0.2")


def test_records_are_the_same_whenever_they_are_asked_for() -> None:
    data = SceneRecords("train", 5, KINDS["mixture"], 3)
    first, second = data[2], data[2]
    assert first["questions"] == second["questions"]
    assert first["tags"] == second["tags"]
    assert len(first["questions"]) == len(first["answers"]) == len(first["task_types"]) == 3
    assert first["image"].tobytes() == second["image"].tobytes()


def test_records_of_a_stage_have_its_task_alone() -> None:
    for stage in ("image_level", "region_level"):
        records = SceneRecords("train", 6, KINDS[stage])
        assert {task for record in (records[i] for i in range(6)) for task in record["task_types"]} == {stage}


def test_chatter_changes_questions_alone() -> None:
    plain, chatty = SceneRecords("train", 4), SceneRecords("train", 4, chatter_share=0.5)
    pairs = [pair for index in range(4) for pair in zip(*(r[index]["questions"] for r in (plain, chatty)), strict=True)]
    assert 8 < sum(first != second for first, second in pairs) < 24
    for index in range(4):
        for name in ("answers", "tags", "task_types"):
            assert plain[index][name] == chatty[index][name]


def test_photographs_take_the_place_of_backgrounds_alone() -> None:
    scene = sample_scene("test", 0)
    drawn = np.asarray(render(scene, 200), dtype=float)
    pasted = np.asarray(on_photograph(scene, 200, np.random.default_rng(0)), dtype=float)
    for thing in scene.objects:
        x, y = (int(200 * value) for value in thing.center)
        inside = np.abs(drawn - pasted)[y - 2 : y + 2, x - 2 : x + 2].mean()
        assert thing.shape in ("ring", "moon") or inside < 20, thing
    x1, y1, x2, y2 = (int(200 * value) for value in scene.objects[0].box)
    outside = np.abs(drawn - pasted)
    outside[y1:y2, x1:x2] = 0
    assert outside.mean() > 10


def test_a_model_is_asked_in_other_words_and_on_photographs() -> None:
    model = LionForConditionalGeneration.from_pretrained(example_checkpoint()).eval()
    processor = LionProcessor.from_pretrained(example_checkpoint())
    heard: list[str] = []

    class Listening:
        """A processor that notes what it is asked."""

        batch_decode = processor.batch_decode

        def __call__(self, **inputs: Any) -> Any:
            heard.extend(inputs.get("text", ()))
            return processor(**inputs)

    options = {"num_scenes": 3, "kinds": ("locate", "background", "color"), "seed": 4}
    plain = evaluate(model, Listening(), **options)
    usual = [*heard]
    heard.clear()
    evaluate(model, Listening(), rewordings=True, **options)
    assert len(heard) == len(usual)
    assert sum(first != second for first, second in zip(usual, heard, strict=True)) > len(usual) / 2
    photographed = evaluate(model, processor, photographs=True, **options)
    assert set(plain) - set(photographed) == {"background"}


def test_records_end() -> None:
    with pytest.raises(IndexError, match="Index 5 is out of range: there are 5 records"):
        SceneRecords("train", 5)[5]


def test_tags_without_noise_are_true_and_with_noise_some_are_not() -> None:
    generator = np.random.default_rng(0)
    scenes = [sample_scene("train", index) for index in range(60)]
    assert all(noisy_tags(generator, scene, 0.0) == scene.tags for scene in scenes)
    wrong = [tag for scene in scenes for tag in noisy_tags(generator, scene, 0.3) if tag not in scene.tags]
    assert 0.05 < len(wrong) / sum(len(scene.tags) for scene in scenes) < 0.35
    assert set(wrong) <= set(TAGS)
