"""The engine on Ray Serve: answers, errors in our form, and a shutdown that drains."""

import dataclasses
import functools
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

from serving.running import Client, messages
from transformers_lion import Lion
from transformers_lion.example import example_image
from transformers_lion.serving import ray_serve
from transformers_lion.serving.settings import EXAMPLE_NAME, Limits

pytestmark = pytest.mark.slow

SETTINGS = ray_serve.RaySettings(port=8971)


def load_slowly() -> Lion:
    """Load a model that takes a second for questions with "wait"."""
    lion = Lion.from_pretrained()
    answer = lion.answer

    def slow(requests: Any, **options: Any) -> Any:
        if any("wait" in request.question for request in requests):
            time.sleep(1.5)
        return answer(requests, **options)

    lion.answer = slow  # type: ignore[method-assign]
    return lion


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import this module
    before = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    signal.signal(signal.SIGTERM, before)  # which `ray.init` replaces
    try:
        ray_serve.start(load_slowly, EXAMPLE_NAME, Limits(timeout=10, max_requests=8), SETTINGS)
        yield Client(f"http://{SETTINGS.host}:{SETTINGS.port}")
    finally:
        ray_serve.disconnect(SETTINGS)


def test_the_replica_answers_like_lion(client: Client, lion: Lion, scene: str) -> None:
    image, text = example_image().resize((100, 100)), "What color is the heart?"
    found = client.openai().chat.completions.create(model=EXAMPLE_NAME, messages=messages(scene, text))  # type: ignore[arg-type]
    assert found.choices[0].message.content == lion.ask(image, text)
    chunks = client.chat(scene, "Describe the image.", stream=True, num_beams=1).content
    assert chunks.endswith(b"data: [DONE]\n\n")


def test_errors_have_our_form_and_health_and_metrics_are_there(client: Client, scene: str) -> None:
    assert client.chat(scene, "Hi", n=2).error["param"] == "n"
    assert client.send("/v1/nothing", {}).error["code"] == "not_found"
    assert client.send("/health").json == {"status": "ok"}
    assert b'lion_ready{replica="' in client.send("/metrics").content


def test_the_replica_refuses_before_serve_does(client: Client, scene: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda _: client.chat(scene, "wait"), range(16)))
    refused = [response for response in responses if response.status != 200]
    assert refused
    assert {response.error["code"] for response in refused} == {"overloaded"}


def test_a_stop_answers_what_runs_refuses_the_rest_and_leaves_serve(client: Client, scene: str) -> None:
    outcome: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.chat, scene, "wait")
        time.sleep(0.5)
        stopping = threading.Thread(target=lambda: outcome.append(ray_serve.stop(SETTINGS.name, 10)))
        stopping.start()
        statuses = []
        while stopping.is_alive():
            statuses.append(client.send("/v1/caption", {}).status)  # 400 while requests are accepted
            time.sleep(0.05)
        stopping.join()
        assert running.result().status == 200
    assert outcome == [True]
    assert 503 in statuses
    assert set(statuses) <= {400, 503, 404}
    with pytest.raises(ValueError, match="no application 'lion'"):
        ray_serve.stop(SETTINGS.name, 1)


def test_a_model_that_cannot_be_loaded_is_an_error_in_a_sentence(client: Client) -> None:
    load = functools.partial(Lion.from_pretrained, "/no/such/folder")
    with pytest.raises(ValueError, match=r"cannot be started: .*no/such/folder"):
        ray_serve.start(load, EXAMPLE_NAME, Limits(), SETTINGS)
    with pytest.raises(ValueError, match="no application 'lion'"):
        ray_serve.stop(SETTINGS.name, 1)


def test_more_replicas_than_the_machine_can_run_are_refused(client: Client) -> None:
    settings = dataclasses.replace(SETTINGS, num_replicas=3)
    with pytest.raises(ValueError, match="3 replicas with 1 CPUs need 3 CPUs, but this machine has 2"):
        ray_serve.start(load_slowly, EXAMPLE_NAME, Limits(), settings)


def test_a_signal_ends_the_wait_and_a_second_one_interrupts() -> None:
    signals = ray_serve.EndingSignals()
    with pytest.raises(KeyboardInterrupt):
        signals.handle(15, None)  # before the application is started
    threading.Timer(0.05, signals.handle, (15, None)).start()
    signals.wait()
    with pytest.raises(KeyboardInterrupt):
        signals.handle(15, None)
