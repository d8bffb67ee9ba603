"""Memory and answers of loading: from shards, with a memory limit and disk offload, and quantized.

    python benchmarks/loading.py --folder /somewhere/with/room

Creates a LION with 0.72 billion random parameters, 1.4 GB of bfloat16 in 8 shards, and loads it in a new process for
each row of the printed tables. Rows whose package is not installed say so.

Memory is sampled every 2 ms, relative to its value before loading. Weights that are stored in the requested dtype are
memory-mapped: they take no anonymous memory, and the system can evict them. Seconds are processor time on one thread.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from transformers_lion import LionConfig, LionForConditionalGeneration

NUM_TOKENS = 20
NUM_SAMPLES = 4
CONFIG: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    },
    "aggregator_config": {"vision_feature_layers": [11, 8, 5], "num_attention_heads": 12},
    "text_config": {"d_model": 1024, "d_ff": 2816, "num_layers": 12, "num_heads": 16},
}  # fmt: skip


def build(folder: Path) -> None:
    """Save the seeded model as shards. The adapters get nonzero weights, because freshly initialized ones have no
    effect.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LionForConditionalGeneration(LionConfig(**CONFIG))
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter." in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size="200MB")


def make_inputs(dtype: torch.dtype, num_samples: int = NUM_SAMPLES) -> dict[str, torch.Tensor]:
    """Create seeded pixels and questions for both tasks."""
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(num_samples, 3, 224, 224, generator=generator).to(dtype),
        "input_ids": torch.randint(3, 32000, (num_samples, 24), generator=generator),
        "qformer_input_ids": torch.randint(1000, 30000, (num_samples, 16), generator=generator),
        "task_type_ids": torch.arange(num_samples) % 2,
    }


def memory() -> dict[str, int]:
    """Return the anonymous and the total resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    return {"anonymous": int(status["RssAnon"].split()[0]) * 1024, "resident": int(status["VmRSS"].split()[0]) * 1024}


class Growth:
    """Measures the growth of this process's memory in a `with` block, in bytes: its `peak`, and at the `end`."""

    def __enter__(self) -> "Growth":
        self.start, self.peak, self.running = memory(), dict.fromkeys(memory(), 0), True
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        return self

    def sample(self) -> None:
        while self.running:
            self.peak = {name: max(self.peak[name], value - self.start[name]) for name, value in memory().items()}
            time.sleep(0.002)

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()
        self.end = {name: value - self.start[name] for name, value in memory().items()}


def load(folder: Path, **kwargs: Any) -> tuple[LionForConditionalGeneration, Growth, float]:
    """Load the model, and return it with its memory growth and the time in seconds."""
    start = time.process_time()
    with Growth() as growth:
        model = LionForConditionalGeneration.from_pretrained(folder, **kwargs).eval()
    return model, growth, time.process_time() - start


