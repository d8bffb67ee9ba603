"""Python in a process of its own: with nothing imported, and with caches that nobody has used."""

import os
import subprocess
import sys
from pathlib import Path

WITHOUT_PACKAGE = "import sys; sys.modules['transformers_lion'] = None  # any import of it now fails\n"


def run_python(*arguments: str | Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` in the new folder `home`, which also holds the process's caches."""
    home.mkdir(parents=True)
    inherited = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_ENDPOINT")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**inherited, "HF_HOME": str(home / "cache"), **environment},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )


def answer_of(code: str, home: Path, **environment: str) -> str:
    """The last line that `code` prints; it must succeed."""
    process = run_python("-c", code, home=home, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1]
