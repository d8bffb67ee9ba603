from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, pipeline

from examples.small_world.evaluation import evaluate
from examples.small_world.language import full_description
from examples.small_world.scenes import render, sample_scene
from transformers_lion import ImageTagger, LionForConditionalGeneration, example_checkpoint
from transformers_lion.example import TAGGER, example_image, sketch
from transformers_lion.grounding import box_iou, draw_boxes

SCENE = sample_scene("test", 3)
"""What `example_image` shows."""


def test_the_image_shows_the_scene() -> None:
    assert example_image().tobytes() == render(SCENE, 400).tobytes()


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipeline("image-to-text", model=example_checkpoint())


def test_the_example_is_small_and_loads_in_float32() -> None:
    files = [file for file in Path(example_checkpoint()).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    model = LionForConditionalGeneration.from_pretrained(example_checkpoint())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_tagger_knows_a_scene_that_no_training_saw() -> None:
    tagger = ImageTagger.from_pretrained(Path(example_checkpoint()) / TAGGER)
    assert tagger([example_image()]) == [SCENE.tags]


def test_the_pipeline_describes_a_scene_that_no_training_saw(pipe: Any) -> None:
    said = pipe(example_image())[0]["generated_text"]
    assert all(full_description(thing) in said for thing in SCENE.objects)
    assert said.endswith(f"on a {SCENE.background} background")


def test_the_pipeline_locates_in_an_image_drawn_otherwise(pipe: Any) -> None:
    image = sketch()
    for phrase, truth in (("the red circle", (0.08, 0.12, 0.42, 0.55)), ("the blue triangle", (0.52, 0.18, 0.9, 0.6))):
        answer = pipe(image, text=f"Where is {phrase}?", task_type="region_level")[0]["generated_text"]
        [(_, _, [box])] = pipe.processor.post_process_generation(answer)[1]
        assert box_iou(box, truth) > 0.6, phrase


def test_metrics_on_unseen_scenes_are_not_below_what_was_measured() -> None:
    model = LionForConditionalGeneration.from_pretrained(example_checkpoint()).eval()
    processor = AutoProcessor.from_pretrained(example_checkpoint())
    figures = evaluate(model, processor, "test", 40, seed=77)
    assert figures["rec"] >= 0.8
    assert figures["caption_f1"] >= 0.88
    assert figures["questions"] >= 0.86


def test_drawing_marks_the_box_and_leaves_the_image_alone() -> None:
    image = example_image().resize((100, 100))
    before = image.tobytes()
    drawn = draw_boxes(image, [("thing", (0, 5), [(10.0, 20.0, 60.0, 80.0)])])
    assert image.tobytes() == before
    assert drawn.size == image.size
    assert drawn.getpixel((10, 50)) == drawn.getpixel((60, 50)) == (230, 25, 75)
    assert drawn.getpixel((35, 50)) == image.getpixel((35, 50))


@pytest.mark.parametrize("size", [(24, 24), (2000, 300)])
def test_labels_stay_within_small_and_wide_images(size: tuple[int, int]) -> None:
    width, height = size
    image = sketch(*size)
    drawn = draw_boxes(image, [("a long phrase of many words", (0, 27), [(width - 9, 0, width - 1, height - 1)])])
    assert drawn.size == size
    assert drawn.tobytes() != image.tobytes()


def test_labels_must_be_as_many_as_entities() -> None:
    with pytest.raises(ValueError, match="1 labels for 2 entities"):
        draw_boxes(sketch(), [("a", (0, 1), []), ("b", (0, 1), [])], labels=["x"])
