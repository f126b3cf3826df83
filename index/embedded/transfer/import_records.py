"""Rows of the imports of whole galleries: how many rows of each part of an export were loaded."""

from __future__ import annotations

import apsw

from index.errors import ConflictError
from index.records import Export, ExportPart


def progress(db: apsw.Connection, export: Export) -> dict[str, int | None]:
    """Return the number of rows of each part that were loaded; None if the part's collection was dropped since."""
    rows = db.execute(
        "SELECT part, CASE WHEN collection_id IS NULL OR id IS NOT NULL THEN rows END FROM imports"
        " LEFT JOIN collections ON id = collection_id WHERE export = ?",
        (export.id,),
    )
    return dict(rows)


def check_newest(db: apsw.Connection, export: Export) -> None:
    """Raise ConflictError if a later export of the same gallery was imported."""
    statement = "SELECT 1 FROM imports WHERE source = ? AND exported_at > ?"
    if db.execute(statement, (export.gallery, export.created_at)).get is not None:
        raise ConflictError("a later export of the same gallery was imported: what it erased since would come back")


def insert(db: apsw.Connection, part: ExportPart, collection_id: int | None) -> None:
    """Insert a part, of which no row was loaded."""
    db.execute(
        "INSERT INTO imports VALUES (?, ?, ?, ?, ?, 0)",
        (part.export.id, part.name, part.export.gallery, part.export.created_at, collection_id),
    )


def find(db: apsw.Connection, part: ExportPart) -> tuple[int | None, int]:
    """Return the id of the part's collection, and the number of its rows that were loaded."""
    collection_id, rows = db.execute(
        "SELECT collection_id, rows FROM imports WHERE export = ? AND part = ?",
        (part.export.id, part.name),
    ).get
    return collection_id, rows


def put_rows(db: apsw.Connection, part: ExportPart, rows: int) -> None:
    """Record that the first `rows` rows of the part were loaded."""
    db.execute("UPDATE imports SET rows = ? WHERE export = ? AND part = ?", (rows, part.export.id, part.name))
