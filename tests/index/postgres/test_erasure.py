"""Once a receipt says `erased`, no file of the server has 16 bytes of the vectors, or of the keys of sealed values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from psycopg import sql

from index.postgres.curation.curation import PostgresCuration
from index.postgres.feedback import PostgresFeedback
from index.postgres.gallery import PostgresGallery
from index.postgres.jobs import PostgresJobQueue, PostgresJobWorker
from index.postgres.maintenance import PostgresMaintenance
from index.postgres.sightings.sightings import PostgresSightings
from index.postgres.store.database import Database
from index.postgres.store.scrubbing import scrub
from index.sightings import NewSighting, SightingSettings, UnknownFace
from index.types import Face, Item, NewFace, Outcome, ProcessedItem, Properties, Receipt
from tests.index.bulk_jobs import claimed, submit
from tests.index.people import Clock, vectors
from tests.soak.erasure import Needles

DIMENSIONS = 48


@pytest.fixture
def gallery(database: Database) -> PostgresGallery:
    gallery = PostgresGallery(database)
    for name in ("doors", "trains"):
        gallery.create(name, "face-embedder", "f1", DIMENSIONS)
    return gallery


def rows(database: Database, statement: str, *values: object) -> list[tuple[object, ...]]:
    with database.snapshot() as db:
        return db.execute(sql.SQL(statement), values).fetchall()


def content(database: Database) -> dict[tuple[str, str], set[bytes]]:
    """Return all vectors, as float32 and float16, and all keys of sealed values, by table and id."""
    found: dict[tuple[str, str], set[bytes]] = {}
    for (table,) in rows(
        database,
        "SELECT relname FROM pg_class WHERE relname IN ('subjects', 'rejections', 'sighting_crops', 'sighting_faces')"
        " OR relkind = 'p' AND relname LIKE 'faces!_%%' ESCAPE '!'",
    ):
        id_column = "sighting_id" if str(table).startswith("sighting") else "id"
        vector = "NULL" if table in ("subjects", "sighting_crops") else "vector"
        seal = "NULL" if table == "sighting_faces" else "seal"
        for number, numbers, key in rows(database, f"SELECT {id_column}, {vector}, {seal} FROM {table}"):
            forms = found.setdefault((str(table), str(number)), set())
            if numbers is not None:
                values = numbers.to_numpy()  # type: ignore[attr-defined]
                forms |= {values.astype("<f4").tobytes(), values.astype("<f2").tobytes()}
            if key is not None:
                forms.add(bytes(key))  # type: ignore[call-overload]
    return found


def files(database: Database) -> list[Path]:
    folder = Path(str(rows(database, "SHOW data_directory")[0][0]))
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


def where_found(database: Database, forms: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Return the files with 16 bytes of a form, and these."""
    needles = Needles(forms)
    found = []
    for path in files(database):
        try:
            found += [(str(path), piece) for _, piece in needles.search(path)]
        except FileNotFoundError:
            continue  # the server deleted it meanwhile
    return found


def assert_erased(database: Database, before: dict[tuple[str, str], set[bytes]], more: Sequence[bytes] = ()) -> None:
    """Check that no file has anything of the rows that are gone, but those that are left can be found."""
    after = content(database)
    kept = set().union(*after.values())
    gone = set().union(*before.values(), more) - kept
    assert gone
    assert where_found(database, gone) == []
    if kept:
        pieces = {piece for _, piece in where_found(database, kept)}
        assert all(any(piece in form for piece in pieces for form in forms) for forms in after.values())


def maintain(gallery: PostgresGallery, rounds: int = 1, exact_below: int = 10**6) -> None:
    maintenance = PostgresMaintenance(gallery, exact_below=exact_below)
    for _ in range(rounds):
        assert maintenance.run()
    maintenance.release()


def is_erased(gallery: PostgresGallery, *receipts: Receipt) -> bool:
    return all(gallery.receipt(receipt.token).erased_at is not None for receipt in receipts)


def fill(gallery: PostgresGallery, collection: str, people: int, each: int, seed: int = 0) -> list[Face]:
    """Enrol people with crops of many lengths, one person after the other, and name them."""
    rng = np.random.default_rng(seed)
    faces = []
    for person, own in enumerate(vectors(people * each, DIMENSIONS, seed).reshape(people, each, DIMENSIONS)):
        crops = [rng.bytes(int(rng.integers(50, 4000))) if rng.random() < 0.7 else None for _ in own]
        faces += gallery.enrol(
            collection,
            [NewFace(f"p{person}", vector, {"size": 1}, crop) for vector, crop in zip(own, crops, strict=True)],
            "f1",
        )
        gallery.put_subject(collection, f"p{person}", name=f"Name {person}" * 10, metadata={"floor": person})
    return faces


