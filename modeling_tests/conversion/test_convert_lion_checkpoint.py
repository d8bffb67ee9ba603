import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_lion_checkpoint
import shards
from convert_lion_checkpoint import main, resize_positions
from recipe import lion_manifest, seeded_weights
from transformers_lion import LionConfig, LionForConditionalGeneration, LionProcessor

ROOT = Path(__file__).parents[2]


class Files:
    """A copy of the user's files that a test may damage, and the command that converts them."""

    def __init__(self, source: Path, folder: Path):
        self.folder = folder / "files"
        shutil.copytree(source, self.folder)
        self.output = folder / "lion"
        self.arguments: dict[str, Path | str | None] = {
            "--lion": self.folder / "lion.pth",
            "--vision": self.folder / "eva_vit.pth",
            "--language-model": self.folder / "llm",
            "--qformer-tokenizer": self.folder / "bert",
            "--overrides": self.folder / "overrides.json",
            "--output": self.output,
        }

    def convert(self, *options: str) -> int:
        return main([str(part) for pair in self.arguments.items() if pair[1] is not None for part in pair] + [*options])

    def load(self) -> LionForConditionalGeneration:
        return LionForConditionalGeneration.from_pretrained(self.output).eval()

    def edit(self, name: str, change: Any) -> None:
        """Change the state dict of a `.pth`."""
        content = torch.load(self.folder / name)
        change(content.get("model", content))
        torch.save(content, self.folder / name)

    def override(self, **fields: Any) -> None:
        path = self.folder / "overrides.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def files(lion_files: Path, tmp_path: Path) -> Files:
    return Files(lion_files, tmp_path)


