"""The queue of sightings on the disk: order, bound, restarts, damage, permissions."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from app.watch import sighting_queue
from app.watch.decisions import PassageDecision, PendingSighting
from app.watch.sighting_queue import QueueError, SightingQueue


def pending(passage: str) -> PendingSighting:
    return PendingSighting(
        passage=passage, started_at=1.5, ended_at=2.5, frames=3, shots=[b"\xff\xd8 one", b"two"], decision=None
    )


def test_sightings_are_kept_in_order_over_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "watch" / "door"
    with SightingQueue(folder) as queue:
        assert queue.first() is None
        for name in ("a", "b"):
            assert queue.add(pending(name)) == 0
    with SightingQueue(folder) as queue:
        assert len(queue) == 2
        entry = queue.first()
        assert entry is not None
        assert entry.sighting == pending("a")
        match = PassageDecision("match", "anna", "Anna", 0.99, 0.2, 0.4, 5, [])
        decided = entry.sighting.model_copy(update={"decision": match, "decided": True})
        queue.update(entry, decided)
        again = queue.first()
        assert again is not None
        assert again.sighting == decided
        queue.remove(again)
        following = queue.first()
        assert following is not None
        assert following.sighting.passage == "b"


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    with SightingQueue(tmp_path / "door") as queue:
        queue.add(pending("a"))
    assert stat.S_IMODE((tmp_path / "door").stat().st_mode) == 0o700
    (file,) = (tmp_path / "door").glob("*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_full_queue_deletes_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sighting_queue, "MOST_PENDING", 2)
    with SightingQueue(tmp_path) as queue:
        assert [queue.add(pending(name)) for name in "abc"] == [0, 0, 1]
        entry = queue.first()
        assert entry is not None
        assert (entry.sighting.passage, len(queue)) == ("b", 2)


def test_damaged_and_partial_files_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "00000000000000000001-a.json").write_text("{")
    (tmp_path / "00000000000000000002-b.part").write_text("{")
    with SightingQueue(tmp_path) as queue:
        assert queue.first() is None
    assert not [path for path in tmp_path.iterdir() if path.name != "lock"]


def test_a_second_watcher_cannot_use_the_queue(tmp_path: Path) -> None:
    with SightingQueue(tmp_path), pytest.raises(QueueError, match="another watcher"):
        SightingQueue(tmp_path)
    SightingQueue(tmp_path).close()


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QueueError, match="file"):
        SightingQueue(tmp_path / "file" / "door")
