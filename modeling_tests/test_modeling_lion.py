import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText

from factories import NO_DROPOUT, SOFT_PROMPT, row_of, tiny_config, tiny_inputs, tiny_labels, tiny_model
from transformers_lion import LionForConditionalGeneration, LionModel
from transformers_lion.compatibility import enable_activation_checkpointing, get_cache
from transformers_lion.modeling_lion import pad_after_end

GENERATE = {"max_new_tokens": 6, "min_new_tokens": 6}
BRANCHES = ("both", "qformer", "aggregator")


def gradients(model: Any, **inputs: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


# --- outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", BRANCHES)
def test_what_stands_before_the_text_follows_the_visual_branch(branch: str) -> None:
    num_positions = {"both": 5 + 5, "qformer": 5, "aggregator": 5}[branch]
    outputs = tiny_model(visual_branch=branch)(**tiny_inputs(), labels=tiny_labels())
    assert outputs.image_hidden_states.shape == (4, num_positions, 32)
    assert outputs.encoder_last_hidden_state.shape == (4, num_positions + 7, 32)
    assert outputs.logits.shape == (4, 5, 99)
    assert (outputs.qformer_outputs is None) == (branch == "aggregator")
    assert (outputs.aggregator_outputs is None) == (branch == "qformer")


def test_hidden_states_and_attentions_of_every_part_come_on_request() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    outputs = model(**tiny_inputs(), labels=tiny_labels(), output_hidden_states=True, output_attentions=True)
    assert len(outputs.vision_outputs.hidden_states) == 7
    assert len(outputs.vision_outputs.attentions) == 6
    assert len(outputs.qformer_outputs.hidden_states) == 3
    assert len(outputs.qformer_outputs.attentions) == 2
    assert len(outputs.aggregator_outputs.hidden_states) == 3
    for part in ("encoder", "decoder"):
        assert len(outputs[f"{part}_hidden_states"]) == 3
        assert len(outputs[f"{part}_attentions"]) == 2
    assert len(outputs.cross_attentions) == 2
    assert model(**tiny_inputs(), labels=tiny_labels()).vision_outputs.hidden_states is None


def test_a_tuple_is_returned_on_request() -> None:
    model, inputs = tiny_model(), {**tiny_inputs(), "labels": tiny_labels()}
    as_tuple, as_output = model(**inputs, return_dict=False), model(**inputs)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], as_output.loss)
    assert torch.equal(as_tuple[1], as_output.logits)


def test_eager_and_sdpa_attention_agree() -> None:
    model, inputs = tiny_model(), {**tiny_inputs(), "labels": tiny_labels()}
    sdpa = model(**inputs).logits
    model.set_attn_implementation("eager")
    assert model.language_model.encoder.config._attn_implementation == "eager"
    assert torch.allclose(model(**inputs).logits, sdpa, atol=1e-4)


# --- tasks and batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"num_beams": 4, "num_return_sequences": 3}])
def test_a_mixed_batch_generates_what_each_sample_generates_alone(options: dict[str, int]) -> None:
    model, inputs = tiny_model(), tiny_inputs()
    together = model.generate(**inputs, **GENERATE, **options)
    alone = torch.cat([model.generate(**row_of(inputs, row), **GENERATE, **options) for row in range(4)])
    assert torch.equal(together, alone)


def test_a_mixed_batch_has_the_logits_of_each_sample_alone() -> None:
    model, inputs, labels = tiny_model(), tiny_inputs(), tiny_labels()
    together = model(**inputs, labels=labels).logits
    for row in range(4):
        alone = model(**row_of(inputs, row), labels=labels[row : row + 1]).logits
        assert torch.allclose(together[row], alone[0], atol=1e-4)


def test_the_task_changes_the_answer() -> None:
    model, inputs = tiny_model(), {**tiny_inputs(), "labels": tiny_labels()}
    other = {**inputs, "task_type_ids": 1 - inputs["task_type_ids"]}
    assert (model(**inputs).logits - model(**other).logits).abs().max() > 1e-2


