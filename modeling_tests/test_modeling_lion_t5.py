"""The language model: its adapters, T5's numbers, caches under both of their names, and beams."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import relu
from transformers import AutoModel, DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from factories import tiny_config, tiny_inputs, tiny_labels, tiny_model
from transformers_lion import modeling_lion_t5
from transformers_lion.compatibility import (
    CACHE_NAME,
    enable_activation_checkpointing,
    get_cache,
    rename_cache,
    resolve_cache,
)
from transformers_lion.modeling_lion_t5 import (
    LionAdapterMixture,
    LionT5ForConditionalGeneration,
    LionT5Model,
    SharedCrossCache,
    bucket_distances,
)

PROMPT = {
    "input_ids": torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
}
ANSWER = torch.tensor([[0, 11, 12, 13], [0, 14, 15, 16]])


def as_t5(model: LionT5ForConditionalGeneration) -> T5ForConditionalGeneration:
    """transformers' own T5 with the weights of `model`, whose adapters must be without effect."""
    fields = {**model.config.to_dict(), "model_type": "t5"}
    config = T5Config(**{name: value for name, value in fields.items() if hasattr(T5Config(), name)})
    config.dense_act_fn = model.config.dense_act_fn
    config.scale_decoder_outputs = False
    stock = T5ForConditionalGeneration(config).eval()
    stock.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # which stock T5 ties
    weights = {}
    for name, weight in model.state_dict().items():
        stack, *rest = name.split(".", 3)
        if len(rest) == 3 and rest[2].startswith("feed_forward."):
            last = 2 if stack == "decoder" else 1
            name = f"{stack}.block.{rest[1]}.layer.{last}.{rest[2].removeprefix('feed_forward.')}"
        weights[name] = weight
    missing, unexpected = stock.load_state_dict(weights, strict=False)
    assert not missing
    assert all(".adapter." in name for name in unexpected)
    return stock


def without_adapters(**fields: Any) -> LionT5ForConditionalGeneration:
    model = tiny_model(text_config=fields).language_model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "up_proj" in name:
                weight.zero_()
    return model


# --- adapters ------------------------------------------------------------------------------------------------------


def test_the_mixture_is_the_papers_formula() -> None:
    mixture = tiny_model().language_model.encoder.block[0].feed_forward.adapter
    x, tasks = torch.randn(3, 4, 32), torch.tensor([0, 1, 0])
    expected = torch.zeros_like(x)
    for row, task in enumerate(tasks):
        for adapter, gate in zip(mixture.adapters, mixture.router, strict=True):
            hidden = relu(x[row] @ adapter.down_proj.weight.T + adapter.down_proj.bias)
            expected[row] += (
                gate.weight[task] * adapter.scale * (hidden @ adapter.up_proj.weight.T + adapter.up_proj.bias)
            )
    assert torch.allclose(mixture(x, tasks), expected, atol=1e-5)


def test_a_fresh_router_gives_each_task_its_adapter_and_fresh_adapters_do_nothing() -> None:
    model = LionT5ForConditionalGeneration(tiny_config().text_config)
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            mixture = block.feed_forward.adapter
            for index, gate in enumerate(mixture.router):
                assert torch.equal(gate.weight, torch.eye(2)[:, index : index + 1].expand(2, 32))
            for adapter in mixture.adapters:
                assert adapter.scale.item() == 1
                assert not adapter.up_proj.weight.any()
                assert 0 < adapter.down_proj.weight.abs().max() <= 32**-0.5  # Kaiming-uniform with a = sqrt 5
            assert not mixture(torch.randn(2, 3, 32), torch.tensor([0, 1])).any()


def test_one_adapter_has_no_router_and_asks_for_no_task() -> None:
    mixture = LionAdapterMixture(tiny_config(text_config={"num_adapters": 1}).text_config)
    x = torch.randn(2, 3, 32)
    assert torch.equal(mixture(x, None), mixture.adapters[0](x))
    assert not any("router" in name for name, _ in mixture.named_parameters())


def test_two_adapters_without_a_task_are_refused() -> None:
    with pytest.raises(ValueError, match="task_type_ids is missing"):
        LionAdapterMixture(tiny_config().text_config)(torch.randn(2, 3, 32), None)


