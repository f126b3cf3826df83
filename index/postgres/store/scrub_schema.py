"""The schema that scrubbing needs (index/postgres/store/scrubbing.py): triggers record deleted and replaced rows."""

from __future__ import annotations

from dataclasses import dataclass

FILL = 95  # percent of a page that rows are inserted into; the rest is longer than a row without content


@dataclass(frozen=True)
class ErasableTable:
    """How rows without content are written. `secret`: the columns of content; `blank`: the values without.

    `insert`: a statement that inserts one row, without the columns and the value of `filler`.
    """

    secret: tuple[str, ...]
    blank: str
    insert: tuple[str, str]


_FACES = ErasableTable(
    ("vector", "details", "seal", "crop"),
    "vector = NULL, token = '', details = '', seal = NULL, crop = NULL",
    (
        "id, subject_id, token, details, created_at",
        "-%(number)s, subject_id, '', '', 0 FROM generate_series(-1000::bigint, -1) AS subject_id WHERE {constraint}",
    ),
)
_TABLES = {
    "subjects": ErasableTable(
        ("seal", "sealed"),
        "seal = '', sealed = ''",
        ("collection_id, lookup, seal, sealed, created_at", "id, int8send(%(number)s), '', '', 0 FROM collections"),
    ),
    "rejections": ErasableTable(
        ("vector", "seal", "crop", "reembedded"),
        "vector = NULL, seal = NULL, crop = NULL, reembedded = NULL",
        ("id, collection_id, subject_id, token, created_at", "-%(number)s, 0, id, %(number)s::text, 0 FROM subjects"),
    ),
    "absorbed_subjects": ErasableTable(
        ("seal", "sealed"),
        "seal = '', sealed = ''",
        (
            "id, collection_id, merge_id, lookup, seal, sealed, created_at",
            "-%(number)s, id, 0, '', '', '', 0 FROM collections",
        ),
    ),
    "job_items": ErasableTable(
        ("result", "seal", "sealed"),
        "result = NULL, seal = NULL, sealed = NULL",
        ("job_id, number, status", "id, -%(number)s, '' FROM jobs"),
    ),
    "sightings": ErasableTable(
        ("subject_id", "camera", "started_at", "ended_at", "probability", "distance"),
        "camera = '', started_at = 0, ended_at = 0, probability = NULL, distance = NULL",
        (
            "id, token, collection_id, camera, started_at, ended_at, frames, created_at, expires_at",
            "-%(number)s, %(number)s::text, id, '', 0, 0, 0, 0, 0 FROM collections",
        ),
    ),
    "sighting_crops": ErasableTable(
        ("seal", "crop"),
        "seal = '', crop = ''",
        ("sighting_id, number, seal, crop", "id, -%(number)s, '', '' FROM sightings"),
    ),
    "sighting_faces": ErasableTable(
        ("pseudonym", "vector"),
        "pseudonym = '', vector = NULL",
        ("sighting_id, number, collection_id, pseudonym", "id, -%(number)s, 0, '' FROM sightings"),
    ),
}


def kind(table: str) -> ErasableTable:
    """Return the kind of a table; all others are tables of faces or their partitions."""
    return _TABLES.get(table, _FACES)


FUNCTIONS = """
    -- Pages that may have bytes of deleted rows.
    CREATE TABLE scrubs (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        relation oid NOT NULL,
        page bigint NOT NULL,
        xid xid8 NOT NULL DEFAULT pg_current_xact_id()
    );
    CREATE INDEX scrubs_by_transaction ON scrubs (xid);
    CREATE FUNCTION note_scrub() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO scrubs (relation, page) VALUES (TG_RELID, split_part(ltrim(OLD.ctid::text, '('), ',', 1)::bigint);
        RETURN NULL;
    END $$;
    CREATE FUNCTION is_empty_page(relation regclass, page bigint) RETURNS boolean LANGUAGE plpgsql AS $$
    DECLARE
        is_empty boolean;
    BEGIN
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM %s WHERE ctid >= $1 AND ctid < $2)', relation) INTO is_empty
            USING format('(%s,0)', page)::tid, format('(%s,0)', page + 1)::tid;
        RETURN is_empty;
    END $$;
"""


def set_up(table: str) -> str:
    """Return statements that prepare a table: maintenance finds its deleted rows, and no statistics copy its values."""
    triggers = "\n".join(
        f"CREATE TRIGGER scrub_{event} AFTER {event} ON {table} FOR EACH ROW {condition}EXECUTE FUNCTION note_scrub();"
        for event, condition in (("DELETE", ""), ("UPDATE", "WHEN (NEW.filler IS NULL) "))
    )
    return f"ALTER TABLE {table} ALTER filler SET STORAGE PLAIN;\n{triggers}\n{without_statistics(table)}"


def without_statistics(table: str) -> str:
    """Return a statement that lets PostgreSQL collect no values of the table's content."""
    columns = kind(table).secret
    return f"ALTER TABLE {table} {', '.join(f'ALTER {column} SET STATISTICS 0' for column in columns)};\n"
