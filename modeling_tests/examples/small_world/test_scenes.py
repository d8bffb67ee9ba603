import numpy as np
import pytest

from examples.small_world.cells import cell_objects, label_cells, labelled_scenes
from examples.small_world.scenes import (
    HELD_OUT_PAIRS,
    MAX_NUM_OBJECTS,
    MIN_VISIBLE,
    SHAPES,
    SPLITS,
    TAGS,
    Scene,
    render,
    sample_scene,
    unit_outline,
    visible_objects,
)


def some_scenes(split: str, count: int = 60) -> list[Scene]:
    return [sample_scene(split, index) for index in range(count)]


def test_a_scene_is_the_same_whenever_it_is_asked_for() -> None:
    assert sample_scene("train", 5) == sample_scene("train", 5)
    assert np.array_equal(render(sample_scene("train", 5), 60), render(sample_scene("train", 5), 60))


def test_scenes_differ_by_number_split_and_world() -> None:
    keys = [("train", 0, 0), ("train", 1, 0), ("test", 0, 0), ("validation", 0, 0), ("train", 0, 1)]
    assert len({sample_scene(*key) for key in keys}) == len(keys)


def test_splits_share_no_scene() -> None:
    seen = [scene for split in SPLITS for scene in some_scenes(split)]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_are_in_their_split_alone(split: str) -> None:
    for scene in some_scenes(split):
        held_out = [(thing.color, thing.shape) in HELD_OUT_PAIRS for thing in scene.objects]
        assert any(held_out) == (split == "heldout")


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match=r"no split 'dev'.*train, validation, test, heldout"):
        sample_scene("dev", 0)


def test_boxes_are_where_the_objects_are_drawn() -> None:
    size = 200
    for scene in some_scenes("train", 30):
        foremost = scene.objects[-1]  # nothing hides it
        rows, columns = np.nonzero(visible_objects(scene, size) == len(scene.objects) - 1)
        drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / size
        assert np.abs(drawn - np.array(foremost.box)).max() < 0.02, foremost
        assert min(foremost.box) >= 0
        assert max(foremost.box) <= 1


def test_enough_of_every_object_is_visible() -> None:
    for scene in some_scenes("train"):
        visible = visible_objects(scene, 150)
        for number, thing in enumerate(scene.objects):
            alone = visible_objects(Scene((thing,), scene.background, 0), 150) == 0
            assert (visible == number).sum() >= (MIN_VISIBLE - 0.22) * alone.sum(), (scene, number)


def test_tags_are_what_the_scene_shows() -> None:
    for scene in some_scenes("train", 20):
        shown = {thing.shape for thing in scene.objects} | {thing.color for thing in scene.objects}
        assert set(scene.tags) == shown | {f"{scene.background} background"}
        assert scene.tags == [tag for tag in TAGS if tag in scene.tags]


def test_all_numbers_of_objects_occur() -> None:
    assert {len(scene.objects) for scene in some_scenes("train")} == set(range(1, MAX_NUM_OBJECTS + 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fit_into_their_circle(shape: str) -> None:
    assert np.linalg.norm(unit_outline(shape), axis=1).max() <= 0.56


def test_cells_hold_the_object_that_covers_most_of_them() -> None:
    scene = sample_scene("train", 0)
    cells, visible = cell_objects(scene, 10), visible_objects(scene, 100)
    for row in range(10):
        for column in range(10):
            window = visible[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10]
            cover = [(window == number).sum() for number in range(len(scene.objects))]
            assert cells[row, column] == (np.argmax(cover) if max(cover) >= 15 else -1)


def test_labels_of_cells_are_those_of_their_objects() -> None:
    scene = sample_scene("train", 3)
    labels, cells = label_cells([scene], 10), cell_objects(scene, 10)
    assert ((labels.shape[0] > 0) == (cells >= 0)).all()
    for number, thing in enumerate(scene.objects):
        here = cells == number
        assert (labels.shape[0][here] == SHAPES.index(thing.shape) + 1).all()
        assert np.allclose(labels.box[0][here], thing.box, atol=1e-6)


def test_scenes_drawn_in_parts_are_those_drawn_at_once() -> None:
    pixels, labels = labelled_scenes("train", 3, 30, 10, start=2, processes=1)
    assert np.array_equal(pixels[1], render(sample_scene("train", 3), 30))
    assert len(labels) == 3
