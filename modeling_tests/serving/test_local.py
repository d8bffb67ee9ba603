"""The engine in one process: loading, readiness, and shutdowns that answer running requests."""

import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.running import Client, running, wait_until
from transformers_lion import Lion
from transformers_lion.serving.local import serve_locally
from transformers_lion.serving.service import Service
from transformers_lion.serving.settings import EXAMPLE_NAME, Limits

SLOW_SERVER = """
import sys, time
from transformers_lion import Lion
answer = Lion.answer
def slow(self, requests, **options):
    print("computing", flush=True)
    time.sleep(1.5)
    return answer(self, requests, **options)
Lion.answer = slow
from transformers_lion.cli import main
sys.argv = ["lion", "serve", "--engine", "local", "--port", "0"]
main()
"""


def test_the_service_answers_503_until_the_model_is_loaded(lion: Lion, scene: str) -> None:
    release = threading.Event()

    def load() -> Lion:
        release.wait(10)
        return lion

    with running(load, wait=False) as server, ThreadPoolExecutor(1) as pool:
        assert server.send("/ready").json == {"status": "loading"}
        refused = server.send("/v1/caption", {"image": scene})
        assert (refused.status, refused.error["code"]) == (503, "loading")
        waiting = pool.submit(server.send, "/health")
        assert not waiting.done()
        release.set()
        assert waiting.result().json == {"status": "ok"}
        assert server.send("/ready").status == 200
        assert server.send("/v1/caption", {"image": scene}).status == 200


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    def load() -> Lion:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        serve_locally(Service(load, EXAMPLE_NAME, Limits()), "127.0.0.1", 0, lambda text: None)


def test_a_port_that_is_in_use_is_an_error(lion: Lion) -> None:
    with running(lambda: lion) as server, pytest.raises(OSError, match=f"port {server.server.port}"):
        serve_locally(Service(lambda: lion, EXAMPLE_NAME, Limits()), "127.0.0.1", server.server.port, lambda text: None)


def test_a_drained_service_answers_what_runs_and_refuses_the_rest(
    lion: Lion, scene: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = threading.Event(), threading.Event()
    answer = Lion.answer

    def slow(self: Lion, requests: Any, **options: Any) -> Any:
        begun.set()
        release.wait(10)
        return answer(self, requests, **options)

    monkeypatch.setattr(Lion, "answer", slow)
    with running(lambda: lion) as server, ThreadPoolExecutor(1) as pool:
        running_request = pool.submit(server.send, "/v1/caption", {"image": scene})
        begun.wait(10)
        assert server.server.loop is not None
        server.server.loop.call_soon_threadsafe(server.server.begin_draining)
        wait_until(lambda: not server.service.admission.is_open)
        refused = server.send("/v1/caption", {"image": scene})
        assert (refused.status, refused.error["code"]) == (503, "shutting_down")
        assert server.send("/ready").json == {"status": "draining"}
        release.set()
        assert running_request.result().status == 200


def test_sigterm_lets_the_command_answer_running_requests(scene: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path), "COLUMNS": "200"}
    with (
        subprocess.Popen(
            [sys.executable, "-c", SLOW_SERVER],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            (url,) = re.findall(r"http://[\w.:]+", process.stdout.readline())
            client = Client(url)
            assert client.send("/health").json == {"status": "ok"}
            assert "ready" in process.stdout.readline()
            answered = pool.submit(client.send, "/v1/caption", {"image": scene})
            assert process.stdout.readline() == "computing\n"
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.send("/ready").json["status"] == "draining")
            assert client.send("/v1/caption", {"image": scene}).error["code"] == "shutting_down"
            assert answered.result().status == 200
            assert (process.wait(10), process.stderr.read()) == (0, "")
        finally:
            process.kill()
