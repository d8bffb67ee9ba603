"""The content of model cards, and that their examples run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import model_card as card_module
from model_card import count_parameters, in_words, metadata, model_card, paper_numbers, size_of
from ram.conftest import convert_ram
from ram.recipe import write_ram_files
from remote_code import add_code
from transformers_lion import LionConfig, LionForConditionalGeneration

XL: dict[str, Any] = {}
XXL: dict[str, Any] = {"text_config": {"d_model": 4096, "d_ff": 10240, "num_heads": 64}}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(lion_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(lion_folder, tmp_path / "lion"))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def run(card: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The variables that each Python block of a card defines."""
    Image.radial_gradient("L").convert("RGB").resize((64, 43)).save(where / "photo.jpg")
    monkeypatch.chdir(where)
    namespaces: list[dict[str, Any]] = []
    for block in BLOCK.findall(card):
        namespaces.append({"__name__": "card"})
        exec(compile(block, "card", "exec"), namespaces[-1])
    return namespaces


def test_the_examples_of_the_card_run(lion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "lion").symlink_to(lion_folder)
    pipeline_block, step_by_step = run(model_card(lion_folder, "user/lion"), tmp_path, monkeypatch)
    assert pipeline_block["caption"]
    assert pipeline_block["answer"]
    assert isinstance(step_by_step["entities"], list)


def test_the_metadata_is_what_the_hub_reads(lion_folder: Path) -> None:
    data = ModelCard(model_card(lion_folder, "user/lion")).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-text-to-text"
    assert data.license == "apache-2.0"
    assert data.language == "en"
    assert {"lion", "image-to-text", "visual-grounding"} <= set(data.tags)
    assert data.base_model is None, "sizes that are nobody's have no known origin"


@pytest.mark.parametrize(("fields", "size"), [(XL, "xl"), (XXL, "xxl")])
def test_base_models_follow_from_the_sizes(fields: dict[str, Any], size: str) -> None:
    assert metadata(LionConfig(**fields)).base_model == [f"google/flan-t5-{size}", "google-bert/bert-base-uncased"]
    stage_two = metadata(LionConfig(visual_branch="aggregator", **fields), ["user/parent"])
    assert stage_two.base_model == ["user/parent", f"google/flan-t5-{size}"]


@pytest.mark.parametrize(
    ("fields", "shown", "hidden"),
    [(XL, ("LION-4B", "138.20", "82"), "139.25"), (XXL, ("LION-12B", "139.25"), "138.20")],
)
def test_cards_of_the_papers_sizes_show_its_results_as_the_papers(
    fields: dict[str, Any], shown: tuple[str, ...], hidden: str
) -> None:
    section = paper_numbers(LionConfig(**fields))
    assert all(text in section for text in shown)
    assert hidden not in section
    assert "**the paper's**" in section
    assert "not measured with the files in this repository" in section


@pytest.mark.parametrize(
    "fields",
    [
        {"visual_branch": "qformer"},
        {"text_config": {"num_layers": 12}},
        {"vision_config": {"num_hidden_layers": 40}},
    ],
)
def test_no_other_model_shows_the_papers_results(fields: dict[str, Any]) -> None:
    assert paper_numbers(LionConfig(**fields)) == ""


def test_a_small_model_is_not_named_like_a_large_one(lion_folder: Path) -> None:
    assert size_of(LionConfig.from_pretrained(lion_folder)) is None
    card = model_card(lion_folder)
    assert "FlanT5-X" not in card
    assert "Results of the paper" not in card


def test_parameters_are_counted_in_the_files(
    lion_folder: Path, lion_model: LionForConditionalGeneration, tmp_path: Path
) -> None:
    expected = sum(tensor.numel() for tensor in lion_model.parameters())
    assert dict(count_parameters(lion_folder)) == {"F32": expected}
    LionForConditionalGeneration.from_pretrained(lion_folder, dtype=torch.bfloat16).save_pretrained(
        tmp_path, max_shard_size="500KB"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert sum(count_parameters(tmp_path).values()) == expected
    assert f"| Parameters | {in_words(expected)} (F32 100%) |" in model_card(lion_folder)


@pytest.mark.parametrize(
    ("count", "words"),
    [(999, "999"), (1_353_815, "1.35 million"), (4_047_000_000, "4.05 billion"), (12_700_000_000, "12.7 billion")],
)
def test_counts_have_three_digits(count: int, words: str) -> None:
    assert in_words(count) == words


def test_the_prompts_are_those_of_the_folders_processor(folder: Path) -> None:
    edit(folder / "processor_config.json", caption_prompt="Say it briefly.", tag_prompt="<extra_id_0> sees {tags}. ")
    card = model_card(folder)
    assert "| a caption | `Say it briefly.` | `image_level` |" in card
    assert "> <extra_id_0> sees {tags}." in card
    assert "coordinates.` | `region_level` |" in card


def test_the_visual_branch_is_named(folder: Path) -> None:
    assert "`both`" in model_card(folder)
    edit(folder / "config.json", visual_branch="qformer")
    card = model_card(folder)
    assert "`qformer`" in card
    assert "a training stage, not the full LION" in card
    assert 'task_type="image_level"' in card


def test_a_tagger_is_mentioned_if_there_is_one(folder: Path, tmp_path: Path) -> None:
    assert "has no tagger" in model_card(folder)
    assert "RAM (the tagger" not in model_card(folder)
    assert convert_ram(write_ram_files(tmp_path / "ram"), folder / "tagger") == 0
    card = model_card(folder)
    assert "includes a tagger, RAM, in `tagger/`" in card
    assert "| RAM (the tagger in `tagger/`) | Apache-2.0 |" in card


def test_every_license_and_the_citation_are_included(lion_folder: Path) -> None:
    card = model_card(lion_folder)
    for part in (
        "original code | MIT",
        "EVA-CLIP (the vision tower) | MIT",
        "FlanT5 (the language model) | Apache-2.0",
    ):
        assert part in card
    assert "@inproceedings{chen2024lion" in card
    assert "2311.11860" in card


def test_trust_remote_code_is_shown_only_if_the_folder_has_the_code(folder: Path) -> None:
    assert "trust_remote_code" not in model_card(folder)
    assert model_card(folder, with_code=True).count(", trust_remote_code=True)") == 3
    add_code(folder)
    card = model_card(folder)
    assert card.count(", trust_remote_code=True)") == 3
    assert not any("import transformers_lion" in block for block in BLOCK.findall(card))


def test_the_paper_has_as_many_numbers_as_names() -> None:
    for numbers in card_module.PAPER_NUMBERS.values():
        assert len(numbers["grounding"]) == len(card_module.GROUNDING_ROWS)
        assert len(numbers["captions"]) == len(card_module.CAPTION_ROWS)
        assert len(numbers["questions"]) == len(card_module.QUESTION_ROWS)
