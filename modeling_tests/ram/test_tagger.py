"""ImageTagger: batches, odd files, and each image once."""

import copy
import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ram.factories import NAMES, noise_image, tiny_ram, tiny_tagger
from transformers_lion.ram import ImageTagger, RamImageProcessor
from transformers_lion.ram.tag_cache import digest_image


def count_images(tagger: ImageTagger) -> list[int]:
    """A list that gets the size of each batch that goes through the model."""
    sizes: list[int] = []
    tagger.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return sizes


def expected_tags(image: Image.Image) -> list[dict[str, Any]]:
    """What model and image processor give, one image by itself."""
    tagger = tiny_tagger()
    pixels = tagger.image_processor(image, return_tensors="pt")
    with torch.no_grad():
        return tagger.model.post_process_tagging(tagger.model(**pixels), threshold=0.665)[0]


def test_the_tags_are_those_of_model_and_image_processor() -> None:
    images = [noise_image(seed, width=20 + seed) for seed in range(5)]
    found = tiny_tagger().tag(images, threshold=0.665, batch_size=2)
    for image, tagged in zip(images, found, strict=True):
        expected = expected_tags(image)
        assert tagged.names == [tag["label"] for tag in expected]
        assert [tag["score"] for tag in tagged.tags] == pytest.approx([tag["score"] for tag in expected], abs=1e-5)
    assert len({tuple(image.names) for image in found}) > 1


def test_images_go_through_the_model_in_batches() -> None:
    tagger = tiny_tagger(batch_size=3)
    sizes = count_images(tagger)
    tagger([noise_image(seed) for seed in range(7)])
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tagger: pickle.loads(pickle.dumps(tagger))])
def test_a_copy_tags_alike_and_keeps_the_folder_of_tags(copied: Callable[[Any], Any], tmp_path: Path) -> None:
    tagger = ImageTagger(tiny_tagger().model, tiny_tagger().image_processor, tag_cache_dir=tmp_path)
    expected = tagger.tag(noise_image())[0].tags
    again = copied(tagger)
    sizes = count_images(again)
    assert again.tag(noise_image())[0].tags == expected
    assert sizes == []
    assert again.tag(noise_image(1))[0].tags == tagger.tag(noise_image(1))[0].tags


def test_one_image_gives_a_list_of_one(tmp_path: Path) -> None:
    noise_image().save(tmp_path / "a.png")
    tagger = tiny_tagger()
    forms = [noise_image(), str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(noise_image())]
    results = [tagger(form, threshold=0.0) for form in forms]
    assert results == [[list(NAMES)]] * 4


def test_no_images_give_no_tags() -> None:
    assert tiny_tagger()([]) == []


def test_an_image_is_tagged_once_whatever_it_is_called(tmp_path: Path) -> None:
    noise_image(0).save(tmp_path / "a.png")
    noise_image(0).save(tmp_path / "b.bmp")
    tagger = tiny_tagger()
    sizes = count_images(tagger)
    found = tagger([tmp_path / "a.png", noise_image(0), noise_image(1), tmp_path / "b.bmp"], threshold=0.4)
    assert sum(sizes) == 2
    assert found[0] == found[1] == found[3]
    assert tagger([noise_image(1), noise_image(0)], threshold=0.4) == [found[2], found[0]]
    assert sum(sizes) == 2


def test_another_selection_is_tagged_anew() -> None:
    tagger = tiny_tagger()
    assert tagger(noise_image(), threshold=0.0) == [list(NAMES)]
    assert tagger(noise_image(), threshold=0.0, drop=["red"]) == [list(NAMES[1:])]
    assert tagger(noise_image(), threshold=1.0) == [[]]


def test_changed_tags_do_not_change_what_is_kept() -> None:
    tagger = tiny_tagger()
    tagger.tag(noise_image(), threshold=0.0)[0].tags.clear()
    kept = tagger.tag(noise_image(), threshold=0.0)[0].tags
    kept[0]["label"] = "changed"
    assert tagger(noise_image(), threshold=0.0) == [list(NAMES)]


def add_to_the_bias(tagger: ImageTagger) -> None:
    with torch.no_grad():
        tagger.model.classifier.bias += 50


def add_past_the_version_counter(tagger: ImageTagger) -> None:
    tagger.model.classifier.bias.data += 50


def raise_no_bar(tagger: ImageTagger) -> None:
    tagger.model.config.thresholds = [0.0] * 5


