import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from examples.small_world import language_pretraining, tagger_training, vision_pretraining
from examples.small_world.architecture import small_config
from examples.small_world.cells import label_cells, render_batch
from examples.small_world.language import Sample
from examples.small_world.language_pretraining import SymbolicScene
from examples.small_world.loop import LoopSettings, run_loop
from examples.small_world.pretrain import SymbolicLanguageModel
from examples.small_world.scenes import sample_scene
from examples.small_world.vocabulary import language_model_tokenizer

SCENES = [sample_scene("train", index) for index in range(4)]


class StoppedError(Exception):
    pass


def train_line(folder: Path, num_steps: int, stop_at: int | None = None) -> nn.Module:
    """Fit a line and a matrix by the loop; perhaps stop in the middle, as if killed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.Linear(4, 1))

    def batches_from(step: int) -> Iterator[torch.Tensor]:
        for number in itertools.count(step):
            if number == stop_at:
                raise StoppedError
            yield torch.randn(8, 4, generator=torch.Generator().manual_seed(number))

    settings = LoopSettings(num_steps, learning_rate=0.03, warmup=2, save_every=5, bf16=False)
    run_loop(model, lambda x: (model(x).squeeze(1) - x.sum(1)).square().mean(), batches_from,
             lambda name: name == "0.weight", settings, folder)  # fmt: skip
    return model


def test_a_killed_loop_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = train_line(tmp_path / "whole", 12)
    with pytest.raises(StoppedError):
        train_line(tmp_path / "killed", 12, stop_at=8)
    resumed = train_line(tmp_path / "killed", 12)
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_the_loop_learns(tmp_path: Path) -> None:
    model = train_line(tmp_path, 300)
    x = torch.randn(50, 4)
    assert (model(x).squeeze(1) - x.sum(1)).square().mean() < 0.5 * x.sum(1).square().mean()


def test_mirrored_images_have_mirrored_labels() -> None:
    labels = label_cells(SCENES, 10)
    targets = {
        name: torch.from_numpy(getattr(labels, name)) for name in ("color", "shape", "size", "box", "background")
    }
    pixels = torch.from_numpy(render_batch(SCENES, 100)).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(1)
    mirrored = torch.rand(len(SCENES), generator=torch.Generator().manual_seed(1)) < 0.5
    assert 0 < mirrored.sum() < len(SCENES)
    _, changed = vision_pretraining.augment(pixels, targets, generator)
    for row, flipped in enumerate(mirrored.tolist()):
        expected = targets["shape"][row].flip(-1) if flipped else targets["shape"][row]
        assert torch.equal(changed["shape"][row], expected)
        inside = changed["shape"][row] > 0
        boxes = changed["box"][row][inside]
        columns = (inside.nonzero()[:, 1] + 0.5) / 10
        assert ((boxes[:, 0] - 0.1 <= columns) & (columns <= boxes[:, 2] + 0.1)).all()  # a cell lies in its own box


def test_every_image_is_seen_once_an_epoch() -> None:
    rows = np.concatenate([vision_pretraining.batch_rows(40, 8, 0, step) for step in range(5)])
    assert sorted(rows) == list(range(40))
    assert not np.array_equal(rows, np.concatenate([vision_pretraining.batch_rows(40, 8, 0, 5 + s) for s in range(5)]))


def test_dense_heads_know_where_their_cells_are() -> None:
    heads = vision_pretraining.DenseHeads(8)
    nn.init.zeros_(heads.box.weight)
    nn.init.zeros_(heads.box.bias)
    box = heads(torch.randn(1, 1 + 9, 8))["box"][0]
    assert torch.allclose(box[5], torch.tensor([5 / 6, 0.5, 5 / 6, 0.5]))  # second row, third column


@pytest.fixture(scope="module")
def language_model() -> SymbolicLanguageModel:
    torch.manual_seed(0)
    return SymbolicLanguageModel()


@pytest.mark.parametrize(("form", "length"), [("slots", 16), ("cells", 101), ("both", 117), ("text", 0)])
def test_scenes_in_words_stand_before_the_question(
    form: str, length: int, language_model: SymbolicLanguageModel
) -> None:
    generator = np.random.default_rng(0)
    scenes = [SymbolicScene.build("train", index, 0, 10) for index in range(3)]
    batch = language_pretraining.make_batch(generator, scenes, language_model_tokenizer(), form, 16)
    inputs = language_model.embed(batch)
    assert inputs["inputs_embeds"].shape[1] == length + batch.input_ids.shape[1]
    assert inputs["attention_mask"][:, :length].all()
    assert batch.asked.shape == (3, length)
    assert torch.isfinite(language_model.loss([batch]))


def test_what_is_asked_about_is_marked_on_the_grid() -> None:
    scene = SymbolicScene.build("train", 0, 0, 10)
    sample = Sample("locate", "Where is it?", "Answer: [0,0,1,1]", (1,))
    batch = language_pretraining.make_batch(
        np.random.default_rng(0), [scene], language_model_tokenizer(), "cells", 16, [sample]
    )
    assert batch.asked[0, 0] == 0
    assert np.array_equal(batch.asked[0, 1:].numpy() == 1, scene.cells.reshape(-1) == 1)
    nothing = Sample("caption", "What?", "a")
    batch = language_pretraining.make_batch(
        np.random.default_rng(0), [scene], language_model_tokenizer(), "cells", 16, [nothing]
    )
    assert (batch.asked == -1).all()


def test_words_of_tags_are_marked_apart_from_the_question() -> None:
    tokenizer, scene = language_model_tokenizer(), SymbolicScene.build("train", 0, 0, 10)
    for form, share in itertools.product(("cells", "text"), (0.0, 1.0)):
        generator, sample = np.random.default_rng(1), Sample("caption", "What is in the image?", "a")
        batch = language_pretraining.make_batch(generator, [scene], tokenizer, form, 16, [sample], tag_share=share)
        outside, question, marked = (tokenizer.decode(batch.input_ids[0][batch.is_tag[0] == x]) for x in (-1, 0, 1))
        assert question == "What is in the image?</s>"
        assert (marked.startswith("According to"), marked.endswith("].")) == (share == 1, share == 1)
        assert bool(outside) == (form == "text")


def test_attention_to_tags_costs() -> None:
    torch.manual_seed(0)
    scenes = [SymbolicScene.build("train", index, 0, 10) for index in range(2)]
    model = SymbolicLanguageModel(tags=True).eval()
    for tag_share in (1.0, 0.0):
        part = language_pretraining.make_batch(
            np.random.default_rng(0), scenes, language_model_tokenizer(), "cells", 16, tag_share=tag_share
        )
        losses = []
        for weight in (0.0, 2.0):
            model.attention_weight = weight
            losses.append(model.loss([part]).item())
        if tag_share:
            assert losses[1] > losses[0] + 1e-3
        else:
            assert losses[0] == losses[1]


def test_every_object_has_a_slot() -> None:
    for num_objects in range(1, 6):
        rows = language_pretraining.slot_rows(np.random.default_rng(num_objects), num_objects, 8)
        assert set(range(num_objects + 1)) <= set(rows.tolist())
        assert len(rows) == 8


def test_average_precision_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    truth, scores = generator.random((60, 3)) < 0.3, generator.random((60, 3))
    found = tagger_training.average_precision(torch.from_numpy(scores), torch.from_numpy(truth).float())
    expected = [average_precision_score(truth[:, tag], scores[:, tag]) for tag in range(3)]
    assert np.allclose(found.numpy(), expected)


def test_the_best_threshold_lies_between_what_is_present_and_what_is_not() -> None:
    scores, truth = torch.tensor([[0.1], [0.2], [0.7], [0.9]]), torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    [threshold] = tagger_training.best_thresholds(scores, truth)
    assert 0.3 < threshold < 0.6


def test_tags_from_labels_are_the_scenes_tags() -> None:
    rows = tagger_training.tag_labels(label_cells(SCENES, 10))
    for row, scene in zip(rows, SCENES, strict=True):
        assert [tag for tag, present in zip(tagger_training.TAGS, row, strict=True) if present] == scene.tags


def test_the_small_lion_has_every_part_of_the_big_one() -> None:
    config = small_config()
    assert config.uses_qformer
    assert config.uses_aggregator
    assert config.aggregator_config.vision_feature_layers == [9, 6, 3]
    assert config.text_config.num_adapters == 2
