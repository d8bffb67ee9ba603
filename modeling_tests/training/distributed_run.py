"""What one process of several does: trains a small model in one of several ways, and prints what came of it.

Run by `test_distributed.py` under torchrun and `accelerate launch`, and called there for what one process alone does.

    torchrun --nproc_per_node 2 distributed_run.py trainer FOLDER STAGE...     the stock Trainer
    torchrun --nproc_per_node 2 distributed_run.py loop FOLDER                 a loop of its own, with `shard_model`
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import accelerate.state
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from peft import get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from factories import NO_DROPOUT, tiny_inputs, tiny_labels, tiny_model
from trainer_step import samples
from transformers_lion import LionForConditionalGeneration
from transformers_lion.training import STAGES, apply_stage, save_trainable
from transformers_lion.training.distributed import (
    FsdpCallback,
    PreparedModelCallback,
    ProcessCheckCallback,
    check_sharded,
    gather_model,
    is_shard,
    shard_model,
)
from transformers_lion.training.lora import lora_config

NUM_STEPS = 3
LEARNING_RATE = 1e-3
LORA = "lora"
"""LoRA on the third stage's model."""


def stage_model(stage: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same model in all processes, with a stage applied, or with LoRA."""
    if stage == LORA:
        model = stage_model("mixture").to(dtype)
        torch.manual_seed(0)
        return get_peft_model(model, lora_config(model, rank=2, dropout=0.0))
    fields: dict[str, Any] = {name: dict(part) for name, part in NO_DROPOUT.items()}
    fields["text_config"]["num_adapters"] = STAGES[stage].num_adapters
    model = tiny_model(visual_branch=STAGES[stage].visual_branch, **fields)
    apply_stage(model, stage)
    return model


def whole_values(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters as they are now, put together where they are sharded."""
    return {
        name: (parameter.full_tensor() if is_shard(parameter) else parameter).detach().clone()
        for name, parameter in model.named_parameters()
    }


def changed_frozen(model: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    """Names of frozen parameters that are not what they were, bit by bit."""
    now = whole_values(model)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen
    return [name for name in frozen if not torch.equal(now[name], before[name])]


def held_share(model: nn.Module) -> float:
    """The part of the parameters' numbers that this process holds."""
    parameters = list(model.parameters())
    held = sum((value.to_local() if is_shard(value) else value).numel() for value in parameters)
    return held / sum(value.numel() for value in parameters)


# --- the stock Trainer --------------------------------------------------------------------------------------------


def build_trainer(stage: str, folder: Path, **options: Any) -> Seq2SeqTrainer:
    """A Trainer whose steps each take the same four samples, however many processes there are."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    arguments = Seq2SeqTrainingArguments(
        str(folder), per_device_train_batch_size=4 // world, per_device_eval_batch_size=2, max_steps=NUM_STEPS,
        logging_steps=1, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", use_cpu=True, report_to=[],
        save_strategy="steps", save_steps=2, disable_tqdm=True, remove_unused_columns=False, seed=0,
        ddp_find_unused_parameters=False, predict_with_generate=True, **options,
    )  # fmt: skip
    return Seq2SeqTrainer(
        stage_model(stage),
        arguments,
        train_dataset=samples(),
        eval_dataset=samples(),
        callbacks=[ProcessCheckCallback(), PreparedModelCallback(), FsdpCallback()],
    )


def metrics(trainer: Seq2SeqTrainer) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    return [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]


def train_stage(stage: str, folder: Path, evaluate_first: bool = False) -> dict[str, Any]:
    """Train, and tell what was trained, by whom and how; LoRA with an evaluation before the first step."""
    options = {"eval_on_start": True, "generation_max_length": 4} if stage == LORA else {}
    trainer = build_trainer(stage, folder, **options)
    before = whole_values(trainer.model)
    if evaluate_first:
        trainer.evaluate(max_new_tokens=2)
    trainer.train()
    trainer.save_model(str(folder / "model"))
    return {
        "metrics": metrics(trainer),
        "class": type(trainer.model_wrapped).__name__,
        "held": held_share(trainer.model),
        "changed": changed_frozen(trainer.model, before),
    }


def predict_and_resume(folder: Path) -> dict[str, Any]:
    """Go on from the checkpoint of an earlier training, and generate answers that end at different lengths."""
    trainer = build_trainer("mixture", folder)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    rows = samples()
    predictions = trainer.predict(rows, max_new_tokens=4 + 4 * trainer.args.process_index).predictions
    trainer.save_model(str(folder / "after_predictions"))
    return {"metrics": metrics(trainer), "predictions": predictions.tolist()}


def refusal(folder: Path) -> str:
    """What is said where FSDP2 is asked for and cannot be."""
    try:
        build_trainer("mixture", folder, fsdp=True)
    except ValueError as error:
        return str(error)
    return ""


def take_cpus_for_gpus() -> None:
    """Have accelerate shard on CPUs: it does so on GPUs only, and otherwise falls back to DistributedDataParallel."""
    original = accelerate.state.AcceleratorState.__init__

    def initialise(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    accelerate.state.AcceleratorState.__init__ = initialise


# --- a loop without the Trainer -----------------------------------------------------------------------------------


def own_rows(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This process's part of a batch."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return {name: column.chunk(world)[rank] for name, column in batch.items()}


def run_steps(model: LionForConditionalGeneration) -> list[float]:
    """The losses of some steps on the whole batch, of which each process has a part."""
    batch = {**tiny_inputs(), "labels": tiny_labels()}
    part, count = own_rows(batch), (batch["labels"] != -100).sum()
    world = dist.get_world_size() if dist.is_initialized() else 1
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=LEARNING_RATE)
    losses = []
    for _ in range(NUM_STEPS):
        loss = model(**part, num_items_in_batch=count).loss
        (loss * world).backward()  # gradients are averaged over processes
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().clone())
    summed = torch.stack(losses)
    if world > 1:
        dist.all_reduce(summed)
    return summed.tolist()


def answers(model: LionForConditionalGeneration) -> list[list[int]]:
    """Beams, from pixels and from features; the second process is to write more than the first."""
    part = own_rows(tiny_inputs())
    length = 4 + 4 * (dist.get_rank() if dist.is_initialized() else 0)
    model.eval()
    pixels = part.pop("pixel_values")
    direct = model.generate(pixels, **part, num_beams=2, max_new_tokens=length)
    with torch.no_grad():
        features = model.get_image_features(pixels)
    assert torch.equal(direct, model.generate(image_features=features, **part, num_beams=2, max_new_tokens=length))
    return direct.tolist()


def bfloat16_base(model: LionForConditionalGeneration) -> LionForConditionalGeneration:
    """Frozen parameters in bfloat16, trained ones in float32: a block then holds both."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model


def trained_dtypes(model: nn.Module) -> list[str]:
    return sorted({str(value.dtype) for value in model.parameters() if value.requires_grad})


def run_loop(folder: Path) -> dict[str, Any]:
    """Train, save and generate with `shard_model`."""
    torch.manual_seed(dist.get_rank())
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = stage_model("mixture")
    if dist.get_rank() == 1:  # what each process initialized for itself
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_()
    before = whole_values(model)
    first = answers(shard_model(model, mesh))
    model.train()
    result = {"first_answers": gathered(first), "losses": run_steps(model), "held": held_share(model)}
    check_sharded(model)
    result["changed"] = changed_frozen(model, before)
    whole = gather_model(model)
    if whole is not None:
        whole.save_pretrained(folder / "whole")
        save_trainable(whole, folder / "trainable", "mixture")
    result["answers"] = gathered(answers(model))
    mixed = shard_model(bfloat16_base(stage_model("mixture")), mesh, compute_dtype=torch.bfloat16)
    result["bfloat16_losses"] = run_steps(mixed)
    result["kept_dtypes"] = sorted({str(value.dtype) for value in mixed.parameters()})
    lora = stage_model(LORA, torch.bfloat16)
    result["lora_dtypes"] = trained_dtypes(lora)
    result["lora_losses"] = run_steps(shard_model(lora, mesh))
    result["sharded_lora_dtypes"] = trained_dtypes(lora)
    return result


def gathered(own: Any) -> list[Any]:
    """What each process has."""
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts


# ------------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run, and print the first process's results."""
    torch.set_num_threads(1)
    kind, folder, stages = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    result: dict[str, Any] = {}
    if kind == "loop":
        dist.init_process_group("gloo")
        result = run_loop(folder)
    else:
        if kind == "fsdp":
            take_cpus_for_gpus()
        for stage in stages:
            result[stage] = train_stage(stage, folder / stage, evaluate_first=kind == "trainer")
        if kind == "fsdp":
            result["again"] = predict_and_resume(folder / "mixture")
        else:
            result["refusal"] = refusal(folder)
    if dist.get_rank() == 0:
        print("RESULT", json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
