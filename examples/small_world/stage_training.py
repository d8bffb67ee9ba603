"""Trains stages 1 to 3 in the small world, with the package's own stages, collator and recipe.

`python -m examples.small_world.stage_training STAGE FOLDER`, where FOLDER contains the results of `pretrain`. An
interrupted stage resumes from its last checkpoint.
"""

import argparse
from pathlib import Path

import torch

from transformers_lion.image_processing_lion import LionImageProcessor
from transformers_lion.modeling_lion import LionForConditionalGeneration
from transformers_lion.processing_lion import LionProcessor
from transformers_lion.training.recipe import make_trainer, training_arguments
from transformers_lion.training.resuming import train as train_or_resume
from transformers_lion.training.stage_models import combine_stages, start_stage
from transformers_lion.training.stages import Stage, apply_stage

from .alignment import align
from .architecture import IMAGE_SIZE, small_config
from .scene_records import KINDS, SceneRecords
from .vocabulary import language_model_tokenizer, qformer_tokenizer

BATCH_IMAGES, NUM_QUESTIONS = 12, 8
FIRST_SCENE = {"image_level": 2_000_000, "region_level": 3_000_000, "mixture": 4_000_000}
NUM_STEPS = {"image_level": 520, "region_level": 60, "mixture": 320}
LEARNING_RATE = {"image_level": 2e-3, "region_level": 5e-5, "mixture": 1e-3}
AGGREGATOR_LR_MULTIPLIER = {"image_level": 1.0, "region_level": 1.0, "mixture": 0.1}
CHATTER_SHARE = {"image_level": 0.0, "region_level": 0.0, "mixture": 0.4}


def make_processor() -> LionProcessor:
    """Return the small world's processor."""
    image_processor = LionImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return LionProcessor(
        image_processor, language_model_tokenizer(), qformer_tokenizer(), caption_prompt="Describe the image."
    )


def make_base(folder: Path, seed: int = 0) -> LionForConditionalGeneration:
    """Return a LION with the vision tower and language model of stage 0, and the aligned aggregator, if any.

    Its soft prompt starts as the embedding of the placeholder token, which stage 0 read in its place.
    """
    torch.manual_seed(seed)
    model = LionForConditionalGeneration(small_config())
    model.vision_model.load_state_dict(torch.load(folder / "tower.pt", weights_only=True))
    language = torch.load(folder / "language.pt", weights_only=True)
    missing, unexpected = model.language_model.load_state_dict(
        {name: x for name, x in language.items() if ".adapter." not in name}, strict=False
    )
    assert not unexpected, unexpected
    assert all(".adapter." in name for name in missing), missing
    with torch.no_grad():
        model.soft_prompt.weight.copy_(model.language_model.shared.weight[model.config.soft_prompt_token_id])
    if (folder / "aggregator.pt").exists():
        aligned = torch.load(folder / "aggregator.pt", weights_only=True)
        unexpected = model.load_state_dict(aligned, strict=False).unexpected_keys
        assert not unexpected, unexpected
    model.generation_config.update(
        num_beams=5, max_new_tokens=64, repetition_penalty=1.0, pad_token_id=0, eos_token_id=1
    )
    return model


def _start_model(stage: str, folder: Path, seed: int = 0) -> LionForConditionalGeneration:
    torch.manual_seed(seed)
    if stage == "mixture":
        return combine_stages(folder / "image_level", folder / "region_level").model
    return start_stage(stage, make_base(folder, seed)).model


def train(
    model: LionForConditionalGeneration,
    stage: str | Stage,
    records: SceneRecords,
    output: Path,
    num_steps: int,
    learning_rate: float,
    seed: int = 0,
    aggregator_lr_multiplier: float = 1.0,
) -> None:
    """Train a stage, and save the model and processor.

    Args:
        model: the initial model.
        stage: the stage, which determines the trainable parameters.
        records: the data; a batch has `BATCH_IMAGES` records.
        output: folder of the result; checkpoints for resuming are kept in `output`-training.
    """
    model.set_attn_implementation("eager")  # faster than sdpa in training at this size on a CPU
    print(apply_stage(model, stage), flush=True)
    processor = make_processor()
    arguments = training_arguments(
        f"{output}-training", per_device_train_batch_size=BATCH_IMAGES, max_steps=num_steps,
        learning_rate=learning_rate, warmup_steps=max(10, num_steps // 10), adam_beta2=0.98, weight_decay=0.01,
        use_cpu=True, logging_steps=20, save_steps=100, save_total_limit=1, disable_tqdm=True, seed=seed,
        predict_with_generate=False,
    )  # fmt: skip
    trainer = make_trainer(model, processor, arguments, records, aggregator_lr_multiplier=aggregator_lr_multiplier)
    train_or_resume(trainer)
    trainer.state.save_to_json(f"{output}-training/log.json")
    model.set_attn_implementation("sdpa")
    model.save_pretrained(output)
    processor.save_pretrained(output)


def _train_stage(stage: str, folder: Path, seed: int = 0) -> None:
    """Train a stage for its number of steps, from the previous results in `folder`, and save it to `folder/STAGE`."""
    steps = NUM_STEPS[stage]
    records = SceneRecords(
        "train", BATCH_IMAGES * steps, KINDS[stage], NUM_QUESTIONS, FIRST_SCENE[stage], seed,
        chatter_share=CHATTER_SHARE[stage],
    )  # fmt: skip
    train(
        _start_model(stage, folder, seed), stage, records, folder / stage, steps, LEARNING_RATE[stage], seed,
        AGGREGATOR_LR_MULTIPLIER[stage],
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["alignment", *NUM_STEPS])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.stage == "alignment":
        align(options.folder, make_base(options.folder))
    else:
        _train_stage(options.stage, options.folder)
