"""`Lion`: answers as the pipeline's, each image once, likelihoods as the model's, and the short ways."""

import copy
import gc
import math
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, pipeline

from transformers_lion import ImageTagger, Lion, LionForConditionalGeneration, LionProcessor, Request, inference
from transformers_lion.example import TAGGER, example_checkpoint, example_image, sketch
from transformers_lion.grounding import box_iou, token_log_probs
from transformers_lion.prefetching import NUM_THREADS
from transformers_lion.processing_lion import TAG_PROMPT
from transformers_lion.ram.tagger import TaggingJob

IMAGES = [
    Image.fromarray(np.random.RandomState(seed).randint(0, 255, (40, 30, 3), dtype=np.uint8)) for seed in range(3)
]
QUESTION = "Is there a dog in the image?"
SHORT = {"max_new_tokens": 8}
SKETCHED = {"the red circle": (51.2, 57.6, 268.8, 264.0), "the blue triangle": (332.8, 86.4, 576.0, 288.0)}


@pytest.fixture
def lion(lion_model: LionForConditionalGeneration, lion_processor: LionProcessor) -> Lion:
    return Lion(lion_model, lion_processor)


@pytest.fixture(scope="module")
def example() -> Lion:
    return Lion.from_pretrained(tagger=False)


@pytest.fixture(scope="module")
def example_tagger() -> ImageTagger:
    return ImageTagger.from_pretrained(Path(example_checkpoint()) / TAGGER)


class Calls:
    """Counts: images through the vision tower, prompts through the encoder, files opened, images tagged."""

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.prompts: list[int] = []
        self.tagged: list[int] = []
        self.opened: list[Any] = []


@pytest.fixture
def calls(lion: Lion, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    counts = Calls()
    hooks = [
        lion.model.vision_model.register_forward_pre_hook(
            lambda module, args, kwargs: counts.encoded.append(len(kwargs["pixel_values"])), with_kwargs=True
        ),
        lion.model.language_model.encoder.register_forward_pre_hook(
            lambda module, args, kwargs: counts.prompts.append(len(kwargs["inputs_embeds"])), with_kwargs=True
        ),
    ]
    to_rgb = inference.to_rgb
    monkeypatch.setattr(inference, "to_rgb", lambda image: counts.opened.append(image) or to_rgb(image))
    yield counts
    for hook in hooks:
        hook.remove()


def mixed_requests() -> list[Request]:
    """Three images in turns, both tasks, and every kind of tags."""
    tags: list[Any] = ["dog, cat", ["red", "big cat"], "dog", None, []]
    tasks, sources = ["image_level", "region_level"], [None, "data", "none", None, None]
    return [
        Request(image, f"{QUESTION} {'a ' * index}", tasks[index % 2], tags[index % 5], sources[index % 5])
        for index, image in enumerate([*IMAGES, *IMAGES, IMAGES[0]])
    ]


# --- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_answers_are_the_pipelines(lion: Lion, lion_folder: Path, batch_size: int) -> None:
    pipe: Any = pipeline("image-to-text", model=str(lion_folder), tagger=False)
    requests = mixed_requests()
    expected = [
        pipe(
            item.image,
            text=item.question,
            task_type=item.task_type,
            tags=item.tags,
            tag_source=item.tag_source,
            **SHORT,
        )[0]["generated_text"]
        for item in requests
    ]
    assert len(set(expected)) > 3
    assert [found.text for found in lion.answer(requests, batch_size=batch_size, **SHORT)] == expected


@pytest.mark.slow
def test_without_a_limit_answers_are_as_long_as_the_pipelines(lion: Lion, lion_folder: Path) -> None:
    pipe: Any = pipeline("image-to-text", model=str(lion_folder), tagger=False)
    assert lion.caption(IMAGES[0]) == pipe(IMAGES[0])[0]["generated_text"]


def test_an_answer_knows_what_the_language_model_read(lion: Lion) -> None:
    requests = [
        Request(IMAGES[0], QUESTION, tags=["dog", "cat"]),
        Request(IMAGES[0], QUESTION, tags="dog,cat"),
        Request(IMAGES[0], QUESTION, tags=[]),
        Request(IMAGES[0], QUESTION),
        Request(IMAGES[0], "<extra_id_0> </s>", tag_source="none"),
    ]
    found = lion.answer(requests, **SHORT)
    ids = [lion.processor(text=item.question, tags=item.tags or None)["input_ids"][0] for item in requests[:1]]
    assert found[0].prompt == TAG_PROMPT.format(tags="dog, cat") + QUESTION
    assert lion.processor.tokenizer(found[0].prompt)["input_ids"] == ids[0]
    assert found[1].prompt == TAG_PROMPT.format(tags="dog,cat") + QUESTION
    assert found[3].prompt == QUESTION
    assert [answer.tags for answer in found] == [["dog", "cat"], ["dog", "cat"], [], None, None]
    assert "<extra_id_0>" not in found[4].prompt  # the vocabulary of the small model has no such characters


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda lion: pickle.loads(pickle.dumps(lion))])
def test_a_copy_with_its_tagger_answers_alike(
    lion: Lion, example_tagger: ImageTagger, copied: Callable[[Any], Any]
) -> None:
    tagged = Lion(lion.model, lion.processor, example_tagger)
    request = Request(example_image(), QUESTION)
    lion.model.get_image_features(torch.zeros(1, 3, 56, 56), output_hidden_states=True)
    (expected,) = tagged.answer([request], **SHORT)
    assert expected.tags
    assert copied(tagged).answer([request], **SHORT) == [expected]


