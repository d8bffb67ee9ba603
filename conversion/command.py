"""Shared by all commands: report errors as one sentence on stderr and an exit code instead of a traceback."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from safetensors import SafetensorError

from transformers_lion.cli.common import INTERRUPTED, sentence

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, following the convention of shells."""


class _Terminated(BaseException):
    """Raised where SIGTERM arrives, so that unfinished output is removed."""


def run_command(action: Callable[[], bool]) -> int:
    """Run the action of a command.

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
    raise _Terminated
