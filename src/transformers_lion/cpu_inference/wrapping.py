"""Detects modules with hooks or a replaced `forward`, and defines what replaces a part of a model."""

from typing import Any

import torch
from torch import nn

_HARMLESS = "transformers.utils.output_capturing"
"""Module of transformers' recording hooks, which have no effect unless recording is requested."""


def is_wrapped(module: nn.Module) -> bool:
    """Whether a module has hooks or a replaced `forward`, so that it behaves differently from its class."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return "forward" in module.__dict__ or any(getattr(hook, "__module__", "") != _HARMLESS for hook in hooks)


class Replacement(nn.Module):
    """Replaces a part of a model, which it keeps and uses for calls that it does not support itself.

    Args:
        original: The original part.
    """

    kept_as = "original"
    """Name of the original part in this module."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        setattr(self, self.kept_as, original)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the original part."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(self.kept_as), name)

    def is_for_inference(self, options: dict[str, Any], config: Any = None) -> bool:
        """Whether a call needs neither gradients nor additional outputs.

        Args:
            options: Keyword arguments of the call.
            config: Configuration that may request additional outputs.
        """
        return not (
            torch.is_grad_enabled()
            or self.training
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or torch.is_autocast_enabled("cpu")
            or getattr(config, "output_hidden_states", False)
            or getattr(config, "output_attentions", False)
            or any(value is not None and value is not False for name, value in options.items() if name != "return_dict")
            or options.get("return_dict") is False
        )


__all__ = ["Replacement", "is_wrapped"]