def test_sampling_keeps_tasks_beside_their_samples() -> None:
    model, inputs = tiny_model(), row_of(tiny_inputs(), 0)
    doubled = {name: tensor.repeat_interleave(2, 0) for name, tensor in inputs.items()}
    doubled["task_type_ids"] = torch.tensor([0, 1])
    scores = model.generate(
        **doubled, do_sample=True, num_return_sequences=3, max_new_tokens=1, output_logits=True,
        return_dict_in_generate=True,
    ).logits[0]  # fmt: skip
    for task in (0, 1):
        alone = model.generate(
            **{**inputs, "task_type_ids": torch.tensor([task])}, max_new_tokens=1, output_logits=True,
            return_dict_in_generate=True,
        ).logits[0]  # fmt: skip
        assert torch.allclose(scores[3 * task : 3 * task + 3], alone.expand(3, -1), atol=1e-4)


def test_two_threads_with_different_tasks_get_their_own_answers() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    tasks = [torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)]
    expected = [model.generate(**{**inputs, "task_type_ids": task}, **GENERATE) for task in tasks]
    assert not torch.equal(*expected)
    wrong: list[int] = []

    def run(index: int) -> None:
        for _ in range(10):
            if not torch.equal(
                model.generate(**{**inputs, "task_type_ids": tasks[index]}, **GENERATE), expected[index]
            ):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_replicas_that_share_parameters_each_serve_their_half_of_the_batch() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    expected = model(**inputs, labels=tiny_labels()).logits
    replicas = [copy.copy(model), copy.copy(model)]
    halves: dict[int, torch.Tensor] = {}

    def run(index: int) -> None:
        half = {name: tensor.chunk(2)[index] for name, tensor in inputs.items()}
        halves[index] = replicas[index](**half, labels=tiny_labels().chunk(2)[index]).logits

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.allclose(torch.cat([halves[0], halves[1]]), expected, atol=1e-4)


# --- the image part, computed once --------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", BRANCHES)
def test_image_features_stand_in_for_pixels(branch: str) -> None:
    model, inputs = tiny_model(visual_branch=branch), tiny_inputs()
    pixel_values = inputs.pop("pixel_values")
    features = model.get_image_features(pixel_values)
    from_pixels = model(pixel_values=pixel_values, **inputs, labels=tiny_labels()).logits
    assert torch.equal(model(image_features=features, **inputs, labels=tiny_labels()).logits, from_pixels)
    from_pixels = model.generate(pixel_values=pixel_values, **inputs, **GENERATE)
    assert torch.equal(model.generate(image_features=features, **inputs, **GENERATE), from_pixels)


def test_the_features_of_one_image_serve_many_questions() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    pixel_values = inputs.pop("pixel_values")[:1]
    features = model.get_image_features(pixel_values)
    repeated = model.generate(pixel_values=pixel_values.expand(4, -1, -1, -1), **inputs, **GENERATE)
    assert torch.equal(model.generate(image_features=features, **inputs, **GENERATE), repeated)
    assert torch.equal(model.generate(pixel_values=pixel_values, **inputs, **GENERATE), repeated)


def test_features_are_repeated_to_stand_beside_their_questions() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    pixel_values = inputs.pop("pixel_values")[:2]
    features = model.get_image_features(pixel_values).repeat_interleave(torch.tensor([1, 3]))
    expected = model.generate(pixel_values=pixel_values[[0, 1, 1, 1]], **inputs, **GENERATE)
    assert torch.equal(model.generate(image_features=features, **inputs, **GENERATE), expected)


def test_the_question_reaches_the_qformer_and_not_the_image_part() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    features = model.get_image_features(inputs["pixel_values"])
    first, _ = model.get_query_features(features, inputs["qformer_input_ids"])
    second, _ = model.get_query_features(features, inputs["qformer_input_ids"].flip(1))
    assert (first - second).abs().max() > 1e-4


def test_another_image_size_needs_interpolated_positions() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    inputs["pixel_values"] = torch.randn(4, 3, 42, 56)
    outputs = model(**inputs, labels=tiny_labels(), interpolate_pos_encoding=True)
    assert outputs.image_hidden_states.shape == (4, 5 + 1 + 3 * 4, 32)
    with pytest.raises(ValueError, match="42x56, but the vision tower expects 28x28"):
        model(**inputs, labels=tiny_labels())


