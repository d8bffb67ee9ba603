"""The official client of OpenAI: answers, streams, errors that its users see, and no repeated work."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from serving.running import Running, data_uri, messages, running, wait_until
from transformers_lion import Lion
from transformers_lion.example import example_image, sketch
from transformers_lion.inference import LOCATE_QUESTION, Answer, Request
from transformers_lion.serving.settings import EXAMPLE_NAME, Limits

IMAGES = [example_image().resize((100, 100)), sketch(160, 120), example_image().rotate(90).resize((80, 80))]
QUESTIONS = [
    ("What color is the heart?", "image_level"),
    ("How many shapes are there?", "image_level"),
    (LOCATE_QUESTION.format(phrase="the cross"), "region_level"),
    ("Describe the image.", "image_level"),
]


def ask(client: openai.OpenAI, image: str, text: str, **fields: Any) -> Any:
    return client.chat.completions.create(model=EXAMPLE_NAME, messages=messages(image, text), **fields)  # type: ignore[call-overload]


def test_answers_under_mixed_load_equal_those_of_lion_and_bad_requests_fail_alone(server: Running, lion: Lion) -> None:
    uris = [data_uri(image) for image in IMAGES]
    asked = [(image, *question) for image in range(len(IMAGES)) for question in QUESTIONS]
    expected = {
        (image, text): lion.answer([Request(IMAGES[image], text, task)], num_beams=1)[0].text
        for image, text, task in asked
    }
    jobs = [(*asked[index % len(asked)], index % 20 == 19) for index in range(60)]
    before = server.batch_sizes()
    client = server.openai(max_retries=0)

    def run(job: tuple[int, str, str, bool]) -> str:
        image, text, task, is_bad = job
        extra = {"chat_template_kwargs": {"task_type": task}, "num_beams": 1}
        try:
            answer = ask(client, "data:image/png;base64,QUJD" if is_bad else uris[image], text, extra_body=extra)
        except openai.BadRequestError as error:
            return f"refused: {error.message}"
        return answer.choices[0].message.content

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(run, jobs))
    for (image, text, _, is_bad), answer in zip(jobs, answers, strict=True):
        if is_bad:
            assert answer.startswith("refused: ")
            assert "not an image" in answer
        else:
            assert answer == expected[image, text]
    assert server.batch_sizes() - before < 57  # so there were batches


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_streamed_answer_is_the_answer(server: Running, lion: Lion, scene: str, num_beams: int) -> None:
    text, task = QUESTIONS[2]
    (expected,) = lion.answer([Request(IMAGES[0], text, task)], num_beams=num_beams)
    extra = {"chat_template_kwargs": {"task_type": task}, "num_beams": num_beams}
    options = {"stream": True, "stream_options": {"include_usage": True}, "extra_body": extra}
    chunks = list(ask(server.openai(), scene, text, **options))
    *parts, last, usage = chunks
    texts = [chunk.choices[0].delta.content for chunk in parts]
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(texts) == expected.text
    assert (len(texts) > 3) == (num_beams == 1)  # beam search knows the words at the end
    assert last.choices[0].finish_reason == "stop"
    assert last.lion["entities"][0]["boxes"] == [[round(value, 2) for value in box] for box in expected.boxes]
    assert (usage.choices, usage.usage.completion_tokens) == ([], expected.num_tokens)


def test_streams_and_whole_answers_share_a_batch(server: Running, lion: Lion) -> None:
    uris = [data_uri(image) for image in IMAGES]
    jobs = [(image, QUESTIONS[3][0], is_streamed) for image in range(3) for is_streamed in (True, False)]
    expected = [lion.answer([Request(image, QUESTIONS[3][0])], num_beams=1)[0].text for image in IMAGES]

    client = server.openai()

    def run(job: tuple[int, str, bool]) -> str:
        image, text, is_streamed = job
        found = ask(client, uris[image], text, stream=is_streamed, extra_body={"num_beams": 1})
        if not is_streamed:
            return found.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in found)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(run, jobs)) == [expected[image] for image, _, _ in jobs]


def test_a_stream_ends_with_done(server: Running, scene: str) -> None:
    content = server.chat(scene, QUESTIONS[0][0], stream=True).content.decode()
    assert content.endswith("}\n\ndata: [DONE]\n\n")


def test_errors_are_sentences(server: Running, scene: str) -> None:
    client = server.openai()
    with pytest.raises(openai.BadRequestError, match="LION does not support") as caught:
        ask(client, scene, "Hi", n=2)
    assert (caught.value.param, caught.value.code) == ("n", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-4'"):
        client.chat.completions.create(model="gpt-4", messages=messages(scene, "Hi"))  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="exactly one image"):
        ask(client, scene, "Hi", stream=True, extra_body={"messages": [{"role": "user", "content": "Hi"}]})


class Slow:
    """Makes forward passes wait, fail, or stream a text and then fail."""

    def __init__(self, lion: Lion, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[str]] = []
        self.released = threading.Event()
        answer = Lion.answer

        def slow(lion: Lion, requests: Any, **options: Any) -> list[Answer]:
            texts = [request.question for request in requests]
            self.batches.append(texts)
            if any("wait" in text for text in texts):
                self.released.wait(10)
            if any("fail" in text for text in texts):
                raise RuntimeError("secret")
            if any("break" in text for text in texts):
                options["streamer"].receivers[0]("the first words")
                raise RuntimeError("secret")
            return answer(lion, requests, **options)

        monkeypatch.setattr(Lion, "answer", slow)

    def wait_for(self, count: int) -> None:
        """Wait for a number of forward passes."""
        wait_until(lambda: len(self.batches) >= count)


@pytest.fixture
def slow(lion: Lion, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    found = Slow(lion, monkeypatch)
    yield found
    found.released.set()


def test_a_failing_request_is_computed_once_and_alone(server: Running, slow: Slow, scene: str) -> None:
    client = server.openai()  # which retries by default
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, client, scene, "wait")
        slow.wait_for(1)
        jobs = [pool.submit(ask, client, scene, text) for text in ("one", "fail", "two")]
        wait_until(lambda: len(server.service.queue.waiting) == 3)
        slow.released.set()
        with pytest.raises(openai.InternalServerError, match="failed on this request with RuntimeError") as caught:
            jobs[1].result()
        assert "secret" not in str(caught.value)
        assert all(job.result().choices[0].message.content for job in (first, jobs[0], jobs[2]))
    assert Counter(map(len, slow.batches)) == {1: 4, 3: 1}


def test_an_error_in_a_stream_is_an_event(server: Running, slow: Slow, scene: str) -> None:
    received = []
    chunks = ask(server.openai(), scene, "break", stream=True, extra_body={"num_beams": 1})

    def read() -> None:
        received.extend(chunk.choices[0].delta.content for chunk in chunks)

    with pytest.raises(openai.APIError, match="failed on this request"):
        read()
    assert "".join(received) == "the first words"
    assert server.chat(scene, "break", stream=True, num_beams=1).content.endswith(b"data: [DONE]\n\n")


def test_an_error_before_the_first_word_of_a_stream_has_its_status(server: Running, slow: Slow, scene: str) -> None:
    assert server.chat(scene, "fail", stream=True, num_beams=1).status == 500


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_not_sent_again(lion: Lion, slow: Slow, scene: str, stream: bool) -> None:
    with running(lambda: lion, Limits(timeout=0.3)) as server:
        with pytest.raises(openai.InternalServerError, match=r"longer than 0\.3 seconds") as caught:
            ask(server.openai(), scene, "wait", stream=stream)
        assert caught.value.status_code == 504
        slow.released.set()
    assert slow.batches == [["wait"]]


def test_a_request_whose_time_ends_in_the_queue_is_not_computed(lion: Lion, slow: Slow, scene: str) -> None:
    with running(lambda: lion, Limits(timeout=0.3)) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.chat, scene, "wait")
        slow.wait_for(1)
        assert server.chat(scene, "late").status == 504
        slow.released.set()
        assert first.result().status == 504
    assert slow.batches == [["wait"]]


def test_a_busy_service_refuses_more_and_the_client_tries_again(lion: Lion, slow: Slow, scene: str) -> None:
    with running(lambda: lion, Limits(max_requests=1)) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.chat, scene, "wait")
        slow.wait_for(1)
        refused = server.chat(scene, "more")
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert refused.headers["x-should-retry"] == "true"
        assert server.send("/ready").status == 200
        second = pool.submit(ask, server.openai(max_retries=5), scene, "again")
        time.sleep(0.1)
        slow.released.set()
        assert second.result().choices[0].message.content
        assert first.result().status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_left_out(server: Running, slow: Slow, scene: str, stream: bool) -> None:
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(server.chat, scene, "wait")
        slow.wait_for(1)
        leaving = pool.submit(ask, server.openai(timeout=0.3, max_retries=0), scene, "gone", stream=stream)
        with pytest.raises(openai.APITimeoutError):
            leaving.result()
        wait_until(lambda: server.service.admission.count == 1)
        kept = pool.submit(server.chat, scene, "kept")
        wait_until(lambda: len(server.service.queue.waiting) == 2)
        slow.released.set()
        assert (first.result().status, kept.result().status) == (200, 200)
    assert slow.batches == [["wait"], ["kept"]]
