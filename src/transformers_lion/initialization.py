"""How weights start when a model of this package is built, beyond what transformers does by itself."""

from torch import nn


class InitializationMixin:
    """Lets `_init_weights` see every module.

    For classes defined outside of it, transformers passes over modules that hold no parameter of their own, to spare
    models whose `_init_weights` writes tensors directly. T5's attention and feed-forward and LION's zero-initialised
    sub-layers are such modules. The `_init_weights` of this package go through `transformers.initialization`, which
    leaves loaded tensors alone, so nothing needs to be passed over. Put it before the transformers base class.
    """

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        super()._initialize_weights(module)  # type: ignore[misc]
