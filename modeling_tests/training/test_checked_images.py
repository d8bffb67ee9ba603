"""Images that are decoded to see whether they open: once each, and not again in the next run."""

import os
from pathlib import Path
from typing import Any

import pytest

from training.record_files import good_record, make_image, png, write_images
from transformers_lion.training import RecordReport, checked_images, load_records
from transformers_lion.training.checked_images import CheckedImages
from transformers_lion.training.records import RecordError


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The images that are opened, by the names of their files."""
    seen: list[Any] = []
    original = checked_images.open_image

    def count(image: Any, timeout: float | None = None) -> Any:
        seen.append(os.path.basename(image) if isinstance(image, str) else image)
        return original(image, timeout)

    monkeypatch.setattr(checked_images, "open_image", count)
    return seen


def load(folder: Path, **options: Any) -> tuple[list[str], dict[str, int]]:
    """The sources of good records, and the counts of bad ones."""
    report = RecordReport()
    records = [good_record(seed % 3) for seed in range(6)]
    rows = load_records(records, folder, check_images="decode", on_error="skip", report=report, **options)
    return rows["source"], report.counts


def test_each_image_is_decoded_once_and_not_again_in_the_next_run(tmp_path: Path, opened: list[Any]) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "a1.png").write_bytes(png(1)[:150])
    kept = [f"records[{index}]" for index in (0, 2, 3, 5)]
    note = tmp_path / "images.jsonl"
    assert load(tmp_path, checked_images=note) == (kept, {"unreadable image": 2})
    assert opened == ["a0.png", "a1.png", "a2.png"]
    opened.clear()
    assert load(tmp_path, checked_images=note) == (kept, {"unreadable image": 2})
    assert opened == ["a1.png"]  # what did not open may do so now
    opened.clear()
    (tmp_path / "a0.png").write_bytes(png(3)[:150])  # another file under the same name
    assert load(tmp_path, checked_images=note) == ([kept[1], kept[3]], {"unreadable image": 4})
    assert opened == ["a0.png", "a1.png"]
    opened.clear()
    load(tmp_path)
    assert opened == ["a0.png", "a1.png", "a2.png"]


def test_embedded_images_are_known_by_their_bytes_and_others_are_opened(tmp_path: Path, opened: list[Any]) -> None:
    checked = CheckedImages(tmp_path / "images.jsonl")
    for image in (png(0), png(0), png(1), make_image(0), make_image(0)):
        checked.check(image)
    assert len(opened) == 4
    for _ in range(2):
        with pytest.raises(RecordError, match="not an image in a known format") as caught:
            checked.check(b"no image")
        assert caught.value.kind == "unreadable image"
    assert opened[4:] == [b"no image"]
    with pytest.raises(RecordError, match="does not exist"):
        checked.check(str(tmp_path / "lost.png"))
    assert not (tmp_path / "images.jsonl").exists()


def test_half_a_line_of_a_killed_run_is_passed_over(tmp_path: Path, opened: list[Any]) -> None:
    write_images(tmp_path, 3)
    note = tmp_path / "images.jsonl"
    load(tmp_path, checked_images=note)
    note.write_bytes(note.read_bytes()[:-5])
    opened.clear()
    load(tmp_path, checked_images=note)
    assert opened == ["a2.png"]
    opened.clear()
    load(tmp_path, checked_images=note)
    assert opened in ([], ["a2.png"])  # the line that stands behind the half one is lost
