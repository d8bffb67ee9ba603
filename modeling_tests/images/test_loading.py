"""One image by every entrance: the same upright pixels of 8 bits, for drawing and measuring too."""

import base64
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from transformers_lion import LionImageProcessor, LionProcessor, draw_boxes, to_rgb
from transformers_lion.demo.uploads import open_upload
from transformers_lion.evaluation.answering import open_image as open_in_evaluation
from transformers_lion.images import find_size, flatten, is_batch, load_rgb_images, loading, upright_size
from transformers_lion.images.files import open_image_file as open_by_command
from transformers_lion.pipelines import as_input, find_image
from transformers_lion.training.records import open_image as open_in_records
from transformers_lion.training.records import parse_record

TONES = np.linspace(0, 65535, 20 * 30).reshape(20, 30)
COLORS = np.random.RandomState(0).randint(0, 256, (20, 30, 3), dtype=np.uint8)
RECORD = {"question": "What is it?", "answer": "a ramp"}


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def content_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GREY = Image.fromarray((TONES / 257).astype(np.uint8))
DEEP = (TONES.astype(np.uint16) >> 8).astype(np.uint8)
DARK = np.arange(600, dtype=np.uint16).reshape(20, 30) // 3
IMAGES: dict[str, tuple[bytes, np.ndarray]] = {
    "8 bits": (content_of(Image.fromarray(COLORS), "PNG"), COLORS),
    "turned": (content_of(Image.fromarray(COLORS), "PNG", exif=turned(6)), np.rot90(COLORS, -1)),
    "16 bits": (content_of(Image.fromarray(TONES.astype(np.uint16)), "PNG"), DEEP),
    "16 bits, dark": (content_of(Image.fromarray(DARK), "PNG"), np.zeros((20, 30), np.uint8)),
    "16 bits, turned": (content_of(Image.fromarray(TONES.astype(np.uint16)), "PNG", exif=turned(8)), np.rot90(DEEP)),
    "16 bits, big-endian": (
        content_of(Image.frombytes("I;16B", (30, 20), TONES.astype(">u2").tobytes()), "TIFF"), DEEP,
    ),
    "16 bits, dark, in 32": (b"P5 30 20 65535\n" + DARK.astype(">u2").tobytes(), np.zeros((20, 30), np.uint8)),
    "floats": (content_of(Image.fromarray((TONES / 65535).astype(np.float32)), "TIFF"),
               np.rint(TONES / 65535 * 255).astype(np.uint8)),
}  # fmt: skip


def as_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def saved(content: bytes, folder: Path) -> str:
    path = folder / "image"
    path.write_bytes(content)
    return str(path)