@pytest.mark.parametrize("change", [add_to_the_bias, add_past_the_version_counter, raise_no_bar])
def test_a_changed_model_tags_anew(change: Any) -> None:
    tagger = tiny_tagger()
    tagger.model.config.thresholds = [1.0 - 1e-6] * 5
    assert tagger(noise_image()) == [[]]
    change(tagger)
    assert tagger(noise_image()) == [list(NAMES)]


def test_a_folder_keeps_tags_across_runs(tmp_path: Path) -> None:
    images = [noise_image(seed) for seed in range(5)]
    found = tiny_tagger(tag_cache_dir=tmp_path).tag(images, threshold=0.45)
    again = tiny_tagger(tag_cache_dir=tmp_path)
    sizes = count_images(again)
    assert again.tag(images, threshold=0.45) == found
    assert sizes == []
    other = ImageTagger(tiny_ram(seed=1), again.image_processor, tag_cache_dir=tmp_path)
    sizes = count_images(other)
    other(images, threshold=0.45)
    assert sum(sizes) == 5


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    tiny_tagger(tag_cache_dir=tmp_path)([noise_image(0), noise_image(1)])
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    file.write_text(text[:-20])  # the last line is cut off
    tagger = tiny_tagger(tag_cache_dir=tmp_path)
    sizes = count_images(tagger)
    tagger([noise_image(0), noise_image(1)])
    assert sizes == [1]


@pytest.fixture
def odd_files(tmp_path: Path) -> dict[str, Path]:
    """Files as data sets have them; of those whose name starts with `bad` nobody can read an image."""
    rgb = noise_image(3, width=24, height=18)
    grey = rgb.convert("L")
    files = {
        "plain.jpg": rgb,
        "grey.png": grey,
        "alpha.png": rgb.convert("RGBA"),
        "grey_alpha.png": rgb.convert("LA"),
        "palette.gif": rgb.convert("P"),
        "bilevel.png": rgb.convert("1"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "deep.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "float.tiff": Image.fromarray(np.asarray(grey).astype(np.float32)),
        "one_pixel.png": rgb.resize((1, 1)),
        "line.png": rgb.resize((300, 1)),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    rgb.save(tmp_path / "turned.jpg", exif=exif)
    rgb.save(tmp_path / "several.gif", save_all=True, append_images=[rgb])
    (tmp_path / "bad_empty.jpg").write_bytes(b"")
    (tmp_path / "bad_text.png").write_text("no image")
    (tmp_path / "bad_cut.jpg").write_bytes((tmp_path / "plain.jpg").read_bytes()[:200])
    (tmp_path / "bad_folder.png").mkdir()
    names = [*files, "turned.jpg", "several.gif", "bad_empty.jpg", "bad_text.png", "bad_cut.jpg", "bad_folder.png"]
    return {name: tmp_path / name for name in [*names, "bad_missing.jpg"]}


def test_what_cannot_be_read_is_named_and_the_others_are_done(
    odd_files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    tagger = tiny_tagger(batch_size=4)
    with caplog.at_level(logging.WARNING):
        found = dict(zip(odd_files, tagger.tag(odd_files.values(), threshold=0.0), strict=True))
    for name, tagged in found.items():
        assert (tagged.tags is None) == name.startswith("bad")
        assert (tagged.error is not None) == name.startswith("bad")
        if tagged.error:
            assert name in tagged.error
            assert tagged.error in caplog.text
        else:
            alone = tiny_tagger().tag(odd_files[name], threshold=0.0)[0]
            assert [tag["score"] for tag in tagged.tags] == pytest.approx([t["score"] for t in alone.tags], abs=1e-5)


def test_things_that_are_no_images_are_reported_too() -> None:
    found = tiny_tagger()([noise_image(), None, 5, np.zeros((2, 2, 2, 2, 2)), noise_image(1)], threshold=0.0)
    assert found == [list(NAMES), None, None, None, list(NAMES)]


def test_a_quiet_run_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tiny_tagger()([noise_image()])
    assert not caplog.records


def test_images_are_read_one_at_a_time() -> None:
    tagger = tiny_tagger(batch_size=2)
    sizes = count_images(tagger)
    seen: list[int] = []

    def read() -> Any:
        for seed in range(6):
            seen.append(sum(sizes))
            yield noise_image(seed)

    assert len(tagger(read(), show_progress=False)) == 6
    assert seen == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize(("count", "shown"), [(3, False), (65, True)])
def test_long_lists_get_a_progress_bar(count: int, shown: bool, capsys: pytest.CaptureFixture) -> None:
    tiny_tagger()([noise_image(seed % 4) for seed in range(count)])
    assert ("Tagging" in capsys.readouterr().err) == shown


def test_a_model_in_training_mode_is_refused() -> None:
    tagger = tiny_tagger()
    tagger.model.train()
    with pytest.raises(ValueError, match="training mode"):
        tagger(noise_image())


def test_a_batch_of_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        tiny_tagger()(noise_image(), batch_size=0)


def test_a_tagger_survives_saving_and_takes_a_dtype(tmp_path: Path) -> None:
    tagger = tiny_tagger()
    tagger.save_pretrained(tmp_path / "model" / "tagger")
    for arguments in ({}, {"dtype": torch.bfloat16, "device": "cpu"}):
        loaded = ImageTagger.from_pretrained(tmp_path / "model", subfolder="tagger", **arguments)
        assert loaded.image_processor.ram_config.num_labels == 5
        assert loaded(noise_image(), threshold=0.0) == [list(NAMES)]
    assert loaded.model.dtype == torch.bfloat16
    assert type(loaded.image_processor) is RamImageProcessor


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_only_the_last_images_tags_stay_in_memory() -> None:
    tagger = tiny_tagger(tag_cache_size=2)
    sizes = count_images(tagger)
    for seed in (0, 1, 0, 2):
        tagger(noise_image(seed), threshold=0.4)
    assert len(sizes) == 3
    tagger(noise_image(0), threshold=0.4)  # was used after 1
    assert len(sizes) == 3
    tagger(noise_image(1), threshold=0.4)
    assert len(sizes) == 4
    with pytest.raises(ValueError, match="-1"):
        tiny_tagger(tag_cache_size=-1)


def test_a_folder_holds_what_memory_does_not(tmp_path: Path) -> None:
    images = [noise_image(seed) for seed in range(6)]
    found = tiny_tagger().tag(images, threshold=0.45)
    for _ in range(2):  # also in a second run
        tagger = tiny_tagger(tag_cache_dir=tmp_path, tag_cache_size=1)
        sizes = count_images(tagger)
        assert tagger.tag(images, threshold=0.45) == tagger.tag(images, threshold=0.45)
        again = tagger.tag(images, threshold=0.45)
        assert [image.names for image in again] == [image.names for image in found]
    assert sizes == []


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    tiny_tagger(tag_cache_dir=tmp_path)([noise_image(0)])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    tiny_tagger(tag_cache_dir=tmp_path)([noise_image(1)])
    tagger = tiny_tagger(tag_cache_dir=tmp_path)
    sizes = count_images(tagger)
    tagger([noise_image(1)])
    assert sizes == []


def test_a_damaged_byte_in_the_folder_is_named(tmp_path: Path) -> None:
    tiny_tagger(tag_cache_dir=tmp_path)([noise_image(0), noise_image(1)])
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) - 30] = 0xFF
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name}, line 2: this tag cache is damaged.*byte {len(content) - 30}"):
        tiny_tagger(tag_cache_dir=tmp_path)([noise_image(0)])


