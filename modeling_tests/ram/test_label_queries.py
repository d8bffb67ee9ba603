"""The head's image-independent part: computed once, and anew whenever the weights are others."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ram.factories import tiny_pixels, tiny_ram
from transformers_lion.ram import RamForImageTagging
from transformers_lion.ram.label_queries import plain_weights


def count_computations(model: RamForImageTagging) -> list[None]:
    """A list that grows by one each time that the queries are computed."""
    calls: list[None] = []
    compute = model._compute_label_queries
    model._compute_label_queries = lambda device: (calls.append(None), compute(device))[1]  # type: ignore[method-assign]
    return calls


@torch.no_grad()
def logits(model: RamForImageTagging) -> torch.Tensor:
    return model(tiny_pixels()).logits


def test_in_inference_the_queries_are_computed_once() -> None:
    model = tiny_ram()
    calls = count_computations(model)
    assert torch.equal(logits(model), logits(model))
    with torch.inference_mode():
        model(tiny_pixels())
    assert len(calls) == 1


def test_kept_queries_give_what_computed_ones_give() -> None:
    model = tiny_ram()
    logits(model)
    torch.testing.assert_close(logits(model), model(tiny_pixels()).logits.detach(), rtol=0, atol=1e-6)


def test_with_gradients_and_in_training_nothing_is_kept() -> None:
    model = tiny_ram()
    calls = count_computations(model)
    for _ in range(2):
        model(tiny_pixels())
    model.train()
    for _ in range(2):
        logits(model)
    assert len(calls) == 4
    assert model._label_query_cache._entry is None


def optimizer_step(model: RamForImageTagging) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(tiny_pixels(), labels=torch.ones(3, 5)).loss.backward()
    optimizer.step()


def write_in_place(model: RamForImageTagging) -> None:
    with torch.no_grad():
        model.label_embeddings.weight[2] += 1


def write_past_the_version_counter(model: RamForImageTagging) -> None:
    model.label_projection.bias.data.add_(1)


def write_in_inference_mode(model: RamForImageTagging) -> None:
    with torch.inference_mode():
        model.head.first_query.weight.mul_(2)


def replace_a_parameter(model: RamForImageTagging) -> None:
    model.head.first_query.weight = nn.Parameter(torch.randn(16, 16))


def replace_the_data(model: RamForImageTagging) -> None:
    model.label_embeddings.weight.data = torch.randn(5, 12)


def load_a_state_dict(model: RamForImageTagging) -> None:
    model.load_state_dict(tiny_ram(seed=1).state_dict())


def assign_a_state_dict(model: RamForImageTagging) -> None:
    model.load_state_dict(tiny_ram(seed=1).state_dict(), assign=True)


def swap_two_tags(model: RamForImageTagging) -> None:
    model.label_embeddings.weight.data = model.label_embeddings.weight.data.flip(0)


def change_the_dtype(model: RamForImageTagging) -> None:
    model.to(torch.float64)


def hook_the_projection(model: RamForImageTagging) -> None:
    model.label_projection.register_forward_hook(lambda module, args, output: output + 1)


def wrap_the_projection(model: RamForImageTagging) -> None:
    model.label_projection = nn.Sequential(model.label_projection, nn.LayerNorm(16))


def parametrize_the_projection(model: RamForImageTagging) -> None:
    nn.utils.parametrizations.weight_norm(model.label_projection)
    model.label_projection.parametrizations.weight.original0.data.mul_(2)


@pytest.mark.parametrize(
    "change",
    [
        optimizer_step,
        write_in_place,
        write_past_the_version_counter,
        write_in_inference_mode,
        replace_a_parameter,
        replace_the_data,
        load_a_state_dict,
        assign_a_state_dict,
        swap_two_tags,
        change_the_dtype,
        hook_the_projection,
        wrap_the_projection,
        parametrize_the_projection,
    ],
)
def test_a_change_of_the_weights_is_seen(change: Callable[[RamForImageTagging], None]) -> None:
    model = tiny_ram()
    before = logits(model)
    change(model)
    after = logits(model)
    fresh = model(tiny_pixels()).logits.detach()
    torch.testing.assert_close(after, fresh)
    if change is not change_the_dtype:
        assert (after - before).abs().max() > 1e-4
    else:
        assert after.dtype == torch.float64


def test_autocast_neither_takes_nor_leaves_queries() -> None:
    model = tiny_ram()
    full = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = logits(model)
    assert half.dtype == torch.bfloat16
    assert torch.equal(logits(model), full)


def test_kept_queries_are_no_part_of_the_state_and_are_not_copied() -> None:
    model = tiny_ram()
    keys = set(model.state_dict())
    logits(model)
    assert set(model.state_dict()) == keys
    assert copy.deepcopy(model)._label_query_cache._entry is None
    assert pickle.loads(pickle.dumps(model._label_query_cache))._entry is None


def test_nothing_is_kept_for_replicas_which_share_the_cache_but_not_the_weights() -> None:
    linear = nn.Linear(3, 3)
    replica = linear._replicate_for_data_parallel()
    replica.weight, replica.bias = linear.weight * 1, linear.bias * 1
    assert plain_weights([linear]) is not None
    assert plain_weights([linear, replica]) is None


def test_an_adapter_on_the_projection_is_seen_when_it_is_on_and_when_it_is_off() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_ram()
    before = logits(model)
    lora = peft.LoraConfig(target_modules=["label_projection", "query"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora).eval()
    after = logits(adapted)
    assert (after - before).abs().max() > 1e-4
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted), before)
    torch.testing.assert_close(logits(adapted), after)


def test_threads_on_two_models_and_one_get_their_own_results() -> None:
    models = [tiny_ram(seed) for seed in (0, 0, 1)]
    models[1] = models[0]
    expected = [model(tiny_pixels()).logits.detach() for model in models]
    wrong: list[Any] = []

    def work(index: int) -> None:
        for _ in range(10):
            if not torch.allclose(logits(models[index]), expected[index], atol=1e-5):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
