"""A checkpoint's files: found at once in the cache of the Hub, whole or named, and of finite numbers."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants
from transformers import AutoProcessor, ProcessorMixin, pipeline

from transformers_lion import ImageTagger, Lion, LionForConditionalGeneration, LionProcessor, example_checkpoint
from transformers_lion.checkpoint_utils import TIMEOUT
from transformers_lion.modeling_utils import check_finite

REPO = "someone/lion"


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The example checkpoint as `hf download` leaves a repository in the cache, which is all that there is."""
    repository = tmp_path / "models--someone--lion"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Path(shutil.copytree(example_checkpoint(), repository / "snapshots" / ("a" * 40)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example checkpoint that may be broken."""
    return Path(shutil.copytree(example_checkpoint(), tmp_path / "lion"))


@pytest.mark.parametrize("load", [LionProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_a_processor_is_whole_offline(load: Callable[..., Any], cached: Path) -> None:
    expected = LionProcessor.from_pretrained(example_checkpoint())(text="a red circle", tags="red")
    assert load(REPO)(text="a red circle", tags="red").data == expected.data
    (cached / "qformer_tokenizer" / "config.json").unlink()  # as earlier versions saved it
    assert load(REPO)(text="a red circle", tags="red").data == expected.data


def test_transformers_own_loading_is_right_offline_or_refused(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        logging.getLogger("transformers.processing_utils"), "disabled", True
    )  # it warns of what it does
    load = ProcessorMixin.from_pretrained.__func__  # type: ignore[attr-defined]
    assert load(LionProcessor, REPO).qformer_tokenizer.cls_token == "[CLS]"
    (cached / "qformer_tokenizer" / "config.json").unlink()
    with pytest.raises(ValueError, match="but the Q-Former needs BERT's WordPiece"):
        load(LionProcessor, REPO)


def test_lion_and_the_pipeline_find_all_parts_offline(cached: Path) -> None:
    lion = Lion.from_pretrained(REPO)
    assert lion.model.name_or_path == REPO
    assert isinstance(lion.tagger, ImageTagger)
    assert isinstance(pipeline("image-to-text", model=REPO).tagger, ImageTagger)


def test_a_hub_that_does_not_answer_is_waited_for_once(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def wait(self: HfApi, repo: str, timeout: float, **options: Any) -> None:
        asked.append(timeout)
        raise ConnectionError("timed out")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", wait)
    assert LionProcessor.from_pretrained(REPO).qformer_tokenizer.cls_token == "[CLS]"
    assert asked == [TIMEOUT]


def test_a_repository_that_is_nowhere_is_explained_by_transformers(cached: Path) -> None:
    with pytest.raises(OSError, match="someone/else"):
        LionProcessor.from_pretrained("someone/else")


def test_a_saved_processor_tells_the_kind_of_its_second_tokenizer(
    lion_processor: LionProcessor, lion_folder: Path, tmp_path: Path
) -> None:
    lion_processor.save_pretrained(tmp_path / "saved")
    for place in (tmp_path / "saved", lion_folder, Path(example_checkpoint())):
        assert json.loads((place / "qformer_tokenizer" / "config.json").read_text()) == {"model_type": "bert"}


NEEDED = [
    "config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "qformer_tokenizer/tokenizer.json", "qformer_tokenizer/tokenizer_config.json",
    "tagger/config.json", "tagger/model.safetensors", "tagger/preprocessor_config.json",
]  # fmt: skip


@pytest.mark.parametrize("name", NEEDED)
def test_a_file_that_is_missing_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises((OSError, ValueError), match=name.rpartition("/")[2]):
        Lion.from_pretrained(folder)


@pytest.mark.parametrize("name", [name for name in NEEDED if name.startswith(("processor", "tok", "qformer"))])
def test_a_processor_without_one_of_its_files_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        LionProcessor.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, folder: Path) -> None:
    model = LionForConditionalGeneration.from_pretrained(folder)
    model.language_model.lm_head.weight.data[3, 5] = value
    model.save_pretrained(folder)
    for load in (Lion.from_pretrained, lambda place: pipeline("image-to-text", model=str(place))):
        with pytest.raises(
            ValueError, match=r"this checkpoint is damaged: language_model\.lm_head\.weight contains infinite"
        ):
            load(folder)


def test_integers_and_weights_elsewhere_are_passed_over() -> None:
    module = torch.nn.Module()
    module.empty = torch.nn.Parameter(torch.zeros(0))
    module.packed = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    module.elsewhere = torch.nn.Parameter(torch.zeros(3, device="meta"))
    check_finite(module, "here")
