"""Read zips from untrusted clients. The declared sizes bound the cost of reading; callers can check them first.

No entry is inflated beyond its declared size, and entries do not overlap, so no byte of the zip is inflated twice.
Stored and deflated entries are read; encrypted and otherwise compressed ones are refused.

The standard library's `zipfile` is not used: it inflates bzip2 and lzma without a bound (2 GB and 14 s for 897 bytes),
needs 600 MB and 17 s for a directory of 64 MiB, refuses all entries for one name that is not UTF-8, and decodes every
name without the UTF-8 flag as cp437. Section numbers are those of PKWARE's APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from app.errors import BadRequest, BodyTooLarge

# Bounds on the directory: bytes, and entries. The latter leaves room for one entry that macOS adds for each file.
MAX_DIRECTORY_BYTES, MAX_ENTRIES = 32 * 2**20, 200_000

_END = struct.Struct("<4s4H2LH")  # 4.3.16
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_LOCATOR64_BYTES = 20  # 4.3.15, between the two
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
_PATH_HEADER = struct.Struct("<BL")  # 4.6.9: version, and CRC-32 of the name that it replaces
_MAX_COMMENT = 2**16 - 1
_IN_EXTRA = 0xFFFFFFFF  # the value is in the ZIP64 extra field
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075  # 4.5.3, 4.6.9
_MAX_FIELDS = 16  # of one entry; more take too long
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 1 << 0 | 1 << 6 | 1 << 13, 1 << 11  # 4.4.4
_DOS_HOSTS = (0, 10, 14)  # 4.4.2: FAT, NTFS, VFAT, where a backslash separates folders

_ABSOLUTE = re.compile("/|[A-Za-z]:(/|$)")
_UNKNOWN = "the zip does not say which encoding it uses; re-create the zip with UTF-8 names"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as the directory describes it. `size`: bytes once unpacked.

    `name` is None if its encoding is unknown; `fault` says why.
    """

    name: str | None
    fault: str
    host: int
    flags: int
    method: int
    crc: int
    packed_size: int
    size: int
    offset: int
    is_folder: bool

    @property
    def parts(self) -> list[str]:
        """The folders of the name and, last, its file.

        Raises:
            BadRequest: the encoding is unknown, or the name is absolute or leads out of the zip's root.
        """
        if self.name is None:
            raise BadRequest(self.fault)
        name = self.name
        if "\\" in name:  # written by .NET Framework and PowerShell 5; read as Info-ZIP's unzip does
            if "/" in name or self.host not in _DOS_HOSTS:
                raise BadRequest("the file name contains a backslash; re-create the zip with / between folders")
            name = name.replace("\\", "/")
        parts = [part for part in name.split("/") if part != "."]
        if _ABSOLUTE.match(name):
            raise BadRequest("the file name is absolute; expected a path from the zip's root")
        if ".." in parts:
            raise BadRequest("the file name contains '..'; expected a path from the zip's root")
        return parts


class ZipReader:
    """The entries of a zip in memory, in the order of its directory.

    Raises:
        BadRequest: not a zip, or damaged, or entries overlap. BodyTooLarge: the directory is too large.
    """

    def __init__(self, data: bytes):
        self._data = data
        try:
            start, end, prefix = _directory(data)
            self.entries = _refuse_mixed_encodings(list(_entries(data, start, end, prefix)))
            self._check_disjoint(start)
        except struct.error as error:
            raise BadRequest("the zip is damaged: its directory is cut short") from error

    def read(self, entry: Entry) -> bytes:
        """Return the entry's content after checking its size and checksum.

        Raises:
            BadRequest: it is encrypted, compressed by another method, or its size or checksum is not the declared one.
        """
        if entry.flags & _ENCRYPTED:
            raise BadRequest("the file is encrypted; re-create the zip without a password")
        if entry.method not in (_STORED, _DEFLATED):
            raise BadRequest(f"the file is compressed by method {entry.method}; store or deflate it")
        if not self._data.startswith(b"PK\x03\x04", entry.offset):
            raise BadRequest("the file is damaged: it does not begin with a local header")
        start = self._start(entry)
        packed = memoryview(self._data)[start : start + entry.packed_size]
        content = bytes(packed) if entry.method == _STORED else _inflate(packed, entry.size)
        if len(content) != entry.size or zlib.crc32(content) != entry.crc:
            raise BadRequest("the file does not unpack to the size and checksum that the zip declares")
        return content

    def _start(self, entry: Entry) -> int:
        """Return the offset of the entry's content, after its local header."""
        *_, name_length, extra_length = _LOCAL.unpack_from(self._data, entry.offset)
        return int(entry.offset + _LOCAL.size + name_length + extra_length)

    def _check_disjoint(self, end: int) -> None:
        """Check that entries neither overlap nor reach into the directory, which begins at `end`."""
        ranges = sorted((entry.offset, self._start(entry) + entry.packed_size) for entry in self.entries)
        if any(later[0] < earlier[1] for earlier, later in pairwise([*ranges, (end, end)])):
            raise BadRequest("the zip is damaged: entries overlap")


