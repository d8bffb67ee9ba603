"""The routes: answers equal to those of `Lion`, and an error for each invalid request that names the parameter."""

import math
import socket
from typing import Any

import pytest

from serving.running import Running, data_uri, messages, running
from transformers_lion import Lion
from transformers_lion.example import example_image, sketch
from transformers_lion.inference import Request
from transformers_lion.serving.settings import EXAMPLE_NAME, Limits

SCENE, DRAWING = example_image().resize((100, 100)), sketch(160, 120)
QUESTION = "What color is the heart?"


def test_a_caption_has_its_prompt_and_tags(server: Running, lion: Lion, scene: str) -> None:
    found = server.send("/v1/caption", {"image": scene}).json
    (answer,) = lion.answer([Request(SCENE, lion.processor.caption_prompt)])
    assert found == {
        "caption": answer.text, "tags": answer.tags, "prompt": answer.prompt, "width": 100, "height": 100,
    }  # fmt: skip


def test_questions_are_answered_in_order(server: Running, lion: Lion, drawing: str) -> None:
    questions = ["What color is the triangle?", "How many shapes are there?"]
    found = server.send("/v1/ask", {"image": drawing, "questions": questions, "tags": ["red"], "num_beams": 1}).json
    expected = lion.ask(DRAWING, questions, tags=["red"], num_beams=1)
    assert found["answers"] == [{"question": q, "answer": a} for q, a in zip(questions, expected, strict=True)]
    assert found["tags"] == ["red"]


def test_phrases_are_located_in_pixels_and_fractions_with_scores(server: Running, lion: Lion, scene: str) -> None:
    found = server.send("/v1/locate", {"image": scene, "phrases": ["the heart", "the cross"], "scores": True}).json
    for row, phrase in zip(found["located"], ("the heart", "the cross"), strict=True):
        answer = lion.locate(SCENE, phrase, scores=True)
        assert row["phrase"] == phrase
        assert row["boxes"] == [[round(value, 2) for value in box] for box in answer.boxes]
        assert row["boxes"]
        assert row["fractions"] == [[round(value / 100, 4) for value in box] for box in answer.boxes]
        assert row["scores"] == pytest.approx(answer.scores, abs=1e-3)
    assert server.send("/v1/locate", {"image": scene, "phrases": ["the heart"]}).json["located"][0]["scores"] is None


def test_boxes_are_described(server: Running, lion: Lion, scene: str) -> None:
    box = [10, 10, 60.5, 60]
    found = server.send("/v1/describe", {"image": scene, "boxes": [box]}).json
    assert found["descriptions"] == [{"box": box, "description": lion.describe_region(SCENE, box)}]


def test_an_image_is_tagged(server: Running, lion: Lion, scene: str) -> None:
    assert lion.tagger is not None
    (expected,) = lion.tagger.tag(SCENE, threshold=0.1, top_k=2, sort_by_score=True)
    found = server.send("/v1/tag", {"image": scene, "threshold": 0.1, "top_k": 2}).json
    assert found["tags"] == expected.names
    assert found["scores"] == [round(tag["score"], 4) for tag in expected.tags or []]


