"""Move a gallery from a folder into PostgreSQL and back: every row and 1,000 searches must be equal.

    python -m benchmarks.gallery.moving --faces 100000

The faces are clustered vectors of 192 numbers, each with a crop of random bytes; some subjects have metadata, feedback,
an expiry or no face, and some were erased. Each move is an export, an import and the comparison that
`vestibule gallery import --all` makes. Then the first and the last gallery are compared row by row, and by searches.
CPU times are those of this process and of the server's processes. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gallery.clustered import Clustered
from benchmarks.gallery.postgres_scale import cpu_of_server, server
from index.embedded.storage import EmbeddedStorage
from index.postgres.storage import PostgresStorage
from index.protocol import GallerySnapshot, Storage
from index.transfer.comparison import compare_gallery
from index.transfer.gallery_folder import export_gallery, import_gallery
from index.types import Collection, NewFace

NAME, FINGERPRINT, DIMENSIONS = "people", "f1", 192
CROP_BYTES = 400
ENROLLED_AT_ONCE = 2000
SEARCHES = 1000
EVERY = 100  # one subject of so many has metadata, feedback or an expiry, is erased, or has no face

Times = dict[str, dict[str, float]]
Timer = Callable[[str], AbstractContextManager[None]]


def fill(storage: Storage, data: Clustered) -> None:
    """Enrol all faces, and make the subjects differ."""
    random = np.random.default_rng(data.seed)
    storage.gallery.create(NAME, "benchmark", FINGERPRINT, data.dimensions, keep_crops=True)
    for first, vectors in data.chunks():
        subjects = data.subjects(np.arange(first, first + len(vectors))).tolist()
        for start in range(0, len(vectors), ENROLLED_AT_ONCE):
            part = slice(start, start + ENROLLED_AT_ONCE)
            faces = [
                NewFace(f"s{subject}", vector, {"sharpness": 0.5}, random.bytes(CROP_BYTES))
                for subject, vector in zip(subjects[part], vectors[part], strict=True)
            ]
            storage.gallery.enrol(NAME, faces, FINGERPRINT)
    for number in range(0, int(subjects[-1]) + 1, EVERY):
        storage.gallery.put_subject(NAME, f"s{number}", name=f"Zoë {number}", metadata={"site": "north"})
        storage.gallery.put_subject(NAME, f"s{number + 1}", expires_at=time.time() + 1e9)
        storage.gallery.put_subject(NAME, f"empty {number}", metadata={"floor": number})
        storage.feedback.add(NAME, f"s{number}", data.slice(number, number + 1), [b"crop"])
        storage.gallery.remove_subject(NAME, f"s{number + 2}")


def rows(snapshot: GallerySnapshot, collection: Collection) -> Iterator[Any]:
    """Yield every row of the collection without its id, which each gallery assigns anew."""
    for pages in (snapshot.subjects(collection), snapshot.faces(collection), snapshot.rejections(collection)):
        yield from (replace(row, id=0) for page in pages for row in page)


def count_equal_rows(first: Storage, last: Storage) -> int:
    """Return the number of rows, which must be equal and in the same order."""
    with first.transfer.snapshot() as ours, last.transfer.snapshot() as theirs:
        (old,), (new,) = ours.collections(), theirs.collections()
        count = 0
        for before, after in zip(rows(ours, old), rows(theirs, new), strict=True):
            assert before == after, (before, after)
            count += 1
    return count


def count_equal_searches(first: Storage, last: Storage, data: Clustered) -> int:
    """Return the number of searches, whose subjects, faces and similarities must be equal."""
    queries, _ = data.queries(SEARCHES, strangers=0.1)
    for start in range(0, len(queries), 50):
        found = [
            [
                [(match.subject.key, match.face, match.similarity) for match in matches]
                for matches in storage.searches.search(NAME, queries[start : start + 50], 5)
            ]
            for storage in (first, last)
        ]
        assert found[0] == found[1]
    return len(queries)


def move(source: Storage, target: Storage, folder: Path, timed: Timer, name: str) -> None:
    """Export, import and compare; the import is repeated, and must change nothing."""
    with timed(f"{name}: export"):
        manifest = export_gallery(source.transfer, folder)
    with timed(f"{name}: import"):
        assert import_gallery(target.transfer, folder).is_new
    with timed(f"{name}: import again"):
        assert not import_gallery(target.transfer, folder).is_new
    with timed(f"{name}: compare"):
        result = compare_gallery(target, folder, manifest, searches=SEARCHES)
    assert result.differences == (), result
    assert result.searches == SEARCHES


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="for the galleries, on a disk; by default a temporary one")
    arguments = parser.parse_args()
    times: Times = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server runs as another user
        with server(folder, "1GB") as (url, process):

            @contextmanager
            def timed(step: str) -> Iterator[None]:
                cpu, wall = time.process_time() + cpu_of_server(process), time.perf_counter()
                yield
                used = time.process_time() + cpu_of_server(process) - cpu
                times[step] = {"cpu_s": round(used, 1), "wall_s": round(time.perf_counter() - wall, 1)}
                print(step, times[step], flush=True)

            data = Clustered(arguments.faces, dimensions=DIMENSIONS)
            with (
                closing(EmbeddedStorage(folder / "first")) as first,
                closing(PostgresStorage.open(url)) as database,
                closing(EmbeddedStorage(folder / "last")) as last,
            ):
                with timed("fill"):
                    fill(first, data)
                move(first, database, folder / "export-1", timed, "to PostgreSQL")
                move(database, last, folder / "export-2", timed, "back")
                size = sum(path.stat().st_size for path in (folder / "export-1").iterdir())
                with timed("compare row by row"):
                    equal = count_equal_rows(first, last)
                with timed("compare searches"):
                    searches = count_equal_searches(first, last, data)
    print(json.dumps({"rows": equal, "searches": searches, "export_bytes": size, "times": times}, indent=2))


if __name__ == "__main__":
    main()
