"""Estimates the memory that training needs per device, from a configuration, without weights or a GPU.

The memory for weights, gradients and optimizer states follows from parameter counts. The memory of a step is found by
running a forward and a backward pass on fake tensors, which have shapes but no data, and tracking live tensors.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..compatibility import enable_activation_checkpointing
from ..configuration_lion import LionConfig
from ..modeling_lion import LionForConditionalGeneration
from .distributed import fsdp_units, share_embeddings
from .stages import Stage, apply_stage

METHODS = ("ddp", "fsdp2", "zero3")

FLOAT32, BFLOAT16 = 4, 2

ZERO3_LIVE_PARAMETERS, ZERO3_BUCKETS = 500_000_000, 200_000_000
"""Maximum number of gathered parameters, and size of two buckets, as in `docs/configs/deepspeed_zero3.json`."""


@dataclass(frozen=True)
class TrainingMemory:
    """Memory per device, in bytes.

    Attributes:
        weights: the device's weights, including float32 copies of trained weights if there are any.
        gradients: gradients of trained parameters.
        optimizer: AdamW's two moments.
        communication: gradient buckets and temporarily gathered parameters.
        step: peak of the activations and temporary tensors of a step.
    """

    weights: int
    gradients: int
    optimizer: int
    communication: int
    step: int

    @property
    def total(self) -> int:
        """Sum of all parts, without the overhead of CUDA libraries and memory fragmentation."""
        return sum(getattr(self, entry.name) for entry in fields(self))


def training_memory(
    config: LionConfig,
    stage: str | int | Stage,
    method: str = "ddp",
    num_devices: int = 1,
    *,
    batch_size: int = 16,
    prompt_length: int = 128,
    question_length: int = 32,
    answer_length: int = 32,
    activation_checkpointing: bool = False,
    compute_dtype: torch.dtype = torch.bfloat16,
) -> TrainingMemory:
    """Compute the memory that training with AdamW needs per device. Weights are float32, as in the recipe.

    Args:
        config: configuration of a model of the stage.
        stage: name or number of the stage.
        method: "ddp", "fsdp2" (through accelerate, sharded over all devices) or "zero3" (DeepSpeed, in bfloat16).
        num_devices: number of devices that share a model with "fsdp2" or "zero3".
        batch_size: batch size per device.
        prompt_length: number of tokens of the prompt, including the tag sentence.
        question_length: number of tokens of the Q-Former's question.
        answer_length: number of tokens of the answer.
        activation_checkpointing: whether to recompute activations in the backward pass instead of storing them.
        compute_dtype: dtype of autocast ("ddp") or of gathered parameters ("fsdp2"); float32 for neither.

    Raises:
        ValueError: if the method is unknown, or the model does not fit the stage.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, but must be one of {METHODS}.")
    with torch.device("meta"):
        model = _ShapesOnly(config)
    share_embeddings(model.language_model)  # as FSDP2 needs them
    apply_stage(model, stage)
    all_, trained = count(model), count(model, trained_only=True)
    share = 1 if method == "ddp" else num_devices
    gathered_dtype = torch.float32 if method == "ddp" else compute_dtype
    weights = FLOAT32 * all_
    if method == "zero3":
        weights = BFLOAT16 * all_ + FLOAT32 * trained
    communication = {"ddp": _ddp_buckets, "fsdp2": _fsdp2_gathered, "zero3": _zero3_gathered}[method]
    give_shapes = {
        "input_ids": (batch_size, prompt_length),
        "attention_mask": (batch_size, prompt_length),
        "qformer_input_ids": (batch_size, question_length),
        "qformer_attention_mask": (batch_size, question_length),
        "labels": (batch_size, answer_length),
        "task_type_ids": (batch_size,),
    }
    moments = 2 * FLOAT32 * trained
    communicated = communication(model, gathered_dtype.itemsize)
    step = step_bytes(model, give_shapes, gathered_dtype, compute_dtype, activation_checkpointing)
    return TrainingMemory(
        weights=math.ceil(weights / share),
        gradients=math.ceil(FLOAT32 * trained / share),
        optimizer=math.ceil(moments / share),
        communication=communicated,
        step=step,
    )


