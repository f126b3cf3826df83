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
    "job_items": ErasableTable(
        ("result", "seal", "sealed"),
        "result = NULL, seal = NULL, sealed = NULL",
        ("job_id, number, status", "id, -%(number)s, '' FROM jobs"),
    ),
}


def kind(table: str) -> ErasableTable:
    """Return the kind of a table; all others are tables of faces or their partitions."""
    return _TABLES.get(table, _FACES)


FUNCTIONS = """
    -- Rows whose bytes are still in their pages. `place` is the row's position in the table `relation`.
    CREATE TABLE scrubs (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        relation oid NOT NULL,
        place tid NOT NULL,
        xid xid8 NOT NULL DEFAULT pg_current_xact_id()
    );
    CREATE INDEX scrubs_by_transaction ON scrubs (xid);
    CREATE FUNCTION note_scrub() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO scrubs (relation, place) VALUES (TG_RELID, OLD.ctid);
        RETURN NULL;
    END $$;
    -- Writes new versions of a row, with the values `blank`, into the free space of its page, and returns the positions
    -- of all rows in it: NULL for an empty page. Undo the transaction.
    CREATE FUNCTION overwrite_free_space(relation regclass, block bigint, blank text) RETURNS text[]
    LANGUAGE plpgsql AS $$
    DECLARE
        page tid := format('(%s,0)', block)::tid;
        next_page tid := format('(%s,0)', block + 1)::tid;
        among text := format('FROM %s WHERE ctid >= $1 AND ctid < $2', relation);
        places tid[];
        place tid;
    BEGIN
        EXECUTE 'SELECT array_agg(ctid) ' || among INTO places USING page, next_page;
        EXECUTE 'SELECT ctid ' || among || ' LIMIT 1 FOR UPDATE SKIP LOCKED' INTO place USING page, next_page;
        WHILE place >= page AND place < next_page LOOP
            places := places || place;
            EXECUTE format('UPDATE %s SET filler = '''', %s WHERE ctid = $1 RETURNING ctid', relation, blank)
                INTO place USING place;
        END LOOP;
        RETURN places::text[];
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