def test_a_chat_completion_has_lions_details(server: Running, lion: Lion, scene: str) -> None:
    text = "How can I locate the heart in the image? Please provide the coordinates."
    found = server.chat(scene, text, chat_template_kwargs={"task_type": "region_level", "tags": "blue heart"}).json
    (answer,) = lion.answer([Request(SCENE, text, "region_level", "blue heart")])
    (choice,) = found["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (answer.text, "stop")
    assert found["lion"]["prompt"] == answer.prompt
    assert found["lion"]["entities"][0]["boxes"] == [[round(value, 2) for value in box] for box in answer.boxes]
    assert found["usage"]["completion_tokens"] == answer.num_tokens > 1
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_boxes_in_pixels_replace_the_placeholder_in_the_text(server: Running, lion: Lion, scene: str) -> None:
    arguments = {"boxes": [[10, 10, 60, 60]]}
    expected = lion.describe_region(SCENE, [10, 10, 60, 60])
    for text in ("Please describe the region {boxes} in the image.", ""):
        found = server.chat(scene, text, chat_template_kwargs=arguments).json
        assert found["choices"][0]["message"]["content"] == expected
        assert "[0.100,0.100,0.600,0.600]" in found["lion"]["prompt"]
    assert server.chat(scene, "Describe it.", chat_template_kwargs=arguments).error["param"] == "messages"


def test_system_and_user_texts_are_joined_by_the_chat_template(server: Running, lion: Lion, scene: str) -> None:
    parts = [{"role": "system", "content": "Be brief."}, *messages(scene, QUESTION)]
    found = server.send("/v1/chat/completions", {"model": EXAMPLE_NAME, "messages": parts}).json
    assert found["lion"]["prompt"].endswith(f"Be brief. {QUESTION}")  # the tokenizer reads the line break as a space


def test_an_answer_that_is_cut_off_says_so(server: Running, scene: str) -> None:
    found = server.chat(scene, "Describe the image.", max_completion_tokens=2).json
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 2


def test_sampling_is_honored(server: Running, scene: str) -> None:
    answers = {
        server.chat(scene, "Describe the image.", temperature=2.0, max_tokens=20).json["choices"][0]["message"][
            "content"
        ]
        for _ in range(4)
    }
    assert len(answers) > 1
    assert server.chat(scene, QUESTION, temperature=0, seed=1).status == 200


PARAMETERS: list[tuple[str, Any]] = [
    ("n", 2), ("stop", ["."]), ("logprobs", True), ("top_logprobs", 3), ("tools", [{"type": "function"}]),
    ("response_format", {"type": "json_object"}), ("presence_penalty", 0.5), ("logit_bias", {"5": 1}),
    ("temperature", 3), ("temperature", "warm"), ("temperature", math.nan), ("top_p", 0), ("max_tokens", 0),
    ("max_tokens", 10_000),
    ("max_completion_tokens", 10_000), ("num_beams", 99), ("stream", "yes"),
    ("stream_options", {"include_usage": True}), ("unheard_of", 1), ("reasoning_effort", "high"),
    ("chat_template_kwargs.task_type", "pixel_level"), ("chat_template_kwargs.tags", 5),
    ("chat_template_kwargs.tag_source", "web"), ("chat_template_kwargs.enable_thinking", True),
    ("chat_template_kwargs.boxes", [[1, 2, 3]]),
]  # fmt: skip


@pytest.mark.parametrize(("param", "value"), PARAMETERS, ids=[f"{name}={value}" for name, value in PARAMETERS])
def test_a_parameter_that_cannot_be_honored_is_refused_by_name(
    server: Running, scene: str, param: str, value: Any
) -> None:
    name, _, inner = param.partition(".")
    response = server.chat(scene, QUESTION, **{name: {inner: value} if inner else value})
    assert response.status == 400
    assert response.headers["x-should-retry"] == "false"
    assert (response.error["param"] or "").startswith(param)
    assert param in response.error["message"]


@pytest.mark.parametrize(
    "fields", [{"n": 1}, {"stop": None}, {"logprobs": False}, {"response_format": {"type": "text"}}, {"user": "me"}]
)
def test_a_parameter_that_changes_nothing_is_accepted(server: Running, scene: str, fields: dict[str, Any]) -> None:
    assert server.chat(scene, QUESTION, **fields).status == 200


def part(image: str, **image_url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image, **image_url}}


@pytest.mark.parametrize(
    ("make", "param", "said"),
    [
        (lambda image: [], "messages", "at least 1 item"),
        (lambda image: "hi", "messages", "list"),
        (lambda image: [{"role": "user", "content": "Hi"}], "messages", "no image"),
        (lambda image: [{"role": "user", "content": [part(image), part(image)]}], "messages", "2 images"),
        (lambda image: [{"role": "user", "content": [part(image)]}], "messages", "blank"),
        (lambda image: [{"role": "nobody", "content": "Hi"}], "messages[0].role", "nobody"),
        (lambda image: [*messages(image, "Hi"), {"role": "assistant", "content": "Ho"}],
         "messages[1].role", "earlier"),
        (lambda image: [{"role": "user", "content": 5}], "messages[0].content", "list of parts"),
        (lambda image: [{"role": "user", "content": [{"type": "input_audio"}]}],
         "messages[0].content[0].type", "audio"),
        (lambda image: [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "string"),
        (lambda image: [{"role": "user", "content": [part(image, detail="low")]}],
         "messages[0].content[0].image_url.detail", "one resolution"),
        (lambda image: [{"role": "user", "content": [{"type": "image_url"}]}],
         "messages[0].content[0].image_url", "url"),
        (lambda image: messages("http://example.org/a.png", "Hi"),
         "messages[0].content[0].image_url", "example.org"),
        (lambda image: messages("data:image/png;base64,QUJD", "Hi"),
         "messages[0].content[0].image_url", "not an image"),
        (lambda image: messages(image, "Hi \ud800"), "messages", "surrogate"),
        (lambda image: messages(image, "x" * 5000), "messages", "5,000 characters"),
    ],
)  # fmt: skip
def test_messages_that_are_not_a_question_about_one_image_are_refused(
    server: Running, scene: str, make: Any, param: str, said: str
) -> None:
    response = server.send("/v1/chat/completions", {"model": EXAMPLE_NAME, "messages": make(scene)})
    assert (response.status, response.error["param"]) == (400, param)
    assert said in response.error["message"]


def test_an_image_url_can_be_a_string(server: Running, scene: str) -> None:
    content = [{"type": "image_url", "image_url": scene}, {"type": "text", "text": QUESTION}]
    body = {"model": EXAMPLE_NAME, "messages": [{"role": "user", "content": content}]}
    assert server.send("/v1/chat/completions", body).status == 200


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("caption", {"image": None}, "image"),
        ("caption", {"question": "Hi"}, "question"),
        ("caption", {"tags": ["a"], "tag_source": "tagger"}, "tag_source"),
        ("caption", {"tags": "x" * 5000}, "tags"),
        ("ask", {}, "questions"),
        ("ask", {"questions": []}, "questions"),
        ("ask", {"questions": ["Hi", " "]}, "questions[1]"),
        ("ask", {"questions": ["Hi"] * 33}, "questions"),
        ("locate", {"phrases": "the cat"}, "phrases"),
        ("describe", {"boxes": [[0, 0, 0.5, 0.5]]}, "boxes[0]"),
        ("describe", {"boxes": [[200, 200, 300, 300]]}, "boxes[0]"),
        ("tag", {"threshold": 2}, "threshold"),
    ],
)
def test_an_invalid_task_is_refused_by_name(
    server: Running, scene: str, path: str, fields: dict[str, Any], param: str
) -> None:
    response = server.send(f"/v1/{path}", {"image": scene, **fields})
    assert (response.status, response.error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/caption", b"{", 400, "invalid_json"),
        ("/v1/caption", b"[]", 400, "invalid_json"),
        ("/v1/caption", b"[" * 100_000, 400, "http_error"),
        ("/v1/caption", b'{"image": "x", "\\ud800": 1}', 400, "invalid_json"),
        ("/v1/nothing", b"{}", 404, "not_found"),
        ("/v1/models/other", None, 404, "model_not_found"),
        ("/v1/caption", None, 405, "http_error"),
    ],
)
def test_errors_of_the_framework_have_the_same_form(
    server: Running, path: str, body: bytes | None, status: int, code: str
) -> None:
    response = server.send(path, body)
    assert (response.status, response.error["code"]) == (status, code)


