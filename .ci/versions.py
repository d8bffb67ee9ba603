"""Run the core tests on the supported minor releases of transformers, and write the table of `docs/versions.md`.

    python .ci/versions.py            # the main groups of tests, on the releases between the lowest and the newest
    python .ci/versions.py --write    # all groups on all releases; writes .ci/versions.json and the page's table

`make test-oldest` and `make test` cover the lowest and the newest release.

Use the Python of the environment with the lowest versions of all other packages. Each release of transformers is
installed without dependencies into its own folder, which takes precedence through PYTHONPATH.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import Distribution, distributions, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "versions.md"
RESULT = ROOT / ".ci" / "versions.json"
FOLDERS = ROOT / "build" / "transformers"
BEGIN, END = "<!-- table: begin, written by .ci/versions.py -->\n", "<!-- table: end -->\n"
GROUPS = {
    "parity": ("test_parity",),
    "model and generation": ("test_modeling_lion", "test_modeling_lion_t5"),
    "pipelines": ("test_pipelines", "ram/test_pipeline_ram"),
    "processor": ("test_processing_lion",),
    "saving and loading": ("test_loading",),
    "Trainer and LoRA": ("test_trainer",),
}
"""Columns of the table with their test modules."""
MAIN_GROUPS = ("parity",)
"""Groups that run in CI on the releases in between."""
SHOWN = ("torch", "accelerate", "peft", "datasets", "huggingface-hub", "tokenizers", "numpy", "pillow")
"""Packages whose versions the page lists."""


def supported_minors() -> list[str]:
    """Return the minor releases that pyproject.toml allows, such as 5.18, in ascending order."""
    found = re.search(r'"transformers>=(\d+)\.(\d+),<(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    if found is None or found[1] != found[3]:
        sys.exit('error: pyproject.toml has no range such as "transformers>=5.18,<5.25".')
    return [f"{found[1]}.{minor}" for minor in range(int(found[2]), int(found[4]))]


def test_files() -> dict[str, str]:
    """Return the column of each test module, by its name in JUnit XML."""
    names = {module: group for group, modules in GROUPS.items() for module in modules}
    return {f"modeling_tests.{module.replace('/', '.')}": group for module, group in names.items()}


def install(minor: str) -> Path:
    """Return the folder with the latest patch release of a minor release, and download it if necessary."""
    folder = FOLDERS / minor
    if not list(folder.glob("transformers-*.dist-info")):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        subprocess.check_call([*command, "--target", str(folder), f"transformers=={minor}.*"])
    (distribution,) = distributions(name="transformers", path=[str(folder)])
    check_requirements(distribution)
    return folder


def check_requirements(distribution: Distribution) -> None:
    """Exit with an error message if the environment lacks a dependency of a release of transformers."""
    for requirement in map(Requirement, distribution.requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found = version(requirement.name)
            if not requirement.specifier.contains(found, prereleases=True):
                sys.exit(f"error: transformers {distribution.version} requires {requirement}, but {found} is here.")


def run_tests(minor: str, groups: Iterable[str] = GROUPS) -> dict[str, Any]:
    """Run groups of the core tests on a minor release, and print what pytest prints when it has ended.

    Returns:
        `release`, the imported version; `exit_code` of pytest; `groups`, the counts of outcomes in each column.
    """
    folder = install(minor)
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    code = "import transformers; print(transformers.__version__)"
    release = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip()
    if not release.startswith(f"{minor}."):
        sys.exit(f"error: Python imports transformers {release}, not {minor}.")
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    files = [f"modeling_tests/{module}.py" for group in groups for module in GROUPS[group]]
    options = ["-q", "-n", "0", "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(f"transformers {release}\n{ran.stdout}", end="", flush=True)
    return {"release": release, "exit_code": ran.returncode, "groups": read_report(report)}


def read_report(report: Path) -> dict[str, dict[str, int]]:
    """Count the passed, failed and skipped tests in each column, from JUnit XML."""
    columns = test_files()
    counts: dict[str, dict[str, int]] = {group: {} for group in GROUPS}
    if not report.is_file():  # pytest stopped before writing it
        return counts
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        group = counts[columns[case.attrib["classname"]]]
        group[outcome] = group.get(outcome, 0) + 1
    return counts


def render(result: dict[str, Any]) -> str:
    """Format the table of a run."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"Run on {result['date']} on Python {result['python']} with {versions}:",
        "",
        f"| transformers | {' | '.join(GROUPS)} |",
        f"|---|{'---|' * len(GROUPS)}",
    ]
    for run in result["runs"]:
        cells = [
            ", ".join(f"{count} {kind}" for kind, count in sorted(run["groups"][group].items())) for group in GROUPS
        ]
        lines.append(f"| {run['release']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, table: str) -> str:
    """Insert the table into a page."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"The page has no lines {BEGIN.strip()} and {END.strip()}.")
    return f"{before}{BEGIN}{table}{END}{after}"


def main() -> int:
    """Run the requested tests, and report failures.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="run on all releases, and write the page's table")
    parser.add_argument("--processes", type=int, default=2, help="number of releases that are tested at once")
    arguments = parser.parse_args()
    minors, groups = supported_minors(), tuple(GROUPS)
    if not arguments.write:
        minors, groups = minors[1:-1], MAIN_GROUPS
    with ThreadPoolExecutor(arguments.processes) as pool:
        runs = list(pool.map(partial(run_tests, groups=groups), minors))
    failed = [run["release"] for run in runs if run["exit_code"] != 0]
    if failed:
        print(f"core tests failed on transformers {', '.join(failed)}")
        return 1
    if arguments.write:
        result = {
            "date": datetime.date.today().isoformat(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in SHOWN},
            "runs": runs,
        }
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        PAGE.write_text(with_table(PAGE.read_text(), render(result)))
    print(f"core tests passed on transformers {', '.join(run['release'] for run in runs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