# --- the base model and its encoder -------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_base_model_gives_the_states_that_the_head_reads(
    branch: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs, ids = tiny_model(visual_branch=branch), tiny_inputs(), torch.tensor([[0, 5, 9]] * 4)
    model.save_pretrained(tmp_path / "head")
    base, info = AutoModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert type(base) is LionModel
    assert not any(info.values()), info
    assert not [record for record in caplog.records if "lm_head" in record.getMessage()]
    expected, found = model(**inputs, decoder_input_ids=ids), base(**inputs, decoder_input_ids=ids)
    assert torch.equal(model.language_model.lm_head(found.last_hidden_state), expected.logits)
    assert torch.equal(found.image_hidden_states, expected.image_hidden_states)
    base.save_pretrained(tmp_path / "base")
    _, info = LionForConditionalGeneration.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert info["missing_keys"] == {"language_model.lm_head.weight"}
    assert not info["unexpected_keys"]
    with pytest.raises(ValueError, match="Pass decoder_input_ids or"):
        base(**inputs)


def test_an_encoded_batch_is_decoded_as_often_as_wanted() -> None:
    model, inputs, labels = tiny_model(), tiny_inputs(), tiny_labels()
    expected = model(**inputs, labels=labels, output_hidden_states=True)
    encoded = model.encode(**inputs, output_hidden_states=True)
    assert encoded.attention_mask.tolist() == [[1] * 10 + row for row in inputs["attention_mask"].tolist()]
    again = model(encoder_outputs=encoded, task_type_ids=inputs["task_type_ids"], labels=labels)
    assert torch.equal(again.logits, expected.logits)
    assert torch.equal(again.vision_outputs.pooler_output, expected.vision_outputs.pooler_output)
    assert all(map(torch.equal, again.encoder_hidden_states, expected.encoder_hidden_states))
    rows = torch.tensor([2, 0, 2])
    some = model(encoder_outputs=encoded.select(rows), task_type_ids=inputs["task_type_ids"][rows], labels=labels[rows])
    torch.testing.assert_close(some.logits, expected.logits[rows])
    assert isinstance(model.encode(**inputs, return_dict=False), tuple)


def test_generate_gives_the_encoders_states_and_attentions_on_request() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    model.set_attn_implementation("eager")
    options = {"output_hidden_states": True, "output_attentions": True}
    found = model.generate(**inputs, **GENERATE, **options, return_dict_in_generate=True)
    expected = model.encode(**inputs, **options)
    for name in ("hidden_states", "attentions"):
        assert all(map(torch.equal, found[f"encoder_{name}"], expected[name]))
        assert len(found[f"encoder_{name}"]) == len(expected[name])


# --- soft prompt and embeddings -----------------------------------------------------------------------------------


def test_the_soft_prompt_replaces_its_marker_and_nothing_else() -> None:
    model, input_ids = tiny_model(), tiny_inputs()["input_ids"]
    embeds, table = model.embed_text(input_ids), model.get_input_embeddings().weight
    is_marker = input_ids == SOFT_PROMPT
    assert is_marker.sum() == 2
    assert torch.equal(embeds[is_marker], model.soft_prompt.weight.expand(2, -1))
    assert torch.equal(embeds[~is_marker], table[input_ids[~is_marker]])


def test_without_a_soft_prompt_the_marker_is_a_token_like_others() -> None:
    model, input_ids = tiny_model(use_soft_prompt=False), tiny_inputs()["input_ids"]
    assert torch.equal(model.embed_text(input_ids), model.get_input_embeddings().weight[input_ids])


def test_embeddings_stand_in_for_ids() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    expected = model.generate(**inputs, **GENERATE)
    inputs["inputs_embeds"] = model.embed_text(inputs.pop("input_ids"))
    assert torch.equal(model.generate(**inputs, **GENERATE), expected)


def test_resizing_the_vocabulary_keeps_old_tokens_and_keeps_lm_head_untied() -> None:
    model, inputs = tiny_model(), {**tiny_inputs(), "labels": tiny_labels()}
    before = model(**inputs).logits
    model.resize_token_embeddings(110)
    after = model(**inputs).logits
    assert after.shape[-1] == model.config.text_config.vocab_size == 110
    assert torch.allclose(after[..., :99], before, atol=1e-5)
    language_model = model.language_model
    assert language_model.lm_head.weight.shape == language_model.shared.weight.shape == (110, 32)
    assert language_model.lm_head.weight is not language_model.shared.weight
    assert language_model.decoder.embed_tokens.weight is language_model.shared.weight


