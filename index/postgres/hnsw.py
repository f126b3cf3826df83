"""Approximate indexes of large collections, one on each partition of the table of faces.

Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
graphs", PAMI 42, 2020. The indexes have the vectors in float16, which halves their size; a search ranks its shortlist
by the float32 vectors of the table.

An index is built while searches and enrolments go on. If the server or the process dies meanwhile, PostgreSQL keeps the
incomplete index marked as invalid; the next update drops it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from psycopg import errors as sql_errors
from psycopg import sql

from index.postgres.store import collection_records, face_tables
from index.postgres.store.database import Connection, Database, scalar
from index.types import Collection, Reembedding

EXACT_BELOW = 100_000  # with fewer faces, searches compare all: 68 ms of a core for 100,000 x 192
NEIGHBOURS, EF_CONSTRUCTION = 16, 64  # at 1,000,000 clustered vectors, ef_search 200 finds the nearest for .99
# A graph that does not fit into the memory of its build is completed on disk, several times as slowly.
BYTES_PER_FACE, MIN_BUILD_MB, MAX_BUILD_MB = 600, 64, 4096
# The processes of a build share its memory in /dev/shm, which must be larger than MAX_BUILD_MB in a container.
BUILD_WORKERS = 2

_INDEXES = """
SELECT partition.relname, own.relname, indisvalid FROM pg_inherits
JOIN pg_class AS partition ON partition.oid = inhrelid
JOIN pg_index ON indrelid = inhrelid
JOIN pg_class AS own ON own.oid = indexrelid
JOIN pg_am ON pg_am.oid = own.relam AND amname = 'hnsw'
WHERE inhparent = to_regclass(%(table)s)
"""
# A SELECT of whether searches can use the indexes of the `table`.
IS_INDEXED = f"SELECT count(*) FILTER (WHERE indisvalid) = {face_tables.PARTITIONS} FROM ({_INDEXES}) AS indexes"  # noqa: S608


def is_indexed(db: Connection, collection_id: int) -> bool:
    """Return whether all partitions have an approximate index that searches can use."""
    return bool(scalar(db, sql.SQL(IS_INDEXED), {"table": face_tables.name(collection_id)}))


def distance(dimensions: int) -> sql.Composed:
    """Return the expression by which the indexes order the faces: minus the cosine to the parameter `query`."""
    return sql.SQL("{} <#> %(query)s::vector::halfvec({})").format(_indexed(dimensions), sql.Literal(dimensions))


def _indexed(dimensions: int) -> sql.Composed:
    return sql.SQL("(vector::halfvec({}))").format(sql.Literal(dimensions))


def update(database: Database, collection: Collection, exact_below: int = EXACT_BELOW) -> None:
    """Build the collection's indexes if it has at least `exact_below` faces; drop them if it has less than half.

    Does nothing if the collection was dropped, or another connection builds its indexes.
    """
    with database.autocommit() as db, _lock(db, collection.id) as is_locked:
        if is_locked:
            faces = collection_records.counts(db, collection.id)[1]
            _update(db, face_tables.name(collection.id), faces, collection.dimensions, exact_below)


def build_reembedded(database: Database, reembedding: Reembedding, exact_below: int = EXACT_BELOW) -> None:
    """Build the indexes of the new vectors before these replace the old ones, if there are at least `exact_below`.

    Does nothing if the re-embedding has ended, or another connection builds the collection's indexes.
    """
    table = face_tables.reembedded_name(reembedding.collection_id)
    with (
        database.autocommit() as db,
        _lock(db, reembedding.collection_id) as is_locked,
        suppress(sql_errors.UndefinedTable),
    ):
        if is_locked:
            faces = scalar(db, sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
            _update(db, table, faces, reembedding.dimensions, exact_below)


def _update(db: Connection, table: str, faces: int, dimensions: int, exact_below: int) -> None:
    indexes = db.execute(_INDEXES, {"table": table}).fetchall()
    valid = {partition for partition, _, is_valid in indexes if is_valid}
    wanted = faces >= exact_below // (2 if valid else 1)
    for partition, index, _ in indexes:
        if not wanted or partition not in valid:
            db.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(index)))
    if wanted:
        with _settings(db, faces, dimensions):
            for partition in face_tables.partitions(table):
                if partition not in valid:
                    _build(db, partition, dimensions)


def _build(db: Connection, partition: str, dimensions: int) -> None:
    index = sql.Identifier(face_tables.index_name(partition))
    statement = sql.SQL(
        "CREATE INDEX CONCURRENTLY {} ON {} USING hnsw ({} halfvec_ip_ops) WITH (m = {}, ef_construction = {})"
    ).format(
        index, sql.Identifier(partition), _indexed(dimensions), sql.Literal(NEIGHBOURS), sql.Literal(EF_CONSTRUCTION)
    )
    with suppress(sql_errors.UndefinedTable):  # the collection was dropped meanwhile
        db.execute(statement)
        # Statistics would be copies of vectors, which no erasure finds.
        db.execute(sql.SQL("ALTER INDEX {} ALTER COLUMN 1 SET STATISTICS 0").format(index))


@contextmanager
def _lock(db: Connection, collection_id: int) -> Iterator[bool]:
    """Hold the lock of the collection's indexes; yield False if another connection has it.

    The connection of a process that died holds it until its build ends: so nobody takes that index for incomplete.
    """
    key = (f"hnsw:{collection_id}",)
    is_locked = bool(scalar(db, sql.SQL("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"), key))
    try:
        yield is_locked
    finally:
        if is_locked:
            db.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)


@contextmanager
def _settings(db: Connection, faces: int, dimensions: int) -> Iterator[None]:
    """Set memory and processes of the builds on this connection, which has the server's own afterwards."""
    needed = faces // face_tables.PARTITIONS * (2 * dimensions + BYTES_PER_FACE) // 2**20
    megabytes = min(max(needed, MIN_BUILD_MB), MAX_BUILD_MB)
    for name, value in (
        ("maintenance_work_mem", f"{megabytes}MB"),
        ("max_parallel_maintenance_workers", str(BUILD_WORKERS)),
    ):
        db.execute("SELECT set_config(%s, %s, false)", (name, value))
    try:
        yield
    finally:
        db.execute("RESET maintenance_work_mem")
        db.execute("RESET max_parallel_maintenance_workers")
