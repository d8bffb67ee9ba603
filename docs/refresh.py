"""Runs the code on the pages, and updates its outputs.

`python docs/refresh.py` updates the README, all pages and all notebooks; `python docs/refresh.py inference tags` only
some. `--check` writes nothing, shows the differences, and exits with code 1 if there are any.
"""

import argparse
import contextlib
import difflib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "modeling_tests"), str(ROOT / "conversion")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from conftest import convert_lion  # noqa: E402
from docs.notebooks import NOTEBOOKS, execute  # noqa: E402
from docs.pages import PAGES, make_workplace, run_page, with_outputs  # noqa: E402
from recipe import write_lion_files  # noqa: E402


@contextlib.contextmanager
def workplace(lion_folder: Path, lion_files: Path) -> Iterator[Path]:
    """Change to a working folder with the files that the pages use."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield make_workplace(Path(name), lion_folder, lion_files)
        finally:
            os.chdir(before)


def renew(page: Path, folder: Path, keep_varying: bool) -> str:
    """Return a page's text with the current outputs of its code, optionally keeping outputs that may vary."""
    if page.suffix == ".ipynb":
        return execute(page, folder)
    return with_outputs(page.read_text(), list(run_page(page.read_text(), page.name, folder)), keep_varying)


def main() -> int:
    """Update the named pages, or all.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pages", nargs="*", help="names of pages and notebooks, such as README or inference")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    known = {page.stem: page for page in [*PAGES, *NOTEBOOKS]}
    names = [Path(name).stem for name in arguments.pages] or list(known)
    if unknown := sorted(set(names) - known.keys()):
        parser.error(f"there is no page {unknown[0]}; there are {', '.join(known)}")
    changed = 0
    with tempfile.TemporaryDirectory() as temporary:
        files = write_lion_files(Path(temporary) / "files")
        with contextlib.redirect_stdout(sys.stderr):
            lion_folder = convert_lion(files, Path(temporary) / "lion")
        for name in names:
            page = known[name]
            with workplace(lion_folder, files) as folder:
                old, new = page.read_text(), renew(page, folder, keep_varying=arguments.check)
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), name, name, n=0))
            changed += old != new
            if old != new and not arguments.check:
                page.write_text(new)
    print(f"{len(names)} pages, {changed} {'differ' if arguments.check else 'changed'}")
    return 1 if arguments.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
