"""Detects modules with hooks or a replaced `forward`."""

from torch import nn

_HARMLESS = "transformers.utils.output_capturing"
"""Module of transformers' recording hooks, which have no effect unless recording is requested."""


def is_wrapped(module: nn.Module) -> bool:
    """Whether a module has hooks or a replaced `forward`, so that it behaves differently from its class."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return "forward" in module.__dict__ or any(getattr(hook, "__module__", "") != _HARMLESS for hook in hooks)


__all__ = ["is_wrapped"]
