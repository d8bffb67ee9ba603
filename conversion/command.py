"""What all commands here do alike: one sentence on stderr and an exit code instead of a traceback."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from safetensors import SafetensorError

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes, as shells count them."""


class Terminated(BaseException):
    """SIGTERM, raised where it arrives, so that what is unfinished is removed."""


def run_command(action: Callable[[], bool]) -> int:
    """Run a command's action.

    Returns:
        The exit code: 0 only if the action returned `True`.
    """
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        return 0 if action() else 1
    except (ValueError, OSError, SafetensorError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        print("error: terminated.", file=sys.stderr)
        return TERMINATED
    finally:
        signal.signal(signal.SIGTERM, before)


def terminate(number: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM."""
    raise Terminated


def sentence(error: Exception) -> str:
    """What an error says, on one line; the system's own errors begin with the file."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename
        text = f"{name}: {error.strerror}." if name else f"{error.strerror}."
    return " ".join(text.splitlines())
