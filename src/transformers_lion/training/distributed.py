"""Training on several devices: prepares LION for FSDP2, and checks that training is really distributed.

With transformers' Trainer, add the three callbacks of this module, and enable FSDP2 with `TrainingArguments(fsdp=True)`
or in the accelerate configuration. In your own training loop, call `shard_model`. In both cases, `gather_model` returns
the whole model.

FSDP2 gathers the parameters of one unit of the model at a time before it runs, and frees them afterwards.
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
"""Classes of the modules that form an FSDP unit each."""

FORWARD_METHODS = ("encode", "generate", "get_image_features")
"""Methods that can be called on a sharded model besides `forward`."""


class FsdpCallback(TrainerCallback):
    """Prepares LION for FSDP2 in the stock Trainer, and checks that the model is sharded. No effect without FSDP2.

    accelerate finds LION's units in each stage. Tied embeddings become one module, as FSDP2 requires. When computing in
    bfloat16, gradients are reduced in float32 and the loss is not rounded. All processes start with the same
    parameters.
    """

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Prepare the model.

        Raises:
            ValueError: if FSDP2 was requested, but accelerate would not use it.
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
    """Checks that the training processes know of each other, and that their first gradients agree."""

    def __init__(self) -> None:
        self._gradients_agree = False

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the number of processes; see `check_processes`."""
        check_processes(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the gradients again in each call of `train`."""
        self._gradients_agree = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Check the first gradients; see `check_gradients`."""
        if not self._gradients_agree and _is_data_parallel():
            check_gradients(model)
            self._gradients_agree = True


class PreparedModelCallback(TrainerCallback):
    """Makes sure that a model that was evaluated before training is still wrapped in DistributedDataParallel.

    accelerate marks a model as prepared when it is evaluated, and would then train it without DistributedDataParallel.
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
            f"{len(sums)} processes have different gradients: their absolute sums range from {min(sums):.6g} to "
            f"{max(sums):.6g}. A model that was evaluated or compiled before `train` may lack DistributedDataParallel; "
            "to evaluate before the first step, set eval_on_start=True."
        )


def check_processes(arguments: TrainingArguments) -> None:
    """Raise `ValueError` if a launcher started several processes that the Trainer does not know of.

    This happens without a GPU unless `use_cpu` is set: each process would train on its own, in the same folder.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.world_size != started:
        raise ValueError(
            f"{started} processes were started, but the Trainer knows of {arguments.world_size}. To train on CPUs, set "
            "use_cpu=True."
        )


def fsdp_is_requested(arguments: TrainingArguments) -> bool:
    """Whether FSDP is requested by training arguments or `accelerate launch`."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def _is_data_parallel() -> bool:
    """Whether accelerate uses DistributedDataParallel, and not FSDP, DeepSpeed or a single process."""
    from accelerate.state import AcceleratorState

    return AcceleratorState().distributed_type.value.startswith("MULTI_")


def fsdp_plugin() -> Any:
    """Return accelerate's FSDP2 plugin.

    Raises:
        ValueError: if accelerate does not use FSDP2.
    """
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    state = AcceleratorState()
    if state.distributed_type != DistributedType.FSDP:
        name = "a single process" if state.num_processes == 1 else "DistributedDataParallel"
        raise ValueError(
            f"FSDP2 was requested, but accelerate uses {name} ({state.distributed_type.value}) on "
            f"{state.device.type}: FSDP2 needs accelerators and at least two processes."
        )
    if state.fsdp_plugin.fsdp_version != 2:
        raise ValueError(f"LION needs FSDP version 2, but fsdp_version is {state.fsdp_plugin.fsdp_version}.")
    return state.fsdp_plugin


def use_float32_reductions(plugin: Any) -> None:
    """Reduce gradients in float32, and do not cast outputs; by default accelerate uses the compute dtype for both."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if plugin.mixed_precision_policy is not None:
        dtype = plugin.mixed_precision_policy.param_dtype
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def prepare_for_fsdp(model: nn.Module, device: torch.device | str) -> None:
    """Prepare a whole model to be sharded by accelerate or `shard_model`. Trainable parameters become float32.

    Args:
        model: a LION model, frozen as needed; PEFT may wrap it.
        device: device of the process group.

    Raises:
        ValueError: if the model is not a LION model and does not wrap one.
    """
    lion = find_lion(model)
    train_in_float32(model)
    share_embeddings(lion.language_model)
    present = {type(module).__name__ for module in model.modules()}
    units = [name for name in UNITS if name in present]
    for module in (model, lion):
        module._no_split_modules = units  # accelerate raises an error for a name that it does not find
    if dist.is_initialized():
        _broadcast_trained(model, device)


def share_embeddings(language_model: LionT5ForConditionalGeneration) -> None:
    """Replace the three modules of tied embeddings by one, because FSDP2 gathers a tensor for one unit only.

    State dicts then contain them once, as saved models do: torch cannot load one with several names for a module.
    """
    if language_model.decoder.embed_tokens is language_model.shared:
        return
    language_model.set_input_embeddings(language_model.shared)
    language_model.register_state_dict_post_hook(_drop_tied)
    language_model.register_load_state_dict_post_hook(_forget_tied)


def _drop_tied(language_model: Any, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """Remove the second and third name of the embeddings from a state dict."""
    for name in language_model._tied_weights_keys:
        state_dict.pop(f"{prefix}{name}", None)


def _forget_tied(language_model: Any, incompatible_keys: Any) -> None:
    """Do not report these names as missing when a state dict is loaded."""
    tied = tuple(language_model._tied_weights_keys)
    missing = incompatible_keys.missing_keys
    missing[:] = [name for name in missing if not name.endswith(tied)]


def find_lion(model: nn.Module) -> LionForConditionalGeneration:
    """Return the LION model that `model` is or wraps.

    Raises:
        ValueError: if there is none.
    """
    for module in model.modules():
        if isinstance(module, LionForConditionalGeneration):
            return module
    raise ValueError(f"{type(model).__name__} contains no LionForConditionalGeneration.")


def _broadcast_trained(model: nn.Module, device: torch.device | str) -> None:
    """Broadcast the trained parameters of the first process, as DistributedDataParallel does.

    Otherwise, shards of parameters that each process initialized on its own would not fit together.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            values = parameter.detach().to(device)
            dist.broadcast(values, src=0)
            parameter.data.copy_(values)


def fsdp_units(model: LionForConditionalGeneration) -> list[nn.Module]:
    """Return the modules to shard as units: those in `UNITS`, and all other modules with parameters of their own.

    Units are never nested, and no parameter is left to the root module: it would stay gathered after a forward pass
    without a backward pass, and an optimizer created then would train temporary parameters.
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
    """Shard a model with FSDP2, in place. All processes must call this function with the same model.

    Create the optimizer afterwards, because sharding replaces the parameters. All processes must also call `forward`,
    `encode`, `generate` and `get_image_features` together.

    Args:
        model: the whole model, with a stage applied if it is to be trained.
        mesh: a device mesh with one dimension, or with two, (replicas, shards), to shard within a machine and replicate
            across machines.
        compute_dtype: dtype of gathered parameters; their own by default. If set, gradients are reduced in float32.
        offload_to_cpu: whether to keep shards in CPU memory.

    Returns:
        The model.

    Raises:
        ValueError: if the model is already sharded, a unit trains parameters of two dtypes, or torch is too old.
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
    """Call `registered`, or plain `method` within another pass, which `registered` would end."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        is_idle = model._get_fsdp_state()._training_state.name == "IDLE"
        return (registered if is_idle else method)(*args, **kwargs)

    return call


def check_trained_dtypes(model: LionForConditionalGeneration) -> None:
    """Raise `ValueError` if a unit has trained parameters of two dtypes, which FSDP2 cannot reduce together.

    (Frozen parameters may have a different dtype, for example bfloat16 blocks with float32 adapters.)
    """
    for unit in fsdp_units(model):
        trained = [(name, value.dtype) for name, value in unit.named_parameters() if value.requires_grad]
        for name, dtype in trained[1:]:
            first = trained[0]
            if dtype != first[1]:
                raise ValueError(
                    f"{type(unit).__name__} trains {first[0]} in {first[1]}, but {name} in {dtype}: FSDP2 needs "
                    "a single dtype for the trained parameters of a unit."
                )


def is_shard(parameter: torch.Tensor) -> bool:
    """Whether a parameter is sharded across processes."""
    placements = getattr(parameter, "placements", ())  # those of a DTensor
    return any(placement.is_shard() for placement in placements)


def _is_zero3_shard(parameter: torch.Tensor) -> bool:
    """Whether a parameter is sharded by DeepSpeed's ZeRO-3; outside of a forward pass, its own size is 0."""
    return hasattr(parameter, "ds_id")


def is_whole(parameter: torch.Tensor) -> bool:
    """Whether a process holds all values of a parameter: it is not sharded by FSDP2 or ZeRO-3, nor offloaded."""
    return not (is_shard(parameter) or _is_zero3_shard(parameter) or parameter.is_meta)


def _gather_zero3(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a model sharded by ZeRO-3 in the first process, and an empty one in the others."""
    from deepspeed.runtime.zero import GatheredParameters

    state = {}
    for name, parameter in model.named_parameters():  # one at a time: the whole need not fit on a device
        with GatheredParameters([parameter]):
            if dist.get_rank() == 0:
                state[name] = parameter.detach().to("cpu", copy=True)
    return state


def check_sharded(model: nn.Module) -> None:
    """Raise `ValueError` unless all parameters of a model are sharded by FSDP2."""
    parameters = dict(model.named_parameters())
    whole = [name for name, parameter in parameters.items() if not is_shard(parameter)]
    if whole:
        raise ValueError(
            f"The model is not sharded by FSDP2: {len(whole)} of the {len(parameters)} parameters of this "
            f"{type(model).__name__} are not sharded, starting with {whole[0]}."
        )


def gather_model(model: LionForConditionalGeneration) -> LionForConditionalGeneration | None:
    """Gather a model sharded by FSDP2 or DeepSpeed's ZeRO-3 into CPU memory of the first process.

    All processes must call this function.

    Returns:
        A whole copy of the model, with the same parameters frozen; `None` in other processes. A model that is not
        sharded is returned unchanged.
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
