"""Checks that the installed transformers and torch give the same results as the tested versions.

A release that renames an argument can make all generated answers wrong without raising an error. This check detects
that. It runs tiny models with weights from a formula, compares computations that must agree, and compares results with
stored values. It takes well under a second. `generate` runs it once per process if transformers or torch is newer than
the tested versions; `lion doctor` runs it on request.

Set the environment variable `LION_SELF_CHECK` to `0` to disable the check, or to `1` to run it once in every process,
regardless of the versions.
"""

import math
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any

import torch
from packaging.version import Version
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers.utils import logging

from .configuration_lion import LionConfig
from .errors import SelfCheckError
from .example import FOLDER
from .modeling_lion import LionForConditionalGeneration
from .processing_lion import LionProcessor
from .ram import RamConfig, RamForImageTagging

NEWEST_TESTED = {"transformers": "5.24", "torch": "2.13"}
"""Newest tested minor release of each package."""

VARIABLE = "LION_SELF_CHECK"
"""Environment variable that disables or enables the check."""

TOLERANCE = 1e-3
"""Tolerance for differences from stored values, relative to the largest one, because processors round differently."""

STORED_LOGITS = [0.62938, -0.61722, -0.537875, 1.07868, -1.2284, 0.900455, -0.182455, -0.49458]
STORED_TAGGER_LOGITS = [-0.2535, -0.82014, 0.58725, 0.5222, 0.55757]

SOFT_PROMPT, VOCABULARY = 60, 61


def ensure_checked() -> None:
    """Run the check if it is enabled and has not run in this process yet.

    Raises:
        SelfCheckError: If the check fails, in this and in all later calls.
    """
    with STATE.lock:
        if STATE.is_running:  # the check itself generates
            return
        if not STATE.is_done:
            STATE.is_running = True
            try:
                STATE.found = "; ".join(run_checks(stop_at_first=True).values()) if is_wanted() else ""
            finally:
                STATE.is_running = False
            STATE.is_done = True
        if STATE.found:
            raise SelfCheckError(
                f"{describe_versions()}, and the self-check of transformers-lion failed: {STATE.found}. Answers would "
                f"be wrong. Install the tested versions, or set {VARIABLE}=0 to continue anyway."
            )


class CheckState:
    """Whether the check has run in this process, and what it found."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_running = self.is_done = False
        self.found = ""


STATE = CheckState()


def is_wanted() -> bool:
    """Whether the check is enabled by the environment variable or, if it is not set, by newer versions.

    Raises:
        ValueError: If the variable is neither 0 nor 1.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE} is {setting!r}, but must be 0 (disabled) or 1 (once in every process).")
    return setting == "1" if setting else bool(newer_than_tested())


def newer_than_tested() -> dict[str, str]:
    """Return the packages with a later minor release than the newest tested one, and their versions."""
    return {name: found for name in NEWEST_TESTED if is_newer(found := version(name), NEWEST_TESTED[name])}


def is_newer(found: str, tested: str) -> bool:
    """Whether a version is of a later minor release than the tested one."""
    return Version(found).release[:2] > Version(tested).release[:2]


def describe_versions() -> str:
    """Return the beginning of a sentence that compares the installed versions with the tested ones."""
    return " and ".join(
        f"{name} {version(name)} is installed, but {tested} is the newest tested version"
        for name, tested in NEWEST_TESTED.items()
        if name in newer_than_tested() or not newer_than_tested()
    )


def run_checks(stop_at_first: bool = False) -> dict[str, str]:
    """Run the checks without affecting random states, settings or logs.

    Args:
        stop_at_first: Whether to stop at the first check that fails.

    Returns:
        A message for each failed check, by its name.
    """
    found: dict[str, str] = {}
    with isolated_settings():
        model = tiny_lion()
        for name, check in CHECKS.items():
            if found and stop_at_first:
                break
            try:
                message = check(model)
            except Exception as error:  # any error means that the check failed
                message = f"{name} raised {type(error).__name__}: {' '.join(str(error).split())}"
            if message:
                found[name] = message
    return found


@contextmanager
def isolated_settings() -> Iterator[None]:
    """Use the CPU, float32, no autocast and no progress bars, and restore settings and random states afterwards."""
    dtype, num_threads = torch.get_default_dtype(), torch.get_num_threads()
    had_bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)  # more threads are slower for tiny models
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(num_threads)
            logging.set_verbosity(level)
            if had_bars:
                logging.enable_progress_bar()


