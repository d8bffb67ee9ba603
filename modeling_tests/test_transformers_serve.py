"""What `transformers serve` needs of LION: classes that it finds, whole answers, tags, and no files of the server."""

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from transformers_lion import LionProcessor, example_checkpoint
from transformers_lion.example import sketch
from transformers_lion.registration import register
from transformers_lion.transformers_serve import ServedLion, ServedProcessor, check_addresses, register_served

QUESTION = "What color is the triangle?"


@pytest.fixture(scope="module")
def model() -> ServedLion:
    return ServedLion.from_pretrained(example_checkpoint()).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return ServedProcessor.from_pretrained(example_checkpoint())


class Streamer:
    def __init__(self) -> None:
        self.ids: list[int] = []

    def put(self, ids: torch.Tensor) -> None:
        self.ids += ids.flatten().tolist()

    def end(self) -> None:
        self.ids.append(-1)


def test_the_server_finds_the_classes_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "LionForConditionalGeneration", None, raising=False)
    monkeypatch.setitem(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "lion", "nobody")
    try:
        register_served()
        assert transformers.LionForConditionalGeneration is ServedLion
        assert MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["lion"] == "ServedLion"
        assert type(AutoProcessor.from_pretrained(example_checkpoint())) is ServedProcessor
    finally:
        register()
    assert type(AutoProcessor.from_pretrained(example_checkpoint())) is LionProcessor


def test_an_answer_is_whole_behind_as_many_tokens_as_the_prompt_has(model: ServedLion, processor: Any) -> None:
    inputs = processor(sketch(), QUESTION, return_tensors="pt")
    ids = model.generate(**inputs, generation_config=model.generation_config, tokenizer=processor)
    assert processor.decode(ids[0, inputs["input_ids"].shape[-1] :], skip_special_tokens=True) == "blue"


def test_an_answer_is_streamed_without_beams(model: ServedLion, processor: Any) -> None:
    inputs, streamer = processor(sketch(), QUESTION, return_tensors="pt"), Streamer()
    assert model.generation_config.num_beams > 1
    model.generate(**inputs, generation_config=model.generation_config, streamer=streamer)
    assert processor.decode(streamer.ids[:-1], skip_special_tokens=True) == "blue"
    assert streamer.ids[-1] == -1
    assert model.generation_config.num_beams > 1


def test_prompts_have_the_taggers_tags_or_their_own(processor: Any) -> None:
    plain = LionProcessor.from_pretrained(example_checkpoint())
    inputs = processor(sketch(), QUESTION)
    assert inputs["input_ids"] == plain(text=QUESTION, tags=processor.tagger(sketch()))["input_ids"]
    assert processor(sketch(), QUESTION, tag_source="none")["input_ids"] == plain(text=QUESTION)["input_ids"]
    assert processor(sketch(), QUESTION, tags="red")["input_ids"] == plain(text=QUESTION, tags="red")["input_ids"]


def test_a_question_without_an_image_is_refused(processor: Any) -> None:
    with pytest.raises(ValueError, match="the messages have none"):
        processor(text=QUESTION)


@pytest.mark.parametrize("address", ["/etc/hostname", "photo.png", "file:///etc/hostname", None])
def test_a_request_may_not_ask_for_a_file_of_the_server(address: str | None) -> None:
    with pytest.raises(ValueError, match="must begin with http://, https:// or data:"):
        check_addresses([{"role": "user", "content": [{"type": "image", "url": address}]}])
    check_addresses(
        [{"role": "user", "content": [{"type": "image", "url": "https://example.org/a.png"}]}, {"role": "x"}]
    )