def _directory(data: bytes) -> tuple[int, int, int]:
    """Return the directory's start and end, and how many bytes precede the zip, as in a self-extracting one."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - _MAX_COMMENT))
    if at < 0:
        raise BadRequest("the body is not a zip")
    *_, size, offset, _ = _END.unpack_from(data, at)
    end = at
    at64 = at - _LOCATOR64_BYTES - _END64.size
    if at64 >= 0 and data.startswith(b"PK\x06\x06", at64) and data.startswith(b"PK\x06\x07", at - _LOCATOR64_BYTES):
        *_, size, offset = _END64.unpack_from(data, at64)
        end = at64
    if size > MAX_DIRECTORY_BYTES:
        raise BodyTooLarge(f"a zip's directory may have {MAX_DIRECTORY_BYTES} bytes")
    start = end - size
    if start < offset:
        raise BadRequest("the zip is damaged: bytes are missing before its directory")
    return start, end, start - offset


def _entries(data: bytes, at: int, end: int, prefix: int) -> Iterator[Entry]:
    count = 0
    while at < end:
        signature, made_by, _, flags, method, _, _, crc, packed_size, size, *lengths, _, _, _, offset = (
            _CENTRAL.unpack_from(data, at)
        )
        if signature != b"PK\x01\x02":
            raise BadRequest("the zip is damaged: its directory contains an invalid entry")
        count += 1
        if count > MAX_ENTRIES:
            raise BodyTooLarge(f"a zip may contain {MAX_ENTRIES} entries")
        name_end = at + _CENTRAL.size + lengths[0]
        name, extra = data[at + _CENTRAL.size : name_end], data[name_end : name_end + lengths[1]]
        at = name_end + lengths[1] + lengths[2]
        if _IN_EXTRA in (size, packed_size, offset):
            size, packed_size, offset = _from_zip64(extra, size, packed_size, offset)
        text, fault, flags = _decode_name(name, flags, extra)
        host, is_folder = made_by >> 8, name.endswith(b"/")
        if host in _DOS_HOSTS and name.isascii():
            is_folder |= name.endswith(b"\\")  # in other encodings this byte may be part of a character
        yield Entry(text, fault, host, flags, method, crc, packed_size, size, offset + prefix, is_folder)
    if at != end:
        raise BadRequest("the zip is damaged: the last entry ends beyond the directory")


def _extra_field(extra: bytes, field_id: int) -> bytes:
    """Return the content of an extra field (4.5.1); empty if it is not among the first _MAX_FIELDS."""
    at = 0
    if struct.pack("<H", field_id) in extra:
        for _ in range(_MAX_FIELDS):
            kind, length = struct.unpack_from("<HH", extra, at)
            if kind == field_id:
                return extra[at + 4 : at + 4 + length]
            at += 4 + length
            if at + 4 > len(extra):
                break
    return b""


def _from_zip64(extra: bytes, *values: int) -> list[int]:
    """Return the values, with each _IN_EXTRA replaced by the value in the ZIP64 extra field."""
    field, at, result = _extra_field(extra, _ZIP64), 0, []
    for value in values:
        if value == _IN_EXTRA:
            (value,) = struct.unpack_from("<Q", field, at)  # noqa: PLW2901
            at += 8
        result.append(value)
    return result


def _decode_name(name: bytes, flags: int, extra: bytes) -> tuple[str | None, str, int]:
    """Return the name, or None and the fault; and the flags, with the one for UTF-8 if the name certainly is."""
    field = _extra_field(extra, _UNICODE_PATH)
    if len(field) > _PATH_HEADER.size and _PATH_HEADER.unpack_from(field) == (1, zlib.crc32(name)):
        name, flags = field[_PATH_HEADER.size :], flags | _UTF8
    try:
        return name.decode(), "", flags
    except UnicodeDecodeError:
        if flags & _UTF8:
            return None, "the file name is marked as UTF-8, and is not; re-create the zip with UTF-8 names", flags
        return None, f"the file name is not UTF-8 and {_UNKNOWN}", flags


def _refuse_mixed_encodings(entries: list[Entry]) -> list[Entry]:
    """Accept unmarked names as UTF-8 only if all of them are: some names in Shift-JIS are valid UTF-8, too."""
    if all(entry.name is not None or entry.flags & _UTF8 for entry in entries):
        return entries
    fault = f"other file names are not UTF-8 and {_UNKNOWN}"
    return [
        entry
        if entry.name is None or entry.name.isascii() or entry.flags & _UTF8
        else replace(entry, name=None, fault=fault)
        for entry in entries
    ]


def _inflate(packed: memoryview, size: int) -> bytes:
    """Return the unpacked content, cut off after `size` + 1 bytes."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return inflater.decompress(packed, size + 1)
    except zlib.error as error:
        raise BadRequest("the file is damaged: it cannot be inflated") from error
