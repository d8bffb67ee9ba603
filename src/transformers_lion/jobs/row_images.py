"""Opens the images of rows: files, URLs, members of shards and cells of tables.

with RowImages() as images:
    image = images.open(row)
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from types import TracebackType

from PIL import Image

from ..file_utils import printable
from ..images import is_url, open_image_bytes, open_image_file
from ..images.downloads import TIMEOUT, download, httpx, public_url
from .source_row import SourceRow
from .storage import is_remote, read_file, read_range
from .tables import TableImages

NUM_THREADS = 8
"""Default number of threads of `RowImages.open_all`."""


class RowImages:
    """Opens the images of rows; thread-safe. Rows in the order of their source are read once.

    The last few tables stay open, with some rows of each. Shards are opened for each image.

    Args:
        timeout: Timeout of a download in seconds, or `None`.
    """

    def __init__(self, timeout: float | None = TIMEOUT):
        self.timeout = timeout
        self._tables = TableImages()
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._num_threads = 0

    def open(self, row: SourceRow) -> Image.Image:
        """Open the image of a row as an upright RGB image.

        Raises:
            OSError, ValueError: If it cannot be read, downloaded, or has too many pixels; the message names the row.
        """
        return self.decode(row, self.read(row))

    def read(self, row: SourceRow) -> bytes | None:
        """Read the image file of a row without decoding it; `None` for a local file, which `decode` reads.

        Raises:
            OSError, ValueError: If it cannot be read or downloaded; the message names the row.
        """
        if row.kind == "missing":
            raise ValueError(f"{name_row(row)}: {row.error}")
        if row.kind == "file" and not is_remote(row.path):
            return None
        try:
            return self._read(row)
        except (ValueError, OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, FileNotFoundError):
                reason = f"there is no file {public_url(row.path)}"
            raise ValueError(f"{name_row(row)} cannot be read: {reason.rstrip('.')}.") from error

    def decode(self, row: SourceRow, content: bytes | None) -> Image.Image:
        """Decode what `read` has read."""
        return open_image_file(row.path, name_row(row)) if content is None else open_image_bytes(content, name_row(row))

    def open_all(self, rows: Sequence[SourceRow], threads: int = NUM_THREADS) -> list[Image.Image | Exception]:
        """Open the images of several rows at the same time.

        Args:
            rows: The rows.
            threads: Number of threads.

        Returns:
            For each row, in order, its image, or why it cannot be read.
        """
        return list(self._threads(threads).map(self.try_to_open, rows))

    def try_to_open(self, row: SourceRow) -> Image.Image | Exception:
        """Open the image of a row, or return why it cannot be read."""
        try:
            return self.open(row)
        except (ValueError, OSError) as error:
            return error

    def _read(self, row: SourceRow) -> bytes:
        if row.kind == "tar":
            return read_range(row.path, row.position, row.size)
        if row.kind in ("parquet", "arrow"):
            return self._tables.read(row)
        return download(row.path, self.timeout) if is_url(row.path) else read_file(row.path)

    def _threads(self, count: int) -> ThreadPoolExecutor:
        """Return the threads, which are kept for the next call."""
        with self._lock:
            if self._pool is None or self._num_threads != count:
                if self._pool is not None:
                    self._pool.shutdown(wait=False)
                self._pool = ThreadPoolExecutor(count, thread_name_prefix="lion-row-images")
                self._num_threads = count
            return self._pool

    def close(self) -> None:
        """Close all files, and end the threads."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None
        self._tables.close()

    def __enter__(self) -> "RowImages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def name_row(row: SourceRow) -> str:
    """Return the key of a row for messages, without the password of a URL."""
    return printable(public_url(row.key) if is_url(row.key) else row.key)


__all__ = ["RowImages", "name_row"]
