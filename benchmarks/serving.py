"""Throughput and latency of `lion serve`, beside `Lion.answer` in a plain loop; and a long run with invalid requests.

    python benchmarks/serving.py [--requests 512] [--clients 32] [--batch-size 8] [--engine local] [--runs 3]
    python benchmarks/serving.py --requests 10000 --bad 0.05

The model is the example checkpoint, or `--model`. The requests mix captions, questions and boxes about JPEG images of
640x480, a new one for each, so that no tags are cached. Offline and service take turns, in processes of their own, with
the same number of torch threads. A client sends its next request when it has an answer. With `--bad`, this share of the
requests is invalid, and all answers are compared with those of the offline run. No result is published yet.
"""

import argparse
import base64
import http.client
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SOURCE = Path(__file__).resolve().parents[1] / "src"
TASKS = ("caption", "ask", "locate")
QUESTION, PHRASE = "What color is the circle?", "the circle"
BAD_BODIES: list[dict[str, Any]] = [
    {"image": "data:image/png;base64,QUJD"},
    {"image": "http://example.org/a.png"},
    {"image": "data:image/jpeg;base64,???"},
    {"unknown": 1},
    {"num_beams": 0},
    {"tags": 5},
]
OFFLINE = """
import json, sys, time
from pathlib import Path
from transformers_lion import Lion
from transformers_lion.inference import LOCATE_QUESTION, Request
folder, model, batch_size = Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3])
lion = Lion.from_pretrained(model)
jobs = json.loads((folder / "jobs.json").read_text())
texts = {"caption": lion.processor.caption_prompt, "ask": jobs["question"],
         "locate": LOCATE_QUESTION.format(phrase=jobs["phrase"])}
requests = [
    Request(str(folder / f"{index:06}.jpg"), texts[task], "region_level" if task == "locate" else "image_level")
    for index, task in enumerate(jobs["tasks"])
]
lion.answer(requests[:batch_size], batch_size=batch_size)
start = time.perf_counter()
answers = lion.answer(requests, batch_size=batch_size)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "answers": [answer.text for answer in answers],
                  "boxes": [[[round(value, 2) for value in box] for box in answer.boxes] for answer in answers]}))
"""


@dataclass
class Sent:
    """What a client received: status, seconds, and the JSON."""

    status: int
    seconds: float
    found: dict[str, Any]


def write_work(folder: Path, count: int) -> list[str]:
    """Write images and tasks, and return the tasks."""
    rng = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{index:06}.jpg", quality=90)
    tasks = [TASKS[index % len(TASKS)] for index in range(count)]
    (folder / "jobs.json").write_text(json.dumps({"tasks": tasks, "question": QUESTION, "phrase": PHRASE}))
    return tasks


def body_of(folder: Path, index: int, task: str) -> dict[str, Any]:
    """The body of a valid request."""
    image = base64.b64encode((folder / f"{index:06}.jpg").read_bytes()).decode()
    own = {"caption": {}, "ask": {"questions": [QUESTION]}, "locate": {"phrases": [PHRASE]}}[task]
    return {"image": f"data:image/jpeg;base64,{image}", **own}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "200"}


def run_offline(folder: Path, model: str, batch_size: int) -> dict[str, Any]:
    """Answer all requests in one call."""
    arguments = [sys.executable, "-c", OFFLINE, str(folder), model, str(batch_size)]
    ran = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, env=environment())
    return json.loads(ran.stdout.splitlines()[-1])


