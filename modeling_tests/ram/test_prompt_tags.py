"""Tags that flow into the prompt by themselves: tagger -> pipeline, tagger -> converted folder."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import Pipeline, pipeline

from convert_lion_checkpoint import main as convert
from ram.factories import noise_image
from transformers_lion import ImageTagger, Lion, LionProcessor, Request

IMAGES = [noise_image(seed) for seed in range(3)]
QUESTION = "Is there a dog in the image?"
SHORT = {"max_new_tokens": 6}


class CountingTagger:
    """A tagger that notes what it was given."""

    def __init__(self, tagger: Any):
        self.tagger = tagger
        self.calls: list[int] = []

    def __call__(self, images: Any) -> Any:
        images = list(images)
        self.calls.append(len(images))
        return self.tagger(images)


@pytest.fixture
def tagger(ram_folder: Path) -> CountingTagger:
    return CountingTagger(ImageTagger.from_pretrained(ram_folder))


@pytest.fixture(scope="session")
def folder_with_tagger(lion_files: Path, ram_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conversion's `--tagger`."""
    output = tmp_path_factory.mktemp("with-tagger") / "lion"
    options = {
        "--lion": "lion.pth",
        "--vision": "eva_vit.pth",
        "--language-model": "llm",
        "--qformer-tokenizer": "bert",
    }
    options["--overrides"] = "overrides.json"
    arguments = [part for option, name in options.items() for part in (option, str(lion_files / name))]
    assert convert([*arguments, "--tagger", str(ram_folder), "--output", str(output)]) == 0
    return output


def test_a_tag_that_reads_auto_is_a_tag(lion_processor: LionProcessor) -> None:
    words = lion_processor(text=QUESTION, tags=["auto"])["input_ids"]
    assert lion_processor(IMAGES[0], QUESTION, tags="auto")["input_ids"] == words
    assert words != lion_processor(text=QUESTION, tags=[])["input_ids"]


@pytest.fixture
def pipe(lion_folder: Path, tagger: CountingTagger) -> Pipeline:
    return pipeline("image-to-text", model=str(lion_folder), tagger=tagger)


def answers(pipe: Pipeline, index: int, tags: Any) -> list[dict[str, Any]]:
    inputs = pipe.processor(IMAGES[index], QUESTION, tags=tags, return_tensors="pt")
    texts = pipe.processor.batch_decode(pipe.model.generate(**inputs, **SHORT), skip_special_tokens=True)
    return [{"generated_text": text, "tags": tags} for text in texts]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_pipelines_tags_are_the_taggers_a_batch_at_a_time(
    batch_size: int, pipe: Pipeline, tagger: CountingTagger
) -> None:
    names = tagger.tagger(IMAGES)
    results = pipe(IMAGES, text=QUESTION, batch_size=batch_size, return_tags=True, **SHORT)
    assert results == [answers(pipe, index, names[index]) for index in range(3)]
    assert tagger.calls == {1: [1, 1, 1], 2: [2, 1]}[batch_size]
    assert pipe(IMAGES[0], text=QUESTION, return_tags=True, **SHORT) == answers(pipe, 0, names[0])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_given_tags_go_before_the_taggers(batch_size: int, pipe: Pipeline, tagger: CountingTagger) -> None:
    names = tagger.tagger(IMAGES)
    results = pipe(IMAGES, text=QUESTION, tags=[["dog", "cat"], None, []], batch_size=batch_size, return_tags=True,
                   **SHORT)  # fmt: skip
    expected = [["dog", "cat"], names[1], []]
    assert results == [answers(pipe, index, tags) for index, tags in enumerate(expected)]
    assert sum(tagger.calls) == 1
    assert pipe(IMAGES[0], tags="auto, cat", return_tags=True, **SHORT)[0]["tags"] == ["auto", "cat"]
    assert sum(tagger.calls) == 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_source_of_tags_is_that_of_the_call_or_of_each_image(
    batch_size: int, pipe: Pipeline, tagger: CountingTagger
) -> None:
    names = tagger.tagger(IMAGES)
    options: dict[str, Any] = {"text": QUESTION, "batch_size": batch_size, "return_tags": True, **SHORT}
    records = [{"image": image, "tags": ["dog"] if index else None} for index, image in enumerate(IMAGES)]

    def found(inputs: Any, **given: Any) -> list[Any]:
        return [result[0]["tags"] for result in pipe(inputs, **given, **options)]

    assert found(records) == [names[0], ["dog"], ["dog"]]
    assert found(records, tag_source="data") == [None, ["dog"], ["dog"]]
    assert found(records, tag_source="tagger") == names
    assert found(records, tag_source="none") == [None, None, None]
    assert found(IMAGES, tags=[["dog"], None, ["dog"]], tag_source=["data", "tagger", "none"]) == [
        ["dog"], names[1], None
    ]  # fmt: skip
    sources = ("none", "tagger", None)
    each = [{**record, "tag_source": source} for record, source in zip(records, sources, strict=True)]
    assert found(each) == [None, names[1], ["dog"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tags": ["dog"], "tag_source": "tagger"}, r"tags is \['dog'\], but tag_source is \"tagger\""),
        ({"tag_source": "auto"}, "tag_source is 'auto', but must be one of 'data', 'tagger', 'none' or None"),
        ({"tags": False}, 'tags must be a string, a list of strings or None, but is bool. Use tag_source="none"'),
    ],
)
def test_tags_and_sources_that_do_not_fit_are_refused(
    options: dict[str, Any], words: str, lion_folder: Path, pipe: Pipeline, tagger: CountingTagger
) -> None:
    with pytest.raises(ValueError, match=words):
        pipe(IMAGES[0], **options)
    with pytest.raises(ValueError, match=words):
        Request(IMAGES[0], QUESTION, **options)
    assert tagger.calls == []


