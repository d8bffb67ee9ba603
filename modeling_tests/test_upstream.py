"""What the package takes for granted of transformers, accelerate, peft and torch without their documenting it.

Each entry of the table names one thing and what is assumed of it, and fails by that name when it changes. Two scans of
the sources see to it that nothing is missing from the table.
"""

import ast
import inspect
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors.torch import load_file
from torch import nn
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    GenerationMixin,
    ImageTextToTextPipeline,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    Pipeline,
    PreTrainedModel,
    ProcessorMixin,
    Seq2SeqTrainer,
    StaticCache,
    T5Config,
)
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.instructblip import modeling_instructblip as instructblip
from transformers.models.t5 import modeling_t5 as t5
from transformers.pipelines import PIPELINE_REGISTRY

import transformers_lion
from factories import tiny_config, tiny_inputs, tiny_model
from transformers_lion import LionModel
from transformers_lion.compatibility import CACHE_NAME, CACHE_NAMES, enable_activation_checkpointing
from transformers_lion.modeling_lion_t5 import eager_attention
from transformers_lion.modeling_utils import CAPTURING_MARK, CAPTURING_MODULE

SOURCES = Path(transformers_lion.__file__).parent
ASSUMPTIONS: dict[str, Callable[[], None]] = {}


def assume(*names: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Enter a check into the table, under the names of what it is about."""

    def enter(check: Callable[[], None]) -> Callable[[], None]:
        for name in names:
            assert name not in ASSUMPTIONS
            ASSUMPTIONS[name] = check
        return check

    return enter


def parameters(function: Any, count: int | None = None) -> list[str]:
    """Names of a function's first arguments, without `self`."""
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    return names[:count]


def config(**fields: Any) -> T5Config:
    found = T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, vocab_size=11, **fields)
    found._attn_implementation = "sdpa"
    return found


# transformers: caches and generation


@assume(
    "transformers.modeling_outputs.Seq2SeqLMOutput",
    "transformers.modeling_outputs.BaseModelOutputWithPastAndCrossAttentions",
)
def outputs_have_one_field_for_the_cache() -> None:
    for output in (Seq2SeqLMOutput, Seq2SeqModelOutput, BaseModelOutputWithPastAndCrossAttentions):
        assert [field.name for field in fields(output) if field.name in CACHE_NAMES] == [CACHE_NAME]


@assume("_prepare_cache_for_generation")
def generate_makes_its_cache_in_one_method_and_under_the_outputs_name() -> None:
    expected = ["generation_config", "model_kwargs", "generation_mode", "batch_size", "max_cache_length"]
    assert parameters(GenerationMixin._prepare_cache_for_generation) == expected
    model, arguments = tiny_model().language_model, {"encoder_outputs": (torch.zeros(1, 3, 32),)}
    settings = GenerationConfig(**{**model.generation_config.to_dict(), "use_cache": True})
    GenerationMixin._prepare_cache_for_generation(model, settings, arguments, None, 1, 8)
    assert isinstance(arguments[CACHE_NAME], EncoderDecoderCache)


@assume("_expand_inputs_for_generation")
def beams_are_made_of_the_arguments_in_one_method() -> None:
    assert parameters(GenerationMixin._expand_inputs_for_generation, 3) == [
        "expand_size", "is_encoder_decoder", "input_ids",
    ]  # fmt: skip
    calls = inspect.getsource(GenerationMixin.generate)
    assert "_expand_inputs_for_generation(" in calls
    assert "_prepare_cache_for_generation(" in calls


@assume("transformers.cache_utils.DynamicCache", "transformers.cache_utils.EncoderDecoderCache")
def caches_grow_by_layer_and_say_what_they_hold() -> None:
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    states = torch.randn(2, 3, 4, 5)
    for layer in (0, 1):
        keys, values = cache.self_attention_cache.update(states, states + 1, layer)
        assert torch.equal(keys, states)
        assert torch.equal(values, states + 1)
    assert cache.get_seq_length(1) == 4
    assert not cache.is_updated.get(1)
    cache.cross_attention_cache.update(states, states, 0)
    assert torch.equal(cache.cross_attention_cache.layers[0].keys, states)
    cache.self_attention_cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache.self_attention_cache.layers[1].values, states.flip(0) + 1)


