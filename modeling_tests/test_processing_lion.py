from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from transformers_lion import LionProcessor, example_checkpoint
from transformers_lion.processing_lion import CHAT_TEMPLATE

IMAGE = Image.fromarray(np.random.RandomState(0).randint(0, 255, (40, 60, 3), dtype=np.uint8))
QUESTION = "Is there a dog in the image?"
SENTENCE = "According to <extra_id_0>, you are allowed to use or partially use the following tags: [{}]. "


def prompt_ids(processor: LionProcessor, text: str) -> list[int]:
    """The ids of a whole prompt as the reference makes them: special tokens in it are special."""
    return processor.tokenizer(text)["input_ids"]


def test_an_image_and_a_question_make_all_inputs_of_the_model(lion_processor: LionProcessor) -> None:
    inputs = lion_processor(IMAGE, QUESTION, return_tensors="pt")
    assert set(inputs) == set(lion_processor.model_input_names)
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)
    assert inputs["task_type_ids"].tolist() == [1]


@pytest.mark.parametrize(
    ("tags", "joined"),
    [("dog, cat", "dog, cat"), (["dog", "cat"], "dog, cat"), (("dog",), "dog"), ("", ""), ([], "")],
)
def test_tags_stand_in_their_sentence_before_the_question(
    tags: Any, joined: str, lion_processor: LionProcessor
) -> None:
    ids = lion_processor(text=QUESTION, tags=tags)["input_ids"][0]
    assert ids == prompt_ids(lion_processor, SENTENCE.format(joined) + QUESTION)
    assert ids.count(lion_processor.soft_prompt_token_id) == 1


def test_without_tags_there_is_no_sentence(lion_processor: LionProcessor) -> None:
    assert lion_processor(text=QUESTION)["input_ids"][0] == prompt_ids(lion_processor, QUESTION)


def test_each_sample_has_its_own_tags_and_task(lion_processor: LionProcessor) -> None:
    inputs = lion_processor(
        text=[QUESTION] * 3, tags=["dog, cat", ["red"], None], task_type=["region_level", "image_level", "region_level"]
    )
    for row, tags in enumerate(("dog, cat", "red")):
        expected = prompt_ids(lion_processor, SENTENCE.format(tags) + QUESTION)
        assert inputs["input_ids"][row][: len(expected)] == expected
    assert sum(inputs["attention_mask"][2]) == len(prompt_ids(lion_processor, QUESTION))
    assert inputs["task_type_ids"] == [0, 1, 0]


def test_the_qformer_reads_the_question_without_the_tags(lion_processor: LionProcessor) -> None:
    with_tags, without = lion_processor(text=QUESTION, tags="dog"), lion_processor(text=QUESTION)
    assert with_tags["qformer_input_ids"] == without["qformer_input_ids"]
    assert with_tags["qformer_input_ids"][0] == lion_processor.qformer_tokenizer(QUESTION)["input_ids"]


SPECIAL = ("<extra_id_0>", "</s>", "<pad>", "<unk>", "<extra_id_99>", "[SEP]", "[CLS]", "[PAD]", "[DEC]", "[MASK]")


@pytest.mark.parametrize("token", SPECIAL)
@pytest.mark.parametrize("where", ["text", "tags", "text_target"])
def test_special_tokens_that_a_user_writes_stay_plain_text(
    token: str, where: str, lion_processor: LionProcessor
) -> None:
    values: dict[str, Any] = {"text": QUESTION, "tags": "dog", "text_target": "yes"}
    inputs = lion_processor(**{**values, where: f"a {token} b {token}"})
    end, marker = lion_processor.tokenizer.eos_token_id, lion_processor.soft_prompt_token_id
    ids, labels = inputs["input_ids"][0], inputs["labels"][0]
    assert [ids.count(marker), ids.count(end), labels.count(end)] == [1, 1, 1]
    assert (ids[-1], labels[-1]) == (end, end)
    special = set(lion_processor.tokenizer.all_special_ids) - {lion_processor.tokenizer.unk_token_id}
    assert special & set(ids) == {marker, end}
    question = inputs["qformer_input_ids"][0]
    own = lion_processor.qformer_tokenizer
    assert (question[0], question[-1]) == (own.cls_token_id, own.sep_token_id)
    assert not {own.cls_token_id, own.sep_token_id, own.pad_token_id, own.bos_token_id} & set(question[1:-1])


