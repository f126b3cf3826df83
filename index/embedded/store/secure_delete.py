"""Overwrite what lies in a SQLite file outside of its rows.

`secure_delete` overwrites a row where it lies, and a page that becomes free. But where SQLite moves rows between
neighbouring pages (balance_nonroot in its btree.c), their bytes stay in the space that a page no longer uses, in no row
and in no list of free blocks, and nothing in SQLite but VACUUM overwrites them. That writes the whole file twice and
keeps all others from writing meanwhile. Here the file is read once, beside all others, and only pages with something
left in them are written.

The format is that of https://www.sqlite.org/fileformat2.html, section 1.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

# The first byte of a tree's page: interior and leaf, each of an index and of a table.
_INTERIOR, _LEAF = (2, 5), (10, 13)
# The first byte of any other page is the highest one of a page's number, which must be none of these.
MOST_PAGES = 2**25 - 1
_AT_ONCE = 256


def unused(page: bytes) -> Iterator[slice]:
    """What a page of a tree does not use: between its table of cells and the cells, and each free block's inside.

    Pieces of less than 4 bytes between two cells are not told.
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
    """The pages of a database, of `size` bytes each, past all that SQLite knows of them.

    The first one, which holds the schema's first rows, is left out.
    """

    def __init__(self, file: apsw.VFSFile, size: int):
        self._file, self._size = file, size

    def dirty(self) -> list[int]:
        """The numbers, from 0, of those with something in their unused space. Others may write meanwhile."""
        count = self._count()
        return [
            number
            for start in range(1, count, _AT_ONCE)
            for number, page in enumerate(self._read(start, min(_AT_ONCE, count - start)), start)
            if _cleaned(page) is not None
        ]

    def clean(self, numbers: Iterable[int]) -> None:
        """Overwrite the unused space of these durably. Nobody may write meanwhile, and the log must be empty.

        A power cut can do no harm: a page of which some sectors are written is as good as the old and the new one.
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
        data = self._file.xRead(length, start * self._size).ljust(length, b"\0")  # it may have become shorter
        return [data[at : at + self._size] for at in range(0, length, self._size)]


def _cleaned(page: bytes) -> bytes | None:
    """The page with zeros where it is not used; None where that changes nothing."""
    found = [piece for piece in unused(page) if page[piece].strip(b"\0")]
    if not found:
        return None
    cleaned = bytearray(page)
    for piece in found:
        cleaned[piece] = bytes(len(cleaned[piece]))
    return bytes(cleaned)


@contextmanager
def opened(path: Path, size: int, vfs: str | None) -> Iterator[Pages]:
    """The pages of the database in `path`.

    Through SQLite's own way to files: a descriptor of Python's takes the process's locks with it when it is closed.
    """
    file = apsw.VFSFile(vfs or "", str(path), [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READWRITE, 0])
    try:
        yield Pages(file, size)
    finally:
        file.xClose()