def test_the_prompt_is_known_whichever_side_is_padded(lion: Lion, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(IMAGES[0], QUESTION, tags="dog"), Request(IMAGES[0], "a")]
    expected = [found.prompt for found in lion.answer(requests, **SHORT)]
    monkeypatch.setattr(lion.processor.tokenizer, "padding_side", "left")
    assert [found.prompt for found in lion.answer(requests, **SHORT)] == expected == [expected[0], "a"]


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_answer_knows_its_length_and_whether_it_was_cut_off(example: Lion, num_beams: int, scores: bool) -> None:
    requests = [Request(example_image(), "What color is the heart?"), Request(example_image(), "Describe the image.")]
    short, long = example.answer(requests, num_beams=num_beams, max_new_tokens=6, scores=scores)
    assert (short.text, short.num_tokens, short.is_complete) == ("blue", 2, True)
    assert (long.num_tokens, long.is_complete) == (6, False)


def test_a_maximal_length_is_heeded(lion: Lion) -> None:
    expected = lion.caption(IMAGES[0], max_new_tokens=3)
    assert lion.caption(IMAGES[0], max_length=4) == expected != lion.caption(IMAGES[0], **SHORT)
    assert lion.caption(IMAGES[0], generation_config=GenerationConfig(max_length=4)) == expected
    both = lion.caption(IMAGES[0], max_length=4, **SHORT)
    assert both == lion.caption(IMAGES[0], **SHORT)