def answer(model: LionForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Generate exactly `NUM_TOKENS` tokens with greedy decoding."""
    return model.generate(**inputs, num_beams=1, min_new_tokens=NUM_TOKENS, max_new_tokens=NUM_TOKENS)


def seconds_per_answer(model: LionForConditionalGeneration, dtype: torch.dtype) -> float:
    """Return the faster of two greedy answers to one question, in seconds."""
    inputs, seconds = make_inputs(dtype, num_samples=1), []
    for _ in range(2):
        start = time.process_time()
        answer(model, inputs)
        seconds.append(time.process_time() - start)
    return min(seconds)


def weight_bytes(model: LionForConditionalGeneration) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def saved_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def run_dtype(folder: Path, dtype: str) -> dict[str, Any]:
    """Load the model in a dtype and read all weights."""
    start = memory()
    model, growth, seconds = load(folder, dtype=dtype)
    answer(model, make_inputs(model.dtype))
    size = weight_bytes(model)
    return {
        "weights": size,
        "anonymous": growth.peak["anonymous"] / size,
        "resident": (memory()["resident"] - start["resident"]) / size,
        "seconds": seconds,
    }


def run_offload(folder: Path, dtype: str, share: float) -> dict[str, Any]:
    """Load with `device_map="auto"`, limited to a `share` of the weights, and return the generated ids."""
    size = saved_bytes(folder) * (2 if dtype == "float32" else 1)
    limits = {"device_map": "auto", "max_memory": {"cpu": int(share * size)}} if share < 1 else {}
    with Growth() as growth:
        start = time.process_time()
        model = LionForConditionalGeneration.from_pretrained(folder, dtype=dtype, **limits).eval()
        loading = time.process_time() - start
        ids = answer(model, make_inputs(getattr(torch, dtype)))
    on_disk = sum(parameter.is_meta for parameter in model.parameters())
    return {
        "on_disk": on_disk,
        "anonymous": growth.peak["anonymous"],
        "loading": loading,
        "answer": seconds_per_answer(model, getattr(torch, dtype)),
        "ids": ids.tolist(),
    }


def torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def torchao_int4() -> Any:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup
    from transformers import TorchAoConfig

    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(64)))


def bitsandbytes_int8() -> Any:
    import bitsandbytes  # noqa: F401
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def bitsandbytes_nf4() -> Any:
    import bitsandbytes  # noqa: F401
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


QUANTIZATIONS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "torchao int8": torchao_int8,
    "torchao int4 in int8": torchao_int4,
    "bitsandbytes int8": bitsandbytes_int8,
    "bitsandbytes nf4": bitsandbytes_nf4,
}


def run_quantization(folder: Path, name: str, output: Path) -> dict[str, Any]:
    """Quantize while loading, save, and answer."""
    try:
        config = QUANTIZATIONS[name]()
    except ImportError as error:
        return {"skipped": str(error)}
    model, growth, seconds = load(folder, dtype="bfloat16", quantization_config=config)
    model.save_pretrained(output)  # before the first answer: see docs/loading.md about nf4
    inputs = make_inputs(torch.bfloat16)
    return {
        "saved": saved_bytes(output),
        "anonymous": growth.peak["anonymous"],
        "seconds": seconds,
        "ids": answer(model, inputs).tolist(),
    }


def run_reload(folder: Path, ids: torch.Tensor) -> dict[str, Any]:
    """Load the saved model, answer, and predict each token of `ids` from the preceding ones."""
    start = memory()
    model, growth, seconds = load(folder)
    inputs = make_inputs(torch.bfloat16)
    with torch.no_grad():
        predicted = model(**inputs, decoder_input_ids=ids[:, :-1]).logits.argmax(-1)
    return {
        "anonymous": growth.peak["anonymous"],
        "resident": memory()["resident"] - start["resident"],
        "seconds": seconds,
        "ids": answer(model, inputs).tolist(),
        "predicted": predicted.flatten().tolist(),
        "answer": seconds_per_answer(model, torch.bfloat16),
    }


def in_process(*arguments: object) -> dict[str, Any]:
    """Compute one case in a new process and return its result."""
    command = [sys.executable, __file__, "--case", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{arguments}: {process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def run_case(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    if name == "build":
        build(folder)
        return {}
    if name == "dtype":
        return run_dtype(folder, arguments[0])
    if name == "offload":
        return run_offload(folder, arguments[0], float(arguments[1]))
    if name == "quantize":
        return run_quantization(folder, arguments[0], Path(arguments[1]))
    return run_reload(folder, torch.tensor(json.loads(arguments[0])))


def print_dtypes(model: Path) -> None:
    print("| dtype | weights, GB | peak anonymous memory during loading | resident memory after an answer | seconds |")
    print("|---|---|---|---|---|")
    for dtype in ("bfloat16", "float16", "float32"):
        row = in_process("dtype", model, dtype)
        print(f"| {dtype} | {row['weights'] / 1e9:.2f} | {row['anonymous']:.1%} of the weights | "
              f"{row['resident']:.0%} | {row['seconds']:.1f} |", flush=True)  # fmt: skip


def print_offloads(model: Path) -> None:
    print("\n| dtype | memory limit (of the weights) | tensors on disk | peak anonymous memory, GB | loading, s | "
          "one answer, s | same ids as without limit |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for dtype in ("bfloat16", "float32"):
        plain = None
        for share in (1, 0.75, 0.25):
            row = in_process("offload", model, dtype, share)
            plain = plain or row["ids"]
            print(f"| {dtype} | {'none' if share == 1 else f'{share:.0%}'} | {row['on_disk']} | "
                  f"{row['anonymous'] / 1e9:.2f} | {row['loading']:.1f} | {row['answer']:.2f} | "
                  f"{'yes' if row['ids'] == plain else 'NO'} |", flush=True)  # fmt: skip


def print_quantizations(model: Path, output: Path) -> None:
    print("\n| quantization | saved, GB | quantizing: peak anonymous memory, GB | seconds | loading the saved model: "
          "peak, GB | seconds | resident memory after answers, GB | one answer, s | ids after saving and loading | "
          "same next token as unquantized |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    plain, predicted = None, []
    for name in QUANTIZATIONS:
        shutil.rmtree(output, ignore_errors=True)
        row = in_process("quantize", model, name, output)
        if "skipped" in row:
            print(f"| {name} | {row['skipped']} |")
            continue
        plain = plain or row["ids"]
        again = in_process("reload", output, plain)
        predicted = predicted or again["predicted"]
        same = sum(map(int.__eq__, predicted, again["predicted"])) / len(predicted)
        print(f"| {name} | {row['saved'] / 1e9:.2f} | {row['anonymous'] / 1e9:.2f} | {row['seconds']:.1f} | "
              f"{again['anonymous'] / 1e9:.2f} | {again['seconds']:.1f} | {again['resident'] / 1e9:.2f} | "
              f"{again['answer']:.2f} | {'equal' if again['ids'] == row['ids'] else 'DIFFER'} | "
              f"{same:.0%} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path("loading-benchmark"))
    parser.add_argument("--case", nargs="+", help="one case, in this process; prints its result as JSON")
    arguments = parser.parse_args()
    if arguments.case:
        torch.set_num_threads(1)
        name, folder, *rest = arguments.case
        print(json.dumps(run_case(name, Path(folder), *rest)))
        return
    model = arguments.folder / "lion"
    if not (model / "config.json").exists():
        in_process("build", model)
    print_dtypes(model)
    print_offloads(model)
    print_quantizations(model, arguments.folder / "quantized")


if __name__ == "__main__":
    main()
