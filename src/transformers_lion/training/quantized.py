"""Checks that gradients pass through the quantized layers of a base model."""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from .trainable_checkpoints import is_plain

TOLERANCE = 0.25
"""Relative error of a derivative that rounding may cause; a wrong derivative is much further off."""


def check_gradients_pass(model: nn.Module, is_tower_frozen: bool = True) -> None:
    """Check the gradients of one quantized layer of each kind.

    Args:
        model: a LION model; PEFT may wrap it.
        is_tower_frozen: whether the vision tower needs no gradients, so that its layers are not checked.

    Raises:
        ValueError: if a layer computes wrong gradients. This is the case for layers that also quantize their inputs,
            such as those of torchao's `Int8DynamicActivationInt8WeightConfig`; modules before them would be trained on
            noise.
    """
    for name, layer in _quantized_layers(model):
        if is_tower_frozen and "vision_model" in name.split("."):
            continue
        found = _relative_derivative(layer)
        if abs(found - 1) > TOLERANCE:
            raise ValueError(
                f"Gradients do not pass through {name}, which is quantized ({type(layer.weight).__name__}): its "
                f"derivative is {found:.2g} times the true one. To train on a quantized base, quantize only the "
                "weights, for example with Int8WeightOnlyConfig."
            )


def _quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the name and module of the first quantized linear layer of each kind in each part of the model."""
    seen = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or is_plain(module.weight) or module.weight.is_meta:
            continue
        settings = (getattr(module.weight, attribute, None) for attribute in ACTIVATION_SETTINGS)
        is_rounding = any(value is not None for value in settings)
        kind = (type(module), type(module.weight), is_rounding, "vision_model" in name.split("."))
        if kind not in seen:
            seen.add(kind)
            yield name, module


ACTIVATION_SETTINGS = ("act_quant_kwargs", "activation_quantization", "input_quant_func")
"""Attributes of torchao's tensors that are set if inputs are quantized too; one class serves both cases."""


@torch.enable_grad()
def _relative_derivative(layer: nn.Linear) -> float:
    """Return the derivative of a layer by autograd, relative to the true one: 1 if correct, 0 without a gradient.

    A layer f is linear except for its bias. With v = f(x) - f(0), the derivative of v * f in the direction x is v * v.
    """
    layer = copy.deepcopy(layer).train()  # bitsandbytes' layers keep state from calls
    generator = torch.Generator().manual_seed(0)
    dtype = layer.weight.dtype if layer.weight.is_floating_point() else torch.float32
    drawn = torch.randn(4, layer.in_features, generator=generator)
    inputs = torch.cat([drawn, torch.zeros_like(drawn)]).to(layer.weight.device, dtype).requires_grad_()
    outputs = layer(inputs.clone())
    if not outputs.requires_grad:
        return 0.0
    at_inputs, at_zero = outputs.chunk(2)
    direction = (at_inputs - at_zero).detach()
    (gradient,) = torch.autograd.grad(at_inputs, inputs, direction, allow_unused=True)
    if gradient is None:
        return 0.0
    return ((gradient.float() * inputs.float()).sum() / direction.float().square().sum()).item()


__all__ = ["check_gradients_pass"]