def test_a_missing_tagger_is_missed_before_an_image_is_opened(lion_folder: Path) -> None:
    pipe = pipeline("image-to-text", model=str(lion_folder))
    with pytest.raises(ValueError, match=r"there is no tagger\. Pass tagger=ImageTagger\.from_pretrained"):
        pipe("missing.png", tag_source="tagger")
    with pytest.raises(ValueError, match=r"there is no tagger\. Pass tagger=ImageTagger\.from_pretrained"):
        Lion(pipe.model, pipe.processor).caption("missing.png", tag_source="tagger")


def test_the_conversion_puts_a_tagger_where_the_pipeline_finds_it(
    folder_with_tagger: Path, ram_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = pipeline("image-to-text", model=str(folder_with_tagger))
    assert isinstance(found.tagger, ImageTagger)
    names = ImageTagger.from_pretrained(ram_folder)(IMAGES[:1])[0]
    assert found(IMAGES[0], return_tags=True, **SHORT)[0]["tags"] == names
    assert pipeline("image-to-text", model=str(folder_with_tagger), tagger=False).tagger is None


def test_a_folder_that_is_no_tagger_is_refused(
    lion_files: Path, lion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--lion", str(lion_files / "lion.pth"), "--language-model", str(lion_files / "llm")]
    arguments += ["--qformer-tokenizer", str(lion_files / "bert"), "--output", str(tmp_path / "lion")]
    assert convert([*arguments, "--tagger", str(lion_folder)]) == 1
    assert "expected a model of type 'ram', not 'lion'" in capsys.readouterr().err
    assert convert([*arguments, "--tagger", str(tmp_path)]) == 1
    assert not (tmp_path / "lion").exists()


@pytest.mark.slow
def test_without_tags_and_tagger_one_warning_says_so(lion_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = """
import sys, transformers_lion
from PIL import Image
from transformers import pipeline
pipe = pipeline("image-to-text", sys.argv[1])
for _ in range(3):
    pipe(Image.new("RGB", (9, 9)), max_new_tokens=2)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(lion_folder)], capture_output=True, text=True, check=True
    )
    assert result.stderr.count("no tags and no tagger") == 1


def test_an_image_that_cannot_be_read_is_named_before_it_is_tagged(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        pipe([str(tmp_path / "broken.png")], **SHORT)


def test_nothing_is_tagged_twice(lion_folder: Path, ram_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagger = ImageTagger.from_pretrained(ram_folder)
    pipe = pipeline("image-to-text", model=str(lion_folder), tagger=tagger)
    seen: list[int] = []
    forward = tagger.model.forward
    monkeypatch.setattr(tagger.model, "forward", lambda *args, **kwargs: (seen.append(1), forward(*args, **kwargs))[1])
    pipe([IMAGES[0], IMAGES[0].copy()], batch_size=2, **SHORT)
    pipe(IMAGES[0], **SHORT)
    assert len(seen) == 1
