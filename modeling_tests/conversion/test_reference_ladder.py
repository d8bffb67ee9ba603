"""The ladder of outputs: with the reference itself where there is a checkout, and with a fake of it everywhere.

The fake is a "Python" that says it has transformers 4.42, and writes outputs that were computed before.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import convert_lion
from output_ladder import (
    BEAM_SEARCH,
    EARLIER_STOP,
    TOLERANCE,
    OutputRung,
    Outputs,
    compare_output,
    compare_outputs,
    folder_outputs,
    images,
    output_table,
    write_request,
)
from reference_outputs import load_weights, read_tensors
from transformers_lion import LionConfig, LionForConditionalGeneration, LionProcessor
from verify_checkpoint import main as verify

REFERENCE, REFERENCE_PYTHON = os.environ.get("LION_REFERENCE"), os.environ.get("LION_REFERENCE_PYTHON")
needs_reference = pytest.mark.skipif(
    not (REFERENCE and REFERENCE_PYTHON),
    reason="LION_REFERENCE (a checkout of the reference) and LION_REFERENCE_PYTHON are not set",
)

CASES = [f"{task} level, {tags}" for task in ("image", "region") for tags in ("tags", "no tags")]
RUNGS_OF_A_CASE = ("prompt ids", "encoder output", "logits", "loss", "greedy ids", "5-beam ids")
RUNGS = [
    *(f"vision block {index}" for index in (18, 28, 38)), "vision norm", "aggregator", "question ids", "image features",
    *(f"{case}: {rung}" for case in CASES for rung in RUNGS_OF_A_CASE),
]  # fmt: skip

COPY = """
import shutil, sys
_, _, checkout, request, pixels, outputs = sys.argv
shutil.copy(request, checkout)
shutil.copy(checkout + "/stored", outputs)
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def options(files: Path, checkout: str | Path, python: str | Path, lion: str = "lion.pth") -> list[str]:
    paths = {
        "lion": files / lion,
        "vision": files / "eva_vit.pth",
        "language-model": files / "llm",
        "qformer-tokenizer": files / "bert",
        "overrides": files / "overrides.json",
        "reference": checkout,
        "reference-python": python,
    }
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))]


