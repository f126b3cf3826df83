"""Bodies of bulk jobs, parsed without the service: hostile zips, names in many encodings, variants of NDJSON."""

from __future__ import annotations

import bz2
import codecs
import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.errors import BadRequest, BodyTooLarge
from app.gallery.bulk import upload, zip_reader
from app.gallery.bulk.upload import LINES, ZIP, Upload
from index.types import Item, Outcome
from tests.app.gallery.helpers import zipped

ZEROS = bytes(20 * 2**20)


class Zip:
    """Writes a zip field by field, also with false values."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.directory = bytearray()
        self.count = 0

    def add(
        self, name: bytes, data: bytes = b"x", packed: bytes | None = None, extra: bytes = b"", **fields: int
    ) -> Zip:
        """Add an entry; its content, too, unless the field `offset` is that of another entry's local header."""
        packed = data if packed is None else packed
        head = (fields.get("flags", 0), fields.get("method", 0), 0, 0, fields.get("crc", zlib.crc32(data)), len(packed))
        tail = (fields.get("size", len(data)), len(name))
        offset, made_by = fields.get("offset", len(self.body)), fields.get("host", 3) << 8 | 20
        if "offset" not in fields:
            self.body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, *head, *tail, 0) + name + packed
        rest = (len(extra), 0, 0, 0, 0, offset)
        self.directory += struct.pack("<4s6H3L5H2L", b"PK\x01\x02", made_by, 20, *head, *tail, *rest) + name + extra
        self.count += 1
        return self

    def bytes(self, *, prefix: bytes = b"", zip64: bool = False) -> bytes:
        start, size, count = len(self.body), len(self.directory), min(self.count, 0xFFFF)
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, start, 0)
        if zip64:
            at = start + size
            end = (
                struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, self.count, self.count, size, start)
                + struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
                + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
            )
        return prefix + bytes(self.body) + bytes(self.directory) + end


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def read(data: bytes, content_type: str = ZIP, dimensions: int = 2, *, vectors: bool = False) -> list[Item | Outcome]:
    return list(Upload(content_type, data).items(dimensions, vectors=vectors))


def read_line(content: bytes, dimensions: int = 2, *, vectors: bool = False) -> Item | Outcome:
    (item,) = read(content, LINES, dimensions, vectors=vectors)
    return item


def detail(item: Item | Outcome) -> str:
    assert isinstance(item, Outcome), item
    assert item.status == "failed"
    return str(item.result["problem"]["detail"])


def subjects(data: bytes) -> list[str]:
    return [item.subject for item in read(data) if isinstance(item, Item)]


def unicode_path(name: str, replaced: bytes) -> bytes:
    """Info-ZIP's extra field with the UTF-8 form of a name."""
    text = name.encode()
    return struct.pack("<HHBL", 0x7075, 5 + len(text), 1, zlib.crc32(replaced)) + text