@assume("transformers.cache_utils.StaticCache")
def a_static_cache_holds_its_whole_length() -> None:
    cache = StaticCache(config=config(), max_cache_len=6)
    keys, _ = cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    assert keys.shape[2] == 6
    assert int(cache.get_seq_length(0)) == 3


@assume("_previous_max_cache_length")
def generate_notes_the_length_of_its_static_cache_on_the_model() -> None:
    model = tiny_model()
    model.generate(**tiny_inputs(2), max_new_tokens=5, cache_implementation="static")
    assert vars(model.language_model)["_previous_max_cache_length"] == 5


# transformers: attention, masks, layers


@assume("transformers.masking_utils.create_causal_mask", "transformers.masking_utils.create_bidirectional_mask")
def masks_are_made_of_the_arguments_in_this_order() -> None:
    *first, cache = parameters(create_causal_mask, 4)
    assert first == ["config", "inputs_embeds", "attention_mask"]
    assert cache == CACHE_NAME
    assert parameters(create_bidirectional_mask, 4) == [*first, "encoder_hidden_states"]
    padding, states, past = torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.zeros(2, 1, 8), DynamicCache()
    past.update(torch.zeros(2, 2, 2, 4), torch.zeros(2, 2, 2, 4), 0)
    assert create_causal_mask(config(), states, padding, past).tolist() == [[[[True] * 3]], [[[True, True, False]]]]
    mask = create_bidirectional_mask(config(), states, padding, torch.zeros(2, 3, 8))
    assert mask.tolist() == [[[[True] * 3]], [[[True, True, False]]]]
    assert create_causal_mask(config(), torch.zeros(2, 3, 8), torch.ones(2, 3), None) is None


@assume("transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS")
def sdpa_takes_a_position_bias_and_gives_what_eager_gives() -> None:
    query, key = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 5, 4)
    bias, mask = torch.randn(1, 2, 3, 5), torch.rand(2, 1, 1, 5) > 0.3
    module = SimpleNamespace(is_causal=False, training=False)
    sdpa = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", eager_attention)
    options: dict[str, Any] = {"dropout": 0.0, "scaling": 1.0, "position_bias": bias}
    outputs, _ = sdpa(module, query, key, key, mask, **options)
    added = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    expected, _ = eager_attention(module, query, key, key, added, **options)
    assert torch.allclose(outputs, expected, atol=1e-5)
    assert ALL_ATTENTION_FUNCTIONS.get_interface("eager", eager_attention) is eager_attention


@assume("transformers.modeling_layers.GradientCheckpointingLayer")
def layers_are_checkpointed_with_the_gradients_of_what_goes_by_position() -> None:
    class Layer(GradientCheckpointingLayer):
        calls = 0

        def forward(self, states: torch.Tensor, factor: torch.Tensor, power: int = 1) -> torch.Tensor:
            self.calls += 1
            return states * factor**power

    model = tiny_model()
    model.language_model.decoder.block.append(Layer())
    layer = model.language_model.decoder.block[-1].train()
    enable_activation_checkpointing(model)
    factor = torch.tensor(3.0, requires_grad=True)
    layer(torch.tensor(2.0, requires_grad=True), factor, power=2).backward()
    assert factor.grad == 12
    assert layer.calls == 2


@assume(
    "transformers.utils.output_capturing.capture_outputs", "transformers.utils.output_capturing.OutputRecorder",
    "_can_record_outputs",
)  # fmt: skip
def outputs_of_layers_are_recorded_on_request() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    outputs = model(
        **tiny_inputs(2), decoder_input_ids=torch.tensor([[0], [0]]), output_hidden_states=True, output_attentions=True
    )
    assert [len(getattr(outputs, name)) for name in ("decoder_hidden_states", "cross_attentions")] == [3, 2]
    assert len(outputs.qformer_outputs.cross_attentions) == 1