def test_a_body_without_its_content_type_is_refused_with_advice(server: Running) -> None:
    response = server.send("/v1/caption", b'{"image": "x"}', Content_Type="text/plain")
    assert response.status == 400
    assert "Content-Type: application/json" in response.error["message"]


def test_another_model_is_not_found(server: Running, scene: str) -> None:
    response = server.chat(scene, QUESTION, model="gpt-4")
    assert (response.status, response.error["code"], response.error["param"]) == (404, "model_not_found", "model")


def test_a_body_that_is_too_large_is_refused(lion: Lion, scene: str) -> None:
    with running(lambda: lion, Limits(max_image_bytes=30_000)) as server:
        response = server.send("/v1/caption", {"image": "x" * 5_000_000})
        assert (response.status, response.error["code"]) == (413, "too_large")
        assert server.send("/v1/caption", {"image": scene}).status == 200


def test_a_client_that_stops_sending_gets_an_error_and_frees_its_place(lion: Lion, scene: str) -> None:
    with running(lambda: lion, Limits(timeout=0.3, max_requests=1)) as server:
        with socket.create_connection(("127.0.0.1", server.server.port), timeout=10) as connection:
            head = (
                "POST /v1/caption HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
            )
            connection.sendall(head.encode() + b'{"image": ')
            assert b"408" in connection.recv(1000)
        assert server.service.admission.count == 0


def test_the_model_is_listed_and_described(server: Running) -> None:
    assert [card["id"] for card in server.send("/v1/models").json["data"]] == [EXAMPLE_NAME]
    assert server.send(f"/v1/models/{EXAMPLE_NAME}").json["id"] == EXAMPLE_NAME
    paths = server.send("/openapi.json").json["paths"]
    assert {"/v1/chat/completions", "/v1/caption", "/v1/ask", "/v1/locate", "/v1/describe", "/v1/tag"} <= set(paths)


def test_metrics_count_requests_and_batches(server: Running, scene: str) -> None:
    server.send("/v1/tag", {"image": scene})
    server.send("/v1/tag", {"image": "none"})
    text = server.send("/metrics").content.decode()
    assert 'lion_requests_total{replica="",route="/v1/tag",status="200"}' in text
    assert 'lion_requests_total{replica="",route="/v1/tag",status="400"}' in text
    assert "lion_batch_size_bucket" in text
    assert 'lion_ready{replica=""} 1.0' in text


def test_a_model_without_a_tagger_has_no_tags(lion: Lion, scene: str) -> None:
    with running(lambda: Lion(lion.model, lion.processor)) as server:
        assert server.send("/v1/tag", {"image": scene}).error["code"] == "no_tagger"
        assert server.send("/v1/caption", {"image": scene}).json["tags"] is None
        refused = server.send("/v1/caption", {"image": scene, "tag_source": "tagger"})
        assert refused.error["param"] == "tag_source"


def test_large_images_are_read(server: Running) -> None:
    assert server.send("/v1/caption", {"image": data_uri(sketch(1600, 1200))}).json["width"] == 1600
