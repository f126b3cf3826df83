"""A folder of people's photos to a data set of aligned faces, which `training.embed` trains on.

`python -m training.prepare_faces ~/photos people --jobs 4` writes VESTIBULE_DATASETS/people: train-00000.parquet and so
on with the columns image {bytes, path}, identity and source, and report.csv with what became of each photo. The
layouts of LFW, VGGFace2 and CelebA are recognised (see `training.prepare.face_layouts`). Of each photo one face is cut
out, 112x112, found and aligned as by the service. `--scales whole` looks at each photo at the detector's size only, as
before the service had detection scales. Killed, it goes on where it stood, from people.parts beside.

Scraped collections have wrong labels: in Families in the Wild, of identities with 3 or more photos, about 0.6 % of the
photos lie far from their identity for a strong embedder. `--clean weights/face-embedder --distance 0.7` removes such
photos: those farther than that from the median direction of their identity. Where the embedder is weak or the distance
small, hard photos of the right person go with them; report.csv has the distance of each photo that was dropped.

Equal photos make equal data sets, whatever the number of processes, with equal versions of the packages.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, partial
from itertools import groupby
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from models import checkpoint
from models.align import QualityThresholds
from models.card import ModelCard, Name
from models.checkpoint import write_atomically
from models.detection_scale import Scales
from models.registry import Task
from models.runtime import default_device
from training.core.errors import DataError, TrainingError
from training.core.run_folder import versions
from training.prepare.face_layouts import Collection, Layout, Photo, printable, read_collection
from training.prepare.face_photos import Choice, Examiner, Judged, Options
from training.recipe.config import datasets_folder

cli = typer.Typer(add_completion=False)


SHARD_BYTES = 40_000_000
_SHARD_FRAME = 50_000  # at most, of a shard: what is in it beside its rows
_PHOTOS_A_PART = 64
_FEWEST_TO_CLEAN = 3  # of two that differ nobody knows which is wrong
_REPORT = "report.csv"
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


@dataclass(frozen=True)
class Rules:
    """What decides about a photo among those of its identity: the fewest, and the cosine distance 0..2 that is far."""

    min_photos: int = 2
    distance: float | None = None


@dataclass
class Summary:
    """How many photos came to each outcome, how many had each reason against their quality, how many people stayed."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    identities: int = 0
    identities_dropped: int = 0

    def __str__(self) -> str:
        """Some lines for the terminal."""
        lines = [f"{self.outcomes['kept']:,} faces of {self.identities:,} people from {self.outcomes.total():,} photos"]
        lines += [f"  {count:9,} {name}" for name, count in self.outcomes.most_common() if name != "kept"]
        lines += [f"  {count:9,} {name}" for name, count in self.reasons.most_common()]
        return "\n".join([*lines, f"  {self.identities_dropped:9,} people without enough photos"])


def settle(judged: Sequence[Judged], rules: Rules) -> list[Judged]:
    """The photos of one identity, each judged by itself, judged among the others: one of equals, none far, enough."""
    settled = _without_far(_without_duplicates(judged), rules.distance)
    kept = sum(one.outcome == "kept" for one in settled)
    if kept >= rules.min_photos:
        return settled
    return [
        replace(one, outcome="too-few", reasons=f"{kept} left") if one.outcome == "kept" else one for one in settled
    ]


def _without_duplicates(judged: Sequence[Judged]) -> list[Judged]:
    first: dict[str | bytes, str] = {}
    settled = []
    for one in judged:
        if one.outcome == "kept":
            same = first.get(one.digest) or first.get(one.crop)
            if same:
                settled.append(replace(one, outcome="duplicate", reasons=f"of {same}"))
                continue
            first |= {one.digest: one.path, one.crop: one.path}
        settled.append(one)
    return settled


def _without_far(judged: Sequence[Judged], limit: float | None) -> list[Judged]:
    kept = [place for place, one in enumerate(judged) if one.outcome == "kept"]
    settled = list(judged)
    if limit is None or len(kept) < _FEWEST_TO_CLEAN:
        return settled
    distances = distances_from_median(np.array([judged[place].vector for place in kept]))
    for place, distance in zip(kept, distances.tolist(), strict=True):
        if distance > limit:
            settled[place] = replace(judged[place], outcome="far", reasons=f"{distance:.3f}")
    return settled


