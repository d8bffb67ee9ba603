"""LoRA through PEFT: where it goes, what trains beside it, and that it is saved, loaded, merged and resumed."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from factories import tiny_inputs, tiny_labels, tiny_model
from training.record_files import write_source
from transformers_lion import LionForConditionalGeneration, LionProcessor
from transformers_lion.training import (
    STAGES,
    Stage,
    apply_stage,
    load_records,
    make_trainer,
    parameter_groups,
    train,
    training_arguments,
)

peft = pytest.importorskip("peft")

from transformers_lion.training import lora  # noqa: E402
from transformers_lion.training.lora import MODULES_TO_SAVE, NOT_QUANTIZED, lora_config  # noqa: E402

EACH_STAGE = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())


def staged_model(stage: Stage) -> LionForConditionalGeneration:
    return tiny_model(visual_branch=stage.visual_branch, text_config={"num_adapters": stage.num_adapters})


def batch() -> dict[str, torch.Tensor]:
    return {**tiny_inputs(), "labels": tiny_labels()}


def trained_model(stage: Stage) -> Any:
    """A model with LoRA after a few steps."""
    torch.manual_seed(0)
    base = staged_model(stage)
    model = peft.get_peft_model(base, lora_config(base, rank=2))
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2))
    model.train()
    for _ in range(2):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model(**batch()).logits


def assert_same_trained(model: Any, expected: Any) -> None:
    """That a PEFT model has all tensors that were trained in another."""
    parameters = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in expected.named_parameters() if parameter.requires_grad}
    assert all(torch.equal(parameters[name], parameter) for name, parameter in trained.items())


def targets_of(pattern: str) -> set[str]:
    """Names of the small model's layers that get LoRA, without their block's number."""
    config = peft.LoraConfig(target_modules=pattern, r=2)
    model = peft.get_peft_model(tiny_model(), config)
    names = [name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.Linear)]
    return {name.removeprefix("base_model.model.").replace(".1.", ".N.").replace(".0.", ".N.") for name in names}


def test_the_ready_expressions_find_attention_and_feed_forward_and_nothing_else() -> None:
    block = "language_model.{}.block.N.{}"
    assert targets_of(lora.LANGUAGE_MODEL_ATTENTION) == {
        *(block.format("encoder", f"layer.N.SelfAttention.{x}") for x in "qkvo"),
        *(block.format("decoder", f"layer.N.SelfAttention.{x}") for x in "qkvo"),
        *(block.format("decoder", f"layer.N.EncDecAttention.{x}") for x in "qkvo"),
    }
    assert targets_of(lora.LANGUAGE_MODEL_FEED_FORWARD) == {
        block.format(stack, f"feed_forward.DenseReluDense.{x}")
        for stack in ("encoder", "decoder")
        for x in ("wi_0", "wi_1", "wo")
    }
    assert targets_of(lora.QFORMER_ATTENTION) == {
        f"qformer.encoder.layer.N.{kind}.attention.{x}"
        for kind in ("attention", "crossattention")
        for x in ("query", "key", "value")
    }


@EACH_STAGE
def test_lora_and_lions_own_parts_train_and_nothing_else_changes(stage: Stage) -> None:
    model, before = trained_model(stage), dict(staged_model(stage).named_parameters())
    after = dict(model.named_parameters())
    for name, parameter in after.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
        if plain in before:
            assert torch.equal(parameter, before[plain]), name
            assert not parameter.requires_grad, name
        else:
            assert parameter.requires_grad, name
            assert ".lora_" in plain or ".modules_to_save." in plain, name
    own = {name.split(".modules_to_save.")[0].split(".")[-1] for name in after if ".modules_to_save." in name}
    parts = {part.split(".")[-1] for part in stage.parts} - {"qformer"}
    assert own == parts
    changed = [name for name, x in after.items() if ".modules_to_save." in name and ".router." not in name]
    originals = {name: after[name.replace(".modules_to_save.default.", ".original_module.")] for name in changed}
    assert all(not torch.equal(after[name], originals[name]) for name in changed)
    assert all(after[name].count_nonzero() for name in after if "lora_B" in name)


def test_the_aggregators_learning_rate_holds_in_peft_as_well() -> None:
    model = peft.get_peft_model(tiny_model(), lora_config(tiny_model()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, 1e-3, aggregator_lr_multiplier=2.0):
        for parameter in group["params"]:
            assert group["lr"] == (2e-3 if ".aggregator" in names[id(parameter)] else 1e-3)


@EACH_STAGE
def test_what_was_trained_is_saved_loaded_and_merged(stage: Stage, tmp_path: Path) -> None:
    model = trained_model(stage)
    expected, answer = logits_of(model), model.generate(**tiny_inputs(), max_new_tokens=4)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(staged_model(stage), tmp_path / "adapter").eval()
    assert_same_trained(loaded, model)
    assert torch.allclose(logits_of(loaded), expected, atol=1e-4)
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    whole = LionForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits_of(whole), expected, atol=1e-3)
    assert torch.equal(whole.generate(**tiny_inputs(), max_new_tokens=4), answer)
    assert not torch.allclose(logits_of(staged_model(stage)), expected, atol=1e-3)


@pytest.mark.parametrize("parts", [["vision_model"], ["qformer", "aggregator"]])
def test_an_unknown_target_is_refused(parts: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"no LoRA target '{parts[-1]}'; the targets are language_model, qformer"):
        lora_config(tiny_model(), targets=parts)


def test_a_target_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="has none of qformer"):
        lora_config(staged_model(STAGES["region_level"]), targets=["qformer"])


def test_lora_may_go_onto_one_part_and_leave_lions_own_alone() -> None:
    model = peft.get_peft_model(tiny_model(), lora_config(tiny_model(), targets=["qformer"], modules_to_save=()))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.startswith("base_model.model.qformer.") and ".lora_" in name for name in trained)


# --- PEFT's other methods -----------------------------------------------------------------------------------------

IA3_TARGETS = r"language_model\..*\.(SelfAttention|EncDecAttention)\.(k|v)|language_model\..*\.DenseReluDense\.wo"

METHODS: dict[str, Callable[..., Any]] = {
    "DoRA": lambda **options: peft.LoraConfig(r=2, use_dora=True, **options),
    "IA3": lambda **options: peft.IA3Config(
        feedforward_modules=r".*\.DenseReluDense\.wo", **{**options, "target_modules": IA3_TARGETS}
    ),
    "LoKr": lambda **options: peft.LoKrConfig(r=2, **options),
    "LoHa": lambda **options: peft.LoHaConfig(r=2, **options),
    "OFT": lambda **options: peft.OFTConfig(r=0, oft_block_size=4, **options),
    "VeRA": lambda **options: peft.VeraConfig(
        r=2, **{**options, "target_modules": r"language_model\..*\.SelfAttention\.(q|k|v|o)"}
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_another_method_trains_generates_is_loaded_and_merged(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"task_type": "SEQ_2_SEQ_LM", "target_modules": lora.LANGUAGE_MODEL_ATTENTION}
    model = peft.get_peft_model(tiny_model(), METHODS[method](**options))
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=3e-2)
    before = model(**batch()).loss.item()
    for _ in range(3):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert model(**batch()).loss.item() < 0.95 * before
    expected = logits_of(model)
    first = torch.zeros(4, 1, dtype=torch.long)
    with torch.no_grad():
        told = model(**tiny_inputs(), decoder_input_ids=first).logits[:, -1].argmax(-1)
    assert torch.equal(model.generate(**tiny_inputs(), max_new_tokens=1)[:, 1], told)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    assert torch.equal(logits_of(loaded), expected)
    assert torch.allclose(logits_of(loaded.merge_and_unload()), expected, atol=1e-3)


@pytest.mark.parametrize("method", ["PrefixTuningConfig", "PromptTuningConfig", "PromptEncoderConfig"])
def test_prompt_learning_is_refused_before_anything_is_trained(method: str) -> None:
    config = getattr(peft, method)(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="LionForConditionalGeneration does not support PEFT's prompt learning"):
        peft.get_peft_model(tiny_model(), config)


def test_single_tokens_are_trained_in_prompts_but_not_in_the_decoder() -> None:
    config = peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM", r=2, target_modules=lora.LANGUAGE_MODEL_ATTENTION, trainable_token_indices=[5]
    )
    language_model = peft.get_peft_model(tiny_model(), config).get_base_model().language_model
    with torch.no_grad():
        language_model.shared.token_adapter.trainable_tokens_delta["default"].add_(1.0)
    ids = torch.tensor([[5]])
    assert not torch.equal(language_model.shared(ids), language_model.decoder.embed_tokens(ids))


# --- with the recipe ----------------------------------------------------------------------------------------------


def lora_trainer(folder: Path, model: LionForConditionalGeneration, processor: LionProcessor, **options: Any) -> Any:
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    arguments = training_arguments(
        folder / "output", per_device_train_batch_size=2, max_steps=4, learning_rate=1e-3, bf16=False, use_cpu=True,
        logging_steps=1, save_steps=2, save_total_limit=None, disable_tqdm=True,
    )  # fmt: skip
    model = peft.get_peft_model(model, lora_config(model, rank=2))
    return make_trainer(model, processor, arguments, load_records(folder / "a.json"), **options)


def test_the_recipe_trains_saves_and_resumes_lora(
    lion_model: LionForConditionalGeneration, lion_processor: LionProcessor, tmp_path: Path
) -> None:
    write_source(tmp_path, 4)
    whole = lora_trainer(tmp_path, lion_model, lion_processor)
    train(whole)
    names = {path.name for path in (tmp_path / "output" / "checkpoint-4").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json"} <= names
    assert "model.safetensors" not in names
    (tmp_path / "output" / "checkpoint-4").rename(tmp_path / "kept")
    again = lora_trainer(tmp_path, lion_model, lion_processor)
    train(again)
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, again)]
    assert losses[0] == losses[1]
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(lion_model), tmp_path / "kept")
    assert_same_trained(loaded, again.model)


def test_checkpoints_of_what_is_trained_alone_are_not_for_peft(
    lion_model: LionForConditionalGeneration, lion_processor: LionProcessor, tmp_path: Path
) -> None:
    write_source(tmp_path, 1)
    with pytest.raises(ValueError, match="trainable_only is for LionForConditionalGeneration, not for PeftModel"):
        lora_trainer(tmp_path, lion_model, lion_processor, trainable_only=True)


# --- on a quantized base ------------------------------------------------------------------------------------------


def torchao_int8(skip: list[str] | None) -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=skip)


def bitsandbytes_int8(skip: list[str] | None) -> Any:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)


def bitsandbytes_nf4(skip: list[str] | None) -> Any:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=skip
    )


QUANTIZERS = pytest.mark.parametrize(
    "quantizer", [torchao_int8, bitsandbytes_int8, bitsandbytes_nf4], ids=lambda make: make.__name__
)


@pytest.fixture(scope="module")
def bfloat16_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose widths are multiples of 64, as quantizers want them and LION's own are."""
    width = {"hidden_size": 64, "intermediate_size": 128}
    text = {"d_model": 64, "d_kv": 16, "d_ff": 128}
    folder = tmp_path_factory.mktemp("bfloat16")
    model = tiny_model(
        vision_config=width, qformer_config=width, aggregator_config={"intermediate_size": 128}, text_config=text
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # the quantizers' own
@QUANTIZERS
def test_lora_trains_on_a_quantized_base(quantizer: Any, bfloat16_folder: Path, tmp_path: Path) -> None:
    def load() -> LionForConditionalGeneration:
        config = quantizer(list(NOT_QUANTIZED))
        return LionForConditionalGeneration.from_pretrained(
            bfloat16_folder, dtype="bfloat16", quantization_config=config
        )

    inputs = batch()
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    base = load()
    assert type(base.language_model.encoder.block[0].layer[0].SelfAttention.q.weight) is not torch.nn.Parameter
    model = peft.get_peft_model(base, lora_config(base, rank=2)).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.clone() for parameter in trained]
    optimizer = torch.optim.SGD(trained, lr=1e-1)
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs).loss.backward()
    assert all(parameter.grad is not None for parameter in trained)
    optimizer.step()
    assert any(not torch.equal(parameter, old) for parameter, old in zip(trained, before, strict=True))
    model.eval().save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(load(), tmp_path).eval()
    assert_same_trained(loaded, model)