# --- T5 ------------------------------------------------------------------------------------------------------------


def test_the_language_models_own_weights_start_as_t5s_do() -> None:
    torch.manual_seed(0)
    model = LionT5ForConditionalGeneration(tiny_config(text_config={"d_model": 256, "num_layers": 1}).text_config)
    attention = model.encoder.block[0].layer[0].SelfAttention
    assert attention.q.weight.std().item() == pytest.approx((256 * 8) ** -0.5, rel=0.1)
    assert model.encoder.block[0].feed_forward.DenseReluDense.wi_0.weight.std().item() == pytest.approx(1 / 16, rel=0.1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_without_its_adapters_the_language_model_is_t5(implementation: str) -> None:
    model = without_adapters(relative_attention_num_buckets=8, relative_attention_max_distance=12)
    stock = as_t5(model)
    for each in (model, stock):
        each.set_attn_implementation(implementation)
    ours = model(**PROMPT, decoder_input_ids=ANSWER, task_type_ids=torch.tensor([0, 1])).logits
    assert torch.allclose(ours, stock(**PROMPT, decoder_input_ids=ANSWER).logits, atol=1e-5)


@pytest.mark.parametrize("is_causal", [True, False])
def test_distances_fall_into_t5s_buckets(is_causal: bool) -> None:
    distances = torch.arange(-200, 201)[None, :]
    ours = bucket_distances(distances, 32, 128, is_causal)
    theirs = T5Attention._relative_position_bucket(distances, not is_causal, 32, 128)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("depths", [(1, 3), (3, 1)])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_encoder_and_decoder_of_other_depths_decode_with_a_cache_as_without(
    depths: tuple[int, int], options: dict[str, Any]
) -> None:
    model = tiny_model(text_config={"num_layers": depths[0], "num_decoder_layers": depths[1]})
    plain = {name: value for name, value in options.items() if name != "cache_implementation"}
    cached = model.generate(**tiny_inputs(), max_new_tokens=6, **options)
    assert torch.equal(cached, model.generate(**tiny_inputs(), max_new_tokens=6, use_cache=False, **plain))


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_cache_is_taken_under_its_old_and_its_new_name(name: str) -> None:
    model, inputs = tiny_model(), tiny_inputs(2)
    with torch.no_grad():
        whole = model(**inputs, decoder_input_ids=ANSWER).logits[:, -1:]
        start = model(**inputs, decoder_input_ids=ANSWER[:, :-1], use_cache=True)
        step = model(
            **inputs, encoder_outputs=(start.encoder_last_hidden_state,), decoder_input_ids=ANSWER[:, -1:],
            use_cache=True, **{name: get_cache(start)},
        )  # fmt: skip
    assert torch.allclose(step.logits, whole, atol=1e-5)
    assert get_cache(step) is get_cache(start)
    given = EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert torch.equal(
        model.generate(**inputs, max_new_tokens=4, **{name: given}), model.generate(**inputs, max_new_tokens=4)
    )
    assert given.get_seq_length() == 4


def test_a_cache_under_both_names_is_refused() -> None:
    cache = DynamicCache()
    with pytest.raises(ValueError, match="names for the same argument"):
        resolve_cache(cache, cache)
    assert rename_cache({"cache": cache, "num_beams": 2}) == {CACHE_NAME: cache, "num_beams": 2}
    assert rename_cache({"past_key_values": cache}) == {CACHE_NAME: cache}


def test_training_with_activation_checkpointing_keeps_no_cache_and_has_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(text_config={"dropout_rate": 0.0})
        if checkpointing:
            enable_activation_checkpointing(model.language_model)
        model.language_model.train()
        outputs = model(**tiny_inputs(), labels=tiny_labels(), use_cache=True)
        assert (get_cache(outputs) is None) == checkpointing
        outputs.loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)


def test_decoder_inputs_are_the_labels_moved_behind_the_start_token() -> None:
    model = LionT5ForConditionalGeneration(tiny_config().text_config)
    labels = torch.tensor([[5, 6, 1], [7, 1, -100]])
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == [[0, 5, 6], [0, 7, 1]]