@assume("_output_capturing_hooks_installed")
def hooks_that_record_outputs_are_known_by_their_module_and_a_mark() -> None:
    model = tiny_model().aggregator
    model(torch.zeros(1, 5, 32), (torch.zeros(1, 5, 32),) * 2, output_hidden_states=True)
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert {hook.__module__ for hook in hooks} == {CAPTURING_MODULE}
    assert vars(model)[CAPTURING_MARK] is True


@assume(
    "_attn_implementation",
    "_supports_sdpa",
    "_supports_flex_attn",
    "_supports_flash_attn",
    "_supports_attention_backend",
    "_can_compile_fullgraph",
)
def attention_is_chosen_among_what_the_class_says_it_supports() -> None:
    assert tiny_model().config.text_config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match=r"[Ff]lash"):
        tiny_model().language_model.set_attn_implementation("flash_attention_2")
    for name in ("_supports_flex_attn", "_supports_attention_backend", "_can_compile_fullgraph"):
        assert hasattr(PreTrainedModel, name)


# transformers: loading and initialising


@assume("_initialize_weights", "_init_weights")
def modules_are_initialised_one_by_one_unless_their_weights_were_loaded() -> None:
    assert parameters(PreTrainedModel._initialize_weights, 2) == ["module", "is_custom_code"]
    assert parameters(PreTrainedModel._init_weights) == ["module"]
    weight = nn.Parameter(torch.ones(2))
    init.constant_(weight, 3.0)
    assert weight.tolist() == [3, 3]
    weight._is_hf_initialized = True
    init.zeros_(weight)
    assert weight.tolist() == [3, 3]


@assume(
    "_keep_in_fp32_modules",
    "_tied_weights_keys",
    "_no_split_modules",
    "_skip_keys_device_placement",
    "_keys_to_ignore_on_save",
    "_keys_to_ignore_on_load_unexpected",
)
def rules_of_loading_and_saving_are_class_attributes() -> None:
    for name in ("_keep_in_fp32_modules", "_tied_weights_keys", "_no_split_modules", "_skip_keys_device_placement"):
        assert hasattr(PreTrainedModel, name)
    model = tiny_model()
    assert model.language_model.encoder.embed_tokens.weight is model.language_model.shared.weight
    assert LionModel(tiny_config())._keys_to_ignore_on_load_unexpected == {r"lm_head\.weight$"}  # its language model's
    model._keys_to_ignore_on_save = {"soft_prompt.weight"}
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = load_file(Path(folder, "model.safetensors"))
    assert set(model.state_dict()) - set(saved) == {
        "soft_prompt.weight",
        "language_model.encoder.embed_tokens.weight",  # tied
        "language_model.decoder.embed_tokens.weight",
    }


# transformers: parts that are used or derived from


@assume(
    "transformers.models.t5.modeling_t5.T5LayerNorm", "transformers.models.t5.modeling_t5.T5DenseGatedActDense",
    "transformers.models.t5.modeling_t5.T5DenseActDense",
)  # fmt: skip
def t5s_leaf_layers_take_hidden_states_and_nothing_else() -> None:
    states = torch.randn(2, 3, 8)
    dense = t5.T5DenseGatedActDense(config(feed_forward_proj="gated-gelu", dropout_rate=0.0)).eval()
    expected = dense.wo(dense.act(dense.wi_0(states)) * dense.wi_1(states))
    assert torch.allclose(dense(states), expected, atol=1e-6)
    norm = t5.T5LayerNorm(8, eps=1e-6)
    assert torch.allclose(norm(states), states * states.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt(), atol=1e-6)
    for layer in (norm, dense, t5.T5DenseActDense(config())):
        assert parameters(layer.forward) == ["hidden_states"]


