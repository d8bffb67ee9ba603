"""The stage of a job, without Ray: chunks in, contents of files out, and errors as rows."""

import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.workers import KeyAnnotator
from transformers_lion.jobs import RESULT_SCHEMA
from transformers_lion.jobs.output import KEYS, Output, write_keys
from transformers_lion.jobs.pipeline import ChunkAnnotator, kept_signals, pack_chunk
from transformers_lion.jobs.source_row import SourceRow


@pytest.fixture
def chunks(tmp_path: Path) -> pa.Table:
    """Two chunks, of 32 rows and of 8."""
    write_keys(tmp_path / KEYS, [SourceRow(str(number), "", "file") for number in range(40)])
    keys = Output(tmp_path).keys
    return pa.Table.from_pylist([pack_chunk(keys, chunk) for chunk in range(2)])


class Doubling(KeyAnnotator):
    """Returns each row twice."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.concat_tables([super().__call__(rows)] * 2)


class Failing(KeyAnnotator):
    """Raises an error of two lines."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        raise RuntimeError("CUDA error:\nout of memory")


def test_each_chunk_becomes_the_content_of_a_file(chunks: pa.Table) -> None:
    first, second = ChunkAnnotator(KeyAnnotator, {})(chunks).to_pylist()
    assert (first["rows"], second["rows"], second["failure"]) == (32, 8, None)
    table = pq.read_table(pa.BufferReader(second["content"]))
    assert table.schema == RESULT_SCHEMA
    assert table["key"].to_pylist() == [str(number) for number in range(32, 40)]


@pytest.mark.parametrize(("annotator", "message"), [
    (Doubling, "The results of chunk 0 do not have the keys of its rows."),
    (Failing, "CUDA error: out of memory"),
])  # fmt: skip
def test_an_error_is_returned(chunks: pa.Table, annotator: Any, message: str) -> None:
    first, _ = ChunkAnnotator(annotator, {})(chunks).to_pylist()
    assert (first["failure"], first["content"]) == (message, b"")


def test_the_handler_of_sigterm_stays() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with kept_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before