def distances_from_median(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cosine distance, 0..2, of each unit vector [N, D] from the direction of their median, number by number: [N].

    A median stays with the majority, where a mean would go some way towards each stranger.
    """
    median = np.median(vectors, axis=0)
    length = float(np.linalg.norm(median))
    return np.asarray(1 - vectors @ (median / length if length else median), np.float64)


@cache
def _examiner(options: Options) -> Examiner:
    return Examiner(options)


def _examine(options: Options, folder: Path, part: Path, photos: Sequence[Photo]) -> int:
    """Judge a part's photos and write it; how many they are."""
    rows = [vars(one) for one in _examiner(options)(folder, photos)]
    write_atomically(part, _parquet(pa.Table.from_pylist(rows, schema=_PART)))
    return len(photos)


def _start() -> None:
    """What a process begins with: more threads, and other algorithms, would round sums in other ways."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True


def _end_with_parent() -> None:
    """A parent that was killed tells nobody, and its processes would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start meanwhile keep to one thread in numpy, too, which asks the environment as it starts."""
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _examine_all(options: Options, folder: Path, photos: Sequence[Photo], parts: Path, jobs: int) -> list[Path]:
    """The files of all parts, in order; those that are there already stay as they are."""
    firsts = range(0, len(photos), _PHOTOS_A_PART)
    paths = [parts / f"{first // _PHOTOS_A_PART:06d}.parquet" for first in firsts]
    tasks = [
        partial(_examine, options, folder, path, photos[first : first + _PHOTOS_A_PART])
        for first, path in zip(firsts, paths, strict=True)
        if not path.is_file()
    ]
    left = sum(len(task.args[-1]) for task in tasks)
    with tqdm(total=len(photos), initial=len(photos) - left, unit="photo", desc=folder.name, disable=None) as bar:
        for count in _side_by_side(tasks, jobs) if jobs else (task() for task in tasks):
            bar.update(count)
    return paths


def _side_by_side(tasks: Sequence[Callable[[], int]], jobs: int) -> Iterator[int]:
    """What the tasks return, as they end."""
    # Started anew rather than forked: a fork copies locks of OpenMP's threads as they stand.
    with _one_thread_each(), ProcessPoolExecutor(jobs, get_context("spawn"), _start) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise TrainingError("a process was killed, perhaps for its memory; started again, it goes on") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _settled(parts: Sequence[Path], rules: Rules) -> Iterator[list[Judged]]:
    """The photos of one identity after another."""
    rows = (Judged(**row) for part in parts for row in pq.read_table(part).to_pylist())
    for _, group in groupby(rows, key=lambda one: one.identity):
        yield settle(list(group), rules)


class Shards:
    """The rows of a data set, collected and written as train-00000.parquet and so on, each at most SHARD_BYTES long."""

    def __init__(self, folder: Path, source: str):
        self._folder, self._source = folder, source
        self._rows: list[dict[str, object]] = []
        self._bytes = self._written = 0

    def add(self, one: Judged) -> None:
        """One kept face, in the order of the data set."""
        path, identity = f"{self._source}/{one.path}.webp", f"{self._source}:{one.identity}"
        size = len(one.crop) + len(path.encode()) + len(identity.encode()) + len(self._source) + 32
        if self._rows and self._bytes + size > SHARD_BYTES - _SHARD_FRAME:
            self.flush()
        row: dict[str, object] = {
            "image": {"bytes": one.crop, "path": path},
            "identity": identity,
            "source": self._source,
        }
        self._rows.append(row)
        self._bytes += size

    def flush(self) -> None:
        """Write what is collected, if anything is."""
        if self._rows:
            data = _parquet(pa.Table.from_pylist(self._rows, schema=_SHARD))
            write_atomically(self._folder / f"train-{self._written:05d}.parquet", data)
            self._rows, self._bytes, self._written = [], 0, self._written + 1


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    # Statistics would hold whole pictures.
    pq.write_table(table, buffer, compression="zstd", use_dictionary=["identity", "source"], write_statistics=False)
    return buffer.getvalue()


def _assemble(folder: Path, parts: Sequence[Path], collection: Collection, source: str, rules: Rules) -> Summary:
    """Write the data set and its report into `folder`."""
    shards, summary, table = Shards(folder, source), Summary(), io.StringIO()
    report = csv.writer(table, lineterminator="\n")
    report.writerow(["path", "outcome", "reasons"])
    for group in _settled(parts, rules):
        for one in group:
            report.writerow([one.path, one.outcome, one.reasons])
            if one.outcome == "kept":
                shards.add(one)
        summary.outcomes.update(one.outcome for one in group)
        summary.reasons.update(word for one in group if one.outcome == "low-quality" for word in one.reasons.split())
        summary.identities += any(one.outcome == "kept" for one in group)
        summary.identities_dropped += all(one.outcome != "kept" for one in group)
    for path, why in collection.left_out:
        report.writerow([printable(path), why, ""])
        summary.outcomes[why] += 1
    shards.flush()
    write_atomically(folder / _REPORT, table.getvalue().encode())
    if not summary.identities:
        raise DataError(f"nothing is left, see {folder / _REPORT}: {summary}")
    return summary


def _plan(options: Options, folder: Path, collection: Collection) -> str:
    """What the parts depend on: equal plans make equal parts.

    Raises:
        CheckpointError: see `checkpoint.read_card`. DataError: a network for another task.
    """
    photos = hashlib.sha256()
    for photo in collection.photos:
        try:
            stat = (folder / photo.path).stat()
            state = (stat.st_size, stat.st_mtime_ns)
        except OSError:
            state = (0, 0)
        photos.update(repr((*photo, *state)).encode())
    return json.dumps(
        {
            "photos": photos.hexdigest(),
            "detector": _card_of(options.detector, "detect").sha256,
            "embedder": _card_of(options.embedder, "embed").sha256 if options.embedder else "",
            "photos_a_part": _PHOTOS_A_PART,
            "choose": options.choose,
            "scales": options.scales,
            "limits": asdict(options.limits),
            "versions": versions() | {"pillow": PIL.__version__, "device": default_device().type},
        },
        indent=2,
    )


def _card_of(folder: Path, task: Task) -> ModelCard:
    card = checkpoint.read_card(folder)
    if card.task != task:
        raise DataError(f"{folder} is a network to {card.task}, not to {task}")
    return card


def _begin(parts: Path, plan: str, *, overwrite: bool) -> None:
    """A folder for the parts of this plan, with those that an earlier call has made."""
    path = parts / "plan.json"
    if parts.exists() and (not path.is_file() or path.read_text() != plan):
        if not overwrite:
            raise DataError(f"{parts} has parts of other photos, options or versions; --overwrite begins anew")
        shutil.rmtree(parts)
    write_atomically(path, plan.encode())


def _check_target(target: Path, folder: Path, *, overwrite: bool) -> None:
    for taken in (target, target.with_name(f"{target.name}.parts")):
        if folder.resolve().is_relative_to(taken.resolve()):
            raise DataError(f"{folder} lies in {taken}, which would be overwritten")
    if target.exists():
        if not overwrite:
            raise DataError(f"{target} exists; --overwrite replaces it")
        if not (target / _REPORT).is_file():
            raise DataError(f"{target} has no {_REPORT}, so this command did not make it: move it away first")


def _publish(finished: Path, target: Path, parts: Path) -> None:
    """Put the data set where it belongs, whole, and let go of everything else."""
    if target.exists():
        shutil.rmtree(parts / "replaced", ignore_errors=True)
        target.rename(parts / "replaced")
    finished.rename(target)
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    shutil.rmtree(parts)


def prepare_faces(  # noqa: PLR0913  each is a decision of its own
    folder: Path,
    name: str,
    options: Options | None = None,
    rules: Rules | None = None,
    *,
    layout: Layout | None = None,
    source: str | None = None,
    jobs: int = 0,
    overwrite: bool = False,
) -> Summary:
    """Write VESTIBULE_DATASETS/<name>.

    `source` (None: `name`) is the prefix of each identity, see `training.datasets.faces`.

    `jobs` processes work side by side, each with one thread; 0: this one does, as it is set.

    Raises:
        DatasetNotFoundError, DataError: see `read_collection`; the data set is there already; parts of other photos or
            options are; no identity is left. CheckpointError: weights that are not whole.
        TrainingError: a process was killed.
    """
    options, rules = options or Options(), rules or Rules()
    if (rules.distance is None) != (options.embedder is None):
        raise DataError("cleaning needs an embedder and a distance, both")
    for word in (name, source or name):
        try:
            TypeAdapter(Name).validate_python(word)
        except ValidationError as error:
            raise DataError(f"{word!r} is no name: small letters, digits, dots, dashes, at most 64") from error
    target = datasets_folder() / name
    parts = target.with_name(f"{name}.parts")
    _check_target(target, folder, overwrite=overwrite)
    collection = read_collection(folder, layout)
    _begin(parts, _plan(options, folder, collection), overwrite=overwrite)
    paths = _examine_all(options, folder, collection.photos, parts, jobs)
    finished = parts / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    summary = _assemble(finished, paths, collection, source or name, rules)
    _publish(finished, target, parts)
    return summary


def read_limits(changes: Sequence[str]) -> QualityThresholds:
    """`QualityThresholds` with changes as `side=24` or `pitch=0.2,0.9`.

    Raises:
        DataError: no such limit, or not a number (two for `pitch`).
    """
    values: dict[str, float | tuple[float, float]] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in {limit.name for limit in fields(QualityThresholds)}:
            raise DataError(f"{change!r}: there are {', '.join(limit.name for limit in fields(QualityThresholds))}")
        try:
            numbers = tuple(float(number) for number in text.split(","))
        except ValueError as error:
            raise DataError(f"{change!r} is not of the form side=24") from error
        if len(numbers) != (2 if name == "pitch" else 1):
            raise DataError(f"{change!r}: pitch has two numbers, the others one")
        values[name] = (numbers[0], numbers[1]) if name == "pitch" else numbers[0]
    return replace(QualityThresholds(), **values)  # type: ignore[arg-type]  # as the names and lengths above say


@cli.command()
def main(  # noqa: PLR0913, PLR0917  an option each
    folder: Annotated[Path, typer.Argument(help="The photos.")],
    name: Annotated[str, typer.Argument(help="The data set to write under VESTIBULE_DATASETS.")],
    layout: Annotated[
        Literal["auto", "people", "vggface2", "celeba"], typer.Option(help="Who is on a photo.")
    ] = "auto",
    source: Annotated[str | None, typer.Option(help="What stands before each identity; default: NAME.")] = None,
    detector: Annotated[Path, typer.Option(help="A weights folder.")] = Path("weights/centerface"),
    choice: Annotated[Choice, typer.Option("--choose", help="Which face, where there are several.")] = "largest",
    scales: Annotated[
        Scales,
        typer.Option(help="Find small faces as the service does (min-face), or at the detector's size only (whole)."),
    ] = "min-face",
    limits: Annotated[list[str] | None, typer.Option("--limit", help="As side=24 or yaw=1; repeatable.")] = None,
    min_photos: Annotated[int, typer.Option(min=1, help="People with fewer are left out.")] = 2,
    clean: Annotated[Path | None, typer.Option(help="An embedder's weights folder: drop far photos.")] = None,
    distance: Annotated[float | None, typer.Option(min=0, max=2, help="What is far: 1 - cosine.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side, each with one thread.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set made by this command.")] = False,
) -> None:
    """Detect, choose, judge and align the face of each photo, and write the data set."""
    try:
        summary = prepare_faces(
            folder,
            name,
            Options(detector, choice, read_limits(limits or ()), clean, scales),
            Rules(min_photos, distance),
            layout=None if layout == "auto" else layout,
            source=source,
            jobs=jobs,
            overwrite=overwrite,
        )
    except (TrainingError, checkpoint.CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{datasets_folder() / name}: {summary}")


if __name__ == "__main__":
    cli()
