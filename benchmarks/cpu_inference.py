"""What `optimize_for_inference` gains on a CPU: answers, tokens and memory, beside InstructBLIP.

    python -m benchmarks.cpu_inference --size quarter [--threads 2] [--folder .cache/cpu_inference] [--repeats 3]

Sizes: `full` is LION-FlanT5-XL, `quarter` its widths with a quarter of all depths, `host` its language model's depth
with widths of 32, where Python and not the products take the time. Weights are random, seeded, and in bfloat16 on the
disk.

Each side runs in a process of its own, so that its peak memory is its own. Results are written after each measurement;
a side that is in the file already is not measured again (`--fresh` forgets it). Ratios of `host` come from one process
in which the sides take turns. `host` also measures transformers' `generate` with a model that computes nothing, which
no decoder can go below. Nothing that was compiled before is reused.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_outputs import Seq2SeqLMOutput

from transformers_lion import LionForConditionalGeneration
from transformers_lion.compatibility import CACHE_NAME, get_cache
from transformers_lion.cpu_inference import inference_plan, optimize_for_inference

from .speed.models import TINY, Size, build_instructblip, build_lion, lion_config, make_inputs
from .speed.sides import InstructBlipSide, LionSide, Side

XL_TEXT = {"vocab_size": 32128, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32}
SIZES = {
    "full": Size(
        vision={"hidden_size": 1408},
        qformer={},
        aggregator={},
        text={**XL_TEXT, "num_layers": 24},
        num_query_tokens=32,
        ram={},
    ),
    "quarter": Size(
        vision={"hidden_size": 1408, "num_hidden_layers": 10},
        qformer={"num_hidden_layers": 3},
        aggregator={"vision_feature_layers": [9, 6]},
        text={**XL_TEXT, "num_layers": 6},
        num_query_tokens=32,
        ram={},
    ),
    "host": Size(
        vision=TINY.vision,
        qformer=TINY.qformer,
        aggregator=TINY.aggregator,
        text={"vocab_size": 512, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 24, "num_heads": 4},
        num_query_tokens=32,
        ram={},
    ),
}  # fmt: skip
NEW_TOKENS = 20
BEAMS = 5
SIDES = {
    "plain": "LION in float32",
    "exact": "LION in float32, optimized (weights='float32')",
    "packed": "LION from bfloat16, optimized (float16 packs)",
    "compiled": "the same, decoder compiled",
    "bfloat16": "LION in bfloat16, as loaded",
    "instructblip": "InstructBLIP in float32",
}


def write_folder(size: Size, folder: Path) -> Path:
    """LION with seeded weights in bfloat16, made on the meta device and written shard by shard."""
    if not (folder / "config.json").exists():
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = lion_config(size)
        with torch.device("meta"):
            model = LionForConditionalGeneration(config)
        generator = torch.Generator().manual_seed(0)
        names = [(name, weight.shape) for name, weight in model.named_parameters()]  # tied ones once
        index: dict[str, str] = {}
        for number in range(0, len(names), 100):
            file = f"model-{number:05d}.safetensors"
            shard = {name: _draw(name, shape, generator) for name, shape in names[number : number + 100]}
            save_file(shard, folder / file, metadata={"format": "pt"})
            index.update(dict.fromkeys(shard, file))
        content = {"metadata": {}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        config.dtype, config.architectures = "bfloat16", [type(model).__name__]
        config.save_pretrained(folder)
        os.sync()  # pages that are not on the disk yet would stay in memory when they are no longer needed
    return folder


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Weights with which the states stay finite: norms near 1, all else by the width."""
    if len(shape) < 2:
        is_norm = "norm" in name and name.endswith("weight")
        return (float(is_norm or name.endswith("scale")) + 0.02 * torch.randn(shape, generator=generator)).bfloat16()
    deviation = 1.0 if "shared" in name else 0.5 * shape[-1] ** -0.5
    return (deviation * torch.randn(shape, generator=generator)).bfloat16()


def make_side(name: str, size: Size, folder: Path) -> Side:
    if name == "instructblip":
        return InstructBlipSide(build_instructblip(size))
    dtype = torch.bfloat16 if name in ("packed", "compiled", "bfloat16") else torch.float32
    model = LionForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    if name in ("exact", "packed", "compiled"):
        # by name, so that processors with units for bfloat16 can measure it too
        weights = "float32" if name == "exact" else "float16"
        optimize_for_inference(model, weights=weights, compile=name == "compiled")
    return LionSide(model)


