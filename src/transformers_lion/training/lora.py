"""LoRA for LION with PEFT: which linear layers get LoRA, and which of LION's own modules are fully trained.

    model = get_peft_model(model, lora_config(model))

LoRA is applied to the large modules, which LION's stages freeze, except for the Q-Former. The modules that LION adds
are small, and are fully trained as `modules_to_save`.
"""

import logging
from collections.abc import Collection, Mapping

from peft import LoraConfig
from torch import nn

from .precision import SIXTEEN_BITS
from .quantized import check_gradients_pass
from .trainable_checkpoints import is_plain

logger = logging.getLogger(__name__)

LANGUAGE_MODEL_ATTENTION = r"language_model\..*\.(SelfAttention|EncDecAttention)\.(q|k|v|o)"
LANGUAGE_MODEL_FEED_FORWARD = r"language_model\..*\.DenseReluDense\.(wi_0|wi_1|wo)"
QFORMER_ATTENTION = r"qformer\..*\.(attention|crossattention)\.attention\.(query|key|value)"
"""Patterns for `LoraConfig.target_modules`; join them with `|`. They match neither adapters nor vision blocks."""

TARGETS = {"language_model": LANGUAGE_MODEL_ATTENTION, "qformer": QFORMER_ATTENTION}
"""The targets of `lora_config`."""

MODULES_TO_SAVE = (
    "adapter", "soft_prompt", "query_tokens", "post_layernorm", "language_projection", "aggregator",
    "aggregator_projection",
)  # fmt: skip
"""LION's own modules: adapters with their router, and what the stages train besides the Q-Former."""


NOT_QUANTIZED = ("language_model.lm_head", "language_projection", "aggregator", "aggregator_projection")
"""Modules that a quantizer must skip to train LoRA on a quantized base: fully trained modules, and `lm_head`."""


def lora_config(
    model: nn.Module,
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.05,
    targets: Collection[str] = ("language_model", "qformer"),
    modules_to_save: Collection[str] = MODULES_TO_SAVE,
) -> LoraConfig:
    """Return a LoRA configuration for a LION model of any stage.

    Args:
        model: the model; targets and modules that it does not have are left out.
        rank, alpha, dropout: `r`, `lora_alpha` and `lora_dropout` of `LoraConfig`.
        targets: keys of `TARGETS`.
        modules_to_save: LION's own modules that are fully trained.

    Raises:
        ValueError: if a target is unknown, the model has none of the targets, a fully trained module is quantized, or
            gradients cannot pass through the quantized base.
    """
    for target in targets:
        if target not in TARGETS:
            raise ValueError(f"There is no LoRA target {target!r}; the targets are {', '.join(TARGETS)}.")
    names = [name for name, _ in model.named_modules()]
    present = [target for target in targets if any(name.split(".")[0] == target for name in names)]
    if not present:
        raise ValueError(f"The model has none of {', '.join(targets)}.")
    own: dict[str, list[nn.Parameter]] = {}
    for name, module in model.named_modules():
        own.setdefault(name.split(".")[-1], list(module.parameters()))
    chosen = [name for name in modules_to_save if own.get(name)]
    for name in chosen:
        if not all(is_plain(parameter) for parameter in own[name]):
            raise ValueError(f"{name} must not be quantized to be fully trained: skip the modules in NOT_QUANTIZED.")
    check_gradients_pass(model)
    _warn_of_16_bits({name: own[name] for name in chosen})
    return LoraConfig(
        task_type="SEQ_2_SEQ_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(TARGETS[target] for target in present),
        modules_to_save=chosen,
    )


def _warn_of_16_bits(modules: Mapping[str, Collection[nn.Parameter]]) -> None:
    """Warn about modules to be trained in float16 or bfloat16. (PEFT keeps its own layers in float32.)"""
    names = [name for name, own in modules.items() if any(parameter.dtype in SIXTEEN_BITS for parameter in own)]
    if names:
        logger.warning(
            "%s are in 16 bits, where small steps are lost to rounding. make_trainer and shard_model train them in "
            "float32; if you create your own optimizer, call train_in_float32(model) on the PEFT model first.",
            ", ".join(names),
        )


__all__ = [
    "LANGUAGE_MODEL_ATTENTION",
    "LANGUAGE_MODEL_FEED_FORWARD",
    "MODULES_TO_SAVE",
    "NOT_QUANTIZED",
    "QFORMER_ATTENTION",
    "TARGETS",
    "lora_config",
]