# --- decoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_beams", [1, 4])
def test_cached_decoding_is_uncached_decoding(num_beams: int) -> None:
    model, inputs = tiny_model(), tiny_inputs()
    options = {**GENERATE, "num_beams": num_beams}
    expected = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(model.generate(**inputs, **options), expected)
    assert torch.equal(model.generate(**inputs, **options, cache_implementation="static"), expected)


def test_decoding_step_by_step_through_forward_gives_the_generated_ids() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    expected = model.generate(**inputs, **GENERATE, do_sample=False)
    ids = torch.zeros(4, 1, dtype=torch.long)
    outputs = model(**inputs, decoder_input_ids=ids, use_cache=True)
    for _ in range(6):
        outputs.logits[:, -1, 1] = -torch.inf  # as min_new_tokens forbids the end
        ids = torch.cat([ids, outputs.logits[:, -1:].argmax(-1)], 1)
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            task_type_ids=inputs["task_type_ids"],
            encoder_outputs=(outputs.encoder_last_hidden_state,),
            cache=get_cache(outputs),
            decoder_input_ids=ids[:, -1:],
            use_cache=True,
        )
    assert torch.equal(ids, expected)


def test_generate_takes_a_training_batch_and_its_own_configuration(recwarn: pytest.WarningsRecorder) -> None:
    model, inputs = tiny_model(), tiny_inputs()
    model.generation_config.max_new_tokens = 3
    assert model.generate(**inputs, labels=tiny_labels(), min_new_tokens=3).shape == (4, 4)
    assert model.language_model.generation_config is model.generation_config


@pytest.mark.parametrize("part", ["forward", "encoder"])
@pytest.mark.slow
def test_compiled_parts_compute_the_same(part: str) -> None:
    model, inputs = tiny_model(), {**tiny_inputs(), "labels": tiny_labels()}
    expected = model(**inputs).logits
    if part == "forward":
        compiled = torch.compile(model, backend="aot_eager")
        logits = compiled(**inputs).logits
    else:
        model.language_model.encoder = torch.compile(model.language_model.encoder, backend="aot_eager", fullgraph=True)
        logits = model(**inputs).logits
    assert torch.allclose(logits, expected, atol=1e-4)


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_keeps_the_gradients_of_a_mixed_batch(use_reentrant: bool) -> None:
    model = tiny_model(**NO_DROPOUT).double().train()
    inputs = {**tiny_inputs(), "labels": tiny_labels()}
    inputs["pixel_values"] = inputs["pixel_values"].double().requires_grad_()
    expected = gradients(model, **inputs)
    enable_activation_checkpointing(model, use_reentrant)
    recomputed: list[int] = []
    adapter = model.language_model.encoder.block[0].feed_forward.adapter
    adapter.register_forward_pre_hook(lambda *_: recomputed.append(1))
    found = gradients(model, **inputs)
    assert len(recomputed) == 2  # once forward, once again in backward: the checkpointing took place
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-12), name


def test_two_forwards_with_different_tasks_before_one_backward_keep_their_gradients() -> None:
    model = tiny_model(**NO_DROPOUT).double()
    inputs = {**tiny_inputs(), "labels": tiny_labels()}
    inputs["pixel_values"] = inputs["pixel_values"].double()
    other = {**inputs, "task_type_ids": 1 - inputs["task_type_ids"]}
    first, second = gradients(model, **inputs), gradients(model, **other)
    enable_activation_checkpointing(model.train())
    model.zero_grad()
    (model(**inputs).loss + model(**other).loss).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, first[name] + second[name], rtol=1e-8, atol=1e-11), name


def test_every_parameter_that_is_used_gets_a_gradient() -> None:
    model = tiny_model()
    found = gradients(model, **tiny_inputs(), labels=tiny_labels())
    unused = {name for name, _ in model.named_parameters()} - found.keys()
    last = model.config.qformer_config.num_hidden_layers - 1
    text_half = f"qformer.encoder.layer.{last}."  # what the last layer does to the text positions is not read
    assert all(name.startswith((f"{text_half}intermediate.", f"{text_half}output.")) for name in unused), unused