def measure(name: str, size: Size, folder: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Seconds of one side, the fastest of `repeats`, its ids and its peak memory."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    side, inputs = make_side(name, size, folder), make_inputs(size)
    results: dict[str, Any] = {"load": time.perf_counter() - start, "loaded_gb": peak_memory()}
    with torch.no_grad():
        if name == "compiled":
            results["compile"] = [compile_time(side, inputs, beams) for beams in (1, BEAMS)]
        side.answer(inputs, 1, 2)  # reads the weights from the disk, and touches them for the first time
        results["image"], _ = fastest(lambda: side.encode(inputs), repeats)
        for beams in (1, BEAMS):
            kind = "greedy" if beams == 1 else f"{beams} beams"
            short, _ = fastest(partial(side.answer, inputs, beams, 2), repeats)
            seconds, ids = fastest(partial(side.answer, inputs, beams, NEW_TOKENS), repeats)
            results[f"answer, {kind}"], results[f"ids, {kind}"] = seconds, ids.tolist()
            results[f"token, {kind}"] = (seconds - short) / (NEW_TOKENS - 2)
        results["peak_gb"] = peak_memory()
    return results


def compile_time(side: Side, inputs: dict[str, torch.Tensor], beams: int) -> float:
    """How many seconds longer the first answer takes than the second."""
    first, second = (fastest(partial(side.answer, inputs, beams, 2), 1)[0] for _ in range(2))
    return first - second


def fastest(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Seconds of the fastest call, and what it returned."""
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def peak_memory() -> float:
    """Of this process, in GB: what the kernel calls VmHWM."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def measure_host(repeats: int) -> dict[str, Any]:
    """Milliseconds of one more token, in turns, one thread, time on the processor; medians."""
    torch.set_num_threads(1)
    size = SIZES["host"]
    sides: dict[str, Side] = {
        "plain": LionSide(build_lion(size)),
        "optimized": LionSide(optimize_for_inference(build_lion(size), weights="float32")),
        "compiled": LionSide(optimize_for_inference(build_lion(size), weights="float32", compile=True)),
        "instructblip": InstructBlipSide(build_instructblip(size)),
        "generate alone": LionSide(without_computation(build_lion(size))),
    }
    results: dict[str, Any] = {}
    for batch in (1, 8):
        for beams in (1, BEAMS):
            inputs = make_inputs(size, batch)
            compile_seconds = compile_time(sides["compiled"], inputs, beams)
            answers = {name: side.answer(inputs, beams, 24) for name, side in sides.items()}
            times: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(max(5, repeats)):
                for name, side in sides.items():
                    times[name].append(token_time(side, inputs, beams))
            medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
            results[f"batch {batch}, {beams} beams"] = {
                **{name: 1000 * value for name, value in medians.items()},
                **{
                    f"{name} / instructblip": medians[name] / medians["instructblip"]
                    for name in sides
                    if name != "instructblip"
                },
                "seconds to compile": compile_seconds,
                "ids equal": all(torch.equal(answers["plain"], answers[name]) for name in ("optimized", "compiled")),
            }
    return results


def without_computation(model: LionForConditionalGeneration) -> LionForConditionalGeneration:
    """Replace the language model's `forward` by one that returns fixed logits."""
    forward = model.language_model.forward
    logits = torch.randn(64, 1, model.config.text_config.vocab_size, generator=torch.Generator().manual_seed(0))

    @wraps(forward)
    def answer(decoder_input_ids: torch.Tensor, **arguments: Any) -> Seq2SeqLMOutput:
        return Seq2SeqLMOutput(logits=logits[: len(decoder_input_ids)], **{CACHE_NAME: get_cache(arguments)})

    model.language_model.forward = answer
    return model


def token_time(side: Side, inputs: dict[str, torch.Tensor], beams: int) -> float:
    times = []
    for tokens in (4, 24):
        start = time.process_time()
        side.answer(inputs, beams, tokens)
        times.append(time.process_time() - start)
    return (times[1] - times[0]) / 20


def table(results: dict[str, Any]) -> str:
    """A row for each side, a column for each time; ids against the plain model's."""
    rows = [name for name in SIDES if name in results]
    columns = ["load", "image", *(f"{what}, {kind}" for what in ("token", "answer") for kind in ("greedy", "5 beams"))]
    lines = [f"| | {' | '.join(columns)} | GB loaded / at most | ids equal |", "|---" * (len(columns) + 3) + "|"]
    plain = results.get("plain", {})
    for name in rows:
        side = results[name]
        cells = [f"{side[column]:.2f}" + ratio(side, plain, column) for column in columns]
        same = all(side[key] == plain.get(key) for key in side if key.startswith("ids"))
        memory = f"{side['loaded_gb']:.1f} / {side['peak_gb']:.1f}" + ratio(side, plain, "peak_gb")
        lines.append(f"| {SIDES[name]} | {' | '.join(cells)} | {memory} | {'yes' if same else 'no'} |")
    return "\n".join(lines)


def ratio(side: dict[str, Any], plain: dict[str, Any], column: str) -> str:
    return f" ({side[column] / plain[column]:.2f})" if plain and side is not plain else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_inference", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", choices=SIZES, default="quarter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=1, help="the fastest counts; 1 by default, and at least 5 of `host`"
    )
    parser.add_argument("--folder", type=Path, default=Path(".cache/cpu_inference"), help="for weights and results")
    parser.add_argument("--only", choices=SIDES, nargs="+", default=list(SIDES))
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the results")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as compiled:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        run(options)


def run(options: argparse.Namespace) -> None:
    size, file = SIZES[options.size], options.folder / f"{options.size}.json"
    weights = options.folder / f"lion-{options.size}"
    if options.one:
        print(json.dumps(measure(options.one, size, weights, options.repeats, options.threads)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.size == "host":
        results = measure_host(options.repeats)
        file.write_text(json.dumps(results, indent=1))
        print(json.dumps(results, indent=1))
        return
    write_folder(size, weights)
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in options.only:
        if name in results and not options.fresh:
            continue
        command = [sys.executable, "-m", "benchmarks.cpu_inference", *sys.argv[1:], "--one", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
        file.write_text(json.dumps(results))
        print(table(results), flush=True)
    with torch.device("meta"):
        print(inference_plan(LionForConditionalGeneration(lion_config(TINY))))
    print(table(results))


if __name__ == "__main__":
    main()
