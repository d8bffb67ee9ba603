"""Runs the chunks of a job on Ray Data.

The driver puts the rows of the pending chunks (keys and places, no pixels) into a data set with one block per chunk. A
pool of actors annotates the blocks, and the driver receives the results of each chunk as one row: the content of a
Parquet file. Thus

- reading and writing need no CPU of the cluster, so that the pool can use all of them, and a resumed job is the same
  plan as the first one;
- a worker cannot write anything: whatever happens to it, or to its node, its chunk is done again or it is not there;
- workers need the model and the images, but not the output folder.

Ray's own row-level checkpoint (`CheckpointConfig`, Ray 2.60) is not used. A resumed run with it is another plan, with
actors that filter the finished rows, and files stand under their final names before they are complete.
"""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .output import COMPRESSION, Keys, count_errors
from .plan import Node, Plan

logger = logging.getLogger(__name__)

TASKS_PER_ACTOR = 2
"""Chunks per actor that are computed or wait in its queue, so that it need not wait for the driver. They are done again
if its node is lost."""
MAX_RESTARTS = 1
"""Restarts of an actor, and retries of a chunk, so that rows that kill every actor end the job."""

CHUNK_SCHEMA = pa.schema([
    ("chunk", pa.int64()), ("rows", pa.int64()), ("errors", pa.int64()), ("content", pa.binary()),
    ("failure", pa.string()),
])  # fmt: skip
"""Columns of what the stage returns; see `ChunkResult`. `failure` is the error that the annotator raised."""

MakeAnnotator = Callable[..., Callable[[pa.Table], pa.Table]]
"""Creates an annotator from keyword arguments: `LionAnnotator`, or a stand-in."""


@dataclass(frozen=True)
class ChunkResult:
    """The results of a chunk.

    Attributes:
        chunk: Number of the chunk.
        rows, errors: Number of rows, and of those with an error.
        content: Content of a Parquet file with the results.
    """

    chunk: int
    rows: int
    errors: int
    content: bytes


