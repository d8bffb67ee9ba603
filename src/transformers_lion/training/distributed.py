"""Training on several devices: what FSDP2 needs to know of LION, and a check that it really ran.

With transformers' Trainer: add the three callbacks of this module, and ask for FSDP2 by `TrainingArguments(fsdp=True)`
or by a configuration of accelerate. In a loop of your own: `shard_model`. Either way `gather_model` makes a whole model
again.

FSDP2 takes a unit of the model at a time: its parameters are gathered before it runs, and freed behind it.
"""

import copy
import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..modeling_lion import LionForConditionalGeneration
from ..modeling_lion_t5 import LionT5ForConditionalGeneration
from .precision import train_in_float32

UNITS = (
    "InstructBlipVisionEmbeddings", "InstructBlipEncoderLayer", "InstructBlipQFormerEmbeddings",
    "InstructBlipQFormerLayer", "LionAggregatorLayer", "LionAggregatorProjection", "LionT5Block",
)  # fmt: skip
"""Classes of the modules that are a unit each."""

FORWARD_METHODS = ("encode", "generate", "get_image_features")
"""What is called on a sharded model besides `forward`."""


class FsdpCallback(TrainerCallback):
    """Has the stock Trainer's FSDP2 run on LION as it should, or not at all. Without FSDP2 it does nothing.

    accelerate finds LION's units in each stage; tied embeddings become one module, without which FSDP2 stops; gradients
    are summed in float32, and the loss is not rounded, when computing in bfloat16; all processes begin with the same
    parameters.
    """

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Prepare the model.

        Raises:
            ValueError: if FSDP2 was requested, but accelerate would do something else.
        """
        if fsdp_is_requested(args):
            use_float32_reductions(fsdp_plugin())
            prepare_for_fsdp(model, args.device)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Check that the model is sharded.

        Raises:
            ValueError: if FSDP2 was requested, but the model is not sharded.
        """
        if fsdp_is_requested(args):
            check_sharded(model)


class ProcessCheckCallback(TrainerCallback):
    """Checks that the processes of a training know each other, and that their first gradients agree."""

    def __init__(self) -> None:
        self._gradients_agree = False

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See `check_processes`."""
        check_processes(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the gradients of each training anew."""
        self._gradients_agree = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Check the first gradients; see `check_gradients`."""
        if not self._gradients_agree and _is_data_parallel():
            check_gradients(model)
            self._gradients_agree = True


class PreparedModelCallback(TrainerCallback):
    """Has a model that was evaluated before its training prepared for DistributedDataParallel all the same.

    accelerate marks it as prepared when it evaluates, and would then train without DistributedDataParallel.
    """

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Remove accelerate's mark."""
        if _is_data_parallel():
            vars(model).pop("_is_accelerate_prepared", None)

    on_predict = on_evaluate


def check_gradients(model: nn.Module) -> None:
    """Raise `ValueError` unless all processes have the same gradients. All processes must call this."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    own = torch.stack([gradient.float().abs().sum() for gradient in gradients]).sum()
    sums = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sums, own)
    if any(found != own for found in sums):
        raise ValueError(
            f"{len(sums)} processes train apart: the sums of their gradients' sizes go from {min(sums):.6g} to "
            f"{max(sums):.6g}. A model that was evaluated or compiled before `train` may be without "
            "DistributedDataParallel; to evaluate before the first step, set eval_on_start=True."
        )


def check_processes(arguments: TrainingArguments) -> None:
    """Raise `ValueError` if a launcher started several processes, of which the Trainer in each does not know.

    It does not where there is no GPU, unless `use_cpu` is set: each process would train alone, into the same folder.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.world_size != started:
        raise ValueError(
            f"{started} processes were started, but the Trainer knows of {arguments.world_size}. On CPUs it needs "
            "use_cpu=True to find the others."
        )


