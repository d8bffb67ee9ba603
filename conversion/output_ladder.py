"""Compare the outputs of a converted folder with those of the reference code, from the bottom up.

The reference runs in its own process, `reference_outputs.py`, because it needs transformers 4.42 and this package needs
transformers 5. Both sides get the same pixels, prompts and answers, and run on the CPU in float32.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lion_keys import LION_KEYS
from shards import FolderReader
from transformers_lion.configuration_lion import TASK_TYPES, LionConfig
from transformers_lion.modeling_lion import LionForConditionalGeneration
from transformers_lion.processing_lion import LionProcessor

SCRIPT = Path(__file__).with_name("reference_outputs.py")
TOLERANCE = 1e-5
"""Largest allowed difference, relative to the largest absolute value of the reference's tensor."""

QUESTIONS = (
    "Please describe the image using a single short sentence.",
    "In the image, can you locate the red dog left of the table and let me know its coordinates?",
    "Is there a cat in the image?",
)
TAGS = ("dog, table, chair, red", "dog, man, table", "cat, window, house, indoor, white")
ANSWERS = ("A red dog left of a blue table.", "Answer: [0.440,0.060,0.650,0.367]", "yes")

BEAM_SEARCH = "5-beam ids"
SEARCHES = {"greedy ids": 1, BEAM_SEARCH: 5}
"""Rungs of generated ids and their number of beams."""

MAX_NEW_TOKENS, REPETITION_PENALTY = 24, 1.5
EARLIER_STOP = (
    "Only 5-beam ids differ. In rare cases, beam search in transformers 5 stops earlier than in 4.42, with equal "
    "logits. "
    "This is an upstream change and not an error of the conversion."
)

Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class OutputRung:
    """Comparison of one output: the number of equal rows for ids, the difference for other tensors."""

    name: str
    difference: float | None = None
    num_equal: int = 0
    num_rows: int = 0

    @property
    def holds(self) -> bool:
        """Whether the two sides agree. NaN never does."""
        return self.num_equal == self.num_rows if self.difference is None else self.difference <= TOLERANCE


def check_reference(checkout: Path, python: str) -> None:
    """Raise `ValueError` unless there is a checkout of the reference and a Python with its version of transformers."""
    if not (checkout / "models" / "lion_t5.py").is_file():
        raise ValueError(f"{checkout}: not a checkout of the reference code, because models/lion_t5.py is missing.")
    query = "from importlib.metadata import version; print(version('transformers'))"
    process = run(python, "-c", query)
    if process.returncode:
        raise ValueError(f"{python} has no transformers; --reference-python needs one with transformers 4.42.")
    found = process.stdout.strip()
    if found.split(".")[0] != "4":
        raise ValueError(f"{python} has transformers {found}; --reference-python needs one with transformers 4.42.")


