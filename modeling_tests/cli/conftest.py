"""A folder with images, and the example checkpoint, loaded once."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from transformers_lion import ImageTagger, Lion
from transformers_lion.cli import questions, tagging
from transformers_lion.example import TAGGER, example_checkpoint, example_image, sketch


@pytest.fixture(scope="session")
def example_lion() -> Lion:
    return Lion.from_pretrained(tagger=False)


@pytest.fixture(scope="session")
def example_tagger() -> ImageTagger:
    return ImageTagger.from_pretrained(Path(example_checkpoint()) / TAGGER)


@pytest.fixture
def workplace(tmp_path: Path, example_lion: Lion, example_tagger: ImageTagger, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`scene.png` and `sketch.jpg` in the working folder; models are not loaded again."""
    monkeypatch.chdir(tmp_path)
    example_image().resize((100, 100)).save("scene.png")
    sketch().save("sketch.jpg")
    monkeypatch.setattr(questions, "load_lion", lambda *arguments: example_lion)
    monkeypatch.setattr(tagging, "load_tagger", lambda *arguments: example_tagger)
    return tmp_path


@pytest.fixture
def quick(example_lion: Lion, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answers that take no time, and the requests that they were asked with, a list for each call."""
    calls: list[Any] = []
    from transformers_lion import Answer

    def answer(self: Lion, requests: Any, **options: Any) -> Any:
        calls.append(list(requests))
        return [Answer(f"answer {item.image.size}", item.question, None, [], item.image.size) for item in requests]

    monkeypatch.setattr(Lion, "answer", answer)
    return calls


@pytest.fixture(autouse=True)
def default_termination() -> Iterator[None]:
    """SIGTERM ends the process, as in a new one; Ray, in tests of jobs, sets a handler of its own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)
