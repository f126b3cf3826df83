"""The table of a collection's faces, created with the collection and dropped with it.

A re-embedding (index/postgres/reembedding.py) fills a second such table, which then replaces the first.

It is partitioned by the subject, so that index builds and vacuums are a quarter as long, and so that the partitions
could lie on several servers. A face's row has its vector [D] in float32; an approximate index (index/postgres/hnsw.py)
has it in float16.

Vectors lie in the rows, so that an erasure can overwrite them (index/postgres/store/scrubbing.py).
"""

from __future__ import annotations

from psycopg import sql

from index.errors import InvalidError
from index.postgres.store import scrub_schema
from index.postgres.store.database import Connection, scalar
from index.postgres.store.scrub_schema import FILL

PARTITIONS = 4
MAX_DIMENSIONS = 1500  # of a vector that fits into a page beside the other columns


def name(collection_id: int) -> str:
    """Return the name of the table `faces` as text."""
    return f"faces_{collection_id}"


def reembedded_name(collection_id: int) -> str:
    """Return the name of the table `reembedded` as text."""
    return f"reembedded_{collection_id}"


def partitions(table: str) -> list[str]:
    """Return the names of the partitions of a table."""
    return [f"{table}_{number}" for number in range(PARTITIONS)]


def index_name(partition: str) -> str:
    """Return the name of a partition's approximate index (index/postgres/hnsw.py)."""
    return f"{partition}_hnsw"


def faces(collection_id: int) -> sql.Identifier:
    """Return the name of the table of the collection's faces.

    Columns: id, subject_id, token, details (JSON), created_at, vector; seal and crop, both NULL without a crop; filler,
    always NULL.
    """
    return sql.Identifier(name(collection_id))


def reembedded(collection_id: int) -> sql.Identifier:
    """Return the name of the table of the faces that have a new vector, during a re-embedding; as `faces`."""
    return sql.Identifier(reembedded_name(collection_id))


def create(db: Connection, collection_id: int, dimensions: int) -> None:
    """Create the table for vectors of `dimensions` numbers.

    Raises:
        InvalidError: more than MAX_DIMENSIONS.
    """
    _create(db, name(collection_id), dimensions)


def create_reembedded(db: Connection, collection_id: int, dimensions: int) -> None:
    """Create the table `reembedded` for new vectors of `dimensions` numbers.

    Raises:
        InvalidError: more than MAX_DIMENSIONS.
    """
    _create(db, reembedded_name(collection_id), dimensions)


def _create(db: Connection, table_name: str, dimensions: int) -> None:
    if dimensions > MAX_DIMENSIONS:
        raise InvalidError(f"a database holds vectors of at most {MAX_DIMENSIONS} numbers")
    table = sql.Identifier(table_name)
    db.execute(
        sql.SQL(
            "CREATE TABLE {} ("
            " id bigint NOT NULL DEFAULT nextval('face_ids'),"
            " subject_id bigint NOT NULL,"
            " token text NOT NULL,"
            " details text NOT NULL,"
            " created_at double precision NOT NULL,"
            " vector vector({}),"
            " seal bytea,"
            " crop bytea,"
            " filler text,"
            " PRIMARY KEY (subject_id, id)"
            ") PARTITION BY HASH (subject_id)"
        ).format(table, sql.Literal(dimensions))
    )
    storage = "ALTER vector SET STORAGE PLAIN, ALTER crop SET STORAGE EXTERNAL, ALTER details SET STORAGE MAIN"
    db.execute(sql.SQL(f"ALTER TABLE {{}} {storage}").format(table))
    db.execute(sql.SQL(scrub_schema.set_up(table_name)))
    for number, partition in enumerate(partitions(table_name)):
        statement = "CREATE TABLE {} PARTITION OF {} FOR VALUES WITH (MODULUS {}, REMAINDER {}) WITH (fillfactor = {})"
        values = (sql.Identifier(partition), table, sql.Literal(PARTITIONS), sql.Literal(number), sql.Literal(FILL))
        db.execute(sql.SQL(statement).format(*values))
        db.execute(sql.SQL(scrub_schema.without_statistics(partition)))
    for column in ("token", "id"):
        db.execute(sql.SQL("CREATE INDEX ON {} ({})").format(table, sql.Identifier(column)))


def lock(db: Connection, collection_id: int) -> None:
    """Let those wait who drop or replace the table, until the transaction ends.

    Raises:
        psycopg.errors.UndefinedTable: the collection was dropped.
    """
    db.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(faces(collection_id)))


def file_bytes(db: Connection, collection_id: int) -> int:
    """Return the size of the table with its indexes and crops."""
    statement = sql.SQL("SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = %s::regclass")
    return int(scalar(db, statement, (name(collection_id),)))


def drop(db: Connection, collection_id: int) -> None:
    """Drop the tables with all faces; the files are deleted when the transaction commits."""
    db.execute(sql.SQL("DROP TABLE {}").format(faces(collection_id)))
    drop_reembedded(db, collection_id)


def drop_reembedded(db: Connection, collection_id: int) -> None:
    """Drop the table `reembedded`, if there is one."""
    db.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(reembedded(collection_id)))


def switch(db: Connection, collection_id: int) -> None:
    """Replace the table `faces` by the table `reembedded`. Waits for those that have locked it, and they for this."""
    db.execute(sql.SQL("DROP TABLE {}").format(faces(collection_id)))
    old, new = reembedded_name(collection_id), name(collection_id)
    for before, after in zip((old, *partitions(old)), (new, *partitions(new)), strict=True):
        for kind, named in (("TABLE", str), ("INDEX IF EXISTS", index_name)):
            names = (sql.Identifier(named(before)), sql.Identifier(named(after)))
            db.execute(sql.SQL(f"ALTER {kind} {{}} RENAME TO {{}}").format(*names))
