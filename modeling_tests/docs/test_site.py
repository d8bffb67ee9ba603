"""The site has a place for every page and every public name; workflows run what there is."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import transformers_lion
from docs.checks import check_command, commands
from docs.notebooks import NOTEBOOKS
from docs.pages import ROOT
from transformers_lion import grounding, training

DOCS = ROOT / "docs"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MADE_OF_OTHER_FILES = {"changelog.md"}
SHOWN = re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md")), re.MULTILINE)


def leaves(nav: Any) -> list[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [leaf for part in (nav.values() if isinstance(nav, dict) else nav) for leaf in leaves(part)]


def test_every_page_stands_once_in_the_navigation() -> None:
    shown = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | MADE_OF_OTHER_FILES
    pages |= {str(page.relative_to(DOCS).with_suffix(".md")) for page in NOTEBOOKS}
    assert sorted(shown) == sorted(pages)


@pytest.mark.parametrize("name", SHOWN)
def test_what_the_reference_shows_is_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert getattr(importlib.import_module(module), attribute).__doc__


def test_the_reference_shows_all_public_names() -> None:
    names = [f"transformers_lion.{name}" for name in transformers_lion.__all__ if name != "draw_boxes"]
    names += [f"transformers_lion.training.{name}" for name in training.__all__]
    names += [f"transformers_lion.grounding.{name}" for name in grounding.__all__]
    left_out = {name.rpartition(".")[2] for name in set(names) - set(SHOWN)}
    assert left_out <= {"Box", "Entity", "BOX_FORMATS", "STAGES", "LionPreTrainedModel"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_there_is(workflow: Path) -> None:
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        for step in job["steps"]:
            for words in commands(step.get("run", "")):
                if words[0].startswith(".ci/"):
                    assert (ROOT / words[0]).is_file()
                elif "pytest" not in words:
                    check_command(words)


def test_pythons_of_the_tests_begin_with_the_lowest_that_is_supported() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    lowest = jobs["tests"]["strategy"]["matrix"]["python"][0]
    assert f'requires-python = ">={lowest}"' in (ROOT / "pyproject.toml").read_text()