BOMBS = {
    "bzip2": zipped({"a/1.png": ZEROS}, zipfile.ZIP_BZIP2),
    "lzma": zipped({"a/1.png": ZEROS}, zipfile.ZIP_LZMA),
    "bzip2 of a false size": Zip().add(b"a/1.png", ZEROS[:100], method=12, packed=bz2.compress(ZEROS)).bytes(),
    "deflate of a false size": Zip().add(b"a/1.png", ZEROS[:100], method=8, packed=deflated(ZEROS)).bytes(),
    "deflate with the checksum of its prefix": Zip()
    .add(b"a/1.png", ZEROS, size=100, crc=zlib.crc32(ZEROS[:100]), method=8, packed=deflated(ZEROS))
    .bytes(),
    "deflate of a too large size": Zip().add(b"a/1.png", b"x", method=8, size=2**25, packed=deflated(b"x")).bytes(),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bomb_is_refused_without_being_unpacked(data: bytes) -> None:
    tracemalloc.start()
    try:
        (item,) = read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "compressed by method" in detail(item) or "declares" in detail(item)
    assert peak < 2**20


def test_unpacked_sizes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MAX_UNPACKED_BYTES", 1000)
    files = {f"a/{n}.png": bytes(300) for n in range(4)}
    with pytest.raises(BodyTooLarge):
        read(zipped(files, zipfile.ZIP_DEFLATED))
    del files["a/3.png"]
    assert len(read(zipped(files, zipfile.ZIP_DEFLATED))) == 3
    monkeypatch.setattr(upload, "MAX_IMAGE_BYTES", 299)
    assert all("at most 299" in detail(item) for item in read(zipped(files)))


def test_overlapping_entries_are_refused() -> None:
    """As in zip bombs that inflate one stream many times, also by quoting local headers in stored blocks."""
    same = Zip().add(b"a/1.png", ZEROS, method=8, packed=deflated(ZEROS))
    same.add(b"b/1.png", ZEROS, method=8, offset=0)
    quoting = Zip().add(b"a/1.png", b"block" + bytes(Zip().add(b"b/1.png", b"inner").body))
    quoting.add(b"b/1.png", b"inner", offset=quoting.body.index(b"PK\x03\x04", 4))
    reaching = Zip().add(b"a/1.png", b"x")
    reaching.directory[20:24] = struct.pack("<L", 2)  # packed bytes: one more, which is the directory's
    for archive in (same, quoting, reaching):
        with pytest.raises(BadRequest, match="overlap"):
            read(archive.bytes())


DAMAGED = {
    "no end": b"PK\x03\x04" + bytes(100),
    "directory longer than the body": Zip().add(b"a/1.png").bytes()[4:],
    "directory of something else": Zip().add(b"a/1.png").bytes().replace(b"PK\x01\x02", b"PK\x01\x00"),
    "directory cut short": Zip().add(b"a/1.png", extra=bytes(40)).bytes().replace(b"\x28\0\0\0", b"\x29\0\0\0"),
    "entry outside": Zip().add(b"a/1.png", offset=2**31).bytes(),
    "ZIP64 value missing": Zip().add(b"a/1.png", size=0xFFFFFFFF).bytes(),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_zip_is_a_bad_request(data: bytes) -> None:
    with pytest.raises(BadRequest, match="zip"):
        read(data)


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({"name": name, "host": 0}, "absolute") for name in (b"/a/1.png", b"C:/a/1.png", b"C:\\a\\1.png")),
    *(({"name": name, "host": 0}, "'..'") for name in (b"../a/1.png", b"a/../b/1.png", b"a\\..\\1.png")),
    ({"name": b"a/1\\2.png", "host": 0}, "backslash"),
    ({"name": b"a\\1.png", "host": 3}, "backslash"),
    *(({"flags": flags}, "encrypted") for flags in (1, 1 << 6, 1 << 13)),
    ({"crc": 1}, "checksum"),
    ({"size": 2}, "size"),
    ({"size": 2, "method": 8, "packed": b"\xff\xff"}, "inflated"),
    ({"data": b"xyz" * 100, "method": 8, "packed": deflated(b"xyz" * 100)[:-3]}, "size"),
]


@pytest.mark.parametrize(("entry", "reason"), REFUSED)
def test_invalid_entry_is_refused_without_its_neighbour(entry: dict[str, Any], reason: str) -> None:
    archive = Zip().add(**{"name": b"a/1.png"} | entry).add(b"grace/1.png")
    refused, item = read(archive.bytes())
    assert reason in detail(refused)
    assert isinstance(item, Item)
    assert item.subject == "grace"


def test_entry_without_a_local_header_is_refused() -> None:
    (refused,) = read(Zip().add(b"a/1.png").bytes().replace(b"PK\x03\x04", b"PK\x03\x05", 1))
    assert "local header" in detail(refused)


def test_size_of_the_directory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_reader, "MAX_ENTRIES", 3)
    few = {f"a/{n}.png": b"x" for n in range(3)}
    assert len(read(zipped(few))) == 3
    with pytest.raises(BodyTooLarge):
        read(zipped(few | {"a/4.png": b"x"}))
    monkeypatch.setattr(zip_reader, "MAX_DIRECTORY_BYTES", 100)
    with pytest.raises(BodyTooLarge):
        read(zipped(few))


