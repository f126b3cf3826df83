"""Moving galleries between the storage engines: all arrives once, and what was erased does not come back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from index import records
from index.embedded.storage import EmbeddedStorage
from index.embedded.transfer import snapshot as embedded_snapshot
from index.errors import (
    ConflictError,
    CorruptError,
    GalleryError,
    InvalidError,
    LockedError,
    NotFoundError,
    TooNewError,
)
from index.manifests import MANIFEST_FILE, dump_manifest, file_sha256
from index.operator_key import OperatorKey
from index.postgres.storage import PostgresStorage
from index.postgres.transfer import snapshot as postgres_snapshot
from index.protocol import Storage
from index.sightings import NewSighting, SightingSettings
from index.transfer import tables
from index.transfer.collection_file import ImportResult, export_collection, import_collection
from index.transfer.comparison import compare_gallery
from index.transfer.gallery_folder import LoadedPart, export_gallery, import_gallery
from index.transfer.manifest import read_export
from index.types import Item, NewFace
from tests.index.people import Clock, vectors

KEY = OperatorKey(b"k" * 32)
FUTURE = 4e9
Open = Callable[[str, str], Storage]
ENGINES = ("embedded", "postgres")
MOVES = [("embedded", "embedded"), ("embedded", "postgres"), ("postgres", "embedded"), ("postgres", "postgres")]


@pytest.fixture
def opened(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Open]:
    """Return a function that opens a storage of an engine by a name; one database is shared by all its names."""
    # Requested here if at all, so that the databases are dropped after they are closed.
    uses_database = "postgres" in request.node.callspec.params.values() if hasattr(request.node, "callspec") else False
    create_database = request.getfixturevalue("database_urls") if uses_database else None
    with ExitStack() as stack:
        storages: dict[tuple[str, str], Storage] = {}

        def open_storage(engine: str, name: str) -> Storage:
            if (engine, name) not in storages:
                if engine == "embedded":
                    storage: Any = EmbeddedStorage(tmp_path / name, key=KEY)
                    storage.gallery.clock = clock
                else:
                    assert create_database is not None
                    storage = PostgresStorage.open(create_database(), clock=clock)
                stack.callback(storage.close)
                storages[engine, name] = storage
            return storages[engine, name]

        yield open_storage


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (embedded_snapshot, postgres_snapshot, tables):
        monkeypatch.setattr(module, "BATCH", 7)


def fill(storage: Storage) -> None:
    """Create three collections; one is empty, and the subjects of the first have all that a subject can have."""
    gallery = storage.gallery
    doors = gallery.create("doors", "face-embedder", "f1", 4, keep_crops=True)
    gallery.create("ünïcode 中", "face-embedder", "f2", 6)
    gallery.create("empty", "other", "f3", 8)
    for number, vector in enumerate(vectors(20)):
        crop = f"crop {number}".encode() if number % 2 else None
        gallery.enrol("doors", [NewFace(f"p{number % 5}", vector, {"sharpness": number / 3}, crop)], doors.fingerprint)
    gallery.put_subject(
        "doors", "p0", name="Zoë 🙂", metadata={"level": 2, "in": True, "note": "ä", "deep": [{"a": None}]}
    )
    gallery.put_subject("doors", "nobody", name="Without a face", metadata={"level": 1.5}, expires_at=FUTURE)
    gallery.put_subject("doors", "brief", expires_at=2000.0)
    gallery.enrol("doors", [NewFace("brief", vectors(1, seed=2)[0])], "f1")
    storage.feedback.add("doors", "brief", vectors(1, seed=3))
    storage.feedback.add("doors", "p1", vectors(20)[1:4], [b"rejected", None, b""])
    storage.feedback.add("doors", "nobody", vectors(1, seed=4))
    gallery.enrol("ünïcode 中", [NewFace("é", vectors(1, 6)[0])], "f2")
    for number in range(2):
        storage.calibrations.add("doors", "f1", json.dumps({"shift": number}))
    storage.calibrations.use("doors", storage.calibrations.page("doors")[0].token)
    storage.sightings.put_settings("doors", SightingSettings(60.0, 3600.0, pseudonyms=True))
    gallery.remove_subject("doors", "p4")
    gallery.remove_faces("doors", [gallery.faces("doors", "p3")[0].token])
    gallery.create("gone", "face-embedder", "f1", 4)
    gallery.drop("gone")


def content(storage: Storage) -> dict[str, list[Any]]:
    """Return all rows without their ids."""
    with storage.transfer.snapshot() as snapshot:
        found: dict[str, list[Any]] = {
            "collections": [snapshot.describe(it) for it in snapshot.collections()],
            "receipts": [replace(it, erased_at=None) for page in snapshot.receipts() for it in page],
        }
        for collection in snapshot.collections():
            found[collection.name] = [
                [replace(row, id=0) for page in snapshot.subjects(collection) for row in page],
                [replace(row, id=0) for page in snapshot.faces(collection) for row in page],
                # Those of one moment have no order.
                sorted((row.token, row.vector, row.crop) for page in snapshot.rejections(collection) for row in page),
            ]
    return found


def searched(storage: Storage) -> list[Any]:
    """Return what searches with and without filters find."""
    queries = np.vstack([vectors(20), vectors(9, seed=5)])
    return [
        [
            [(match.subject.key, match.face, pytest.approx(match.similarity, abs=1e-5)) for match in matches]
            for matches in storage.searches.search("doors", queries, 4, where=where)
        ]
        for where in (None, {"level": [2]}, {"in": [True]})
    ]


@pytest.mark.parametrize(("source", "target"), MOVES)
def test_a_moved_gallery_is_equal(source: str, target: str, opened: Open, tmp_path: Path) -> None:
    first, second = opened(source, "first"), opened(target, "second")
    fill(first)
    manifest = export_gallery(first.transfer, tmp_path / "export")
    assert manifest.unfinished_receipts == 3
    done = import_gallery(second.transfer, tmp_path / "export")
    assert done.is_new
    assert done.receipts == LoadedPart(3, 0, 3)
    assert content(second) == content(first)
    assert searched(second) == searched(first)
    assert second.gallery.crop("doors", second.gallery.faces("doors", "p1")[0].token) == b"crop 1"
    assert [len(second.feedback.of_subject("doors", key)) for key in ("p1", "nobody")] == [3, 1]
    result = compare_gallery(second, tmp_path / "export", manifest, searches=60)
    assert result.differences == ()
    assert result.searches >= 60
    assert list(second.find_faults()) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_repeated_import_changes_nothing(engine: str, opened: Open, tmp_path: Path) -> None:
    first, second = opened("embedded", "first"), opened(engine, "second")
    fill(first)
    manifest = export_gallery(first.transfer, tmp_path / "export")
    import_gallery(second.transfer, tmp_path / "export")
    before, head = content(second), second.transfer.head()
    again = import_gallery(second.transfer, tmp_path / "export")
    assert not again.is_new
    assert again.collections["doors"] == {
        "subjects": LoadedPart(6, 6, 0), "faces": LoadedPart(16, 16, 0), "feedback": LoadedPart(5, 5, 0)
    }  # fmt: skip
    assert content(second) == before
    assert second.transfer.head() == head
    assert compare_gallery(second, tmp_path / "export", manifest, searches=0).differences == ()


@pytest.mark.parametrize("engine", ENGINES)
def test_receipts_are_compared(engine: str, opened: Open, tmp_path: Path, clock: Clock) -> None:
    first, second = opened(engine, "first"), opened("embedded", "second")
    first.gallery.create("doors", "e", "f", 4)
    first.gallery.put_subject("doors", "p")
    finished = first.gallery.remove_subject("doors", "p")
    for _ in range(3):
        first.maintenance.run()
    assert first.gallery.receipt(finished.token).erased_at is not None
    unfinished = first.gallery.drop("doors")
    manifest = export_gallery(first.transfer, tmp_path / "export")
    assert manifest.unfinished_receipts == 1
    import_gallery(second.transfer, tmp_path / "export")
    second.maintenance.run()
    assert second.gallery.receipt(unfinished.token).erased_at == clock.now
    assert second.gallery.receipt(finished.token) == first.gallery.receipt(finished.token)
    assert compare_gallery(second, tmp_path / "export", manifest).differences == ()
    third = opened("embedded", "third")
    assert compare_gallery(third, tmp_path / "export", manifest).differences == ("2 receipts are missing or differ",)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_erased_since_does_not_come_back(engine: str, opened: Open, tmp_path: Path) -> None:
    first, second = opened("embedded", "first"), opened(engine, "second")
    fill(first)
    manifest = export_gallery(first.transfer, tmp_path / "export")
    import_gallery(second.transfer, tmp_path / "export")
    second.gallery.put_subject("doors", "p0", name="Changed")
    changed = compare_gallery(second, tmp_path / "export", manifest, searches=0)
    kinds = ("subjects", "faces")
    assert changed.differences == tuple(f"'doors' has other {kind} than the export" for kind in kinds)
    second.gallery.remove_subject("doors", "p1")
    second.gallery.remove_faces("doors", [second.gallery.faces("doors", "p2")[0].token])
    second.gallery.drop("ünïcode 中")
    before = content(second)
    again = import_gallery(second.transfer, tmp_path / "export")
    assert again.collections["ünïcode 中"] is None
    assert content(second) == before
    result = compare_gallery(second, tmp_path / "export", manifest, searches=40)
    assert "the collection 'ünïcode 中' is missing" in result.differences
    assert "'doors' has 5 subjects, the export 6" in result.differences
    assert "'doors' has 11 faces, the export 16" in result.differences
    assert "'doors' has 2 rejected faces, the export 5" in result.differences
    assert any("searches differ" in difference for difference in result.differences)
    for name in ("doors", "empty"):
        second.gallery.drop(name)
    assert not import_gallery(second.transfer, tmp_path / "export").is_new
    assert second.gallery.collections() == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["load_subjects", "load_faces", "load_rejections", "load_receipts"])
def test_an_interrupted_import_is_continued(
    engine: str, kind: str, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened("embedded", "first"), opened(engine, "second")
    fill(first)
    for number in range(9):
        first.gallery.put_subject("doors", f"more {number}")
        first.feedback.add("doors", "p1", vectors(1, seed=number))
        first.gallery.remove_subject("doors", f"more {number}")
        first.gallery.put_subject("doors", f"still more {number}")
    manifest = export_gallery(first.transfer, tmp_path / "export")
    load = getattr(second.transfer, kind)

    def interrupted(part: Any, start: int, rows: Any) -> int:
        if start >= 7:
            raise RuntimeError("killed")
        count: int = load(part, start, rows)
        return count

    with monkeypatch.context() as patched:
        patched.setattr(second.transfer, kind, interrupted)
        with pytest.raises(RuntimeError, match="killed"):
            import_gallery(second.transfer, tmp_path / "export")
    assert compare_gallery(second, tmp_path / "export", manifest, searches=0).differences != ()
    assert import_gallery(second.transfer, tmp_path / "export").is_new
    assert compare_gallery(second, tmp_path / "export", manifest, searches=0).differences == ()
    assert content(second) == content(first)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_loaded_once_and_only_into_their_collection(engine: str, opened: Open, tmp_path: Path) -> None:
    """A batch that overlaps the loaded rows, as another process's, and one for a collection that was dropped since."""
    first, second = opened("embedded", "first"), opened(engine, "second")
    fill(first)
    manifest = export_gallery(first.transfer, tmp_path / "export")
    transfer = second.transfer
    transfer.begin_import(manifest.export, {1: manifest.collections[1]})
    part = records.ExportPart(manifest.export, "subjects", 1)
    subjects = [records.SubjectRecord(0, f"s{number}", None, "{}", 5.0, None) for number in range(4)]
    assert transfer.load_subjects(part, 0, subjects[:3]) == 3
    assert transfer.load_subjects(part, 0, subjects[:3]) == 0
    assert transfer.load_subjects(part, 2, subjects[2:]) == 1
    assert transfer.load_subjects(part, 4, [subjects[0]]) == 0  # it exists
    name = manifest.collections[1].collection.name
    assert len(second.gallery.subjects(name)) == 4
    second.gallery.drop(name)
    second.gallery.create(name, "x", "y", 8)
    assert transfer.load_subjects(part, 5, [replace(subjects[0], subject="late")]) == 0
    assert second.gallery.subjects(name) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_subjects_that_expired_or_were_erased_are_left_out(
    engine: str, opened: Open, tmp_path: Path, clock: Clock
) -> None:
    first, second = opened("embedded", "first"), opened(engine, "second")
    fill(first)
    manifest = export_gallery(first.transfer, tmp_path / "export")
    clock.now = 2000.0  # `brief` has expired
    done = import_gallery(second.transfer, tmp_path / "export")
    assert done.collections["doors"] == {
        "subjects": LoadedPart(6, 0, 5), "faces": LoadedPart(16, 0, 15), "feedback": LoadedPart(5, 0, 4)
    }  # fmt: skip
    assert compare_gallery(second, tmp_path / "export", manifest, searches=50).differences == ()
    assert content(second) == content(first)
    expired = export_gallery(first.transfer, tmp_path / "without")
    assert (expired.count("subjects"), expired.count("faces"), expired.count("feedback")) == (6, 16, 4)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_import_never_adds_to_another_collection(engine: str, opened: Open, tmp_path: Path, clock: Clock) -> None:
    first, second = opened("embedded", "first"), opened(engine, "second")
    fill(first)
    export_gallery(first.transfer, tmp_path / "early")
    clock.now += 1
    export_gallery(first.transfer, tmp_path / "late")
    second.gallery.create("empty", "e", "f", 4)
    with pytest.raises(ConflictError, match="'empty' already"):
        import_gallery(second.transfer, tmp_path / "late")
    assert [collection.name for collection in second.gallery.collections()] == ["empty"]
    assert import_gallery(second.transfer, tmp_path / "late", without=["empty"]).is_new
    with pytest.raises(ConflictError, match="a later export"):
        import_gallery(second.transfer, tmp_path / "early", without=["empty"])
    second.gallery.drop("empty")
    done = import_gallery(second.transfer, tmp_path / "late")  # what was left out before
    assert done.collections["doors"] == {
        "subjects": LoadedPart(6, 6, 0), "faces": LoadedPart(16, 16, 0), "feedback": LoadedPart(5, 5, 0)
    }  # fmt: skip
    assert {**content(second), "receipts": []} == {**content(first), "receipts": []}
    with pytest.raises(InvalidError, match="no collection 'x'"):
        import_gallery(second.transfer, tmp_path / "late", without=["x"])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_face_has_one_token(engine: str, opened: Open, tmp_path: Path) -> None:
    first, second = opened("embedded", "first"), opened(engine, "second")
    fill(first)
    export_collection(first.transfer, "doors", tmp_path / "doors.parquet")
    export_gallery(first.transfer, tmp_path / "export")
    assert import_collection(second.transfer, tmp_path / "doors.parquet", "copy").enrolled == 16
    with pytest.raises(ConflictError, match="another collection, subject or vector"):
        import_gallery(second.transfer, tmp_path / "export")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_import_is_in_the_audit_log(engine: str, opened: Open, tmp_path: Path) -> None:
    first, second = opened("embedded", "first"), opened(engine, "second")
    fill(first)
    manifest = export_gallery(first.transfer, tmp_path / "export")
    import_gallery(second.transfer, tmp_path / "export")
    assert manifest.export.head == first.transfer.head()
    entries, _ = second.gallery.audit.read(limit=1000)  # type: ignore[attr-defined]
    events = [entry.event for entry in entries]
    actions = [event.action for event in events]
    assert actions[:4] == ["import", *3 * ["create_collection"]]
    assert {*actions[4:]} == {"put_subject", "enrol", "feedback"}
    assert (events[0].id, events[0].of) == (manifest.export.id, manifest.export.head.hash)
    enrolled = [face for event in events if event.action == "enrol" for face in event.faces]
    assert len(enrolled) == len({*enrolled}) == 17
    assert second.gallery.audit.verify() is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", ENGINES)
