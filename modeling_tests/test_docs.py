"""Every block of Python and bash in the README and the documentation runs, page by page, as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ram.recipe import write_ram_files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN, SHOWN = {"python", "bash"}, {"text", "sh"}
"""Languages that run here, and that do not: `sh` holds the make commands, which CI runs."""

RAM_NAMES = {"ram_swin_large_14m.pth": "ram.pth", "ram_tag_list.txt": "tag_list.txt",
             "ram_tag_list_threshold.txt": "tag_list_threshold.txt"}  # fmt: skip
NAMES = {"LION-FlanT5-XL.pth": "lion.pth", "eva_vit_g.pth": "eva_vit.pth", "flan-t5-xl": "llm",
         "bert-base-uncased": "bert", "overrides.json": "overrides.json"}  # fmt: skip


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text())


@pytest.fixture
def workplace(tmp_path: Path, lion_folder: Path, lion_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the pages describe it."""
    (tmp_path / "lion-flant5-xl").symlink_to(lion_folder)
    (tmp_path / "conversion").symlink_to(ROOT / "conversion")
    for name, source in NAMES.items():
        (tmp_path / name).symlink_to(lion_files / source)
    ram_files = write_ram_files(tmp_path / "ram-files")
    for name, source in RAM_NAMES.items():
        (tmp_path / name).symlink_to(ram_files / source)
    Image.radial_gradient("L").convert("RGB").resize((64, 43)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, workplace: Path) -> None:
    namespace: dict[str, object] = {"__name__": page.stem}
    for language, code in blocks(page):
        assert language in RUN | SHOWN, f"{page.name}: a block of {language!r} is neither run nor known to be shown"
        if language == "python":
            exec(compile(code, f"{page.name}", "exec"), namespace)
        elif language == "bash":
            subprocess.run(["bash", "-euc", code], check=True, cwd=workplace)


def test_the_readme_shows_two_commands() -> None:
    shown = [code for language, code in blocks(ROOT / "README.md") if language == "sh"]
    assert re.findall(r"^(make \w+)", "".join(shown), re.MULTILINE) == ["make demo", "make test"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text()))
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_bash_is_there_to_run_the_commands() -> None:
    assert shutil.which("bash")
