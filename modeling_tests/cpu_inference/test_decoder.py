"""The decoder for inference generates what the plain blocks generate, in whatever way it is asked."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

from factories import NO_DROPOUT, tiny_inputs, tiny_labels, tiny_model
from transformers_lion import LionForConditionalGeneration
from transformers_lion.compatibility import get_cache
from transformers_lion.cpu_inference import optimize_for_inference
from transformers_lion.cpu_inference.cache import PreallocatedCache, PreallocatedLayer
from transformers_lion.cpu_inference.decoder import InferenceDecoder
from transformers_lion.modeling_lion_t5 import LionT5Block

PROMPT = torch.tensor([[0, 7, 8]] * 4)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 40},  # more than the cache has room for at first
    {"num_beams": 4, "repetition_penalty": 1.5},
    {"num_beams": 5, "num_return_sequences": 3},
    {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    {"num_beams": 3, "use_cache": False},
    {"num_beams": 3, "decoder_input_ids": PROMPT, "decoder_attention_mask": (torch.arange(12) > 0).view(4, 3).long()},
    {"attn_implementation": "eager"},
]
PLAIN_OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 3, "cache_implementation": "static"},
    {"output_hidden_states": True, "return_dict_in_generate": True},
]
SIZES: list[dict[str, Any]] = [
    {"text_config": {"dropout_rate": 0.0}},
    {"text_config": {"dropout_rate": 0.0, "num_adapters": 1, "feed_forward_proj": "relu"}},
]
TASKS = [[0, 1, 0, 1], [1] * 4]


class Counter:
    """Counts the calls of plain decoder blocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, forward = 0, LionT5Block.forward

        def counted(block: LionT5Block, *args: Any, **kwargs: Any) -> Any:
            self.calls += len(block.layer) > 1
            return forward(block, *args, **kwargs)

        monkeypatch.setattr(LionT5Block, "forward", counted)

    def of(self, model: LionForConditionalGeneration, **options: Any) -> tuple[Any, int]:
        """The answer, and how many calls it took."""
        before, defaults = self.calls, {"max_new_tokens": 8}
        torch.manual_seed(0)
        if implementation := options.pop("attn_implementation", None):
            model.set_attn_implementation(implementation)
        answer = model.generate(**{**defaults, **options})
        return getattr(answer, "sequences", answer), self.calls - before


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


@pytest.mark.parametrize("size", SIZES, ids=["mixture", "one adapter"])
def test_ids_are_those_of_the_plain_blocks(size: dict[str, Any], counter: Counter) -> None:
    plain, fast = tiny_model(**size), optimize_for_inference(tiny_model(**size))
    for number, options in enumerate((OPTIONS + PLAIN_OPTIONS)[: 3 if "num_adapters" in size["text_config"] else None]):
        inputs = {**tiny_inputs(), "task_type_ids": torch.tensor(TASKS[number % 2])}
        expected, plain_calls = counter.of(plain, **inputs, **options)
        found, calls = counter.of(fast, **inputs, **options)
        assert torch.equal(found, expected), options
        assert plain_calls
        assert bool(calls) == (options in PLAIN_OPTIONS), options