def test_two_runs_may_write_one_folder(tmp_path: Path) -> None:
    first, second = (tiny_tagger(tag_cache_dir=tmp_path, tag_cache_size=0) for _ in range(2))
    first([noise_image(0)], threshold=0.45)
    second([noise_image(1)], threshold=0.45)
    first([noise_image(2)], threshold=0.45)
    images = [noise_image(seed) for seed in range(3)]
    expected = tiny_tagger()(images, threshold=0.45)
    assert first(images, threshold=0.45) == second(images, threshold=0.45) == expected


def test_a_tagger_can_be_copied_and_sent_to_another_process(tmp_path: Path) -> None:
    tagger = tiny_tagger(tag_cache_dir=tmp_path)
    expected = tagger(noise_image(), threshold=0.4)
    for copied in (copy.deepcopy(tagger), pickle.loads(pickle.dumps(tagger))):
        sizes = count_images(copied)
        assert copied(noise_image(), threshold=0.4) == expected
        assert sizes == []  # it has the same folder


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_digest_is_that_of_the_pixels_and_their_layout(mode: str) -> None:
    image = noise_image(0, width=7, height=600).convert(mode)
    pixels = np.asarray(image)
    assert digest_image(image) == hashlib.sha256(f"uint8 {pixels.shape}".encode() + pixels.tobytes()).hexdigest()
    assert digest_image(image.transpose(Image.Transpose.ROTATE_90)) != digest_image(image)
