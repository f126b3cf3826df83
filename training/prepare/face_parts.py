"""Judge the photos of a collection in parts, files in a folder beside the target, so that a killed run can continue.

plan.json           the options, photos and versions on which the parts depend
000000.parquet ...  the judged photos, `_PHOTOS_A_PART` in each
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from models.checkpoint import write_atomically
from models.runtime import default_device
from training.core import weights
from training.core.errors import DataError
from training.core.processes import run_tasks
from training.core.run_folder import versions
from training.prepare.face_dataset import parquet
from training.prepare.face_layouts import Collection, Photo
from training.prepare.face_photos import JudgedPhoto, PhotoExaminer, PhotoOptions

_PHOTOS_A_PART = 64
_PART = pa.schema(
    [
        ("identity", pa.string()),
        ("path", pa.string()),
        ("outcome", pa.string()),
        ("reasons", pa.string()),
        ("digest", pa.string()),
        ("crop", pa.binary()),
        ("vector", pa.list_(pa.float32())),
    ]
)


def plan_of(options: PhotoOptions, folder: Path, collection: Collection) -> str:
    """Return the options, photos and versions on which the parts depend, as JSON. Equal plans give equal parts.

    Raises:
        CheckpointError, DataError: see `weights.read_card`.
    """
    photos = hashlib.sha256()
    for photo in collection.photos:
        stat = (folder / photo.path).stat()
        photos.update(repr((*photo, stat.st_size, stat.st_mtime_ns)).encode())
    return json.dumps(
        {
            "photos": photos.hexdigest(),
            "detector": weights.read_card(options.detector, "detect").sha256,
            "embedder": weights.read_card(options.embedder, "embed").sha256 if options.embedder else "",
            "photos_a_part": _PHOTOS_A_PART,
            "choose": options.choose,
            "scales": options.scales,
            "limits": asdict(options.limits),
            "versions": versions() | {"device": default_device().type},
        },
        indent=2,
    )


def begin_parts(parts: Path, plan: str, *, overwrite: bool) -> None:
    """Create the folder of the parts, or keep an earlier run's folder if its plan is the same.

    Raises:
        DataError: if the folder has parts of another plan and `overwrite` is False.
    """
    path = parts / "plan.json"
    if parts.exists() and (not path.is_file() or path.read_text() != plan):
        if not overwrite:
            raise DataError(f"{parts} has parts of other photos, options or versions; --overwrite deletes them")
        shutil.rmtree(parts)
    write_atomically(path, plan.encode())


@cache
def _examiner(options: PhotoOptions) -> PhotoExaminer:
    return PhotoExaminer(options)


def _examine(options: PhotoOptions, folder: Path, part: Path, photos: Sequence[Photo]) -> int:
    """Judge a part's photos, write the part and return the number of photos."""
    rows = [vars(photo) for photo in _examiner(options)(folder, photos)]
    write_atomically(part, parquet(pa.Table.from_pylist(rows, schema=_PART)))
    return len(photos)


def examine_all(options: PhotoOptions, folder: Path, photos: Sequence[Photo], parts: Path, jobs: int) -> list[Path]:
    """Judge all photos whose part does not exist yet, and return the files of all parts in order.

    Raises:
        TrainingError: see `run_tasks`.
    """
    firsts = range(0, len(photos), _PHOTOS_A_PART)
    paths = [parts / f"{first // _PHOTOS_A_PART:06d}.parquet" for first in firsts]
    tasks = [
        partial(_examine, options, folder, path, photos[first : first + _PHOTOS_A_PART])
        for first, path in zip(firsts, paths, strict=True)
        if not path.is_file()
    ]
    left = sum(len(task.args[-1]) for task in tasks)
    with tqdm(total=len(photos), initial=len(photos) - left, unit="photo", desc=folder.name, disable=None) as bar:
        for count in run_tasks(tasks, jobs):
            bar.update(count)
    return paths


def read_parts(parts: Sequence[Path]) -> Iterator[list[JudgedPhoto]]:
    """Yield the judged photos of one identity after another."""
    rows = (JudgedPhoto(**row) for part in parts for row in pq.read_table(part).to_pylist())
    for _, group in groupby(rows, key=lambda photo: photo.identity):
        yield list(group)
