"""The recipe on the stock Trainer: its optimizer, its figures, its checkpoints, and going on after a kill."""

import copy
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, EvalPrediction, Seq2SeqTrainer, TrainerState

from factories import tiny_model
from processes import run_python
from training.recipe_run import NUM_STEPS, build, metrics
from training.record_files import good_record, write_images, write_json
from transformers_lion import LionForConditionalGeneration, LionProcessor
from transformers_lion.training import (
    AnswerMetrics,
    apply_stage,
    last_checkpoint,
    load_records,
    load_trainable,
    make_trainer,
    parameter_groups,
    train,
    training_arguments,
)
from transformers_lion.training.optimizer import build_optimizer
from transformers_lion.training.recipe import one_question_each

SCRIPT = Path(__file__).parent / "recipe_run.py"
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of records: `a.json` of both tasks, `b.json` of one."""
    folder = tmp_path_factory.mktemp("records")
    write_images(folder, 4)
    boxes = [good_record(seed, category="ref", answer=f"[0.{seed}00,0.200,0.700,0.800]") for seed in range(4)]
    write_json(folder / "a.json", [good_record(seed, tags=["noise"]) for seed in range(3)] + boxes[:2])
    write_json(folder / "b.json", boxes)
    return folder


# --- the optimizer ------------------------------------------------------------------------------------------------


def groups_of(model: torch.nn.Module, **options: float) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter that has a group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 1e-3, **options)
    found = [(names[id(x)], (group["lr"], group["weight_decay"])) for group in groups for x in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


def test_every_trained_parameter_and_no_frozen_one_is_in_one_group() -> None:
    model = tiny_model()
    apply_stage(model, "mixture")
    assert groups_of(model).keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_weight_decay_is_for_matrices_alone() -> None:
    model = tiny_model()
    apply_stage(model, "mixture")
    for name, (_, decay) in groups_of(model, weight_decay=0.05).items():
        assert decay == (0.05 if model.get_parameter(name).ndim > 1 else 0.0), name
    decayed = {name for name, (_, decay) in groups_of(model).items() if decay}
    assert "query_tokens.weight" in decayed
    assert "language_model.encoder.block.0.feed_forward.adapter.router.0.weight" in decayed
    assert not any(name.endswith(("bias", "scale")) or "norm" in name.lower() for name in decayed)


def test_the_aggregator_has_a_learning_rate_of_its_own() -> None:
    model = tiny_model()
    apply_stage(model, "mixture")
    for name, (rate, _) in groups_of(model, aggregator_lr_multiplier=3.0).items():
        assert rate == pytest.approx(3e-3 if name.startswith("aggregator") else 1e-3), name
    assert parameter_groups(model, 1e-3, aggregator_lr_multiplier=3.0)[0]["lr"] == 1e-3  # the one that is logged


def test_a_model_of_which_nothing_trains_has_no_groups() -> None:
    with pytest.raises(ValueError, match="No parameter of the model requires a gradient"):
        parameter_groups(tiny_model().requires_grad_(False), 1e-3)


def test_the_optimizer_is_adamw_with_the_recipes_settings(tmp_path: Path) -> None:
    optimizer = build_optimizer(tiny_model(), training_arguments(tmp_path, learning_rate=2e-4, use_cpu=True), 0.5)
    assert type(optimizer) is torch.optim.AdamW
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (2e-4, 0.05), (2e-4, 0.0), (1e-4, 0.05), (1e-4, 0.0),
    }  # fmt: skip


@pytest.mark.parametrize("found", [(torch.optim.AdamW, {"params": []}), (object, {})])
def test_an_optimizer_that_takes_no_groups_is_refused(
    found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Seq2SeqTrainer, "get_optimizer_cls_and_kwargs", staticmethod(lambda arguments, model: found))
    with pytest.raises(ValueError, match=r"optim='lomo' builds its own parameter groups"):
        build_optimizer(tiny_model(), training_arguments(tmp_path, optim="lomo", use_cpu=True))


def test_an_unknown_argument_is_refused_with_one_like_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'warmup_step' is not a training argument .*; did you mean warmup_steps"):
        training_arguments(tmp_path, warmup_step=3)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine(folder: Path, lion_folder: Path, tmp_path: Path) -> None:
    trainer = build(folder, lion_folder, tmp_path, arguments={"warmup_steps": 2}, aggregator_lr_multiplier=10.0)
    trainer.create_optimizer_and_scheduler(6)
    rates = []
    for _ in range(6):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    expected = [0, 0.5, 1, 0.853553, 0.5, 0.146447]
    assert [first for first, *_ in rates] == pytest.approx([1e-3 * factor for factor in expected], rel=1e-5)
    assert [last for *_, last in rates] == pytest.approx([1e-2 * factor for factor in expected], rel=1e-5)


# --- figures ------------------------------------------------------------------------------------------------------


def ids_of(processor: LionProcessor, texts: list[str], pad: int) -> np.ndarray:
    """Ids of texts, padded as the Trainer does it: within a batch, and between batches with -100."""
    rows = [processor.tokenizer(text).input_ids for text in texts]
    longest = max(map(len, rows))
    return np.array([row + [pad] * (longest - len(row)) + [-100, -100] for row in rows])


def metrics_of(processor: LionProcessor, answers: list[str], labels: list[str], **options: Any) -> dict[str, float]:
    prediction = EvalPrediction(predictions=ids_of(processor, answers, 0), label_ids=ids_of(processor, labels, -100))
    return AnswerMetrics(processor, **options)(prediction)


def test_metrics_are_counted_through_padding(lion_processor: LionProcessor) -> None:
    found = metrics_of(
        lion_processor,
        ["yes", "a red dog", "Answer: [0.1,0.1,0.5,0.5]", "[0.1,0.1,0.2,0.2]", "no box"],
        ["yes", "a blue dog", "[0.1,0.1,0.5,0.4]", "[0.5,0.5,0.9,0.9]", "[0.5,0.5,0.9,0.9]"],
    )
    assert found == {"exact_match": pytest.approx(1 / 5), "iou_accuracy": pytest.approx(1 / 3)}


def test_each_labelled_box_counts(lion_processor: LionProcessor) -> None:
    label = "[0.1,0.1,0.5,0.5] and [0.6,0.6,0.9,0.9]"
    for answer, share in ((label, 1.0), ("[0.1,0.1,0.5,0.5]", 0.5), ("[0.6,0.6,0.9,0.9] [0.1,0.1,0.5,0.5]", 0.0)):
        assert metrics_of(lion_processor, [answer], [label])["iou_accuracy"] == share


def test_labels_without_boxes_give_no_accuracy_of_boxes(lion_processor: LionProcessor) -> None:
    assert metrics_of(lion_processor, ["[0.1,0.1,0.5,0.5]"], ["yes"]) == {"exact_match": 0.0}


def test_rows_beyond_the_samples_are_cut_off(lion_processor: LionProcessor) -> None:
    texts = ["yes", "no", "yes"]
    assert metrics_of(lion_processor, ["no", "no", "yes"], texts, num_samples=2) == {"exact_match": 0.5}
    with pytest.raises(ValueError, match="3 answers for num_samples=4"):
        metrics_of(lion_processor, texts, texts, num_samples=4)


def test_logits_are_refused(lion_processor: LionProcessor) -> None:
    with pytest.raises(ValueError, match=r"predict_with_generate=True\), but got float64 of shape \(1, 2, 3\)"):
        AnswerMetrics(lion_processor)(EvalPrediction(predictions=np.zeros((1, 2, 3)), label_ids=np.zeros((1, 2))))


def test_evaluation_while_training_gives_the_metrics_of_the_models_answers(
    folder: Path, lion_processor: LionProcessor, lion_model: LionForConditionalGeneration, tmp_path: Path
) -> None:
    """Also: records of several questions count each, and the model's generation settings stay as they are."""
    model = copy.deepcopy(lion_model)
    apply_stage(model, "mixture")
    records = load_records(folder / "a.json").select(range(3))
    inputs = lion_processor(images=str(folder / "a0.png"), text="Where?", task_type="region_level", return_tensors="pt")
    generated = model.generate(**inputs, num_beams=1, max_new_tokens=5)
    told = lion_processor.batch_decode(generated, skip_special_tokens=True)[0].strip()
    asked = load_records(
        [{"image": "a0.png", "questions": ["Where?", "Where?"], "answers": [told, "else"], "category": "ref"}] * 3,
        folder,
    )
    arguments = training_arguments(
        tmp_path, max_steps=1, learning_rate=0.0, weight_decay=0.0, bf16=False, use_cpu=True, disable_tqdm=True,
        eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4, generation_max_length=6,
        generation_num_beams=1,
    )  # fmt: skip
    settings = model.generation_config.to_dict()
    assert settings["max_new_tokens"] == 256
    trainer = make_trainer(model, lion_processor, arguments, records, asked)
    train(trainer)
    (found,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert found["eval_exact_match"] == 0.5
    assert trainer.predict(trainer.eval_dataset, max_length=6, max_new_tokens=None).predictions.shape[0] == 6
    assert model.generation_config.to_dict() == settings
    assert "use_cache" not in model.config.to_dict()


def test_evaluations_by_themselves_heed_the_maximum_length(
    folder: Path, lion_processor: LionProcessor, lion_model: LionForConditionalGeneration, tmp_path: Path
) -> None:
    model = copy.deepcopy(lion_model)
    model.generation_config.update(max_new_tokens=9, num_beams=1, eos_token_id=None)  # no answer ends by itself
    settings = model.generation_config.to_dict()
    apply_stage(model, "mixture")
    records = load_records(folder / "a.json").select(range(2))
    arguments = training_arguments(tmp_path, bf16=False, use_cpu=True, disable_tqdm=True, generation_max_length=4)
    trainer = make_trainer(model, lion_processor, arguments, records, records)

    def lengths(**options: Any) -> list[int]:
        trainer.compute_metrics = lambda prediction: {"length": (prediction.predictions > 0).sum(1).tolist()}
        found = trainer.evaluate(**options)["eval_length"]
        assert (trainer.predict(records, **options).predictions > 0).sum(1).tolist() == found
        assert model.generation_config.to_dict() == settings
        return found

    assert lengths() == [3, 3]  # and the token that each answer begins with
    assert lengths(max_length=6) == [5, 5]
    assert lengths(max_new_tokens=7) == [7, 7]
    trainer.args.generation_max_length = None
    assert lengths() == [9, 9]


def test_records_of_several_questions_become_records_of_one(folder: Path) -> None:
    several = {"image": "a0.png", "questions": ["A?", "B?"], "answers": ["1", "2"], "categories": ["ref", "vqa"]}
    rows = list(one_question_each(load_records([{**several, "tags": ["x"]}, good_record(1)], folder)))
    assert [(row["question"], row["answer"], row["task_type"], row["tags"]) for row in rows] == [
        ("A?", "1", "region_level", ["x"]), ("B?", "2", "image_level", ["x"]),
        ("What is a1?", "Noise 1", "image_level", None),
    ]  # fmt: skip
    assert all(row["questions"] is row["answers"] is row["task_types"] is None for row in rows)


# --- checkpoints --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, lion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqTrainer:
    """A run that nobody stopped; it left checkpoints 3, 6 and 7 in `args.output_dir`."""
    output = tmp_path_factory.mktemp("whole")
    trainer = build(folder, lion_folder, output, arguments={"save_total_limit": None})
    train(trainer)
    assert [entry["step"] for entry in metrics(trainer)] == [2, 3, 4, 6, 7]  # every second, and before checkpoints
    return trainer


def test_a_checkpoint_loads_as_model_and_processor(
    uninterrupted: Seq2SeqTrainer, lion_processor: LionProcessor
) -> None:
    checkpoint = Path(uninterrupted.args.output_dir) / f"checkpoint-{NUM_STEPS}"
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert type(processor) is LionProcessor
    assert processor.to_dict() == lion_processor.to_dict()
    model = LionForConditionalGeneration.from_pretrained(checkpoint)
    expected = uninterrupted.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def run_script(folder: Path, lion: Path, output: Path, home: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_python(
        SCRIPT, folder, lion, output, json.dumps(options), home=home, PYTHONPATH=str(TESTS), OMP_NUM_THREADS="1"
    )


def weights_of(trainer: Seq2SeqTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize("trainable_only", [False, True])
def test_a_run_that_was_killed_goes_on_bit_for_bit(
    trainable_only: bool, folder: Path, lion_folder: Path, uninterrupted: Seq2SeqTrainer, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    killed = run_script(folder, lion_folder, output, tmp_path / "home", kill_at=5, trainable_only=trainable_only)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert last_checkpoint(output) == output / "checkpoint-3"
    resumed = build(folder, lion_folder, output, trainable_only=trainable_only)
    train(resumed)
    assert metrics(resumed) == metrics(uninterrupted)
    expected = weights_of(uninterrupted)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in weights_of(resumed).items())


def test_a_run_that_was_killed_after_its_last_checkpoint_makes_no_further_step(
    folder: Path, lion_folder: Path, uninterrupted: Seq2SeqTrainer
) -> None:
    again = build(folder, lion_folder, Path(uninterrupted.args.output_dir), arguments={"save_total_limit": None})
    again.training_step = None
    train(again)
    assert metrics(again) == metrics(uninterrupted)
    expected = weights_of(uninterrupted)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in weights_of(again).items())


@pytest.mark.parametrize("content", [None, "", '{"epoch": 1.0, "log_hist'])
def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(
    content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        TrainerState(global_step=step).save_to_json(str(tmp_path / f"checkpoint-{step}" / "trainer_state.json"))
    if content is not None:
        (tmp_path / "checkpoint-100" / "trainer_state.json").write_text(content)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert "checkpoint-100: it is incomplete" in caplog.text


@pytest.mark.parametrize("random_state", [None, "half"])
def test_a_checkpoint_that_another_process_did_not_finish_is_passed_over(
    random_state: str | None, uninterrupted: Seq2SeqTrainer, tmp_path: Path
) -> None:
    note = {"args": {}, "attributes": {"num_processes": 2}}
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = TrainerState(global_step=step)
        state.stateful_callbacks["CheckpointLogCallback"] = note
        state.save_to_json(str(folder / "trainer_state.json"))
        for rank in range(2):
            torch.save({}, folder / f"rng_state_{rank}.pth")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    file = tmp_path / "checkpoint-2" / "rng_state_1.pth"
    content = file.read_bytes()
    file.unlink()
    if random_state is not None:
        file.write_bytes(content[: len(content) // 2])
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert uninterrupted.state.stateful_callbacks["CheckpointLogCallback"]["attributes"] == {"num_processes": 1}


def test_without_checkpoints_there_is_none_to_go_on_from(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.fixture(scope="module")
def trainable_run(folder: Path, lion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqTrainer:
    """A whole run whose checkpoints hold what is trained alone."""
    trainer = build(folder, lion_folder, tmp_path_factory.mktemp("trainable"), trainable_only=True, stage="mixture")
    train(trainer)
    return trainer


def test_a_trainable_checkpoint_holds_only_what_is_trained(trainable_run: Seq2SeqTrainer) -> None:
    checkpoint = Path(trainable_run.args.output_dir) / f"checkpoint-{NUM_STEPS}"
    trained = {name for name, parameter in trainable_run.model.named_parameters() if parameter.requires_grad}
    assert load_file(checkpoint / "trainable.safetensors").keys() == trained
    assert [path.name for path in checkpoint.glob("*.safetensors")] == ["trainable.safetensors"]
    assert type(AutoProcessor.from_pretrained(checkpoint)) is LionProcessor


def test_for_a_trainable_checkpoint_the_trainer_never_writes_the_whole_model(
    folder: Path, lion_folder: Path, tmp_path: Path
) -> None:
    trainer = build(folder, lion_folder, tmp_path / "output", trainable_only=True)
    trainer.save_model(str(tmp_path / "saved"))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == trained


def test_a_trainable_checkpoint_goes_onto_its_base(
    trainable_run: Seq2SeqTrainer, lion_model: LionForConditionalGeneration
) -> None:
    model = copy.deepcopy(lion_model)
    assert load_trainable(model, Path(trainable_run.args.output_dir) / f"checkpoint-{NUM_STEPS}") == "mixture"
    expected = weights_of(trainable_run)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())


def test_nobody_takes_a_trainable_checkpoint_for_a_model(trainable_run: Seq2SeqTrainer) -> None:
    checkpoint = Path(trainable_run.args.output_dir) / f"checkpoint-{NUM_STEPS}"
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        LionForConditionalGeneration.from_pretrained(checkpoint)


def test_the_best_of_trainable_checkpoints_cannot_be_loaded(folder: Path, lion_folder: Path, tmp_path: Path) -> None:
    options = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "eval_strategy": "steps",
        "eval_steps": 3,
    }
    records = load_records(folder / "b.json")
    with pytest.raises(ValueError, match="load_best_model_at_end needs checkpoints of the whole model"):
        build(folder, lion_folder, tmp_path, arguments=options, trainable_only=True, eval_dataset=records)


@pytest.mark.parametrize("again", [False, True])
def test_after_trainable_checkpoints_the_whole_model_is_saved(
    again: bool, trainable_run: Seq2SeqTrainer, folder: Path, lion_folder: Path, tmp_path: Path
) -> None:
    trainer = trainable_run
    if again:  # only loads the last checkpoint
        trainer = build(folder, lion_folder, Path(trainable_run.args.output_dir), trainable_only=True)
        train(trainer)
    trainer.save_model(str(tmp_path))
    model = LionForConditionalGeneration.from_pretrained(tmp_path)
    expected = trainable_run.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_trainable_checkpoint_of_another_base_is_refused(
    trainable_run: Seq2SeqTrainer, folder: Path, lion_folder: Path
) -> None:
    trainer = build(folder, lion_folder, Path(trainable_run.args.output_dir), trainable_only=True)
    with torch.no_grad():
        trainer.model.language_model.shared.weight.add_(1.0)
    with pytest.raises(ValueError, match=r"base is not that of the checkpoint: .*language_model\.shared\.weight"):
        train(trainer)
