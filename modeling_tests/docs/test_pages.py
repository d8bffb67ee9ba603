"""Every block of Python and bash in the README and the documentation runs, page by page, and prints what it shows."""

import re
import shutil
from pathlib import Path

import pytest

from docs.checks import PROGRAMS, check_command, check_extras, check_python, commands
from docs.pages import BLOCK, PAGES, ROOT, RUN, SHOWN, blocks, run_page, with_outputs

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@by_page
def test_the_code_of_a_page_runs_and_prints_what_stands_below_it(page: Path, workplace: Path) -> None:
    for block, printed in run_page(page.read_text(), page.name, workplace):
        if block.output is not None and block.output.mark != "varies":
            assert printed == block.output.code, f"{page.name}: python docs/refresh.py {page.stem} writes it anew"


@by_page
def test_code_that_does_not_run_here_names_what_there_is(page: Path) -> None:
    check_extras(page.read_text())
    for block in blocks(page.read_text()):
        assert block.language in RUN + SHOWN, f"{page.name}: a block of {block.language!r} is neither run nor looked at"
        if block.mark == "not run":
            assert block.reason, f"{page.name}: no reason why it does not run:\n{block.code}"
        if block.language == "python" and not block.runs:
            check_python(block.code)
        elif block.language in ("bash", "sh") and not block.runs:
            for words in commands(block.code):
                check_command(words)


@by_page
def test_code_is_not_hidden_in_blocks_of_text(page: Path) -> None:
    text = page.read_text()
    outputs = {block.output.span for block in blocks(text) if block.output is not None}
    for block in blocks(text):
        if block.language == "text" and block.span not in outputs:
            first = block.code.split(maxsplit=1)[0]
            assert first not in (*PROGRAMS, "import", "from"), f"{page.name}: what is this?\n{block.code}"


def test_the_readme_shows_two_commands() -> None:
    shown = [block.code for block in blocks((ROOT / "README.md").read_text()) if block.language == "sh"]
    assert re.findall(r"^(make \w+)", "".join(shown), re.MULTILINE) == ["make demo", "make test"]


@by_page
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text()))
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_bash_is_there_to_run_the_commands() -> None:
    assert shutil.which("bash")


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("lion captoin a.jpg", "captoin"),
        ("lion caption a.jpg --beams 3", "beams"),
        ("torchrun --nproc_per_node 8 -m transformers_lion.cli eval REC --output runs", "data"),
        ("python conversion/push_to_hub.py folder --repo user/x --privately", "privately"),
        ("python -m examples.small_world.pretrain towel run", "towel"),
        ("make dmeo", "dmeo"),
        ("frobnicate", "frobnicate"),
    ],
)
def test_a_wrong_command_is_found(command: str, what: str) -> None:
    ((words),) = commands(command)
    with pytest.raises(ValueError, match=what):
        check_command(words)


@pytest.mark.parametrize(
    "code",
    [
        "from transformers_lion import Lyon",
        "import transformers_lion.grund",
        "from transformers_lion.grounding import to_supervision\nto_supervision([], score=[1.0])",
        "from transformers_lion import Lion(",
    ],
)
def test_wrong_python_is_found(code: str) -> None:
    with pytest.raises((ImportError, AttributeError, TypeError, SyntaxError)):
        check_python(code)


def test_an_unknown_extra_is_found() -> None:
    with pytest.raises(ValueError, match="trian"):
        check_extras('pip install "transformers-lion[eval,trian]"')


def test_an_output_is_what_stands_right_behind_code_that_runs() -> None:
    page = (
        "```python\nprint(1)\n```\n\n```text\n1\n```\n\nand\n\n```text\n2\n```\n"
        "<!-- not run: no -->\n```bash\nls\n```\n\n```text\n3\n```\n"
    )
    first, _, second, third, _ = blocks(page)
    assert first.output is not None
    assert first.output.code == "1\n"
    assert (second.output, third.output, third.runs) == (None, None, False)


def test_a_page_gets_what_its_code_prints(workplace: Path) -> None:
    page = (
        "```python\nx = 1\nprint(x)\n```\n```text\nold\n```\n"
        "```bash\necho two\n```\n\n<!-- varies -->\n```text\n```\nend\n"
    )
    new = with_outputs(page, list(run_page(page, "page", workplace)))
    assert new == page.replace("old\n", "1\n").replace("-->\n```text\n", "-->\n```text\ntwo\n")
