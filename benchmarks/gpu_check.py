"""Check LION on one GPU: that it computes what the CPU computes, and how fast it is. At most 8 minutes on a large GPU.

    python -m benchmarks.gpu_check --output build/gpu_check
    python -m benchmarks.gpu_check --device cpu --size tiny     # a smoke test of the script itself

Weights are random and seeded. Parity compares a small model on the device with float32 on the CPU; speed compares LION
with InstructBLIP, with `--size xl` at the released model's sizes. Each check ends as PASS, FAIL or SKIPPED, with
figures, and one that fails does not stop the others. The command writes a table to OUTPUT.md and the same to
OUTPUT.json, and exits with 1 if a check failed.
"""

import argparse
import importlib.util
import json
import platform
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.nn.parallel import DistributedDataParallel
from transformers import BitsAndBytesConfig, CompileConfig
from transformers.utils import is_flash_attn_2_available

from benchmarks.speed.models import TINY, Size, build_instructblip, build_lion, make_inputs, make_labels
from benchmarks.speed.sides import InstructBlipSide, LionSide
from transformers_lion import LionForConditionalGeneration

XL = Size(
    vision={},
    qformer={},
    aggregator={},
    text={"vocab_size": 32128, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    num_query_tokens=32,
    ram={},
)
"""The released model: the configurations' defaults."""
SIZES = {"xl": XL, "tiny": TINY}
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of the logits from float32 on the CPU, as a share of the largest logit."""
QUANTISED_TOLERANCE = {"int8": 0.1, "nf4": 0.5}
"""The same for quantised weights; four bits keep little of random ones."""
NEW_TOKENS = 20
DEADLINE = 8 * 60
"""Seconds after which no further check begins."""


class Skip(Exception):  # noqa: N818
    """A check has no meaning here, for the reason that it says."""


class Failed(Exception):  # noqa: N818
    """What was found is not what is asked for."""


@dataclass
class Context:
    """What checks share.

    Attributes:
        size: of the models whose speed is measured; those of parity are tiny.
        repeats: of each timing, the best of which counts.
    """

    device: torch.device
    size: Size
    repeats: int
    new_tokens: int = NEW_TOKENS
    models: dict[str, Any] = field(default_factory=dict)

    def tiny(self, dtype: torch.dtype = torch.float32) -> LionForConditionalGeneration:
        """The small model on the device."""
        return build_lion(TINY).to(self.device, dtype)

    def inputs(self, dtype: torch.dtype = torch.float32, batch_size: int = 2, size: Size = TINY) -> dict[str, Any]:
        """Seeded inputs on the device."""
        made = make_inputs(size, batch_size)
        return {name: x.to(self.device, dtype if x.is_floating_point() else None) for name, x in made.items()}

    def reference(self) -> torch.Tensor:
        """Logits of the small model in float32 on the CPU, (B, T, V)."""
        return logits(build_lion(TINY), make_inputs(TINY, 2))

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> int:
    """Run all checks, and write what they found.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="xl")
    parser.add_argument("--output", type=Path, default=Path("build/gpu_check"), help="without a suffix")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU; --device cpu --size tiny tries the script alone.")
    is_tiny = arguments.size == "tiny"
    context = Context(device, SIZES[arguments.size], 1 if is_tiny else 3, 4 if is_tiny else NEW_TOKENS)
    results = run_checks(context)
    write(results, describe(device, arguments.size), arguments.output)
    return int(any(result["outcome"] == "FAIL" for result in results))


def run_checks(context: Context) -> list[dict[str, Any]]:
    """The outcome of each check, whatever becomes of the others."""
    results = []
    start = time.perf_counter()
    for name, check in CHECKS.items():
        began = time.perf_counter()
        result: dict[str, Any] = {"check": name, "outcome": "PASS", "figures": {}, "reason": ""}
        try:
            if began - start > DEADLINE:
                raise Skip(f"{DEADLINE} seconds are over")
            result["figures"] = check(context)
        except Skip as reason:
            result |= {"outcome": "SKIPPED", "reason": str(reason)}
        except Exception as error:  # of any kind: the others are still of use
            if not isinstance(error, Failed):
                traceback.print_exc()
            result |= {"outcome": "FAIL", "reason": f"{type(error).__name__}: {error}".splitlines()[0]}
        result["seconds"] = round(time.perf_counter() - began, 1)
        print(f"{result['outcome']:<8}{name}: {result['reason'] or result['figures']}", flush=True)
        results.append(result)
    return results


