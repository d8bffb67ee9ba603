"""How tests start scripts on two processes."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
CONFIGS = TESTS.parent / "docs" / "configs"

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--config_file"]


def environment() -> dict[str, str]:
    """This process's environment, in which the tests' own modules are found."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