def count(module: nn.Module, trained_only: bool = False) -> int:
    """Count the parameters of a module."""
    return sum(value.numel() for value in module.parameters() if value.requires_grad or not trained_only)


def _ddp_buckets(model: LionForConditionalGeneration, itemsize: int) -> int:
    """DistributedDataParallel copies all gradients into buckets."""
    return FLOAT32 * count(model, trained_only=True)


def _fsdp2_gathered(model: LionForConditionalGeneration, itemsize: int) -> int:
    """FSDP2 holds the running unit, the prefetched one and `lm_head`, and gradients that are being reduced."""
    sizes = sorted((count(unit) for unit in fsdp_units(model)), reverse=True)
    trained = max(count(unit, trained_only=True) for unit in fsdp_units(model))
    gathered = sum(sizes[:2]) + count(model.get_output_embeddings())
    return itemsize * gathered + (itemsize + FLOAT32) * trained


def _zero3_gathered(model: LionForConditionalGeneration, itemsize: int) -> int:
    """ZeRO-3 holds the parameters and buckets that its configuration allows."""
    return BFLOAT16 * (min(ZERO3_LIVE_PARAMETERS, count(model)) + ZERO3_BUCKETS)


# --- a step on fake tensors -----------------------------------------------------------------------------------------


class _ShapesOnly(LionForConditionalGeneration):
    """LION without the check of `task_type_ids`, because fake tensors have no values."""

    def _embed_prompt(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        task_type_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        assert input_ids is not None
        return self.embed_text(input_ids)


class LiveBytes(TorchDispatchMode):
    """Tracks the bytes of live tensors.

    Attributes:
        now: bytes of the live tensors.
        peak: maximum of `now`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def see(self, tensor: torch.Tensor) -> None:
        """Count a tensor, unless its storage is already counted."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return result


def step_bytes(
    model: _ShapesOnly,
    shapes: dict[str, tuple[int, ...]],
    weights_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    activation_checkpointing: bool,
) -> int:
    """Return the peak memory of a forward and a backward pass, apart from weights and gradients.

    Args:
        model: a model on the meta device, with a stage applied; it cannot be used afterwards.
        shapes: shapes of the inputs other than `pixel_values`.
        weights_dtype: dtype of the weights.
        compute_dtype: dtype of autocast.
        activation_checkpointing: whether activations are recomputed in the backward pass.
    """
    size = model.config.vision_config.image_size
    with FakeTensorMode():
        _materialize(model, weights_dtype)
        model.train()
        if activation_checkpointing:
            enable_activation_checkpointing(model)
        inputs = {name: torch.ones(shape, dtype=torch.long) for name, shape in shapes.items()}
        inputs["pixel_values"] = torch.ones(shapes["task_type_ids"] + (3, size, size), dtype=weights_dtype)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        counter = LiveBytes()
        for tensor in (*model.parameters(), *model.buffers(), *gradients, *inputs.values()):
            counter.see(tensor)
        before = counter.now
        with counter:
            with torch.autocast("cpu", torch.bfloat16, enabled=compute_dtype is torch.bfloat16):
                loss = model(**inputs).loss
            loss.backward()
    return counter.peak - before


def _materialize(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the parameters and buffers of a meta model by (fake) CPU tensors, with gradients."""
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in replaced:
                new = nn.Parameter(torch.zeros(parameter.shape, dtype=dtype), requires_grad=parameter.requires_grad)
                new.grad = torch.zeros_like(new) if new.requires_grad else None
                replaced[parameter] = new
            setattr(module, name, replaced[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))


__all__ = ["METHODS", "TrainingMemory", "training_memory"]
