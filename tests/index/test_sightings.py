"""Sightings of the embedded engine: what its files and backups have of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from index.embedded.admin.backup import back_up, restore
from index.embedded.admin.verify import find_faults
from index.embedded.gallery import EmbeddedGallery
from index.embedded.sightings.sightings import Sightings
from index.errors import NotFoundError
from index.sightings import NewSighting, Sighting, SightingSettings, UnknownFace
from index.types import NewFace
from tests.index.people import Clock, maintain, vectors
from tests.soak.erasure import forms_of_vector, search_elsewhere

DIMENSIONS = 48
HOUR_S = 3600.0


@pytest.fixture
def doors(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedGallery]:
    with closing(EmbeddedGallery(tmp_path / "gallery", clock=clock)) as gallery:
        for name in ("doors", "trains"):
            gallery.create(name, "face-embedder", "f1", DIMENSIONS)
            gallery.enrol(name, [NewFace(f"p{n}", vector) for n, vector in enumerate(vectors(5, DIMENSIONS))], "f1")
        yield gallery


def add(
    gallery: EmbeddedGallery, count: int, seed: int, collection: str = "doors", subject: str | None = None
) -> list[tuple[Sighting, list[bytes]]]:
    """Add sightings; return each with the bytes that nothing else has: camera, best shot and vector."""
    rng, now, stored = np.random.default_rng(seed), gallery.clock(), []
    for vector in vectors(count, DIMENSIONS, seed):
        camera, crop = rng.bytes(16).hex(), rng.bytes(int(rng.integers(100, 6000)))
        face = UnknownFace(vector, "f1", lambda count: None)
        new = NewSighting(camera, now - 5, now, 7, subject=subject, crop=crop, face=face)
        forms = [camera.encode(), crop, *(forms_of_vector(vector) if subject is None else ())]
        stored.append((Sightings(gallery).add(collection, new), forms))
    return stored


def test_erased_sightings_are_in_no_file(doors: EmbeddedGallery, tmp_path: Path, clock: Clock) -> None:
    """Erased one by one, with their subject or collection, expired, and by forbidding pseudonyms."""
    sightings = Sightings(doors)
    for name in ("doors", "trains"):
        sightings.put_settings(name, SightingSettings(unknown_s=HOUR_S, pseudonyms=True))
    unknown = add(doors, 60, 1)
    known = [add(doors, 20, 10 + person, subject=f"p{person}") for person in range(3)]
    trains = add(doors, 20, 20, "trains")

    def remains(*erased: tuple[Sighting, list[bytes]]) -> list[str]:
        return search_elsewhere(sorted({form for _, forms in erased for form in forms}), [tmp_path])[1]

    assert len(remains(unknown[0], known[0][0], trains[0])) > 2  # else the search finds nothing at all
    receipts = [sightings.remove(stored.token) for stored, _ in (*unknown[10:20], *unknown[20:40:2])]
    receipts += [doors.remove_subject("doors", "p1"), doors.drop("trains")]
    maintain(doors)
    assert all(doors.receipt(receipt.token).erased_at is not None for receipt in receipts)
    assert remains(*unknown[10:20], *unknown[20:40:2], *known[1], *trains) == []
    sightings.put_settings("doors", SightingSettings(unknown_s=HOUR_S))
    maintain(doors)
    vectors_of_unknown = [(stored, forms[2:]) for stored, forms in unknown]
    assert remains(*vectors_of_unknown) == []
    assert remains(unknown[0])
    clock.now += 2 * HOUR_S
    maintain(doors)
    maintain(doors)
    assert remains(*unknown) == []
    assert remains(*known[0])
    assert list(find_faults(doors)) == []


def test_a_restore_repeats_the_erasures_of_sightings(doors: EmbeddedGallery, tmp_path: Path, clock: Clock) -> None:
    kept, erased = (stored for stored, _ in add(doors, 2, 1))
    back_up(doors, tmp_path / "backup")
    sightings = Sightings(doors)
    sightings.remove(erased.token)
    (late,) = (stored for stored, _ in add(doors, 1, 2))
    doors.close()
    restore(tmp_path / "gallery", tmp_path / "backup", clock=clock)
    with closing(EmbeddedGallery(tmp_path / "gallery", clock=clock)) as gallery:
        assert Sightings(gallery).page("doors") == [kept]
        with pytest.raises(NotFoundError):
            Sightings(gallery).remove(erased.token)
        # A reader who has read further than the backup misses no sighting.
        (new,) = (stored for stored, _ in add(gallery, 1, 3))
        assert new.position > late.position
        assert list(find_faults(gallery)) == []


def test_damaged_rows_are_reported(doors: EmbeddedGallery) -> None:
    Sightings(doors).put_settings("doors", SightingSettings(pseudonyms=True))
    add(doors, 1, 1)
    add(doors, 1, 2, subject="p1")
    assert list(find_faults(doors)) == []
    doors.ledger.write(lambda db: db.execute("UPDATE sighting_faces SET vector = X'00'"))
    doors.ledger.write(lambda db: db.execute("UPDATE sightings SET collection_id = 2 WHERE subject_id IS NOT NULL"))
    faults = " ".join(find_faults(doors))
    assert "1 vectors of sightings do not fit" in faults
    assert "1 sightings are in another collection" in faults


# Adds sightings with keys from `sys.argv[2]` on, and prints the token of each that is acknowledged.
ADDING = """
import itertools, sys, time
from pathlib import Path
from index.embedded.gallery import EmbeddedGallery
from index.embedded.sightings.sightings import Sightings
from index.sightings import NewSighting

sightings = Sightings(EmbeddedGallery(Path(sys.argv[1])))
for number in itertools.count(int(sys.argv[2])):
    now = time.time()
    new = NewSighting(f"camera-{number}", now, now, 1, crop=bytes(1000))
    change = sightings.add.planned("doors", new).then(lambda stored: stored.token)
    print(number, change.once(f"key-{number}", b"%d" % number, str, str).submit().result(), flush=True)
"""


def test_kills_lose_no_sighting_and_repeat_none(tmp_path: Path) -> None:
    with closing(EmbeddedGallery(tmp_path / "gallery")) as gallery:
        gallery.create("doors", "face-embedder", "f1", DIMENSIONS)
    acknowledged: dict[int, str] = {}
    for kill in range(3):
        # Requests of which the client has heard nothing, and some that were acknowledged, are sent again.
        first = max(0, len(acknowledged) - 5)
        command = [sys.executable, "-c", ADDING, str(tmp_path / "gallery"), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(20 + 7 * kill):
                number, token = process.stdout.readline().split()
                assert acknowledged.setdefault(int(number), token) == token
            process.send_signal(signal.SIGKILL)
    with closing(EmbeddedGallery(tmp_path / "gallery")) as gallery:
        stored = Sightings(gallery).page("doors", limit=10_000)
        assert list(find_faults(gallery)) == []
    cameras = {row.camera: row.token for row in stored}
    assert len(cameras) == len(stored)
    assert {f"camera-{number}": token for number, token in acknowledged.items()}.items() <= cameras.items()
    assert [row.camera for row in stored] == [f"camera-{number}" for number in range(len(stored))]
