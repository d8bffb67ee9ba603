"""Uploaded files: images are opened upright and in RGB, everything else is refused in a sentence."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers_lion.demo.uploads import MAX_MEGAPIXELS, SHOWN_SIDE, for_page, make_room, open_upload


def png_header(width: int, height: int) -> bytes:
    """The header of an image of any size, which takes no memory."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 9) + b"IDAT"


def refusal(file: Path) -> str:
    with pytest.raises(ValueError, match=r"\.$") as caught:
        open_upload(file)
    assert str(file) not in str(caught.value)
    return str(caught.value)


def test_an_image_is_opened_upright_and_in_rgb(tmp_path: Path) -> None:
    image = Image.new("RGBA", (30, 20), (255, 0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    opened = open_upload(tmp_path / "a.png")
    assert (opened.mode, opened.size, opened.getpixel((0, 0))) == ("RGB", (20, 30), (255, 0, 0))


@pytest.mark.parametrize("content", [b"", b"This is text.", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "photo.png").write_bytes(content)
    assert "image" in refusal(tmp_path / "photo.png")


def test_a_format_that_starts_another_program_is_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.eps")
    Image.open(tmp_path / "photo.eps").close()  # Pillow itself would
    assert "supported format (PNG, JPEG" in refusal(tmp_path / "photo.eps")


@pytest.mark.parametrize(("size", "said"), [((10_000, 6_000), "10000 x 6000"), ((60_000, 60_000), "megapixels")])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int], said: str) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    message = refusal(tmp_path / "bomb.png")
    assert said in message
    assert f"{MAX_MEGAPIXELS} megapixels" in message


def test_a_truncated_image_is_refused(tmp_path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    assert "truncated or damaged" in refusal(tmp_path / "cut.png")


@pytest.mark.parametrize("size", [(3000, 1500), (40_000, 3), (2, 9000)])
def test_a_large_image_is_shown_smaller(size: tuple[int, int]) -> None:
    shown = for_page(Image.new("RGB", size))
    assert max(shown.size) == SHOWN_SIDE
    assert min(shown.size) >= 1


def test_the_oldest_files_make_room_for_new_ones(tmp_path: Path) -> None:
    for index in range(4):
        path = tmp_path / f"folder {index}" / "photo.png"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (index, index))
    assert make_room(tmp_path, 150, 450)
    assert [path.parent.name for path in sorted(tmp_path.rglob("*.png"))] == ["folder 1", "folder 2", "folder 3"]
    assert not make_room(tmp_path, 451, 450)
    assert make_room(tmp_path / "not there", 1, 450)


def test_an_image_shown_at_its_own_size_is_not_copied() -> None:
    image = Image.new("RGB", (SHOWN_SIDE, 10))
    assert for_page(image) is image
