"""The files of a job: what is complete, what is refused, and that each row is there once."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transformers_lion.jobs import RESULT_SCHEMA, read_results
from transformers_lion.jobs.output import DONE, KEYS, Output, choose_chunk_rows, write_keys
from transformers_lion.jobs.schema import describe_schema, to_table
from transformers_lion.jobs.source_row import SourceRow, table_to_rows


def rows_of(count: int) -> list[SourceRow]:
    return [SourceRow(f"key {number}", f"/images/{number}.png", "file") for number in range(count)]


def content_of(output: Output, chunk: int) -> bytes:
    rows = table_to_rows(output.keys.read_chunk(chunk))
    file = pa.BufferOutputStream()
    pq.write_table(to_table({"key": row.key, "error": "bad" if row.key == "key 7" else None} for row in rows), file)
    return file.getvalue().to_pybytes()


def make_output(folder: Path, num_rows: int) -> Output:
    output = Output(folder)
    output.parts.mkdir(parents=True)
    write_keys(folder / KEYS, rows_of(num_rows))
    return output


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """A job with three chunks, none of them done."""
    return make_output(tmp_path / "out", 70)


def complete(output: Output) -> None:
    for chunk in reversed(output.pending()):
        output.write_part(chunk, content_of(output, chunk))


@pytest.mark.parametrize(("rows", "expected"), [(1, 32), (20_000, 32), (70_000, 64), (10_000_000, 256)])
def test_chunks_grow_with_the_source(rows: int, expected: int) -> None:
    assert choose_chunk_rows(rows) == expected


@pytest.mark.parametrize("count", [0, 1, 32, 70, 256, 300])
def test_chunks_hold_each_row_once_in_order(tmp_path: Path, count: int) -> None:
    keys = make_output(tmp_path / "out", count).keys
    rows = [row for chunk in range(keys.num_chunks) for row in table_to_rows(keys.read_chunk(chunk))]
    assert rows == rows_of(count)
    assert sum(map(keys.count_rows, range(keys.num_chunks))) == count


def test_a_listing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> object:
        yield from rows_of(300)
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        write_keys(tmp_path / KEYS, failing())
    assert list(tmp_path.iterdir()) == []


def test_results_are_complete_and_in_the_order_of_the_source(output: Output) -> None:
    complete(output)
    done = output.finish("parquet")
    table = read_results(output.folder).to_table()
    assert table["key"].to_pylist() == [row.key for row in rows_of(70)]
    assert table.schema == RESULT_SCHEMA
    assert (done.rows, done.errors) == (70, 1)
    assert not output.parts.exists()


def test_large_results_are_in_several_files(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers_lion.jobs.output.ROWS_PER_FILE", 32)
    complete(output)
    assert output.finish("parquet").files == [f"annotations-0000{number}-of-00003.parquet" for number in range(3)]
    assert read_results(output.folder).count_rows() == 70


def test_results_in_json_lines_have_the_same_columns(output: Output) -> None:
    complete(output)
    (name,) = output.finish("jsonl").files
    first = json.loads((output.folder / name).read_text().splitlines()[0])
    assert list(first) == RESULT_SCHEMA.names
    assert read_results(output.folder).to_table().schema == RESULT_SCHEMA


def test_pandas_reads_the_folder_as_it_is(output: Output) -> None:
    complete(output)
    output.finish("parquet")
    assert len(pd.read_parquet(output.folder)) == 70


def test_unfinished_results_are_refused_with_what_is_done(output: Output) -> None:
    output.write_part(1, content_of(output, 1))
    with pytest.raises(ValueError, match="32 of 70 rows are done"):
        read_results(output.folder)


def test_results_without_the_mark_of_the_end_are_refused(output: Output) -> None:
    complete(output)
    output.finish("parquet")
    (output.folder / DONE).unlink()
    with pytest.raises(ValueError, match="is not complete"):
        read_results(output.folder)


def test_results_that_were_changed_are_refused(output: Output) -> None:
    complete(output)
    (name,) = output.finish("parquet").files
    path = output.folder / name
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(ValueError, match="has 69 rows, but _DONE says 70"):
        read_results(output.folder)
    path.unlink()
    with pytest.raises(ValueError, match="is missing"):
        read_results(output.folder)


def test_an_end_that_was_interrupted_is_done_again(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    complete(output)
    monkeypatch.setattr("transformers_lion.jobs.output.write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        output.finish("parquet")
    monkeypatch.undo()
    assert output.pending() == []
    assert output.finish("parquet").rows == 70
    assert read_results(output.folder).count_rows() == 70


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("content", [b"PAR1 cut off", "other keys"])
def test_a_damaged_part_is_computed_again(output: Output, content: bytes | str) -> None:
    complete(output)
    output.write_part(1, content_of(output, 0) if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"part-000001\.parquet was damaged.*run the command again"):
        output.finish("parquet")
    assert output.pending() == [1]
    complete(output)
    assert output.finish("parquet").rows == 70


def test_a_part_that_could_not_be_written_is_not_there(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as error:
        output.write_part(0, b"content")
    assert error.value.filename == str(output.part(0))
    assert output.pending() == [0, 1, 2]
    assert list(output.parts.iterdir()) == []


def test_empty_lists_keep_their_type() -> None:
    table = to_table([{"key": "a", "located": [], "tags": []}])
    assert table.schema == RESULT_SCHEMA


def test_the_schema_is_described_column_by_column() -> None:
    lines = describe_schema().splitlines()
    assert len(lines) == len(RESULT_SCHEMA)
    assert "answers  list<struct<question: string, answer: string>>" in lines
