"""Weights in 8 bits on a CPU: speed and error of linear layers, beside float16 packs.

    python -m benchmarks.eight_bits [--rounds 10]

Sizes are those of the linear layers of LION-FlanT5-XL's decoder. Weights and inputs are random and seeded. In the
second set of weights, one input column in 128 is 20 times larger, as in trained models. Several copies of each weight
take turns, so that none stays in the processor's cache. Times are processor time of one thread.

The engine is `x86` of torch's dynamic quantization, the fastest of those that were compared: weights have 8 bits per
output channel, inputs 8 bits per call. "scaled" moves large columns of the weight into the input, by a fixed factor per
column; "split" computes the 16 largest columns separately in float32.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

from transformers_lion.cpu_inference.packs import Float16Pack

SHAPES = {"query, key and value": (6144, 2048), "wo": (2048, 5120)}
ROWS = (1, 4, 5, 20)
COPIES = 4
NUM_SPLIT = 16
Product = Callable[[torch.Tensor], torch.Tensor]


def make_weight(shape: tuple[int, int], has_outliers: bool, seed: int) -> torch.Tensor:
    """Draw a weight (N, K) with bfloat16 values."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * shape[1] ** -0.5
    if has_outliers:
        weight[:, ::128] *= 20
    return weight.bfloat16().float()


def quantize(weight: torch.Tensor) -> Product:
    """Quantize a weight to 8 bits per output channel, with dynamically quantized inputs."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    config = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), config)


def quantize_scaled(weight: torch.Tensor) -> Product:
    """Scale columns to the same size before quantizing the weight."""
    factors = weight.norm(dim=0).clamp(min=1e-12)
    factors /= factors.median()
    product = quantize(weight / factors)
    return lambda states: product(states * factors)


def quantize_split(weight: torch.Tensor) -> Product:
    """Compute the columns with the largest weights in float32, and quantize the others."""
    columns = weight.norm(dim=0).topk(NUM_SPLIT).indices
    large, rest = weight[:, columns].clone(), weight.clone()
    rest[:, columns] = 0
    product = quantize(rest)

    def multiply(states: torch.Tensor) -> torch.Tensor:
        return product(states).add_(nn.functional.linear(states[:, columns], large))

    return multiply


WAYS: dict[str, Callable[[torch.Tensor], Product]] = {
    "float16 packs": lambda weight: Float16Pack([weight]),
    "8 bits": quantize,
    "8 bits, scaled": quantize_scaled,
    "8 bits, split": quantize_split,
}


def measure(shape: tuple[int, int], rounds: int) -> dict[int, dict[str, float]]:
    """Return the best milliseconds per product of each way, in processor time, for each number of rows.

    The ways take turns.
    """
    weights = [make_weight(shape, True, seed) for seed in range(COPIES)]
    products = {name: [make(weight) for weight in weights] for name, make in WAYS.items()}
    best = {rows: dict.fromkeys(WAYS, float("inf")) for rows in ROWS}
    for rows in ROWS * rounds:
        states = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(9))
        for name, copies in products.items():
            start = time.process_time()
            for product in copies:
                product(states)
            best[rows][name] = min(best[rows][name], 1000 * (time.process_time() - start) / len(copies))
    return best


def measure_error(shape: tuple[int, int], has_outliers: bool, rows: int = 5) -> dict[str, float]:
    """Return the relative error of the output of each way."""
    weight = make_weight(shape, has_outliers, 0)
    states = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(9))
    if has_outliers:
        states[:, 64::128] *= 20  # large inputs, at other columns than large weights
    exact = states.double() @ weight.double().T
    return {name: float((make(weight)(states) - exact).norm() / exact.norm()) for name, make in WAYS.items()}


@torch.no_grad()
def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.backends.quantized.engine = "x86"
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread\n")
    print("| ms a product | rows |", " | ".join(WAYS), "|\n|---|---|" + "---|" * len(WAYS))
    for name, shape in SHAPES.items():
        for rows, found in measure(shape, options.rounds).items():
            base = found["float16 packs"]
            print(f"| {name} | {rows} |", " | ".join(f"{ms:.2f} ({base / ms:.2f}x)" for ms in found.values()), "|")
    print("\n| relative error | outliers |", " | ".join(WAYS), "|\n|---|---|" + "---|" * len(WAYS))
    for name, shape in SHAPES.items():
        for has_outliers in (False, True):
            errors = measure_error(shape, has_outliers).values()
            print(f"| {name} | {'yes' if has_outliers else 'no'} |", " | ".join(f"{e:.1e}" for e in errors), "|")


if __name__ == "__main__":
    main()
