"""Dense labels from the renderer: the object in each cell of a grid, with its attributes.

The vision tower of the small world learns these labels in stage 0, and its language model reads them as words.

Shape letters: N scenes, G cells on a side, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from multiprocessing import get_context

import numpy as np

from .scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, render, sample_scene, visible_objects

MIN_COVER = 0.15
"""Minimum fraction of a cell that an object must cover."""


@dataclass(frozen=True)
class CellLabels:
    """Labels of the cells of N scenes; classes start at 1, and 0 means no object.

    Attributes:
        color, shape, size: (N, G, G) int64.
        box: (N, G, G, 4) float32, the whole box of the object in the cell, in fractions of the image.
        background: (N,) int64, class of the background, from 0.
    """

    color: np.ndarray
    shape: np.ndarray
    size: np.ndarray
    box: np.ndarray
    background: np.ndarray

    def __getitem__(self, rows: np.ndarray | slice) -> "CellLabels":
        return CellLabels(*(getattr(self, part.name)[rows] for part in fields(self)))

    def __len__(self) -> int:
        return len(self.background)


def cell_objects(scene: Scene, grid: int, pixels: int = 10) -> np.ndarray:
    """Return the index (G, G) of the object that covers most of each cell, -1 if none covers `MIN_COVER` of it."""
    visible = visible_objects(scene, grid * pixels).reshape(grid, pixels, grid, pixels)
    cover = np.stack([(visible == number).mean(axis=(1, 3)) for number in range(len(scene.objects))])
    return np.where(cover.max(axis=0) >= MIN_COVER, cover.argmax(axis=0), -1)


def label_cells(scenes: Sequence[Scene], grid: int) -> CellLabels:
    """Return the labels of the cells of scenes."""
    rows = []
    for scene in scenes:
        table = np.zeros(
            (len(scene.objects) + 1, 7), dtype=np.float32
        )  # the last row, with index -1, stands for no object
        for number, thing in enumerate(scene.objects):
            classes = list(COLORS).index(thing.color), SHAPES.index(thing.shape), list(SIZES).index(thing.size)
            table[number] = [*(index + 1 for index in classes), *thing.box]
        rows.append(table[cell_objects(scene, grid)])
    stacked = np.stack(rows)
    color, shape, size = (stacked[..., index].astype(np.int64) for index in range(3))
    background = np.array([BACKGROUNDS.index(scene.background) for scene in scenes])
    return CellLabels(color, shape, size, stacked[..., 3:], background)


def render_batch(scenes: Sequence[Scene], size: int) -> np.ndarray:
    """(N, size, size, 3) uint8."""
    return np.stack([np.asarray(render(scene, size)) for scene in scenes])


def _labelled(task: tuple[str, int, range, int, int]) -> tuple[np.ndarray, CellLabels]:
    split, seed, indices, size, grid = task
    chosen = [sample_scene(split, index, seed) for index in indices]
    return render_batch(chosen, size), label_cells(chosen, grid)


def labelled_scenes(
    split: str, count: int, size: int, grid: int, seed: int = 0, start: int = 0, processes: int = 2
) -> tuple[np.ndarray, CellLabels]:
    """Draw and label the scenes `start` to `start + count` of a split.

    Returns:
        (count, size, size, 3) uint8, and their labels.
    """
    chunks = [range(low, min(low + 500, start + count)) for low in range(start, start + count, 500)]
    tasks = [(split, seed, chunk, size, grid) for chunk in chunks]
    if processes > 1 and len(tasks) > 1:
        with get_context("spawn").Pool(processes) as pool:
            parts = pool.map(_labelled, tasks)
    else:
        parts = [_labelled(task) for task in tasks]
    names = [part.name for part in fields(CellLabels)]
    labels = CellLabels(*(np.concatenate([getattr(part, name) for _, part in parts]) for name in names))
    return np.concatenate([pixels for pixels, _ in parts]), labels


__all__ = ["CellLabels", "cell_objects", "label_cells", "labelled_scenes", "render_batch"]