def assert_same_parameters(first: torch.nn.Module, second: torch.nn.Module) -> None:
    expected, found = dict(first.named_parameters()), dict(second.named_parameters())
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_the_command_writes_a_complete_folder(lion_files: Path, tmp_path: Path) -> None:
    command = [sys.executable, "conversion/convert_lion_checkpoint.py", "--output", str(tmp_path / "deep" / "lion")]
    for option, name in (("lion", "lion.pth"), ("vision", "eva_vit.pth"), ("language-model", "llm"),
                         ("qformer-tokenizer", "bert"), ("overrides", "overrides.json")):  # fmt: skip
        command += [f"--{option}", str(lion_files / name)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    written = {path.name for path in (tmp_path / "deep" / "lion").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json",
            "chat_template.jinja", "tokenizer.json", "qformer_tokenizer"} <= written  # fmt: skip
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["lion"]


def test_a_fresh_process_loads_the_folder_through_the_auto_classes(lion_folder: Path) -> None:
    program = """
import sys, transformers_lion
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, AutoImageProcessor, AutoConfig
folder = sys.argv[1]
names = [type(auto.from_pretrained(folder)).__name__
         for auto in (AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoImageProcessor)]
print(*names, AutoProcessor.from_pretrained(folder).qformer_tokenizer.bos_token)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program, str(lion_folder)], capture_output=True, text=True, check=True, env=environment
    )
    expected = "LionConfig LionForConditionalGeneration LionProcessor LionImageProcessor [DEC]"
    assert result.stdout.strip() == expected
    assert "Traceback" not in result.stderr


def test_the_generation_defaults_are_the_references(lion_model: LionForConditionalGeneration) -> None:
    defaults = lion_model.generation_config
    assert (defaults.num_beams, defaults.max_new_tokens, defaults.min_length) == (5, 256, 1)
    assert (defaults.repetition_penalty, defaults.do_sample) == (1.5, None)


@pytest.mark.parametrize("layout", ["full", "bare", "bare full"])
def test_other_layouts_of_the_lion_file_give_the_same_model(
    layout: str, files: Files, lion_model: LionForConditionalGeneration
) -> None:
    name = "lion_full.pth" if "full" in layout else "lion.pth"
    if "bare" in layout:
        torch.save(torch.load(files.folder / name)["model"], files.folder / "bare.pth")
        name = "bare.pth"
    files.arguments["--lion"] = files.folder / name
    if "full" in layout:
        files.arguments["--vision"] = None
    assert files.convert() == 0
    assert_same_parameters(files.load(), lion_model)


@pytest.mark.parametrize(("branch", "absent"), [("qformer", "aggregator"), ("aggregator", "qformer")])
def test_a_stage_with_one_branch_gives_a_model_with_one_branch(branch: str, absent: str, files: Files) -> None:
    files.arguments["--lion"] = files.folder / f"lion_{branch}.pth"
    assert files.convert() == 0
    model = files.load()
    assert model.config.visual_branch == branch
    assert model.config.text_config.num_adapters == 1
    assert hasattr(model, branch)
    assert not hasattr(model, absent)


def test_language_models_in_shards_and_pickles_are_read(files: Files, lion_model: LionForConditionalGeneration) -> None:
    folder = files.folder / "llm"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for part, keys in parts.items():
        torch.save({key: tensors[key] for key in keys}, folder / part)
    index = {"weight_map": {key: part for part, keys in parts.items() for key in keys}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert files.convert() == 0
    assert_same_parameters(files.load(), lion_model)


def test_aliases_of_the_embedding_in_half_precision_do_not_replace_it(
    files: Files, lion_model: LionForConditionalGeneration
) -> None:
    def halve(state: dict[str, torch.Tensor]) -> None:
        for key in state:
            if key.endswith("embed_tokens.weight"):
                state[key] = state[key].bfloat16()

    files.edit("lion.pth", halve)
    assert files.convert() == 0
    assert_same_parameters(files.load(), lion_model)


def test_the_vision_towers_40th_block_norm_and_head_are_dropped(
    files: Files, lion_model: LionForConditionalGeneration
) -> None:
    def extend(state: dict[str, torch.Tensor]) -> None:
        state.update(
            {key.replace("blocks.38.", "blocks.39."): state[key] for key in list(state) if "blocks.38." in key}
        )
        state.update({"norm.weight": torch.ones(32), "norm.bias": torch.ones(32)})
        state.update({"head.weight": torch.ones(9, 32), "head.bias": torch.ones(9)})

    files.edit("eva_vit.pth", extend)
    assert files.convert() == 0
    assert_same_parameters(files.load(), lion_model)


def test_a_position_table_of_another_grid_is_resized_with_cls_apart(files: Files) -> None:
    files.override(vision_config={"num_attention_heads": 4, "image_size": 84})
    assert files.convert() == 0
    model = files.load()
    table = model.vision_model.embeddings.position_embedding
    original = torch.load(files.folder / "eva_vit.pth")["pos_embed"]
    assert table.shape == (1, 37, 32)
    assert torch.equal(table[:, 0], original[:, 0])
    assert LionProcessor.from_pretrained(files.output).image_processor.size["height"] == 84
    assert torch.equal(resize_positions(original, 17), original)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_requested_dtype_is_written_and_loaded_by_default(dtype: str, files: Files) -> None:
    files.arguments["--dtype"] = dtype
    assert files.convert() == 0
    assert {tensor.dtype for tensor in load_file(files.output / "model.safetensors").values()} == {
        getattr(torch, dtype)
    }
    assert files.load().language_model.lm_head.weight.dtype == getattr(torch, dtype)


def test_another_set_of_weights_of_other_sizes_is_converted(files: Files) -> None:
    weights = seeded_weights(lion_manifest(), seed=1234)
    keep = {key: tensor for key, tensor in weights.items() if not key.startswith("Qformer.bert.encoder.layer.2.")}
    keep = {key: tensor for key, tensor in keep.items() if not key.startswith("Qformer.bert.encoder.layer.3.")}
    torch.save(keep, files.folder / "lion.pth")
    files.arguments["--vision"] = None
    assert files.convert() == 0
    config = LionConfig.from_pretrained(files.output)
    assert config.qformer_config.num_hidden_layers == 2
    assert torch.equal(files.load().language_projection.bias, weights["t5_proj.bias"])


class Bomb:
    """An object whose unpickling would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "boom"))


def remove(key: str) -> Any:
    return lambda state: state.pop(key)


def drop_block(number: int) -> Any:
    def drop(state: dict[str, torch.Tensor]) -> None:
        for key in [key for key in state if f"blocks.{number}." in key]:
            del state[key]

    return drop


