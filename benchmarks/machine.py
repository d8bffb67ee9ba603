"""What benchmarks say about the machine that they run on."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """Return the name of the processor."""
    try:
        names = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor()
