"""How tests run `lion`, in their own process."""

from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from transformers_lion import cli


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    lines: list[str]
    errors: list[str]


def lion(*arguments: Any, stdin: bytes | str = "") -> Ran:
    """Run the command; whatever it does not report as an error of the user's is raised."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout.splitlines(), result.stderr.splitlines())


def refusal(*arguments: Any, stdin: bytes | str = "") -> str:
    """The one line of a command that could not do anything."""
    ran = lion(*arguments, stdin=stdin)
    assert (ran.code, ran.lines) == (1, [])
    (line,) = ran.errors
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
