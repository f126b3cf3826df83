"""Write the data set of aligned faces and its report."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from models.checkpoint import bytes_of, sync_folder, write_atomically
from training.core.errors import DataError
from training.prepare.face_layouts import Collection, printable
from training.prepare.face_photos import JudgedPhoto

SHARD_BYTES = 40_000_000
_SHARD_FRAME = 50_000  # upper bound for the bytes of a shard beside its rows
_REPORT = "report.csv"
_FEATURES = {"image": {"_type": "Image"}} | {
    name: {"dtype": "string", "_type": "Value"} for name in ("identity", "source")
}
_SHARD = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("identity", pa.string()),
        ("source", pa.string()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


@dataclass
class Summary:
    """The number of photos by outcome and by reason of low quality, and of people who are kept and dropped."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    identities: int = 0
    identities_dropped: int = 0

    def __str__(self) -> str:
        """Return the summary as lines for the terminal."""
        lines = [f"{self.outcomes['kept']:,} faces of {self.identities:,} people from {self.outcomes.total():,} photos"]
        lines += [f"  {count:9,} {name}" for name, count in self.outcomes.most_common() if name != "kept"]
        lines += [f"  {count:9,} {name}" for name, count in self.reasons.most_common()]
        return "\n".join([*lines, f"  {self.identities_dropped:9,} people without enough photos"])


class ShardWriter:
    """Writes the rows of a data set as train-00000.parquet and so on, each at most SHARD_BYTES long."""

    def __init__(self, folder: Path, source: str):
        self._folder, self._source = folder, source
        self._rows: list[dict[str, object]] = []
        self._bytes = self._written = 0

    def add(self, photo: JudgedPhoto) -> None:
        """Append the face of a kept photo."""
        path, identity = f"{self._source}/{photo.path}.webp", f"{self._source}:{photo.identity}"
        size = len(photo.crop) + len(path.encode()) + len(identity.encode()) + len(self._source) + 32
        if self._rows and self._bytes + size > SHARD_BYTES - _SHARD_FRAME:
            self.flush()
        row: dict[str, object] = {
            "image": {"bytes": photo.crop, "path": path},
            "identity": identity,
            "source": self._source,
        }
        self._rows.append(row)
        self._bytes += size

    def flush(self) -> None:
        """Write the rows that are not written yet, if any."""
        if self._rows:
            data = parquet(pa.Table.from_pylist(self._rows, schema=_SHARD))
            write_atomically(self._folder / f"train-{self._written:05d}.parquet", data)
            self._rows, self._bytes, self._written = [], 0, self._written + 1


def parquet(table: pa.Table) -> bytes:
    """Return a table as a parquet file."""
    texts = ["identity", "source"]
    # Statistics would contain whole images.
    return bytes_of(
        lambda file: pq.write_table(table, file, compression="zstd", use_dictionary=texts, write_statistics=False)
    )


def assemble(folder: Path, identities: Iterable[Sequence[JudgedPhoto]], collection: Collection, source: str) -> Summary:
    """Write the data set and its report into `folder`; `identities` are the photos of one identity after another.

    Raises:
        DataError: no identity is left.
    """
    shards, summary, table = ShardWriter(folder, source), Summary(), io.StringIO()
    report = csv.writer(table, lineterminator="\n")
    report.writerow(["path", "outcome", "reasons"])
    for photos in identities:
        for photo in photos:
            report.writerow([photo.path, photo.outcome, photo.reasons])
            if photo.outcome == "kept":
                shards.add(photo)
        kept = any(photo.outcome == "kept" for photo in photos)
        summary.outcomes.update(photo.outcome for photo in photos)
        summary.reasons.update(
            reason for photo in photos if photo.outcome == "low-quality" for reason in photo.reasons.split()
        )
        summary.identities += kept
        summary.identities_dropped += not kept
    for path, reason in collection.left_out:
        report.writerow([printable(path), reason, ""])
        summary.outcomes[reason] += 1
    shards.flush()
    write_atomically(folder / _REPORT, table.getvalue().encode())
    if not summary.identities:
        raise DataError(f"nothing is left, see {folder / _REPORT}: {summary}")
    return summary


def check_target(target: Path, folder: Path, *, overwrite: bool) -> None:
    """Check that the data set `target` can be written without a loss of photos or of other data sets.

    Raises:
        DataError: `folder`, with the photos, is inside `target`; `target` exists, and not `overwrite` or it was not
            written by this command.
    """
    for taken in (target, target.with_name(f"{target.name}.parts")):
        if folder.resolve().is_relative_to(taken.resolve()):
            raise DataError(f"{folder} lies in {taken}, which would be overwritten")
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists; --overwrite replaces it")
    if target.exists() and not (target / _REPORT).is_file():
        raise DataError(f"{target} has no {_REPORT}, so this command has not written it: move it away first")


def publish(finished: Path, target: Path, parts: Path) -> None:
    """Move the finished data set to `target` atomically, and delete `parts` and a data set that was there before."""
    if target.exists():
        shutil.rmtree(parts / "replaced", ignore_errors=True)
        target.rename(parts / "replaced")
    finished.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(parts)