def test_logits_of_the_last_positions_alone_are_those_of_all() -> None:
    model, inputs = tiny_model(), {**tiny_inputs(2), "decoder_input_ids": torch.tensor([[0, 5, 9]] * 2)}
    with torch.no_grad():
        assert torch.allclose(model(**inputs, logits_to_keep=1).logits, model(**inputs).logits[:, -1:], atol=1e-5)


def test_lm_head_is_not_tied_and_the_embeddings_are() -> None:
    model = LionT5ForConditionalGeneration(tiny_config().text_config)
    assert model.lm_head.weight is not model.shared.weight
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.decoder.embed_tokens.weight is model.shared.weight


def test_labels_that_are_a_slice_of_longer_ones_have_the_loss_of_a_copy() -> None:
    model = LionT5ForConditionalGeneration(tiny_config().text_config).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 1], [7, 8, 1]]), "task_type_ids": torch.tensor([0, 1])}
    labels = torch.tensor([[2, 9, 8, 1], [2, 7, 6, 1]])[:, 1:]
    assert not labels.is_contiguous()
    losses = [
        model(**inputs, labels=given).loss for given in (labels, labels.clone(memory_format=torch.contiguous_format))
    ]
    assert torch.equal(*losses)


def test_the_model_without_a_head_loads_a_checkpoint_with_one(tmp_path: Path) -> None:
    model, tasks = tiny_model().language_model, torch.tensor([0, 1])
    model.save_pretrained(tmp_path)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is LionT5Model
    assert not any(info.values()), info
    states = base(**PROMPT, decoder_input_ids=ANSWER, task_type_ids=tasks).last_hidden_state
    assert torch.equal(model.lm_head(states), model(**PROMPT, decoder_input_ids=ANSWER, task_type_ids=tasks).logits)


# --- beams share the encoder's keys and values --------------------------------------------------------------------


@pytest.fixture
def repeat_the_encoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Gives each beam a copy of the encoder's states from then on."""

    def switch() -> None:
        monkeypatch.setattr(LionT5ForConditionalGeneration, "_shares_encoder", lambda *_: False)
        monkeypatch.setattr(modeling_lion_t5, "SharedCrossCache", EncoderDecoderCache)

    return switch


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 5},
        {"num_beams": 5, "num_return_sequences": 3, "repetition_penalty": 1.5},
        {"num_beams": 3, "cache_implementation": "static"},
        {"num_beams": 3, "use_cache": False},
        {"num_beams": 3, "decoder_input_ids": torch.tensor([[0, 7, 8]] * 4)},
    ],
    ids=str,
)
def test_beams_that_share_the_encoder_generate_what_repeated_ones_do(
    options: dict[str, Any], repeat_the_encoder: Callable[[], None]
) -> None:
    model, inputs = tiny_model(), tiny_inputs()
    shared = model.generate(**inputs, max_new_tokens=8, **options)
    repeat_the_encoder()
    assert torch.equal(shared, model.generate(**inputs, max_new_tokens=8, **options))


def test_keys_and_values_of_the_encoder_are_kept_once_for_all_beams() -> None:
    model = tiny_model()
    outputs = model.generate(**tiny_inputs(2), max_new_tokens=4, num_beams=5, return_dict_in_generate=True)
    cache = get_cache(outputs)
    assert isinstance(cache, SharedCrossCache)
    assert {len(layer.keys) for layer in cache.cross_attention_cache.layers} == {2}
    assert {len(layer.keys) for layer in cache.self_attention_cache.layers} == {10}


def test_attentions_of_shared_beams_are_those_of_repeated_ones(repeat_the_encoder: Callable[[], None]) -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    options = {"num_beams": 3, "max_new_tokens": 4, "output_attentions": True, "return_dict_in_generate": True}
    shared = model.generate(**tiny_inputs(2), **options).cross_attentions
    repeat_the_encoder()
    repeated = model.generate(**tiny_inputs(2), **options).cross_attentions
    for step, expected in zip(shared, repeated, strict=True):
        for layer, same in zip(step, expected, strict=True):
            assert torch.allclose(layer, same, atol=1e-5)
