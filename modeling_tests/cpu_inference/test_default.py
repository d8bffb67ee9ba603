"""`Lion`, the pipeline and the commands optimize what they load, and their models stay right afterwards."""

import copy
import pickle
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from cli.command_line import lion as command
from transformers_lion import Lion, LionForConditionalGeneration
from transformers_lion.cpu_inference import exchange
from transformers_lion.cpu_inference.default import describe_inference, is_packed
from transformers_lion.example import example_checkpoint, sketch

SHORT = {"max_new_tokens": 8}


def load(dtype: Any = None, **options: Any) -> Lion:
    return Lion.from_pretrained(tagger=False, dtype=dtype, **options)


def test_lion_is_optimized_unless_that_or_another_dtype_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    plain, fast = load(optimize=False), load()
    assert not is_packed(plain.model)
    assert is_packed(fast.model)
    assert describe_inference(fast.model) == "float32, weights packed in float32, in float16 where that is exact"
    assert fast.caption(sketch(), **SHORT) == plain.caption(sketch(), **SHORT)
    half = load("bfloat16")
    assert not is_packed(half.model)
    assert half.model.dtype == torch.bfloat16
    assert describe_inference(half.model) == "bfloat16, weights as loaded (on cpu)"


def test_a_bfloat16_checkpoint_is_packed_in_16_bits_and_moving_restores_it(tmp_path: Path) -> None:
    weights = load("bfloat16").model.state_dict()
    shutil.copytree(example_checkpoint(), tmp_path, dirs_exist_ok=True)
    load("bfloat16").model.save_pretrained(tmp_path)
    lion = Lion.from_pretrained(tmp_path, tagger=False)
    assert describe_inference(lion.model) == "float32, weights packed in float16 (exact)"
    answer = lion.caption(sketch(), **SHORT)
    assert Lion.from_pretrained(tmp_path, tagger=False, dtype="float32", optimize=False).caption(sketch(), **SHORT) == (
        answer
    )
    lion.model.to("cpu")
    assert is_packed(lion.model)
    lion.model.to("meta")
    assert not is_packed(lion.model)
    lion = Lion.from_pretrained(tmp_path, tagger=False)
    lion.model.to(torch.bfloat16)
    assert all(torch.equal(value, weights[name]) for name, value in lion.model.state_dict().items())


@pytest.mark.parametrize("kind", ["lion", "pipeline"])
def test_what_is_copied_saved_or_trained_answers_alike(kind: str, tmp_path: Path) -> None:
    answers: Any
    if kind == "lion":
        made: Any = load()
        answers = lambda lion: lion.caption(sketch(), **SHORT)  # noqa: E731
    else:
        made = pipeline("image-text-to-text", model=example_checkpoint(), tagger=False)
        answers = lambda pipe: pipe(sketch(), **SHORT)[0]["generated_text"]  # noqa: E731
    expected = answers(made)
    assert is_packed(made.model)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert answers(twin) == expected
    made.model.save_pretrained(tmp_path)
    saved = LionForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    original = LionForConditionalGeneration.from_pretrained(example_checkpoint()).state_dict()
    assert all(torch.equal(saved[name], original[name]) for name in original)
    made.model.train()
    assert all(weight.requires_grad for weight in made.model.language_model.parameters())
    made.model.eval()
    assert answers(made) == expected


def test_the_pipeline_respects_dtype_and_optimize() -> None:
    for options in ({"dtype": torch.bfloat16}, {"optimize": False}):
        assert not is_packed(pipeline("image-text-to-text", model=example_checkpoint(), tagger=False, **options).model)


def test_commands_say_what_they_chose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sketch().save(tmp_path / "a.png")
    checkpoints = import_module("transformers_lion.cli.checkpoints")
    call = ("caption", str(tmp_path / "a.png"), "--max-new-tokens", 4)
    assert command(*call).errors == []
    monkeypatch.setattr(checkpoints, "show_progress", lambda: True)
    assert command(*call, "--no-optimize").errors == []
    assert [line.partition(" is computed in ")[2] for line in command(*call).errors] == [
        "float32, weights packed in float32, in float16 where that is exact; see --no-optimize."
    ]


@pytest.mark.parametrize("name", ["demo", "eval", "tag", "caption"])
def test_commands_that_load_a_model_offer_the_choice(name: str) -> None:
    assert "--no-optimize" in "".join(command(name, "--help").lines)


def test_the_tagger_of_a_checkpoint_follows_the_choice() -> None:
    for optimize in (True, False):
        tagger = Lion.from_pretrained(optimize=optimize).tagger
        assert tagger is not None
        assert ("_inference_form" in vars(tagger.model)) is optimize


def test_small_models_get_no_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MIN_WEIGHTS", 10**9)
    assert not is_packed(load().model)


def test_info_and_doctor_show_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = command("info").lines
    assert "On this CPU float32, weights packed in float32, in float16 where that is exact" in lines
    doctor = import_module("transformers_lion.cli.doctor")
    assert doctor.inference_plans()["bfloat16"] == "float32, weights packed in float16 (exact)"