class Server:
    """`lion serve` in a process of its own."""

    def __init__(self, model: str, batch_size: int, engine: str, port: int):
        arguments = ["serve", "--engine", engine, "--port", str(port), "--batch-size", str(batch_size)]
        arguments += ["--model", model] if model else []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "transformers_lion.cli", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "ready at" in line:
                break
        self.port = int(re.findall(r":(\d+)/v1", line)[0])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def histogram(self) -> dict[str, int]:
        """Number of forward passes of each size class so far."""
        connection = self.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        found = re.findall(r'lion_batch_size_bucket\{le="([^"]+)".*\} ([\d.]+)', text)
        counts = [(name, int(float(value))) for name, value in found]
        below = [0, *(count for _, count in counts)]
        return {name: count - before for (name, count), before in zip(counts, below, strict=False)}

    def stop(self) -> int:
        """Drain, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def run_clients(server: Server, bodies: list[tuple[str, bytes]], clients: int) -> tuple[float, list[Sent | None]]:
    """Send all requests from several clients, and return the seconds and what was received."""
    received: list[Sent | None] = [None] * len(bodies)
    numbers = iter(range(len(bodies)))
    lock = threading.Lock()

    def run() -> None:
        connection = server.connect()
        while True:
            with lock:
                index = next(numbers, None)
            if index is None:
                return
            path, content = bodies[index]
            start = time.perf_counter()
            connection.request("POST", path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            found = json.loads(response.read())
            received[index] = Sent(response.status, time.perf_counter() - start, found)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, received


def check(task: str | None, sent: Sent | None, answer: str, boxes: list[list[float]]) -> str | None:
    """What is wrong with a response, if anything. `task` is `None` for an invalid request."""
    if sent is None:
        return "lost"
    if task is None:
        message = sent.found.get("error", {}).get("message", "")
        return None if 400 <= sent.status < 500 and message.endswith(".") else f"status {sent.status}: {message!r}"
    if sent.status != 200:
        return f"status {sent.status}: {sent.found}"
    if task == "caption":
        return None if sent.found["caption"] == answer else "another caption"
    if task == "ask":
        return None if sent.found["answers"][0]["answer"] == answer else "another answer"
    return None if sent.found["located"][0]["boxes"] == boxes else "other boxes"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--bad", type=float, default=0.0, help="share of invalid requests")
    parser.add_argument("--model", default="", help="folder or repository; the example checkpoint by default")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    step = round(1 / options.bad) if options.bad else 0
    offline: list[float] = []
    served: list[float] = []
    waits: list[float] = []
    wrong: list[str] = []
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tasks = write_work(folder, options.requests)
        for run in range(options.runs):
            expected = run_offline(folder, options.model, options.batch_size)
            offline.append(expected["seconds"])
            bodies: list[tuple[str, bytes]] = []
            asked: list[str | None] = []
            for index, task in enumerate(tasks):
                is_bad = bool(step) and index % step == step - 1
                changes = BAD_BODIES[index // step % len(BAD_BODIES)] if is_bad else {}
                bodies.append((f"/v1/{task}", json.dumps({**body_of(folder, index, task), **changes}).encode()))
                asked.append(None if is_bad else task)
            server = Server(options.model, options.batch_size, options.engine, options.port + run)
            run_clients(server, bodies[: options.batch_size], 1)  # the first forward passes are slower
            before = server.histogram()
            seconds, received = run_clients(server, bodies, options.clients)
            sizes = {name: count - before[name] for name, count in server.histogram().items()}
            served.append(seconds)
            waits += [sent.seconds for sent, task in zip(received, asked, strict=True) if sent and task]
            rows = zip(asked, received, expected["answers"], expected["boxes"], strict=True)
            wrong += [problem for row in rows if (problem := check(*row))]
            if server.stop() != 0:
                wrong.append("the server did not end with exit code 0")
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads of torch; torch {version('torch')}, "
        f"transformers {version('transformers')}, fastapi {version('fastapi')}, uvicorn {version('uvicorn')}; engine "
        f"{options.engine}, {options.requests} requests, {options.clients} clients, batch size {options.batch_size}, "
        f"{options.bad:.0%} invalid; medians of {options.runs} runs in turns.\n"
    )
    rates = [options.requests / statistics.median(column) for column in (offline, served)]
    print("| | requests a second | relative to offline | p50 | p99 |\n| --- | --- | --- | --- | --- |")
    print(f"| `Lion.answer` in one call | {rates[0]:.1f} | 1.00 | | |")
    p50, p99 = (1000 * float(np.percentile(waits, share)) for share in (50, 99))
    print(f"| `lion serve` | {rates[1]:.1f} | {rates[1] / rates[0]:.2f} | {p50:.0f} ms | {p99:.0f} ms |")
    print("\nForward passes of the last run, by their number of questions (upper bounds):", end=" ")
    print(", ".join(f"{name}: {count}" for name, count in sizes.items() if count))
    print(
        f"\nResponses that are lost, wrong, or not refused as they should be: {len(wrong)}.", *sorted(set(wrong))[:10]
    )


if __name__ == "__main__":
    main()