def test_zips_of_other_programs_are_read() -> None:
    class Pipe(io.BytesIO):
        """A file without seek, so that the sizes follow the content."""

        def seek(self, *_: object) -> int:
            raise OSError("not seekable")

    streamed = Pipe()
    with zipfile.ZipFile(streamed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("eileen/1.png", b"streamed")
    in_extra = struct.pack("<HHQ", 1, 8, 5)
    plain = Zip().add(b"eileen/1.png", b"plain")
    for data, content in (
        (streamed.getvalue(), b"streamed"),
        (plain.bytes(zip64=True), b"plain"),
        (plain.bytes(prefix=b"#!/bin/sh\n"), b"plain"),
        (
            Zip().add(b"eileen/1.png", b"large", size=0xFFFFFFFF, extra=b"\x55\x54\x01\x00\x00" + in_extra).bytes(),
            b"large",
        ),
        (plain.bytes()[:-2] + b"\x05\x00hello", b"plain"),
        (zipped({"./people/./eileen/1.png": b"dots"}), b"dots"),
        (Zip().add(b"eileen/1.png", b"", method=8, packed=deflated(b"")).bytes(), b""),
    ):
        (item,) = read(data)
        assert isinstance(item, Item)
        assert (item.subject, item.data) == ("eileen", content)


MUELLER = "m\u00fcller"
SJIS = "\u5c71\u7530".encode("shift-jis")


def test_name_is_decoded_if_its_encoding_is_known() -> None:
    path = f"{MUELLER}/1.png"
    cp1252 = path.encode("cp1252")
    field = unicode_path(path, cp1252)
    for archive in (
        Zip().add(path.encode(), flags=1 << 11),
        Zip().add(path.encode()),
        Zip().add(cp1252, extra=b"\x99\x99\x00\x00" * 15 + field),
        Zip().add(b"#U00fc/1.png", extra=unicode_path(path, b"#U00fc/1.png")),
    ):
        assert subjects(archive.bytes()) == [MUELLER]
    unknown = (
        "the file name is not UTF-8 and the zip does not say which encoding it uses; re-create the zip with UTF-8 names"
    )
    for archive, fault in (
        (Zip().add(cp1252), unknown),
        (Zip().add(SJIS + b"/1.png"), unknown),
        (Zip().add(cp1252, extra=unicode_path(path, b"the name before it was changed")), unknown),
        (Zip().add(cp1252, extra=b"\x99\x99\x00\x00" * 16 + field), unknown),  # too many other fields
        (Zip().add(cp1252, extra=b"\x99\x99\x04\x00" + field[:4]), unknown),
        (Zip().add(cp1252, flags=1 << 11), "the file name is marked as UTF-8, and is not"),
    ):
        refused, item = read(archive.add(b"eileen/1.png").bytes())
        assert detail(refused).startswith(fault)
        assert isinstance(item, Item)


def test_unmarked_names_are_utf8_only_if_all_of_them_are() -> None:
    """C3 B1 is a name in half-width katakana of Shift-JIS, and a letter in UTF-8."""
    archive = Zip().add(b"\xc3\xb1/1.png").add(SJIS + b"/1.png").add(b"eileen/1.png")
    archive.add(f"{MUELLER}/1.png".encode(), flags=1 << 11)
    chance, other, ascii_, marked = read(archive.bytes())
    assert "other file names are not UTF-8" in detail(chance)
    assert "which encoding" in detail(other)
    assert isinstance(ascii_, Item)
    assert isinstance(marked, Item)
    assert (ascii_.subject, marked.subject) == ("eileen", MUELLER)


def test_backslashes_separate_folders_in_zips_of_windows() -> None:
    windows = Zip().add(b"people\\", b"", host=0).add(b"people\\eileen\\1.jpg", host=0)
    assert subjects(windows.bytes()) == ["eileen"]


def test_files_added_by_operating_systems_are_ignored() -> None:
    files = [
        "eileen/Thumbs.db", "eileen/desktop.ini", "Desktop.ini", "eileen/.DS_Store", "__MACOSX/eileen/._1.jpg",
        "@eaDir/eileen/1.jpg", "$RECYCLE.BIN/S-1/1.jpg", "eileen/Icon\r", "eileen/ehthumbs.db",
    ]  # fmt: skip
    (item,) = read(zipped(dict.fromkeys([*files, "eileen/1.jpg"], b"x")))
    assert isinstance(item, Item)
    with pytest.raises(BadRequest, match="no file"):
        read(zipped(dict.fromkeys(files, b"x")))
    with pytest.raises(BadRequest, match="no file"):  # a folder whose name cannot be decoded
        read(Zip().add(SJIS + b"/", b"").bytes())


@pytest.mark.data
@pytest.mark.parametrize("name", ["backslash.zip", "nfc.zip", "utf8-no-flag.zip"])
def test_zips_of_users_are_read(name: str, datasets: Callable[[str], Path]) -> None:
    expected = {"backslash.zip": ["eileen", "grace"]}.get(name, [MUELLER])
    assert subjects((datasets("odd-inputs") / name).read_bytes()) == expected


def test_truncated_and_changed_zips_raise_only_expected_errors() -> None:
    data = zipped({"eileen/1.png": b"abc", f"{MUELLER}/2.png": b"abcd"}, zipfile.ZIP_DEFLATED)
    for n in range(len(data)):
        for changed in (data[:n], data[:n] + bytes([data[n] ^ 0xFF]) + data[n + 1 :]):
            with suppress(BadRequest, BodyTooLarge):
                assert all(isinstance(item, Item | Outcome) for item in read(changed))


IMAGE = "eA=="  # x


def line(**fields: object) -> bytes:
    return json.dumps({"subject_id": "eileen", "image": IMAGE} | fields).encode() + b"\n"


def test_byte_order_marks_are_ignored() -> None:
    marked = codecs.BOM_UTF8 + line()
    items = read(marked + b"\r\n" + marked + codecs.BOM_UTF8 + b"\n", LINES)
    assert [item.number for item in items if isinstance(item, Item)] == [0, 2]
    assert len(items) == 2
    for encoding in ("utf-16-le", "utf-16-be"):
        with pytest.raises(BadRequest, match="UTF-16"):
            read("\ufeff{}".encode(encoding), LINES)


def test_outcome_of_an_invalid_line_is_short() -> None:
    keys = {f"{n}{'k' * 10**6}": 1 for n in range(9)}
    for fields in (keys, {"vector": ["x"] * 4000, "image": None}, {"metadata": {"k" * 10**6: [1] * 5000}}):
        item = read_line(line(**fields))
        assert isinstance(item, Outcome)
        assert len(json.dumps(item.result)) < 2000
    item = read_line(line(**keys))
    assert detail(item).count("kkk...") == 5
    assert detail(item).endswith("; and 4 more")
    assert detail(read_line(line(colour=1))).endswith("a vector: colour: Extra inputs are not permitted")


def test_structure_of_a_line_is_limited() -> None:
    nested = b"[" * 90 + b"]" * 90
    brackets = line(metadata={"k": 0}).replace(b"0", b"[" + b",".join([nested] * 300) + b"]")
    for content, character in (
        (b"{" + b'"k":1,' * 40_000 + b'"k":1}\n', "commas"),
        (brackets, "brackets"),
        (line(image="\n" * 4_000_001), "backslashes"),
    ):
        assert character in detail(read_line(content))
    assert isinstance(read_line(line(image=None, vector=[0.5] * 4096), 4096, vectors=True), Item)


def test_number_of_lines_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MAX_LINES", 3)
    assert len(read(line() * 3 + b"\n\n", LINES)) == 3
    with pytest.raises(BodyTooLarge):
        read(line() * 4, LINES)
    with pytest.raises(BodyTooLarge):
        read(line() + b"\n" * 6, LINES)


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("a/b", "got U+002F (SOLIDUS)"),
        ("o\u2019neill", "got U+2019 (RIGHT SINGLE QUOTATION MARK)"),
        ("a\x00", "got U+0000"),
        ("", "got 0 characters"),
        ("a" * 129, "got 129 characters"),
        ("a" * 200 + "/", "got 201 characters"),
        (7, "valid string"),
        ("..", "no URL can name"),
    ],
)
def test_error_for_an_id_names_the_character(id: object, reason: str) -> None:
    assert reason in detail(read_line(line(subject_id=id)))
    if isinstance(id, str) and id.strip(".") and "/" not in id:
        (item,) = read(Zip().add(f"{id}/1.png".encode()).bytes())
        assert reason in detail(item)
