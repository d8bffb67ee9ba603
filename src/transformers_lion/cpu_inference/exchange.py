"""Exchange a model's parts for faster ones, and back.

`optimize_for_inference` puts a `PackedLinear` in the place of each large `nn.Linear` and an `InferenceDecoder` in that
of the language model's decoder, as transformers' quantizers do. What it took out is noted in the model's
`_inference_form`; the models of this package call it by themselves before training, saving and loading weights.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from ..modeling_lion_t5 import LionAdapter, LionT5Attention, LionT5Block, LionT5Stack
from .decoder import InferenceDecoder
from .linear import PackedLinear
from .memory import release_pages
from .packs import make_pack
from .plan import inference_plan
from .wrapping import is_wrapped

Model = TypeVar("Model", bound=PreTrainedModel)
Part = TypeVar("Part", bound=nn.Module)

MIN_WEIGHTS = 100_000
"""Linear layers with fewer weights are not worth a pack."""


@dataclass
class InferenceForm:
    """What was exchanged in a model, by the names of its parts.

    Attributes:
        description: one line for a reader.
        layers: for each pack the linear layers in it.
        decoders: decoders of language models.
        dtypes: weights that were converted to float32, and the dtype that they had.
    """

    description: str
    layers: list[list[str]] = field(default_factory=list)
    decoders: list[str] = field(default_factory=list)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Put everything back, bit for bit.

        Raises:
            RuntimeError: if a part was replaced in the meantime.
        """
        for name in self.decoders:
            _replace(model, name, _get(model, name, InferenceDecoder).stack)
        for names in self.layers:
            packed = [_get(model, name, PackedLinear) for name in names]
            weight = packed[0].pack.unpack()
            for name, layer in zip(names, packed, strict=True):
                _replace(model, name, layer.restore(weight))
        for name, dtype in self.dtypes.items():
            weight = model.get_parameter(name)
            weight.data = weight.data.to(dtype)


@torch.no_grad()
def optimize_for_inference(model: Model, *, weights: str = "auto") -> Model:
    """Make a model answer faster on this CPU. The model is changed in place.

    Its large linear layers get packed weights, which are read faster, and the decoder runs as a few functions a layer.
    Everything is computed in float32. The original weights are not kept: `restore_for_training` computes them again,
    bit for bit, and `model.train()`, `model.save_pretrained()` and `model.state_dict()` do so by themselves, as
    does moving it to another device or dtype. An optimized model has no gradients, and can be copied and pickled.

    Layers with hooks, LoRA or quantized weights stay as they are, as does a whole model for which the processor has
    nothing better (a GPU, a CPU with units for bfloat16; `inference_plan` tells).

    Args:
        model: LION, its language model or the tagger. It is put into eval mode.
        weights: "auto": packed in float16 where that is exact, as it is for weights in bfloat16, else in float32.
            "float32": packed in float32. "float16": packed in float16, and rounded where they do not fit (an error of
            about 2e-4 in the outputs); the original weights are then kept for restoring.

    Returns:
        The same model.

    Raises:
        ValueError: if there is no such `weights`.
    """
    restore_for_training(model)
    plan = inference_plan(model, weights)
    model.eval()
    if plan.weights is None:
        return model
    form = InferenceForm(plan.reason)
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        packed = threads.map(lambda names: _pack(model, names, plan.weights), _find_layers(model))
        form.layers = [names for names in packed if names]
    for name, weight in model.named_parameters():
        if weight.dtype in (torch.bfloat16, torch.float16):
            form.dtypes[name] = weight.dtype
            converted = weight.data.float()
            release_pages(weight.data)
            weight.data = converted
    for name, stack in list(model.named_modules()):
        if type(stack) is LionT5Stack and stack.is_decoder and name and not is_wrapped(stack):
            form.decoders.append(name)
            _replace(model, name, InferenceDecoder(stack).eval())
    model._inference_form = form
    return model


@torch.no_grad()
def restore_for_training(model: Model) -> Model:
    """Undo `optimize_for_inference`, bit for bit; nothing happens to a model that is not optimized.

    Args:
        model: the one that `optimize_for_inference` was called on.

    Returns:
        The same model.

    Raises:
        RuntimeError: if a packed layer was replaced in the meantime.
    """
    form = model.__dict__.pop("_inference_form", None)
    if form is not None:
        form.undo(model)
    return model


def _find_layers(model: nn.Module) -> list[list[str]]:
    """Names of the large linear layers; in decoders, those with the same input together."""
    modules = dict(model.named_modules())
    owners = Counter(id(weight) for module in modules.values() for weight in module._parameters.values())
    joined: list[list[str]] = []
    for name, module in modules.items():
        if type(module) is LionT5Block and len(module.layer) > 1:
            joined += [[f"{name}.{inner}" for inner in names] for names in _same_input(module)]
    joined = [names for names in joined if all(_is_packable(modules[name], owners) for name in names)]
    taken = {name for names in joined for name in names}
    for name, module in modules.items():
        # the decoder folds the model's adapters, and elsewhere they take little time; LoRA's layers belong to PEFT
        if isinstance(module, LionAdapter) or type(module).__module__.startswith("peft."):
            taken.update(f"{name}.{inner}" for inner, _ in module.named_modules())
    groups = joined + [[name] for name, module in modules.items() if name not in taken and _is_packable(module, owners)]
    # the largest first, while the memory for converting them is still free
    return sorted(groups, key=lambda names: -sum(modules[name].weight.numel() for name in names))


def _same_input(block: LionT5Block) -> Iterator[list[str]]:
    """Names of linear layers of a decoder's block that have the same input."""
    for name, module in block.named_modules():
        if type(module) is LionT5Attention:
            yield [f"{name}.{inner}" for inner in (("q", "k", "v") if module.is_causal else ("k", "v"))]
        elif type(module) is T5DenseGatedActDense:
            yield [f"{name}.wi_0", f"{name}.wi_1"]


def _is_packable(layer: nn.Module, owners: Counter[int]) -> bool:
    """Whether it is a large linear layer that nothing else depends on."""
    if type(layer) is not nn.Linear or is_wrapped(layer):
        return False
    weight = layer._parameters.get("weight")
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not weight.is_inference()
        and owners[id(weight)] == 1
        and weight.numel() >= MIN_WEIGHTS
    )


@torch.no_grad()
def _pack(model: nn.Module, names: list[str], form: str | None) -> list[str]:
    """Exchange layers for packed ones and drop their weights; no names are left if they cannot be packed."""
    assert form is not None
    linears: list[nn.Linear] = [model.get_submodule(name) for name in names]  # type: ignore[misc]
    pack = make_pack(
        [linear.weight.detach() for linear in linears], linears[0].bias if len(linears) == 1 else None, form
    )
    if pack is None:
        return []
    start = 0
    for name, linear in zip(names, linears, strict=True):
        release_pages(linear.weight.data)
        linear.weight.data = linear.weight.data.new_empty(0)
        _replace(model, name, PackedLinear(linear, pack, start).eval())
        start += linear.out_features
    return names


def _get(model: nn.Module, name: str, kind: type[Part]) -> Part:
    part = model.get_submodule(name)
    if not isinstance(part, kind):
        raise RuntimeError(f"{name} was replaced by a {type(part).__name__} while the model was optimized.")
    return part


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, inner = name.rpartition(".")
    model.get_submodule(parent)._modules[inner] = part


__all__ = ["InferenceForm", "optimize_for_inference", "restore_for_training"]