def run(python: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run another Python.

    Raises:
        ValueError: If it cannot be started.
    """
    try:
        return subprocess.run([python, *map(str, arguments)], capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"{python}: cannot be started ({error.strerror}).") from error


def climb_outputs(
    folder: Path, config: LionConfig, files: Mapping[str, Any], checkout: Path, python: str
) -> list[OutputRung]:
    """Run both sides and compare them.

    Args:
        folder: Converted folder.
        config: Configuration inferred from the original files.
        files: Original files: `lion`, `vision` (or `None`), `language_model` and `qformer_tokenizer`.
        checkout: Checkout of the reference code.
        python: Python that has the reference's requirements.

    Returns:
        The rungs, from bottom to top.

    Raises:
        ValueError: If the reference fails or computes other outputs than the folder.
    """
    request = write_request(folder, config, files)
    processor = LionProcessor.from_pretrained(folder)
    pixels = processor.image_processor(images(), return_tensors="pt")["pixel_values"]
    theirs = _reference_outputs(checkout, python, request, pixels)
    return compare_outputs(folder_outputs(folder, request, pixels), theirs, config.text_config.pad_token_id)


def write_request(folder: Path, config: LionConfig, files: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what both sides compute, as JSON values."""
    reader = FolderReader(folder)
    dtypes = {
        original: str(reader[entry.converted].dtype).removeprefix("torch.")
        for entry in LION_KEYS.from_converted(reader.files)
        for original in entry.originals
    }
    tagged = (True, False) if config.use_soft_prompt else (False,)
    last = config.vision_config.num_hidden_layers - 1
    return {
        "files": {name: path and str(Path(path).resolve()) for name, path in files.items()},
        "config": json.loads(config.to_json_string(use_diff=False)),
        "dtypes": {name: dtype for name, dtype in dtypes.items() if dtype != "float32"},
        "blocks": sorted(config.aggregator_config.vision_feature_layers) if config.uses_aggregator else [last],
        "questions": QUESTIONS,
        "tags": TAGS,
        "answers": ANSWERS,
        "cases": [
            {"name": f"{task.replace('_', ' ')}, {'tags' if tags else 'no tags'}", "task_type": task, "tags": tags}
            for task in reversed(TASK_TYPES)
            for tags in tagged
        ],
        "searches": SEARCHES,
        "max_new_tokens": MAX_NEW_TOKENS,
        "repetition_penalty": REPETITION_PENALTY,
    }


def images() -> list[Image.Image]:
    """Create three images of different shapes, one for each question."""
    radial, linear = Image.radial_gradient("L"), Image.linear_gradient("L")
    bands = (radial, linear, linear.rotate(90))
    sizes = ((320, 240), (200, 300), (256, 256))
    return [Image.merge("RGB", bands[turn:] + bands[:turn]).resize(size) for turn, size in enumerate(sizes)]


def _reference_outputs(checkout: Path, python: str, request: Mapping[str, Any], pixels: torch.Tensor) -> Outputs:
    """Run the reference in its own process.

    Raises:
        ValueError: If it fails. The message has the last line that it printed.
    """
    with tempfile.TemporaryDirectory() as name:
        asked, given, written = (Path(name) / file for file in ("request.json", "pixels", "outputs"))
        asked.write_text(json.dumps(request))
        save_file({"pixel_values": pixels.contiguous()}, given)
        process = run(python, SCRIPT, checkout.resolve(), asked, given, written)
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            raise ValueError(f"The reference failed: {lines[-1]}")
        return load_file(written)


@torch.no_grad()
def folder_outputs(folder: Path, request: Mapping[str, Any], pixels: torch.Tensor) -> Outputs:
    """Compute the outputs of the converted folder."""
    model = LionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = LionProcessor.from_pretrained(folder)
    features = model.get_image_features(pixels, output_hidden_states=True)
    outputs = {f"vision block {index}": features.hidden_states[index + 1] for index in request["blocks"]}
    if model.config.uses_qformer:
        outputs["vision norm"] = features.last_hidden_state
    if model.config.uses_aggregator:
        outputs["aggregator"] = features.aggregator_outputs.last_hidden_state
    for case in request["cases"]:
        found = _case_outputs(model, processor, request, features, case)
        if not model.config.uses_qformer:
            del found["question ids"]
        for name in ("question ids", "image features"):  # the same in all cases
            if name in found:
                outputs[name] = found.pop(name)
        outputs.update({f"{case['name']}: {name}": tensor for name, tensor in found.items()})
    return outputs


def _case_outputs(
    model: LionForConditionalGeneration,
    processor: LionProcessor,
    request: Mapping[str, Any],
    features: Any,
    case: Mapping[str, Any],
) -> Outputs:
    """Compute the outputs of the converted folder for one task, with or without tags."""
    text = {
        "text": list(request["questions"]),
        "tags": list(request["tags"]) if case["tags"] else None,
        "task_type": case["task_type"],
        "return_tensors": "pt",
    }
    inputs = processor(**text, text_target=list(request["answers"]))
    outputs = model(**inputs, image_features=features)
    found = {
        "question ids": inputs["qformer_input_ids"],
        "image features": outputs.image_hidden_states,
        "prompt ids": inputs["input_ids"],
        "encoder output": outputs.encoder_last_hidden_state,
        "logits": outputs.logits[inputs["labels"] != -100],
        "loss": outputs.loss,
    }
    for name, num_beams in request["searches"].items():
        found[name] = model.generate(
            **processor(**text),
            image_features=features,
            num_beams=num_beams,
            max_new_tokens=request["max_new_tokens"],
            repetition_penalty=request["repetition_penalty"],
            min_length=1,
        )
    return found


def compare_outputs(ours: Outputs, theirs: Outputs, pad_token_id: int) -> list[OutputRung]:
    """Compare all outputs.

    Raises:
        ValueError: If one side has outputs that the other does not have.
    """
    differing = sorted(ours.keys() ^ theirs.keys())
    if differing:
        raise ValueError(f"{len(differing)} outputs exist on one side only: {', '.join(differing[:5])}.")
    return [compare_output(name, tensor, theirs[name], pad_token_id) for name, tensor in ours.items()]


def compare_output(name: str, ours: torch.Tensor, theirs: torch.Tensor, pad_token_id: int) -> OutputRung:
    """Compare one output. Padding at the end of ids is ignored, and tensors of different shapes differ infinitely."""
    if not ours.is_floating_point():
        pairs = list(zip(_unpadded(ours, pad_token_id), _unpadded(theirs, pad_token_id), strict=True))
        return OutputRung(name, num_equal=sum(first == second for first, second in pairs), num_rows=len(pairs))
    if ours.shape != theirs.shape:
        return OutputRung(name, float("inf"))
    difference, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    return OutputRung(name, difference / largest if largest else difference)


def _unpadded(ids: torch.Tensor, pad_token_id: int) -> list[list[int]]:
    """Return the rows without the padding at their ends."""
    rows = ids.tolist()
    for row in rows:
        while row and row[-1] == pad_token_id:
            row.pop()
    return rows


def output_table(rungs: Sequence[OutputRung]) -> str:
    """Format the comparison as a table, with a remark if only beam search differs."""
    lines = [f"{'output':<40}{'largest relative difference':>28}{'ids equal':>12}"]
    for rung in rungs:
        if rung.difference is None:
            lines.append(f"{rung.name:<40}{'':>28}{f'{rung.num_equal}/{rung.num_rows}':>12}")
        else:
            lines.append(f"{rung.name:<40}{rung.difference:>28.3g}")
    failed = [rung.name for rung in rungs if not rung.holds]
    if failed and all(name.endswith(BEAM_SEARCH) for name in failed):
        lines.append(EARLIER_STOP)
    return "\n".join(lines)
