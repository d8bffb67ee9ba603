"""The blocks of code on a page of the documentation: read, run, and put back with what they print.

`python` and `bash` run, all of a page in one folder, and all its Python in one namespace. A `text` block right behind
one of them is what it prints. `sh` does not run, nor does what `<!-- not run: reason -->` stands above; such code is
looked through (`checks.py`). An output below `<!-- varies -->` is refreshed, but not compared.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from ram.recipe import write_ram_files
from restored_logging import restored_logging
from transformers_lion.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|varies)(?:: (?P<reason>.+))? -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TERMINAL = {"TERM": "dumb", "COLUMNS": "100"}
RUN, SHOWN = ("python", "bash"), ("text", "sh")

RAM_NAMES = {"ram_swin_large_14m.pth": "ram.pth", "ram_tag_list.txt": "tag_list.txt",
             "ram_tag_list_threshold.txt": "tag_list_threshold.txt"}  # fmt: skip
NAMES = {"LION-FlanT5-XL.pth": "lion.pth", "eva_vit_g.pth": "eva_vit.pth", "flan-t5-xl": "llm",
         "bert-base-uncased": "bert", "overrides.json": "overrides.json"}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        mark: "not run" or "varies", from the comment above it.
        reason: why it does not run.
        span: of the code, in the page's text.
        output: the block of what it prints, if that stands right behind it.
    """

    language: str
    code: str
    mark: str | None
    reason: str | None
    span: tuple[int, int]
    output: "Block | None" = None

    @property
    def runs(self) -> bool:
        """Whether it is run as it stands."""
        return self.language in RUN and self.mark != "not run"


def blocks(text: str) -> list[Block]:
    """All blocks of a page; outputs are also at the blocks that print them."""
    matches = list(BLOCK.finditer(text))
    found = [
        Block(match["language"], match["code"], match["mark"], match["reason"], match.span("code")) for match in matches
    ]
    for index in range(len(found) - 1, 0, -1):
        code, behind = found[index - 1], found[index]
        between = text[matches[index - 1].end() : matches[index].start()]
        if code.runs and behind.language == "text" and not between.strip():
            found[index - 1] = Block(code.language, code.code, code.mark, code.reason, code.span, behind)
    return found


def make_workplace(folder: Path, lion_folder: Path, lion_files: Path) -> Path:
    """Put into a folder what the pages say is there.

    Args:
        folder: an empty one.
        lion_folder: a converted model.
        lion_files: the original files that it was made of.
    """
    (folder / "lion-flant5-xl").symlink_to(lion_folder)
    for name in ("conversion", "examples"):
        (folder / name).symlink_to(ROOT / name)
    for name, source in NAMES.items():
        (folder / name).symlink_to(lion_files / source)
    ram_files = write_ram_files(folder / "ram-files")
    for name, source in RAM_NAMES.items():
        (folder / name).symlink_to(ram_files / source)
    Image.radial_gradient("L").convert("RGB").resize((64, 43)).save(folder / "photo.jpg")
    return folder


def run_page(text: str, name: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Run a page's blocks in their order, with the working folder where it is.

    Args:
        text: of the page.
        name: of the page, for tracebacks.
        folder: the working folder, for commands.

    Yields:
        Each block that was run, and what it printed.
    """
    namespace: dict[str, object] = {"__name__": name}
    for block in blocks(text):
        if not block.runs:
            continue
        if block.language == "python":
            line = text[: block.span[0]].count("\n")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("\n" * line + block.code, name, "exec"), namespace)
            yield block, printed.getvalue()
        elif is_lion_alone(block.code):
            yield block, run_lion(block.code)
        else:
            yield block, run_commands(block.code, folder)


def is_lion_alone(code: str) -> bool:
    """Whether all commands are `lion`, without anything that needs a shell."""
    lines = code.replace("\\\n", " ").splitlines()
    return all(line.startswith("lion ") and not re.search(r"[|&;<>$`*]", line) for line in lines)


def run_lion(code: str) -> str:
    """Run `lion` commands in this process, in the working folder: that saves each of them seconds of imports.

    Returns:
        What they print on stdout.
    """
    printed = ""
    with restored_logging():
        for line in code.replace("\\\n", " ").splitlines():
            ran = CliRunner().invoke(app, shlex.split(line)[1:], env=TERMINAL)
            if ran.exit_code:
                raise RuntimeError(f"Exit code {ran.exit_code} of\n{line}\n{ran.stderr}") from ran.exception
            printed += ran.stdout
    return printed


def run_commands(code: str, folder: Path) -> str:
    """Run commands in bash, in this Python's environment; the first that fails is an error.

    Returns:
        What they print on stdout.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **TERMINAL}
    ran = subprocess.run(["bash", "-euc", code], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        raise RuntimeError(f"Exit code {ran.returncode} of\n{code}\nwhich printed\n{ran.stdout}")
    return ran.stdout


def with_outputs(text: str, printed: list[tuple[Block, str]], keep_varying: bool = False) -> str:
    """A page with what its blocks have printed in the place of the outputs that it shows.

    Args:
        text: of the page.
        printed: from `run_page`.
        keep_varying: leave outputs that are marked so as they are.
    """
    for block, output in reversed(printed):
        if block.output is not None and not (keep_varying and block.output.mark == "varies"):
            start, end = block.output.span
            text = text[:start] + output + text[end:]
    return text
