"""The Trainer of the recipe: transformers' `Seq2SeqTrainer`, whose evaluations respect `generation_max_length`."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import Seq2SeqTrainer


class LionTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer`, but a maximum length counts, and evaluations leave the model's generation settings alone.

    A model with `max_new_tokens` in its generation settings, as LION has, generates so many tokens whatever
    `generation_max_length` says. And the stock Trainer fills these settings up with transformers' defaults, which would
    be saved with the model. Both holds for evaluations during a training, and for `evaluate` and `predict` alone.
    """

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        """As of `Seq2SeqTrainer`."""
        chosen = gen_kwargs or getattr(self, "_gen_kwargs", {})
        limited = chosen.get("max_length") is not None and chosen.get("max_new_tokens") is None
        with borrowed_settings(self.model.generation_config) as settings:
            if limited:
                settings.max_new_tokens = None
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)


@contextmanager
def borrowed_settings(settings: Any) -> Iterator[Any]:
    """Generation settings to be changed within the block, and put back behind it."""
    before = copy.deepcopy(vars(settings))
    try:
        yield settings
    finally:
        vars(settings).clear()
        vars(settings).update(before)


__all__ = ["LionTrainer"]
