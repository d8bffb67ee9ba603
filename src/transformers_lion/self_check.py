"""A check that the installed transformers and torch still compute what the package's tests saw.

A release that renames an argument can make every generated answer wrong without an error. This check notices. It runs
tiny models whose weights are given by a formula, compares ways of computing that must agree, and compares numbers with
those stored here. It takes well under a second. `generate` runs it once in a process whose transformers or torch is
newer than those tested with; `lion doctor` runs it on request.

The environment variable `LION_SELF_CHECK` is `0` for never, `1` for once in every process, whatever the versions.
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
"""The newest minor release of each that the tests ran on."""

VARIABLE = "LION_SELF_CHECK"
"""Name of the environment variable that turns the check off or on."""

TOLERANCE = 1e-3
"""Largest difference of a number from a stored one, as a share of the largest: processors round differently."""

STORED_LOGITS = [0.62938, -0.61722, -0.537875, 1.07868, -1.2284, 0.900455, -0.182455, -0.49458]
STORED_TAGGER_LOGITS = [-0.2535, -0.82014, 0.58725, 0.5222, 0.55757]

SOFT_PROMPT, VOCABULARY = 60, 61


def ensure_checked() -> None:
    """Run the check if this process has not and its versions call for it; cheap otherwise.

    Raises:
        SelfCheckError: if it finds something, in this call and in all that follow.
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
                f"{describe_versions()}, and the self-check of transformers-lion finds that {STATE.found}: answers "
                f"would be wrong. Install the tested versions, or set {VARIABLE}=0 to go on all the same."
            )


class CheckState:
    """Whether this process ran the check, and what it found."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_running = self.is_done = False
        self.found = ""


STATE = CheckState()


def is_wanted() -> bool:
    """Whether the check runs by itself: by the variable, else if something is newer than what was tested with.

    Raises:
        ValueError: if the variable is neither 0 nor 1.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE} is {setting!r}, but must be 0 (never) or 1 (once in every process).")
    return setting == "1" if setting else bool(newer_than_tested())


def newer_than_tested() -> dict[str, str]:
    """Those of the packages that are of a later minor release than the newest tested, with their versions."""
    return {name: found for name in NEWEST_TESTED if is_newer(found := version(name), NEWEST_TESTED[name])}


def is_newer(found: str, tested: str) -> bool:
    """Whether a version belongs to a later minor release."""
    return Version(found).release[:2] > Version(tested).release[:2]


def describe_versions() -> str:
    """The installed versions beside the tested ones, as the beginning of a sentence."""
    return " and ".join(
        f"{name} {version(name)} is installed where {tested} is the newest tested"
        for name, tested in NEWEST_TESTED.items()
        if name in newer_than_tested() or not newer_than_tested()
    )


def run_checks(stop_at_first: bool = False) -> dict[str, str]:
    """Run the checks, without a trace in random numbers, settings or logs.

    Args:
        stop_at_first: leave out the rest once one has found something.

    Returns:
        What was found, by the name of the check; empty if all is as it should be.
    """
    found: dict[str, str] = {}
    with plain_surroundings():
        model = tiny_lion()
        for name, check in CHECKS.items():
            if found and stop_at_first:
                break
            try:
                message = check(model)
            except Exception as error:  # whatever it is, it is a finding
                message = f"{name} ends in {type(error).__name__}: {' '.join(str(error).split())}"
            if message:
                found[name] = message
    return found


@contextmanager
def plain_surroundings() -> Iterator[None]:
    """The CPU, float32, no autocast and no progress bars, whatever the caller has set; random states are kept."""
    dtype, num_threads = torch.get_default_dtype(), torch.get_num_threads()
    had_bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)  # more would wait for one another
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
    """A LION with every part, a few thousand numbers each, and weights that are a formula."""
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
    """A tagger of the same kind."""
    config = RamConfig(
        vision_config={
            "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4,
        },
        id2label=dict(enumerate("abcde")),
        label_embed_dim=12, encoder_hidden_size=10, hidden_size=16, intermediate_size=20,
    )  # fmt: skip
    return write_weights(RamForImageTagging(config)).eval()


def write_weights(model: Any) -> Any:
    """Give each weight numbers that depend on its name and shape alone; no two rows are alike."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            numbers = formula(weight.shape, zlib.crc32(name.encode()) % 1000)
            if weight.dim() > 1:
                size = 0.8 if "lm_head" in name else 1.6  # several tokens are likely, so that beams change places
                weight.copy_(numbers * size / math.sqrt(weight.shape[-1]))
            else:
                is_norm = "norm" in name.lower() and name.endswith("weight")
                weight.copy_(0.2 * numbers + (1.0 if is_norm or name.endswith("scale") else 0.0))
    return model


def formula(shape: Sequence[int], phase: int) -> torch.Tensor:
    """Numbers between -1 and 1 without a pattern, the same on all machines."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.37 * steps * steps + 1.3 * steps + phase).float().reshape(tuple(shape))