def test_the_loss_is_the_mean_over_tokens_and_adds_up_over_parts_of_a_batch() -> None:
    model, inputs, labels = tiny_model(), tiny_inputs(), tiny_labels()
    whole = model(**inputs, labels=labels)
    per_token = torch.nn.functional.cross_entropy(whole.logits.transpose(1, 2), labels)
    assert whole.loss.item() == pytest.approx(per_token.item(), rel=1e-5)
    num_items = int((labels != -100).sum())
    parts = [
        model(**row_of(inputs, row), labels=labels[row : row + 1], num_items_in_batch=num_items).loss
        for row in range(4)
    ]
    assert sum(parts).item() == pytest.approx(whole.loss.item(), rel=1e-5)


# --- dtypes, saving, devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_float16_keeps_wo_and_adapters_in_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model, inputs = tiny_model(seed=1), {**tiny_inputs(), "labels": tiny_labels()}
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    half = LionForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).eval()
    kept = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    protected = {name for name in dict(half.named_parameters()) if "DenseReluDense.wo." in name or ".adapter." in name}
    assert kept == (protected if dtype == torch.float16 else set())
    logits = half(**inputs).logits
    limit = 0.05 if dtype == torch.bfloat16 else 0.01
    assert (logits - expected).norm() < limit * expected.norm()  # the largest error depends on torch's random numbers
    assert half.generate(**tiny_inputs(), **GENERATE, num_beams=3).shape == (4, 7)
    assert model.to(dtype)(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("size", [1e4, 1e5])
def test_loaded_in_float16_activations_as_large_as_flan_t5s_give_the_same_answers(size: float, tmp_path: Path) -> None:
    model, inputs = tiny_model(seed=1), tiny_inputs(2)
    with torch.no_grad():
        for stack in (model.language_model.encoder, model.language_model.decoder):
            for block in stack.block:
                block.feed_forward.DenseReluDense.wo.weight.mul_(size)
    outputs = model(**inputs, decoder_input_ids=torch.tensor([[0, 5, 9]] * 2), output_hidden_states=True)
    assert max(states.abs().max() for states in outputs.decoder_hidden_states[:-1]) > size
    expected = model.generate(**inputs, **GENERATE, num_beams=3)
    model.save_pretrained(tmp_path)
    half = LionForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16).eval()
    logits = half(**inputs, decoder_input_ids=torch.tensor([[0, 5, 9]] * 2)).logits
    assert (logits - outputs.logits).abs().max() < 0.03 * outputs.logits.abs().max()
    assert torch.equal(half.generate(**inputs, **GENERATE, num_beams=3), expected)


@pytest.mark.parametrize("branch", BRANCHES)
def test_every_parameter_survives_saving_and_loading(
    branch: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(visual_branch=branch)
    model.save_pretrained(tmp_path)
    for auto_class in (LionForConditionalGeneration, AutoModelForImageTextToText):
        loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is LionForConditionalGeneration
        assert not any(info.values()), info
        expected, found = dict(model.named_parameters()), dict(loaded.named_parameters())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert loaded.language_model.lm_head.weight is not loaded.language_model.shared.weight
        assert loaded.language_model.encoder.embed_tokens.weight is loaded.language_model.shared.weight
        assert loaded.vision_model.post_layernorm is not None
    assert not [record for record in caplog.records if "tie" in record.getMessage()]


def test_lm_head_stays_untied_through_training_and_saving(tmp_path: Path) -> None:
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.language_model.lm_head.parameters(), lr=0.1)
    table = model.language_model.shared.weight.detach().clone()
    model(**tiny_inputs(), labels=tiny_labels()).loss.backward()
    optimizer.step()
    assert torch.equal(model.language_model.shared.weight, table)
    model.save_pretrained(tmp_path)
    loaded = LionForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.language_model.lm_head.weight, model.language_model.lm_head.weight)
    assert torch.equal(loaded.language_model.shared.weight, table)


