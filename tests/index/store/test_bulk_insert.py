"""Faces enrolled at once are what they are when enrolled one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import apsw
import pytest

from index.embedded.admin.verify import find_faults
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import face_records
from index.types import Face, NewFace
from tests.index.people import vectors


def one_by_one(db: apsw.Connection, collection_id: int, faces: Sequence[NewFace], now: float) -> list[Face]:
    return [made for face in faces for made in face_records.insert(db, collection_id, [face], now)]


def test_many_at_once_are_what_they_are_one_by_one(tmp_path: Path) -> None:
    gallery = EmbeddedGallery(tmp_path, clock=lambda: 5.0)
    sent = [
        NewFace(f"p{n % 3} é", vector, {"side": n} if n % 2 else {}, bytes([n]) if n % 4 == 0 else None)
        for n, vector in enumerate(vectors(10))
    ]
    rows = {}
    for name, insert in (("one by one", one_by_one), ("at once", face_records.insert)):
        found = gallery.create(name, "face-embedder", "f1", 4)
        gallery.put_subject(name, "p1 é", name="Ada", metadata={"floor": 1})
        made = gallery.ledger.write(partial(insert, collection_id=found.id, faces=sent[:6], now=5.0))
        gallery.remove_faces(name, [made[-1].token])  # whose id is not given again
        made += gallery.ledger.write(partial(insert, collection_id=found.id, faces=sent[6:], now=6.0))
        assert gallery.ledger.write(partial(insert, collection_id=found.id, faces=[], now=6.0)) == []
        assert [one.id for one in made] == list(range(made[0].id, made[0].id + 10))
        assert len({one.token for one in made}) == 10
        kept = [one for one in made if one.token != made[5].token]
        assert [f for s in gallery.subjects(name) for f in gallery.faces(name, s.key)] == sorted(
            kept, key=lambda one: (one.subject, one.id)
        )
        with gallery.ledger.snapshot() as db:
            whole = face_records.read_records(db, found.id, 0, 2**62, -1, 0.0)
        rows[name] = [{**face.__dict__, "id": face.id - made[0].id, "token": ""} for face in whole]
    assert rows["at once"] == rows["one by one"]
    assert len(rows["at once"]) == 9
    assert list(find_faults(gallery)) == []
    ((match,),) = gallery.search("at once", sent[7].vector[None], 1)
    assert match.similarity == pytest.approx(1)
    gallery.close()
