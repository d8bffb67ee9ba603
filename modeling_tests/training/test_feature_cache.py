"""The cache of the frozen tower's outputs: same losses, no tower in the second epoch, nothing stale."""

import copy
import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainerCallback

from factories import tiny_inputs, tiny_labels, tiny_model
from training.record_files import write_source
from transformers_lion import LionForConditionalGeneration, LionProcessor
from transformers_lion.training import (
    FeatureCache,
    ImageAugmentation,
    LionDataCollator,
    apply_stage,
    load_records,
    make_trainer,
    train,
    training_arguments,
)
from transformers_lion.training.feature_cache import image_bytes
from transformers_lion.training.preflight import check_run
from transformers_lion.training.run_settings import load_settings
from transformers_lion.training.run_stages import run

STAGE_MODELS: dict[str, dict[str, Any]] = {
    "image_level": {"visual_branch": "qformer", "text_config": {"num_adapters": 1}},
    "region_level": {"visual_branch": "aggregator", "text_config": {"num_adapters": 1}},
    "mixture": {},
}


def frozen_model(stage: str = "mixture", **fields: Any) -> LionForConditionalGeneration:
    model = tiny_model(**{**STAGE_MODELS[stage], **fields})
    apply_stage(model, stage)
    return model.train()


def count_images(model: LionForConditionalGeneration) -> list[int]:
    """A list that grows by the number of images whenever the tower runs."""
    counts: list[int] = []
    model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return counts


def stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def loss_and_gradients(model: LionForConditionalGeneration, batch: Any, dtype: torch.dtype | None) -> list[Any]:
    model.zero_grad()
    torch.manual_seed(3)  # of dropout
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = model(**batch).loss
    loss.backward()
    return [loss, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("stage", STAGE_MODELS)
def test_loss_and_gradients_are_bit_equal_and_the_tower_runs_once(
    stage: str, autocast: torch.dtype | None, tmp_path: Path
) -> None:
    model = frozen_model(stage)
    inputs = tiny_inputs(2)
    inputs["pixel_values"] = torch.cat([inputs["pixel_values"], inputs["pixel_values"][:1]])  # one image twice
    batch = {**inputs, "labels": tiny_labels(2), "image_indices": torch.tensor([2, 1])}
    expected = loss_and_gradients(model, batch, autocast)
    counts = count_images(model)
    for _ in range(2):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            cached = FeatureCache(tmp_path).apply(model, batch)
        assert "pixel_values" not in cached
        for found, wanted in zip(loss_and_gradients(model, cached, autocast), expected, strict=True):
            assert (found is None and wanted is None) or torch.equal(found, wanted)
    assert counts == [2]
    if stage == "mixture":
        assert image_bytes(model) == sum(x.numel() * 4 for x in cached["image_features"].feature_maps) / 3
    del batch["pixel_values"]
    assert FeatureCache(tmp_path).apply(model, batch) == batch


@pytest.fixture
def model(lion_model: LionForConditionalGeneration) -> LionForConditionalGeneration:
    model = copy.deepcopy(lion_model)
    apply_stage(model, "mixture")
    return model


def trainer_of(model: Any, processor: LionProcessor, folder: Path, output: Path, **options: Any) -> Any:
    arguments = training_arguments(
        output, bf16=True, use_cpu=True, disable_tqdm=True, learning_rate=1e-3, num_train_epochs=2, logging_steps=1,
        save_steps=3, per_device_train_batch_size=2, save_total_limit=1,
    )  # fmt: skip
    return make_trainer(model, processor, arguments, load_records(folder / "a.json"), **options)


class StopAt(TrainerCallback):
    """Stops a training behind a step, as if it was interrupted."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 3


def test_a_training_with_the_cache_logs_the_same_losses_also_when_resumed(
    model: Any, lion_processor: LionProcessor, tmp_path: Path
) -> None:
    write_source(tmp_path, 4)
    plain = trainer_of(copy.deepcopy(model), lion_processor, tmp_path, tmp_path / "plain")
    train(plain)
    stopped, resumed = copy.deepcopy(model), model
    counts = [count_images(current) for current in (stopped, resumed)]
    options = {"feature_cache": tmp_path / "cache"}
    train(trainer_of(stopped, lion_processor, tmp_path, tmp_path / "cached", callbacks=[StopAt()], **options))
    trainer = trainer_of(resumed, lion_processor, tmp_path, tmp_path / "cached", **options)
    train(trainer)
    losses, wanted = ([entry["loss"] for entry in x.state.log_history if "loss" in entry] for x in (trainer, plain))
    assert losses == wanted
    assert len(wanted) == 4
    assert [sum(count) for count in counts] == [4, 0]
    assert len(stored(tmp_path / "cache")) == 4


def test_other_weights_and_dtypes_never_meet_old_outputs(tmp_path: Path) -> None:
    model, cache, batch = frozen_model(), FeatureCache(tmp_path), tiny_inputs(1)
    model.vision_model.post_layernorm.weight.data.add_(1.0)  # trained: not cached
    cache.apply(model, batch)
    same = copy.deepcopy(model)
    with torch.no_grad():
        same.vision_model.post_layernorm.weight.add_(1.0)
        same.aggregator.layers[0].intermediate.dense.weight.add_(1.0)
    FeatureCache(tmp_path).apply(same, batch)
    assert len(stored(tmp_path)) == 1
    with torch.no_grad():
        model.vision_model.encoder.layers[0].mlp.fc1.weight[0, 0] += 1.0
    changed = cache.apply(model, batch)["image_features"].feature_maps
    assert len(stored(tmp_path)) == 2
    assert all(map(torch.equal, changed, model.get_vision_states(batch["pixel_values"]).feature_maps))
    with torch.autocast("cpu", torch.bfloat16):
        cache.apply(model, batch)
    assert len(stored(tmp_path)) == 3
    half = copy.deepcopy(model).to(torch.bfloat16)
    maps = cache.apply(half, {**batch, "pixel_values": batch["pixel_values"].bfloat16()})["image_features"].feature_maps
    assert {x.dtype for x in maps} == {torch.bfloat16}
    assert len(stored(tmp_path)) == 4
    with pytest.raises(ValueError, match="Got 2 feature_maps, but expected one for each of the 3 blocks"):
        model.complete_image_features(type(cache.apply(model, batch)["image_features"])(feature_maps=maps[:2]))


def test_a_damaged_file_is_replaced_and_processes_may_write_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = frozen_model(), tiny_inputs(2)
    wanted = model.get_vision_states(batch["pixel_values"]).feature_maps
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: FeatureCache(tmp_path).apply(model, batch), range(4)))
    broken = stored(tmp_path)[0]
    broken.write_bytes(broken.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING):
        results.append(FeatureCache(tmp_path).apply(model, batch))
    assert f"{broken} is damaged and will be replaced" in caplog.text
    for result in [*results, FeatureCache(tmp_path).apply(model, batch)]:
        assert all(map(torch.equal, result["image_features"].feature_maps, wanted))
    assert len(stored(tmp_path)) == 2
    assert not list(tmp_path.glob("*/*.new"))


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        if target.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("transformers_lion.training.feature_cache.os.replace", full)
    with pytest.raises(OSError, match=r"No space left on device: .* store 0.0 MB .*without feature_cache") as raised:
        FeatureCache(tmp_path).apply(frozen_model(), tiny_inputs(1))
    assert raised.value.errno == errno.ENOSPC
    assert str(raised.value.filename).endswith(".safetensors")
    assert not [path for path in tmp_path.glob("*/*") if path.is_file()]


def test_what_would_make_the_cache_wrong_is_refused(
    model: Any, lion_processor: LionProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path, 2)

    def make(**options: Any) -> Any:
        return trainer_of(model, lion_processor, tmp_path, tmp_path / "x", feature_cache=tmp_path / "c", **options)

    with pytest.raises(ValueError, match="augmentation changes the images"):
        make(collator=LionDataCollator(lion_processor, augmentation=ImageAugmentation()))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "1")
    with pytest.raises(ValueError, match="but fsdp shards it"):
        make()
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    model.vision_model.embeddings.requires_grad_(True)
    with pytest.raises(ValueError, match=r"4 of its parameters are trained: vision_model\.embeddings\..* and 1 more"):
        make()
    with pytest.raises(ValueError, match="frozen vision tower"):
        FeatureCache(tmp_path / "c").apply(model, {"pixel_values": torch.zeros(1)})
    with pytest.raises(ValueError, match="sharded or offloaded"):
        FeatureCache(tmp_path / "c").apply(frozen_model().to("meta"), tiny_inputs(1))
    assert not (tmp_path / "c").exists()


def test_a_recipe_has_the_cache_as_a_key(lion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path, 2)
    recipe = {
        "output": "run", "model": str(lion_folder), "steps": 1, "batch_size": 2, "bf16": False,
        "data": [{"records": "a.json"}], "stages": [{"stage": "released"}], "feature_cache": "features/tower",
        "arguments": {"use_cpu": True},
    }  # fmt: skip
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match="Stage released: augmentation changes the images"):
        check_run(load_settings(Path("recipe.yaml"), ["augment=true"]))
    lines: list[str] = []
    given: dict[str, Any] = {}

    def stop(*args: Any, **options: Any) -> None:
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers_lion.training.run_stages.make_trainer", stop)
    with pytest.raises(KeyboardInterrupt):
        run(load_settings(Path("recipe.yaml")), lines.append, progress_bar=False)
    (line,) = [line for line in lines if line.startswith("Feature cache")]
    assert line.startswith("Feature cache features/tower: 0.0 MB per image, at most 0.0 GB for 2 images; ")
    assert given["feature_cache"] == "features/tower"
