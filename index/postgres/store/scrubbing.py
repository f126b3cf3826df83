"""Overwrite what deleted rows leave in the pages of a table.

A vacuum frees the place of a deleted row, and leaves its bytes in the page's free space until another row is written
over them. Here a transaction writes short rows without content into that space until the page is full, and is then
undone: to an existing row of the page, as its new versions, which PostgreSQL writes into the same page while they fit;
and into empty pages one row each that is as long as a page. Rows are added from the end of the free space: only less
than one such row remains at its beginning, where the fillfactor kept other rows away.

A position in a page is used again only after a vacuum has removed the old row from the table and its indexes. So if all
old positions belong to new versions or other rows, a vacuum missed no old row.

Not overwritten: values that PostgreSQL stores apart from their row (TOAST). These are sealed by a key in the row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from psycopg import sql

from index.postgres.store import scrub_schema
from index.postgres.store.database import Connection, Database, scalar
from index.postgres.store.scrub_schema import ErasableTable

BATCH = 100_000  # deleted rows per round


def scrub(database: Database) -> None:
    """Vacuum the tables that have deleted rows, and overwrite these; the rows of `scrubs` for them are deleted.

    Rows that an older transaction may still read are left for a later round.
    """
    with database.snapshot() as db:
        relations = _waiting(db)
    with database.autocommit() as db:
        for relation, (table, places) in relations.items():
            done = _scrub_table(db, relation, table, places) if table else list(places)
            db.execute("DELETE FROM scrubs WHERE id = ANY(%s)", (done,))


def _waiting(db: Connection) -> dict[int, tuple[str | None, dict[int, str]]]:
    """Return for each relation its table (None: it was dropped), and the positions by the ids of `scrubs`."""
    rows = db.execute(
        "SELECT relation, relname, id, place::text FROM scrubs LEFT JOIN pg_class ON pg_class.oid = relation"
        " WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) AND age(xid::xid) > ("
        "   SELECT coalesce(max(age), 0) FROM ("
        "     SELECT greatest(age(backend_xmin), age(backend_xid)) AS age FROM pg_stat_activity"
        "     WHERE pid != pg_backend_pid() AND (datid IS NULL OR datname = current_database())"
        "     UNION ALL SELECT age(xmin) FROM pg_replication_slots"
        "     UNION ALL SELECT age(transaction) FROM pg_prepared_xacts) AS older)"
        " ORDER BY xid LIMIT %s",
        (BATCH,),
    )
    relations: dict[int, tuple[str | None, dict[int, str]]] = {}
    for relation, table, number, place in rows:
        relations.setdefault(relation, (table, {}))[1][number] = place
    return relations


def _scrub_table(db: Connection, relation: int, table: str, places: dict[int, str]) -> list[int]:
    """Overwrite the positions and return the ids of those for which that is certain."""
    name, kind = sql.Identifier(table), scrub_schema.kind(table)
    db.execute(sql.SQL("VACUUM (INDEX_CLEANUP ON) {}").format(name))
    blocks: dict[int, list[int]] = defaultdict(list)
    for number, place in places.items():
        blocks[_block(place)].append(number)
    done: list[int] = []
    empty: set[int] = set()
    for block, numbers in blocks.items():
        with db.transaction(force_rollback=True):
            statement = sql.SQL("SELECT overwrite_free_space(%s::regclass, %s, %s)")
            written = scalar(db, statement, (relation, block, kind.blank))
        if written is None:
            empty.add(block)
        else:
            done += [number for number in numbers if places[number] in set(written)]
    for block in _fill_empty(db, relation, name, kind, empty):
        done += blocks[block]
    return done


def _fill_empty(
    db: Connection, relation: int, name: sql.Identifier, kind: ErasableTable, empty: set[int]
) -> Iterable[int]:
    """Fill the empty pages, and return those that were filled or do not exist any more."""
    statement = sql.SQL("SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::integer")
    pages = scalar(db, statement, (relation,))
    filled = {block for block in empty if block >= pages}
    constraint = scalar(db, sql.SQL("SELECT pg_get_partition_constraintdef(%s)"), (relation,)) or "true"
    columns, values = kind.insert
    insert = sql.SQL(
        f"INSERT INTO {{}} (filler, {columns})"
        f" SELECT repeat('0', current_setting('block_size')::integer - 192), {values.format(constraint=constraint)}"
        " LIMIT 1 RETURNING ctid::text"
    ).format(name)
    with db.transaction(force_rollback=True):
        for number in range(1, pages + 1):
            if empty <= filled:
                break
            # No longer row fits beside it: PostgreSQL puts it into an empty page, and appends one if there is none.
            place = scalar(db, insert, {"number": number})
            if place is None or _block(place) >= pages:
                break
            filled.add(_block(place))
    return filled & empty


def _block(place: str) -> int:
    """Return the number of the page of a position, which is written `(page,row)`."""
    return int(place[1:].split(",", maxsplit=1)[0])
