import copy
import inspect
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from transformers import (
    BlipImageProcessorPil,
    GenerationConfig,
    ImageTextToTextPipeline,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    Pipeline,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from transformers_lion import LionImageToTextPipeline, example_checkpoint, register
from transformers_lion.example import sketch
from transformers_lion.pipeline_registration import LionOrStockPipeline

TASKS = ("image-to-text", "image-text-to-text")
REWRITES = hasattr(__import__("transformers.pipelines", fromlist=["x"]), "_resolve_deprecated_task")
IMAGES = [
    Image.fromarray(np.random.RandomState(seed).randint(0, 255, (40, 30, 3), dtype=np.uint8)) for seed in range(3)
]
QUESTIONS = ["Is there a dog in the image?", "Where is the red cat?", "a"]
SHORT = {"max_new_tokens": 8}


@pytest.fixture(scope="module", params=TASKS)
def pipe(request: pytest.FixtureRequest, lion_folder: Path) -> Pipeline:
    return pipeline(request.param, model=str(lion_folder))


def answer(pipe: Pipeline, index: int, text: str | None = None, **options: Any) -> list[dict[str, str]]:
    """What the model itself answers, without the pipeline."""
    inputs = pipe.processor(IMAGES[index], text or pipe.processor.caption_prompt, return_tensors="pt", **options)
    ids = pipe.model.generate(**inputs, **SHORT)
    return [{"generated_text": text} for text in pipe.processor.batch_decode(ids, skip_special_tokens=True)]


def test_both_names_make_lions_pipeline(pipe: Pipeline) -> None:
    assert type(pipe) is LionImageToTextPipeline


def test_an_image_alone_is_captioned(pipe: Pipeline, tmp_path: Path) -> None:
    expected = answer(pipe, 0)
    IMAGES[0].save(tmp_path / "a.png")
    assert pipe(IMAGES[0], **SHORT) == expected
    for image in (str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(IMAGES[0]), {"image": IMAGES[0]}):
        assert pipe(image, **SHORT) == expected


def test_a_question_tags_and_a_task_reach_the_model(pipe: Pipeline) -> None:
    options = {"tags": "dog, cat", "task_type": "region_level"}
    assert pipe(IMAGES[0], text=QUESTIONS[0], **options, **SHORT) == answer(pipe, 0, QUESTIONS[0], **options)
    assert pipe(IMAGES[0], text=QUESTIONS[0], **SHORT) != pipe(IMAGES[0], text=QUESTIONS[0], **options, **SHORT)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_list_gives_each_image_its_own_answer(pipe: Pipeline, batch_size: int) -> None:
    tags, tasks = ["dog", ["cat", "red"], None], ["region_level", "image_level", "region_level"]
    expected = [answer(pipe, index, QUESTIONS[index], tags=tags[index], task_type=tasks[index]) for index in range(3)]
    assert pipe(IMAGES, text=QUESTIONS, tags=tags, task_type=tasks, batch_size=batch_size, **SHORT) == expected
    assert pipe(IMAGES, batch_size=batch_size, **SHORT) == [answer(pipe, index) for index in range(3)]


def test_several_sequences_stay_beside_their_image(pipe: Pipeline) -> None:
    options = {"num_beams": 4, "num_return_sequences": 2, **SHORT}
    alone = [pipe(image, **options) for image in IMAGES]
    assert [len(answers) for answers in alone] == [2, 2, 2]
    assert pipe(IMAGES, batch_size=2, **options) == alone
    assert pipe(IMAGES, batch_size=2, generate_kwargs=options) == alone


class ImageDataset(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": IMAGES[index], "text": QUESTIONS[index], "id": index}


def test_generators_and_data_sets_are_read_item_by_item(pipe: Pipeline) -> None:
    seen: list[int] = []

    def generate_images() -> Iterator[Image.Image]:
        for index, image in enumerate(IMAGES):
            seen.append(index)
            yield image

    results = pipe(generate_images(), text=QUESTIONS[0], **SHORT)
    assert next(iter(results)) == answer(pipe, 0, QUESTIONS[0])
    assert len(seen) < 3
    expected = [answer(pipe, index, QUESTIONS[index]) for index in range(3)]
    assert list(pipe(ImageDataset(), batch_size=2, **SHORT)) == expected


def test_rows_of_a_datasets_data_set_are_read(pipe: Pipeline) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": IMAGES, "text": QUESTIONS}).cast_column("image", datasets.Image())
    assert list(pipe(rows, **SHORT)) == [answer(pipe, index, QUESTIONS[index]) for index in range(3)]


def messages(index: int) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": IMAGES[index]}, {"type": "text", "text": QUESTIONS[index]}]
    return [{"role": "user", "content": parts}]


def test_messages_are_answered(pipe: Pipeline) -> None:
    assert pipe(text=messages(0), **SHORT) == answer(pipe, 0, QUESTIONS[0])
    assert pipe(messages(0), **SHORT) == answer(pipe, 0, QUESTIONS[0])
    expected = [answer(pipe, index, QUESTIONS[index]) for index in (0, 1)]
    assert pipe(text=[messages(0), messages(1)], **SHORT) == expected


def test_the_question_is_returned_only_on_request(pipe: Pipeline) -> None:
    text = answer(pipe, 0, QUESTIONS[0])[0]["generated_text"]
    full = pipe(IMAGES[0], text=QUESTIONS[0], return_full_text=True, **SHORT)
    assert full == [{"generated_text": f"{QUESTIONS[0]} {text}"}]
    ids = pipe(IMAGES[0], text=QUESTIONS[0], return_tensors=True, **SHORT)[0]["generated_token_ids"]
    assert pipe.processor.decode(ids, skip_special_tokens=True) == text


def test_options_given_at_creation_are_the_calls_defaults(lion_folder: Path) -> None:
    pipe = pipeline(
        "image-to-text",
        model=str(lion_folder),
        text=QUESTIONS[0],
        task_type="region_level",
        num_beams=2,
        dtype="bfloat16",
    )
    assert pipe.model.dtype == torch.bfloat16
    given = pipe(IMAGES[0], text=QUESTIONS[0], task_type="region_level", num_beams=2, **SHORT)
    assert pipe(IMAGES[0], **SHORT) == given


def test_several_questions_about_one_image_get_an_answer_each(pipe: Pipeline) -> None:
    expected = [answer(pipe, 0, QUESTIONS[0]), answer(pipe, 0, QUESTIONS[1])]
    assert pipe(IMAGES[0], text=QUESTIONS[:2], batch_size=2, **SHORT) == expected


def test_missing_columns_count_as_not_given(pipe: Pipeline) -> None:
    item = {"image": IMAGES[0], "text": None, "tags": None, "task_type": None}
    assert pipe(item, **SHORT) == answer(pipe, 0)


@pytest.mark.parametrize("name", ["text", "question", "prompt"])
def test_a_question_has_several_names(pipe: Pipeline, name: str) -> None:
    expected = answer(pipe, 0, QUESTIONS[0])
    assert pipe({"image": IMAGES[0], name: QUESTIONS[0]}, **SHORT) == expected
    assert pipe(IMAGES[0], **{name: QUESTIONS[0]}, **SHORT) == expected
    assert pipe(IMAGES[:1], **{name: QUESTIONS[:1]}, **SHORT) == [expected]


def test_columns_of_tables_are_lists(pipe: Pipeline) -> None:
    tags = pandas.Series([["dog"], np.nan, "cat"])
    expected = pipe(IMAGES, text=QUESTIONS, tags=[["dog"], None, "cat"], **SHORT)
    assert pipe(IMAGES, text=np.array(QUESTIONS), tags=tags, **SHORT) == expected
    assert pipe(IMAGES, text=pandas.Series(QUESTIONS, index=[2, 1, 0]), tags=tags, **SHORT) == expected
    assert list(pipe(iter(IMAGES), text=(text for text in QUESTIONS), tags=tags, batch_size=2, **SHORT)) == expected


@pytest.mark.parametrize(("count", "words"), [(2, "3 entries, but there are 2 images"), (4, "at least 4 images")])
def test_a_generator_with_another_number_of_questions_is_refused(pipe: Pipeline, count: int, words: str) -> None:
    results = pipe((IMAGES[0] for _ in range(count)), text=QUESTIONS, **SHORT)
    with pytest.raises(ValueError, match=words):
        list(results)


def test_conversations_have_tags_of_their_own(pipe: Pipeline) -> None:
    results = pipe([messages(0), messages(1)], tags=[["dog"], None], return_tags=True, **SHORT)
    assert [result[0]["tags"] for result in results] == [["dog"], None]


def test_messages_without_a_question_ask_for_a_caption(pipe: Pipeline) -> None:
    alone = [{"role": "user", "content": [{"type": "image", "image": IMAGES[0]}]}]
    assert pipe(alone, **SHORT) == answer(pipe, 0)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_number_of_sequences_may_stand_in_a_generation_config(pipe: Pipeline, batch_size: int) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, **SHORT}
    expected = pipe(IMAGES, batch_size=batch_size, **options)
    assert pipe(IMAGES, batch_size=batch_size, generation_config=GenerationConfig(**options)) == expected


def test_a_maximal_length_counts_above_the_checkpoints_own_limit(pipe: Pipeline) -> None:
    expected = pipe(IMAGES[0], max_new_tokens=3)
    assert pipe(IMAGES[0], max_length=4) == expected != pipe(IMAGES[0], **SHORT)
    assert pipe(IMAGES[0], generate_kwargs={"max_length": 4}) == expected
    config = GenerationConfig(max_length=4)
    assert pipe(IMAGES[0], generation_config=config) == expected
    assert config.max_new_tokens is None


def test_images_may_come_in_lists_of_one_and_in_arrays(pipe: Pipeline) -> None:
    expected = [answer(pipe, 0), answer(pipe, 1)]
    assert pipe([[IMAGES[0]], [IMAGES[1]]], **SHORT) == expected
    assert pipe({"images": [IMAGES[0]]}, **SHORT) == expected[0]
    assert pipe(np.stack([np.asarray(IMAGES[0]), np.asarray(IMAGES[1])]), **SHORT) == expected


def test_messages_may_come_from_a_generator(pipe: Pipeline) -> None:
    conversations = (messages(index) for index in (0, 1))
    assert list(pipe(conversations, **SHORT)) == [answer(pipe, index, QUESTIONS[index]) for index in (0, 1)]


def test_generate_may_return_its_own_output_class(pipe: Pipeline) -> None:
    assert pipe(IMAGES[0], generate_kwargs={"return_dict_in_generate": True, **SHORT}) == answer(pipe, 0)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ([{"images": IMAGES[:2]}], {}, "2 images, but LION accepts one"),
        ([], {}, "requires an image"),
        ([[]], {}, "empty"),
        ([IMAGES], {"text": QUESTIONS[:2]}, "text has 2 entries for 3 samples"),
        ([IMAGES], {"tags": ["dog"]}, "tags has 1 entries for 3 samples"),
        ([{"picture": IMAGES[0]}], {}, "Unknown keys 'picture' in an input"),
        ([{"text": "a"}], {}, "no image\\. Its keys are text"),
        ([{"image": IMAGES[0], "hint": "a"}], {}, "Unknown keys 'hint'"),
        ([{"image": IMAGES[0], "text": "a", "question": "b"}], {}, "only one of text and question"),
        ([IMAGES[0]], {"text": "a", "prompt": "b"}, "only one of text and prompt"),
        ([{"image": IMAGES[0], "text": float("nan")}], {}, "text is nan"),
        ([IMAGES], {"text": ["a", None, "b"]}, "a missing value at position 1"),
        ([IMAGES], {"text": pandas.Series(["a", np.nan, "b"])}, "a missing value at position 1"),
        ([[{"role": "user", "content": [{"type": "video", "video": "a"}]}]], {}, "text and image, not .*video"),
        ([IMAGES[0]], {"task_type": "pixel_level"}, "'pixel_level'"),
        ([IMAGES[0]], {"num_beams": 2, "generate_kwargs": {"num_beams": 3}}, "num_beams is passed twice"),
        ([[{"role": "user", "content": [{"type": "text", "text": "a"}]}]], {}, "0 images, but LION accepts one"),
        ([messages(0)], {"text": "a"}, "either messages or images"),
        (["missing.png"], {}, "missing.png"),
    ],
)
def test_input_that_does_not_fit_is_refused(
    pipe: Pipeline, arguments: list[Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pipe(*arguments, **options)


def test_a_pipeline_with_a_tagger_can_be_copied_and_pickled() -> None:
    pipe = pipeline("image-to-text", model=example_checkpoint())
    expected = pipe(sketch(), return_tags=True, **SHORT)
    assert expected[0]["tags"]
    for copied in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert copied(sketch(), return_tags=True, **SHORT) == expected


def test_a_saved_pipeline_can_be_loaded(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = pipeline("image-to-text", model=str(tmp_path))
    assert loaded(IMAGES[0], **SHORT) == pipe(IMAGES[0], **SHORT)


# --- registration -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, lion_processor: Any) -> str:
    """A model that is not LION and answers the stock pipeline: a small InstructBLIP."""
    folder = tmp_path_factory.mktemp("instructblip")
    torch.manual_seed(0)
    tokenizer, image = lion_processor.tokenizer, {"height": 28, "width": 28}
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    processor = InstructBlipProcessor(
        BlipImageProcessorPil(size=image), tokenizer, lion_processor.qformer_tokenizer, num_query_tokens=3
    )
    config = InstructBlipConfig(
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 28},
        qformer_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                        "vocab_size": 300},
        text_config={"model_type": "t5", "vocab_size": 512, "d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1,
                     "num_heads": 2, "decoder_start_token_id": 0},
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = InstructBlipForConditionalGeneration(config)
    model.resize_token_embeddings(max(512, len(tokenizer)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_other_models_get_exactly_the_stock_pipeline(other_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pipeline("image-text-to-text", model=other_model)
    assert type(ours) is ImageTextToTextPipeline
    entry = {**PIPELINE_REGISTRY.supported_tasks["image-text-to-text"], "impl": ImageTextToTextPipeline}
    monkeypatch.setitem(PIPELINE_REGISTRY.supported_tasks, "image-text-to-text", entry)
    stock = pipeline("image-text-to-text", model=other_model)
    assert vars(ours).keys() == vars(stock).keys()
    assert ours.task == stock.task
    for options in ({"text": "a dog"}, {"text": "a dog", "return_full_text": False}):
        assert ours(IMAGES[0], **options, **SHORT) == stock(IMAGES[0], **options, **SHORT)
    with pytest.raises(ValueError, match="must provide text"):
        ours(IMAGES[0])


def test_other_models_get_the_old_name_as_transformers_has_it(other_model: str) -> None:
    if REWRITES:
        assert type(pipeline("image-to-text", model=other_model)) is ImageTextToTextPipeline
    else:
        with pytest.raises(KeyError, match="Unknown task image-to-text"):
            pipeline("image-to-text", model=other_model)


class Foreign(ImageTextToTextPipeline):
    """A pipeline of somebody else's."""


def test_subclasses_and_pipelines_of_others_are_their_own(other_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = "image-text-to-text"
    assert type(pipeline(task, model=other_model, pipeline_class=Foreign)) is Foreign
    stock = pipeline(task, model=other_model)
    assert type(Foreign(model=stock.model, processor=stock.processor)) is Foreign
    monkeypatch.setattr(LionOrStockPipeline, "stock", ImageTextToTextPipeline)
    monkeypatch.setitem(
        PIPELINE_REGISTRY.supported_tasks, task, {**PIPELINE_REGISTRY.supported_tasks[task], "impl": Foreign}
    )
    register()
    assert type(pipeline(task, model=other_model)) is Foreign


def test_transformers_own_classes_are_as_it_defines_them() -> None:
    for kind in ImageTextToTextPipeline.__mro__[:-1]:
        own = [inspect.unwrap(value) for value in vars(kind).values()]
        assert not [value for value in own if "transformers_lion" in str(getattr(value, "__module__", ""))], kind
    assert "__new__" not in vars(ImageTextToTextPipeline)
    assert inspect.unwrap(pipeline).__module__ == "transformers.pipelines"


def test_only_one_entry_of_the_registry_changes_and_registering_again_changes_nothing() -> None:
    before = dict(PIPELINE_REGISTRY.supported_tasks)
    filters = list(logging.getLogger("transformers.pipelines").filters)
    register()
    assert PIPELINE_REGISTRY.supported_tasks == before
    assert logging.getLogger("transformers.pipelines").filters == filters
    changed = [task for task, entry in before.items() if entry["impl"] is LionOrStockPipeline]
    assert sorted(changed) == sorted(TASKS)


@pytest.mark.slow
def test_the_literal_call_prints_no_traceback(lion_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import subprocess
    import sys

    program = "import sys, transformers_lion; from transformers import pipeline; pipeline('image-to-text', sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", program, str(lion_folder)], capture_output=True, text=True, check=True
    )
    assert "Traceback" not in result.stderr
    assert "Logging error" not in result.stderr
    assert ("has been replaced" in result.stderr) == REWRITES