def tiny_lion() -> LionForConditionalGeneration:
    """Create a LION model with all parts, a few thousand parameters each, and weights from a formula."""
    width = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2}
    config = LionConfig(
        vision_config={**width, "num_hidden_layers": 3, "image_size": 28},
        qformer_config={**width, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 16},
        aggregator_config={"vision_feature_layers": [2, 1, 0], "num_attention_heads": 2, "intermediate_size": 20},
        text_config={
            "vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 2, "num_heads": 2,
            "adapter_hidden_size": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
        },
        num_query_tokens=3,
        soft_prompt_token_id=SOFT_PROMPT,
    )  # fmt: skip
    return write_weights(LionForConditionalGeneration(config)).eval()


def tiny_tagger() -> RamForImageTagging:
    """Create a tiny tagger with weights from a formula."""
    config = RamConfig(
        vision_config={
            "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4,
        },
        id2label=dict(enumerate("abcde")),
        label_embed_dim=12, encoder_hidden_size=10, hidden_size=16, intermediate_size=20,
    )  # fmt: skip
    return write_weights(RamForImageTagging(config)).eval()


def write_weights(model: Any) -> Any:
    """Set each weight to values that depend only on its name and shape, with no two equal rows."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            numbers = formula(weight.shape, zlib.crc32(name.encode()) % 1000)
            if weight.dim() > 1:
                size = 0.8 if "lm_head" in name else 1.6  # several tokens are likely, so that beams are reordered
                weight.copy_(numbers * size / math.sqrt(weight.shape[-1]))
            else:
                is_norm = "norm" in name.lower() and name.endswith("weight")
                weight.copy_(0.2 * numbers + (1.0 if is_norm or name.endswith("scale") else 0.0))
    return model


def formula(shape: Sequence[int], phase: int) -> torch.Tensor:
    """Return irregular values between -1 and 1 that are the same on all machines."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.37 * steps * steps + 1.3 * steps + phase).float().reshape(tuple(shape))


def tiny_inputs(rows: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Return a batch with both tasks and prompts of 6, 5 and 4 tokens. A single row has no padding."""
    ids = torch.tensor([[5, SOFT_PROMPT, 9, 11, 7, 1], [8, 21, 4, 13, 1, 0], [30, 2, 17, 1, 0, 0]])
    mask = (ids != 0).long()
    if len(rows) == 1:
        length = int(mask[rows[0]].sum())
        ids, mask = ids[:, :length], mask[:, :length]
    chosen = torch.tensor(rows)
    return {
        "pixel_values": formula((3, 3, 28, 28), 1)[chosen],
        "input_ids": ids[chosen],
        "attention_mask": mask[chosen],
        "qformer_input_ids": ids[chosen],
        "qformer_attention_mask": mask[chosen],
        "task_type_ids": torch.tensor([0, 1, 0])[chosen],
    }


ANSWER = torch.tensor([[0, 4, 9, 16], [0, 25, 36, 49], [0, 5, 6, 7]])
GENERATE: dict[str, Any] = {
    "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "repetition_penalty": 1.0, "pad_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip


def differ(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether values differ by more than the tolerance."""
    return found.shape != expected.shape or not bool(
        (found - expected).abs().max() <= TOLERANCE * expected.abs().max()  # False for NaN
    )


def check_logits(model: LionForConditionalGeneration) -> str:
    """Check that a forward pass returns the stored values."""
    with torch.no_grad():
        logits = model(**tiny_inputs(), decoder_input_ids=ANSWER).logits
    sample = logits[:, -1, :: VOCABULARY // len(STORED_LOGITS)].flatten()[::3][: len(STORED_LOGITS)]
    return "a forward pass returns unexpected values" if differ(sample, torch.tensor(STORED_LOGITS)) else ""


def check_cache(model: LionForConditionalGeneration) -> str:
    """Check that decoding with and without a cache gives the same tokens."""
    cached, plain = (model.generate(**tiny_inputs(), use_cache=use, num_beams=4, **GENERATE) for use in (True, False))
    return "" if torch.equal(cached, plain) else "decoding with a cache differs from decoding without one"


def check_steps(model: LionForConditionalGeneration) -> str:
    """Check that the tokens of greedy decoding are the most likely ones in a single forward pass."""
    ids = model.generate(**tiny_inputs(), num_beams=1, **GENERATE)
    with torch.no_grad():
        logits = model(**tiny_inputs(), decoder_input_ids=ids[:, :-1]).logits
    logits[..., 1] = -torch.inf  # min_new_tokens also suppresses the end token
    return "" if torch.equal(logits.argmax(-1), ids[:, 1:]) else "generated tokens differ from those of a forward pass"


def check_batches(model: LionForConditionalGeneration) -> str:
    """Check that a sample gets the same answer alone as in a batch, where beams and padding could interfere."""
    batch = model.generate(**tiny_inputs(), num_beams=4, **GENERATE)
    alone = [model.generate(**tiny_inputs([row]), num_beams=4, **GENERATE) for row in range(3)]
    return "" if torch.equal(batch, torch.cat(alone)) else "a sample gets a different answer in a batch than alone"


def check_image_features(model: LionForConditionalGeneration) -> str:
    """Check that precomputed image features give the same logits as pixels."""
    inputs = tiny_inputs()
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=ANSWER).logits
        pixels = inputs.pop("pixel_values")
        features = model.get_image_features(pixels.flip(0))
        indices = torch.tensor([2, 1, 0])
        logits = model(**inputs, image_features=features, image_indices=indices, decoder_input_ids=ANSWER).logits
    return "precomputed image features give different logits than pixels" if differ(logits, expected) else ""


def check_loss(model: LionForConditionalGeneration) -> str:
    """Check that the loss is the mean cross-entropy over labels, or the sum divided by `num_items_in_batch`."""
    labels = torch.tensor([[4, 9, 1], [25, 1, -100], [5, 1, -100]])
    with torch.no_grad():
        outputs = model(**tiny_inputs(), labels=labels)
        shared = model(**tiny_inputs(), labels=labels, num_items_in_batch=14).loss
    losses = cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="none")
    expected = torch.stack([losses.sum() / 7, losses.sum() / 14])
    return "the loss has an unexpected value" if differ(torch.stack([outputs.loss, shared]), expected) else ""