@pytest.mark.filterwarnings("ignore")
@QUANTIZERS
def test_a_quantized_part_that_should_train_whole_is_refused(quantizer: Any, bfloat16_folder: Path) -> None:
    model = LionForConditionalGeneration.from_pretrained(
        bfloat16_folder, dtype="bfloat16", quantization_config=quantizer(None)
    )
    with pytest.raises(ValueError, match="language_projection must not be quantized"):
        lora_config(model)


class StandInWeight(torch.nn.Parameter):
    """A stand-in for a quantized weight, where torchao is not installed."""


class StandInRounding(torch.nn.Linear):
    """A stand-in for a layer that quantizes what goes in, through which no gradient passes."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward((inputs * 32).round() / 32)


class StandInWeightOnly(torch.nn.Linear):
    """A stand-in for a layer that quantizes its weight alone."""


def with_stand_in(kind: type[torch.nn.Linear], name: str) -> LionForConditionalGeneration:
    model = tiny_model()
    layer = model.get_submodule(name)
    layer.__class__ = kind
    layer.weight = StandInWeight(layer.weight.data, requires_grad=False)
    return model


QUERY = "language_model.encoder.block.0.layer.0.SelfAttention.q"


def test_a_base_that_no_gradients_pass_through_is_refused(
    lion_model: LionForConditionalGeneration, lion_processor: LionProcessor, tmp_path: Path
) -> None:
    expected = rf"Gradients do not pass through {QUERY}, which is quantized .StandInWeight.: .* is 0 times the"
    with pytest.raises(ValueError, match=expected):
        lora_config(with_stand_in(StandInRounding, QUERY))
    lora_config(with_stand_in(StandInWeightOnly, QUERY))
    lora_config(with_stand_in(StandInRounding, "vision_model.encoder.layers.0.mlp.fc1"))  # nothing before it trains
    write_source(tmp_path, 1)
    model = with_stand_in(StandInRounding, QUERY)
    apply_stage(model, "mixture")
    arguments = training_arguments(tmp_path / "output", bf16=False, use_cpu=True)
    with pytest.raises(ValueError, match="Gradients do not pass through"):
        make_trainer(model, lion_processor, arguments, load_records(tmp_path / "a.json"))


@pytest.mark.filterwarnings("ignore")
def test_torchaos_dynamic_quantization_is_refused(bfloat16_folder: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    config = TorchAoConfig(
        quantization.Int8DynamicActivationInt8WeightConfig(), modules_to_not_convert=list(NOT_QUANTIZED)
    )
    model = LionForConditionalGeneration.from_pretrained(bfloat16_folder, dtype="bfloat16", quantization_config=config)
    with pytest.raises(ValueError, match=r"Gradients do not pass through .* quantized .Int8Tensor."):
        lora_config(model)


def test_the_modules_that_quantizers_must_skip_are_lions_own_linear_layers() -> None:
    model = tiny_model()
    holding = {
        name
        for name in MODULES_TO_SAVE
        if hasattr(model, name) and any(type(module) is torch.nn.Linear for module in getattr(model, name).modules())
    }
    assert holding == {name for name in NOT_QUANTIZED if "." not in name}
