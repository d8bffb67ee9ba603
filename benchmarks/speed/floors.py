"""Hardware limits: the time for the matrix products alone, and for reading the weights of a step once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CompileConfig

from .measures import Row, Settings, median, seconds, take_turns
from .models import TOKENS_IN_QUESTION, TOKENS_IN_SENTENCE, Size
from .sections import Bench
from .sides import exactly, first_token

STREAM_NUMBERS = 100_000_000
"""Number of float32 values to read for measuring bandwidth, far more than fit into a cache."""
TRIES = 7


@dataclass(frozen=True)
class Product:
    """Matrix products (m, k) x (k, n), `batch` of them at a time, `count` times."""

    m: int
    k: int
    n: int
    count: int
    batch: int = 1

    @property
    def flops(self) -> int:
        """Operations of one execution."""
        return 2 * self.batch * self.m * self.k * self.n

    def make(self) -> Callable[[], torch.Tensor]:
        """Create a function that executes the product once, on random values."""
        if self.batch > 1:
            left, right = torch.randn(self.batch, self.m, self.k), torch.randn(self.batch, self.k, self.n)
            return lambda: torch.bmm(left, right)
        left, right = torch.randn(self.m, self.k), torch.randn(self.n, self.k).t()  # as linear layers store weights
        return lambda: torch.mm(left, right)


def vision_products(size: Size, batch_size: int = 1) -> list[Product]:
    """Products of the vision tower."""
    width, hidden, heads = (size.vision[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    blocks, patch = size.vision["num_hidden_layers"], size.vision.get("patch_size", 14)
    patches = (size.vision.get("image_size", 224) // patch) ** 2
    rows, positions, head = batch_size * (patches + 1), patches + 1, width // heads
    return [
        Product(batch_size * patches, 3 * patch * patch, width, 1),
        Product(rows, width, 3 * width, blocks),
        Product(positions, head, positions, blocks, batch_size * heads),
        Product(positions, positions, head, blocks, batch_size * heads),
        Product(rows, width, width, blocks),
        Product(rows, width, hidden, blocks),
        Product(rows, hidden, width, blocks),
    ]


def prefill_products(size: Size, bottleneck: int = 64) -> list[Product]:
    """Products of the encoder with adapters, and of the decoder's keys and values for the encoder output."""
    patches = (size.vision.get("image_size", 224) // size.vision.get("patch_size", 14)) ** 2 + 1
    rows = size.num_query_tokens + patches + TOKENS_IN_SENTENCE + TOKENS_IN_QUESTION
    text = size.text
    width, hidden, layers, heads, head = (text[name] for name in ("d_model", "d_ff", "num_layers", "num_heads", "d_kv"))
    inner = heads * head
    return [
        Product(rows, width, inner, (3 + 2) * layers),
        Product(rows, head, rows, layers, heads),
        Product(rows, rows, head, layers, heads),
        Product(rows, inner, width, layers),
        Product(rows, width, hidden, 2 * layers),
        Product(rows, hidden, width, layers),
        Product(rows, width, 2 * bottleneck, layers),
        Product(rows, 2 * bottleneck, width, layers),
    ]


def fastest(function: Callable[[], object], settings: Settings, times: int = 1) -> float:
    """Return the shortest time of a call in seconds, with `times` calls per measurement."""

    def repeated() -> None:
        for _ in range(times):
            function()

    repeated()
    return min(seconds(repeated, settings.clock) for _ in range(2 if settings.quick else TRIES)) / times


def product_seconds(products: list[Product], settings: Settings) -> tuple[float, float]:
    """Return the total of the best times of all products in seconds, and their operations."""
    total, flops = 0.0, 0
    for product in products:
        times = max(1, int((1e6 if settings.quick else 2e8) / product.flops))
        total += product.count * fastest(product.make(), settings, times)
        flops += product.count * product.flops
    return total, flops


def bandwidth(settings: Settings) -> float:
    """Measure the maximum memory bandwidth of all threads in bytes/s, with a sum and a matrix-vector product."""
    matrix = torch.ones(STREAM_NUMBERS // (10 if settings.quick else 1) // 10_000, 10_000)
    vector = torch.ones(10_000)
    calls: tuple[Callable[[], object], ...] = (matrix.sum, lambda: torch.mv(matrix, vector))
    return 4 * matrix.numel() / min(fastest(call, settings) for call in calls)


def step_bytes(language_model: nn.Module) -> int:
    """Count the bytes of weights that a decoding step reads: those of the decoder and `lm_head`.

    The embedding table is not counted, because only a row is read, and neither are the key and value projections of
    cross-attention, which are used once.
    """
    skipped = (".EncDecAttention.k.", ".EncDecAttention.v.", "embed_tokens.")
    named = [(f".{name}", tensor) for name, tensor in language_model.decoder.named_parameters()]
    named += list(language_model.lm_head.named_parameters())
    return sum(
        tensor.numel() * tensor.element_size() for name, tensor in named if not any(skip in name for skip in skipped)
    )


def cache_bytes(size: Size, encoder_tokens: int, num_beams: int = 1) -> int:
    """Count the bytes of float32 keys and values of the encoder output, which each step also reads."""
    text = size.text
    return 4 * 2 * text["num_layers"] * text["num_heads"] * text["d_kv"] * encoder_tokens * num_beams


def further_token(bench: Bench, answer: Callable[[int], object]) -> list[float]:
    """Return the seconds per additional token for each repetition."""
    new_tokens = bench.settings.new_tokens
    times = take_turns({"short": lambda: answer(1), "long": lambda: answer(new_tokens)}, bench.settings)
    pairs = zip(times["long"], times["short"], strict=True)
    return [(long - short) / (new_tokens - 1) for long, short in pairs]


def compiled_token(bench: Bench, inputs: dict[str, torch.Tensor]) -> list[float]:
    """Like `further_token`, with a static cache, a compiled step and one beam."""
    compile_config = CompileConfig(fullgraph=False, dynamic=False, mode="default")
    compile_config._compile_all_devices = True  # by default, transformers only compiles on accelerators
    options = exactly(1, bench.settings.new_tokens)
    longest = options["max_new_tokens"]

    def answer(new_tokens: int) -> torch.Tensor:
        lengths = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        return bench.lion.model.generate(
            **inputs, **{**options, **lengths}, cache_implementation="static", compile_config=compile_config
        )

    plain = bench.lion.answer(inputs, 1, longest)
    assert torch.equal(plain, answer(longest)), "compiled ids differ"
    # each length has its own cache and graph, so lengths are compared from one half on
    half = longest // 2
    times = take_turns({"short": lambda: answer(half), "long": lambda: answer(longest)}, bench.settings)
    pairs = zip(times["long"], times["short"], strict=True)
    return [(long - short) / (longest - half) for long, short in pairs]


@torch.no_grad()
def floors(bench: Bench) -> list[Row]:
    """Compare the vision tower and prefill with their matrix products, and decoding with reading its weights."""
    settings, inputs = bench.settings, bench.inputs(1)
    model = bench.lion.model
    prepared = bench.lion.language_inputs(inputs)
    calls = {
        "vision tower, batch 1": (lambda: model.vision_model(inputs["pixel_values"]), vision_products(bench.size)),
        "prefill, batch 1 ": (lambda: first_token(bench.lion, prepared), prefill_products(bench.size)),
    }
    rows = []
    for name, (call, products) in calls.items():
        measured = take_turns({"lion": call}, settings)["lion"]
        floor, flops = product_seconds(products, settings)
        notes = {"GFLOP": flops / 1e9, "GFLOP/s of the products": flops / floor / 1e9}
        rows.append(Row(name.strip() + ": matrix products", "s", {"lion": measured, "floor": [floor]}, notes))
    rate = bandwidth(settings)
    read = step_bytes(model.language_model)
    cache = cache_bytes(bench.size, prepared["inputs_embeds"].shape[1])
    floor = (read + cache) / rate
    notes = {"MB of weights": read / 1e6, "MB of cache": cache / 1e6, "GB/s of memory": rate / 1e9}
    plain = further_token(bench, lambda count: bench.lion.answer(inputs, 1, count))
    rows.append(Row("a further token, one beam: bandwidth", "s", {"lion": plain, "floor": [floor]}, notes))
    if not settings.quick:
        rows.append(compiled_row(bench, inputs, floor))
    return rows


def compiled_row(bench: Bench, inputs: dict[str, torch.Tensor], floor: float) -> Row:
    """Measure the compiled step, or report why it failed."""
    notes: dict[str, Any] = {}
    values = {"floor": [floor]}
    try:
        values["lion"] = compiled_token(bench, inputs)
    except Exception as error:  # optional: a failure of the compiler is a result
        notes["failed"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error) else ''}"
    torch.compiler.reset()
    return Row("a further token, one beam, compiled: bandwidth", "s", values, notes)


def floor_ratio(row: Row) -> float:
    """Return the measured time as a multiple of the limit."""
    return median(row.values["lion"]) / row.values["floor"][0]