def continue_with_other_tasks(model: Any, encoded: tuple[torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Logits of the third token on, after two tokens with the other tasks."""
    tasks = torch.tensor([0, 1, 0, 1])
    first = model(encoder_outputs=encoded, decoder_input_ids=ids[:, :2], task_type_ids=tasks)
    return model(
        encoder_outputs=encoded, decoder_input_ids=ids[:, 2:], task_type_ids=1 - tasks, past_key_values=get_cache(first)
    ).logits


def test_logits_are_those_of_the_plain_blocks_with_and_without_a_cache(counter: Counter) -> None:
    plain, fast = tiny_model(**NO_DROPOUT), optimize_for_inference(tiny_model(**NO_DROPOUT))
    inputs = tiny_inputs()
    ids = plain.prepare_decoder_input_ids_from_labels(tiny_labels())
    with torch.no_grad():
        expected = plain(**inputs, labels=tiny_labels())
        counter.calls = 0
        whole = fast(**inputs, labels=tiny_labels())
        first = fast(**inputs, decoder_input_ids=ids[:, :2])
        cache = get_cache(first)
        encoded = (first.encoder_last_hidden_state,)
        rest = fast(**inputs, encoder_outputs=encoded, decoder_input_ids=ids[:, 2:], past_key_values=cache)
        without = plain(**inputs, decoder_input_ids=ids)
        assert counter.calls == 2
        # other tasks from here on
        found, others = (continue_with_other_tasks(model.language_model, encoded, ids) for model in (fast, plain))
        # the plain blocks go on with the same cache
        cache.crop(-1)
        grown = fast(
            **inputs, encoder_outputs=encoded, decoder_input_ids=ids[:, -1:], past_key_values=cache,
            output_hidden_states=True,
        )  # fmt: skip
    assert whole.loss == pytest.approx(float(expected.loss), rel=1e-5)
    assert torch.allclose(whole.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found, others, rtol=1e-4, atol=1e-4)
    assert torch.allclose(rest.logits, without.logits[:, 2:], rtol=1e-4, atol=1e-4)
    assert torch.allclose(grown.logits, without.logits[:, -1:], rtol=1e-4, atol=1e-4)
    assert len(grown.decoder_hidden_states) == 3


def test_what_changes_in_the_decoder_is_noticed_at_the_next_generation(counter: Counter) -> None:
    model, inputs = optimize_for_inference(tiny_model(**NO_DROPOUT)), tiny_inputs()
    before, _ = counter.of(model, **inputs)
    block = model.language_model.decoder.block[1]
    with torch.no_grad():
        block.feed_forward.adapter.adapters[0].up_proj.weight.mul_(30)
    changed, calls = counter.of(model, **inputs)
    assert not calls
    assert not torch.equal(changed, before)
    seen: list[int] = []
    hook = block.register_forward_hook(lambda *_: seen.append(1))
    hooked, calls = counter.of(model, **inputs)
    assert len(seen) > 1
    assert torch.equal(hooked, changed)
    hook.remove()
    assert not counter.of(model, **inputs)[1]
    model(**inputs, decoder_input_ids=PROMPT)  # with gradients enabled
    assert counter.calls > calls


def test_a_wrong_task_is_refused_as_by_the_plain_model() -> None:
    model = optimize_for_inference(tiny_model()).language_model
    for tasks, error in ((None, ValueError), (torch.tensor([0, 7]), IndexError)):
        with pytest.raises(error), torch.no_grad():
            model(
                input_ids=torch.ones(2, 3, dtype=torch.long), decoder_input_ids=PROMPT[:2], task_type_ids=tasks,
                encoder_outputs=(torch.zeros(2, 3, 32),),
            )  # fmt: skip


def test_threads_with_different_tasks_do_not_meet() -> None:
    model, inputs = optimize_for_inference(tiny_model()), tiny_inputs()

    def answer(task: int) -> torch.Tensor:
        batch = {**inputs, "task_type_ids": torch.full((4,), task)}
        return model.generate(**batch, max_new_tokens=12, num_beams=1 + 2 * task)

    expected = [answer(0), answer(1)]
    assert not torch.equal(expected[0], expected[1])
    with ThreadPoolExecutor(2) as threads:
        for index, found in enumerate(threads.map(answer, [0, 1] * 4)):
            assert torch.equal(found, expected[index % 2])


def test_a_cache_with_room_does_what_other_caches_do() -> None:
    generator = torch.Generator().manual_seed(0)
    roomy: Any = PreallocatedLayer()
    other = DynamicCache()
    for length in (3, 1, 40, 1):
        states = torch.randn(2, 2, 3, length, 4, generator=generator)
        found, expected = roomy.update(*states), other.update(*states, 0)
        assert all(map(torch.equal, found, expected))
    for name, argument in (
        ("reorder_cache", torch.tensor([1, 1])),
        ("batch_repeat_interleave", 2),
        ("crop", -2),
        ("batch_select_indices", torch.tensor([3, 0, 1])),
    ):
        getattr(roomy, name)(argument)
        getattr(other, name)(argument)
        assert torch.equal(roomy.keys, other.layers[0].keys), name
        assert torch.equal(roomy.values, other.layers[0].values), name
        assert roomy.get_seq_length() == other.get_seq_length()
    roomy.reset()
    assert roomy.get_seq_length() == 0


def test_caches_of_the_default_kind_are_taken_over_when_empty() -> None:
    model, inputs = optimize_for_inference(tiny_model(**NO_DROPOUT)), tiny_inputs()
    assert isinstance(model.get_decoder(), InferenceDecoder)
    empty, used = (EncoderDecoderCache(DynamicCache(), DynamicCache()) for _ in range(2))
    used.self_attention_cache.update(*torch.zeros(2, 4, 4, 1, 8), 0)
    with torch.no_grad():
        model(**inputs, decoder_input_ids=PROMPT, past_key_values=empty)
    assert isinstance(empty.self_attention_cache, PreallocatedCache)
    assert type(used.self_attention_cache) is DynamicCache