def test_a_user_may_write_image_in_a_question(lion_processor: LionProcessor) -> None:
    text = "In the image <image>, can you locate the dog?"
    inputs = lion_processor(IMAGE, text)
    assert inputs["input_ids"][0] == prompt_ids(lion_processor, text)
    assert inputs["qformer_input_ids"][0] == lion_processor.qformer_tokenizer(text)["input_ids"]
    assert isinstance(lion_processor.image_token, str)


def test_braces_in_tags_are_text(lion_processor: LionProcessor) -> None:
    ids = lion_processor(text=QUESTION, tags="{tags} {0}")["input_ids"][0]
    assert ids == prompt_ids(lion_processor, SENTENCE.replace("{}", "{tags} {0}") + QUESTION)


def test_answers_become_labels_padded_with_minus_100(lion_processor: LionProcessor) -> None:
    labels = lion_processor(text=[QUESTION] * 2, text_target=["yes", "a red dog left of a table"])["labels"]
    short = prompt_ids(lion_processor, "yes")
    assert labels[0] == short + [-100] * (len(labels[1]) - len(short))
    assert labels[1] == prompt_ids(lion_processor, "a red dog left of a table")


def test_training_cuts_prompts_from_the_left_and_answers_from_the_right_and_generation_cuts_neither(
    lion_processor: LionProcessor,
) -> None:
    text = "dog " * 300 + "cat"
    whole = prompt_ids(lion_processor, text)
    assert lion_processor(text=text)["input_ids"][0] == whole
    training = lion_processor(text=text, text_target=text)
    assert training["input_ids"][0] == whole[-128:]
    assert training["labels"][0] == [*whole[:127], lion_processor.tokenizer.eos_token_id]


def test_the_qformers_question_is_always_cut_from_the_left(lion_processor: LionProcessor) -> None:
    tokenizer = lion_processor.qformer_tokenizer
    whole = tokenizer("dog " * 300 + "cat", add_special_tokens=False)["input_ids"]
    ids = lion_processor(text="dog " * 300 + "cat")["qformer_input_ids"][0]
    assert ids == [tokenizer.cls_token_id, *whole[-126:], tokenizer.sep_token_id]


def test_prompts_are_padded_on_the_right(lion_processor: LionProcessor) -> None:
    inputs = lion_processor(text=["dog", QUESTION], return_tensors="pt")
    length = len(prompt_ids(lion_processor, "dog"))
    assert inputs["attention_mask"][0].tolist() == [1] * length + [0] * (inputs["input_ids"].shape[1] - length)
    padded = lion_processor(text=["dog"], padding="max_length", max_length=17, return_tensors="pt")
    assert padded["input_ids"].shape == (1, 17)