def check_processor(model: LionForConditionalGeneration) -> str:
    """Check the prompts with their soft prompt, the pixels and the boxes of the processor."""
    if not FOLDER.exists():  # for example if this code was loaded with trust_remote_code
        return ""
    processor = LionProcessor.from_pretrained(FOLDER)
    pixels = ((formula((9, 12, 3), 3) + 1) * 127.5).to(torch.uint8)
    image = Image.fromarray(pixels.numpy())
    question = "is there a <extra_id_0> circle?"
    inputs = processor(images=image, text=question, tags=["red", "large"], return_tensors="pt")
    marker = processor.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    prompt = processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    if int((inputs["input_ids"] == marker).sum()) != 1 or not all(
        "".join(words.split()) in "".join(prompt.split()) for words in ("red, large", question)
    ):
        return "the processor returns an unexpected prompt"
    read = processor.qformer_tokenizer.decode(inputs["qformer_input_ids"][0], skip_special_tokens=True)
    if "".join(read.split()) != "".join(question.split()):
        return "the Q-Former tokenizer changes the question"
    settings = processor.image_processor
    resized = image.resize((settings.size["width"], settings.size["height"]), Image.Resampling.BICUBIC)
    levels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).reshape(*reversed(resized.size), 3) / 255
    expected = (levels - torch.tensor(settings.image_mean)) / torch.tensor(settings.image_std)
    if differ(inputs["pixel_values"][0].permute(1, 2, 0), expected):
        return "the image processor returns different pixels than Pillow"
    _, entities = processor.post_process_generation("a circle [0.100,0.200,0.300,0.400]", image_size=(100, 50))
    boxes = torch.tensor([box for _, _, found in entities for box in found])
    return "boxes are parsed incorrectly" if differ(boxes, torch.tensor([[10.0, 10.0, 30.0, 20.0]])) else ""


def check_saving(model: LionForConditionalGeneration) -> str:
    """Check that a model has the same weights after saving and loading."""
    with TemporaryDirectory(prefix="lion-self-check-") as folder:
        model.save_pretrained(folder)
        loaded = LionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    state, again = model.state_dict(), loaded.state_dict()
    wrong = [name for name in state if name not in again or not torch.equal(state[name], again[name])]
    return f"saving and loading changes {len(wrong)} weights, such as {wrong[0]}" if wrong else ""


def check_tagger(model: LionForConditionalGeneration) -> str:
    """Check that the tagger returns the stored values."""
    with torch.no_grad():
        logits = tiny_tagger()(formula((1, 3, 32, 32), 2)).logits[0]
    return "the tagger returns unexpected values" if differ(logits, torch.tensor(STORED_TAGGER_LOGITS)) else ""


CHECKS: dict[str, Callable[[LionForConditionalGeneration], str]] = {
    "forward pass": check_logits,
    "cache": check_cache,
    "steps": check_steps,
    "batches": check_batches,
    "image features": check_image_features,
    "loss": check_loss,
    "saving": check_saving,
    "processor": check_processor,
    "tagger": check_tagger,
}
"""Each check returns a message, or an empty string if it passes."""

__all__ = ["CHECKS", "NEWEST_TESTED", "VARIABLE", "SelfCheckError", "ensure_checked", "run_checks"]
