"""The optimizer of the recipe: AdamW by default, with LION's parameter groups.

Source: LION's reference code, which applies no weight decay to biases, norms and vectors, and uses a separate learning
rate for the aggregator.
"""

from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from .stages import AGGREGATOR_PARTS

_AGGREGATOR_PARTS = frozenset(AGGREGATOR_PARTS)


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float = 0.05, aggregator_lr_multiplier: float = 1.0
) -> list[dict[str, Any]]:
    """Build the parameter groups for an optimizer, leaving out frozen parameters.

    Args:
        model: a LION model; PEFT may wrap it.
        learning_rate: learning rate of all parameters except the aggregator and its projection.
        weight_decay: weight decay of matrices; biases, norms and other vectors have none.
        aggregator_lr_multiplier: factor on the learning rate of the aggregator and its projection.

    Returns:
        Up to four groups with `params`, `lr` and `weight_decay`, those with the plain learning rate first.

    Raises:
        ValueError: if no parameter requires a gradient.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (_is_in_aggregator(name), not _decays(name, parameter))
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("No parameter of the model requires a gradient: call apply_stage first.")
    return [
        {
            "params": groups[key],
            "lr": learning_rate * (aggregator_lr_multiplier if key[0] else 1.0),
            "weight_decay": 0.0 if key[1] else weight_decay,
        }
        for key in sorted(groups)
    ]


def _is_in_aggregator(name: str) -> bool:
    return not _AGGREGATOR_PARTS.isdisjoint(name.split("."))


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not any(word in name.lower() for word in ("bias", "norm"))


def build_optimizer(
    model: nn.Module, arguments: Seq2SeqTrainingArguments, aggregator_lr_multiplier: float = 1.0
) -> torch.optim.Optimizer:
    """Build the optimizer that `arguments.optim` names (AdamW by default), with the recipe's parameter groups.

    Raises:
        ValueError: if no parameter is trainable, or the optimizer does not support parameter groups.
    """
    groups = parameter_groups(model, arguments.learning_rate, arguments.weight_decay, aggregator_lr_multiplier)
    optimizer_class, options = Seq2SeqTrainer.get_optimizer_cls_and_kwargs(arguments, model)
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)) or (
        options.keys() & {"params", "model", "optimizer_dict"}
    ):
        raise ValueError(
            f"optim={arguments.optim.value!r} builds its own parameter groups, so the recipe cannot use its groups."
        )
    return optimizer_class(groups, **options)


__all__ = ["build_optimizer", "parameter_groups"]
