"""After `erased` nothing is left in any file: of vectors in every form, of crops, names, keys, metadata."""

from __future__ import annotations

import base64
import csv
import json
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import apsw
import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import erasure
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
    main,
    person,
    search_elsewhere,
)
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import collection_records, erasure_records, face_records
from index.embedded.store.secure_delete import Pages
from index.embedded.tasks.compaction import Limits, Maintenance
from tests.index.people import vectors

DIMENSIONS = 64
LIMITS = Limits(segment=100, exact_below=200, growth=2.0)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[EmbeddedGallery]:
    made = EmbeddedGallery(tmp_path / "state")
    made.create(COLLECTION, "face-embedder", FINGERPRINT, DIMENSIONS)
    yield made
    made.close()


def one_by_one(db: apsw.Connection, tokens: Sequence[str]) -> None:
    """Erase them as if each was another request, but durably all at once: that is faster."""
    found = collection_records.find(db, COLLECTION)
    for token in tokens:
        erasure_records.remove_faces(
            db, found.id, face_records.ids_of_tokens(db, found.id, [token]), subjects=0, now=0.0
        )


def left(gallery: EmbeddedGallery, folder: Path, rounds: int) -> list[str]:
    """What is found of all that was erased, in rounds of enrolling and erasing at random; `folder` has the gallery."""
    rng, maintenance = random.Random(2), Maintenance(gallery, LIMITS)
    there: dict[str, tuple[Person, int]] = {}
    forms: set[bytes] = set()
    for number in range(rounds):
        # Rows of various lengths: those are what SQLite makes room for by writing a page anew.
        people = [person(200 * number + each, DIMENSIONS, 1, (50, 1500)) for each in range(200)]
        there |= dict(zip(fill(gallery, people), ((one, face) for one in people for face in range(5)), strict=True))
        maintenance.run()
        before = indexes(gallery)
        keys = rng.sample(sorted({one.key for one, _ in there.values()}), 15)
        whole = {token for token, (one, _) in there.items() if one.key in keys}
        tokens = rng.sample([token for token in there if token not in whole], len(there) * 3 // 4)
        gallery.ledger.write(partial(one_by_one, tokens=tokens[20:]))
        erase(gallery, maintenance, tokens[:20], keys)
        all_indexes = before + indexes(gallery)
        assert all_indexes
        for token in (*tokens, *whole):
            one, face = there.pop(token)
            forms.update((*forms_of_vector(one.vectors[face], all_indexes), one.crops[face] or b""))
            forms.update(one.forms if token in whole else ())
    # What is not to be found, and something that is.
    survivor, face = next(iter(there.values()))
    size, found = search_elsewhere([survivor.vectors[face].tobytes()], [folder])
    assert size > 500_000
    assert len(found) >= DIMENSIONS * 4 // 8
    return search_elsewhere(sorted(forms), [folder])[1]


def test_after_erased_nothing_is_left_in_any_file(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    assert left(gallery, tmp_path, 4) == []


def test_secure_delete_alone_leaves_some(
    gallery: EmbeddedGallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pages, "dirty", lambda self: [])
    found = left(gallery, tmp_path, 4)
    assert found
    assert all("ledger.db" in line for line in found)


@given(
    before=st.binary(max_size=40),
    after=st.binary(max_size=40),
    form=st.integers(0, 4),
    start=st.integers(0, 300),
    at_once=st.sampled_from([8, 16, 24, 2**20]),
)
def test_every_slice_is_found_wherever_it_lies(
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


def test_forms_are_what_others_write() -> None:
    (vector,) = vectors(1, DIMENSIONS)
    whole, half, *encoded = forms_of_vector(vector)
    assert whole == bytes(memoryview(vector))
    np.testing.assert_allclose(np.frombuffer(half, np.float16), vector, atol=1e-3)
    for before in range(7):
        text = base64.b64encode(b"x" * before + whole + b"y" * 5)
        assert encoded[before % 3] in text
    one = person(3, DIMENSIONS)
    assert json.dumps({"n": one.name}).encode().count(list(one.forms)[3]) == 1
    assert json.dumps({"n": one.name}, ensure_ascii=False).encode().count(list(one.forms)[2]) == 1


@pytest.mark.parametrize(("forgetful", "encrypted"), [(True, False), (False, True)])
def test_the_benchmark_measures_and_can_fail(
    tmp_path: Path, forgetful: bool, encrypted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def leaves_one(gallery: EmbeddedGallery, maintenance: Maintenance, tokens: list[str], keys: list[str]) -> float:
        (gallery.files.parent / "forgotten").write_text(json.dumps({"subject": keys[0]}))
        return erase(gallery, maintenance, tokens, keys)

    if forgetful:
        monkeypatch.setattr(erasure, "erase", leaves_one)
    with pytest.raises(typer.Exit) as ended:
        main(2000, DIMENSIONS, 300, 20, 2, tmp_path, tmp_path / "erasure.csv", encrypted)
    with (tmp_path / "erasure.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (ended.value.exit_code, int(row["left"]) > 0) == ((1, True) if forgetful else (0, False))
    assert row.get("open") == ("0" if encrypted else None)
    assert 0 < float(row["erased_s"]) < 60
    assert float(row["searched_mb"]) > float(row["files_mb"]) > 0.5
    assert float(row["ledger_mb"]) > 1