def tiny_inputs(rows: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """A batch of both tasks with prompts of 6, 5 and 4 tokens; one row alone has no padding."""
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
    """Whether numbers are others, beyond rounding."""
    return found.shape != expected.shape or not bool(
        (found - expected).abs().max() <= TOLERANCE * expected.abs().max()  # false for NaN
    )


def check_logits(model: LionForConditionalGeneration) -> str:
    """A forward pass gives the stored numbers."""
    with torch.no_grad():
        logits = model(**tiny_inputs(), decoder_input_ids=ANSWER).logits
    sample = logits[:, -1, :: VOCABULARY // len(STORED_LOGITS)].flatten()[::3][: len(STORED_LOGITS)]
    return "a forward pass gives other numbers than it should" if differ(sample, torch.tensor(STORED_LOGITS)) else ""


def check_cache(model: LionForConditionalGeneration) -> str:
    """Decoding with a cache gives what decoding without one gives."""
    cached, plain = (model.generate(**tiny_inputs(), use_cache=use, num_beams=4, **GENERATE) for use in (True, False))
    return "" if torch.equal(cached, plain) else "decoding with a cache differs from decoding without one"


def check_steps(model: LionForConditionalGeneration) -> str:
    """Tokens generated one by one are those that one forward pass over all of them finds the likeliest."""
    ids = model.generate(**tiny_inputs(), num_beams=1, **GENERATE)
    with torch.no_grad():
        logits = model(**tiny_inputs(), decoder_input_ids=ids[:, :-1]).logits
    logits[..., 1] = -torch.inf  # as min_new_tokens forbids the end
    return "" if torch.equal(logits.argmax(-1), ids[:, 1:]) else "generated tokens are not those of a forward pass"


def check_batches(model: LionForConditionalGeneration) -> str:
    """Each sample of a batch gets what it gets alone: beams stay with it, and padding does not matter."""
    batch = model.generate(**tiny_inputs(), num_beams=4, **GENERATE)
    alone = [model.generate(**tiny_inputs([row]), num_beams=4, **GENERATE) for row in range(3)]
    return "" if torch.equal(batch, torch.cat(alone)) else "a sample in a batch gets another answer than alone"


def check_image_features(model: LionForConditionalGeneration) -> str:
    """Image features that are computed once serve any question, by the row of its image."""
    inputs = tiny_inputs()
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=ANSWER).logits
        pixels = inputs.pop("pixel_values")
        features = model.get_image_features(pixels.flip(0))
        indices = torch.tensor([2, 1, 0])
        logits = model(**inputs, image_features=features, image_indices=indices, decoder_input_ids=ANSWER).logits
    return "image features that are handed back give other numbers than pixels" if differ(logits, expected) else ""


def check_loss(model: LionForConditionalGeneration) -> str:
    """The loss is the mean cross-entropy of the labels that count, or their sum over the number that is given."""
    labels = torch.tensor([[4, 9, 1], [25, 1, -100], [5, 1, -100]])
    with torch.no_grad():
        outputs = model(**tiny_inputs(), labels=labels)
        shared = model(**tiny_inputs(), labels=labels, num_items_in_batch=14).loss
    losses = cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="none")
    expected = torch.stack([losses.sum() / 7, losses.sum() / 14])
    return "the loss is another than it should be" if differ(torch.stack([outputs.loss, shared]), expected) else ""


def check_processor(model: LionForConditionalGeneration) -> str:
    """Prompts hold what was given and one soft prompt, pixels are those of Pillow, and boxes are read."""
    if not FOLDER.exists():  # as where a checkpoint carries this code
        return ""
    processor = LionProcessor.from_pretrained(FOLDER)
    pixels = ((formula((9, 12, 3), 3) + 1) * 127.5).to(torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    question = "is there a <extra_id_0> circle?"
    inputs = processor(images=picture, text=question, tags=["red", "large"], return_tensors="pt")
    marker = processor.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    prompt = processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    if int((inputs["input_ids"] == marker).sum()) != 1 or not all(
        "".join(words.split()) in "".join(prompt.split()) for words in ("red, large", question)
    ):
        return "the processor makes another prompt than it should"
    read = processor.qformer_tokenizer.decode(inputs["qformer_input_ids"][0], skip_special_tokens=True)
    if "".join(read.split()) != "".join(question.split()):
        return "the Q-Former's tokenizer reads another question than was given"
    settings = processor.image_processor
    resized = picture.resize((settings.size["width"], settings.size["height"]), Image.Resampling.BICUBIC)
    levels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).reshape(*reversed(resized.size), 3) / 255
    expected = (levels - torch.tensor(settings.image_mean)) / torch.tensor(settings.image_std)
    if differ(inputs["pixel_values"][0].permute(1, 2, 0), expected):
        return "the image processor makes other pixels than Pillow"
    _, entities = processor.post_process_generation("a circle [0.100,0.200,0.300,0.400]", image_size=(100, 50))
    boxes = torch.tensor([box for _, _, found in entities for box in found])
    return "boxes are read wrongly" if differ(boxes, torch.tensor([[10.0, 10.0, 30.0, 20.0]])) else ""


def check_saving(model: LionForConditionalGeneration) -> str:
    """A saved model is the same when it is loaded."""
    with TemporaryDirectory(prefix="lion-self-check-") as folder:
        model.save_pretrained(folder)
        loaded = LionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    state, again = model.state_dict(), loaded.state_dict()
    wrong = [name for name in state if name not in again or not torch.equal(state[name], again[name])]
    return f"{len(wrong)} weights are lost by saving and loading, {wrong[0]} first" if wrong else ""


def check_tagger(model: LionForConditionalGeneration) -> str:
    """The tagger gives the stored numbers."""
    with torch.no_grad():
        logits = tiny_tagger()(formula((1, 3, 32, 32), 2)).logits[0]
    return "the tagger gives other numbers than it should" if differ(logits, torch.tensor(STORED_TAGGER_LOGITS)) else ""


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
"""Each returns what it finds as the end of a sentence, or an empty text."""

__all__ = ["CHECKS", "NEWEST_TESTED", "VARIABLE", "SelfCheckError", "ensure_checked", "run_checks"]
