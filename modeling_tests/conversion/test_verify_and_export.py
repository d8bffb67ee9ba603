import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import convert_lion
from export_original import main as export
from transformers_lion import LionForConditionalGeneration
from verify_checkpoint import main as verify


def sources(files: Path, **changed: Path) -> list[str]:
    paths = {
        "lion": files / "lion.pth",
        "vision": files / "eva_vit.pth",
        "language-model": files / "llm",
        "qformer-tokenizer": files / "bert",
        "overrides": files / "overrides.json",
        **changed,
    }
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))]


@pytest.fixture
def folder(lion_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(lion_folder, tmp_path / "lion")


def edit(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_converted_folder_is_equal_to_its_sources(
    lion_files: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify([str(folder), *sources(lion_files)]) == 0
    rows = [line.rsplit(maxsplit=4) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0].strip() for row in rows] == [
        "vision tower", "Q-Former", "aggregator", "soft prompt", "adapters and routers", "language model",
    ]  # fmt: skip
    assert all(row[1] == row[2] and float(row[4]) == 0 for row in rows)
    assert sum(int(row[1]) for row in rows) == len(load_file(folder / "model.safetensors"))


def test_a_single_changed_value_is_found_in_its_part(
    lion_files: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["aggregator.layers.1.output.dense.bias"][3] += 0.25

    edit(folder, change)
    assert verify([str(folder), *sources(lion_files)]) == 1
    printed = capsys.readouterr()
    assert "error: 1 tensors differ from their sources: aggregator.layers.1.output.dense.bias." in printed.err
    row = next(line for line in printed.out.splitlines() if line.startswith("aggregator")).split()
    assert int(row[1]) - int(row[2]) == 1
    assert float(row[4]) == pytest.approx(0.25, rel=1e-3)


def test_tensors_on_one_side_only_are_named(lion_files: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, lambda tensors: tensors.pop("soft_prompt.weight"))
    assert verify([str(folder), *sources(lion_files)]) == 1
    assert "soft_prompt.weight" in capsys.readouterr().err


BIAS = "aggregator.layers.1.output.dense.bias"


def rewrite(name: str, old: str, new: str) -> Any:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


def write(name: str, content: str) -> Any:
    return lambda folder: (folder / name).write_text(content)


def cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


BROKEN = {
    "integers": (lambda folder: edit(folder, lambda tensors: tensors.update({BIAS: tensors[BIAS].int()})), [BIAS]),
    "truncated weights": (cut_off, ["model.safetensors", "truncated"]),
    "an index of nothing": (write("model.safetensors.index.json", "[]"), ["index.json", "list"]),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), ["config.json", "no such file"]),
    "another configuration": (
        rewrite("config.json", '"hidden_act": "gelu"', '"hidden_act": "relu"'), ["hidden_act", "'relu'", "'gelu'"]
    ),
    "another tokenizer": (rewrite("tokenizer.json", "extra_id_7", "extra_id_x"), ["the vocabulary of the tokenizer"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["no tokenizer found"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_differs_from_the_conversion_is_reported(
    what: str, lion_files: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = BROKEN[what]
    change(folder)
    assert verify([str(folder), *sources(lion_files)]) == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert all(word in error for word in words), error


def test_a_folder_in_bfloat16_is_compared_in_bfloat16(lion_files: Path, folder: Path) -> None:
    LionForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert verify([str(folder), *sources(lion_files)]) == 0


@pytest.mark.parametrize("lion", ["lion.pth", "lion_full.pth", "lion_qformer.pth", "lion_aggregator.pth"])
def test_an_export_equals_the_original(lion: str, lion_files: Path, tmp_path: Path) -> None:
    folder = convert_lion(lion_files, tmp_path / "lion", lion)
    full = ["--full"] if "full" in lion else []
    assert export([str(folder), "--output", str(tmp_path / "back.pth"), *full]) == 0
    original = torch.load(lion_files / lion)["model"]
    exported = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert exported.keys() == original.keys()
    for key, tensor in original.items():
        alias_in_release = key.endswith("embed_tokens.weight") and not full
        expected = tensor.bfloat16() if alias_in_release else tensor
        assert exported[key].dtype == expected.dtype, key
        assert torch.equal(exported[key], expected), key


def test_a_fine_tuned_model_goes_back_and_forth_bit_by_bit(lion_files: Path, folder: Path, tmp_path: Path) -> None:
    model = LionForConditionalGeneration.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter." in name or name.startswith(("qformer", "aggregator", "soft_prompt")):
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned", max_shard_size="2MB")
    shutil.copytree(folder / "qformer_tokenizer", tmp_path / "tuned" / "qformer_tokenizer")
    files = shutil.copytree(lion_files, tmp_path / "files")
    (files / "lion.pth").unlink()
    assert export([str(tmp_path / "tuned"), "--output", str(files / "lion.pth")]) == 0
    again = LionForConditionalGeneration.from_pretrained(convert_lion(files, tmp_path / "again"))
    expected = dict(model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in again.named_parameters())


def test_an_export_overwrites_nothing_and_names_foreign_tensors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "back.pth").touch()
    assert export([str(folder), "--output", str(tmp_path / "back.pth")]) == 1
    assert "already exists" in capsys.readouterr().err
    edit(folder, lambda tensors: tensors.update({"foreign.weight": torch.ones(1)}))
    assert export([str(folder), "--output", str(tmp_path / "other.pth")]) == 1
    assert "foreign.weight" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth", "lion"]


INCOMPLETE = {
    "a missing part": (lambda tensors: tensors.pop(BIAS), [BIAS, "missing"]),
    "another shape": (lambda tensors: tensors.update({BIAS: torch.ones(5)}), [BIAS, "(5,)", "(32,)"]),
    "NaN": (lambda tensors: tensors[BIAS].fill_(torch.nan), [BIAS, "32 NaN"]),
    "integers": (lambda tensors: tensors.update({BIAS: tensors[BIAS].int()}), [BIAS, "int32"]),
    "no embedding table": (lambda tensors: tensors.pop("language_model.shared.weight"), ["shared.weight", "missing"]),
}


@pytest.mark.parametrize("what", INCOMPLETE)
def test_an_incomplete_lion_is_not_exported(
    what: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = INCOMPLETE[what]
    edit(folder, change)
    assert export([str(folder), "--output", str(tmp_path / "deep" / "back.pth")]) == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert all(word in error for word in words), error
    assert [path.name for path in tmp_path.iterdir()] == ["lion"]


def test_another_model_is_not_exported(lion_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (("llm", "'t5'"), ("lion.pth", "no such folder"), ("bert", "'bert'")):
        assert export([str(lion_files / name), "--output", str(tmp_path / "back.pth")]) == 1
        assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
