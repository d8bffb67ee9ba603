"""The output folder of a job: its files while it runs, and how they become the results.

    _run.json                   settings and versions, written first
    _keys.arrow                 the rows of the source, in order, without pixels
    _parts/part-000012.parquet  results of the rows of one chunk, in order; removed at the end
    annotations-00000-of-00002.parquet ...     all results in the order of the source, or .jsonl
    _DONE                       numbers of rows and errors, written last

A chunk is a fixed range of rows. Each file is written under another name and renamed when it is complete, so a part
exists exactly if all rows of its chunk are done, wherever the job is killed. A resumed job computes the chunks without
a part, which is the same work in the same pieces as in the first run. At the end the keys of all parts are compared
with those of the source. Readers of Parquet folders skip names that start with "_", so that `pandas.read_parquet` and
others see only complete results.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from ..file_utils import replacing, write_text
from .schema import RESULT_SCHEMA
from .source_row import SourceRow, key_schema, rows_to_table

RUN, KEYS, PARTS, FINAL, DONE = "_run.json", "_keys.arrow", "_parts", "_final", "_DONE"
"""File names in the output folder."""
NAME = "annotations"

MAX_CHUNK_ROWS = 256
MIN_CHUNK_ROWS = 32
"""Limits of the number of rows of a chunk, both powers of two. Fewer rows would not let threads open images ahead."""
NUM_CHUNKS = 1000
"""Number of chunks to divide a source into, within these limits: progress then advances by a thousandth."""
ROWS_PER_FILE = 400 * MAX_CHUNK_ROWS
ROWS_PER_GROUP = 32 * MAX_CHUNK_ROWS
"""Rows per row group of a Parquet file."""
COMPRESSION = "zstd"

FileFormat = Literal["parquet", "jsonl"]


@dataclass(frozen=True)
class Done:
    """Summary of complete results.

    Attributes:
        rows: Number of rows.
        errors: Number of rows with an error.
        files: Names of the files with the results.
        format: "parquet" or "jsonl".
    """

    rows: int
    errors: int
    files: list[str]
    format: FileFormat


class Keys:
    """The rows of a source, stored in a file, which is read in pieces.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.file = pa.memory_map(str(path))
        self.reader = pa.ipc.open_file(self.file)
        count = self.reader.num_record_batches
        self.num_rows = (count - 1) * MAX_CHUNK_ROWS + self.reader.get_batch(count - 1).num_rows if count else 0
        self.chunk_rows = choose_chunk_rows(self.num_rows)
        self.num_chunks = -(-self.num_rows // self.chunk_rows)

    def read_chunk(self, chunk: int) -> pa.RecordBatch:
        """Return the rows of a chunk."""
        batch, start = divmod(chunk * self.chunk_rows, MAX_CHUNK_ROWS)
        return self.reader.get_batch(batch).slice(start, self.chunk_rows)

    def count_rows(self, chunk: int) -> int:
        """Return the number of rows of a chunk."""
        return min(self.chunk_rows, self.num_rows - chunk * self.chunk_rows)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def choose_chunk_rows(num_rows: int) -> int:
    """Return the number of rows of a chunk for a source: a power of two within the limits."""
    wanted = max(1, num_rows // NUM_CHUNKS)
    return min(MAX_CHUNK_ROWS, max(MIN_CHUNK_ROWS, 1 << (wanted.bit_length() - 1)))


def write_keys(path: Path, rows: Iterable[SourceRow]) -> None:
    """Write the rows of a source. The file appears when it is complete.

    Raises:
        OSError: If writing fails.
    """
    rows = iter(rows)
    options = pa.ipc.IpcWriteOptions(compression=COMPRESSION)
    with (
        replacing(path, sync=True) as new,
        pa.OSFile(str(new), "wb") as file,
        pa.ipc.new_file(file, key_schema(), options=options) as writer,
    ):
        while batch := list(islice(rows, MAX_CHUNK_ROWS)):
            writer.write_table(rows_to_table(batch), max_chunksize=MAX_CHUNK_ROWS)


class Output:
    """The output folder of a job.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.parts = folder / PARTS

    @cached_property
    def keys(self) -> Keys:
        """The rows of the source, once they are listed."""
        return Keys(self.folder / KEYS)

    @property
    def has_keys(self) -> bool:
        """Whether the rows of the source are listed."""
        return (self.folder / KEYS).exists()

    def part(self, chunk: int) -> Path:
        """Return the file with the results of a chunk."""
        return self.parts / f"part-{chunk:06d}.parquet"

    def write_part(self, chunk: int, content: bytes) -> None:
        """Write the results of a chunk.

        Args:
            chunk: Number of the chunk.
            content: Content of the Parquet file.

        Raises:
            OSError: If writing fails. The error names the file.
        """
        with replacing(self.part(chunk), sync=True) as new:
            new.write_bytes(content)

    def pending(self) -> list[int]:
        """Return the chunks without results."""
        found = {path.name for path in self.parts.iterdir()} if self.parts.exists() else set()
        return [chunk for chunk in range(self.keys.num_chunks) if self.part(chunk).name not in found]

    def read_part(self, chunk: int) -> pa.Table:
        """Read the results of a chunk, and compare their keys with those of the source.

        Raises:
            ValueError: If the file is damaged, or has other keys. The file is then removed.
        """
        path = self.part(chunk)
        try:
            with closing(pq.ParquetFile(path)) as file:
                table = file.read()
            if table.schema != RESULT_SCHEMA:
                raise ValueError("the columns are not those of results")
            if table["key"].to_pylist() != self.keys.read_chunk(chunk).column("key").to_pylist():
                raise ValueError("the keys are not those of the source")
        except (pa.ArrowInvalid, ValueError) as error:
            path.unlink()
            raise ValueError(f"{path} was damaged: {error}. It is removed; run the command again.") from error
        return table

    def finish(self, file_format: FileFormat) -> Done:
        """Write the final files, from the results of all chunks.

        Raises:
            OSError: If writing fails.
            ValueError: If the results of a chunk are damaged.
        """
        new = self.folder / FINAL
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        keys = self.keys
        per_file = ROWS_PER_FILE // keys.chunk_rows
        starts = range(0, max(1, keys.num_chunks), per_file)
        names = [f"{NAME}-{number:05d}-of-{len(starts):05d}.{file_format}" for number in range(len(starts))]
        rows = errors = 0
        for name, start in zip(names, starts, strict=True):
            tables = map(self.read_part, range(start, min(start + per_file, keys.num_chunks)))
            counts = WRITERS[file_format](new / name, tables)
            rows, errors = rows + counts[0], errors + counts[1]
        if rows != keys.num_rows:
            raise ValueError(f"{self.folder} has results for {rows} rows, but the source has {keys.num_rows}.")
        for name in names:
            (new / name).replace(self.folder / name)
        done = Done(rows, errors, names, file_format)
        write_text(self.folder / DONE, json.dumps(asdict(done), indent=2) + "\n")
        self.clean_up()
        return done

    def clean_up(self) -> None:
        """Remove what is not needed once the results are complete."""
        shutil.rmtree(self.folder / FINAL, ignore_errors=True)
        shutil.rmtree(self.parts, ignore_errors=True)

    def done(self) -> Done | None:
        """Return the summary of complete results, or `None`."""
        path = self.folder / DONE
        return Done(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


# --- final files ------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, tables: Iterable[pa.Table]) -> tuple[int, int]:
    """Write tables to a Parquet file. Return the numbers of rows and of errors."""
    rows = errors = 0
    with replacing(path, sync=True) as new, pq.ParquetWriter(new, RESULT_SCHEMA, compression=COMPRESSION) as writer:
        for table in join_tables(tables, ROWS_PER_GROUP):
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            rows, errors = rows + table.num_rows, errors + count_errors(table)
    return rows, errors


def write_jsonl(path: Path, tables: Iterable[pa.Table]) -> tuple[int, int]:
    """Write tables to a JSON Lines file. Return the numbers of rows and of errors."""
    rows = errors = 0
    with replacing(path, sync=True) as new, new.open("w", encoding="utf-8") as file:
        for table in tables:
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist())
            rows, errors = rows + table.num_rows, errors + count_errors(table)
    return rows, errors


WRITERS = {"parquet": write_parquet, "jsonl": write_jsonl}


def join_tables(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """Join tables until they have at least `num_rows` rows."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= num_rows:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def count_errors(table: pa.Table) -> int:
    """Return the number of rows with an error."""
    return table.num_rows - table["error"].null_count


# --- reading ----------------------------------------------------------------------------------------------------------


def read_results(folder: str | Path) -> pyarrow.dataset.Dataset:
    """Open the complete results of a job.

    Args:
        folder: The output folder.

    Returns:
        The results as a data set of pyarrow, which reads files only as needed: `.to_table()`, `.to_batches()`.

    Raises:
        ValueError: If the job is not complete, or files are missing or were changed.
    """
    output = Output(Path(folder))
    done = output.done()
    if done is None:
        raise ValueError(f"{folder} is not complete: {describe_state(output)}. Run the same command again to finish.")
    paths = [output.folder / name for name in done.files]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} is missing, although {output.folder / DONE} lists it.")
    file_format = "json" if done.format == "jsonl" else "parquet"
    dataset = pyarrow.dataset.dataset(list(map(str, paths)), schema=RESULT_SCHEMA, format=file_format)
    if done.format == "parquet" and dataset.count_rows() != done.rows:
        raise ValueError(f"{folder} has {dataset.count_rows()} rows, but {DONE} says {done.rows}.")
    return dataset


def describe_state(output: Output) -> str:
    """Return how far an unfinished job has come."""
    if not output.has_keys:
        return f"the rows of its source are not listed ({KEYS} is missing)"
    left = sum(map(output.keys.count_rows, output.pending()))
    return f"{output.keys.num_rows - left:,} of {output.keys.num_rows:,} rows are done"


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return the settings and versions of a job, or `None` if the folder has none.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / RUN
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Delete {folder} to start again.") from error


__all__ = ["Done", "Keys", "Output", "read_results", "read_run", "write_keys"]