def fsdp_is_requested(arguments: TrainingArguments) -> bool:
    """Whether a Trainer was asked for FSDP, by its arguments or by `accelerate launch`."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def _is_data_parallel() -> bool:
    """Whether accelerate is to run DistributedDataParallel here, and not FSDP, DeepSpeed or a single process."""
    from accelerate.state import AcceleratorState

    return AcceleratorState().distributed_type.value.startswith("MULTI_")


def fsdp_plugin() -> Any:
    """What accelerate knows of FSDP2 in this process.

    Raises:
        ValueError: if it runs something else.
    """
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    state = AcceleratorState()
    if state.distributed_type != DistributedType.FSDP:
        name = "a single process" if state.num_processes == 1 else "DistributedDataParallel"
        raise ValueError(
            f"FSDP2 was asked for, but accelerate runs {name} ({state.distributed_type.value}) on {state.device.type}: "
            "it shards on GPUs and their like, and among two processes or more."
        )
    if state.fsdp_plugin.fsdp_version != 2:
        raise ValueError(f"LION needs FSDP version 2, but fsdp_version is {state.fsdp_plugin.fsdp_version}.")
    return state.fsdp_plugin


def use_float32_reductions(plugin: Any) -> None:
    """Sum gradients up in float32, and leave outputs as they are: accelerate does both in the computing dtype."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if plugin.mixed_precision_policy is not None:
        dtype = plugin.mixed_precision_policy.param_dtype
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def prepare_for_fsdp(model: nn.Module, device: torch.device | str) -> None:
    """Make a whole model ready to be sharded, by accelerate or by `shard_model`. What trains becomes float32.

    Args:
        model: a LION, also within PEFT's model; its frozen parameters already frozen.
        device: of the process group.

    Raises:
        ValueError: if there is no LION in it.
    """
    lion = find_lion(model)
    train_in_float32(model)
    share_embeddings(lion.language_model)
    present = {type(module).__name__ for module in model.modules()}
    units = [name for name in UNITS if name in present]
    for module in (model, lion):
        module._no_split_modules = units  # accelerate stops at a name that it does not find
    if dist.is_initialized():
        _broadcast_trained(model, device)


def share_embeddings(language_model: LionT5ForConditionalGeneration) -> None:
    """Make tied embeddings one module, not three with one tensor: FSDP2 gathers a tensor for one unit only.

    State dicts have them once then, as saved models do: torch cannot load a whole one with a module of several names.
    """
    if language_model.decoder.embed_tokens is language_model.shared:
        return
    language_model.set_input_embeddings(language_model.shared)
    language_model.register_state_dict_post_hook(_drop_tied)
    language_model.register_load_state_dict_post_hook(_forget_tied)


