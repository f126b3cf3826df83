"""The embedded gallery through the interface that app/ uses; mypy checks that it satisfies the interface."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.embedded.gallery import EmbeddedGallery
from index.errors import ConflictError
from index.protocol import Gallery


def test_changes_are_planned_answered_and_committed(tmp_path: Path) -> None:
    embedded = EmbeddedGallery(tmp_path)
    gallery: Gallery = embedded
    gallery.create("doors", "face-embedder", "f1", 4)
    change = gallery.put_subject.planned("doors", "a", name="A")
    with pytest.raises(ZeroDivisionError):  # an answer that cannot be computed undoes the change
        change.then(lambda subject: 1 / 0).submit().result()
    assert gallery.subjects("doors") == []
    assert change.then(lambda subject: subject.name).submit().result() == "A"
    with pytest.raises(ConflictError):
        gallery.create("doors", "face-embedder", "f1", 4)
    embedded.close()
