"""Operations of an operator: the gallery that they open, and errors of its database."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from index import administration
from index.embedded.gallery import EmbeddedGallery
from index.errors import CorruptError, GalleryError
from tests.index.people import enrol


def test_an_open_gallery_is_closed_and_reports_a_damaged_ledger(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    enrol(gallery, "doors", 5)
    with administration.open_gallery(tmp_path / "gallery") as opened:
        assert opened.usage("doors").faces == 5
        assert list(administration.clashes(opened)) == []
    with administration.open_storage(tmp_path / "gallery") as storage:
        assert storage.gallery.usage("doors").faces == 5
        files = (tmp_path / "gallery").glob("ledger.db*")
        assert storage.stored_bytes() == sum(file.stat().st_size for file in files) > 0
    with pytest.raises(GalleryError, match="the ledger is closed"):
        opened.put_subject("doors", "a")
    with pytest.raises(CorruptError, match=r"ledger\.db: "), administration.open_gallery(tmp_path / "gallery"):
        raise apsw.CorruptError("malformed page")
