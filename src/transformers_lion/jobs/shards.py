"""Images in WebDataset shards: tar files whose members form a sample if they share the name up to its first dot.

Rows hold the byte offset of an image in its shard, so that it is read without searching. Sources: the format of
WebDataset (its documentation, "The WebDataset Format"), and POSIX tar.
"""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO, Any

from ..images import readable_suffixes
from .source_row import SourceRow, missing_row, storable, to_columns
from .storage import check_ranges, open_binary
from .tables import ROW_NUMBER, RowOptions

TEXTS = ("json", "txt", "cls")
"""Extensions of the members whose content goes to the row's columns."""

GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Member:
    """A file in a shard.

    Attributes:
        name: its path in the shard, without a leading "./".
        key: the part of the name before the first dot of the file name.
        extension: the part after this dot.
        offset: byte offset of its data.
        size: its bytes.
        end: why it cannot be read, empty if it can.
        text: its content, if it goes to the columns.
    """

    name: str
    key: str
    extension: str
    offset: int
    size: int
    end: str = ""
    text: bytes = field(default=b"", repr=False)

    @property
    def suffix(self) -> str:
        """The last part of the extension, with a dot, in lowercase."""
        return f".{self.extension.rpartition('.')[2].lower()}" if self.extension else ""

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name[: -len(self.suffix)] if self.suffix else self.name


def split_name(name: str) -> tuple[str, str]:
    """Return the key of the sample that a member belongs to, and the extension of the member."""
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension


def is_passed_over(name: str) -> bool:
    """Whether a member is hidden, or metadata of WebDataset."""
    file = os.path.basename(name)
    return file.startswith((".", "__")) or not file


def list_shard(path: str, name: str, options: RowOptions, skipped: Counter[str]) -> Iterator[SourceRow]:
    """Yield the rows of a shard. A shard that is cut or damaged ends with a row that has an error.

    Args:
        path: absolute path or URL.
        name: name of the shard in errors and, for the `key_column` `ROW_NUMBER`, in keys.
        options: how to read the rows.
        skipped: counts of skipped members by suffix, which are increased.

    Raises:
        OSError, ValueError: if the shard cannot be opened, or is compressed.
    """
    prefix = f"{name}#" if options.key_column == ROW_NUMBER else ""
    damage: list[str] = []
    check_ranges(path)
    with open_binary(path) as file:
        for _, members in groupby(list_members(file, name, damage), key=lambda member: member.key):
            yield from _rows_of_sample(list(members), path, prefix, options, skipped)
    for reason in damage:
        yield missing_row(f"{name}#damaged", path, reason)


def list_members(file: IO[bytes], name: str, damage: list[str]) -> Iterator[Member]:
    """Yield the files in a shard, in their order.

    Args:
        file: the open shard.
        name: its name in errors.
        damage: if the shard ends with something that is not a member, the reason is appended.
    """
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(2) == GZIP:
        raise ValueError(f"{name} is compressed, so that its members cannot be read one by one. Decompress it.")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (found := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # or it would keep all of them
                if found.isfile() and not is_passed_over(found.name):
                    yield read_member(file, found, total)
                if found.offset_data + found.size > total:
                    return
            _check_end(file, archive.offset, name, damage)
    except tarfile.TarError as error:
        damage.append(f"{name} is damaged: {str(error).rstrip('.')}.")


def read_member(file: IO[bytes], found: tarfile.TarInfo, total: int) -> Member:
    """Describe a file in a shard of `total` bytes, and read it if it goes to the columns."""
    name = found.name.removeprefix("./")
    key, extension = split_name(name)
    missing = found.offset_data + found.size - total
    end = f"the shard ends {missing} bytes before the end of {storable(name)}." if missing > 0 else ""
    if found.issparse():
        end = f"{storable(name)} is stored as a sparse file."
    text = b""
    if not end and extension.rpartition(".")[2] in TEXTS:
        file.seek(found.offset_data)
        text = file.read(found.size)
    return Member(name, key, extension, found.offset_data, found.size, end, text)


def _check_end(file: IO[bytes], offset: int, name: str, damage: list[str]) -> None:
    """Check that a shard ends with a block of zeros, or after a member. tarfile takes a damaged header for the end."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block and (len(block) < tarfile.BLOCKSIZE or block.strip(b"\0")):
        damage.append(f"{name} is damaged: there is no valid header at byte {offset}.")


# --- samples ----------------------------------------------------------------------------------------------------------


def _rows_of_sample(
    members: Sequence[Member], path: str, prefix: str, options: RowOptions, skipped: Counter[str]
) -> Iterator[SourceRow]:
    """Yield a row for each image of a sample; it has more than one only if names differ after the first dot."""
    images = find_images(members)
    if not images:
        cut = next((member for member in members if member.end), None)
        texts = [member for member in members if member.extension.rpartition(".")[2] in TEXTS]
        if cut is not None or texts:
            reason = cut.end if cut else f"the sample has no image, only {', '.join(x.extension for x in members)}."
            yield missing_row(prefix + members[0].key, path, reason, position=members[0].offset)
        else:
            skipped.update(member.suffix for member in members)
        return
    for image in images:
        key = image.key if len(images) == 1 else image.name
        yield _row_of_image(image, prefix + key, columns_of(image, members, len(images)), path, options)


def find_images(members: Sequence[Member]) -> list[Member]:
    """Return the members that are images."""
    suffixes = readable_suffixes()
    return [member for member in members if member.suffix in suffixes]


def columns_of(image: Member, members: Sequence[Member], num_images: int) -> Mapping[str, Any] | ValueError:
    """Return the content of the members that belong to an image, or why it cannot be read.

    A JSON object gives a column for each of its fields, other members one that is named after their extension. If a
    sample has several images, members with the name of an image belong to it, and those without further dots to all.
    """
    columns: dict[str, Any] = {}
    for member in members:
        if member.extension.rpartition(".")[2] not in TEXTS:
            continue
        if num_images > 1 and member.stem not in (image.stem, image.key):
            continue
        if member.end:
            return ValueError(member.end)
        try:
            columns.update(read_text(member, num_images > 1 and member.stem == image.stem))
        except ValueError as error:
            return ValueError(f"{storable(member.name)} cannot be read: {str(error).rstrip('.')}.")
    return columns


def read_text(member: Member, is_own: bool) -> dict[str, Any]:
    """Return the columns from the content of a member.

    Args:
        member: the member.
        is_own: whether it belongs to one of several images, so that only the end of its extension is the name.
    """
    name = member.suffix[1:] if is_own else member.extension
    text = member.text.decode("utf-8")
    if name.rpartition(".")[2] == "json":
        value = json.loads(text)
        return value if isinstance(value, dict) else {name: value}
    text = text.strip()
    is_class = name.rpartition(".")[2] == "cls" and text.lstrip("-").isdecimal()
    return {name: int(text) if is_class else text}


def _row_of_image(
    image: Member, key: str, columns: Mapping[str, Any] | ValueError, path: str, options: RowOptions
) -> SourceRow:
    reason = image.end or (str(columns) if isinstance(columns, ValueError) else "")
    known = {} if isinstance(columns, ValueError) else columns
    if options.key_column not in (None, ROW_NUMBER) and not reason:
        value = known.get(str(options.key_column))
        if isinstance(value, str | int) and value != "":
            key = str(value)
        else:
            reason = f"its {options.key_column} is missing."
    if reason:
        return missing_row(key, path, reason, to_columns(known), image.offset)
    return SourceRow(storable(key), path, "tar", image.offset, image.size, columns=to_columns(known))


__all__ = ["Member", "list_members", "list_shard", "split_name"]
