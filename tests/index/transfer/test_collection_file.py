"""Export and import: the same subjects, tokens and search results; invalid files are refused as a whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from index.embedded.admin.verify import find_faults
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import face_records
from index.embedded.transfer import snapshot
from index.embedded.transfer.transfer import EmbeddedTransfer
from index.errors import ConflictError, GalleryError, InvalidError, NotFoundError, TooNewError
from index.transfer import tables
from index.transfer.collection_file import ImportResult, export_collection, import_collection
from index.types import NewFace
from tests.index.people import enrol, vectors


@pytest.fixture
def source(tmp_path: Path) -> Iterator[EmbeddedGallery]:
    with closing(EmbeddedGallery(tmp_path / "source")) as gallery:
        gallery.create("doors", "face-embedder", "f1", 4, keep_crops=True)
        gallery.put_subject("doors", "p0", name="Zoë", metadata={"floor": 3}, expires_at=4e9)
        enrol(gallery, "doors", 23)
        gallery.enrol("doors", [NewFace("crop", vectors(1, seed=9)[0], {"sharpness": 0.5}, b"\xff\xd8picture")], "f1")
        yield gallery


@pytest.fixture
def target(tmp_path: Path) -> Iterator[EmbeddedGallery]:
    with closing(EmbeddedGallery(tmp_path / "target")) as gallery:
        yield gallery


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (snapshot, tables):
        monkeypatch.setattr(module, "BATCH", 10)


@pytest.fixture
def file(source: EmbeddedGallery, tmp_path: Path) -> Path:
    path = tmp_path / "doors.parquet"
    assert export_collection(EmbeddedTransfer(source), "doors", path) == 24
    return path


def content(gallery: EmbeddedGallery, collection: str) -> list[Any]:
    """Return subjects and faces without ids and creation times of subjects, which differ between galleries."""
    return [
        (
            subject.key,
            subject.name,
            subject.metadata,
            subject.expires_at,
            [(face.token, face.details, face.created_at) for face in gallery.faces(collection, subject.key)],
        )
        for subject in gallery.subjects(collection)
    ]


def test_an_imported_collection_gives_the_same_results(
    source: EmbeddedGallery, target: EmbeddedGallery, file: Path
) -> None:
    assert import_collection(EmbeddedTransfer(target), file) == ImportResult("doors", 24, 0)
    assert content(target, "doors") == content(source, "doors")
    ours, theirs = target.collection("doors"), source.collection("doors")
    for name in ("embedder", "fingerprint", "dimensions", "settings", "created_at"):
        assert getattr(ours, name) == getattr(theirs, name)
    (crop,) = target.faces("doors", "crop")
    assert target.crop("doors", crop.token) == b"\xff\xd8picture"
    for fusion in ("best", "mean"):
        answers = [
            [
                [(match.subject.key, match.similarity, match.face) for match in matches]
                for matches in gallery.nearest_subjects("doors", vectors(9, seed=5), k=4, fusion=fusion)
            ]
            for gallery in (source, target)
        ]
        assert answers[0] == answers[1]


def test_pyarrow_reads_the_file(source: EmbeddedGallery, file: Path) -> None:
    table = parquet.read_table(file)
    assert parquet.ParquetFile(file).num_row_groups == 3
    faces = {face.token for subject in source.subjects("doors") for face in source.faces("doors", subject.key)}
    assert set(table.column("face").to_pylist()) == faces
    assert table.column("crop").null_count == 23
    expected = np.concatenate([vectors(23), vectors(1, seed=9)])
    assert np.array_equal(np.stack(table.column("vector").to_numpy()), expected)
    assert json.loads(table.column("metadata")[0].as_py()) == {"floor": 3}
    assert file.stat().st_mode & 0o077 == 0


def test_an_interrupted_import_is_continued(
    target: EmbeddedGallery, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert, calls = face_records.insert_records, iter(range(100))

    def interrupted(*arguments: Any, **options: Any) -> list[int]:
        ids = insert(*arguments, **options)
        if next(calls) == 2:  # in the transaction of the second batch; the first creates the collection
            raise RuntimeError("killed")
        return ids

    with monkeypatch.context() as patched:
        patched.setattr(face_records, "insert_records", interrupted)
        with pytest.raises(RuntimeError, match="killed"):
            import_collection(EmbeddedTransfer(target), file)
    assert target.size("doors") == 10
    assert import_collection(EmbeddedTransfer(target), file) == ImportResult("doors", 14, 10)
    assert import_collection(EmbeddedTransfer(target), file) == ImportResult("doors", 0, 24)
    assert target.size("doors") == 24


def test_a_file_is_imported_into_a_collection_of_the_same_pipeline(target: EmbeddedGallery, file: Path) -> None:
    target.create("all", "face-embedder", "f1", 4)
    target.put_subject("all", "p0", name="here before")
    enrol(target, "all", 3)
    assert import_collection(EmbeddedTransfer(target), file, "all") == ImportResult("all", 24, 0)
    assert target.size("all") == 27
    assert target.subject("all", "p0").name == "here before"
    with pytest.raises(NotFoundError):
        target.collection("doors")


@pytest.mark.parametrize(
    ("embedder", "fingerprint", "dimensions", "message"),
    [
        ("other", "f1", 4, "embedder 'other'.*'face-embedder'"),
        ("face-embedder", "f2", 4, "fingerprint 'f2'.*'f1'"),
        ("face-embedder", "f1", 5, "dimensions 5.*4"),
    ],
)
def test_a_collection_of_another_pipeline_is_not_changed(
    target: EmbeddedGallery, file: Path, embedder: str, fingerprint: str, dimensions: int, message: str
) -> None:
    target.create("doors", embedder, fingerprint, dimensions)
    with pytest.raises(ConflictError, match=message):
        import_collection(EmbeddedTransfer(target), file)
    assert target.subjects("doors") == []


def test_a_token_belongs_to_one_face(source: EmbeddedGallery, file: Path) -> None:
    with pytest.raises(ConflictError, match="another collection"):
        import_collection(EmbeddedTransfer(source), file, "copy")
    assert source.size("copy") == 0
    assert import_collection(EmbeddedTransfer(source), file) == ImportResult("doors", 0, 24)
    table = parquet.read_table(file)
    keys = ["other", *table.column("subject").to_pylist()[1:]]
    table = table.set_column(0, table.schema.field("subject"), pa.array(keys))
    parquet.write_table(table, file)
    with pytest.raises(ConflictError, match="another collection, subject or vector"):
        import_collection(EmbeddedTransfer(source), file)


def test_expired_subjects_are_not_exported(source: EmbeddedGallery, tmp_path: Path) -> None:
    source.put_subject("doors", "crop", expires_at=3e9)
    source.clock = lambda: 3e9
    assert export_collection(EmbeddedTransfer(source), "doors", tmp_path / "b.parquet") == 23
    assert b"crop" not in parquet.read_table(tmp_path / "b.parquet").column("subject").to_pylist()


def test_an_empty_collection_is_imported(source: EmbeddedGallery, target: EmbeddedGallery, tmp_path: Path) -> None:
    source.create("empty", "e", "f", 7)
    assert export_collection(EmbeddedTransfer(source), "empty", tmp_path / "e.parquet") == 0
    assert import_collection(EmbeddedTransfer(target), tmp_path / "e.parquet") == ImportResult("empty", 0, 0)
    assert target.collection("empty").dimensions == 7


def test_a_failed_export_leaves_no_file(
    source: EmbeddedGallery, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = file.read_bytes()
    with pytest.raises(GalleryError, match="exists already"):
        export_collection(EmbeddedTransfer(source), "doors", file)
    with pytest.raises(NotFoundError, match="'x'"):
        export_collection(EmbeddedTransfer(source), "x", tmp_path / "x.parquet")
    monkeypatch.setattr(tables.TableFormat, "to_batch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_collection(EmbeddedTransfer(source), "doors", tmp_path / "y.parquet")
    assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["doors.parquet"]


def column(name: str, values: Callable[[list[Any]], list[Any]], kind: Any = None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        field = pa.field(name, kind or table.schema.field(name).type)
        place = table.schema.names.index(name)
        return table.set_column(place, field, pa.array(values(table.column(name).to_pylist()), field.type))

    return change


def last(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:-1], value]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (column("vector", last([None, 1.0, 0.0, 0.0])), "row 24: .*finite"),
        (column("vector", last(None)), "from 21 on has no vector"),
        (column("vector", lambda v: [x[:3] for x in v], pa.list_(pa.float32(), 3)), "'vector' to be fixed_size_list"),
        (column("subject", last(None)), "from 21 on has no subject"),
        (column("subject", last("a/b")), "row 24: .*U.002F"),
        (column("name", last("n" * 257)), "row 24: .*256 characters, got 257"),
        (column("metadata", last("[1]")), "row 24: .*metadata to be a JSON object"),
        (column("expires_at", last(253402300799.99997)), "row 24: .*9999-12-31"),
        (column("face", last("short")), "row 24: .*32 hexadecimal digits, got 'short'"),
        (column("details", last("[]")), "row 24: .*details to be a JSON object"),
        (column("created_at", last(float("nan"))), "row 24: .*created_at"),
        (column("name", lambda values: [1] * len(values), pa.int64()), "'name' to be string; it is int64"),
        (lambda table: table.drop(["crop"]), "expected the columns"),
        (lambda table: table.replace_schema_metadata({}), "describes no collection"),
    ],
)
def test_a_file_with_an_invalid_row_is_refused(
    target: EmbeddedGallery, file: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    table = change(parquet.read_table(file))
    parquet.write_table(table, file)
    with pytest.raises(InvalidError, match=message):
        import_collection(EmbeddedTransfer(target), file)
    assert target.collections() == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dimensions": "4"}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 2**31}, "dimensions"),
        ({"name": ""}, "wrong type"),
        ({"embedder": 3}, "wrong type"),
        ({"settings": []}, "wrong type"),
        ({"settings": {"keep_crops": 1}}, "wrong type"),
        ({"settings": {"allow_int8": "yes"}}, "wrong type"),
        ({"created_at": "now"}, "wrong type"),
        ({"created_at": 1e12}, "created_at"),
        ({"name": "a/b"}, "U.002F"),
        ({"id": 3}, "describes no collection"),
    ],
)
def test_a_file_with_invalid_properties_is_refused(
    target: EmbeddedGallery, file: Path, changed: dict[str, Any], message: str
) -> None:
    table = parquet.read_table(file)
    properties = json.loads(table.schema.metadata[tables.KEY])
    properties["collection"] |= changed
    parquet.write_table(table.replace_schema_metadata({tables.KEY: json.dumps(properties)}), file)
    with pytest.raises(InvalidError, match=message):
        import_collection(EmbeddedTransfer(target), file)
    assert target.collections() == []


def test_a_file_of_a_later_version_is_refused(
    source: EmbeddedGallery, target: EmbeddedGallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "VERSION", 2)
    export_collection(EmbeddedTransfer(source), "doors", tmp_path / "2.parquet")
    monkeypatch.undo()
    with pytest.raises(TooNewError, match="version 2"):
        import_collection(EmbeddedTransfer(target), tmp_path / "2.parquet")


def test_scaled_vectors_are_recognised_by_the_next_import(target: EmbeddedGallery, file: Path) -> None:
    table = column("vector", last([1.6e-30, 1.5e-30, 0.0, 0.0]))(parquet.read_table(file))
    parquet.write_table(table, file)
    assert import_collection(EmbeddedTransfer(target), file) == ImportResult("doors", 24, 0)
    assert import_collection(EmbeddedTransfer(target), file) == ImportResult("doors", 0, 24)
    assert list(find_faults(target)) == []
    (face,) = target.faces("doors", "crop")
    (match,) = target.nearest_subjects("doors", np.array([[1.6, 1.5, 0, 0]], np.float32), 1)[0]
    assert match.face == face.token
    assert match.similarity == pytest.approx(1)


def test_expired_subjects_are_not_imported(target: EmbeddedGallery, file: Path) -> None:
    target.clock = lambda: 4e9  # p0 has expired
    assert import_collection(EmbeddedTransfer(target), file) == ImportResult("doors", 19, 0, 5)
    assert [subject.key for subject in target.subjects("doors")] == ["crop", "p1", "p2", "p3", "p4"]


def test_an_import_replaces_an_expired_subject(target: EmbeddedGallery, file: Path) -> None:
    target.create("doors", "face-embedder", "f1", 4)
    target.clock = lambda: 1e9
    target.enrol("doors", [NewFace("p1", vectors(1, seed=3)[0])], "f1")
    target.put_subject("doors", "p1", name="before", expires_at=2e9)
    target.clock = lambda: 2e9
    assert import_collection(EmbeddedTransfer(target), file) == ImportResult("doors", 24, 0)
    assert (target.subject("doors", "p1").name, target.subject("doors", "p1").faces) == (None, 5)


def test_a_damaged_file_is_refused(target: EmbeddedGallery, file: Path) -> None:
    whole = file.read_bytes()
    place = whole.index(vectors(1).tobytes())
    for content in (whole[: place + 3] + bytes([whole[place + 3] ^ 1]) + whole[place + 4 :], whole[:-20], b""):
        file.write_bytes(content)
        with pytest.raises(InvalidError, match="cannot be read"):
            import_collection(EmbeddedTransfer(target), file)
    file.unlink()
    with pytest.raises(InvalidError, match=r"doors\.parquet cannot be read"):
        import_collection(EmbeddedTransfer(target), file)
    assert target.collections() == []


def test_missing_pyarrow_is_reported(source: EmbeddedGallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(GalleryError, match="pip install pyarrow"):
        export_collection(EmbeddedTransfer(source), "doors", tmp_path / "a.parquet")
    with pytest.raises(GalleryError, match="pip install pyarrow"):
        import_collection(EmbeddedTransfer(source), tmp_path / "a.parquet")