def test_a_device_map_with_offloaded_blocks_generates_the_same(tmp_path: Path) -> None:
    model, inputs = tiny_model(), tiny_inputs()
    expected = model.generate(**inputs, **GENERATE, num_beams=3)
    model.save_pretrained(tmp_path)
    parts = ["vision_model", "query_tokens", "qformer", "language_projection", "aggregator", "aggregator_projection",
             "soft_prompt", "language_model.shared", "language_model.lm_head"]  # fmt: skip
    for stack in ("encoder", "decoder"):
        names = ("embed_tokens", "final_layer_norm", "dropout", "block.0")
        parts += [f"language_model.{stack}.{name}" for name in names]
    device_map: dict[str, Any] = dict.fromkeys(parts, "cpu")
    device_map.update({f"language_model.{stack}.block.1": "disk" for stack in ("encoder", "decoder")})
    device_map["vision_model"] = "disk"
    mapped = LionForConditionalGeneration.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert mapped.vision_model.encoder.layers[0].mlp.fc1.weight.is_meta
    assert torch.equal(mapped.generate(**inputs, **GENERATE, num_beams=3), expected)


def test_blocks_are_never_split_over_devices() -> None:
    names = {type(module).__name__ for module in tiny_model().modules()}
    assert LionForConditionalGeneration._no_split_modules
    assert set(LionForConditionalGeneration._no_split_modules) <= names


# --- what is refused ----------------------------------------------------------------------------------------------