def _drop_tied(language_model: Any, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """Leave the second and third name of the embeddings out of a state dict."""
    for name in language_model._tied_weights_keys:
        state_dict.pop(f"{prefix}{name}", None)


def _forget_tied(language_model: Any, incompatible_keys: Any) -> None:
    """Do not miss them when one is loaded."""
    tied = tuple(language_model._tied_weights_keys)
    missing = incompatible_keys.missing_keys
    missing[:] = [name for name in missing if not name.endswith(tied)]


def find_lion(model: nn.Module) -> LionForConditionalGeneration:
    """The LION that a model is or wraps.

    Raises:
        ValueError: if there is none.
    """
    for module in model.modules():
        if isinstance(module, LionForConditionalGeneration):
            return module
    raise ValueError(f"{type(model).__name__} holds no LionForConditionalGeneration.")


def _broadcast_trained(model: nn.Module, device: torch.device | str) -> None:
    """Give all processes the first one's trained parameters, as DistributedDataParallel does.

    Otherwise parts that each process initialized for itself would be put together of pieces that do not fit.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            values = parameter.detach().to(device)
            dist.broadcast(values, src=0)
            parameter.data.copy_(values)


def fsdp_units(model: LionForConditionalGeneration) -> list[nn.Module]:
    """The modules that are sharded as a unit each: those in `UNITS`, and what else has parameters of its own.

    None lies in another, and nothing is left to the root: it would stay gathered after a forward pass without a
    backward pass, and an optimizer made then would train parameters that are thrown away.
    """
    units, inside = [], set[nn.Module]()
    for module in model.modules():
        if module in inside:
            continue
        if type(module).__name__ in UNITS or next(module.parameters(recurse=False), None) is not None:
            units.append(module)
            inside.update(module.modules())
    return units


def shard_model(
    model: LionForConditionalGeneration,
    mesh: DeviceMesh,
    *,
    compute_dtype: torch.dtype | None = None,
    offload_to_cpu: bool = False,
) -> LionForConditionalGeneration:
    """Shard a model with FSDP2, in place. All processes call this, with the same model.

    The optimizer is to be made afterwards: parameters are new objects. `encode`, `generate` and
    `get_image_features` work as `forward` does, in all processes at once.

    Args:
        model: whole; a stage applied, if it is to be trained.
        mesh: of one dimension, or of two, (replicas, shards), to shard within a machine and replicate across them.
        compute_dtype: that parameters are gathered in; by default their own. Gradients are summed up in float32.
        offload_to_cpu: keep shards in the CPU's memory.

    Returns:
        The model.

    Raises:
        ValueError: if the model is sharded already; if a unit trains parameters of two dtypes; if torch is too old.
    """
    try:
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            MixedPrecisionPolicy,
            OffloadPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )
    except ImportError as error:
        raise ValueError(f"FSDP2 needs torch 2.6, but this is {torch.__version__}.") from error
    if any(is_shard(parameter) for parameter in model.parameters()):
        raise ValueError("The model is sharded already.")
    prepare_for_fsdp(model, mesh.device_type)
    check_trained_dtypes(model)
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=compute_dtype, reduce_dtype=None if compute_dtype is None else torch.float32
        ),
        "offload_policy": CPUOffloadPolicy() if offload_to_cpu else OffloadPolicy(),
    }
    for unit in fsdp_units(model):
        fully_shard(unit, **options)
    fully_shard(model, **options)
    for name in FORWARD_METHODS:
        method = getattr(model, name)
        register_fsdp_forward_method(model, name)
        setattr(model, name, _outside_of_forward(model, getattr(model, name), method))
    return model


def _outside_of_forward(model: Any, registered: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """`registered`, but `method` itself when another pass calls it, which `registered` would end."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        is_idle = model._get_fsdp_state()._training_state.name == "IDLE"
        return (registered if is_idle else method)(*args, **kwargs)

    return call


def check_trained_dtypes(model: LionForConditionalGeneration) -> None:
    """Raise `ValueError` if a unit has trained parameters of two dtypes, which FSDP2 cannot reduce together.

    (Frozen ones beside them may have another, as bfloat16 blocks beside adapters in float32.)
    """
    for unit in fsdp_units(model):
        trained = [(name, value.dtype) for name, value in unit.named_parameters() if value.requires_grad]
        for name, dtype in trained[1:]:
            first = trained[0]
            if dtype != first[1]:
                raise ValueError(
                    f"{type(unit).__name__} trains {first[0]} in {first[1]}, but {name} in {dtype}: FSDP2 needs "
                    "one dtype for what a unit trains."
                )


def is_shard(parameter: torch.Tensor) -> bool:
    """Whether a process holds only a piece of a parameter."""
    placements = getattr(parameter, "placements", ())  # those of a DTensor
    return any(placement.is_shard() for placement in placements)


def _is_zero3_shard(parameter: torch.Tensor) -> bool:
    """Whether DeepSpeed's ZeRO-3 holds a parameter in pieces; outside of a forward pass its own size is 0."""
    return hasattr(parameter, "ds_id")


def is_whole(parameter: torch.Tensor) -> bool:
    """Whether a process holds all values of a parameter: it is not sharded by FSDP2 or ZeRO-3, nor offloaded."""
    return not (is_shard(parameter) or _is_zero3_shard(parameter) or parameter.is_meta)


def _gather_zero3(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a model that ZeRO-3 holds in pieces, in the first process; empty in the others."""
    from deepspeed.runtime.zero import GatheredParameters

    state = {}
    for name, parameter in model.named_parameters():  # one at a time: the whole need not fit on a device
        with GatheredParameters([parameter]):
            if dist.get_rank() == 0:
                state[name] = parameter.detach().to("cpu", copy=True)
    return state


def check_sharded(model: nn.Module) -> None:
    """Raise `ValueError` unless FSDP2 sharded all parameters of a model; the error names what was found instead."""
    parameters = dict(model.named_parameters())
    whole = [name for name, parameter in parameters.items() if not is_shard(parameter)]
    if whole:
        raise ValueError(
            f"The model is not sharded by FSDP2: each process holds {len(whole)} of the {len(parameters)} parameters "
            f"of this {type(model).__name__} as a whole, {whole[0]} first."
        )


def gather_model(model: LionForConditionalGeneration) -> LionForConditionalGeneration | None:
    """A whole copy of a sharded model, in the first process's CPU memory; to be saved like any other.

    All processes must call this. It takes what FSDP2 has sharded, and DeepSpeed's ZeRO-3.

    Returns:
        The copy, with the same parameters frozen; `None` in other processes. A model that is not sharded itself.
    """
    state: dict[str, Any]
    if any(_is_zero3_shard(parameter) for parameter in model.parameters()):
        state = _gather_zero3(model)
    elif any(is_shard(parameter) for parameter in model.parameters()):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    else:
        return model
    if not state:
        return None
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        whole = LionForConditionalGeneration(config)
    share_embeddings(whole.language_model)
    whole.load_state_dict(state, assign=True)
    for name, buffer in model.named_buffers():
        parent, _, own = name.rpartition(".")
        setattr(whole.get_submodule(parent), own, buffer.detach().to("cpu", copy=True))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name in trained)
    whole.generation_config = copy.deepcopy(model.generation_config)
    return whole.train(model.training)


__all__ = [
    "FORWARD_METHODS",
    "UNITS",
    "FsdpCallback",
    "PreparedModelCallback",
    "ProcessCheckCallback",
    "check_processes",
    "check_sharded",
    "fsdp_is_requested",
    "gather_model",
    "prepare_for_fsdp",
    "shard_model",
]