class ChunkAnnotator:
    """Stage of the job: annotates chunks of rows.

    Args:
        make_annotator: Creates the annotator.
        options: Its keyword arguments.
    """

    def __init__(self, make_annotator: MakeAnnotator, options: Mapping[str, Any]):
        self.annotate = make_annotator(**options)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Annotate each chunk of a batch."""
        return pa.Table.from_pylist([self.run(row["chunk"], row["keys"]) for row in batch.to_pylist()], CHUNK_SCHEMA)

    def run(self, chunk: int, keys: bytes) -> dict[str, Any]:
        """Annotate a chunk.

        Errors are returned, not raised: after an error, Ray 2.60 keeps the actors, and with them their CPUs, until the
        driver ends.
        """
        try:
            return self.annotate_chunk(chunk, keys)
        except Exception as error:
            logger.exception("Chunk %d failed.", chunk)  # for --verbose
            reason = " ".join(str(error).split()) or type(error).__name__
            return {"chunk": chunk, "rows": 0, "errors": 0, "content": b"", "failure": reason}

    def annotate_chunk(self, chunk: int, keys: bytes) -> dict[str, Any]:
        """Annotate a chunk, and check that each of its rows has one result."""
        rows = pa.ipc.open_stream(keys).read_all()
        table = self.annotate(rows)
        if table["key"].to_pylist() != rows["key"].to_pylist():
            raise RuntimeError(f"The results of chunk {chunk} do not have the keys of its rows.")
        file = pa.BufferOutputStream()
        pq.write_table(table, file, compression=COMPRESSION)
        content = file.getvalue().to_pybytes()
        counts = {"rows": table.num_rows, "errors": count_errors(table)}
        return {"chunk": chunk, **counts, "content": content, "failure": None}


def pack_chunk(keys: Keys, chunk: int) -> dict[str, Any]:
    """Return a chunk as a row of the data set."""
    batch = keys.read_chunk(chunk)
    stream = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=COMPRESSION)
    with pa.ipc.new_stream(stream, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return {"chunk": chunk, "keys": stream.getvalue().to_pybytes()}


def run_chunks(
    keys: Keys, chunks: Sequence[int], plan: Plan, make_annotator: MakeAnnotator, options: Mapping[str, Any]
) -> Generator[ChunkResult, None, None]:
    """Yield the results of chunks, in any order, as soon as they are there.

    Args:
        keys: The rows of the source.
        chunks: Numbers of the chunks to compute.
        plan: The actors.
        make_annotator, options: See `ChunkAnnotator`.

    Raises:
        RuntimeError: If the annotator raises an error, or actors die on the same chunk again.
    """
    import ray

    actors = min(plan.num_actors, len(chunks))
    with changed_context(), warnings.catch_warnings():
        # Ray 2.60 has deprecated `max_restarts` and `max_task_retries`, but has no other way to limit restarts
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        rows = ray.data.from_items([pack_chunk(keys, chunk) for chunk in chunks], override_num_blocks=len(chunks))
        stage = rows.map_batches(
            ChunkAnnotator,
            fn_constructor_args=(make_annotator, dict(options)),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=actors, initial_size=actors, max_tasks_in_flight_per_actor=TASKS_PER_ACTOR
            ),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )
    try:
        batches: Any = stage.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for batch in batches:
            for row in batch.to_pylist():
                if row["failure"] is not None:
                    raise RuntimeError(row["failure"])
                yield ChunkResult(row["chunk"], row["rows"], row["errors"], row["content"])
    except ray.exceptions.RayError as error:
        raise RuntimeError(explain(error)) from error


@contextmanager
def changed_context() -> Iterator[None]:
    """Change the settings of data sets that are created in the block: errors end them, and they print nothing."""
    import ray

    settings = {
        "max_errored_blocks": 0,
        "execution_no_progress_timeout_s": -1,  # a chunk may take longer than half an hour, the default
        "enable_progress_bars": False,
        "print_on_execution_start": False,
    }
    context = ray.data.DataContext.get_current()
    before = {name: getattr(context, name) for name in settings}
    for name, value in settings.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def explain(error: Exception) -> str:
    """Return the reason of an error of Ray in a sentence."""
    from ray.exceptions import OutOfMemoryError, RayActorError

    if isinstance(error, RayActorError | OutOfMemoryError):
        if "creation task" in str(error):
            return f"An actor could not be started: {last_line(str(error))}"
        return (
            "An actor died, and died again after it was restarted. The usual reason is too little memory: use a "
            "smaller batch size or fewer actors."
        )
    return last_line(str(error))


def last_line(text: str) -> str:
    """Return the last line of a text that is not empty: the error of a traceback."""
    return [line.strip() for line in text.splitlines() if line.strip()][-1]


# --- Ray --------------------------------------------------------------------------------------------------------------


@contextmanager
def connected(address: str | None, verbose: bool) -> Iterator[list[Node]]:
    """Connect to Ray, or start it on this machine, and yield its nodes. A connection that exists is used and kept.

    Args:
        address: Address of a cluster, such as "auto", or `None` for this machine.
        verbose: Whether to show the output of workers and Ray's own messages.

    Raises:
        ValueError: If there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if not verbose:
        silence()
    if ray.is_initialized():
        yield list_nodes()
        return
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
    else:
        options["address"] = address
    try:
        with kept_signals():
            ray.init(**options)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"There is no Ray cluster at {address!r}: {error}") from error
    try:
        yield list_nodes()
    finally:
        ray.shutdown()


@contextmanager
def kept_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces by one that ends the process with exit code 15."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def silence() -> None:
    """Print only errors of Ray. Its log files keep all messages."""
    import ray.data

    logging.getLogger("ray").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if handler.get_name() == "console" or isinstance(handler, ray._private.log.PlainRayHandler):
            handler.setLevel(logging.ERROR)


def list_nodes() -> list[Node]:
    """Return the nodes that are alive."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(node.get("CPU", 0), node.get("GPU", 0), node.get("memory", 0)) for node in found]


__all__ = ["ChunkAnnotator", "ChunkResult", "connected", "run_chunks"]
