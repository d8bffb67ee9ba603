"""Replaces parts of a model with faster ones, and restores them.

Similar to transformers' quantizers, `optimize_for_inference` replaces each large `nn.Linear` with a `PackedLinear` and
the decoder of the language model with an `InferenceDecoder`. The replaced parts are recorded in the model's
`_inference_form`, which this package's models use to restore themselves before training, saving and loading weights.
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

from ..modeling_lion_t5 import LionAdapter, LionAdapterMixture, LionT5Attention, LionT5Block, LionT5Stack
from .compiled import check_compiler
from .decoder import InferenceDecoder
from .linear import HalfEmbedding, PackedLinear
from .memory import release_pages
from .packs import WeightPack, make_pack
from .plan import InferencePlan, inference_plan
from .ram_layers import InferenceSwinLayer, InferenceTaggingHead
from .wrapping import Replacement, is_wrapped

Model = TypeVar("Model", bound=PreTrainedModel)
Part = TypeVar("Part", bound=nn.Module)

HALVES = (torch.bfloat16, torch.float16)

MIN_WEIGHTS = 100_000
"""Minimum number of weights in a linear layer to pack it."""


@dataclass
class InferenceForm:
    """The replaced parts of a model, by name.

    Attributes:
        description: Human-readable description in one line.
        layers: Names of the linear layers in each pack.
        parts: Names of the replaced embeddings, decoders and parts of the tagger, with the inner parts first.
        dtypes: Original dtypes of the weights that were converted to float32.
    """

    description: str
    layers: list[list[str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Restore all parts, bit for bit.

        Raises:
            RuntimeError: If a part was replaced in the meantime.
        """
        for name in reversed(self.parts):
            part = _get(model, name, Replacement)
            _replace(model, name, getattr(part, part.kept_as))
        for names in self.layers:
            packed = [_get(model, name, PackedLinear) for name in names]
            weight = packed[0].pack.unpack()
            for name, layer in zip(names, packed, strict=True):
                _replace(model, name, layer.restore(weight))
        for name, dtype in self.dtypes.items():
            weight = model.get_parameter(name)
            weight.data = weight.data.to(dtype)

    @torch.no_grad()
    def iterate_weights(self, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the state dict of the original model, unpacking one pack at a time."""
        kept = {f"{name}.{_get(model, name, Replacement).kept_as}": name for name in reversed(self.parts)}
        for place, module in model.named_modules(remove_duplicate=False):
            tensors: dict[str, torch.Tensor | None] = {**module._parameters}
            tensors |= {
                name: x for name, x in module._buffers.items() if name not in module._non_persistent_buffers_set
            }
            if isinstance(module, PackedLinear):
                tensors = {"weight": module.pack.unpack()[module.rows], **tensors}
            for inner, tensor in tensors.items():
                name = _original_name(f"{place}.{inner}" if place else inner, kept)
                if tensor is not None:
                    yield name, tensor.detach().to(self.dtypes.get(name, tensor.dtype))

    def list_packs(self, model: nn.Module) -> list[WeightPack]:
        """Return the packs of the model."""
        return [_get(model, names[0], PackedLinear).pack for names in self.layers]


@torch.no_grad()
def optimize_for_inference(model: Model, *, weights: str = "auto", compile: bool = False) -> Model:
    """Optimize a model in place for inference on this CPU.

    The weights of large linear layers are packed into a layout that is faster to read, and the decoder is replaced with
    one that needs only a few operations per layer. All computations are in float32. The original weights are not kept.
    `restore_for_training` restores them bit for bit; `model.train()`, `model.save_pretrained()` and
    `model.state_dict()` call it automatically, as does moving the model to another device or dtype. An optimized model
    has no gradients, but it can be copied and pickled.

    Layers with hooks, LoRA or quantized weights are not changed. The whole model is left unchanged if there is nothing
    to gain, for example on a GPU or on a CPU with bfloat16 units; see `inference_plan`.

    Args:
        model: LION, its language model or the tagger. It is put in eval mode.
        weights: "auto" packs weights in float16 if that is exact, as for bfloat16 weights, and otherwise in float32.
            "float32" packs them in float32. "float16" packs them in float16 and rounds if necessary, which causes an
            error of about 2e-4 in the outputs; the original weights are then kept for restoring.
        compile: Whether to compile a decoder layer with `torch.compile` when an answer is generated. The first answer
            takes some seconds longer, and so does the first one with several samples or several beams. No other call
            compiles anything. It requires a C++ compiler.

    Returns:
        The same model.

    Raises:
        ValueError: If `weights` is unknown, or `compile` is set for a model without a decoder or one that is left
            unchanged.
        RuntimeError: If `compile` is set and there is no compiler. The model is left unchanged.
    """
    if compile:
        check_compiler()
    restore_for_training(model)
    plan = inference_plan(model, weights)
    if compile:
        _check_compilable(model, plan)
    model.eval()
    if plan.weights is None:
        return model
    form = InferenceForm(f"{plan.reason}, decoder compiled" if compile else plan.reason)
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        packed = threads.map(lambda names: _pack(model, names, plan.weights), _find_layers(model))
        form.layers = [names for names in packed if names]
    form.parts = _find_embeddings(model)
    for name in form.parts:
        _replace(model, name, HalfEmbedding(model.get_submodule(name)).eval())
    halves = {id(_get(model, name, HalfEmbedding).weight) for name in form.parts}
    for name, weight in model.named_parameters():
        if weight.dtype in HALVES and id(weight) not in halves:
            form.dtypes[name] = weight.dtype
            converted = weight.data.float()
            release_pages(weight.data)
            weight.data = converted
    for name, module in list(model.named_modules()):
        kind = _find_replacement(module) if name else None
        if kind is not None:
            form.parts.append(name)
            part = InferenceDecoder(module, compile) if kind is InferenceDecoder else kind(module)
            _replace(model, name, part.eval())
    model._inference_form = form
    return model


@torch.no_grad()
def restore_for_training(model: Model) -> Model:
    """Undo `optimize_for_inference`, bit for bit. A model that is not optimized is returned unchanged.

    Args:
        model: Model that was passed to `optimize_for_inference`.

    Returns:
        The same model.

    Raises:
        RuntimeError: If a packed layer was replaced in the meantime.
    """
    form = model.__dict__.pop("_inference_form", None)
    if form is not None:
        form.undo(model)
    return model


def _check_compilable(model: nn.Module, plan: InferencePlan) -> None:
    """Check that there will be a decoder to compile."""
    if plan.weights is None:
        raise ValueError(
            f"compile=True requires an optimized model, but this one is left unchanged: {plan.reason}. On a CPU, pass "
            "weights='float32' or 'float16' as well. On a GPU, pass cache_implementation='static' to generate instead."
        )
    if InferenceDecoder not in map(_find_replacement, model.modules()):
        raise ValueError(f"compile=True requires a model with a decoder, but {type(model).__name__} has none.")


def _find_embeddings(model: nn.Module) -> list[str]:
    """Return the names of large embeddings in 16 bits. They may share their weights only with each other.

    Embeddings of adapter routers are left out: the decoder fuses them.
    """
    names: list[str] = []
    modules = dict(model.named_modules(remove_duplicate=False))
    mixtures = [module for module in modules.values() if isinstance(module, LionAdapterMixture)]
    others = {id(gate.weight) for mixture in mixtures for gate in mixture.router}
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        is_plain = type(module) is nn.Embedding and not is_wrapped(module) and module.max_norm is None
        if is_plain and weight is not None and weight.dtype in HALVES and weight.numel() >= MIN_WEIGHTS:
            names.append(name)
        else:
            others.update(map(id, module._parameters.values()))
    return [name for name in names if id(modules[name].weight) not in others]


def _find_replacement(module: nn.Module) -> type[Replacement] | None:
    """Return the class that replaces a module, if there is one."""
    if type(module) is LionT5Stack and module.is_decoder and not is_wrapped(module):
        return InferenceDecoder
    return next((kind for kind in (InferenceSwinLayer, InferenceTaggingHead) if kind.accepts(module)), None)


def _find_layers(model: nn.Module) -> list[list[str]]:
    """Return groups of names of large linear layers. Decoder layers with the same input are in one group."""
    modules = dict(model.named_modules())
    owners = Counter(id(weight) for module in modules.values() for weight in module._parameters.values())
    joined: list[list[str]] = []
    for name, module in modules.items():
        if type(module) is LionT5Block and len(module.layer) > 1:
            joined += [[f"{name}.{inner}" for inner in names] for names in _same_input(module)]
    joined = [names for names in joined if all(_is_packable(modules[name], owners) for name in names)]
    taken = {name for names in joined for name in names}
    for name, module in modules.items():
        # adapters are fused in the decoder and take little time in the encoder; LoRA layers belong to PEFT
        if isinstance(module, LionAdapter) or type(module).__module__.startswith("peft."):
            taken.update(f"{name}.{inner}" for inner, _ in module.named_modules())
    groups = joined + [[name] for name, module in modules.items() if name not in taken and _is_packable(module, owners)]
    # the largest first, while there is still free memory to convert them
    return sorted(groups, key=lambda names: -sum(modules[name].weight.numel() for name in names))


def _same_input(block: LionT5Block) -> Iterator[list[str]]:
    """Yield groups of names of linear layers in a decoder block that have the same input."""
    for name, module in block.named_modules():
        if type(module) is LionT5Attention:
            yield [f"{name}.{inner}" for inner in (("q", "k", "v") if module.is_causal else ("k", "v"))]
        elif type(module) is T5DenseGatedActDense:
            yield [f"{name}.wi_0", f"{name}.wi_1"]


def _is_packable(layer: nn.Module, owners: Counter[int]) -> bool:
    """Whether a module is a large linear layer whose weight is not shared."""
    if type(layer) is not nn.Linear or is_wrapped(layer):
        return False
    weight = layer._parameters.get("weight")
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, *HALVES)
        and not weight.is_inference()
        and owners[id(weight)] == 1
        and weight.numel() >= MIN_WEIGHTS
    )


@torch.no_grad()
def _pack(model: nn.Module, names: list[str], form: str | None) -> list[str]:
    """Replace layers with packed ones and drop their weights. Return no names if they cannot be packed."""
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


def _original_name(name: str, kept: dict[str, str]) -> str:
    """Return the name of a weight in the original model.

    Args:
        name: Name in the optimized model.
        kept: Original names of the parts that are kept inside their replacements, with the outer parts first.
    """
    for place, original in kept.items():
        if name.startswith(f"{place}."):
            name = original + name[len(place) :]
    return name


def _get(model: nn.Module, name: str, kind: type[Part]) -> Part:
    part = model.get_submodule(name)
    if not isinstance(part, kind):
        raise RuntimeError(f"{name} was replaced by a {type(part).__name__} while the model was optimized.")
    return part


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, inner = name.rpartition(".")
    model.get_submodule(parent)._modules[inner] = part


__all__ = ["InferenceForm", "optimize_for_inference", "restore_for_training"]