@pytest.mark.parametrize("exact_below", [10**6, 1])
def test_nothing_is_left_of_erased_faces(gallery: PostgresGallery, database: Database, exact_below: int) -> None:
    faces = fill(gallery, "doors", 40, 10)
    trains = fill(gallery, "trains", 10, 10, seed=1)
    feedback = PostgresFeedback(gallery)
    rejected = feedback.add("doors", "p1", vectors(6, DIMENSIONS, seed=2), [b"crop" * 100] * 6)
    maintain(gallery, exact_below=exact_below)  # with approximate indexes
    assert gallery.usage("doors").exact == (exact_below > 1)
    before = content(database)
    names = [f"Name {person}".encode() * 10 for person in range(40)]
    rng = np.random.default_rng(3)
    receipts = [gallery.remove_faces("doors", [faces[i].token]) for i in range(40)]  # neighbours
    receipts.append(gallery.remove_faces("doors", [faces[i].token for i in range(350, 400)]))  # the last ones
    scattered = rng.choice(np.arange(50, 350), 100, replace=False)
    receipts += [gallery.remove_faces("doors", [faces[i].token for i in part]) for part in scattered.reshape(20, 5)]
    receipts += [gallery.remove_subject("doors", f"p{person}") for person in (5, 6, 7, 20, 39)]
    receipts.append(feedback.remove("doors", "p1", rejected[0].token))
    receipts.append(gallery.remove_subject("doors", "p1"))
    gallery.put_subject("doors", "p2", name="Another", expires_at=None)
    receipts.append(gallery.remove_subject("doors", "p2"))
    assert not is_erased(gallery, *receipts)
    assert where_found(database, before["faces_1", str(faces[0].id)])  # else the search finds nothing at all
    maintain(gallery, exact_below=exact_below)
    assert is_erased(gallery, *receipts)
    assert_erased(database, before, names)
    # What vacuums have moved since is overwritten, too.
    before = content(database)
    fill(gallery, "doors", 5, 3, seed=5)
    left = gallery.faces("doors", "p8") + gallery.faces("doors", "p9") + gallery.faces("doors", "p30")
    receipt = gallery.remove_faces("doors", [face.token for face in left])
    maintain(gallery, exact_below=exact_below)
    assert is_erased(gallery, receipt)
    assert_erased(database, before)
    before = content(database)
    receipt = gallery.drop("doors")
    maintain(gallery, exact_below=exact_below)
    assert is_erased(gallery, receipt)
    assert_erased(database, before)
    assert gallery.usage("trains").faces == len(trains)


@pytest.mark.parametrize("maintained", [False, True], ids=["in-one-round", "in-many-rounds"])
def test_nothing_is_left_of_changed_rows(gallery: PostgresGallery, database: Database, maintained: bool) -> None:
    """The erased subjects and faces have rows that PostgreSQL wrote into the space that pages keep for changes."""
    faces, rng = fill(gallery, "doors", 60, 6), np.random.default_rng(21)
    curation, before = PostgresCuration(gallery), content(database)
    for _ in range(6):
        for person in rng.permutation(60):
            gallery.put_subject("doors", f"p{person}", name="n" * int(rng.integers(0, 150)))
            if rng.random() < 0.3:
                tokens = [faces[number].token for number in rng.choice(360, int(rng.integers(1, 4)), replace=False)]
                curation.move_faces("doors", tokens, f"p{rng.integers(60)}")
        if maintained:
            maintain(gallery)
        for row, forms in content(database).items():
            before.setdefault(row, set()).update(forms)
    for person in range(0, 20, 4):
        curation.merge("doors", f"p{person}", [f"p{person + 1}", f"p{person + 2}"])
    receipts = [gallery.remove_subject("doors", f"p{person}") for person in (*range(0, 20, 4), *range(20, 60, 2))]
    assert where_found(database, set().union(*before.values()))  # else the search finds nothing at all
    maintain(gallery)
    assert is_erased(gallery, *receipts)
    assert_erased(database, before)


def test_a_full_page_gives_a_row_away_before_it_is_overwritten(gallery: PostgresGallery, database: Database) -> None:
    with database.autocommit() as db:
        db.execute("ALTER TABLE subjects SET (fillfactor = 100)")
        columns = "collection_id, lookup, seal, sealed, created_at"
        insert = "SELECT 1, int8send(number), '', '', 0 FROM generate_series(1, 300) AS number"
        db.execute(sql.SQL(f"INSERT INTO subjects ({columns}) {insert}"))
        db.execute("INSERT INTO scrubs (relation, page) VALUES ('subjects'::regclass, 0)")
    counts, waiting = [], []
    for _ in range(5):
        counts += rows(database, "SELECT count(*) FROM subjects WHERE page_of(ctid) = 0")
        waiting += rows(database, "SELECT count(*) FROM scrubs WHERE page = 0")
        scrub(database)
    assert waiting[:2] == [(1,), (2,)]  # the move is recorded, too
    assert waiting[-1] == (0,)
    assert counts[0] > counts[1] >= counts[-1]
    assert rows(database, "SELECT count(*) FROM subjects") == [(300,)]