@assume("transformers.models.instructblip.modeling_instructblip.InstructBlipVisionModel")
def the_vision_tower_is_embeddings_blocks_and_a_norm() -> None:
    vision = InstructBlipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28
    )
    tower = instructblip.InstructBlipVisionModel(vision).eval()
    states = tower.embeddings(torch.randn(1, 3, 28, 28), interpolate_pos_encoding=False)
    assert states.shape == (1, 5, 8)
    for block in tower.encoder.layers:
        states = block(states)
        assert isinstance(states, torch.Tensor)
    assert tower.post_layernorm(states).shape == (1, 5, 8)


QFORMER = InstructBlipQFormerConfig(
    hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=11, encoder_hidden_size=6
)


@assume(
    "transformers.models.instructblip.modeling_instructblip.InstructBlipQFormerModel",
    "transformers.models.instructblip.modeling_instructblip.InstructBlipQFormerLayer",
)
def the_qformer_reads_a_question_queries_and_an_image() -> None:
    expected = ["input_ids", "attention_mask", "query_embeds", "encoder_hidden_states"]
    assert set(expected) <= set(parameters(instructblip.InstructBlipQFormerModel.forward))
    qformer = instructblip.InstructBlipQFormerModel(QFORMER).eval()
    outputs = qformer(
        input_ids=torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 5), query_embeds=torch.randn(1, 3, 8),
        encoder_hidden_states=torch.randn(1, 4, 6),
    )  # fmt: skip
    assert outputs.last_hidden_state.shape == (1, 5, 8)
    assert any(isinstance(module, instructblip.InstructBlipQFormerLayer) for module in qformer.modules())


@assume(
    *(
        f"transformers.models.instructblip.modeling_instructblip.InstructBlipQFormer{name}"
        for name in ("Attention", "Intermediate", "MultiHeadAttention", "Output", "SelfOutput")
    ),
)
def berts_sub_layers_give_tensors_and_their_attention_a_pair() -> None:
    QFORMER._attn_implementation = "eager"
    states, image = torch.randn(1, 3, 8), torch.randn(1, 4, 6)
    attention = instructblip.InstructBlipQFormerAttention(QFORMER, is_cross_attention=True).eval()
    assert attention(states, encoder_hidden_states=image).shape == (1, 3, 8)
    inner = next(
        part for part in attention.children() if isinstance(part, instructblip.InstructBlipQFormerMultiHeadAttention)
    )
    _, weights = inner(states, encoder_hidden_states=image)
    assert weights.shape == (1, 2, 3, 4)
    assert {"query", "key", "value"} <= dict(inner.named_children()).keys()
    assert isinstance(attention.output, instructblip.InstructBlipQFormerSelfOutput)
    assert isinstance(attention.output.dense, nn.Linear)
    output = instructblip.InstructBlipQFormerOutput(QFORMER).eval()
    assert output(instructblip.InstructBlipQFormerIntermediate(QFORMER)(states), states).shape == (1, 3, 8)


@assume("transformers.models.blip.image_processing_pil_blip.BlipImageProcessorPil")
def blips_image_processor_keeps_pillows_pixels() -> None:
    import numpy as np
    from PIL import Image

    image = Image.radial_gradient("L").convert("RGB").resize((31, 17))
    processor = BlipImageProcessorPil(size={"height": 8, "width": 8})
    pixels = processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
    expected = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = (expected - np.array(processor.image_mean)) / np.array(processor.image_std)
    assert torch.allclose(pixels.permute(1, 2, 0).double(), torch.from_numpy(expected), atol=1e-5)


# transformers: pipelines, processors, Trainer


@assume("transformers.pipelines.PIPELINE_REGISTRY")
def a_pipeline_is_an_entry_of_the_registry() -> None:
    entry = PIPELINE_REGISTRY.supported_tasks["image-text-to-text"]
    assert {"impl", "pt", "type"} <= entry.keys()
    assert issubclass(entry["impl"], ImageTextToTextPipeline)


@assume("_prepare_generate_kwargs", "_sanitize_parameters", "_forward", "_default_generation_config")
def pipelines_sanitise_preprocess_forward_and_postprocess() -> None:
    for name in ("_sanitize_parameters", "preprocess", "_forward", "postprocess"):
        assert callable(getattr(Pipeline, name))
    has_method = hasattr(Pipeline, "_prepare_generate_kwargs")  # since 5.20
    assert has_method or "self.generation_config" in inspect.getsource(Pipeline.__init__)
    assert isinstance(ImageTextToTextPipeline._default_generation_config, GenerationConfig)


