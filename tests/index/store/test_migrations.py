"""A ledger of the first version is migrated with all its rows."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import apsw

from index.embedded.admin.verify import find_faults
from index.embedded.audit.id_normalisation import Clash, clashes
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import Searches, selected_subjects
from index.embedded.store.erasure_records import Removal
from index.embedded.store.migrations import STEPS, migrate
from tests.index.people import vectors

C, D = "m\u00fcller", "mu\u0308ller"
SUBJECTS = [
    (1, "p0", '{"site": "north"}'),
    (1, C, "{}"),
    (1, D, "no JSON"),
    (1, f"x{D}", '{"site": ["north"]}'),
    (2, "p0", '"north"'),
]
FACES = [(1, 1), (1, 1), (1, 2), (2, 5)]  # of collection, of subject


def write_version_1(path: Path) -> None:
    """Write a ledger of version 1, with feedback as version 6 wrote it."""
    with closing(apsw.Connection(str(path))) as db:
        migrate(db, STEPS[:1])
        for number, name in enumerate(("doors", "trains", D), 1):
            db.execute("INSERT INTO collections VALUES (?, ?, 'e', 'f1', 4, '{}', 0, 0)", (number, name))
        for number, (collection, key, metadata) in enumerate(SUBJECTS, 1):
            values = number, collection, key, metadata, number
            db.execute("INSERT INTO subjects VALUES (?, ?, ?, NULL, ?, ?, NULL)", values)
        for number, (collection, subject) in enumerate(FACES, 1):
            db.execute("INSERT INTO faces VALUES (?, ?, ?, ?, '{}', 0)", (number, collection, subject, f"t{number}"))
            db.execute("INSERT INTO vectors VALUES (?, ?)", (number, vectors(4)[number - 1].tobytes()))
        db.execute("INSERT INTO removals (collection_id, face_id) VALUES (1, 7)")
        migrate(db, STEPS[:6])
        db.execute("INSERT INTO rejections VALUES (7, 1, 'token', 0, ?)", (vectors(9)[8].tobytes(),))


def test_a_ledger_of_version_1_is_migrated(tmp_path: Path) -> None:
    write_version_1(tmp_path / "ledger.db")
    with closing(EmbeddedGallery(tmp_path)) as gallery:
        reader = gallery.ledger.reader()
        assert sorted(subject.key for subject in gallery.subjects("doors")) == sorted((C, D, "p0", f"x{C}"))
        assert list(clashes(reader)) == [Clash("doors", D)]
        usage = [gallery.usage(name) for name in ("doors", "trains", C)]
        assert [(count.subjects, count.faces) for count in usage] == [(4, 3), (1, 1), (0, 0)]
        tombstones = gallery.tombstones.read()
        assert tombstones is not None
        assert list(tombstones[1]) == [Removal(1, 1, 0, 7)]
        assert [rejection.token for rejection in Feedback(gallery).of_subject("doors", "p0")] == ["token"]
        assert Searches(gallery).compare("doors", "p0", vectors(9)[8])[1]
        assert selected_subjects(reader, 1, {"site": ["north"]}) == [1]
        gallery.ledger.write(lambda db: db.execute("UPDATE subjects SET metadata = 'no JSON' WHERE id = 1").fetchall())
        assert selected_subjects(reader, 1, {"site": ["north"]}) == []
        assert list(find_faults(gallery)) == ["ledger: 2 rows of subjects contain invalid JSON"]
        gallery.create("new", "e", "f1", 4)  # only collections of older versions may have unscaled vectors
        assert [row[0] for row in reader.execute("SELECT unscaled FROM collections ORDER BY id")] == [1, 1, 1, 0]
        gallery.remove_subject("doors", "p0")
        assert (gallery.usage("doors").subjects, gallery.usage("doors").faces) == (3, 1)