def items(count: int) -> list[Item]:
    """Return items of as many subjects, of which every third is a picture, with names and metadata."""
    rng = np.random.default_rng(7)
    return [
        Item(
            number,
            f"the subject of item {number}",
            "vector" if number % 3 else "picture",
            vector.tobytes() if number % 3 else rng.bytes(int(rng.integers(100, 20_000))),
            Properties(f"The name of item {number}", {"badge": f"the badge of item {number}"}),
        )
        for number, vector in enumerate(vectors(count, DIMENSIONS, seed=6))
    ]


@pytest.mark.parametrize("end", ["done", "cancelled", "erased", "dropped"])
def test_nothing_is_left_of_the_items_of_a_job(gallery: PostgresGallery, database: Database, end: str) -> None:
    """The job has enrolled a third of its items, and refused some, when it ends or is ended."""
    jobs, worker, sent = PostgresJobQueue(gallery), PostgresJobWorker(gallery), items(60)
    job = submit(jobs, sent)
    kept = submit(jobs, items(3), "trains")
    keys = {bytes(row[0]) for row in rows(database, "SELECT seal FROM job_items WHERE job_id = %s", job.id)}  # type: ignore[call-overload]
    assert claimed(worker).token == job.token
    faces = vectors(len(sent), DIMENSIONS, seed=8)
    for item in sent if end == "done" else sent[:20]:
        face = NewFace(item.subject, faces[item.number], crop=item.data if item.kind == "picture" else None)
        refused = ProcessedItem(item, Outcome(item.number, "rejected"))
        enrolled = ProcessedItem(item, Outcome(item.number, "enrolled"), [face])
        assert worker.enrol(job, [refused if item.number % 4 == 3 else enrolled], "f1")
    before = content(database)
    if end == "done":
        worker.finish(job, "done")
    elif end == "cancelled":
        jobs.cancel("doors", job.token)
    if end == "dropped":
        receipts = [gallery.drop("doors")]
    else:
        subjects = [item.subject for item in sent if item.number >= 20] if end == "erased" else []
        subjects += [subject.key for subject in gallery.subjects("doors", limit=-1)]
        receipts = [jobs.remove_subject("doors", subject) for subject in set(subjects)]
    assert where_found(database, keys)  # else the search finds nothing at all
    maintain(gallery)
    assert is_erased(gallery, *receipts)
    texts = [
        text.encode()
        for item in sent[3:]  # the others are those of the job that goes on
        for text in (item.subject, f"The name of item {item.number}", f"the badge of item {item.number}")
    ]
    assert_erased(database, before, [*keys, *(item.data for item in sent[3:]), *texts])
    assert len(worker.pending(kept, 9)) == 1


def test_nothing_is_left_of_sightings(gallery: PostgresGallery, database: Database, clock: Clock) -> None:
    """Erased one by one, expired, with their subject, by forbidding pseudonyms, and with their collection."""
    sightings, rng = PostgresSightings(gallery), np.random.default_rng(11)
    allowed = SightingSettings(unknown_s=3600, pseudonyms=True)
    for name in ("doors", "trains"):
        sightings.put_settings(name, allowed)
    fill(gallery, "doors", 6, 2)
    faces, now = vectors(150, DIMENSIONS, seed=12), gallery.clock()
    stored = []
    for number, vector in enumerate(faces):
        new = NewSighting(
            rng.bytes(16).hex(),  # any 16 characters of it are found nowhere else
            now - 10,
            now,
            7,
            subject=f"p{number % 5}" if number % 3 == 0 else None,
            crop=rng.bytes(int(rng.integers(100, 6000))),
            face=UnknownFace(vector, "f1", lambda count: None),
        )
        stored.append(sightings.add("trains" if number % 10 == 1 and new.subject is None else "doors", new))
    before = content(database)
    erased = [*stored[20:28], *stored[50:60:2]]
    receipts = [sightings.remove(sighting.token) for sighting in erased]
    receipts.append(gallery.remove_subject("doors", "p3"))
    assert where_found(database, before["sighting_crops", str(stored[50].id)])  # else the search finds nothing at all
    maintain(gallery)
    assert is_erased(gallery, *receipts)
    gone = [sighting.camera for sighting in erased]
    gone += [sighting.camera for sighting in stored if sighting.subject and sighting.subject.key == "p3"]
    assert_erased(database, before, [camera.encode() for camera in gone])
    before = content(database)
    sightings.put_settings("doors", SightingSettings(unknown_s=3600))
    receipts = [gallery.drop("trains")]
    maintain(gallery)
    assert is_erased(gallery, *receipts)
    assert_erased(database, before)
    before = content(database)
    clock.now += 7200
    maintain(gallery, rounds=2)
    assert rows(database, "SELECT 1 FROM sightings WHERE subject_id IS NULL") == []
    assert rows(database, "SELECT 1 FROM receipts WHERE erased_at IS NULL") == []
    assert_erased(database, before)
