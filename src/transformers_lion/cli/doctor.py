"""`lion doctor`: whether this installation computes what it should, and what it consists of, for an issue."""

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated, Any

import typer
from packaging.requirements import Requirement

from .common import Debug, hide_progress_bars, run_action

PACKAGE = "transformers-lion"
DEVELOPERS_EXTRAS = {"test", "docs", "release", "dev"}
"""Not shown: they are of use to those who change the package."""
FEATURES = ("avx2", "avx512", "amx", "vnni", "bf16", "fp16", "sve", "i8mm")
"""Parts of the names of those features of a processor that matrix products make use of."""
MATRIX = 512
"""Side of the matrices whose product is timed."""
ROUNDS = 5
"""The best of so many runs counts."""
DTYPES = ("float32", "bfloat16", "float16")
FAST = 0.8
"""Share of the speed of float32 from which on a dtype is called fast."""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As an object.")] = False, debug: Debug = False
) -> None:
    """Check that answers are right with the installed packages, and list versions, devices, fast dtypes and extras.

    The exit code is 1 if a check fails.
    """

    def action() -> bool:
        hide_progress_bars()
        facts = describe()
        print(json.dumps(facts, indent=2) if as_json else as_text(facts))
        return not any(facts["checks"].values())

    run_action(action, debug)


def describe() -> dict[str, Any]:
    """All that the command shows.

    Returns:
        `versions`, `newer_than_tested`, `processor`, `devices`, `speed` (of each device and dtype, as a share of
        float32), `inference` (how the commands compute with weights of each dtype on this CPU), `extras` (what is
        missing of each), and `checks` (what each found, empty where all is well).
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
    """What the package asks for, with the extras that users install."""
    found = [Requirement(text) for text in requires(PACKAGE) or ()]
    return [requirement for requirement in found if extra_of(requirement) not in DEVELOPERS_EXTRAS]


def dependencies() -> dict[str, str | None]:
    """The installed version of each package that is asked for; `None` where there is none."""
    names = {requirement.name for requirement in requirements() if requirement.name != PACKAGE}
    return {name: installed_version(name) for name in sorted(names)}


def installed_version(name: str) -> str | None:
    """The version of a package, `None` if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def missing_of_extras() -> dict[str, list[str]]:
    """For each extra what is missing of it or too old, as `name>=lowest version`."""
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
    """The extra that a requirement belongs to."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return None
    words = str(requirement.marker).split("extra ==")
    return words[1].split()[0].strip("\"')") if len(words) > 1 else None


def describe_processor() -> dict[str, Any]:
    """The kind of processor, what it can do, and how many threads torch uses."""
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
    """The name of each accelerator, by what torch calls it."""
    import torch

    if torch.cuda.is_available():
        return {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        return {"mps": "Apple GPU"}
    return {}


def dtype_speeds(device: str) -> dict[str, float]:
    """How fast each dtype multiplies matrices on a device, as a share of float32's speed."""
    seconds = {dtype: multiply_seconds(device, dtype) for dtype in DTYPES}
    return {name: round(seconds["float32"] / taken, 2) for name, taken in seconds.items()}


def inference_plans() -> dict[str, str]:
    """How the commands compute with weights that are saved in each dtype, on this CPU."""
    import torch

    from ..cpu_inference.plan import plan_for_dtype

    return {name: str(plan_for_dtype(getattr(torch, name))) for name in DTYPES}


def multiply_seconds(device: str, dtype: str) -> float:
    """Seconds that a product of two matrices takes, the best of several; infinite where there is none."""
    import torch

    best = float("inf")
    try:
        left = torch.ones(MATRIX, MATRIX, device=device, dtype=getattr(torch, dtype))
        for _ in range(ROUNDS):
            start = time.perf_counter()
            (left @ left)[0, 0].item()  # which waits for the device
            best = min(best, time.perf_counter() - start)
    except RuntimeError:
        pass
    return best


def as_text(facts: dict[str, Any]) -> str:
    """The facts, a few to a line, in the form of a list that Markdown shows as it is."""
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
    """What is missing of an extra, in words."""
    return f"missing {', '.join(gaps)}" if gaps else "complete"


def describe_speed(device: str, shares: dict[str, float]) -> str:
    """Which dtypes are fast on a device, with their share of float32's speed."""
    words = (
        f"{name} {'fast' if share >= FAST else 'slow'} ({share:.2f} times float32's speed)"
        for name, share in shares.items()
        if name != "float32"
    )
    return f"dtypes on {device}: {', '.join(words)}"