def test_one_question_serves_all_images_and_one_image_all_questions(lion_processor: LionProcessor) -> None:
    assert len(lion_processor([IMAGE] * 3, QUESTION)["input_ids"]) == 3
    inputs = lion_processor(IMAGE, [QUESTION, "dog", "cat"])
    assert (len(inputs["pixel_values"]), len(inputs["input_ids"])) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["images, text or both"]),
        ({"images": [IMAGE] * 2, "text": [QUESTION] * 3}, ["2 images", "3 texts"]),
        ({"images": [IMAGE], "text": [QUESTION] * 2}, ["1 images", "2 texts"]),
        ({"images": [], "text": QUESTION}, ["no images", "empty"]),
        ({"text": []}, ["text is empty"]),
        ({"text": [QUESTION, 3]}, ["int"]),
        ({"text": [QUESTION] * 2, "tags": ["dog"] * 3}, ["tags", "3 entries", "2 samples"]),
        ({"text": [QUESTION] * 2, "task_type": ["image_level"] * 3}, ["task_type", "3 entries", "2 samples"]),
        ({"text": [QUESTION] * 2, "text_target": ["yes"]}, ["text_target", "1 entries", "2 samples"]),
        ({"text": QUESTION, "task_type": "pixel_level"}, ["'pixel_level'", "region_level", "image_level"]),
        ({"images": IMAGE, "tags": "dog"}, ["tags", "text"]),
        ({"text": 5}, ["text", "int"]),
        ({"text": QUESTION, "tags": 5}, ["tags", "int"]),
        ({"text": [QUESTION] * 2, "text_target": ["x", None]}, ["text_target", "a missing value at position 1"]),
    ],
)
def test_input_that_does_not_fit_is_refused_with_both_numbers(
    arguments: dict[str, Any], words: list[str], lion_processor: LionProcessor
) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        lion_processor(**arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_a_template_without_a_place_for_tags_is_refused(lion_processor: LionProcessor) -> None:
    parts = (lion_processor.image_processor, lion_processor.tokenizer, lion_processor.qformer_tokenizer)
    with pytest.raises(ValueError, match="0 times"):
        LionProcessor(*parts, tag_prompt="Tags: <extra_id_0>. ")
    with pytest.raises(ValueError, match="2 times"):
        LionProcessor(*parts, tag_prompt="<extra_id_0> {tags} <extra_id_0>")


def test_templates_and_lengths_are_settings_that_survive_saving(lion_processor: LionProcessor, tmp_path: Path) -> None:
    parts = (lion_processor.image_processor, lion_processor.tokenizer, lion_processor.qformer_tokenizer)
    settings: dict[str, Any] = {
        "tag_prompt": "Tags <extra_id_5>: {tags}. ",
        "soft_prompt_token": "<extra_id_5>",
        "caption_prompt": "Describe.",
        "max_prompt_length": 9,
        "max_question_length": 8,
        "max_answer_length": 7,
        "chat_template": "{{ messages[0]['content'] }}!",
    }
    LionProcessor(*parts, **settings).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LionProcessor
    assert {name: getattr(loaded, name) for name in settings} == settings
    text = "dog " * 20
    for processor in (loaded, LionProcessor(*parts, **settings)):
        inputs = processor(IMAGE, text, tags=["cat"], text_target=text)
        assert [len(inputs[name][0]) for name in ("input_ids", "qformer_input_ids", "labels")] == [9, 8, 7]
    assert loaded(IMAGE, text, tags="cat").data.keys() == LionProcessor(*parts, **settings)(IMAGE, text).data.keys()
    assert loaded.image_processor.size == lion_processor.image_processor.size
    assert loaded.qformer_tokenizer.bos_token == "[DEC]"
    assert loaded.tokenizer.get_vocab() == lion_processor.tokenizer.get_vocab()


def test_messages_become_a_question_with_its_image(lion_processor: LionProcessor) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": QUESTION}]},
    ]
    inputs = lion_processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    expected = lion_processor(IMAGE, QUESTION, return_tensors="pt")
    assert {name: tensor.tolist() for name, tensor in inputs.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    assert lion_processor.apply_chat_template([{"role": "user", "content": QUESTION}]) == QUESTION


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ([[text_part("What color is"), text_part("the dog?")]], "What color is the dog?"),
        (["Look at the dog.", "Is it red?"], "Look at the dog.\nIs it red?"),
        (["Look.", [text_part("Is it "), {"type": "image"}, text_part("red?\n")]], "Look.\nIs it red?"),
        ([[text_part(""), text_part("a")], "", "b"], "a\nb"),
        (["{{ a }} | 'b'"], "{{ a }} | 'b'"),
    ],
)
def test_texts_of_messages_stay_apart(contents: list[Any], expected: str, lion_processor: LionProcessor) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    assert lion_processor.apply_chat_template(messages, tokenize=False) == expected