def test_work_that_has_not_ended_is_not_exported(engine: str, opened: Open, tmp_path: Path) -> None:
    storage = opened(engine, "first")
    storage.gallery.create("doors", "e", "f1", 4, keep_crops=True)
    storage.gallery.create("trains", "e", "f1", 4, keep_crops=True)
    storage.jobs.begin("doors", {})  # an upload that was not completed
    assert export_gallery(storage.transfer, tmp_path / "export").count("faces") == 0
    job = storage.jobs.begin("doors", {})
    storage.jobs.append(job, [Item(0, "p", "vector", vectors(1)[0].tobytes())])
    storage.jobs.ready(job)
    storage.reembeddings.begin("trains", "e", "f2", 4)
    with pytest.raises(ConflictError, match="'doors', 'trains' to end, or cancel"):
        export_gallery(storage.transfer, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []
    storage.jobs.cancel("doors", job.token)
    storage.reembeddings.cancel("trains")
    assert export_gallery(storage.transfer, tmp_path / "other").rows["receipts"] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_left_behind_is_counted(engine: str, opened: Open, tmp_path: Path, clock: Clock) -> None:
    """The feedback that a merge suspends is as good as erased, unless the merge is undone."""
    first, second = opened(engine, "first"), opened("embedded", "second")
    fill(first)
    first.feedback.add("doors", "p2", vectors(20)[1:2])  # p1's face: the merge contradicts it
    first.curation.merge("doors", "p1", ["p2"])
    first.sightings.add("doors", NewSighting("camera", clock.now - 1, clock.now, 5, subject="p1"))
    manifest = export_gallery(first.transfer, tmp_path / "export")
    assert manifest.left_behind == {"sightings": 1, "merges that can be undone": 1}
    import_gallery(second.transfer, tmp_path / "export")
    assert compare_gallery(second, tmp_path / "export", manifest, searches=90).differences == ()
    assert searched(second) == searched(first)
    second.calibrations.use("doors", None)
    changed = compare_gallery(second, tmp_path / "export", manifest, searches=0)
    assert changed.differences == ("'doors' has other properties, calibrations or settings than the export",)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_export_is_of_one_moment(engine: str, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = opened(engine, "first")
    fill(storage)
    before = content(storage)
    to_batch, changes = tables.TableFormat.to_batch, iter(range(100))

    def change_and_batch(*arguments: Any) -> Any:
        number = next(changes)
        storage.gallery.put_subject("doors", f"new {number}")
        storage.gallery.enrol("doors", [NewFace(f"new {number}", vectors(1)[0])], "f1")
        if number == 1:
            storage.gallery.remove_subject("doors", "p0")
            storage.gallery.create("later", "e", "f", 4)
        return to_batch(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(tables.TableFormat, "to_batch", change_and_batch)
        export_gallery(storage.transfer, tmp_path / "export")
    target = opened("embedded", "second")
    import_gallery(target.transfer, tmp_path / "export")
    assert content(target) == before


@pytest.mark.parametrize("engine", ENGINES)
def test_encrypted_collections(engine: str, opened: Open, tmp_path: Path) -> None:
    first, second = opened("embedded", "first"), opened(engine, "second")
    fill(first)
    first.gallery.create("sealed", "e", "f", 4, encrypted=True)
    first.gallery.enrol("sealed", [NewFace("secret subject", vectors(1)[0], {}, b"secret crop")], "f")
    first.feedback.add("sealed", "secret subject", vectors(1, seed=1), [b"secret rejection"])
    with pytest.raises(LockedError):
        export_gallery(first.transfer, tmp_path / "export")
    assert list((tmp_path / "export").iterdir()) == []
    manifest = export_gallery(first.transfer, tmp_path / "export", KEY)
    assert not [path for path in (tmp_path / "export").iterdir() if b"secret" in path.read_bytes()]
    if engine == "postgres":
        with pytest.raises(InvalidError, match="cannot have encrypted collections yet: import without 'sealed'"):
            import_gallery(second.transfer, tmp_path / "export", KEY)
        with pytest.raises(InvalidError, match="not supported with a database"):
            import_collection(second.transfer, next((tmp_path / "export").glob("2-faces*")), key=KEY)
        assert second.gallery.collections() == []
        import_gallery(second.transfer, tmp_path / "export", KEY, without=["sealed"])
        result = compare_gallery(second, tmp_path / "export", manifest, KEY, without=["sealed"], searches=10)
        assert result.differences == ()
        return
    with pytest.raises(LockedError, match="needs the operator's key"):
        import_gallery(second.transfer, tmp_path / "export")
    assert second.gallery.collections() == []
    import_gallery(second.transfer, tmp_path / "export", KEY)
    assert second.gallery.collection("sealed").encrypted
    assert compare_gallery(second, tmp_path / "export", manifest, KEY, searches=10).differences == ()
    assert content(second) == content(first)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "1-faces.parquet").unlink(), "1-faces.parquet is missing"),
        (lambda folder: (folder / "1-faces.parquet").write_bytes(b"PAR1"), "1-faces.parquet is damaged"),
        (lambda folder: (folder / "receipts.parquet").write_bytes(b""), "receipts.parquet is damaged"),
        (lambda folder: (folder / MANIFEST_FILE).unlink(), "not an export, or an incomplete one"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("{}"), "manifest.json is damaged"),
        (lambda folder: (folder / MANIFEST_FILE).write_text(dump_manifest({"version": 1})), "not an export of a whole"),
    ],
)
def test_a_damaged_export_is_refused(
    damage: Callable[[Path], object], message: str, opened: Open, tmp_path: Path
) -> None:
    first, second = opened("embedded", "first"), opened("embedded", "second")
    fill(first)
    export_gallery(first.transfer, tmp_path / "export")
    damage(tmp_path / "export")
    with pytest.raises(CorruptError, match=message):
        import_gallery(second.transfer, tmp_path / "export")
    assert second.gallery.collections() == []