@assume("_merge_kwargs", "_defaults")
def processors_merge_their_options_by_kind() -> None:
    assert parameters(ProcessorMixin._merge_kwargs, 2) == ["ModelProcessorKwargs", "tokenizer_init_kwargs"]


@assume("_load_from_checkpoint")
def the_trainer_loads_a_checkpoints_weights_by_itself() -> None:
    assert parameters(Seq2SeqTrainer._load_from_checkpoint, 1) == ["resume_from_checkpoint"]


@assume("_gen_kwargs")
def the_trainer_keeps_the_options_of_an_evaluation_until_its_steps() -> None:
    for method in (Seq2SeqTrainer.evaluate, Seq2SeqTrainer.predict):
        assert "self._gen_kwargs = gen_kwargs" in inspect.getsource(method)
    assert "self._gen_kwargs" in inspect.getsource(Seq2SeqTrainer.prediction_step)


@assume("_get_train_sampler", "_get_eval_sampler", "transformers.trainer_pt_utils.LengthGroupedSampler")
def the_trainer_asks_methods_for_its_samplers() -> None:
    from transformers.trainer_pt_utils import LengthGroupedSampler

    assert parameters(Seq2SeqTrainer._get_train_sampler) == ["train_dataset"]
    assert parameters(Seq2SeqTrainer._get_eval_sampler) == ["eval_dataset"]
    assert sorted(LengthGroupedSampler(2, lengths=[3, 1, 2], generator=torch.Generator())) == [0, 1, 2]


@assume(
    "transformers.integrations.get_available_reporting_integrations",
    "transformers.integrations.unset_hf_deepspeed_config",
)
def integrations_can_be_listed_and_deepspeeds_forgotten() -> None:
    from transformers.integrations import get_available_reporting_integrations, unset_hf_deepspeed_config

    assert isinstance(get_available_reporting_integrations(), list)
    unset_hf_deepspeed_config()


@assume(
    "transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "transformers.cli.transformers.app",
)
def the_server_finds_classes_by_name_and_its_command_is_an_app() -> None:
    assert MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["instructblip"] == "InstructBlipForConditionalGeneration"
    command = find_spec("transformers.cli.transformers")
    assert command is not None
    assert "\napp = " in Path(str(command.origin)).read_text(encoding="utf-8")


@assume("_commit_hash")
def a_downloaded_configuration_knows_its_commit() -> None:
    source = inspect.getsource(transformers.PreTrainedConfig)
    assert '"_commit_hash"' in source


# peft


@assume("peft.tuners.tuners_utils.BaseTunerLayer")
def layers_of_peft_have_one_base_and_whole_modules_have_not() -> None:
    peft = pytest.importorskip("peft")
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    assert issubclass(peft.tuners.lora.LoraLayer, BaseTunerLayer)
    assert not issubclass(ModulesToSaveWrapper, BaseTunerLayer)


# accelerate


@assume("_hf_hook")
def a_hook_on_a_module_says_where_its_outputs_go() -> None:
    module = nn.Linear(1, 1)
    add_hook_to_module(module, AlignDevicesHook(io_same_device=False))
    assert module._hf_hook.io_same_device is False


@assume("_is_accelerate_prepared")
def a_prepared_model_carries_a_mark() -> None:
    module = Accelerator(cpu=True).prepare_model(nn.Linear(1, 1), evaluation_mode=True)
    assert vars(module)["_is_accelerate_prepared"] is True


@assume(
    "accelerate.state.AcceleratorState", "accelerate.utils.DistributedType", "accelerate.utils.convert_file_size_to_int"
)
def accelerate_says_what_it_distributes() -> None:
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, convert_file_size_to_int

    Accelerator(cpu=True)
    assert AcceleratorState().distributed_type == DistributedType.NO
    assert {kind.value for kind in DistributedType} >= {"NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED"}
    assert {"fsdp_version", "mixed_precision_policy"} <= {
        field.name for field in fields(FullyShardedDataParallelPlugin)
    }
    assert convert_file_size_to_int("1KiB") == 1024