def test_the_example_has_the_default_chat_template() -> None:
    assert LionProcessor.from_pretrained(example_checkpoint()).chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("part", [{"type": "video", "video": "a.mp4"}, {"type": "text", "content": "a"}, "a"])
def test_a_part_that_is_neither_text_nor_image_is_refused(part: Any, lion_processor: LionProcessor) -> None:
    with pytest.raises(ValueError, match="parts of type text and image, not"):
        lion_processor.apply_chat_template([{"role": "user", "content": [part]}], tokenize=False)


def test_columns_of_tables_are_lists(lion_processor: LionProcessor) -> None:
    texts, tags, tasks = [QUESTION, "dog"], [["dog", "cat"], None], ["image_level", "region_level"]
    expected = lion_processor(text=texts, tags=tags, task_type=tasks, text_target=texts)
    columns = pandas.DataFrame({"text": texts, "tags": [np.array(tags[0]), np.nan], "task": tasks})
    found = lion_processor(
        text=columns["text"], tags=columns["tags"], task_type=columns["task"], text_target=np.array(texts)
    )
    assert found.data == expected.data


def test_answers_hold_special_tokens_that_were_added_and_prompts_do_not(
    lion_processor: LionProcessor, tmp_path: Path
) -> None:
    lion_processor.save_pretrained(tmp_path)
    processor = LionProcessor.from_pretrained(tmp_path)
    text = "dog <seg> </s> <extra_id_0>"
    before = processor(text=text, text_target=text)
    processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<seg>"]})
    after = processor(text=text, text_target=text)
    added = processor.tokenizer.convert_tokens_to_ids("<seg>")
    assert after["labels"][0].count(added) == 1
    assert after["input_ids"] == before["input_ids"]
    assert after["labels"][0].count(processor.tokenizer.eos_token_id) == 1
    assert processor.soft_prompt_token_id not in after["labels"][0]


def test_boxes_come_back_in_kosmos_2s_form(lion_processor: LionProcessor) -> None:
    text, entities = lion_processor.post_process_generation("a dog [0.1,0.2,0.5,0.75] runs", image_size=(200, 100))
    assert text == "a dog runs"
    assert entities == [("a dog", (0, 5), [pytest.approx((20.0, 20.0, 100.0, 75.0))])]


def test_boxes_come_back_in_the_detectors_form(lion_processor: LionProcessor) -> None:
    texts = ["Answer: [0.440,0.060,0.650,0.367]", "nothing", "a dog [0,0,1,1;0.5,0.5,1,1]"]
    results = lion_processor.post_process_grounded_object_detection(texts, target_sizes=[(100, 200)] * 3)
    assert [tuple(result["boxes"].shape) for result in results] == [(1, 4), (0, 4), (2, 4)]
    assert results[0]["boxes"][0].tolist() == pytest.approx([88.0, 6.0, 130.0, 36.7])
    assert results[2]["text_labels"] == ["a dog", "a dog"]
    ids = torch.tensor([prompt_ids(lion_processor, "dog [0.511,0.818,0.955,0.912]")])
    from_ids = lion_processor.post_process_grounded_object_detection(ids)
    assert from_ids[0]["boxes"].dtype == torch.float32
    with pytest.raises(ValueError, match="outputs must be a string or a list of strings, but is str"):
        lion_processor.post_process_grounded_object_detection("a dog [0,0,1,1]")
    with pytest.raises(ValueError, match="2 target_sizes for 3 outputs"):
        lion_processor.post_process_grounded_object_detection(texts, target_sizes=[(1, 1)] * 2)


def test_the_spaces_of_decoded_text_are_tidied_as_in_the_reference(lion_processor: LionProcessor) -> None:
    ids = prompt_ids(lion_processor, "dog ?")
    assert lion_processor.batch_decode([ids], skip_special_tokens=True) == ["dog?"]
