"""The process of a job is killed in the middle; the same command ends with each row once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.workers import KeyAnnotator, write_rows
from transformers_lion.file_utils import LOCK
from transformers_lion.jobs import AnnotationTask, JobSettings, annotate, read_results
from transformers_lion.jobs.output import KEYS, Output, write_keys
from transformers_lion.jobs.source_row import SourceRow

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])}


def start(source: Path, output: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "jobs.workers", str(source), str(output), str(seconds)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_parts(output: Path, count: int, process: "subprocess.Popen[str]") -> None:
    for _ in range(1200):
        if len(list(output.glob("_parts/*.parquet"))) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"There are no {count} parts after 60 seconds.")


def test_a_job_that_was_killed_goes_on_and_equals_one_that_was_not(tmp_path: Path, local_ray: None) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 640, broken={3: True, 500: True})
    output = tmp_path / "out"
    process = start(source, output, 0.3)
    wait_for_parts(output, 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(Output(output).pending()) <= 17
    with pytest.raises(ValueError, match="of 640 rows are done"):
        read_results(output)
    kept = {path.name: path.stat().st_mtime_ns for path in (output / "_parts").glob("*.parquet")}
    again = start(source, output, 0)
    printed, errors = again.communicate(timeout=100)
    assert again.returncode == 0, errors
    assert "of 640 rows are already done." in printed
    assert f"in {20 - len(kept)} chunks" in printed
    settings = JobSettings(str(source), tmp_path / "undisturbed", AnnotationTask(caption=True), key_column="image")
    annotate(settings, say=lambda text: None, make_annotator=KeyAnnotator)
    assert read_results(output).to_table() == read_results(settings.output).to_table()
    assert not list(output.glob("**/*.new"))


def test_a_kill_while_the_source_is_listed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    path = tmp_path / KEYS
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from transformers_lion.jobs.output import write_keys\n"
        "from transformers_lion.jobs.source_row import SourceRow\n"
        "def rows():\n"
        "    for number in range(1000):\n"
        "        yield SourceRow(str(number), '', 'file')\n"
        "    os.kill(os.getpid(), 9)\n"
        "write_keys(Path(sys.argv[1]), rows())\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], env=ENVIRONMENT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    write_keys(path, [SourceRow("a", "", "file")])
    assert Output(tmp_path).keys.num_rows == 1
    assert [found.name for found in tmp_path.iterdir()] == [KEYS]


def test_a_part_appears_whole(tmp_path: Path) -> None:
    """Each file that has its final name can be read, at whatever moment the writer is killed."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import pyarrow as pa, pyarrow.parquet as pq\n"
        "from transformers_lion.jobs.output import Output\n"
        "file = pa.BufferOutputStream()\n"
        "pq.write_table(pa.table({'x': range(100_000)}), file)\n"
        "output = Output(Path(sys.argv[1]))\n"
        "output.parts.mkdir(parents=True)\n"
        "print('ready', flush=True)\n"
        "for chunk in range(10_000):\n"
        "    output.write_part(chunk, file.getvalue().to_pybytes())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.kill()
    process.communicate()
    parts = list(tmp_path.glob("_parts/*.parquet"))
    assert parts
    assert all(pq.read_metadata(part).num_rows == 100_000 for part in parts)


def test_a_lock_that_a_killed_job_left_behind_does_not_count(tmp_path: Path, local_ray: None) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 3)
    output = tmp_path / "out"
    output.mkdir()
    (output / LOCK).write_text("12345\n")
    settings = JobSettings(str(source), output, AnnotationTask(caption=True), key_column="image")
    assert annotate(settings, say=lambda text: None, make_annotator=KeyAnnotator).rows == 3
