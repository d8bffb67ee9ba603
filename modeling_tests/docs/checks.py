"""Code on a page that does not run here, looked through: names, arguments, options, files and targets must be there."""

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
import runpy
import shlex
from typing import Any
from unittest.mock import patch

import typer

from docs.pages import ROOT
from transformers_lion.cli import app

LAUNCHERS = ("torchrun", "accelerate")
OTHERS = ("cd", "git", "hf", "source")
"""Programs whose arguments are not looked at."""
PROGRAMS = ("lion", "make", "pip", "python", *LAUNCHERS, *OTHERS)


class Parsed(Exception):  # noqa: N818 (no error)
    """Raised where a script has read its arguments, so that it does no more."""


def check_python(code: str) -> None:
    """Raise if code is no Python, imports what is not there, or gives what it imports unknown arguments.

    Packages that are not installed are passed over.
    """
    tree = ast.parse(code)
    imported: dict[str, Any] = {}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        module = node.module if isinstance(node, ast.ImportFrom) else None
        for name in [*names, *([module] if module else [])]:
            if importlib.util.find_spec(name.partition(".")[0]) is not None:
                loaded = importlib.import_module(name)
                if isinstance(node, ast.ImportFrom):
                    imported |= {alias.asname or alias.name: getattr(loaded, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in imported:
            check_keywords(imported[node.func.id], [keyword.arg for keyword in node.keywords if keyword.arg])


def check_keywords(function: Any, names: list[str]) -> None:
    """Raise `TypeError` if a function takes no argument of one of these names."""
    taken = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for name in names:
        if name not in taken:
            raise TypeError(f"{function.__name__} takes no argument {name!r}.")


def commands(code: str) -> list[list[str]]:
    """The words of each command; comments, and what else joins commands on a line, are left out."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\||;", re.sub(r"(^|\s)#.*", "", line)):
            words = shlex.split(part)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def check_command(words: list[str]) -> None:
    """Raise `ValueError` if a command could not be run as it is written."""
    program, arguments = words[0], words[1:]
    if program not in PROGRAMS:
        raise ValueError(f"{program!r} is no program that is known here.")
    if "transformers_lion.cli" in arguments:
        check_lion(arguments[arguments.index("transformers_lion.cli") + 1 :])
    elif program == "lion":
        check_lion(arguments)
    elif (
        program == "python"
        and arguments[0] == "-m"
        and arguments[1].startswith(("transformers_lion", "examples.", "benchmarks."))
    ):
        check_script(arguments[1], arguments[2:])
    elif program == "python" and arguments[0].startswith("conversion/"):
        check_script(arguments[0].removeprefix("conversion/").removesuffix(".py"), arguments[1:])
    elif program == "python" and arguments[0].endswith(".py"):
        (ROOT / arguments[0]).resolve(strict=True)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        check_known(arguments[0], targets, "target of the Makefile")


def check_known(name: str, names: list[str], kind: str) -> None:
    """Raise `ValueError` if a name is none of those there are."""
    if name not in names:
        raise ValueError(f"{name!r} is no {kind}; there are {', '.join(names)}.")


def check_lion(words: list[str]) -> None:
    """Raise `ValueError` if `lion` knows no such command, option or argument."""
    group: Any = typer.main.get_command(app)
    if words[0].startswith("-"):
        return
    check_known(words[0], list(group.commands), "command of lion")
    try:
        group.commands[words[0]].make_context(words[0], words[1:])
    except typer.Exit:
        pass
    except Exception as error:  # a usage error, whose class typer keeps to itself
        raise ValueError(f"lion {shlex.join(words)}: {error}") from error


def check_script(module: str, words: list[str]) -> None:
    """Raise `ValueError` if a script does not take these arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *_: Any) -> None:
        parse(parser, words)
        raise Parsed

    with patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop):
        try:
            runpy.run_module(module, run_name="__main__")
        except Parsed:
            return
        except SystemExit as error:
            raise ValueError(f"{module} does not take {shlex.join(words)}.") from error


def check_extras(text: str) -> None:
    """Raise `ValueError` if a page asks for an extra that the package has not."""
    declared = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = re.findall(r"^(\w+) = \[", declared, re.MULTILINE)
    for extras in re.findall(r"transformers-lion\[([\w,]+)\]", text):
        for extra in extras.split(","):
            check_known(extra, known, "extra of the package")
