"""Which modules do what their classes say, and nothing more."""

from torch import nn

_HARMLESS = "transformers.utils.output_capturing"
"""transformers' hooks that record hidden states and attentions; they do nothing in other calls."""


def is_wrapped(module: nn.Module) -> bool:
    """Whether calling `module` does more than its class says: a hook, or another `forward`."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return "forward" in module.__dict__ or any(getattr(hook, "__module__", "") != _HARMLESS for hook in hooks)


__all__ = ["is_wrapped"]
