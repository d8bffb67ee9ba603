"""`lion train`: stages from one file, changes of it, errors in a line, and going on after a kill."""

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from training.record_files import good_record, make_image, png, write_images, write_json
from transformers_lion import LionForConditionalGeneration, LionProcessor, cli
from transformers_lion.file_utils import LOCK, locked
from transformers_lion.training import STAGES, combine_stages, preflight, run_stages
from transformers_lion.training.run_settings import DataSettings, StageSettings, load_settings
from transformers_lion.training.stages import check_fits

SHORT: dict[str, Any] = {
    "model": "lion",
    "batch_size": 2,
    "steps": 2,
    "save_steps": 2,
    "learning_rate": "1e-3",
    "bf16": False,
    "data": [{"records": "records.json"}],
    "arguments": {"use_cpu": True, "logging_steps": 1},
}
"""Settings of all stages; a learning rate as YAML reads it, as a string."""


@pytest.fixture
def workplace(tmp_path: Path, lion_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, records of both tasks, and `recipe.yaml` of the three stages."""
    monkeypatch.chdir(tmp_path)
    Path("lion").symlink_to(lion_folder)
    write_images(tmp_path, 4)
    captions = [good_record(seed) for seed in range(4)]
    boxes = [good_record(seed, category="ref", answer=f"[0.{seed}00,0.200,0.700,0.800]") for seed in range(3)]
    write_json(tmp_path / "records.json", captions + boxes)
    write_json(tmp_path / "boxes.json", boxes)
    write_json(tmp_path / "bad.json", [good_record(image=...)])
    write_recipe(stages=[{"stage": "image_level"}, {"stage": 2}, {"stage": "mixture"}])
    return tmp_path


def write_recipe(**keys: Any) -> None:
    """`recipe.yaml`: the short settings with `keys`; `...` leaves one out."""
    content = {**SHORT, "output": "out", "stages": [{"stage": "mixture"}], **keys}
    Path("recipe.yaml").write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not ...}))


def lion(*arguments: str) -> Any:
    """Run the command; whatever it does not report as an error of the user's is raised."""
    result = CliRunner().invoke(cli.app, ["train", "--config", "recipe.yaml", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refusal(*arguments: str) -> str:
    """The one line that the command ends with."""
    result = lion(*arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert not list(Path("out").rglob("*.safetensors"))  # found before anything was trained
    return line


def losses(stage: str) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of each entry of a stage's log."""
    log = json.loads(Path("out", stage, "log.json").read_text())
    return [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry]


def weights(stage: str) -> dict[str, torch.Tensor]:
    """The tensors of a stage's model."""
    return load_file(Path("out", stage, "model", "model.safetensors"))


# --- what it does -------------------------------------------------------------------------------------------------


def test_three_stages_run_one_after_the_other(workplace: Path) -> None:
    result = lion("mixture.evaluation=[{records: records.json}]", "mixture.arguments.generation_max_length=6")
    assert result.exit_code == 0, result.stderr
    assert "records.json: 4 of 7 records are image_level" in result.stdout
    for stage in ("image_level", "region_level", "mixture"):
        folder = Path("out", stage)
        model = LionForConditionalGeneration.from_pretrained(folder / "model")
        check_fits(model.config, STAGES[stage])
        assert type(LionProcessor.from_pretrained(folder / "model")) is LionProcessor
        assert not (folder / "model" / "training_args.bin").exists()
        assert [step for step, *_ in losses(stage)] == [1, 2]
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert f"{stage}: finished, in {folder / 'model'}" in result.stdout
    log = json.loads(Path("out/mixture/log.json").read_text())
    assert any({"eval_exact_match", "eval_iou_accuracy"} <= entry.keys() for entry in log)


def test_the_mixture_begins_with_what_the_first_two_stages_learned(workplace: Path) -> None:
    assert lion("mixture.learning_rate=1e-30", "mixture.weight_decay=0").exit_code == 0
    first, second, mixture = map(weights, ("image_level", "region_level", "mixture"))
    name = "language_model.encoder.block.0.feed_forward.adapter.adapters.{}.up_proj.weight"
    assert torch.equal(mixture[name.format(0)], second[name.format(0)])
    assert torch.equal(mixture[name.format(1)], first[name.format(0)])
    assert not torch.equal(mixture[name.format(0)], mixture[name.format(1)])
    base = load_file("lion/model.safetensors")
    for part, stage in (("qformer.embeddings.layernorm.weight", first), ("aggregator_projection.norm.weight", second)):
        if part in base:
            assert torch.equal(mixture[part], stage[part])
            assert not torch.equal(mixture[part], base[part])


def test_a_finished_run_is_not_run_again(workplace: Path) -> None:
    write_recipe()
    assert lion().exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.is_file()}
    result = lion()
    assert result.stdout.splitlines() == ["mixture: finished, in out/mixture/model"]
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.is_file()} == before


def test_a_killed_command_started_again_goes_on_bit_for_bit(workplace: Path) -> None:
    stages = [{"stage": "image_level"}, {"stage": "region_level", "steps": 12, "trainable_only": True}]
    write_recipe(stages=stages)
    command = [sys.executable, "-m", "transformers_lion.cli", "train", "--config", "recipe.yaml"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not Path("out/region_level/checkpoint-2/trainer_state.json").exists():
        assert process.poll() is None, "the command ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not Path("out/region_level/model").exists()
    result = lion()
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("image_level: finished, in out/image_level/model\n")
    killed = [losses(stage["stage"]) for stage in stages], weights("region_level")
    Path("out").rename("killed")
    assert lion().exit_code == 0
    assert [losses(stage["stage"]) for stage in stages] == killed[0]
    whole = weights("region_level")
    assert whole.keys() == killed[1].keys()
    assert all(torch.equal(tensor, killed[1][name]) for name, tensor in whole.items())


def test_a_model_that_is_half_written_is_written_again(workplace: Path) -> None:
    write_recipe()
    assert lion().exit_code == 0
    expected = {name: tensor.clone() for name, tensor in weights("mixture").items()}  # no view of the file
    Path("out/mixture/model").rename("out/mixture/model.unfinished")
    Path("out/mixture/model.unfinished/model.safetensors").write_bytes(b"half")
    assert lion().exit_code == 0
    found = weights("mixture")
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert [step for step, *_ in losses("mixture")] == [1, 2]


def test_each_stage_is_a_run_of_its_own_for_wandb(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=lambda: ended.append(ran[-1])))
    monkeypatch.setattr(preflight, "get_available_reporting_integrations", lambda: ["wandb"])
    ran: list[str] = []
    monkeypatch.setattr(run_stages, "run_stage", lambda settings, stage, *rest: ran.append(stage.name))
    assert lion("report_to=[wandb]").exit_code == 0
    assert ended == ran == ["image_level", "region_level", "mixture"]


def test_tensorboard_gets_the_losses_of_each_stage(workplace: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_recipe(stages=[{"stage": "image_level"}, {"stage": "region_level"}], report_to=["tensorboard"])
    assert lion().exit_code == 0
    for stage in ("image_level", "region_level"):
        (file,) = Path("out", stage).rglob("*tfevents*")
        events = EventAccumulator(str(file))
        events.Reload()
        assert [event.value for event in events.Scalars("train/loss")] == [loss for _, loss, _ in losses(stage)]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_reporter_that_is_not_installed_is_named(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "get_available_reporting_integrations", list)
    expected = f"error: report_to has '{name}', which is unknown or not installed; installed are: none."
    assert refusal(f"report_to=[{name}]") == expected


def test_bad_records_are_reported_in_the_stages_folder(workplace: Path) -> None:
    (workplace / "a1.png").write_bytes(png(1)[:150])
    write_recipe(on_error="skip", epochs=1, steps=...)
    assert lion().exit_code == 0
    faults = [json.loads(line) for line in Path("out/mixture/records.jsonl").read_text().splitlines()]
    assert {fault["Fault"]["source"] for fault in faults if "Fault" in fault} == {"records.json[1]", "records.json[5]"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_that_opens_but_is_cut_off_is_found_before_a_batch_consists_of_it(kind: str, workplace: Path) -> None:
    whole = io.BytesIO()
    make_image(1, 120, 100).save(whole, kind)
    (workplace / "a1.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    assert PIL.Image.open(workplace / "a1.png").size == (120, 100)
    write_recipe(on_error="skip", epochs=1, steps=..., batch_size=1)
    result = lion()
    assert result.exit_code == 0, result.stderr
    assert "records.json: 5 of 5 records" in result.stdout
    faults = [json.loads(line) for line in Path("out/mixture/records.jsonl").read_text().splitlines()]
    kinds = {entry["Fault"]["source"]: entry["Fault"]["kind"] for entry in faults if "Fault" in entry}
    assert kinds == dict.fromkeys(["records.json[1]", "records.json[5]"], "unreadable image")


def test_a_trained_model_keeps_the_tagger_of_the_one_that_it_began_with(workplace: Path, lion_folder: Path) -> None:
    Path("lion").unlink()
    shutil.copytree(lion_folder, "lion")
    Path("lion/tagger").mkdir()
    for name in ("config.json", "model.safetensors"):
        Path("lion/tagger", name).write_text(f"{name} of a tagger")
    write_recipe(stages=[{"stage": 1}, {"stage": 2, "tag_source": "none"}, {"stage": 3}], steps=1)
    result = lion()
    assert result.exit_code == 0, result.stderr
    for stage, line in {
        "image_level": ", with the tagger of lion/tagger",
        "region_level": "",  # it trains without tags
        "mixture": ", with the tagger of out/image_level/model/tagger",
    }.items():
        assert f"{stage}: finished, in out/{stage}/model{line}\n" in result.stdout
        found = {path.name: path.read_text() for path in Path("out", stage, "model", "tagger").glob("*")}
        kept = {name: f"{name} of a tagger" for name in ("config.json", "model.safetensors")}
        assert found == (kept if line else {})
    combine_stages("out/image_level/model", "out/region_level/model", output_dir="combined")
    assert Path("combined/tagger/config.json").read_text() == "config.json of a tagger"


def test_a_model_of_the_stage_is_trained_further_and_another_is_its_base(workplace: Path) -> None:
    keep = "learning_rate=1e-30", "weight_decay=0"
    write_recipe(stages=[{"stage": "image_level"}, {"stage": "image_level", "name": "more", "model": "image_level"}])
    assert lion(*keep, "image_level.learning_rate=1e-2").exit_code == 0
    first, more = weights("image_level"), weights("more")
    assert all(torch.allclose(tensor, more[name], atol=1e-20) for name, tensor in first.items())
    adapter = "language_model.encoder.block.0.feed_forward.adapter.adapters.0.up_proj.weight"
    assert not torch.equal(first[adapter], load_file("lion/model.safetensors")[adapter])


def test_a_second_run_on_one_folder_is_refused_while_the_first_goes_on(workplace: Path) -> None:
    write_recipe()
    Path("out").mkdir()
    with locked(Path("out", LOCK), Path("out")):
        assert refusal() == f"error: out: another run is writing it (process {os.getpid()})."
    assert not list(Path("out").iterdir())
    assert lion().exit_code == 0
    assert not Path("out", LOCK).exists()


# --- settings -----------------------------------------------------------------------------------------------------


def test_keys_at_the_top_hold_for_stages_that_do_not_have_them(workplace: Path) -> None:
    data = [{"records": "records.json", "sample_ratio": 2}]
    write_recipe(stages=[{"stage": 1, "batch_size": 5}, {"stage": 3, "data": data}], steps=7)
    first, second = load_settings(Path("recipe.yaml")).stages
    assert (first.name, first.batch_size, first.steps, first.learning_rate) == ("image_level", 5, 7, 1e-3)
    assert (second.name, second.batch_size, second.steps) == ("mixture", 2, 7)
    assert first.data == [DataSettings("records.json")]
    assert second.data == [DataSettings("records.json", sample_ratio=2.0)]
    assert first.weight_decay == StageSettings.weight_decay == 0.05


def test_the_command_line_goes_before_the_file(workplace: Path) -> None:
    changes = ["seed=3", "output=else", "learning_rate=1e-4", "mixture.steps=9", "mixture.arguments.logging_steps=4"]
    settings = load_settings(Path("recipe.yaml"), changes)
    assert (settings.seed, settings.output) == (3, "else")
    assert [stage.learning_rate for stage in settings.stages] == [1e-4] * 3
    assert [stage.steps for stage in settings.stages] == [2, 2, 9]
    assert [stage.arguments["logging_steps"] for stage in settings.stages] == [1, 1, 4]
    assert all(stage.arguments["use_cpu"] for stage in settings.stages)
    (stage,) = load_settings(Path("recipe.yaml"), ["stages=[{stage: mixture, steps: 5}]", "batch_size=3"]).stages
    assert (stage.steps, stage.batch_size, stage.learning_rate) == (5, 3, 1e-3)


def test_numbers_in_scientific_notation_are_numbers_wherever_they_stand(workplace: Path) -> None:
    text = Path("recipe.yaml").read_text() + "warmup_steps: 2E+1\n"
    arguments = (
        "{adam_epsilon: 1e-8, max_grad_norm: '1e0', logging_steps: 1e1, save_total_limit: 1e0, "
        "lr_scheduler_kwargs: {min_lr: 1e-7}, neftune_noise_alpha: .5e+1, run_name: run-1e5, lr_scheduler_type: cosine}"
    )
    Path("recipe.yaml").write_text(text)
    (stage, *_) = load_settings(Path("recipe.yaml"), [f"arguments={arguments}", "steps=1e3", "batch_size=4"]).stages
    assert (stage.warmup_steps, stage.steps, stage.batch_size) == (20.0, 1000, 4)
    assert stage.arguments == {
        "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "logging_steps": 10.0, "save_total_limit": 1,
        "lr_scheduler_kwargs": {"min_lr": 1e-7}, "neftune_noise_alpha": 5.0, "run_name": "run-1e5",
        "lr_scheduler_type": "cosine",
    }  # fmt: skip
    assert [type(stage.arguments[name]) for name in ("max_grad_norm", "save_total_limit")] == [float, int]


def test_a_recipe_that_ended_before_the_first_step_may_be_mended(workplace: Path) -> None:
    write_recipe(on_error="skip", arguments={**SHORT["arguments"], "optim": "adamw_bnb_8bit", "adam_epsilon": 1e-9})
    (workplace / "a1.png").write_bytes(png(1)[:150])
    assert refusal().startswith("error: You need to install `bitsandbytes`")
    assert yaml.safe_load(Path("out/mixture/settings.yaml").read_text())["on_error"] == "skip"
    write_recipe(on_error="skip", data=[{"records": "boxes.json"}], steps=2, save_steps=1)
    assert lion().exit_code == 0
    faults = [json.loads(line) for line in Path("out/mixture/records.jsonl").read_text().splitlines()]
    assert {fault["Fault"]["source"] for fault in faults if "Fault" in fault} <= {"boxes.json[1]"}
    write_recipe(on_error="skip", learning_rate=2e-3)
    assert "was started with" in lion().stderr


BAD_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "a key at the top": (
        {"learnin_rate": 1}, r"recipe.yaml: unknown key 'learnin_rate'. Did you mean learning_rate\? The keys",
    ),
    "a key of a stage": (
        {"stages": [{"stage": 3, "lr": 1}]}, r"recipe.yaml: stages\[0\]: unknown key 'lr'. The keys are stage,",
    ),
    "a key of a source": (
        {"data": [{"records": "records.json", "image": "."}]},
        r"data\[0\]: unknown key 'image'. Did you mean images\? The keys are records, images, sample_ratio",
    ),
    "an argument of the Trainer": ({"arguments": {"save_step": 1}}, "'save_step' is not a training argument"),
    "a misspelled choice": (
        {"arguments": {"lr_scheduler_type": "cosin"}},
        r"Stage mixture: arguments: lr_scheduler_type is 'cosin', but must be one of .* Did you mean 'cosine'\?",
    ),
    "a misspelled plain choice": (
        {"arguments": {"train_sampling_strategy": "by_length"}}, "'by_length', but must be one of random, sequential",
    ),
    "a string for a number of the Trainer": (
        {"arguments": {"max_grad_norm": "1e-x"}}, "max_grad_norm is '1e-x', but must be a number",
    ),
    "a fraction for an integer": (
        {"arguments": {"gradient_accumulation_steps": 2.5}}, "gradient_accumulation_steps is 2.5, but must be an int",
    ),
    "a misspelled boolean": ({"arguments": {"use_cpu": "ture"}}, "use_cpu is 'ture', but must be true or false"),
    "a list for a string": ({"arguments": {"run_name": ["a"]}}, "run_name is .'a'., but must be a string or null"),
    "two sampling orders": (
        {"one_source_per_batch": True, "arguments": {"train_sampling_strategy": "group_by_length"}},
        "one_source_per_batch and arguments: train_sampling_strategy cannot be combined",
    ),
    "no output": ({"output": ...}, "the key output is missing"),
    "no data": ({"data": ...}, "the key data is missing"),
    "no stage": ({"stages": [{}]}, "the key stage is missing"),
    "no stages": ({"stages": []}, "stages must be a list of at least one stage"),
    "an unknown stage": ({"stages": [{"stage": "four"}]}, r"There is no stage 'four'. The stages are image_level"),
    "a string for a number": ({"batch_size": "many"}, "batch_size is 'many', but must be an integer"),
    "a number for a choice": ({"tag_source": 1}, "tag_source is 1, but must be 'data' or 'tagger' or 'none'"),
    "an old source of tags": ({"tag_source": "record"}, "tag_source is 'record', but must be 'data' or 'tagger'"),
    "an old key of tags": ({"tags": "auto"}, "unknown key 'tags'. Set tag_source to .*: data, tagger, none"),
    "nothing to learn": ({"steps": 0}, "steps is 0, but must be above 0"),
    "data of the wrong kind": ({"data": "records.json"}, "data is 'records.json', but must be a list"),
    "a name twice": ({"stages": [{"stage": 3}, {"stage": 3}]}, "2 stages are called 'mixture'; give each a unique"),
    "a name that is no folder": ({"stages": [{"stage": 3, "name": "../x"}]}, r"name '../x' of a stage must consist of"),
    "no model": ({"model": ...}, "Stage mixture has no model to start from"),
    "a missing model": ({"model": "lost"}, "lost/config.json: No such file or directory"),
    "a model of another stage": ({"stages": [{"stage": 3, "model": ["lion", "lion"]}]}, "Stage 1 .image_level. trains"),
    "two models for one": ({"stages": [{"stage": 1, "model": ["a", "b"]}]}, "model lists 2 folders; only the mixture"),
    "missing records": ({"data": [{"records": "lost.json"}]}, "lost.json: No such file or directory"),
    "missing images": ({"data": [{"records": "records.json", "images": "lost"}]}, "lost: No such file or directory"),
    "a reporter": ({"report_to": ["paper"]}, "report_to has 'paper', which is unknown or not installed"),
    "no tagger": ({"tag_source": "tagger"}, 'tag_source is "tagger", but there is no tagger; set tagger'),
    "a tagger for nothing": ({"tagger": "lion", "tag_source": "data"}, "the tagger lion would not be used"),
    "an impossible ratio": ({"data": [{"records": "records.json", "sample_ratio": -1}]}, "sample_ratio is -1.0, but"),
    "parts to reuse of nothing": ({"reuse": ["qformer"]}, "reuse is for the first two stages, not for mixture"),
    "a stage that does not fit": (
        {"stages": [{"stage": 1}, {"stage": 3, "model": "image_level"}]}, "Stage 3 .mixture. trains a model with",
    ),
    "no image-level records": (
        {"stages": [{"stage": 1}], "data": [{"records": "boxes.json"}]}, "none of the 3 records of boxes.json is image",
    ),
    "a bad record": ({"data": [{"records": "bad.json"}]}, r"bad.json\[0\]: it has no image"),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_wrong_setting_is_one_line_that_names_it(keys: dict[str, Any], words: str, workplace: Path) -> None:
    write_recipe(**keys)
    line = refusal()
    assert re.search(words, line), line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("learning_rate", "'learning_rate' must be KEY=VALUE"), ("lr=1", "lr=1: unknown key 'lr'"),
        ("mixtur.steps=1", "'mixtur' is not a stage; the stages are image_level, region_level, mixture"),
        ("mixture.seed=1", "mixture.seed=1: unknown key 'seed'"), ("steps=[1", "invalid YAML"),
        ("stage=1", "unknown key 'stage'"),
    ],
)  # fmt: skip
def test_a_wrong_change_is_one_line_that_names_it(change: str, words: str, workplace: Path) -> None:
    assert words in refusal(change)


def test_a_file_that_is_no_yaml_is_one_line_with_the_place(workplace: Path) -> None:
    Path("recipe.yaml").write_text("output: out\nstages: [\n")
    assert "recipe.yaml, line 3: invalid YAML" in refusal()
    Path("recipe.yaml").write_text("- output\n")
    assert "recipe.yaml must be a mapping of keys to values" in refusal()
    Path("recipe.yaml").unlink()
    assert refusal() == "error: recipe.yaml: No such file or directory."


def test_a_stage_that_was_begun_keeps_its_settings(workplace: Path) -> None:
    write_recipe()
    assert lion().exit_code == 0
    for change, key in (("learning_rate=2e-3", "learning_rate"), ("seed=1", "seed"), ("model=./lion", "model")):
        result = lion(change)
        assert (result.exit_code, result.stdout) == (1, "")
        line = rf"error: Stage mixture was started with {key} .*, but now it is .* or delete out/mixture to start .*\n"
        assert re.fullmatch(line, result.stderr)
    assert lion("num_workers=1").exit_code == 0  # changes nothing of the result


# --- the command --------------------------------------------------------------------------------------------------


def test_a_missing_extra_is_named(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert refusal() == (
        "error: lion train needs matplotlib, which the extra 'train' installs: "
        'pip install "transformers-lion[train]".'
    )


def test_an_interrupted_command_says_so(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers_lion.training.run_stages.run", interrupt)
    result = lion()
    assert (result.exit_code, result.stderr) == (130, "error: interrupted.\n")


def test_a_traceback_is_shown_on_request(workplace: Path) -> None:
    with pytest.raises(ValueError, match="unknown key"):
        lion("lr=1", "--debug")


def test_errors_of_ours_are_not_hidden(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers_lion.training.run_stages.run", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lion()


def test_a_wrong_command_line_has_an_exit_code_of_its_own() -> None:
    result = CliRunner().invoke(cli.app, ["train"])
    assert result.exit_code == 2
    assert "--config" in result.stderr
    assert "Train the stages of a recipe" in CliRunner().invoke(cli.app, ["train", "--help"]).stdout


def test_the_package_installs_the_command() -> None:
    (entry,) = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "lion"]
    assert entry.load() is cli.main
