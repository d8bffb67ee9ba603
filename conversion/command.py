"""What all commands here do alike: one sentence on stderr and an exit code instead of a traceback."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from safetensors import SafetensorError

from transformers_lion.cli.common import INTERRUPTED, sentence

TERMINATED = 128 + signal.SIGTERM
"""Exit code, as shells count it, beside `INTERRUPTED`."""


class _Terminated(BaseException):
    """SIGTERM, raised where it arrives, so that what is unfinished is removed."""


def run_command(action: Callable[[], bool]) -> int:
    """Run a command's action.

    Returns:
        The exit code: 0 only if the action returned `True`.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return 0 if action() else 1
    except (ValueError, OSError, SafetensorError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except _Terminated:
        print("error: terminated.", file=sys.stderr)
        return TERMINATED
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM."""
    raise _Terminated
