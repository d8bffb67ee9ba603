"""Stands in for a module that only transformers' repository has: it starts the processes of the parallel checks.

Those run for the model types on transformers' own lists only, so nothing here is ever called for LION.
"""

from typing import Any


def _get_distributed_device_type() -> str:
    return "cpu"


def _unavailable(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("Only transformers' repository can start the processes of this check.")


run_distributed = _start_rank_processes = _unavailable
_get_distributed_backend = _get_rank_device = _set_rank_device = _unavailable
