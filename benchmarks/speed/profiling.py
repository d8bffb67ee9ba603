"""Profile of an answer by operation."""

import torch
from torch.profiler import ProfilerActivity, profile

from .sections import Bench

NUM_ROWS = 15


@torch.no_grad()
def top_operations(bench: Bench) -> list[dict[str, float | int | str]]:
    """Return the operations of an answer with 5 beams that take the most time themselves: ms, share and calls."""
    inputs = bench.inputs(1)
    bench.lion.answer(inputs, 5, bench.settings.new_tokens)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        bench.lion.answer(inputs, 5, bench.settings.new_tokens)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "operation": event.key,
            "ms": event.self_cpu_time_total / 1e3,
            "share": event.self_cpu_time_total / total,
            "calls": event.count,
        }
        for event in events[:NUM_ROWS]
    ]