def replace(key: str, tensor: torch.Tensor) -> Any:
    return lambda state: state.update({key: tensor})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("lion.pth", replace("surprise.weight", torch.ones(1)), ["unexpected keys", "surprise.weight"]),
        ("lion.pth", remove("t5_proj.bias"), ["language_projection.bias is missing"]),
        ("lion.pth", remove("query_tokens"), ["query_tokens is missing"]),
        ("lion.pth", replace("t5_proj.bias", torch.ones(5)), ["width 5 (t5_proj.bias)", "has width 48"]),
        (
            "lion.pth",
            replace("t5_proj.weight", torch.ones(48, 5)),
            ["language_projection.weight", "(48, 5)", "(48, 48)"],
        ),
        ("lion.pth", replace("ln_vision.weight", torch.ones(64)), ["vision tower of width 64", "has width 32"]),
        ("lion.pth", replace("t5_proj.weight", torch.full((48, 48), torch.nan)), ["t5_proj.weight contains 2304 NaN"]),
        (
            "eva_vit.pth",
            replace("cls_token", torch.full((1, 1, 32), torch.inf)),
            ["visual_encoder.cls_token contains 32"],
        ),
        (
            "lion.pth",
            replace("t5_model.encoder.embed_tokens.weight", torch.ones(512, 48)),
            ["encoder.embed_tokens", "another language model"],
        ),
        ("eva_vit.pth", remove("blocks.7.attn.q_bias"), ["missing", "blocks.7.attn.q_bias"]),
        ("eva_vit.pth", replace("patch_embed.proj.weight", torch.ones(48, 3, 14, 14)), ["(48", "(32"]),
        ("lion.pth", lambda state: state.update({"epoch": 3}), ["'epoch'", "int"]),
        ("eva_vit.pth", replace("pos_embed", torch.ones(1, 12, 32)), ["12 positions", "not a square grid"]),
        ("eva_vit.pth", drop_block(20), ["visual_encoder.blocks.20 is missing", "38 layers"]),
        ("lion.pth", replace("t5_proj.weight", torch.ones(48, 48, dtype=torch.int32)), ["t5_proj.weight", "int32"]),
        ("lion.pth", replace("t5_proj.weight", torch.ones(48, 48).to_sparse()), ["t5_proj.weight", "sparse"]),
        (
            "lion.pth",
            replace("t5_proj.weight", torch.ones(48, 48, device="meta")),
            ["t5_proj.weight", "without values"],
        ),
        ("lion.pth", replace("t5_proj.weight", torch.ones(0, 48)), ["t5_proj.weight", "(0, 48)"]),
        (
            "lion.pth",
            replace("t5_proj.weight", torch.full((48, 48), 1e300, dtype=torch.float64)),
            ["2304", "too large"],
        ),
        ("lion.pth", replace("t5_proj.bias", torch.tensor(1.0)), ["language_projection.bias", "(), not (48,)"]),
        ("lion.pth", replace("query_tokens", torch.ones(8, 48)), ["query_tokens", "(8, 48)", "3 dimensions"]),
        (
            "lion.pth",
            replace("t5_model.encoder.block.0.layer.1.adapter.adapters.0.down_proj.weight", torch.ones(32, 48)),
            ["adapters.0.down_proj", "(64,), not (32,)"],
        ),
        ("lion.pth", replace(7, torch.ones(1)), ["lion.pth", "key 7"]),
        ("eva_vit.pth", replace("cls_token", torch.ones(3)), ["class_embedding", "(3,)", "(1, 1, 32)"]),
        ("eva_vit.pth", replace("pos_embed", torch.ones(3)), ["pos_embed", "(3,)", "3 dimensions"]),
        (
            "eva_vit.pth",
            replace("pos_embed", torch.ones(1, 17, 3)),
            ["position_embedding", "(1, 17, 3)", "(1, 17, 32)"],
        ),
        (
            "eva_vit.pth",
            replace("blocks.7.attn.q_bias", torch.ones(1, 32)),
            ["blocks.7.attn.q_bias", "(1, 32)", "(32,)"],
        ),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused_by_key(
    name: str, change: Any, words: list[str], files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.edit(name, change)
    assert_refused(files, words, capsys)


def assert_refused(files: Files, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(files.folder.parent.iterdir())
    assert files.convert() == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert all(word in error for word in words), error
    assert sorted(files.folder.parent.iterdir()) == before


def test_files_that_are_not_checkpoints_are_refused_by_name(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    path = files.folder / "lion.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert_refused(files, ["lion.pth", "truncated"], capsys)
    for content in (b"no checkpoint", b"hello world" * 10, b"\x80\x02X"):
        path.write_bytes(content)
        assert_refused(files, ["lion.pth"], capsys)
    path.write_bytes(b"")
    assert_refused(files, ["lion.pth", "is empty"], capsys)
    torch.save([1, 2], path)
    assert_refused(files, ["lion.pth", "list"], capsys)
    torch.save({"model": {}}, path)
    assert_refused(files, ["lion.pth", "empty"], capsys)
    save_file({"a": torch.ones(1)}, path)
    assert_refused(files, ["lion.pth", "a safetensors file"], capsys)
    path.unlink()
    assert_refused(files, ["lion.pth", "no such file"], capsys)
    path.mkdir()
    assert_refused(files, ["lion.pth", "a folder"], capsys)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(
    zipped: bool, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"model": {"a": torch.ones(1)}, "bomb": Bomb(tmp_path / "boom")}
    if zipped:
        torch.save(content, files.folder / "lion.pth")
    else:
        (files.folder / "lion.pth").write_bytes(pickle.dumps({"bomb": Bomb(tmp_path / "boom")}))
    assert_refused(files, ["lion.pth", "refused and not run", "plain data (" if zipped else ""], capsys)
    assert not (tmp_path / "boom").exists()


def test_incomplete_folders_are_refused_by_name(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    (files.folder / "llm" / "model.safetensors").rename(files.folder / "elsewhere")
    assert_refused(files, ["llm", "model.safetensors"], capsys)
    (files.folder / "elsewhere").rename(files.folder / "llm" / "model.safetensors")
    (files.folder / "llm" / "config.json").unlink()
    assert_refused(files, ["config.json"], capsys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--vision": "lion.pth"}, ["lion.pth", "not the file of a vision tower"]),
        ({"--vision": "lion_full.pth"}, ["lion_full.pth", "not the file of a vision tower"]),
        ({"--vision": None}, ["lion.pth", "does not contain a vision tower", "--vision"]),
        ({"--lion": "eva_vit.pth"}, ["LION file", "neither a Q-Former nor"]),
        ({"--lion": "llm"}, ["llm", "a folder"]),
        ({"--language-model": "bert"}, ["bert", "'bert'"]),
        ({"--language-model": "lion.pth"}, ["lion.pth", "no such folder"]),
        ({"--qformer-tokenizer": "llm"}, ["Q-Former's tokenizer has"]),
        ({"--tagger": "bert"}, ["bert", "'ram'"]),
    ],
)
def test_swapped_arguments_are_reported(
    change: dict[str, str | None], words: list[str], files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.arguments.update({option: name and files.folder / name for option, name in change.items()})
    assert_refused(files, words, capsys)


@pytest.mark.parametrize(
    "content",
    ["{}", "no json", "\xff", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../b"}}',
     '{"weight_map": {"a": "b.safetensors"}}'],
)  # fmt: skip
def test_an_index_of_missing_shards_is_refused_by_name(
    content: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    (files.folder / "llm" / "model.safetensors").unlink()
    (files.folder / "llm" / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    assert_refused(files, ["b.safetensors" if "b." in content else "model.safetensors.index.json"], capsys)


def in_shards(folder: Path, more: dict[str, torch.Tensor]) -> None:
    """Move a folder's weights to one shard and `more` to another, and write an index that also lists an alias."""
    names = load_file(folder / "model.safetensors").keys()
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    save_file(more, folder / "second.safetensors")
    weight_map = dict.fromkeys((*names, "encoder.embed_tokens.weight"), "first.safetensors")
    weight_map.update(dict.fromkeys(more, "second.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_may_list_aliases_of_the_embedding_that_its_shards_lack(files: Files) -> None:
    in_shards(files.folder / "llm", {})
    assert files.convert() == 0


def test_a_tensor_in_two_shards_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    in_shards(files.folder / "llm", {"shared.weight": torch.ones(1)})
    assert_refused(files, ["second.safetensors", "shared.weight", "another shard"], capsys)


def test_a_file_saved_from_a_parallel_wrapper_is_read(files: Files, lion_model: LionForConditionalGeneration) -> None:
    state = torch.load(files.folder / "lion.pth")["model"]
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, files.folder / "lion.pth")
    assert files.convert() == 0
    assert_same_parameters(files.load(), lion_model)


def test_a_qformer_tokenizer_of_another_size_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = (files.folder / "bert" / "vocab.txt").read_text().splitlines()
    (files.folder / "bert" / "vocab.txt").write_text("\n".join(vocabulary[:160]))
    assert_refused(files, ["161 tokens including [DEC]", "261 rows"], capsys)


def test_a_tokenizer_larger_than_its_embedding_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    with (files.folder / "bert" / "vocab.txt").open("a") as file:
        file.write("\nonemore\ntwomore\n")
    assert_refused(files, ["Q-Former's tokenizer has 264 tokens", "261 rows"], capsys)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"surprise": 1}, ["'surprise'"]),
        ({"vision_config": {"surprise": 1}}, ["'vision_config.surprise'"]),
        ({"vision_config": {"num_attention_heads": 5}}, ["(5)", "(32)"]),
        ({"vision_config": {"num_attention_heads": "4"}}, ["num_attention_heads", "expected int"]),
        ({"vision_config": 3}, ["vision_config is 3", "JSON object"]),
        ({"vision_config": {"num_hidden_layers": "39"}}, ["num_hidden_layers is '39'"]),
        ({"vision_config": {"num_attention_heads": 4, "image_size": 0}}, ["vision_config.image_size is 0"]),
        ({"vision_config": {"num_attention_heads": 4, "image_size": 13}}, ["image_size is 13", "14"]),
        ({"dtype": "nonsense"}, ["'dtype'", "set by the conversion"]),
        ({"aggregator_config": {"vision_feature_layers": [39, 1]}}, ["block 39", "0 to 38"]),
    ],
)
def test_overrides_that_do_not_fit_are_refused(
    fields: dict[str, Any], words: list[str], files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.override(**fields)
    assert_refused(files, words, capsys)


def test_an_existing_output_is_left_unchanged(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.output.mkdir()
    (files.output / "mine").touch()
    assert_refused(files, ["already exists"], capsys)
    assert (files.output / "mine").exists()


def test_an_output_is_replaced_on_request_once_the_new_one_is_complete(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.convert() == 0
    weights = (files.output / "model.safetensors").read_bytes()
    (files.output / "mine").touch()
    files.edit("lion.pth", replace("t5_proj.weight", torch.full((48, 48), torch.nan)))
    assert files.convert("--overwrite") == 1
    assert (files.output / "model.safetensors").read_bytes() == weights
    assert (files.output / "mine").exists()
    assert files.convert("--overwrite", "--allow-nonfinite") == 0
    assert not (files.output / "mine").exists()
    assert files.load().language_projection.weight.isnan().all()
    assert [path.name for path in files.output.parent.iterdir() if "lion" in path.name] == ["lion"]


def test_weights_are_divided_into_shards_with_an_index(
    files: Files, lion_model: LionForConditionalGeneration, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.convert("--max-shard-size", "0.001") == 0
    shards = sorted(files.output.glob("model-*.safetensors"))
    assert len(shards) > 3
    assert all(shard.stat().st_size < 1_100_000 for shard in shards)
    assert_same_parameters(files.load(), lion_model)
    printed = capsys.readouterr().out
    for shard in shards:
        assert f"sha256 of {shard.name}" in printed
        assert hashlib.sha256(shard.read_bytes()).hexdigest() in printed


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "1e300", "two"])
def test_an_invalid_shard_size_is_refused(size: str, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        files.convert(f"--max-shard-size={size}")
    assert "--max-shard-size" in capsys.readouterr().err
    assert not files.output.exists()


def test_a_value_that_the_dtype_cannot_hold_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.edit("lion.pth", replace("t5_proj.weight", torch.full((48, 48), 1e6)))
    files.arguments["--dtype"] = "float16"
    assert_refused(files, ["t5_proj.weight", "2304", "float16"], capsys)
    files.arguments["--dtype"] = "bfloat16"
    assert files.convert() == 0


def test_the_report_counts_what_was_used_derived_and_dropped(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.convert() == 0
    rows = dict(re.findall(r"^  (\S.*?)  +(\S+)$", capsys.readouterr().out, re.MULTILINE))
    numbers = sum(tensor.numel() for tensor in load_file(files.output / "model.safetensors").values())
    assert rows["numbers written"] == f"{numbers:,}"
    assert rows["tensors derived from several keys"] == "39"
    assert rows["dropped: an alias of the embedding table with the same values"] == "2"
    assert rows["dropped: a buffer that counts 0, 1, 2, ..."] == "1"
    assert rows["dtype"] == "float32"


def test_what_lion_trained_stays_in_float32_on_request(files: Files) -> None:
    assert files.convert("--dtype", "bfloat16", "--trained-in-float32") == 0
    dtypes = {name: tensor.dtype for name, tensor in load_file(files.output / "model.safetensors").items()}
    trained = (
        "qformer.",
        "query_tokens.",
        "language_projection.",
        "aggregator",
        "soft_prompt.",
        "vision_model.post_lay",
    )
    for name, dtype in dtypes.items():
        expected = torch.float32 if name.startswith(trained) or ".adapter." in name else torch.bfloat16
        assert dtype == expected, name
    assert set(dtypes.values()) == {torch.float32, torch.bfloat16}


def test_a_disk_without_room_is_refused_with_both_numbers(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1234, 1234))
    assert_refused(files, ["bytes are needed", "1,234 are free"], capsys)


def test_a_target_that_cannot_be_written_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.arguments["--output"] = Path("/proc/lion")
    assert_refused(files, ["/proc/lion: cannot be written"], capsys)
    files.arguments["--output"] = files.folder / "lion.pth" / "lion"
    assert_refused(files, ["lion.pth"], capsys)


@pytest.mark.parametrize("output", ["files/llm", "files", "files/lion.pth", "files/llm/new", "link"])
def test_a_target_that_would_touch_a_source_is_refused(
    output: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(files.folder / "llm")
    files.arguments["--output"] = tmp_path / output
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert files.convert("--overwrite") == 1
    assert "which is an input" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_failed_run_leaves_no_folders_that_it_made(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.edit("lion.pth", replace("t5_proj.weight", torch.full((48, 48), torch.nan)))
    files.arguments["--output"] = files.output / "deep" / "deeper"
    assert_refused(files, ["NaN"], capsys)


@pytest.mark.parametrize("part", ["llm", "bert"])
def test_a_missing_tokenizer_is_refused_by_folder(part: str, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("spiece.model", "vocab.txt"):
        (files.folder / part / name).unlink(missing_ok=True)
    assert_refused(files, [part, "no tokenizer"], capsys)


def test_a_broken_tokenizer_is_refused_by_folder(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    (files.folder / "llm" / "spiece.model").write_bytes(b"no model")
    assert_refused(files, ["llm", "tokenizer cannot be loaded"], capsys)
    (files.folder / "llm" / "spiece.model").write_bytes(b"")  # transformers would load it without a vocabulary
    assert_refused(files, ["spiece.model", "is empty"], capsys)


def test_another_models_tokenizer_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    (files.folder / "llm" / "spiece.model").unlink()
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(files.folder / "bert" / name, files.folder / "llm" / name)
    assert_refused(files, ["The tokenizer of the language model must be FlanT5's, but is BertTokenizer"], capsys)


def test_code_beside_a_tokenizer_is_not_run(files: Files, tmp_path: Path) -> None:
    configuration = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (files.folder / "llm" / "tokenizer_config.json").write_text(json.dumps(configuration))
    (files.folder / "llm" / "evil.py").write_text(f"open({str(tmp_path / 'boom')!r}, 'w')\nclass Evil: pass\n")
    files.convert()
    assert not (tmp_path / "boom").exists()


def test_a_repository_that_cannot_be_downloaded_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.arguments["--language-model"] = "google/flan-t5-nothing"
    assert_refused(files, ["google/flan-t5-nothing", "the Hub cannot provide it"], capsys)
    files.arguments["--language-model"] = "./nowhere"
    assert_refused(files, ["nowhere: no such folder"], capsys)


def test_a_tensor_that_is_written_wrongly_is_noticed(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_with_a_flipped_bit(folder: Path, shard: shards.Shard, load: Any) -> str:
        digest = shards.write_shard(folder, shard, load)
        with (folder / shard.file).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        return digest

    monkeypatch.setattr(convert_lion_checkpoint, "write_shard", write_with_a_flipped_bit)
    assert_refused(files, ["1 tensors differ from their sources"], capsys)


KILLED_RUNS = """
import os, pathlib, signal, sys, time
import convert_lion_checkpoint  # once, for all runs
from targets import recover

def run(seconds=None):
    "Convert in a child process, which is killed after the given time."
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(convert_lion_checkpoint.main(arguments))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return time.monotonic() - start, os.waitstatus_to_exitcode(status)

target, *arguments = sys.argv[1:]
weights = pathlib.Path(target, "model.safetensors")
before = weights.read_bytes()
whole, code = run()
assert code == 0, code
codes = []
for moment in range(1, 11):
    codes.append(run(whole * moment / 10)[1])
    recover(pathlib.Path(target))
    assert weights.read_bytes() == before, moment
assert codes.count(-signal.SIGKILL) >= 5, codes
assert run()[1] == 0
"""


def test_killed_runs_leave_the_target_unchanged_and_can_be_restarted(
    files: Files, lion_model: LionForConditionalGeneration
) -> None:
    """Kill the run at ten moments from start to end, while it replaces an existing target."""
    assert files.convert() == 0
    arguments = [str(part) for pair in files.arguments.items() if pair[1] is not None for part in pair]
    command = [sys.executable, "-c", KILLED_RUNS, str(files.output), "--overwrite", *arguments]
    subprocess.run(command, check=True, cwd=ROOT / "conversion", stdout=subprocess.DEVNULL)
    assert_same_parameters(files.load(), lion_model)
    assert [path.name for path in files.output.parent.iterdir() if "lion" in path.name] == ["lion"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_terminated_run_removes_its_output_and_reports_it(number: signal.Signals, files: Files) -> None:
    program = (
        "import os, signal, sys, convert_lion_checkpoint as script\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs start without it
        f"script.compare = lambda *arguments: os.kill(os.getpid(), {number:d})\n"
        "sys.exit(script.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program]
    command += [str(part) for pair in files.arguments.items() if pair[1] is not None for part in pair]
    process = subprocess.run(command, cwd=ROOT / "conversion", capture_output=True, text=True)
    assert process.returncode == 128 + number
    assert process.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in process.stderr
    assert [path.name for path in files.output.parent.iterdir()] == ["files"]


def test_a_target_moved_away_by_a_killed_run_is_restored(files: Files) -> None:
    assert files.convert() == 0
    files.output.rename(files.output.with_name(".lion.replaced"))
    assert files.convert() == 1  # it already exists
    assert (files.output / "model.safetensors").is_file()


def test_an_old_folder_half_deleted_by_a_killed_run_is_removed(files: Files) -> None:
    assert files.convert() == 0
    left_over = files.output.with_name(".lion.replaced")
    left_over.mkdir()
    (left_over / "model.safetensors").touch()
    assert files.convert("--overwrite") == 0
    assert not left_over.exists()
    assert (files.output / "model.safetensors").is_file()


def test_a_safetensors_lion_file_is_read_too(files: Files, lion_model: LionForConditionalGeneration) -> None:
    state = torch.load(files.folder / "lion_full.pth")["model"]
    aliases = [key for key in state if key.endswith("embed_tokens.weight")]
    save_file({key: tensor for key, tensor in state.items() if key not in aliases}, files.folder / "lion.safetensors")
    files.arguments.update({"--lion": files.folder / "lion.safetensors", "--vision": None})
    assert files.convert() == 0
    assert_same_parameters(files.load(), lion_model)