def output_rows(printed: str) -> dict[str, str]:
    """The result of each rung."""
    lines = printed.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("output "))
    return {line[:40].strip(): line[40:].strip() for line in lines[start + 1 :] if ". " not in line}


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def python_with(version: str, folder: Path, script: str = "") -> Path:
    """A fake Python that reports this version of transformers, and runs `script` instead of any other."""
    fake = ""
    if script:
        (folder / "fake.py").write_text(script)
        fake = f"'{folder / 'fake.py'}'"
    return program(
        folder / "python",
        f'#!/bin/sh\nif [ "$1" = -c ]; then echo {version}; else exec "{sys.executable}" {fake} "$@"; fi\n',
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fake checkout of the reference that cannot be imported."""
    folder = tmp_path / "checkout"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "lion_t5.py").write_text("raise RuntimeError('no model\\nhere')")
    return folder


@pytest.fixture(scope="module")
def stored(lion_files: Path, lion_folder: Path) -> Outputs:
    """The outputs of the converted folder, to use as those of the reference."""
    request = write_request(lion_folder, LionConfig.from_pretrained(lion_folder), {"lion": lion_files / "lion.pth"})
    processor = LionProcessor.from_pretrained(lion_folder)
    pixels = processor.image_processor(images(), return_tensors="pt")["pixel_values"]
    return folder_outputs(lion_folder, request, pixels)


def test_outputs_that_agree_pass_rung_by_rung(
    lion_files: Path, lion_folder: Path, checkout: Path, stored: Outputs, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, checkout / "stored")
    python = python_with("4.42.4", checkout, COPY)
    assert verify([str(lion_folder), *options(lion_files, checkout, python)]) == 0
    rows = output_rows(capsys.readouterr().out)
    assert list(rows) == RUNGS
    assert all(value == ("3/3" if name.endswith(" ids") else "0") for name, value in rows.items())


def test_one_wrong_output_fails_in_its_rung_alone(
    lion_files: Path, lion_folder: Path, checkout: Path, stored: Outputs, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {name: tensor.clone() for name, tensor in stored.items()}
    wrong["aggregator"][0, 0, 0] += 0.5 * wrong["aggregator"].abs().max()
    save_file(wrong, checkout / "stored")
    python = python_with("4.42.4", checkout, COPY)
    assert verify([str(lion_folder), *options(lion_files, checkout, python)]) == 1
    rows = output_rows(capsys.readouterr().out)
    assert [name for name, value in rows.items() if value not in ("0", "3/3")] == ["aggregator"]
    assert float(rows["aggregator"]) > 0.1


def test_the_request_has_the_folders_sizes_files_and_dtypes(lion_files: Path, tmp_path: Path) -> None:
    folder = convert_lion(lion_files, tmp_path / "lion")
    model = LionForConditionalGeneration.from_pretrained(folder)
    model.vision_model.to(torch.bfloat16)
    model.save_pretrained(folder)
    files = {"lion": lion_files / "lion.pth", "vision": None}
    request = json.loads(json.dumps(write_request(folder, model.config, files)))
    assert request["files"] == {"lion": str(lion_files / "lion.pth"), "vision": None}
    assert request["config"]["vision_config"]["hidden_size"] == model.config.vision_config.hidden_size
    assert request["config"]["num_query_tokens"] == model.config.num_query_tokens
    assert request["dtypes"]["visual_encoder.blocks.7.attn.q_bias"] == "bfloat16"
    assert all(name.startswith(("visual_encoder.", "ln_vision.")) for name in request["dtypes"])


def further(outputs: Outputs, name: str, amount: float) -> Outputs:
    """`outputs` with the largest value of one of them increased by the fraction `amount`."""
    moved = outputs[name].clone()
    moved.view(-1)[moved.abs().argmax()] *= 1 + amount
    return {**outputs, name: moved}


@pytest.mark.parametrize(("factor", "holds"), [(0.5, True), (2, False), (float("nan"), False)])
def test_the_tolerance_is_relative_to_the_largest_value(factor: float, holds: bool, stored: Outputs) -> None:
    name = "image level, tags: logits"
    rungs = compare_outputs(further(stored, name, factor * TOLERANCE), stored, pad_token_id=0)
    assert {rung.name for rung in rungs if not rung.holds} == (set() if holds else {name})


def test_ids_are_compared_row_by_row_without_padding() -> None:
    ours = torch.tensor([[0, 5, 1, 0], [0, 6, 7, 1], [0, 8, 1, 1]])
    theirs = torch.tensor([[0, 5, 1, 0, 0], [0, 6, 7, 1, 0], [0, 8, 1, 0, 0]])
    rung = compare_output("ids", ours, theirs, pad_token_id=0)
    assert (rung.num_equal, rung.num_rows, rung.holds) == (2, 3, False)


def test_tensors_of_other_shapes_and_outputs_on_one_side_only_do_not_pass(stored: Outputs) -> None:
    assert not compare_output("loss", torch.ones(2, 3), torch.ones(2, 1), pad_token_id=0).holds
    fewer = {name: tensor for name, tensor in stored.items() if name != "aggregator"}
    with pytest.raises(ValueError, match="1 outputs exist on one side only: aggregator"):
        compare_outputs(stored, fewer, pad_token_id=0)


def test_the_known_difference_is_named_only_if_nothing_but_beam_search_differs() -> None:
    beams = OutputRung(f"image level, tags: {BEAM_SEARCH}", num_equal=2, num_rows=3)
    logits = OutputRung("image level, tags: logits", 1.0)
    assert EARLIER_STOP in output_table([beams])
    assert EARLIER_STOP not in output_table([beams, logits])
    assert EARLIER_STOP not in output_table([OutputRung("loss", 0.0)])


Case = Callable[[Path, Path], tuple[Path, Path | str]]
ERRORS: dict[str, tuple[Case, str]] = {
    "no checkout": (lambda checkout, tmp_path: (tmp_path / "none", sys.executable), "none: not a checkout"),
    "no Python": (lambda checkout, tmp_path: (checkout, tmp_path / "none"), "none: cannot be started"),
    "no transformers": (
        lambda checkout, tmp_path: (checkout, program(tmp_path / "python", "#!/bin/sh\nexit 1\n")),
        "python has no transformers; --reference-python needs one with transformers 4.42.",
    ),
    "this Python": (lambda checkout, tmp_path: (checkout, sys.executable), "has transformers 5."),
    "a reference that fails": (
        lambda checkout, tmp_path: (checkout, python_with("4.42.4", tmp_path)),
        "The reference failed: here",
    ),
    "a reference that dies": (
        lambda checkout, tmp_path: (checkout, python_with("4.42.4", tmp_path, "import os; os._exit(7)")),
        "The reference failed: exit code 7",
    ),
    "other outputs": (
        lambda checkout, tmp_path: (checkout, python_with("4.42.4", tmp_path, COPY)),
        "outputs exist on one side only: ",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_sentence(
    name: str, lion_files: Path, lion_folder: Path, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"loss": torch.zeros(())}, checkout / "stored")
    case, message = ERRORS[name]
    assert verify([str(lion_folder), *options(lion_files, *case(checkout, tmp_path))]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not list(checkout.rglob("__pycache__"))


def test_code_in_the_users_files_is_not_run_for_the_reference_either(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Code()}, tmp_path / "lion.pth")
    with pytest.raises(Exception, match="weights_only"):
        read_tensors(tmp_path / "lion.pth")
    assert not (tmp_path / "ran").exists()


def test_a_tensor_missing_from_all_files_does_not_stay_initialized(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("visual_encoder", "t5_proj", "t5_model")})
    names = [name for name in model.state_dict() if not name.startswith("t5_")]
    save_file({name: torch.zeros_like(model.state_dict()[name]) for name in names}, tmp_path / "lion.safetensors")
    with pytest.raises(ValueError, match=r"2 tensors of the reference's model are not in any file: t5_proj\.weight"):
        load_weights(model, {"lion": str(tmp_path / "lion.safetensors"), "vision": None}, lambda tower, tensors: None)


def against_the_reference(folder: Path, files: Path, lion: str = "lion.pth") -> int:
    assert REFERENCE
    assert REFERENCE_PYTHON
    return verify([str(folder), *options(files, REFERENCE, REFERENCE_PYTHON, lion)])


@needs_reference
@pytest.mark.parametrize("lion", ["lion.pth", "lion_qformer.pth", "lion_aggregator.pth"])
def test_a_converted_folder_computes_what_the_reference_computes(
    lion: str, lion_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = convert_lion(lion_files, tmp_path / "lion", lion)
    capsys.readouterr()
    assert against_the_reference(folder, lion_files, lion) == 0
    rows = output_rows(capsys.readouterr().out)
    assert list(rows) == RUNGS if lion == "lion.pth" else set(rows) < set(RUNGS)


@needs_reference
def test_a_folder_in_bfloat16_is_compared_with_the_reference_in_bfloat16(lion_files: Path, tmp_path: Path) -> None:
    folder = convert_lion(lion_files, tmp_path / "lion")
    LionForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert load_file(folder / "model.safetensors")["soft_prompt.weight"].dtype == torch.bfloat16
    assert against_the_reference(folder, lion_files) == 0


@needs_reference
def test_a_folder_with_equal_tensors_but_other_outputs_is_detected(
    lion_files: Path, lion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(lion_folder, tmp_path / "lion")
    config = json.loads((folder / "config.json").read_text())
    config["aggregator_config"]["vision_feature_layers"] = [38, 18, 28]
    (folder / "config.json").write_text(json.dumps(config))
    assert against_the_reference(folder, lion_files) == 1
    rows = output_rows(capsys.readouterr().out)
    assert float(rows["vision norm"]) <= TOLERANCE
    assert min(float(rows[name]) for name in ("aggregator", "image level, tags: logits")) > 1e-2
    assert rows["region level, no tags: greedy ids"] == "0/3"