# --- parity -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def logits(model: LionForConditionalGeneration, inputs: dict[str, Any]) -> torch.Tensor:
    """Of seeded answers, (B, T, V), in float32 on the CPU."""
    labels = make_labels(TINY, len(inputs["input_ids"])).to(inputs["input_ids"].device)
    return model(**inputs, labels=labels).logits.float().cpu()


def compare(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> dict[str, Any]:
    """The largest difference, as a share of the largest value.

    Raises:
        Failed: if it is above the tolerance, or something is not finite.
    """
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference <= tolerance:  # NaN included
        raise Failed(f"logits differ by {difference:.2g}, allowed are {tolerance}")
    return {"difference": float(f"{difference:.2g}"), "allowed": tolerance}


def parity(dtype: torch.dtype) -> Callable[[Context], dict[str, Any]]:
    """A check of one dtype against float32 on the CPU."""

    def check(context: Context) -> dict[str, Any]:
        model = context.tiny(dtype)
        return compare(logits(model, context.inputs(dtype)), context.reference(), TOLERANCES[dtype])

    return check


def sdpa(context: Context) -> dict[str, Any]:
    """The fused attention against the plain one, on the device."""
    model, inputs = context.tiny(), context.inputs()
    found = {}
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        found[name] = logits(model, inputs)
    return compare(found["sdpa"], found["eager"], TOLERANCES[torch.float32])


def flash_attention(context: Context) -> dict[str, Any]:
    """The vision tower with flash attention; the language model's position bias is more than it takes."""
    if context.device.type != "cuda" or not is_flash_attn_2_available():
        raise Skip("flash-attn is not installed, or there is no GPU")
    model = context.tiny(torch.bfloat16)
    model.set_attn_implementation({"vision_config": "flash_attention_2"})
    return compare(logits(model, context.inputs(torch.bfloat16)), context.reference(), TOLERANCES[torch.bfloat16])


def answers(context: Context) -> dict[str, Any]:
    """Greedy and 5-beam answers in float32, the same on the device as on the CPU."""
    for num_beams in (1, 5):
        options = {"num_beams": num_beams, "max_new_tokens": 8}
        expected = build_lion(TINY).generate(**make_inputs(TINY, 2), **options)
        found = context.tiny().generate(**context.inputs(), **options).cpu()
        if not torch.equal(found, expected):
            raise Failed(f"with {num_beams} beams the ids are {found.tolist()}, on the CPU {expected.tolist()}")
    return {"ids": "equal", "beams": "1 and 5"}


def compiled(context: Context) -> dict[str, Any]:
    """Decoding with a static cache, compiled with CUDA graphs, against plain decoding: equal ids, and time."""
    if context.device.type != "cuda":
        raise Skip("CUDA graphs need a GPU")
    model, inputs = context.tiny(), context.inputs()
    plain = model.generate(**inputs, max_new_tokens=8)
    options = {"cache_implementation": "static", "compile_config": CompileConfig(mode="reduce-overhead")}
    found = model.generate(**inputs, max_new_tokens=8, **options)
    if not torch.equal(found, plain):
        raise Failed(f"ids are {found.tolist()}, plain {plain.tolist()}")
    model, inputs = full(context, "lion").model, context.inputs(torch.bfloat16, 1, context.size)
    fixed = {"min_new_tokens": context.new_tokens, "max_new_tokens": context.new_tokens}
    return {
        "plain, s": best(context, lambda: model.generate(**inputs, **fixed)),
        "compiled, s": best(context, lambda: model.generate(**inputs, **fixed, **options)),
    }


# --- speed --------------------------------------------------------------------------------------------------------


def full(context: Context, name: str) -> Any:
    """LION or InstructBLIP at the size to be measured, in bfloat16 on the device; built once."""
    if name not in context.models:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(context.device):
                model = build_lion(context.size) if name == "lion" else build_instructblip(context.size)
        finally:
            torch.set_default_dtype(before)
        context.models[name] = {"lion": LionSide, "instructblip": InstructBlipSide}[name](model.to(context.device))
    return context.models[name]


def best(context: Context, run: Callable[[], Any]) -> float:
    """Seconds of the fastest of some runs; the first is not counted."""
    seconds = []
    for _ in range(context.repeats + 1):
        context.synchronize()
        start = time.perf_counter()
        run()
        context.synchronize()
        seconds.append(time.perf_counter() - start)
    return round(min(seconds[1:]), 4)


def speed(num_beams: int, batch_size: int) -> Callable[[Context], dict[str, Any]]:
    """A comparison of answers of equal length with InstructBLIP's."""

    @torch.no_grad()
    def check(context: Context) -> dict[str, Any]:
        inputs = context.inputs(torch.bfloat16, batch_size, context.size)
        seconds = {}
        for name in ("lion", "instructblip"):
            answer = partial(full(context, name).answer, inputs, num_beams, context.new_tokens)
            seconds[name] = best(context, answer)
        ratio = round(seconds["lion"] / seconds["instructblip"], 2)
        return {"lion, s": seconds["lion"], "instructblip, s": seconds["instructblip"], "ratio": ratio}

    return check


# --- training, quantisation, placement ----------------------------------------------------------------------------


@contextmanager
def one_process(device: torch.device) -> Iterator[None]:
    """A process group of this process alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def training_step(context: Context) -> dict[str, Any]:
    """A step of the last stage within DDP: the loss and the gradients are those of the model by itself."""
    inputs, labels = context.inputs(), make_labels(TINY, 2).to(context.device)
    losses, norms = [], []
    with one_process(context.device):
        for is_wrapped in (False, True):
            side = LionSide(context.tiny())
            trained = side.thaw()
            torch.manual_seed(0)
            model = DistributedDataParallel(side.model) if is_wrapped else side.model
            loss = model(**inputs, labels=labels).loss
            loss.backward()
            norm = torch.nn.utils.get_total_norm([weight.grad for weight in trained if weight.grad is not None])
            torch.optim.AdamW(trained).step()
            losses.append(loss.item())
            norms.append(norm.item())
    if not torch.allclose(torch.tensor([losses[0], norms[0]]), torch.tensor([losses[1], norms[1]]), rtol=1e-3):
        raise Failed(f"losses are {losses}, norms of the gradients {norms}")
    return {"loss": round(losses[1], 4), "norm of the gradients": round(norms[1], 4)}


@contextmanager
def saved() -> Iterator[str]:
    """A folder with the small model."""
    with tempfile.TemporaryDirectory() as folder:
        build_lion(TINY).save_pretrained(folder)
        yield folder


def quantised(kind: str) -> Callable[[Context], dict[str, Any]]:
    """A check of weights that bitsandbytes quantises."""

    def check(context: Context) -> dict[str, Any]:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise Skip("bitsandbytes is not installed")
        options = {"int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}[kind]
        with saved() as folder:
            model = LionForConditionalGeneration.from_pretrained(
                folder, quantization_config=BitsAndBytesConfig(**options), device_map={"": context.device}
            )
        return compare(logits(model, context.inputs(model.dtype)), context.reference(), QUANTISED_TOLERANCE[kind])

    return check


def device_map(context: Context) -> dict[str, Any]:
    """Loaded by `device_map="auto"`: where the parts lie, and that the logits are right."""
    if importlib.util.find_spec("accelerate") is None:
        raise Skip("accelerate is not installed")
    with saved() as folder:
        where: Any = "auto" if context.device.type == "cuda" else {"": "cpu"}
        model = LionForConditionalGeneration.from_pretrained(folder, device_map=where)
    found = compare(logits(model, context.inputs()), context.reference(), TOLERANCES[torch.float32])
    return {**found, "devices": ", ".join(sorted({str(weight.device) for weight in model.parameters()}))}


CHECKS: dict[str, Callable[[Context], dict[str, Any]]] = {
    **{f"parity, {str(dtype).removeprefix('torch.')}": parity(dtype) for dtype in TOLERANCES},
    "parity, sdpa against eager": sdpa,
    "parity, flash attention in the vision tower": flash_attention,
    "parity, answers": answers,
    "device_map": device_map,
    "bitsandbytes int8": quantised("int8"),
    "bitsandbytes nf4": quantised("nf4"),
    "training step with DDP": training_step,
    "speed, greedy, batch 1": speed(1, 1),
    "speed, 5 beams, batch 1": speed(5, 1),
    "speed, greedy, batch 8": speed(1, 8),
    "decoding compiled with CUDA graphs": compiled,
}
"""The quick ones first."""


# --- report -------------------------------------------------------------------------------------------------------


def describe(device: torch.device, size: str) -> dict[str, str]:
    """What was run on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "size": size, "torch": torch.__version__, "transformers": transformers.__version__}


def write(results: list[dict[str, Any]], facts: dict[str, str], output: Path) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in facts.items()),
        "",
        "| check | outcome | figures | seconds |",
        "|---|---|---|---|",
    ]
    for result in results:
        figures = ", ".join(f"{name}: {value}" for name, value in result["figures"].items())
        lines.append(
            f"| {result['check']} | {result['outcome']} | {result['reason'] or figures} | {result['seconds']} |"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps({**facts, "checks": results}, indent=2) + "\n")
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
