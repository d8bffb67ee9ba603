"""Stages 1 to 3 in the small world, by the stages, the collator and the stock Trainer that everybody's data go through.

`python -m transformers_lion.training.small_world.stage_training STAGE FOLDER`, where FOLDER holds what
`pretrain` left there. A stage that was killed goes on from its last checkpoint when it is started again.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ...image_processing_lion import LionImageProcessor
from ...modeling_lion import LionForConditionalGeneration
from ...processing_lion import LionProcessor
from ..collator import LionDataCollator
from ..stage_models import combine_stages, start_stage
from ..stages import apply_stage, get_stage
from .architecture import IMAGE_SIZE, small_config
from .records import KINDS, SceneRecords
from .vocabulary import language_model_tokenizer, qformer_tokenizer

BATCH_IMAGES, NUM_QUESTIONS = 12, 8
FIRST_SCENE = {"image_level": 2_000_000, "region_level": 3_000_000, "mixture": 4_000_000}
NUM_STEPS = {"image_level": 1500, "region_level": 1500, "mixture": 1800}
LEARNING_RATE = {"image_level": 2e-3, "region_level": 2e-3, "mixture": 1.2e-3}


def make_processor() -> LionProcessor:
    """The small world's processor."""
    image_processor = LionImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return LionProcessor(image_processor, language_model_tokenizer(), qformer_tokenizer())


def make_base(folder: Path, seed: int = 0) -> LionForConditionalGeneration:
    """A LION whose vision tower and language model are those of stage 0, and whose other parts are new."""
    torch.manual_seed(seed)
    model = LionForConditionalGeneration(small_config())
    model.vision_model.load_state_dict(torch.load(folder / "tower.pt", weights_only=True))
    language = torch.load(folder / "language.pt", weights_only=True)
    missing, unexpected = model.language_model.load_state_dict(
        {name: x for name, x in language.items() if ".adapter." not in name}, strict=False
    )
    assert not unexpected, unexpected
    assert all(".adapter." in name for name in missing), missing
    model.generation_config.update(
        num_beams=5, max_new_tokens=64, repetition_penalty=1.0, pad_token_id=0, eos_token_id=1
    )
    return model


def start_model(stage: str, folder: Path, seed: int = 0) -> LionForConditionalGeneration:
    """The model that a stage begins with."""
    torch.manual_seed(seed)
    if stage == "mixture":
        return combine_stages(folder / "image_level", folder / "region_level").model
    return start_stage(stage, make_base(folder, seed), reuse=() if stage == "region_level" else None).model


def train_stage(stage: str, folder: Path, seed: int = 0, model: LionForConditionalGeneration | None = None,
                output: Path | None = None, num_steps: int | None = None, **records: Any) -> None:  # fmt: skip
    """Train a stage and save model and processor in `folder/STAGE`.

    Args:
        stage: a name of `STAGES`.
        folder: with what the stages before left.
        seed: of new parts and of the data's order.
        model: to begin with, instead of what the stages before left.
        output: where to save, instead of `folder/STAGE`.
        num_steps: instead of the stage's own number.
        **records: options of `SceneRecords`.
    """
    output = output or folder / stage
    model = model or start_model(stage, folder, seed)
    model.set_attn_implementation("eager")  # faster than sdpa in training at this size on a CPU
    print(apply_stage(model, stage), flush=True)
    processor = make_processor()
    steps = num_steps or NUM_STEPS[get_stage(stage).name]
    data = SceneRecords(
        "train", BATCH_IMAGES * steps, **{"kinds": KINDS[stage], "start": FIRST_SCENE[stage] + seed * 1_000_000_000,
                                          "num_questions": NUM_QUESTIONS, "seed": seed, **records},
    )  # fmt: skip
    arguments = TrainingArguments(
        str(output) + "-training", per_device_train_batch_size=BATCH_IMAGES, max_steps=steps,
        learning_rate=LEARNING_RATE[stage], lr_scheduler_type="cosine", warmup_steps=50, adam_beta2=0.98,
        weight_decay=0.01, max_grad_norm=1.0, bf16=True, use_cpu=True, logging_steps=50, save_steps=250,
        save_total_limit=1, report_to=[], disable_tqdm=True, remove_unused_columns=False, seed=seed, data_seed=seed,
        label_names=["labels"],
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=LionDataCollator(processor))
    last = get_last_checkpoint(arguments.output_dir) if os.path.isdir(arguments.output_dir) else None
    trainer.train(resume_from_checkpoint=last)
    model.set_attn_implementation("sdpa")
    model.save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=list(NUM_STEPS))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    train_stage(options.stage, options.folder)
