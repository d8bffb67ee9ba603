"""`lion doctor`: checks an installation and describes it for an issue report."""

import json
import os
import platform
import time
from importlib.metadata import requires, version
from typing import Annotated, Any

import typer
from packaging.requirements import Requirement

from ..package_versions import installed_version
from .common import Debug, hide_progress_bars, run_action

PACKAGE = "transformers-lion"
DEVELOPERS_EXTRAS = {"test", "scale", "docs", "release", "dev"}
"""Extras for developing the package, which are not shown."""
FEATURES = ("avx2", "avx512", "amx", "vnni", "bf16", "fp16", "sve", "i8mm")
"""Parts of the names of the CPU features that matrix products use."""
MATRIX = 512
"""Size of the square matrices whose product is timed."""
ROUNDS = 5
"""Number of timed runs, of which the best counts."""
DTYPES = ("float32", "bfloat16", "float16")
FAST = 0.8
"""A dtype is called fast from this fraction of the speed of float32."""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False, debug: Debug = False
) -> None:
    """Check that the installed packages give correct answers, and list versions, devices, fast dtypes and extras.

    The exit code is 1 if a check fails.
    """

    def action() -> bool:
        hide_progress_bars()
        facts = describe()
        print(json.dumps(facts, indent=2) if as_json else as_text(facts))
        return not any(facts["checks"].values())

    run_action(action, debug)


def describe() -> dict[str, Any]:
    """Collect everything that the command shows.

    Returns:
        `versions`, `newest_tested`, `newer_than_tested`, `processor`, `devices`, `speed` (of each device and dtype,
        relative to float32), `inference` (how the commands compute with weights of each dtype on this CPU), `extras`
        (the missing packages of each), and `checks` (the problem that each found, or an empty string).
    """
    from ..self_check import CHECKS, NEWEST_TESTED, newer_than_tested, run_checks

    found = run_checks()
    return {
        "versions": {"python": platform.python_version(), PACKAGE: version(PACKAGE), **dependencies()},
        "newest_tested": NEWEST_TESTED,
        "newer_than_tested": newer_than_tested(),
        "processor": describe_processor(),
        "devices": devices(),
        "speed": {device: dtype_speeds(device) for device in ("cpu", *devices())},
        "inference": inference_plans(),
        "extras": missing_of_extras(),
        "checks": {name: found.get(name, "") for name in CHECKS},
    }


def requirements() -> list[Requirement]:
    """Return the package's requirements, including those of extras for users."""
    found = [Requirement(text) for text in requires(PACKAGE) or ()]
    return [requirement for requirement in found if extra_of(requirement) not in DEVELOPERS_EXTRAS]


def dependencies() -> dict[str, str | None]:
    """Return the installed version of each required package; `None` if it is not installed."""
    names = {requirement.name for requirement in requirements() if requirement.name != PACKAGE}
    return {name: installed_version(name) for name in sorted(names)}


def missing_of_extras() -> dict[str, list[str]]:
    """Return the missing or outdated packages of each extra, as `name>=lowest version`."""
    missing: dict[str, list[str]] = {}
    for requirement in requirements():
        extra = extra_of(requirement)
        if extra is None:
            continue
        problems = missing.setdefault(extra, [])
        found = installed_version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name}{requirement.specifier}")
    return missing


def extra_of(requirement: Requirement) -> str | None:
    """Return the extra that a requirement belongs to, if any."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return None
    words = str(requirement.marker).split("extra ==")
    return words[1].split()[0].strip("\"')") if len(words) > 1 else None


def describe_processor() -> dict[str, Any]:
    """Describe the CPU, its features, and the number of threads that torch uses."""
    import torch

    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # since torch 2.10
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "features": sorted(
            name for name, has_it in features.items() if has_it is True and any(part in name for part in FEATURES)
        ),
        "oneDNN": torch.backends.mkldnn.is_available(),
    }


def devices() -> dict[str, str]:
    """Return the name of each accelerator by its torch device."""
    import torch

    if torch.cuda.is_available():
        return {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        return {"mps": "Apple GPU"}
    return {}


def dtype_speeds(device: str) -> dict[str, float]:
    """Return the speed of matrix products in each dtype on a device, relative to float32."""
    seconds = {dtype: multiply_seconds(device, dtype) for dtype in DTYPES}
    return {name: round(seconds["float32"] / taken, 2) for name, taken in seconds.items()}


def inference_plans() -> dict[str, str]:
    """How the commands compute with weights that are saved in each dtype, on this CPU."""
    import torch

    from ..cpu_inference.plan import plan_for_dtype

    return {name: str(plan_for_dtype(getattr(torch, name))) for name in DTYPES}


def multiply_seconds(device: str, dtype: str) -> float:
    """Return the best time of a matrix product in seconds; infinite if the device does not support the dtype."""
    import torch

    best = float("inf")
    try:
        left = torch.ones(MATRIX, MATRIX, device=device, dtype=getattr(torch, dtype))
        for _ in range(ROUNDS):
            start = time.perf_counter()
            (left @ left)[0, 0].item()  # waits for the device
            best = min(best, time.perf_counter() - start)
    except RuntimeError:
        pass
    return best


def as_text(facts: dict[str, Any]) -> str:
    """Format the facts as plain text, one section per topic."""
    versions = {name: found or "not installed" for name, found in facts["versions"].items()}
    processor = facts["processor"]
    lines = [
        "versions:",
        *(f"  {name} {found}" for name, found in versions.items()),
        "",
        f"processor: {processor['system']} {processor['machine']}, {processor['cores']} cores, {processor['threads']} "
        f"threads, {processor['capability']}, {'with' if processor['oneDNN'] else 'without'} oneDNN",
        f"processor features: {', '.join(processor['features']) or 'unknown'}",
        "devices: " + (", ".join(f"{name} ({label})" for name, label in facts["devices"].items()) or "no GPU"),
        *(describe_speed(device, shares) for device, shares in facts["speed"].items()),
        *(f"a model in {dtype} on the CPU: {plan}" for dtype, plan in facts["inference"].items()),
        "",
        "extras:",
        *(
            f"  {extra}: {'missing ' + ', '.join(gaps) if gaps else 'complete'}"
            for extra, gaps in facts["extras"].items()
        ),
        "",
        "checks:",
        *(f"  {name}: {found or 'right'}" for name, found in facts["checks"].items()),
    ]
    for name, found in facts["newer_than_tested"].items():
        lines.append(f"  {name} {found} is newer than {facts['newest_tested'][name]}, the newest tested.")
    return "\n".join(lines)


def describe_gaps(gaps: list[str]) -> str:
    """Describe which packages of an extra are missing."""
    return f"missing {', '.join(gaps)}" if gaps else "complete"


def describe_speed(device: str, shares: dict[str, float]) -> str:
    """Describe which dtypes are fast on a device, relative to float32."""
    words = (
        f"{name} {'fast' if share >= FAST else 'slow'} ({share:.2f} times float32's speed)"
        for name, share in shares.items()
        if name != "float32"
    )
    return f"dtypes on {device}: {', '.join(words)}"
