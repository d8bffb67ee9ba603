"""One Ray instance with two CPUs for all tests of a process, and a folder to work in."""

import signal
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from jobs import workers

cloudpickle.register_pickle_by_value(workers)  # Ray's workers do not find the tests


@pytest.fixture(scope="module")
def local_ray() -> None:
    """Start Ray, unless another module has done so. It ends with the process."""
    if not ray.is_initialized():
        before = signal.getsignal(signal.SIGTERM)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        signal.signal(signal.SIGTERM, before)  # which `ray.init` replaces


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
