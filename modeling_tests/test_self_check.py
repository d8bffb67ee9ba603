"""The self-check finds what a new release could break, runs when it should, and leaves no trace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import initialization, pipeline

from factories import tiny_inputs, tiny_model
from ram.factories import tiny_tagger
from transformers_lion import example_checkpoint, self_check
from transformers_lion.example import example_image
from transformers_lion.modeling_lion import LionForConditionalGeneration, LionImageFeatures
from transformers_lion.modeling_lion_t5 import (
    LionT5Attention,
    LionT5ForConditionalGeneration,
    LionT5Stack,
    SharedCrossCache,
)
from transformers_lion.processing_lion import LionProcessor
from transformers_lion.ram.modeling_ram import RamTaggingLayer
from transformers_lion.self_check import CHECKS, VARIABLE, SelfCheckError, ensure_checked, run_checks


def lose_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LionT5Stack, "_choose_cache", lambda self, cache, use_cache: None)


def mix_the_beams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedCrossCache, "reorder_cache", lambda self, beam_idx: None)


def attend_to_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    make = LionT5Stack._make_masks

    def without_padding(self: Any, embeds: Any, mask: Any, states: Any, encoder_mask: Any, cache: Any) -> Any:
        return make(self, embeds, None if not self.is_decoder else mask, states, None, cache)

    monkeypatch.setattr(LionT5Stack, "_make_masks", without_padding)


def lose_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    save = LionForConditionalGeneration.save_pretrained

    def save_less(self: Any, folder: Any, **kwargs: Any) -> None:
        state = {name: weight for name, weight in self.state_dict().items() if "soft_prompt" not in name}
        save(self, folder, state_dict=state, **kwargs)

    monkeypatch.setattr(LionForConditionalGeneration, "save_pretrained", save_less)


def load_weights_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        initialization, "normal_", lambda tensor, mean=0.0, std=1.0, generator=None: tensor.data.normal_()
    )


def forget_the_position_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = LionT5Attention._compute_bias
    monkeypatch.setattr(LionT5Attention, "_compute_bias", lambda *args: torch.zeros_like(compute(*args)))


def change_the_taggers_head(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = RamTaggingLayer.forward
    monkeypatch.setattr(RamTaggingLayer, "forward", lambda *args, **kwargs: 0.5 * forward(*args, **kwargs))


def ignore_the_images_of_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LionImageFeatures, "select", lambda self, image_indices: self)


def ignore_the_number_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = LionT5ForConditionalGeneration.loss_function

    def without_number(self: Any) -> Any:
        return lambda *args, num_items_in_batch=None, **kwargs: loss.fget(self)(*args, **kwargs)

    monkeypatch.setattr(LionT5ForConditionalGeneration, "loss_function", property(without_number))


def drop_the_tag_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    call = LionProcessor.__call__
    monkeypatch.setattr(LionProcessor, "__call__", lambda self, *args, tags=None, **kwargs: call(self, *args, **kwargs))


def fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*args: Any, **kwargs: Any) -> None:
        raise TypeError("forward() got an unexpected keyword argument")

    monkeypatch.setattr(LionT5Stack, "forward", forward)


BREAKAGES: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (lose_the_cache, "steps"),
    (mix_the_beams, "cache"),
    (attend_to_padding, "batches"),
    (ignore_the_images_of_questions, "image features"),
    (ignore_the_number_of_labels, "loss"),
    (lose_a_weight, "saving"),
    (load_weights_anew, "saving"),
    (forget_the_position_bias, "forward pass"),
    (change_the_taggers_head, "tagger"),
    (drop_the_tag_sentence, "processor"),
    (fail, "forward pass"),
]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A process that has not checked yet, and a note of each run of the checks."""
    runs: list[bool] = []
    run = self_check.run_checks
    monkeypatch.setattr(self_check, "STATE", self_check.CheckState())
    monkeypatch.setattr(self_check, "run_checks", lambda **options: runs.append(True) or run(**options))
    monkeypatch.delenv(VARIABLE, raising=False)
    return runs


def test_nothing_is_found_where_nothing_is_broken() -> None:
    assert run_checks() == {}


@pytest.mark.parametrize(("breakage", "name"), BREAKAGES, ids=[breakage.__name__ for breakage, _ in BREAKAGES])
def test_each_breakage_is_found(
    breakage: Callable[[pytest.MonkeyPatch], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    breakage(monkeypatch)
    found = run_checks()
    assert (" raised " in found[name]) == (breakage is fail)


def test_generate_checks_once_where_a_package_is_newer_than_tested(
    fresh: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "NEWEST_TESTED", {"transformers": "5.1", "torch": "2.99"})
    model = tiny_model()
    for _ in range(2):
        model.generate(**tiny_inputs(), max_new_tokens=2)
    assert fresh == [True]


def test_generate_does_not_check_where_the_versions_are_tested(
    fresh: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "NEWEST_TESTED", {"transformers": "5.99", "torch": "2.99"})
    tiny_model().generate(**tiny_inputs(), max_new_tokens=2)
    assert fresh == []


def test_a_finding_stops_every_generation_with_both_versions(
    fresh: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "NEWEST_TESTED", {"transformers": "5.1", "torch": "2.99"})
    lose_the_cache(monkeypatch)
    model = tiny_model()
    for _ in range(2):
        with pytest.raises(SelfCheckError, match=r"transformers 5\.\d+\.\d+ is installed, but 5\.1 is .* decod"):
            model.generate(**tiny_inputs(), max_new_tokens=2)
    assert fresh == [True]


def test_the_pipeline_stops_too(fresh: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "NEWEST_TESTED", {"transformers": "5.1", "torch": "2.99"})
    lose_the_cache(monkeypatch)
    with pytest.raises(SelfCheckError):
        pipeline("image-text-to-text", model=str(example_checkpoint()), tagger=False)(example_image())


def test_a_tagger_alone_stops_too(fresh: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "NEWEST_TESTED", {"transformers": "5.1", "torch": "2.99"})
    change_the_taggers_head(monkeypatch)
    with pytest.raises(SelfCheckError, match="the tagger returns unexpected values"):
        tiny_tagger()(example_image())


@pytest.mark.parametrize(("setting", "runs"), [("0", []), ("1", [True])])
def test_the_variable_turns_the_check_off_and_on(
    setting: str, runs: list[bool], fresh: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = "5.1" if setting == "0" else "5.99"
    monkeypatch.setattr(self_check, "NEWEST_TESTED", {"transformers": newest, "torch": "2.99"})
    monkeypatch.setenv(VARIABLE, setting)
    ensure_checked()
    assert fresh == runs


def test_another_value_of_the_variable_is_refused(fresh: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    with pytest.raises(ValueError, match="LION_SELF_CHECK is 'off', but must be 0"):
        ensure_checked()


def test_a_check_leaves_random_numbers_settings_and_gradients_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    before = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert run_checks() == {}
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.get_num_threads() == before
    assert torch.equal(torch.rand(2), expected)


def test_versions_are_compared_by_their_minor_release() -> None:
    assert self_check.is_newer("5.25.0.dev0", "5.24")
    assert self_check.is_newer("6.0", "5.24")
    assert not self_check.is_newer("5.24.9", "5.24")
    assert not self_check.is_newer("2.13.0+cpu", "2.13")


def test_every_check_has_a_breakage() -> None:
    assert {name for _, name in BREAKAGES} == CHECKS.keys()
