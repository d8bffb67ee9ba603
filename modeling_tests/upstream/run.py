"""Run transformers' own common checks on LION.

    python modeling_tests/upstream/run.py [--cache DIR] [pytest arguments]

The checks are in the source distribution of the installed transformers version, which this downloads from PyPI, once.
`stubs/` fills in for what only transformers' repository has, `suite/` says how to build LION for the checks, and
`exclusions.py` lists those that must fail. What is measured and why is in `docs/common-suite.md`.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NEEDED = ("pytest", "xdist", "parameterized", "peft", "accelerate")


def main() -> int:
    """Prepare the cache, run pytest, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "upstream", help="where downloads are kept")
    arguments, pytest_arguments = parser.parse_known_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"Missing: {', '.join(missing)}. Install the package with its test extra.")
    upstream = unpack(arguments.cache.resolve(), version("transformers"))
    return subprocess.call(
        [sys.executable, "-m", "pytest", *options(upstream), "-n", "2", *pytest_arguments],
        cwd=upstream,
        env=environment(upstream),
    )


def unpack(cache: Path, release: str) -> Path:
    """The folder that holds the release's `tests` package, with the stubs in it."""
    folder = cache / f"transformers-{release}"
    if not (folder / "tests" / "test_modeling_common.py").is_file():
        with tarfile.open(source_distribution(cache, release)) as archive:
            checks = [member for member in archive.getmembers() if member.name.startswith(f"{folder.name}/tests/")]
            archive.extractall(cache, checks, filter="data")
    for stub in (HERE / "stubs").rglob("*.py"):
        target = folder / "tests" / stub.relative_to(HERE / "stubs")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stub, target)
    # where the upstream tests look for transformers itself; it must not load a second copy
    package = folder / "src" / "transformers" / "__init__.py"
    package.parent.mkdir(parents=True, exist_ok=True)
    package.touch()
    return folder


def source_distribution(cache: Path, release: str) -> Path:
    """The release's source distribution, from the cache or from PyPI."""
    archive = cache / f"transformers-{release}.tar.gz"
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "transformers"]
        subprocess.check_call([*command, "--dest", str(cache), f"transformers=={release}"])
    return archive


def options(upstream: Path) -> list[str]:
    """What pytest needs to collect the suite alone, without the project's own settings."""
    return [
        str(HERE / "suite"),
        f"--config-file={HERE / 'pytest.ini'}",
        f"--rootdir={HERE / 'suite'}",
        f"--confcutdir={HERE / 'suite'}",
        "-o",
        f"cache_dir={upstream / '.pytest_cache'}",
    ]


def environment(upstream: Path) -> dict[str, str]:
    """Offline, and able to import the upstream tests, the suite, its exclusions and the package."""
    paths = [upstream, upstream / "tests", HERE / "suite", HERE, ROOT / "src"]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "RUN_SLOW": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_TINY_MODEL_PATH": str(upstream / "tiny"),
    }


if __name__ == "__main__":
    sys.exit(main())
