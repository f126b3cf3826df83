"""Once a receipt says `erased`, no file contains the vectors in any form, crops, names, keys or metadata."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import apsw
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.erasure import (
    COLLECTION,
    FINGERPRINT,
    SLICE,
    Needles,
    Person,
    erase,
    fill,
    forms_of_vector,
    indexes,
    person,
    search_elsewhere,
)
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import collection_records, erasure_records, face_records
from index.embedded.store.secure_delete import Pages
from index.embedded.tasks.maintenance import Maintenance, MaintenanceLimits
from tests.index.people import vectors

DIMENSIONS = 64
LIMITS = MaintenanceLimits(segment=100, exact_below=200, growth=2.0)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[EmbeddedGallery]:
    gallery = EmbeddedGallery(tmp_path / "state")
    gallery.create(COLLECTION, "face-embedder", FINGERPRINT, DIMENSIONS)
    yield gallery
    gallery.close()


def one_by_one(db: apsw.Connection, tokens: Sequence[str]) -> None:
    """Erase each face with a receipt of its own, in one transaction."""
    number = collection_records.find(db, COLLECTION).id
    for token in tokens:
        erasure_records.remove_faces(db, number, face_records.ids_of_tokens(db, number, [token]), subjects=0, now=0.0)


def remains(gallery: EmbeddedGallery, folder: Path, rounds: int) -> list[str]:
    """Enrol and erase at random in rounds, then return what the files in `folder` still contain of erased data."""
    rng, maintenance = random.Random(2), Maintenance(gallery, LIMITS)
    enrolled: dict[str, tuple[Person, int]] = {}
    forms: set[bytes] = set()
    for number in range(rounds):
        # Rows of different lengths make SQLite rewrite pages.
        people = [person(200 * number + offset, DIMENSIONS, 1, (50, 1500)) for offset in range(200)]
        faces = [(subject, face) for subject in people for face in range(5)]
        enrolled |= dict(zip(fill(gallery, people), faces, strict=True))
        maintenance.run()
        before = indexes(gallery)
        keys = rng.sample(sorted({subject.key for subject, _ in enrolled.values()}), 15)
        of_subjects = {token for token, (subject, _) in enrolled.items() if subject.key in keys}
        tokens = rng.sample([token for token in enrolled if token not in of_subjects], len(enrolled) * 3 // 4)
        gallery.ledger.write(partial(one_by_one, tokens=tokens[20:]))
        erase(gallery, maintenance, tokens[:20], keys)
        all_indexes = before + indexes(gallery)
        assert all_indexes
        for token in (*tokens, *of_subjects):
            subject, face = enrolled.pop(token)
            forms.update((*forms_of_vector(subject.vectors[face], all_indexes), subject.crops[face] or b""))
            forms.update(subject.forms if token in of_subjects else ())
    # Check that the search finds a vector that was not erased.
    survivor, face = next(iter(enrolled.values()))
    size, places = search_elsewhere([survivor.vectors[face].tobytes()], [folder])
    assert size > 500_000
    assert len(places) >= DIMENSIONS * 4 // 8
    return search_elsewhere(sorted(forms), [folder])[1]


def test_erased_data_is_in_no_file(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    assert remains(gallery, tmp_path, 4) == []


def test_secure_delete_alone_leaves_erased_data(
    gallery: EmbeddedGallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pages, "dirty", lambda self: [])
    lines = remains(gallery, tmp_path, 4)
    assert lines
    assert all("ledger.db" in line for line in lines)


@given(
    before=st.binary(max_size=40),
    after=st.binary(max_size=40),
    form=st.integers(0, 4),
    start=st.integers(0, 300),
    at_once=st.sampled_from([8, 16, 24, 2**20]),
)
def test_every_slice_is_found_at_every_offset(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, after: bytes, form: int, start: int, at_once: int
) -> None:
    (vector,) = vectors(1, DIMENSIONS, seed=5)
    forms = list(forms_of_vector(vector))
    start = min(start, len(forms[form]) - SLICE)
    path = tmp_path_factory.getbasetemp() / "haystack"
    path.write_bytes(before + forms[form][start : start + SLICE] + after)
    assert NEEDLES.search(path, at_once)
    path.write_bytes(before + forms[form][start : start + SLICE // 2] + after)
    assert not NEEDLES.search(path, at_once)


NEEDLES = Needles(forms_of_vector(vectors(1, DIMENSIONS, seed=5)[0]))


def test_forms_of_a_vector_agree_with_numpy_and_base64() -> None:
    (vector,) = vectors(1, DIMENSIONS)
    whole, half, *encoded = forms_of_vector(vector)
    assert whole == bytes(memoryview(vector))
    np.testing.assert_allclose(np.frombuffer(half, np.float16), vector, atol=1e-3)
    for before in range(7):
        text = base64.b64encode(b"x" * before + whole + b"y" * 5)
        assert encoded[before % 3] in text
    subject = person(3, DIMENSIONS)
    assert json.dumps({"n": subject.name}).encode().count(list(subject.forms)[3]) == 1
    assert json.dumps({"n": subject.name}, ensure_ascii=False).encode().count(list(subject.forms)[2]) == 1
