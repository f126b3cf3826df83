"""Rows of the imports of whole galleries: how many rows of each part of an export were loaded."""

from __future__ import annotations

from index.errors import ConflictError
from index.postgres.store.database import Connection
from index.records import Export, ExportPart


def lock(db: Connection) -> None:
    """Let another transaction that begins an import wait until this one ends."""
    db.execute("SELECT pg_advisory_xact_lock(hashtextextended('import', 0))")


def progress(db: Connection, export: Export) -> dict[str, int | None]:
    """Return the number of rows of each part that were loaded; None if the part's collection was dropped since."""
    rows = db.execute(
        "SELECT part, CASE WHEN collection_id IS NULL OR id IS NOT NULL THEN rows END FROM imports"
        " LEFT JOIN collections ON id = collection_id WHERE export = %s",
        (export.id,),
    )
    return dict(rows.fetchall())


def check_newest(db: Connection, export: Export) -> None:
    """Raise ConflictError if a later export of the same gallery was imported."""
    statement = "SELECT 1 FROM imports WHERE source = %s AND exported_at > %s LIMIT 1"
    if db.execute(statement, (export.gallery, export.created_at)).fetchone() is not None:
        raise ConflictError("a later export of the same gallery was imported: what it erased since would come back")


def insert(db: Connection, part: ExportPart, collection_id: int | None) -> None:
    """Insert a part, of which no row was loaded."""
    db.execute(
        "INSERT INTO imports VALUES (%s, %s, %s, %s, %s, 0)",
        (part.export.id, part.name, part.export.gallery, part.export.created_at, collection_id),
    )


def find(db: Connection, part: ExportPart) -> tuple[int | None, int]:
    """Return the id of the part's collection, and the number of its rows that were loaded; lock the part."""
    row = db.execute(
        "SELECT collection_id, rows FROM imports WHERE export = %s AND part = %s FOR UPDATE",
        (part.export.id, part.name),
    ).fetchone()
    assert row is not None  # noqa: S101  the import was begun
    return row[0], row[1]


def put_rows(db: Connection, part: ExportPart, rows: int) -> None:
    """Record that the first `rows` rows of the part were loaded."""
    db.execute("UPDATE imports SET rows = %s WHERE export = %s AND part = %s", (rows, part.export.id, part.name))
