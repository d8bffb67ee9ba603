"""Bounds are those that are tested, and the page of versions shows the last run."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import versions
from docs.pages import ROOT
from transformers_lion import self_check

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")

PINS = {
    name: dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / ".ci" / f"{name}.txt").read_text(), re.MULTILINE))
    for name in ("constraints", "constraints-oldest", "constraints-demo")
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BY_HAND = "torch>=2.7"
"""Its lowest release was run by hand, see the page of versions."""
LOWEST = [*PROJECT["dependencies"], *EXTRAS["train"], *EXTRAS["eval"], *EXTRAS["export"], *EXTRAS["supervision"]]
TOOLS = [
    line for name in ("test", "scale", "docs", "release", "dev") for line in EXTRAS[name] if "transformers-lion" not in line
]


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
    return Version(bound)


@pytest.mark.parametrize("line", [line for line in LOWEST if line != BY_HAND])
def test_a_lower_bound_is_the_version_that_the_tests_run_on(line: str) -> None:
    requirement = Requirement(line)
    assert lower_bound(requirement) == Version(PINS["constraints-oldest"][requirement.name])


def test_the_demos_lower_bound_is_the_version_that_its_tests_run_on() -> None:
    (requirement,) = map(Requirement, EXTRAS["demo"])
    assert lower_bound(requirement) == Version(PINS["constraints-demo"][requirement.name])


@pytest.mark.parametrize("line", [*EXTRAS["ray"], *EXTRAS["serve"]])
def test_the_lower_bounds_of_jobs_and_the_service_are_the_versions_that_their_tests_run_on(line: str) -> None:
    requirement, bound = Requirement(line), lower_bound(Requirement(line))
    assert Version(PINS["constraints"][requirement.name]).release[: len(bound.release)] == bound.release


@pytest.mark.parametrize("line", TOOLS)
def test_a_tools_lower_bound_is_the_lowest_that_is_used(line: str) -> None:
    requirement = Requirement(line)
    used = min(Version(pins[requirement.name]) for pins in PINS.values() if requirement.name in pins)
    bound = lower_bound(requirement)
    assert used.release[: len(bound.release)] == bound.release


@pytest.mark.parametrize("file", PINS)
@pytest.mark.parametrize("line", [*LOWEST, *TOOLS])
def test_no_pin_is_outside_the_bounds(file: str, line: str) -> None:
    requirement = Requirement(line)
    pin = PINS[file].get(requirement.name)
    assert pin is None or requirement.specifier.contains(pin)


def test_the_self_check_knows_the_newest_that_is_tested() -> None:
    for name, tested in self_check.NEWEST_TESTED.items():
        assert Version(PINS["constraints"][name]).release[:2] == Version(tested).release


def test_transformers_ends_below_the_release_after_the_newest_that_is_tested() -> None:
    newest = Version(PINS["constraints"]["transformers"])
    assert versions.supported_minors()[-1] == f"{newest.major}.{newest.minor}"
    assert PINS["constraints-demo"]["transformers"] == PINS["constraints"]["transformers"]


def test_the_page_shows_the_last_run_on_all_releases() -> None:
    result = json.loads(versions.RESULT.read_text())
    page = versions.PAGE.read_text()
    assert versions.with_table(page, versions.render(result)) == page
    assert [run["release"].rpartition(".")[0] for run in result["runs"]] == versions.supported_minors()
    for run in result["runs"]:
        assert set(run["groups"]) == set(versions.GROUPS)
        assert all(counts.get("passed") and not counts.get("failed") for counts in run["groups"].values())
    for name, number in result["versions"].items():
        assert PINS["constraints-oldest"][name] == number.partition("+")[0]


def test_core_modules_are_there() -> None:
    for modules in versions.GROUPS.values():
        for module in modules:
            assert (ROOT / "modeling_tests" / f"{module}.py").is_file()


def report_failure(folder: Path, issues: list[dict[str, object]]) -> list[str]:
    """Report a failure where `gh` finds these open issues; what it was called with, and the text."""
    fake = folder / "gh"
    fake.write_text(
        "#!/usr/bin/env python3\nimport json, sys\nfrom pathlib import Path\nwords = sys.argv[1:]\n"
        f"issues = {issues!r}\n"
        "if words[:2] == ['issue', 'list']:\n"
        "    title = words[words.index('--jq') + 1].split('\"')[1]\n"
        "    print(next((issue['number'] for issue in issues if issue['title'] == title), ''))\n"
        "else:\n"
        "    call = json.dumps([*words[:-1], Path(words[-1]).read_text()])\n"
        f"    Path({str(folder / 'calls')!r}).write_text(call)\n"
    )
    fake.chmod(0o755)
    log = folder / "newest.log"
    log.write_text(
        "transformers==5.25.0\nattrs==1.0\nFAILED modeling_tests/test_parity.py::test_logits\n1 failed in 3s\n"
    )
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [ROOT / ".ci" / "report_failure", log, "https://example.org/runs/7"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return json.loads((folder / "calls").read_text())


def test_a_failure_opens_an_issue_with_versions_and_tests(tmp_path: Path) -> None:
    *words, text = report_failure(tmp_path, [{"number": 3, "title": "Another"}])
    assert words == ["issue", "create", "--title", "The tests fail on the newest releases", "--body-file"]
    assert "https://example.org/runs/7" in text
    assert text.count("transformers==5.25.0") == 2
    assert "1 failed in 3s" in text


def test_a_failure_is_added_to_the_issue_that_is_open(tmp_path: Path) -> None:
    *words, _ = report_failure(tmp_path, [{"number": 8, "title": "The tests fail on the newest releases"}])
    assert words == ["issue", "comment", "8", "--body-file"]
