"""The processes of an evaluation: those that torchrun or `accelerate launch` started, or one alone.

They share the batches out and tell each other nothing but that they are done; each writes a file of its own.
"""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for the others, one of which may have the longer half of the work."""


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank: its number.
        count: of all.
        local_rank: its number on its machine, and of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the one that prepares, merges and scores."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """Where this process's model belongs."""
        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"

    def wait(self) -> None:
        """Wait until all have come here."""
        if self.count > 1:
            dist.barrier()

    def share_error(self, error: Exception | None) -> None:
        """Stop all processes if the first has an error, which it alone reports.

        Raises:
            SystemExit: in the others.
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
    """Find the other processes, if a launcher started some."""
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
