"""Overwrite the unused space in the pages of a SQLite file.

SQLite's `secure_delete` overwrites deleted rows in place, and pages that become free. When SQLite moves rows between
neighbouring pages (balance_nonroot in its btree.c), their bytes stay in the unused space of a page. In SQLite only
VACUUM overwrites them, but it writes the whole file twice and blocks all other writers. This module reads the file once
without blocking, and writes only the pages whose unused space contains data.

File format: https://www.sqlite.org/fileformat2.html, section 1.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

# First bytes of b-tree pages: interior and leaf, each of an index and of a table.
_INTERIOR, _LEAF = (2, 5), (10, 13)
# The first byte of any other page is the highest byte of a page number, which must be none of the above.
MAX_PAGES = 2**25 - 1
_BATCH_PAGES = 256


def unused_space(page: bytes) -> Iterator[slice]:
    """Yield the unused parts of a b-tree page: the gap before the cells, and the inside of each free block.

    Fragments of less than 4 bytes between two cells are left out.
    """
    if page[0] not in (*_INTERIOR, *_LEAF):
        return
    block, cells, content = (int.from_bytes(page[at : at + 2]) for at in (1, 3, 5))
    yield slice((12 if page[0] in _INTERIOR else 8) + 2 * cells, content or 2**16)
    while block:
        following, size = int.from_bytes(page[block : block + 2]), int.from_bytes(page[block + 2 : block + 4])
        yield slice(block + 4, block + size)
        block = following if following > block else 0  # they ascend, unless a page is read while it is written


class Pages:
    """The pages of a database file, of `size` bytes each, accessed below SQLite.

    The first page, which holds the first rows of the schema, is left out.
    """

    def __init__(self, file: apsw.VFSFile, size: int):
        self._file, self._size = file, size

    def dirty(self) -> list[int]:
        """Return the numbers, from 0, of the pages with data in their unused space. Other connections may write."""
        count = self._count()
        return [
            number
            for start in range(1, count, _BATCH_PAGES)
            for number, page in enumerate(self._read(start, min(_BATCH_PAGES, count - start)), start)
            if _cleaned(page) is not None
        ]

    def clean(self, numbers: Iterable[int]) -> None:
        """Overwrite the unused space of these pages durably. The log must be empty, and no other connection may write.

        A power cut does no harm: a page whose sectors are partly written is as valid as the old and the new one.
        """
        count = self._count()
        for number in numbers:
            if number < count and (cleaned := _cleaned(self._read(number, 1)[0])) is not None:
                self._file.xWrite(cleaned, number * self._size)
        self._file.xSync(apsw.SQLITE_SYNC_NORMAL)

    def _count(self) -> int:
        return self._file.xFileSize() // self._size

    def _read(self, start: int, count: int) -> list[bytes]:
        length = count * self._size
        data = self._file.xRead(length, start * self._size).ljust(length, b"\0")  # the file may have become shorter
        return [data[at : at + self._size] for at in range(0, length, self._size)]


def _cleaned(page: bytes) -> bytes | None:
    """Return the page with zeros in its unused space, or None if it has only zeros there."""
    remains = [part for part in unused_space(page) if page[part].strip(b"\0")]
    if not remains:
        return None
    cleaned = bytearray(page)
    for part in remains:
        cleaned[part] = bytes(len(cleaned[part]))
    return bytes(cleaned)


@contextmanager
def open_pages(path: Path, size: int, vfs: str | None) -> Iterator[Pages]:
    """Open the pages of the database in `path`.

    The file is opened through SQLite: closing a file descriptor of Python's would release the process's locks on it.
    """
    file = apsw.VFSFile(vfs or "", str(path), [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READWRITE, 0])
    try:
        yield Pages(file, size)
    finally:
        file.xClose()
