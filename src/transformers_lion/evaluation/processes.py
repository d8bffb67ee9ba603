"""Processes of an evaluation: those that torchrun or `accelerate launch` started, or a single one.

They share the batches and only communicate to wait for each other. Each process writes its own file.
"""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

PATIENCE = datetime.timedelta(days=30)
"""Maximum time that a process waits for the others, whose share of the work may take much longer."""


@dataclass(frozen=True)
class Processes:
    """This process among all processes.

    Attributes:
        rank: Global rank.
        count: Number of processes.
        local_rank: Rank on this machine, and index of the GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process prepares, merges and scores."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """Device for the model of this process."""
        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            dist.barrier()

    def share_error(self, error: Exception | None) -> None:
        """Stop all processes if the first one has an error. Only the first one reports it.

        Raises:
            SystemExit: In the other processes.
        """
        failed = [error is not None]
        if self.count > 1:
            dist.broadcast_object_list(failed, src=0)
        if error is not None:
            raise error
        if failed[0]:
            raise SystemExit(1)


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Connect to the other processes, if a launcher started any."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        if started:
            dist.destroy_process_group()


__all__ = ["Processes", "join_processes"]