def in_message(part: dict[str, Any]) -> Image.Image:
    return to_rgb(find_image([{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]))


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + as_text(content)


def decoded(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def by_gradio(content: bytes, folder: Path) -> Image.Image:
    return open_upload(saved(content, folder))


ENTRANCES: dict[str, Callable[[bytes, Path], Image.Image]] = {
    "path": lambda content, folder: to_rgb(Path(saved(content, folder))),
    "path as text": lambda content, folder: to_rgb(saved(content, folder)),
    "bytes": lambda content, folder: to_rgb(content),
    "memory": lambda content, folder: to_rgb(memoryview(content)),
    "stored image": lambda content, folder: to_rgb({"bytes": content, "path": "elsewhere.png"}),
    "stored path": lambda content, folder: to_rgb({"bytes": None, "path": saved(content, folder)}),
    "image": lambda content, folder: to_rgb(Image.open(io.BytesIO(content))),
    "image that was decoded": lambda content, folder: to_rgb(decoded(content)),
    "base64": lambda content, folder: to_rgb(as_text(content)),
    "base64 in lines": lambda content, folder: to_rgb(base64.encodebytes(content).decode()),
    "data URI": lambda content, folder: to_rgb(data_uri(content)),
    "data URI for URLs": lambda content, folder: to_rgb(
        "data:;base64," + base64.urlsafe_b64encode(content).decode().rstrip("=")
    ),
    "data URI without base64": lambda content, folder: to_rgb(
        "data:image/png," + "".join(f"%{value:02X}" for value in content)
    ),
    "message": lambda content, folder: in_message({"type": "image", "path": saved(content, folder)}),
    "message with an image": lambda content, folder: in_message(
        {"type": "image", "image": Image.open(io.BytesIO(content))}
    ),
    "image_url": lambda content, folder: in_message(
        {"type": "image_url", "image_url": {"url": data_uri(content), "detail": "low"}}
    ),
    "image_url as text": lambda content, folder: in_message({"type": "image_url", "image_url": data_uri(content)}),
    "pipeline": lambda content, folder: to_rgb(as_input({"bytes": content, "path": None})["image"]),
    "record": lambda content, folder: open_in_records(parse_record({**RECORD, "image": saved(content, folder)}).image),
    "record with bytes": lambda content, folder: open_in_records(
        parse_record({**RECORD, "image": {"bytes": content, "path": None}}).image
    ),
    "record with a data URI": lambda content, folder: open_in_records(
        parse_record({**RECORD, "image": data_uri(content)}).image
    ),
    "evaluation": lambda content, folder: open_in_evaluation(Path(saved(content, folder)).name, folder),
    "command": lambda content, folder: open_by_command(saved(content, folder)),
    "demo": by_gradio,
    "drawing": lambda content, folder: draw_boxes(content, []),
    "drawing on an image": lambda content, folder: draw_boxes(Image.open(io.BytesIO(content)), []),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("name", IMAGES)
def test_every_entrance_gives_the_same_upright_pixels(name: str, entrance: str, tmp_path: Path) -> None:
    content, pixels = IMAGES[name]
    expected = np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
    found = ENTRANCES[entrance](content, tmp_path)
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), expected)
    assert np.array_equal(np.asarray(to_rgb(found)), expected)  # nothing is turned a second time


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_measured_as_it_is_seen(name: str, tmp_path: Path) -> None:
    content, pixels = IMAGES[name]
    size = pixels.shape[1], pixels.shape[0]
    for image in (content, saved(content, tmp_path), Image.open(io.BytesIO(content)), data_uri(content)):
        assert upright_size(image) == find_size(image) == size
    assert find_size((3, 4)) == find_size([3, 4]) == find_size(np.array([3, 4])) == (3, 4)
    assert find_size(None) is None


def test_boxes_of_an_answer_are_in_pixels_of_the_upright_image(lion_processor: LionProcessor) -> None:
    content = IMAGES["turned"][0]  # 20 wide and 30 high, but stored the other way round
    found = lion_processor.post_process_generation(
        "a dog [0.5,0.1,1.0,0.5]", image_size=Image.open(io.BytesIO(content))
    )
    assert found[1][0][2] == [(10.0, 3.0, 20.0, 15.0)]
    drawn = np.asarray(draw_boxes(content, found[1], labels=[""]))
    changed = np.argwhere((drawn != np.rot90(COLORS, -1)).any(-1))
    assert changed.min(0).tolist() == [2, 9]  # a white rim of one pixel around the box
    assert changed.max(0).tolist() == [16, 19]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_images_are_turned_as_pillow_turns_them(kind: str, orientation: int, tmp_path: Path) -> None:
    options = {"save_all": True, "append_images": [GREY.convert("RGB")]} if kind == "MPO" else {}
    content = content_of(Image.fromarray(COLORS), kind, exif=turned(orientation), **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(np.asarray(to_rgb(content)), np.asarray(expected))
    assert upright_size(content) == expected.size


def test_an_orientation_in_xmp_counts_once() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    found = to_rgb(content_of(Image.fromarray(COLORS), "PNG", pnginfo=info))
    assert np.array_equal(np.asarray(to_rgb(found)), np.rot90(COLORS, -1))


BROKEN_EXIF = {
    "no block": b"This is no EXIF block at all.",
    "nothing behind its name": b"Exif\0\0",
    "garbage": b"Exif\0\0garbage and garbage",
    "cut": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03",
    "leads out of the file": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "a text for a number": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("block", BROKEN_EXIF.values(), ids=BROKEN_EXIF.keys())
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_is_ignored(kind: str, block: bytes) -> None:
    content = content_of(Image.fromarray(COLORS), kind, exif=block)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(np.asarray(to_rgb(content)), expected)
    assert upright_size(content) == (30, 20)


@pytest.mark.parametrize("entrance", ["path", "bytes", "data URI", "demo", "record", "command"])
def test_an_exif_block_whose_checksum_is_wrong_is_ignored(entrance: str, tmp_path: Path) -> None:
    content = bytearray(IMAGES["turned"][0])
    content[content.index(b"eXIf") + 6] ^= 0xFF
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(content))
    assert np.array_equal(np.asarray(ENTRANCES[entrance](bytes(content), tmp_path)), COLORS)


# --- arrays and containers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1.0, 1.0000001, 1.0005])
def test_floats_that_rounding_brought_above_1_are_fractions_all_the_same(largest: float) -> None:
    array = np.full((4, 5), 0.5, np.float32)
    array[0, 0], array[0, 1] = largest, -1e-7
    assert np.asarray(to_rgb(array))[0, :3, 0].tolist() == [255, 0, 128]


@pytest.mark.parametrize("dtype", [">u2", "<u2", np.uint16])
@pytest.mark.parametrize("tones", [TONES, DARK])
def test_arrays_of_16_bits_are_tones_in_either_byte_order(tones: np.ndarray, dtype: Any) -> None:
    expected = (tones.astype(np.uint16) >> 8).astype(np.uint8)
    assert np.array_equal(np.asarray(to_rgb(tones.astype(dtype)))[..., 0], expected)


def names_and_images(folder: Path) -> Iterator[tuple[str, Any]]:
    path = saved(IMAGES["8 bits"][0], folder)
    content = IMAGES["8 bits"][0]
    smaller = COLORS[:10]
    yield "array of paths", np.array([path, path])
    yield "array of path objects", np.array([Path(path), Path(path)])
    yield "array of images of one size", list_array([COLORS, COLORS])
    yield "array of images of several sizes", list_array([COLORS, smaller])
    yield "NumPy's own array of objects", np.array([COLORS, COLORS], dtype=object)
    yield "array of bytes", np.array([content, content], dtype=object)
    yield "rows of paths", np.array([[path], [path]])
    yield "column", Column([path, path])
    yield "stored images", [{"bytes": content, "path": None}, {"bytes": None, "path": path}]
    yield "iterator", iter([path, content])
    yield "tuple", (path, COLORS)


def list_array(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


class Column:
    """What pandas' and other tables' columns have in common."""

    ndim = 1

    def __init__(self, values: list[Any]):
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


def test_containers_of_images_are_lists(tmp_path: Path) -> None:
    for name, images in names_and_images(tmp_path):
        assert is_batch(images), name
        found = load_rgb_images(images)
        assert len(found) == 2, name
        assert np.array_equal(np.asarray(found[0]), COLORS), name


def test_one_image_is_no_list() -> None:
    for image in ("a.png", b"a", {"bytes": b"a"}, COLORS, GREY, torch.zeros(3, 4, 4), memoryview(b"a")):
        assert not is_batch(image)
        assert len(list(flatten(image))) == 1


def test_a_list_array_goes_through_the_processor(lion_processor: LionProcessor) -> None:
    images = list_array([COLORS, COLORS[:10]])
    batch = lion_processor(images, ["What is it?"] * 2, return_tensors="pt")
    each = [lion_processor(image, "What is it?", return_tensors="pt")["pixel_values"] for image in images]
    assert torch.equal(batch["pixel_values"], torch.cat(each))


@pytest.mark.parametrize(("shape", "warned"), [((3, 20, 30), True), ((3, 1, 20, 30), False), ((20, 30, 3), False)])
def test_an_array_that_may_be_grey_images_is_named(
    shape: tuple[int, ...], warned: bool, lion_processor: LionProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(loading, "logger", SimpleNamespace(warning=said.append))
    lion_processor(np.zeros(shape, np.uint8), ["a", "b", "c"], return_tensors="pt")
    assert [("(3, 1, 20, 30)" in text) for text in said] == [True] * warned


def test_several_grey_images_in_one_array_are_refused_by_their_shape() -> None:
    with pytest.raises(ValueError, match=r"\(5, 20, 30\) is not an image.* \(N, 1, H, W\)"):
        to_rgb(np.zeros((5, 20, 30), np.uint8))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"url": "a.png"}, "expected a mapping.*'url'"),
        ({"bytes": None, "path": None}, "expected a mapping"),
        (b"This is not an image.", "Image bytes is not an image"),
        ("data:image/png;base64,!!!", "base64"),
        ("data:text/html,<b>no</b>", "not an image"),
        ("A" * 100, "no such file, and it is not a base64-encoded image"),
        (".", "folder"),
    ],
)
def test_what_is_no_image_is_named(image: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_rgb(image)


# --- copies -----------------------------------------------------------------------------------------------------------


def test_an_image_that_is_upright_rgb_is_not_copied() -> None:
    image = Image.fromarray(COLORS)
    assert to_rgb(image) is image
    opened = Image.open(io.BytesIO(IMAGES["8 bits"][0]))
    assert to_rgb(opened) is opened


def test_an_image_of_the_users_is_not_changed() -> None:
    image = Image.fromarray(COLORS)
    image.info["transparency"] = (0, 0, 0)
    drawn = draw_boxes(image, [("a dog", (0, 5), [(2, 2, 20, 15)])])
    assert image.info == {"transparency": (0, 0, 0)}
    assert np.array_equal(np.asarray(image), COLORS)
    assert not np.array_equal(np.asarray(drawn), COLORS)


def test_what_comes_out_of_a_file_can_be_sent_to_another_process(tmp_path: Path) -> None:
    for content, _ in IMAGES.values():
        image = to_rgb(saved(content, tmp_path))
        assert pickle.loads(pickle.dumps(image)).tobytes() == image.tobytes()


def test_color_profiles_are_kept_for_drawings() -> None:
    content = content_of(GREY.convert("RGBA"), "PNG", icc_profile=b"a profile")
    assert to_rgb(content).info == {"icc_profile": b"a profile"}


def test_images_are_opened_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no more than one is in memory at its full size; the first step of each is to be made small."""
    events: list[str] = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda *args, **kwargs: events.append("small") or resize(*args, **kwargs)
    )

    def read() -> Iterator[bytes]:
        for _ in range(3):
            events.append("opened")
            yield IMAGES["8 bits"][0]

    LionImageProcessor(size={"height": 8, "width": 8})(read(), return_tensors="pt")
    assert events[:6] == ["opened", "small"] * 3


# --- plug-ins ---------------------------------------------------------------------------------------------------------


class MadeUpImage(Image.Image):
    pass


def test_an_installed_plug_in_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A format that Pillow does not know, and a package that teaches it."""
    accepted = b"\0\0\0\x18ftypheic"
    plug_in = SimpleNamespace(register_heif_opener=lambda: Image.register_open("MADE-UP", open_made_up, is_made_up))

    def is_made_up(prefix: bytes) -> bool:
        return prefix.startswith(accepted[:12])

    def open_made_up(file: Any, name: Any) -> Image.Image:
        return GREY.copy()

    path = tmp_path / "photo.HEIC"
    path.write_bytes(accepted)
    loading.register_plug_ins.cache_clear()
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not an image in a known format\. To read it: pip install pillow-heif\."):
        to_rgb(path)
    loading.register_plug_ins.cache_clear()
    monkeypatch.setattr(loading, "find_spec", lambda name: name == "pillow_heif" or None)
    monkeypatch.setattr(loading, "import_module", lambda name: plug_in)
    try:
        assert to_rgb(path).size == GREY.size
    finally:
        Image.ID.remove("MADE-UP")
        del Image.OPEN["MADE-UP"]
        loading.register_plug_ins.cache_clear()