def rewritten(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change the table in a file of an export, and the manifest accordingly."""
    path = folder / f"{name}.parquet"
    parquet.write_table(change(parquet.read_table(path)), path)
    content = json.loads((folder / MANIFEST_FILE).read_text())
    del content["checksum"]
    content["sha256"][name] = file_sha256(path)
    (folder / MANIFEST_FILE).write_text(dump_manifest(content))


def with_value(column: str, value: Any) -> Callable[[Any], Any]:
    """Return a function that replaces the last value of a column."""

    def change(table: Any) -> Any:
        place, field = table.schema.get_field_index(column), table.schema.field(column)
        values = [*table.column(column).to_pylist()[:-1], value]
        return table.set_column(place, field, pa.array(values, field.type))

    return change


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("0-subjects", "subject", "a/b", r"0-subjects.parquet, row 6: .*U.002F"),
        ("0-subjects", "created_at", float("nan"), r"row 6: .*created_at"),
        ("0-faces", "face", "short", r"0-faces.parquet, row 16: .*32 hexadecimal"),
        ("0-feedback", "vector", [0.0, 0.0, 0.0, 0.0], r"0-feedback.parquet, row 5: a vector of zeros"),
        ("0-feedback", "subject", "", r"row 5: .*1 to 128 characters"),
        ("receipts", "requested_at", float("inf"), r"receipts.parquet, row 3: .*requested_at"),
        ("receipts", "receipt", "x", r"row 3: .*32 hexadecimal"),
    ],
)
def test_an_export_with_an_invalid_row_is_refused(
    name: str, column: str, value: Any, message: str, opened: Open, tmp_path: Path
) -> None:
    first, second = opened("embedded", "first"), opened("embedded", "second")
    fill(first)
    export_gallery(first.transfer, tmp_path / "export")
    rewritten(tmp_path / "export", name, with_value(column, value))
    with pytest.raises(InvalidError, match=message):
        import_gallery(second.transfer, tmp_path / "export")
    assert second.gallery.collections() == []


def test_the_manifest_has_a_version(opened: Open, tmp_path: Path) -> None:
    first = opened("embedded", "first")
    export_gallery(first.transfer, tmp_path / "export")
    content = json.loads((tmp_path / "export" / MANIFEST_FILE).read_text())
    del content["checksum"]
    (tmp_path / "export" / MANIFEST_FILE).write_text(dump_manifest({**content, "version": 2}))
    with pytest.raises(TooNewError, match="version 2"):
        read_export(tmp_path / "export")


def test_an_export_needs_an_empty_folder(opened: Open, tmp_path: Path) -> None:
    first = opened("embedded", "first")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(GalleryError, match="is not empty"):
        export_gallery(first.transfer, tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["file"]
    export_gallery(first.transfer, tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "new").iterdir())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_collection_is_exported_and_imported_alone(engine: str, opened: Open, tmp_path: Path, clock: Clock) -> None:
    first, second = opened(engine, "first"), opened(engine, "second")
    fill(first)
    assert export_collection(first.transfer, "doors", tmp_path / "doors.parquet") == 16
    with pytest.raises(NotFoundError, match="'x'"):
        export_collection(first.transfer, "x", tmp_path / "x.parquet")
    assert import_collection(second.transfer, tmp_path / "doors.parquet") == ImportResult("doors", 16, 0)
    assert import_collection(second.transfer, tmp_path / "doors.parquet") == ImportResult("doors", 0, 16)
    assert second.gallery.subject("doors", "p0").name == "Zoë 🙂"
    assert second.gallery.subject("doors", "p0").metadata == first.gallery.subject("doors", "p0").metadata
    assert [match.subject.key for (match,) in second.searches.search("doors", vectors(3), 1, where={"level": [2]})] == [
        "p0", "p0", "p0"
    ]  # fmt: skip
    # A face that was erased comes back, and its subject with it; one that exists keeps its properties.
    second.gallery.remove_subject("doors", "p1")
    second.gallery.put_subject("doors", "p0", name="Changed")
    assert import_collection(second.transfer, tmp_path / "doors.parquet") == ImportResult("doors", 4, 12)
    assert second.gallery.subject("doors", "p0").name == "Changed"
    second.gallery.create("trains", "other", "f1", 4)
    with pytest.raises(ConflictError, match="embedder 'other'"):
        import_collection(second.transfer, tmp_path / "doors.parquet", "trains")
    with pytest.raises(ConflictError, match="another collection"):
        import_collection(second.transfer, tmp_path / "doors.parquet", "copy")
    second.gallery.put_subject("doors", "p2", expires_at=1500.0)
    clock.now = 2000.0
    assert import_collection(second.transfer, tmp_path / "doors.parquet") == ImportResult("doors", 4, 11, 1)
    assert second.gallery.subject("doors", "p2").expires_at is None


def test_a_gallery_with_approximate_indexes_is_compared(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened("embedded", "first"), opened("embedded", "second")
    fill(first)
    manifest = export_gallery(first.transfer, tmp_path / "export")
    import_gallery(second.transfer, tmp_path / "export")
    usage = second.gallery.usage("doors")
    monkeypatch.setattr(type(second.gallery), "usage", lambda *_: replace(usage, exact=False))
    assert compare_gallery(second, tmp_path / "export", manifest, searches=50).differences == ()
    monkeypatch.setattr(type(second.searches), "search", lambda _, name, queries, k: [[] for _ in queries])
    assert compare_gallery(second, tmp_path / "export", manifest, searches=34).differences == (
        "'doors': 32 of 32 searches differ",
        "'ünïcode 中': 2 of 2 searches differ",
    )