def test_without_any_limit_an_answer_may_be_as_long_as_the_papers(lion: Lion, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lion.caption(IMAGES[0], num_beams=1, max_new_tokens=inference.MAX_NEW_TOKENS)
    assert expected != lion.caption(IMAGES[0], num_beams=1, max_new_tokens=20), "transformers' own limit"
    monkeypatch.setattr(lion.model.generation_config, "max_new_tokens", None)
    assert lion.caption(IMAGES[0], num_beams=1) == expected
    assert lion.caption(IMAGES[0], generation_config=GenerationConfig(num_beams=1)) == expected


def test_rows_that_ended_are_padded_whoever_gives_the_generation_config(example: Lion) -> None:
    texts = ["What color is the triangle?", example.processor.caption_prompt]
    inputs = example.processor([sketch(), sketch()], texts, return_tensors="pt")
    expected = example.model.generate(**inputs, num_beams=3, max_new_tokens=30)
    end, padding = example.model.generation_config.eos_token_id, example.model.generation_config.pad_token_id
    assert expected[0].tolist().count(end) == 1
    assert expected[0, -1] == padding
    config = GenerationConfig(num_beams=3, max_new_tokens=30)
    assert torch.equal(example.model.generate(**inputs, generation_config=config), expected)
    config.pad_token_id = 7
    assert example.model.generate(**inputs, generation_config=config)[0, -1] == 7


def test_several_sequences_are_refused_wherever_they_are_asked_for(lion: Lion, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerationConfig(num_beams=3, num_return_sequences=2)
    for options in ({"num_return_sequences": 2, "num_beams": 3}, {"generation_config": config}):
        with pytest.raises(ValueError, match="num_return_sequences is 2, but must be 1"):
            lion.caption(IMAGES[0], **options)
    monkeypatch.setattr(lion.model.generation_config, "num_return_sequences", 3)
    with pytest.raises(ValueError, match="num_return_sequences is 3"):
        lion.caption(IMAGES[0])
    assert lion.caption(IMAGES[0], num_return_sequences=1, **SHORT)


def test_questions_and_tags_may_come_from_tables(lion: Lion) -> None:
    table = pandas.DataFrame({"question": [QUESTION, "a"], "tags": [["dog"], np.nan]})
    expected = lion.ask(IMAGES[:2], [QUESTION, "a"], **SHORT)
    assert lion.ask(IMAGES[:2], table["question"], **SHORT) == expected
    assert lion.ask(IMAGES[:2], table["question"].to_numpy(), **SHORT) == expected
    requests = [Request(IMAGES[0], row.question, tags=row.tags) for row in table.itertuples()]
    assert [found.tags for found in lion.answer(requests, **SHORT)] == [["dog"], None]
    with pytest.raises(ValueError, match=r"questions must contain only strings, .* a missing value at position 1"):
        lion.ask(IMAGES[:2], ["a", float("nan")])


def test_tags_that_are_left_out_are_the_taggers(lion: Lion, example_tagger: ImageTagger) -> None:
    tagged = Lion(lion.model, lion.processor, example_tagger)
    image = example_image()
    tags = example_tagger([image])[0]
    assert tags
    requests = [
        Request(image, QUESTION),
        Request(image, QUESTION, tag_source="none"),
        Request(image, QUESTION, tags="dog"),
        Request(image, QUESTION, tag_source="data"),
        Request(image, QUESTION, tag_source="tagger"),
        Request(image, QUESTION, tags="dog", tag_source="none"),
        Request(image, QUESTION, tags=["auto"], tag_source="data"),
    ]
    found = tagged.answer(requests, **SHORT)
    assert [answer.tags for answer in found] == [tags, None, ["dog"], None, tags, None, ["auto"]]
    assert found[0].text == lion.answer([Request(image, QUESTION, tags=tags)], **SHORT)[0].text


def test_boxes_are_pixels_of_the_image(example: Lion) -> None:
    wide = sketch(640, 480)
    (small, large) = example.answer(
        [
            Request(image, "Where is the red circle?", "region_level")
            for image in (wide, wide.resize((320, 240), Image.Resampling.BOX))
        ]
    )
    assert (small.image_size, large.image_size) == ((640, 480), (320, 240))
    assert box_iou(small.boxes[0], SKETCHED["the red circle"]) > 0.5
    assert box_iou(tuple(2 * value for value in large.boxes[0]), SKETCHED["the red circle"]) > 0.5
    assert small.entities[0][2] == small.boxes


@pytest.mark.parametrize("num_beams", [1, 3])
def test_boxes_have_the_scores_of_their_tokens_on_request(example: Lion, num_beams: int) -> None:
    images = [example_image(), sketch()]
    found = example.locate(images, "the red circle", scores=True, num_beams=num_beams)
    assert example.locate(images, "the red circle", num_beams=num_beams)[1].scores is None
    for image, answer in zip(images, found, strict=True):
        inputs = example.processor(image, inference.LOCATE_QUESTION.format(phrase="the red circle"),
                                   task_type="region_level", return_tensors="pt")  # fmt: skip
        generated = example.model.generate(
            **inputs, num_beams=num_beams, return_dict_in_generate=True, output_logits=True
        )
        log_probs = token_log_probs(example.model, generated)
        (alone,) = example.processor.post_process_grounded_object_detection(generated.sequences, scores=log_probs)
        assert answer.scores == pytest.approx(alone["scores"].tolist(), rel=1e-3)
        assert len(answer.scores) == len(answer.boxes) > 0
    assert example.answer([Request(images[0], "How many objects are there?")], scores=True)[0].scores == []


def test_no_requests_are_no_answers(lion: Lion) -> None:
    assert lion.answer([]) == lion.rank([], []) == lion.caption([]) == []


# --- each image once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "encoded"), [(1, [1, 1, 1]), (2, [1, 1, 1]), (7, [3])])
def test_an_image_is_opened_and_encoded_once_a_call(
    lion: Lion, calls: Calls, batch_size: int, encoded: list[int]
) -> None:
    lion.answer(mixed_requests(), batch_size=batch_size, **SHORT)
    assert calls.encoded == encoded
    assert len(calls.opened) == 3


def test_the_same_path_is_the_same_image(lion: Lion, calls: Calls, image: Path) -> None:
    lion.answer([Request(image, "a"), Request(str(image), "b"), Request(IMAGES[0], "c")], batch_size=1, **SHORT)
    assert calls.encoded == [1, 1]


def test_an_image_is_tagged_once_and_only_if_tags_are_missing(
    lion: Lion, calls: Calls, example_tagger: ImageTagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = TaggingJob.add
    monkeypatch.setattr(TaggingJob, "add", lambda job, image: calls.tagged.append(1) or add(job, image))
    tagged = Lion(lion.model, lion.processor, example_tagger)
    tagged.answer([Request(IMAGES[0], "a", tags="dog"), Request(IMAGES[1], "a", tag_source="none")], **SHORT)
    assert calls.tagged == []
    tagged.answer(mixed_requests(), batch_size=2, **SHORT)  # only one has no tags
    assert calls.tagged == [1]


@pytest.mark.slow
def test_an_image_is_forgotten_after_its_last_request(lion: Lion, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    original = Lion._inputs

    def noting(self: Lion, requests: Any, images: Any) -> Any:
        gc.collect()
        alive.append(sum(type(held) is inference.EncodedImage for held in gc.get_objects()))
        return original(self, requests, images)

    monkeypatch.setattr(Lion, "_inputs", noting)
    sources = [Image.new("RGB", (8, 8), (30 * index, 0, 0)) for index in range(8)]
    lion.answer([Request(source, text) for text in ("a", "b") for source in sources], batch_size=2, **SHORT)
    assert len(alive) == 8
    assert max(alive) <= 2


# --- likelihoods --------------------------------------------------------------------------------------------------


CANDIDATES = [["yes", "no", "a dog and a cat in the red image"], [], ["yes"], ["a"] * 20]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_candidates_score_what_the_model_gives_their_tokens(lion: Lion, batch_size: int) -> None:
    requests = mixed_requests()[:4]  # without the empty tag sentence
    found = lion.rank(requests, CANDIDATES, batch_size=batch_size)
    assert [len(scores) for scores in found] == [3, 0, 1, 20]
    for item, texts, scores in zip(requests, CANDIDATES, found, strict=True):
        for text, score in zip(texts, scores, strict=True):
            tags = None if item.tag_source == "none" else item.tags
            options = {"tags": tags, "task_type": item.task_type, "text_target": text}
            inputs = lion.processor(item.image, item.question, return_tensors="pt", **options)
            with torch.no_grad():
                loss = lion.model(**inputs).loss.item()
            assert score == pytest.approx(-loss * inputs["labels"].shape[1], rel=1e-4)
    assert found[3] == pytest.approx([found[3][0]] * 20)


def test_everything_before_the_decoder_runs_once_a_request(lion: Lion, calls: Calls) -> None:
    lion.rank(mixed_requests()[:4], CANDIDATES, batch_size=2)
    assert calls.prompts == [2, 2]
    assert calls.encoded == [1, 2]


def test_likelihood_chooses_what_the_example_answers(example: Lion) -> None:
    image = sketch()
    (scores,) = example.rank([Request(image, "What color is the triangle?")], [["red", "blue", "yellow", "green"]])
    assert max(range(4), key=scores.__getitem__) == 1
    assert all(math.isfinite(score) and score < 0 for score in scores)


# --- short ways ---------------------------------------------------------------------------------------------------


def test_one_gives_one_and_lists_give_lists(lion: Lion) -> None:
    a, b, _ = IMAGES
    both = [lion.caption(rgb_image, **SHORT) for rgb_image in (a, b)]
    assert isinstance(both[0], str)
    assert lion.caption([a, b], **SHORT) == both
    assert lion.caption([a], **SHORT) == both[:1]
    texts = [QUESTION, "What is it?"]
    answers = [[lion.ask(rgb_image, text, **SHORT) for text in texts] for rgb_image in (a, b)]
    assert lion.ask(a, texts, **SHORT) == answers[0]
    assert lion.ask([a, b], texts[0], **SHORT) == [answers[0][0], answers[1][0]]
    assert lion.ask([a, b], texts, **SHORT) == [answers[0][0], answers[1][1]]
    assert lion.ask(np.stack([np.asarray(a), np.asarray(b)]), texts, **SHORT) == [answers[0][0], answers[1][1]]


def test_each_way_has_its_prompt_and_task(lion: Lion, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []
    original = Lion.answer
    monkeypatch.setattr(
        Lion, "answer", lambda self, requests, **options: seen.extend(requests) or original(self, requests, **options)
    )
    lion.caption(IMAGES[0], **SHORT)
    lion.ask(IMAGES[0], QUESTION, tags="dog", **SHORT)
    lion.locate(IMAGES[0], " the {red} cup ", **SHORT)
    lion.describe_region(IMAGES[0], (3, 4, 15, 40), **SHORT)
    assert [(request.question, request.task_type, request.tags) for request in seen] == [
        ("Please describe the image using a single short sentence.", "image_level", None),
        (QUESTION, "image_level", "dog"),
        ("How can I locate the {red} cup in the image? Please provide the coordinates.", "region_level", None),
        ("Please describe the region [0.100,0.100,0.500,1.000] in the image.", "region_level", None),
    ]


def test_the_example_locates_and_describes_what_it_located(example: Lion) -> None:
    image = sketch()
    found = example.locate(image, list(SKETCHED))
    for answer, truth in zip(found, SKETCHED.values(), strict=True):
        assert box_iou(answer.boxes[0], truth) > 0.5
    boxes = [answer.boxes[0] for answer in found]
    described = example.describe_region(image, boxes)
    assert example.describe_region(image, np.array(boxes[1])) == described[1]
    assert all(text.startswith("a ") for text in described)


def test_tags_of_one_and_of_several(example: Lion, example_tagger: ImageTagger, image: Path) -> None:
    lion = Lion(example.model, example.processor, example_tagger)
    tags = example_tagger([example_image()])[0]
    assert lion.tag(example_image()) == tags
    assert lion.tag([image, example_image()])[1] == tags
    assert lion.tag([]) == []


def test_threads_share_one_object(lion: Lion) -> None:
    requests = mixed_requests()
    expected = [lion.answer([request], **SHORT)[0] for request in requests]
    start = threading.Barrier(4)

    def ask(offset: int) -> list[Any]:
        start.wait()
        return lion.answer(requests[offset:] + requests[:offset], batch_size=3, **SHORT)

    with ThreadPoolExecutor(4) as pool:
        for offset, found in enumerate(pool.map(ask, range(4))):
            assert [answer.text for answer in found] == [
                answer.text for answer in expected[offset:] + expected[:offset]
            ]


# --- loading and errors -------------------------------------------------------------------------------------------


def test_a_checkpoints_own_tagger_is_used_unless_refused(
    lion_folder: Path, example_tagger: ImageTagger, tmp_path: Path, recwarn: Any
) -> None:
    folder = tmp_path / "lion"
    folder.mkdir()
    for file in lion_folder.iterdir():
        (folder / file.name).symlink_to(file)
    example_tagger.save_pretrained(folder / "tagger")
    assert isinstance(Lion.from_pretrained(folder).tagger, ImageTagger)
    assert Lion.from_pretrained(folder, tagger=False).tagger is None
    assert Lion.from_pretrained(lion_folder, tagger=example_tagger).tagger is example_tagger


def test_dtype_and_mode_are_those_asked_for(lion_folder: Path) -> None:
    lion = Lion.from_pretrained(lion_folder, tagger=False, dtype="bfloat16", device="cpu")
    assert lion.model.dtype == torch.bfloat16
    assert not lion.model.training
    assert isinstance(lion.caption(IMAGES[0], **SHORT), str)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda lion: lion.caption("lost.png"), "lost.png"),
        (lambda lion: lion.ask(IMAGES, ["a", "b"]), "3 images for 2 questions"),
        (lambda lion: lion.ask(IMAGES[0], 3), "questions must be a string or a list"),
        (lambda lion: lion.locate(IMAGES[0], " "), "phrases contains a blank string"),
        (lambda lion: lion.describe_region(IMAGES[0], (1, 2, 3)), r"shape \(4,\) or \(N, 4\), but has \(3,\)"),
        (lambda lion: lion.describe_region(IMAGES[0], [(1, 2, 3, 4), (1, 2)]), "must be a box of four numbers"),
        (lambda lion: lion.describe_region(IMAGES[0], (90, 0, 99, 9)), "no area inside the image of 30x40 pixels"),
        (lambda lion: lion.describe_region(IMAGES[0], (1, 2, math.nan, 4)), "no area"),
        (lambda lion: lion.tag(IMAGES[0]), "has no tagger"),
        (lambda lion: lion.answer(["a"]), "must contain `Request` objects, but contains str"),
        (lambda lion: lion.answer([Request(IMAGES[0], None)]), "questions must contain only strings"),
        (lambda lion: lion.answer([Request(IMAGES[0], "a", "level")]), "task_type is 'level'"),
        (lambda lion: lion.answer([], batch_size=0), "batch_size is 0"),
        (lambda lion: lion.answer([], num_return_sequences=2), "num_return_sequences is 2"),
        (lambda lion: lion.rank([Request(IMAGES[0], "a")], []), "0 lists of candidates for 1 requests"),
        (lambda lion: lion.rank([Request(IMAGES[0], "a")], ["yes"]), "candidates must be a string or a list"),
    ],
)
def test_what_cannot_be_done_is_said(lion: Lion, call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(lion)


# --- images that cannot be read, and boxes that are no pixels -----------------------------------------------------


@pytest.fixture
def mixed_files(tmp_path: Path) -> list[Any]:
    """Images of which those at 1, 3 and 4 cannot be read, the first of them twice."""
    IMAGES[0].save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    missing = tmp_path / "missing.png"
    return [IMAGES[1], missing, tmp_path / "good.png", tmp_path / "text.png", b"no image", missing]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_others_are_answered_where_images_cannot_be_read(
    lion: Lion, mixed_files: list[Any], example_tagger: ImageTagger, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    lion = Lion(lion.model, lion.processor, example_tagger)
    found = lion.answer(
        [Request(image, QUESTION) for image in mixed_files], batch_size=batch_size, on_error="skip", **SHORT
    )
    good = [lion.answer([Request(mixed_files[place], QUESTION)], **SHORT)[0] for place in (0, 2)]
    assert [found[0], found[2]] == good
    for place, words in ((1, "missing.png"), (3, "text.png"), (4, "bytes"), (5, "missing.png")):
        assert words in (found[place].error or "")
        assert (found[place].text, found[place].entities, found[place].image_size) == ("", [], (0, 0))
    assert "3 of 5 images could not be read" in caplog.text


def test_each_way_skips_what_cannot_be_read(lion: Lion, mixed_files: list[Any]) -> None:
    good, bad = mixed_files[0], mixed_files[1]
    options: dict[str, Any] = {"on_error": "skip", **SHORT}
    assert lion.caption([good, bad], **options) == [lion.caption(good, **SHORT), None]
    assert lion.caption(bad, **options) is None
    assert lion.ask([bad, good], QUESTION, **options)[0] is None
    assert lion.locate([good, bad], "a dog", **options)[1].error is not None
    box = (3, 4, 15, 40)
    assert lion.describe_region([bad, good], box, **options) == [None, lion.describe_region(good, box, **SHORT)]
    scores = lion.rank([Request(bad, QUESTION), Request(good, QUESTION)], [["a"], ["b"]], on_error="skip")
    assert scores == [[], lion.rank([Request(good, QUESTION)], [["b"]])[0]]


def test_an_image_that_cannot_be_read_stops_a_call_unless_it_may_be_skipped(lion: Lion, mixed_files: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"missing\.png"):
        lion.caption(mixed_files, **SHORT)
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        lion.caption(mixed_files, on_error="ignore", **SHORT)


@pytest.mark.parametrize("box", [(0.062, 0.156, 0.44, 0.537), (0, 0, 1, 1)])
def test_fractions_in_the_place_of_pixels_are_an_error(lion: Lion, box: tuple) -> None:
    with pytest.raises(ValueError, match="30x40 pixels looks like fractions"):
        lion.describe_region(IMAGES[0], box)


def test_a_region_is_measured_on_the_upright_image(lion: Lion, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    IMAGES[0].save(tmp_path / "turned.png", exif=exif)  # seen, it is 40 wide and 30 high
    upright = IMAGES[0].transpose(Image.Transpose.ROTATE_270)
    box = (20, 3, 40, 15)
    assert lion.describe_region(tmp_path / "turned.png", box, **SHORT) == lion.describe_region(upright, box, **SHORT)


def test_bytes_and_stored_images_are_images(lion: Lion, tmp_path: Path) -> None:
    IMAGES[0].save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    expected = lion.caption(IMAGES[0], **SHORT)
    stored = {"bytes": content, "path": None}
    assert lion.caption(content, **SHORT) == lion.caption(stored, **SHORT) == expected
    assert lion.caption(np.array([str(tmp_path / "a.png")] * 2), **SHORT) == [expected] * 2
    pipe: Any = pipeline(
        "image-to-text", model=lion.model, tokenizer=lion.processor.tokenizer, processor=lion.processor, tagger=False
    )
    for image in (content, stored, {"image": stored}):
        assert pipe(image, **SHORT) == [{"generated_text": expected}]
    assert pipe([stored, content], **SHORT) == [[{"generated_text": expected}]] * 2


def test_requests_that_fit_into_one_batch_stay_in_their_order(lion: Lion, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[str]] = []
    make_inputs = Lion._inputs

    def note_questions(self: Lion, batch: Any, images: Any) -> Any:
        batches.append([request.question for request in batch])
        return make_inputs(self, batch, images)

    monkeypatch.setattr(Lion, "_inputs", note_questions)
    questions = ["A long question?", "Short?", "The longest question?", "Long?"]
    images = [example_image(), sketch()]
    lion.answer([Request(images[row % 2], text) for row, text in enumerate(questions)], max_new_tokens=1)
    assert batches == [questions]


def test_requests_of_similar_lengths_share_a_batch_and_answers_keep_their_order(
    lion: Lion, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [f"{QUESTION} {'a ' * (index * 7 % 5)}" for index in range(10)]
    requests = [Request(IMAGES[index % 3].copy(), question) for index, question in enumerate(questions)]
    lengths: list[list[int]] = []
    inputs = Lion._inputs

    def note_lengths(self: Lion, batch: Any, images: Any) -> Any:
        lengths.append([len(request.question) for request in batch])
        return inputs(self, batch, images)

    monkeypatch.setattr(Lion, "_inputs", note_lengths)
    found = lion.answer(requests, batch_size=2, **SHORT)
    assert lengths == [[length] * 2 for length in sorted({len(question) for question in questions})]
    assert [answer.text for answer in found] == [lion.answer([request], **SHORT)[0].text for request in requests]


def test_images_may_be_prepared_in_advance(lion: Lion, example_tagger: ImageTagger) -> None:
    tagged = Lion(lion.model, lion.processor, example_tagger)
    prepared = tagged.prepare(IMAGES)
    assert [image.size for image in prepared] == [image.size for image in IMAGES]
    assert all(image.rgb_image is None for image in prepared)
    expected = tagged.answer([Request(image, QUESTION) for image in IMAGES], **SHORT)
    assert tagged.answer([Request(image, QUESTION) for image in prepared], **SHORT) == expected
    with pytest.raises(ValueError, match="prepared by an object without this tagger"):
        tagged.answer([Request(lion.prepare(IMAGES)[0], QUESTION)], **SHORT)


def test_another_kind_of_tagger_gets_the_images_themselves(lion: Lion) -> None:
    tagged = Lion(lion.model, lion.processor, lambda images: [[f"{image.width} wide"] for image in images])  # type: ignore[arg-type]
    assert [answer.tags for answer in tagged.answer([Request(image, QUESTION) for image in IMAGES], **SHORT)] == [
        [f"{image.width} wide"] for image in IMAGES
    ]


def test_no_more_images_are_in_memory_than_threads_open(
    lion: Lion, example_tagger: ImageTagger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for index in range(12):
        IMAGES[index % 3].save(tmp_path / f"{index}.png")
    alive: list[weakref.ref] = []
    counts: list[int] = []
    to_rgb = inference.to_rgb
    sources = [tmp_path / f"{index}.png" for index in range(12)]

    def open_and_count(image: Any) -> Image.Image:
        gc.collect()
        counts.append(sum(ref() is not None for ref in alive))
        rgb_image = to_rgb(image)
        alive.append(weakref.ref(rgb_image))
        return rgb_image

    monkeypatch.setattr(inference, "to_rgb", open_and_count)
    Lion(lion.model, lion.processor, example_tagger).caption(sources, batch_size=4, **SHORT)
    assert len(counts) == 12
    assert max(counts) < NUM_THREADS
