"""Overwrite what deleted rows leave in the pages of a table.

A vacuum frees the place of a deleted row, and leaves its bytes in the page's free space until another row is written
over them. Here a transaction writes short rows without content into that space until the page is full, and is then
undone: to an existing row of the page, as its new versions, which PostgreSQL writes into the same page while they fit;
and into empty pages one row each that is as long as a page. Rows are added from the end of the free space. The last one
is as long as what is left at its beginning; if that is too short for a row, the page is filled anew with other lengths.
A page without space for any row gives one of its rows to another page, and is overwritten in a later round.

The vacuum freezes rows, because such a one waits for pages that are in use, and does not leave out their deleted rows.

Not overwritten: values that PostgreSQL stores apart from their row (TOAST). These are sealed by a key in the row.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Sequence, Set

import psycopg
from psycopg import sql

from index.errors import GalleryError
from index.postgres.store import scrub_schema
from index.postgres.store.database import Connection, Database, scalar
from index.postgres.store.scrub_schema import ErasableTable

BATCH = 100_000  # deleted rows per round
# Bytes of a version's filler. The first version has fewer: in each attempt another number, _SHIFT bytes apart. A row
# without content is shorter than _SHIFT: if one attempt leaves too little of a page for it, the next one leaves enough.
_FILLER, _SHIFT = 384, 192
_ATTEMPTS = 4

# Deleted rows that no transaction, standby or replication slot can still read, so that a vacuum removes them.
_REMOVABLE = """
SELECT relation, relname, page, scrubs.id FROM scrubs LEFT JOIN pg_class ON pg_class.oid = relation
WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) AND age(xid::xid) > (
    SELECT coalesce(max(age), 0) FROM (
        SELECT greatest(age(backend_xmin), age(backend_xid)) AS age FROM pg_stat_activity
        WHERE pid != pg_backend_pid() AND (datid IS NULL OR datname = current_database())
        UNION ALL SELECT age(xmin) FROM pg_replication_slots
        UNION ALL SELECT age(transaction) FROM pg_prepared_xacts
    ) AS older
) ORDER BY xid LIMIT %s
"""


def scrub(database: Database) -> None:
    """Vacuum the tables that have deleted rows, overwrite these, and delete the rows of `scrubs` for them.

    Rows that an older transaction may still read are left for a later round.

    Raises:
        GalleryError: the database's user may not vacuum a table.
    """
    relations: dict[int, dict[int, list[int]]] = {}
    tables: dict[int, str | None] = {}
    with database.snapshot() as db:
        for relation, table, page, number in db.execute(_REMOVABLE, (BATCH,)):
            tables[relation] = table
            relations.setdefault(relation, defaultdict(list))[page].append(number)
    with database.autocommit() as db:
        for relation, pages in relations.items():
            table = tables[relation]
            clean = pages.keys() if table is None else _scrub_table(db, relation, table, list(pages))
            done = [number for page in clean for number in pages[page]]
            db.execute("DELETE FROM scrubs WHERE id = ANY(%s)", (done,))


def _scrub_table(db: Connection, relation: int, table: str, pages: Sequence[int]) -> list[int]:
    """Overwrite deleted rows in these pages, and return those of them that are clean now."""
    name, kind = sql.Identifier(table), scrub_schema.kind(table)
    _vacuum(db, name)
    statement = "SELECT page FROM unnest(%s::bigint[]) AS page WHERE is_empty_page(%s::regclass, page)"
    empty = {row[0] for row in db.execute(statement, (list(pages), relation))}
    # First the empty pages: the last new version of a row, for which its page has no space, may lie in one afterwards.
    clean = list(_fill_empty(db, relation, name, kind, empty))
    return clean + _overwrite(db, relation, kind, set(pages) - empty)


def _overwrite(db: Connection, relation: int, kind: ErasableTable, pages: Set[int]) -> list[int]:
    """Overwrite the free space of pages with rows, and return the pages that are clean now."""
    results: dict[int, str] = dict.fromkeys(pages, "rest")
    first = secrets.randbelow(_FILLER)  # another number in each round
    for number in range(_ATTEMPTS):
        for page in [page for page, result in results.items() if result == "rest"]:
            statement = sql.SQL("SELECT overwrite_free_space(%s::regclass, %s, %s, %s)")
            with db.transaction(force_rollback=True):
                values = (relation, page, kind.blank, (first + number * _SHIFT) % _FILLER)
                results[page] = scalar(db, statement, values)
            if results[page] == "full" and number == 0:
                db.execute("SELECT move_row(%s::regclass, %s)", (relation, page))
    return [page for page, result in results.items() if result == "clean"]


def _vacuum(db: Connection, name: sql.Identifier) -> None:
    warnings: list[str] = []

    def note(warning: psycopg.errors.Diagnostic) -> None:
        warnings.append(str(warning.message_primary))

    db.add_notice_handler(note)
    try:
        db.execute(sql.SQL("VACUUM (FREEZE, INDEX_CLEANUP ON) {}").format(name))
    finally:
        db.remove_notice_handler(note)
    if warnings:  # it was skipped
        raise GalleryError("; ".join(warnings))


def _fill_empty(db: Connection, relation: int, name: sql.Identifier, kind: ErasableTable, empty: set[int]) -> set[int]:
    """Fill the empty pages, and return those that were filled or do not exist any more."""
    count = sql.SQL("SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::integer")
    pages = scalar(db, count, (relation,))
    clean = {page for page in empty if page >= pages}
    constraint = scalar(db, sql.SQL("SELECT pg_get_partition_constraintdef(%s)"), (relation,)) or "true"
    columns, values = kind.insert
    insert = sql.SQL(
        f"INSERT INTO {{}} (filler, {columns})"
        f" SELECT repeat('0', %(length)s), {values.format(constraint=constraint)}"
        " LIMIT 1 RETURNING page_of(ctid)"
    ).format(name)
    with db.transaction(force_rollback=True):
        length = scalar(db, sql.SQL("SELECT current_setting('block_size')::integer"))
        page: int | None = -1
        # No other row fits beside it: PostgreSQL puts it into an empty page, and appends a page if there is none.
        while page is not None and page < pages and not empty <= clean:
            try:
                with db.transaction():
                    page = scalar(db, insert, {"number": len(clean) + 1, "length": length})
            except psycopg.errors.ProgramLimitExceeded:  # it is longer than a page
                length -= 8
            else:
                clean.add(-1 if page is None else page)
    return clean & empty