# torch


@assume("_version")
def tensors_count_their_changes() -> None:
    tensor = torch.zeros(2)
    before = tensor._version
    tensor.add_(1)
    assert tensor._version > before


@assume("_forward_hooks", "_forward_pre_hooks", "_parameters", "_modules")
def modules_keep_their_parts_in_these_dictionaries() -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    assert list(module._modules) == ["0"]
    assert list(module[0]._parameters) == ["weight", "bias"]
    module.register_forward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda *_: None)
    assert (len(module._forward_hooks), len(module._forward_pre_hooks)) == (1, 1)


@assume("_get_fsdp_state", "_training_state")
def a_sharded_module_knows_whether_it_runs() -> None:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

    assert callable(FSDPModule._get_fsdp_state)
    assert TrainingState.IDLE.name == "IDLE"


@assume(
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._pytree.tree_leaves",
    "_cdata",
)
def operators_can_be_watched_on_tensors_without_numbers() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        seen: list[torch.Tensor] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            self.seen += tree_leaves(result)
            return result

    with FakeTensorMode(), Watch() as watch:
        torch.ones(3).mul(2)
    assert [tensor.shape for tensor in watch.seen][-1] == (3,)
    assert isinstance(watch.seen[-1].untyped_storage()._cdata, int)


# torch: products and processors


@assume("_reorder_linear_weight", "_linear_pointwise")
def onednn_orders_a_weight_multiplies_with_it_and_gives_it_back() -> None:
    weight, states, bias = torch.randn(8, 16), torch.randn(3, 16), torch.randn(8)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    outputs = torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")
    assert torch.allclose(outputs, states @ weight.T + bias, atol=1e-5)
    assert torch.equal(packed.to_dense(), weight)


@assume("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported")
def torch_knows_what_units_the_processor_has() -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"):
        assert isinstance(getattr(torch.cpu, name, bool)(), bool)  # older releases do not ask about float16


@assume("_apply", "_save_to_state_dict", "_load_from_state_dict")
def moving_saving_and_loading_reach_each_module() -> None:
    class Part(nn.Module):
        calls: list[str] = []

        def _apply(self, *arguments: Any) -> Any:
            self.calls.append("apply")
            return super()._apply(*arguments)

        def _save_to_state_dict(self, *arguments: Any) -> None:
            self.calls.append("save")

        def _load_from_state_dict(self, *arguments: Any) -> None:
            self.calls.append("load")

    whole = nn.Sequential(Part()).double()
    whole.load_state_dict(whole.state_dict())
    assert Part.calls == ["apply", "save", "load"]


@assume("_buffers", "_non_persistent_buffers_set")
def a_module_knows_which_buffers_its_state_dict_leaves_out() -> None:
    module = nn.Module()
    module.register_buffer("saved", torch.zeros(1))
    module.register_buffer("computed", torch.zeros(1), persistent=False)
    assert set(module._buffers) == {"saved", "computed"}
    assert module._non_persistent_buffers_set == {"computed"}
    assert set(module.state_dict()) == {"saved"}


@assume(
    "torch._inductor.compile_fx.compile_fx",
    "torch._inductor.cpp_builder.get_cpp_compiler",
    "torch._inductor.exc.InvalidCxxCompiler",
    "_dynamo",
)
def torch_compile_finds_its_compiler_and_hands_out_graphs() -> None:
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    assert issubclass(InvalidCxxCompiler, Exception)
    assert not inspect.signature(get_cpp_compiler).parameters
    assert parameters(compile_fx, 2) == ["model_", "example_inputs_"]
    assert "config_patches" in inspect.signature(compile_fx).parameters
    assert parameters(torch._dynamo.mark_dynamic, 2) == ["t", "index"]


# transformers: Swin


