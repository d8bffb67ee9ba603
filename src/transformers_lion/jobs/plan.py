"""Decides how many actors a job starts and what each of them gets, and refuses plans that could never start.

The rows of a job come from the driver, and it writes the results, so that only actors need CPUs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MEMORY_FACTOR = 2.0
"""Memory of an actor as a multiple of the size of its weights files, for weights in 16 bits that are computed in 32."""
MEMORY_BASE = 1 << 30
"""Memory of an actor besides the weights, in bytes: Python, torch, activations and images."""


@dataclass(frozen=True)
class Node:
    """Resources of a machine: CPUs, GPUs, and memory in bytes."""

    cpus: float
    gpus: float
    memory: float


@dataclass(frozen=True)
class Plan:
    """The actors of a job.

    Attributes:
        num_actors: Maximum number of actors. The job runs with fewer as long as there is one.
        cpus, gpus: CPUs and GPUs of each actor.
    """

    num_actors: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        actors = "1 actor" if self.num_actors == 1 else f"{self.num_actors} actors"
        share = f"{self.cpus:g} CPU" + ("" if self.cpus == 1 else "s")
        if self.gpus:
            share += f" and {self.gpus:g} GPU" + ("" if self.gpus == 1 else "s")
        return f"{actors}, each with {share}"


def make_plan(
    nodes: Sequence[Node],
    weights_bytes: int,
    num_actors: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
) -> Plan:
    """Choose the actors of a job.

    Args:
        nodes: The machines.
        weights_bytes: Size of the files of the weights.
        num_actors: Number of actors. Defaults to as many as there is room for: one per GPU, or on CPUs one per CPU as
            long as the memory suffices.
        cpus: CPUs per actor. Defaults to an equal share.
        gpus: GPUs per actor, such as 0.5. Defaults to 1 if there are GPUs; 0 computes on CPUs.

    Raises:
        ValueError: If there is no room for the actors. The message has the numbers needed and available.
    """
    for name, value in (("num_actors", num_actors), ("num_cpus_per_actor", cpus)):
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}, but must be greater than 0.")
    if gpus is not None and gpus < 0:
        raise ValueError(f"num_gpus_per_actor is {gpus}, but must not be negative.")
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise ValueError(f"num_gpus_per_actor is {gpus}, but above 1 it must be a whole number.")
    if gpus is None:
        gpus = 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0
    if num_actors is None:
        least = cpus or 1.0
        num_actors = sum(fit(node, least, gpus, weights_bytes) for node in nodes)
        if num_actors == 0:
            num_actors = 1  # a single actor may need less memory than expected
    if cpus is None:
        cpus = share_cpus(nodes, num_actors, gpus)
    plan = Plan(num_actors, cpus, gpus)
    room = sum(fit(node, cpus, gpus) for node in nodes)
    if room < num_actors:
        raise ValueError(
            f"There is no room for {plan}: {describe_nodes(nodes)} can hold {room}. Set fewer actors, or fewer CPUs or "
            "GPUs for each of them."
        )
    return plan


def fit(node: Node, cpus: float, gpus: float, weights_bytes: int | None = None) -> int:
    """Return the number of actors that a machine can hold. Memory counts only for actors on CPUs."""
    count = int(node.cpus / cpus + 1e-6)
    if gpus:
        count = min(count, int(node.gpus) * int(1 / gpus + 1e-6) if gpus < 1 else int(node.gpus / gpus + 1e-6))
    elif weights_bytes is not None:
        count = min(count, int(node.memory / (MEMORY_FACTOR * weights_bytes + MEMORY_BASE)))
    return count


def share_cpus(nodes: Sequence[Node], num_actors: int, gpus: float) -> float:
    """Return the most CPUs that each of the actors can have; 1 if there is no room for them."""
    most = int(max(node.cpus for node in nodes))
    for cpus in range(most, 1, -1):
        if sum(fit(node, cpus, gpus) for node in nodes) >= num_actors:
            return float(cpus)
    return 1.0


def describe_nodes(nodes: Sequence[Node]) -> str:
    """Return the machines as text."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    machines = "this machine" if len(nodes) == 1 else f"the cluster of {len(nodes)} nodes"
    return f"{machines} ({cpus:g} CPUs, {gpus:g} GPUs)"


__all__ = ["Node", "Plan", "make_plan"]
