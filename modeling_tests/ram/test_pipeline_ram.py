"""Pipelines: the tagger's own, and what the stock one makes of a tagger."""

from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from ram.factories import noise_image, tiny_tagger
from transformers_lion.ram import ImageTaggingPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger")
    tagger = tiny_tagger()
    tagger.model.config.thresholds = [0.45, 0.48, 0.5, 0.52, 0.55]
    tagger.save_pretrained(folder)
    return folder


def test_the_pipelines_tags_are_the_taggers(folder: Path) -> None:
    pipe = pipeline("image-tagging", model=str(folder))
    assert type(pipe) is ImageTaggingPipeline
    tagger = tiny_tagger()
    tagger.model.config.thresholds = pipe.model.config.thresholds
    images = [noise_image(seed) for seed in range(5)]
    expected = tagger(images)
    assert any(expected)
    for batch_size in (1, 2):
        found = pipe(images, batch_size=batch_size)
        assert [[tag["label"] for tag in image] for image in found] == expected


def test_arrays_of_images_are_lists_and_bytes_are_images(folder: Path, tmp_path: Path) -> None:
    pipe = pipeline("image-tagging", model=str(folder), threshold=0.0)
    paths = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, path in enumerate(paths):
        noise_image(seed).save(path)
    each = [pipe(str(path)) for path in paths]
    for images in (
        np.array(list(map(str, paths))),
        np.array(paths),
        np.stack(list(map(noise_image, (0, 1)))),
    ):
        assert pipe(images) == pipe(images=images) == each
    assert pipe(paths[0].read_bytes()) == pipe({"bytes": paths[0].read_bytes(), "path": None}) == each[0]
    tagger = tiny_tagger()
    assert tagger(np.array(paths)) == tagger([path.read_bytes() for path in paths]) == tagger(list(map(str, paths)))


def test_the_pipeline_takes_a_selection(folder: Path) -> None:
    pipe = pipeline("image-tagging", model=str(folder), threshold=0.0, sort_by_score=True)
    everything = pipe(noise_image())
    scores = [tag["score"] for tag in everything]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert pipe(noise_image(), top_k=2) == everything[:2]
    assert [tag["label"] for tag in pipe(noise_image(), allow=["red"])] == ["red"]


def test_the_stock_pipeline_gives_the_best_scores_of_each_tag_by_itself(folder: Path) -> None:
    everything = pipeline("image-tagging", model=str(folder), threshold=0.0, sort_by_score=True)(noise_image())
    stock = pipeline("image-classification", model=str(folder))(noise_image(), top_k=3)
    assert [tag["label"] for tag in stock] == [tag["label"] for tag in everything[:3]]
    assert [tag["score"] for tag in stock] == pytest.approx([tag["score"] for tag in everything[:3]], abs=1e-6)
