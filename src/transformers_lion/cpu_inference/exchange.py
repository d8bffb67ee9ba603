"""Exchange a model's parts for faster ones, and back.

`optimize_for_inference` puts a `PackedLinear` in the place of each large `nn.Linear` and an `InferenceDecoder` in that
of the language model's decoder, as transformers' quantizers do. What it took out is noted in the model's
`_inference_form`; the models of this package call it by themselves before training, saving and loading weights.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
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
from .packs import WeightPack, make_pack
from .plan import inference_plan
from .wrapping import is_wrapped

Model = TypeVar("Model", bound=PreTrainedModel)

MIN_WEIGHTS = 100_000
"""Linear layers with fewer weights are not worth a pack."""


@dataclass
class PackedGroup:
    """Linear layers that became one pack.

    Attributes:
        pack: their weights, one below the other.
        parents: the modules that they are attributes of, and the names of the attributes.
        linears: the layers, without their weights.
    """

    pack: WeightPack
    parents: list[tuple[nn.Module, str]]
    linears: list[nn.Linear]

    def restore(self) -> None:
        """Put the layers back, with their weights."""
        weight = self.pack.unpack()
        sizes = [linear.out_features for linear in self.linears]
        for (parent, name), linear, rows in zip(self.parents, self.linears, weight.split(sizes), strict=True):
            if not isinstance(parent._modules[name], PackedLinear):
                raise RuntimeError(f"{name} of {type(parent).__name__} was replaced while its weights were packed.")
            linear.weight.data = rows if len(sizes) == 1 else rows.clone()
            linear.train(parent.training)
            parent._modules[name] = linear


@dataclass
class InferenceForm:
    """What was exchanged in a model.

    Attributes:
        groups: packed layers.
        decoders: the modules that have one, and the decoders that were there.
        dtypes: weights that were converted to float32, and the dtype that they had.
        description: one line for a reader.
    """

    description: str
    groups: list[PackedGroup] = field(default_factory=list)
    decoders: list[tuple[nn.Module, LionT5Stack]] = field(default_factory=list)
    dtypes: list[tuple[nn.Parameter, torch.dtype]] = field(default_factory=list)

    def undo(self) -> None:
        """Put everything back, bit for bit."""
        while self.groups:
            self.groups[-1].restore()
            self.groups.pop()  # so that its pack is freed before the next layer is unpacked
        for parent, stack in self.decoders:
            parent._modules["decoder"] = stack
        for weight, dtype in self.dtypes:
            weight.data = weight.data.to(dtype)


@torch.no_grad()
def optimize_for_inference(model: Model, *, weights: str = "auto") -> Model:
    """Make a model answer faster on this CPU. The model is changed in place.

    Its large linear layers get packed weights, which are read faster, and the decoder runs as a few functions a layer.
    Everything is computed in float32. The original weights are not kept: `restore_for_training` computes them again,
    bit for bit, and `model.train()`, `model.save_pretrained()` and `model.state_dict()` do so by themselves. An
    optimized model has no gradients, stays on the CPU and can be copied and pickled.

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
    groups = _find_groups(model)
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        packs = threads.map(lambda group: _pack(group, plan.weights), groups)
        form.groups = [group for group in packs if group is not None]
    for group in form.groups:
        _exchange(group)
    packed = {id(linear.weight) for group in form.groups for linear in group.linears}
    for weight in model.parameters():
        if weight.dtype in (torch.bfloat16, torch.float16) and id(weight) not in packed:
            form.dtypes.append((weight, weight.dtype))
            weight.data = weight.data.float()
    for parent in [module for module in model.modules() if type(module._modules.get("decoder")) is LionT5Stack]:
        stack = parent.get_submodule("decoder")
        if not is_wrapped(stack):
            form.decoders.append((parent, stack))  # type: ignore[arg-type]
            parent._modules["decoder"] = InferenceDecoder(stack).eval()  # type: ignore[arg-type]
    model._inference_form = form  # type: ignore[assignment]
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
    form = model.__dict__.get("_inference_form")
    if form is not None:
        form.undo()
        del model.__dict__["_inference_form"]
    return model


Group = list[tuple[nn.Module, str, nn.Linear]]
"""Parent, name and layer of linear layers that may become one pack."""


def _find_groups(model: nn.Module) -> list[Group]:
    """The large linear layers; in decoders, those with the same input together."""
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    groups: list[Group] = []
    grouped: set[int] = set()
    for names, parent in _joined_layers(model):
        group = [(parent, name, parent.get_submodule(name)) for name in names]
        if all(_is_packable(layer, owners) for _, _, layer in group):
            groups.append(group)  # type: ignore[arg-type]
            grouped.update(id(layer) for _, _, layer in group)
    for parent in model.modules():
        if isinstance(parent, LionAdapter):  # the decoder folds them, and elsewhere they take no time
            continue
        for name, layer in parent.named_children():
            if id(layer) not in grouped and _is_packable(layer, owners):
                grouped.add(id(layer))
                groups.append([(parent, name, layer)])  # type: ignore[list-item]
    return groups


def _joined_layers(model: nn.Module) -> Iterator[tuple[Sequence[str], nn.Module]]:
    """Names of layers with the same input, and their parent, in all decoder blocks."""
    for block in model.modules():
        if type(block) is not LionT5Block or len(block.layer) < 2:
            continue
        for module in block.modules():
            if type(module) is LionT5Attention:
                yield (("q", "k", "v") if module.is_causal else ("k", "v")), module
            elif type(module) is T5DenseGatedActDense:
                yield ("wi_0", "wi_1"), module


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


def _pack(group: Group, form: str | None) -> PackedGroup | None:
    """Pack the layers of a group and drop their weights; `None` if they cannot be packed."""
    assert form is not None
    linears = [layer for _, _, layer in group]
    with torch.no_grad():
        weight = linears[0].weight if len(linears) == 1 else torch.cat([layer.weight for layer in linears])
        pack = make_pack(weight.detach(), linears[0].bias if len(linears) == 1 else None, form)
    if pack is None:
        return None
    for layer in linears:
        layer.weight.data = layer.weight.data.new_empty(0)
    return PackedGroup(pack, [(parent, name) for parent, name, _ in group], linears)


def _exchange(group: PackedGroup) -> None:
    """Put packed layers in the place of a group's layers."""
    start = 0
    for (parent, name), layer in zip(group.parents, group.linears, strict=True):
        stop = start + layer.out_features
        parent._modules[name] = PackedLinear(group.pack, layer.bias, start, stop).eval()
        start = stop


__all__ = ["InferenceForm", "optimize_for_inference", "restore_for_training"]