def without(*names: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in tiny_inputs().items() if name not in names}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (without("task_type_ids"), ["task_type_ids is missing"]),
        ({**tiny_inputs(), "task_type_ids": torch.tensor([0, 1])}, ["(2,)", "4 prompts"]),
        ({**tiny_inputs(), "task_type_ids": torch.tensor([0, 1, 2, 0])}, ["contains 2", "0 to 1"]),
        ({**tiny_inputs(), "pixel_values": torch.randn(3, 3, 28, 28)}, ["3 images for 4 prompts"]),
        ({**tiny_inputs(), "task_type_ids": torch.ones(4)}, ["integer tensor", "float32"]),
        ({**tiny_inputs(), "task_type_ids": [0, 1, 0, 1]}, ["integer tensor", "list"]),
        ({**tiny_inputs(), "attention_mask": torch.ones(4, 3)}, ["(4, 3)", "(4, 7)"]),
        ({**tiny_inputs(), "qformer_input_ids": torch.ones(3, 4).long()}, ["3 questions, but there are 4 samples"]),
        ({**tiny_inputs(), "qformer_input_ids": torch.ones(4, 33).long()}, ["33 tokens", "at most 32"]),
        ({**tiny_inputs(), "pixel_values": torch.randn(4, 3, 28, 42)}, ["28x42", "28x28"]),
        (without("pixel_values"), ["exactly one of pixel_values and image_features"]),
        (without("input_ids"), ["exactly one of input_ids and inputs_embeds"]),
        (without("qformer_input_ids"), ["qformer_input_ids is missing"]),
    ],
)
@pytest.mark.parametrize("method", ["forward", "generate"])
def test_inputs_that_do_not_fit_are_refused_and_named(method: str, inputs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        getattr(tiny_model(), method)(**inputs, labels=tiny_labels())
    assert all(word in str(error.value) for word in words), error.value


def test_a_static_cache_is_as_long_as_this_answer_may_be_whatever_came_before() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    lengths = []
    for max_new_tokens in (60, 5):
        found = model.generate(
            **inputs, max_new_tokens=max_new_tokens, cache_implementation="static", return_dict_in_generate=True
        )
        cache = next(found[name] for name in ("cache", "past_key_values") if found.get(name) is not None)
        lengths.append(cache.self_attention_cache.layers[0].keys.shape[2])
    assert lengths[0] >= 60
    assert lengths[1] <= 6


def test_an_assistant_is_refused_and_prompt_lookup_writes_the_same() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    with pytest.raises(ValueError, match="assistant_model is not supported"):
        model.generate(**inputs, assistant_model=tiny_model())
    alone = row_of(inputs, 0)
    expected = model.generate(**alone, **GENERATE)
    assert torch.equal(model.generate(**alone, prompt_lookup_num_tokens=2, **GENERATE), expected)


def test_padding_behind_the_end_leaves_a_given_beginning_alone() -> None:
    ids = torch.tensor([[0, 1, 5, 1, 1, 7], [0, 1, 5, 6, 7, 8], [0, 2, 9, 9, 9, 9]])
    assert pad_after_end(ids, 2, end_ids=[1, 2], pad_id=0).tolist() == [
        [0, 1, 5, 1, 0, 0], [0, 1, 5, 6, 7, 8], [0, 2, 9, 9, 9, 9],
    ]  # fmt: skip
    assert pad_after_end(ids, 1, end_ids=1, pad_id=0)[0].tolist() == [0, 1, 0, 0, 0, 0]
    assert pad_after_end(ids, 1, end_ids=None, pad_id=0) is ids


def test_a_vocabulary_without_the_soft_prompts_marker_is_refused() -> None:
    with pytest.raises(
        ValueError, match=rf"new_num_tokens is 50, but must be greater than soft_prompt_token_id \({SOFT_PROMPT}\)"
    ):
        tiny_model().resize_token_embeddings(50)
    assert tiny_model(use_soft_prompt=False).resize_token_embeddings(50).num_embeddings == 50


def test_a_whole_processor_output_may_be_given_for_image_features() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    whole = model.get_image_features(**inputs, labels=tiny_labels()).pooler_output
    assert torch.equal(whole, model.get_image_features(inputs["pixel_values"]).pooler_output)


def test_a_fresh_model_starts_as_the_specification_says() -> None:
    torch.manual_seed(0)
    model = LionForConditionalGeneration(tiny_config(text_config={"d_model": 512}))
    assert model.soft_prompt.weight.std().item() == pytest.approx(1, rel=0.15)
    assert model.query_tokens.weight.std().item() == pytest.approx(0.02, rel=0.3)
    for layer in model.aggregator.layers:
        for part in (layer.attention.output, layer.crossattention.output, layer.output):
            assert not part.dense.weight.any()


def test_images_in_chunks_have_the_features_of_one_batch() -> None:
    model, pixels = tiny_model(), tiny_inputs(5)["pixel_values"]
    with torch.no_grad():
        whole, parts = model.get_image_features(pixels), model.get_image_features(pixels, chunk_size=2)
    assert torch.allclose(whole.last_hidden_state, parts.last_hidden_state, atol=1e-5)
    assert torch.allclose(whole.pooler_output, parts.pooler_output, atol=1e-5)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        model.get_image_features(pixels, chunk_size=0)


def several_questions() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two images and four questions, which ask about the second, the first, the second and the second."""
    inputs, image_indices = tiny_inputs(), torch.tensor([1, 0, 1, 1])
    return {**inputs, "pixel_values": inputs["pixel_values"][:2]}, image_indices


def test_an_image_with_several_questions_is_the_same_as_one_image_for_each() -> None:
    inputs, image_indices = several_questions()
    repeated = {**inputs, "pixel_values": inputs["pixel_values"][image_indices]}
    model, labels = tiny_model(), tiny_labels()
    with torch.no_grad():
        once = model(**inputs, image_indices=image_indices, labels=labels)
        each = model(**repeated, labels=labels)
    torch.testing.assert_close(once.logits, each.logits)
    torch.testing.assert_close(once.loss, each.loss)
    generated = model.generate(**inputs, image_indices=image_indices, max_new_tokens=4)
    assert generated.tolist() == model.generate(**repeated, max_new_tokens=4).tolist()


def test_gradients_of_an_image_with_several_questions_add_up() -> None:
    inputs, image_indices = several_questions()
    repeated = {**inputs, "pixel_values": inputs["pixel_values"][image_indices]}
    gradients = []
    for batch in ({**inputs, "image_indices": image_indices}, repeated):
        model = tiny_model()
        model(**batch, labels=tiny_labels()).loss.backward()
        gradients.append({name: x.grad for name, x in model.named_parameters() if x.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("image_indices", "message"),
    [
        ([0, 1, 2, 0], "contains 2, which is out of range for 2 images"),
        ([0, -1, 0, 0], "contains -1"),
        ([0, 1], "must have shape .* for 4 prompts"),
    ],
)
def test_indices_without_an_image_are_refused(image_indices: list[int], message: str) -> None:
    inputs, _ = several_questions()
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs, image_indices=torch.tensor(image_indices), labels=tiny_labels())