@assume("transformers.models.swin.modeling_swin.SwinLayer")
def a_swin_layer_returns_states_and_attentions() -> None:
    """`InferenceSwinLayer` looks at all other names itself, because they differ from release to release."""
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinLayer

    sizes = {"dim": 8, "input_resolution": (4, 4), "num_heads": 2, "shift_size": 1}
    layer = SwinLayer(SwinConfig(window_size=2), **sizes).eval()
    assert parameters(layer.forward, 2) == ["hidden_states", "input_dimensions"]
    assert layer(torch.zeros(1, 16, 8), (4, 4))[0].shape == (1, 16, 8)


# datasets, Trainer and Ray


@assume("_indices")
def a_selection_of_rows_is_a_table_of_their_positions() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"a": [1, 2, 3]})
    assert rows._indices is None
    assert rows.select([2, 0])._indices.column(0).to_pylist() == [2, 0]


@assume("_train_batch_size")
def the_trainer_knows_the_size_of_its_batches() -> None:
    assert "_train_batch_size" in inspect.getsource(transformers.Trainer.get_train_dataloader)


@assume("_private")
def ray_prints_its_messages_with_a_handler_of_its_own() -> None:
    if find_spec("ray") is not None:
        import ray._private.log

        assert issubclass(ray._private.log.PlainRayHandler, logging.Handler)


# the table is whole

DOCUMENTED = {
    "transformers.activations", "transformers.cache_utils", "transformers.generation",
    "transformers.image_processing_utils", "transformers.image_utils", "transformers.modeling_outputs",
    "transformers.processing_utils", "transformers.utils",
    "torch.export", "torch.linalg", "torch.nn", "torch.nn.functional", "torch.utils.data",
    "torch.distributed.checkpoint.state_dict", "torch.distributed.device_mesh", "torch.distributed.fsdp",
}  # fmt: skip
"""Modules whose public names are documented."""

NO_UPSTREAM_NAMES = {
    "_", "_id", "_data_files", "_dense_annotations", "_DONE", "_final", "_kwargs", "_name_or_path", "_parts",
    "_stream_position",
}  # fmt: skip
"""Texts in the sources that look like private names but are keys of files and configurations."""


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def trees() -> Iterator[ast.AST]:
    for path in SOURCES.rglob("*.py"):
        yield ast.parse(path.read_text(encoding="utf-8"))


def test_every_import_of_what_is_not_documented_is_in_the_table() -> None:
    used = {
        f"{node.module}.{alias.name}"
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").count(".")
        for alias in node.names
        if (node.module or "").split(".")[0] in ("transformers", "accelerate", "peft", "torch")
        and node.module not in DOCUMENTED
    }
    assert used
    assert used <= ASSUMPTIONS.keys()


def test_every_private_name_of_another_package_is_in_the_table() -> None:
    own, used = set(NO_UPSTREAM_NAMES), defaultdict(int)
    methods_of_theirs = {name for name in ASSUMPTIONS if name.startswith("_")}
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, DEFINITIONS) and node.name not in methods_of_theirs:
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.Attribute):
                used[node.attr] += 1
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                used[node.value] += 1
    private = {name for name in used if name.startswith("_") and not name.startswith("__")} - own
    assert private
    assert private <= ASSUMPTIONS.keys()


def test_private_names_that_our_classes_override_are_in_the_table() -> None:
    overridden = set()
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                overridden |= {
                    part.name if isinstance(part, ast.FunctionDef) else part.targets[0].id
                    for part in node.body
                    if isinstance(part, ast.FunctionDef)
                    or (isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name))
                }
    theirs = {
        name
        for upstream in (PreTrainedModel, GenerationMixin, Pipeline, ImageTextToTextPipeline, ProcessorMixin)
        for name in dir(upstream)
        if name.startswith("_") and not name.startswith("__")
    }
    assert overridden & theirs <= ASSUMPTIONS.keys()


@pytest.mark.parametrize("name", ASSUMPTIONS)
def test_upstream_is_as_the_package_assumes(name: str) -> None:
    ASSUMPTIONS[name]()
