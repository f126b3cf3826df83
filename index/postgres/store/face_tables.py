"""The table of a collection's faces, created with the collection and dropped with it.

It is partitioned by the subject, so that index builds and vacuums are a quarter as long, and so that the partitions
could lie on several servers. A face's row has its vector [D] in float32; an approximate index (index/postgres/hnsw.py)
has it in float16.

An erasure sets `erased` when it overwrites a row, just before it deletes the row: the approximate index leaves such
rows out, so that overwriting adds nothing to it. Searches repeat that condition for PostgreSQL to use the index.
"""

from __future__ import annotations

from psycopg import sql

from index.postgres.store.database import Connection, scalar

PARTITIONS = 4
MAX_INLINE = 1500  # dimensions; longer vectors do not fit into a page beside another row, and are stored apart
FILL = 50  # percent of a page: an UPDATE of a row finds room in the same page, so that it overwrites what is erased


def faces(collection_id: int) -> sql.Identifier:
    """Return the name of the table of the collection's faces.

    Columns: id, subject_id, token, details (JSON), created_at, vector, erased; seal and crop, both NULL without a crop.
    """
    return sql.Identifier(f"faces_{collection_id}")


def partitions(collection_id: int) -> list[sql.Identifier]:
    """Return the names of the partitions of `faces`."""
    return [sql.Identifier(f"faces_{collection_id}_{number}") for number in range(PARTITIONS)]


def create(db: Connection, collection_id: int, dimensions: int) -> None:
    """Create the table for vectors of `dimensions` numbers."""
    table = faces(collection_id)
    db.execute(
        sql.SQL(
            "CREATE TABLE {} ("
            " id bigint NOT NULL DEFAULT nextval('face_ids'),"
            " subject_id bigint NOT NULL,"
            " token text NOT NULL,"
            " details text NOT NULL,"
            " created_at double precision NOT NULL,"
            " vector vector({}) NOT NULL,"
            " seal bytea,"
            " crop bytea,"
            " erased boolean NOT NULL DEFAULT false,"
            " PRIMARY KEY (subject_id, id)"
            ") PARTITION BY HASH (subject_id)"
        ).format(table, sql.Literal(dimensions))
    )
    storage = sql.SQL("PLAIN" if dimensions <= MAX_INLINE else "EXTERNAL")
    statement = "ALTER TABLE {} ALTER vector SET STORAGE {}, ALTER crop SET STORAGE EXTERNAL"
    db.execute(sql.SQL(statement).format(table, storage))
    for number, partition in enumerate(partitions(collection_id)):
        statement = "CREATE TABLE {} PARTITION OF {} FOR VALUES WITH (MODULUS {}, REMAINDER {}) WITH (fillfactor = {})"
        values = (partition, table, sql.Literal(PARTITIONS), sql.Literal(number), sql.Literal(FILL))
        db.execute(sql.SQL(statement).format(*values))
    for column in ("token", "id"):
        db.execute(sql.SQL("CREATE INDEX ON {} ({})").format(table, sql.Identifier(column)))


def lock(db: Connection, collection_id: int) -> None:
    """Let those wait who drop or replace the table, until the transaction ends.

    Raises:
        psycopg.errors.UndefinedTable: the collection was dropped.
    """
    db.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(faces(collection_id)))


def is_indexed(db: Connection, collection_id: int) -> bool:
    """Return whether there is an approximate index that searches can use."""
    return bool(
        scalar(
            db,
            sql.SQL(
                "SELECT EXISTS (SELECT FROM pg_inherits JOIN pg_index ON indrelid = inhrelid AND indisvalid"
                " JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam AND amname = 'hnsw'"
                " WHERE inhparent = %s::regclass)"
            ),
            (f"faces_{collection_id}",),
        )
    )


def file_bytes(db: Connection, collection_id: int) -> int:
    """Return the size of the table with its indexes and crops."""
    statement = sql.SQL("SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = %s::regclass")
    return int(scalar(db, statement, (f"faces_{collection_id}",)))


def drop(db: Connection, collection_id: int) -> None:
    """Drop the table with all faces; the files are deleted when the transaction commits."""
    db.execute(sql.SQL("DROP TABLE {}").format(faces(collection_id)))
