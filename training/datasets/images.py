"""Pictures from where they lie to a memory map that is decoded once, and the order in which they are seen."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from models import image_decoder
from models.checkpoint import write_atomically
from models.preprocess import Preprocess
from training.core.errors import DataError, DatasetNotFoundError
from training.core.seeds import derive, generator
from training.recipe.config import datasets_folder, runs_folder

log = logging.getLogger(__name__)

Split = Literal["train", "test"]
Indices = npt.NDArray[np.int64]
Picture = io.BytesIO | Path | Image.Image  # decoded, or what PIL opens

# A file with such a name says that it is a picture. Others are pictures where their content is.
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".pgm", ".ppm"}
TORCHVISION = {"mnist": "MNIST", "cifar10": "CIFAR10"}
_ROWS_AT_ONCE = 1024
# Photos that are not read: a folder of them is refused, since nothing of what a phone took would be left of it.
UNREAD_SUFFIXES = {".heic", ".heif", ".avif", ".tif", ".tiff", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"}


@dataclass(frozen=True)
class ImageSet:
    """uint8 [N, H, W, C] memory map of what `Preprocess.pixels` made, int64 [N] in 0..len(classes)-1, class names."""

    images: npt.NDArray[np.uint8]
    labels: Indices
    classes: tuple[str, ...]


class Source(Protocol):
    """One split of a data set as it lies on the disk. Only `rows` reads pictures."""

    files: tuple[Path, ...]
    classes: tuple[str, ...]
    count: int

    def rows(self) -> Iterator[tuple[str, Picture, int]]:
        """Where it is (for messages), the picture, its label."""
        ...


class _Parquet:
    """Hugging Face image parquet: `image` {bytes, path} and what is in it, as a `label` or as an `identity`.

    `label` is a number whose names stand in the schema's metadata. `identity` is a name itself, as `pins:nobody`; the
    classes are then all names that occur, in their order.
    """

    def __init__(self, files: tuple[Path, ...]):
        import pyarrow.parquet

        self.files = files
        self._open = pyarrow.parquet.ParquetFile
        try:
            described = [self._open(file) for file in files]
            self._column = "identity" if "identity" in described[0].schema_arrow.names else "label"
            identities = self._column == "identity"
            # An identity in both Unicode forms is one; labels are numbers, so two of one name are an error.
            if identities:
                self.classes = tuple(sorted({class_name(name) for name in self._identities(described)}))
            else:
                self.classes = _distinct(_label_names(described[0]))
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{files[0]}: not Hugging Face image parquet with named labels or identities: {error!r}"
            ) from error
        self.count = sum(file.metadata.num_rows for file in described)

    def _identities(self, described: list[Any]) -> set[str]:
        columns = (file.read(columns=["identity"]).column("identity") for file in described)
        return {name for column in columns for name in column.unique().to_pylist() if name is not None}

    def rows(self) -> Iterator[tuple[str, Picture, int]]:
        number = {name: index for index, name in enumerate(self.classes)}
        for file in self.files:
            row = 0
            for batch in self._open(file).iter_batches(_ROWS_AT_ONCE, columns=["image", self._column]):
                images, labels = batch.column("image").field("bytes"), batch.column(self._column)
                for data, value in zip(images, labels.to_pylist(), strict=True):
                    label = number[class_name(value)] if isinstance(value, str) else value
                    yield f"{file}, row {row}", io.BytesIO(data.as_py() or b""), -1 if label is None else label
                    row += 1


def class_name(name: str) -> str:
    """The name in Unicode form C, since file systems and archives keep the same name in either form."""
    return unicodedata.normalize("NFC", name)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The class names in Unicode form C, in their order.

    Raises:
        DataError: two of them become the same.
    """
    classes = tuple(map(class_name, names))
    if len(set(classes)) < len(classes):
        twice = next(name for place, name in enumerate(classes) if name in classes[:place])
        raise DataError(f"two classes have the name {twice!r}")
    return classes


def _label_names(described: Any) -> tuple[str, ...]:
    features = json.loads(described.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    return tuple(features["label"]["names"])


def picture_files(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """The pictures in a folder, in the order of their names: files whose content or suffix is a picture's.

    `tell` is given a line for each file that is left out, with the reason; hidden files are left out without one.
    Folders are no files.

    Raises:
        DataError: a photo of a format that is not read.
    """
    pictures, unread = [], []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if (reason := why_no_picture(path)) is None:
            pictures.append(path)
        elif path.suffix.lower() in UNREAD_SUFFIXES and path.is_file():
            unread.append(path)
        elif not path.is_dir():
            tell(f"left out: {path}: {reason}")
    if unread:
        raise DataError(f"{unread[0]}: {unread[0].suffix} is not read ({len(unread)} in this folder); save it as JPEG")
    return pictures


def why_no_picture(path: Path) -> str | None:
    """Why this is not the path of a picture; None where it is, though a damaged one perhaps."""
    if not path.is_file():  # a pipe would be waited for
        return "a broken link" if path.is_symlink() and not path.exists() else "not a file"
    if path.suffix.lower() in IMAGE_SUFFIXES or image_decoder.is_picture(path):
        return None
    return f"none of {', '.join(image_decoder.FILE_FORMATS)}"


class _Folder:
    """`<split>/<class>/<picture>`, classes in the order of their names. Files that are left out are logged.

    Two folders whose names differ in their Unicode form only are one class.
    """

    def __init__(self, root: Path):
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        self.classes = tuple(sorted({class_name(path.name) for path in folders}))
        number = {name: label for label, name in enumerate(self.classes)}
        self._labelled = [
            (path, number[class_name(folder.name)]) for folder in folders for path in picture_files(folder, log.warning)
        ]
        self.files = tuple(path for path, _ in self._labelled)
        self.count = len(self.files)

    def rows(self) -> Iterator[tuple[str, Picture, int]]:
        yield from ((str(path), path, label) for path, label in self._labelled)


class _Torchvision:
    """A data set that torchvision downloads into the data set's folder."""

    def __init__(self, name: str, folder: Path, split: Split):
        import torchvision.datasets

        kind = getattr(torchvision.datasets, TORCHVISION[name])
        self._data: Any = kind(str(folder), train=split == "train", download=True)
        self.files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
        # torchvision calls MNIST's classes "0 - zero", everybody else "0".
        self.classes = tuple(label.partition(" - ")[0] for label in self._data.classes)
        self.count = len(self._data)

    def rows(self) -> Iterator[tuple[str, Picture, int]]:
        for row in range(self.count):
            image, label = self._data[row]
            yield f"torchvision row {row}", image, int(label)


def find(dataset: str, split: Split) -> Source:
    """Parquet, else an image folder, else torchvision's download.

    Raises:
        DatasetNotFoundError: none of them, with what was looked for.
        DataError: parquet without the columns or the metadata.
    """
    folder = datasets_folder() / dataset
    shards = tuple(sorted(folder.glob(f"{split}*.parquet")))
    if shards:
        return _Parquet(shards)
    if (folder / split).is_dir():
        return _Folder(folder / split)
    looked = f"no {split}*.parquet and no {split}/<class>/ in {folder.absolute()} (VESTIBULE_DATASETS)"
    if dataset not in TORCHVISION:
        raise DatasetNotFoundError(f"{looked}, and torchvision is not asked for {dataset}")
    try:
        return _Torchvision(dataset, folder, split)
    except (OSError, RuntimeError) as error:
        raise DatasetNotFoundError(f"{looked}, and the download by torchvision failed: {error}") from error


def load(dataset: str, split: Split, preprocess: Preprocess) -> ImageSet:
    """The split's pictures, decoded now or at an earlier call: a changed file or geometry decodes anew.

    Several processes may call it at once; each decodes, and the first to finish is kept.

    Raises:
        DatasetNotFoundError, DataError: see `find`; an empty split, an undecodable picture, a label out of range.
    """
    source = find(dataset, split)
    if source.count == 0:
        raise DataError(f"{dataset}: the {split} split holds no pictures; expected are {split}/<class>/*.jpg")
    folder = runs_folder() / "cache" / f"{dataset}-{split}-{_fingerprint(source, preprocess)}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _decode(source, preprocess, temporary)
            if not folder.is_dir():
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    classes = json.loads((folder / "meta.json").read_text())["classes"]
    images = np.load(folder / "images.npy", mmap_mode="r")
    return ImageSet(images, np.load(folder / "labels.npy"), tuple(classes))


def _fingerprint(source: Source, preprocess: Preprocess) -> str:
    """Hash of everything that the decoded bytes depend on; mean and std are applied later and do not count."""
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in source.files]
    geometry = preprocess.model_dump(mode="json", exclude={"mean", "std"})
    parts = [stats, source.classes, geometry, image_decoder.VERSION]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _decode(source: Source, preprocess: Preprocess, folder: Path) -> None:
    channels, height, width = preprocess.shape
    shape = (source.count, height, width, channels)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    labels = np.empty(source.count, dtype=np.int64)
    for row, (where, picture, label) in enumerate(source.rows()):
        if not 0 <= label < len(source.classes):
            raise DataError(f"{where}: label {label} is not one of {len(source.classes)} classes")
        images[row] = _pixels(where, picture, preprocess)
        labels[row] = label
    images.flush()
    np.save(folder / "labels.npy", labels)
    write_atomically(folder / "meta.json", json.dumps({"classes": source.classes}).encode())


def _pixels(where: str, picture: Picture, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    return preprocess.pixels(decoded(where, picture))


def decoded(where: str, picture: Picture) -> Image.Image:
    """The whole picture, upright, RGB, as the service decodes it.

    Raises:
        DataError: it cannot be decoded; the message begins with `where`.
    """
    try:
        return image_decoder.load(picture) if isinstance(picture, Image.Image) else image_decoder.read(picture)
    except image_decoder.DecodeError as error:
        raise DataError(f"{where}: cannot be decoded: {error}") from error


def stratified_split(labels: Indices, validation: int, seed: int) -> tuple[Indices, Indices]:
    """(training rows, validation rows), both ascending; each class keeps its share to within one picture.

    Raises:
        DataError: `validation` leaves nothing on one side.
    """
    if not 0 < validation < len(labels):
        raise DataError(f"cannot cut {validation} validation pictures from {len(labels)}")
    shuffled = np.random.default_rng(derive(seed, "split")).permutation(len(labels))
    place = np.empty(len(labels))  # of each picture in its own class, 0..1
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    chosen = shuffled[np.argsort(place[shuffled], kind="stable")]
    return np.sort(chosen[validation:]), np.sort(chosen[:validation])


def stratified_sample(labels: Indices, rows: Indices, count: int, seed: int) -> Indices:
    """At most `count` of `rows` (0: all), ascending; each class keeps its share of them to within one picture."""
    if not 0 < count < len(rows):
        return rows
    _, chosen = stratified_split(labels[rows], count, seed)
    return rows[chosen]


@dataclass(frozen=True)
class Batches:
    """Which of `count` rows a step sees: a new order each epoch, whole batches only, each process its own slice.

    Together the processes see what one process would.

    Raises:
        DataError: fewer rows than one batch, or a batch that the processes cannot share evenly.
    """

    count: int
    batch_size: int
    seed: int
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.batch_size > self.count:
            raise DataError(f"a batch of {self.batch_size} from {self.count} training pictures")
        if self.batch_size % self.processes:
            raise DataError(f"a batch of {self.batch_size} does not split evenly over {self.processes} processes")

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch; the rest of the rows waits for another epoch's order."""
        return self.count // self.batch_size

    def __call__(self, epoch: int, index: int) -> Indices:
        """This process's rows of batch `index`: int64 [batch_size / processes]."""
        share = self.batch_size // self.processes
        first = index * self.batch_size + self.process * share
        return _order(self.count, self.seed, epoch)[first : first + share]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Indices:
    order: Indices = torch.randperm(count, generator=generator(seed, "order", epoch)).numpy()
    return order


class IdentityBatches:
    """P x K: a step sees `identities` identities, all different, with `images` rows of each, one after the other.

    Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017. In an epoch a row comes
    at most once: the rows of an identity are shuffled and cut into groups of `images`, and what is left of them waits
    for another epoch's order. An identity with fewer rows has one group, in which they repeat in turn: two
    augmentations of one photo are a positive pair then. So an identity comes as often as it has groups, yet in a batch
    once: of one with more groups than there are batches, some are left out.

    Whole batches only; each process has the same number of identities, and together they see what one process would.

    Raises:
        DataError: fewer than `identities` identities, or a number of them that the processes cannot share evenly.
    """

    def __init__(
        self, labels: Indices, identities: int, images: int, seed: int, *, process: int = 0, processes: int = 1
    ) -> None:
        if identities < 1 or images < 1 or identities % processes:
            raise DataError(f"{identities} identities of {images} do not split evenly over {processes} processes")
        self._labels, self._identities, self._images, self._seed = labels, identities, images, seed
        self._share = slice(process * (identities // processes), (process + 1) * (identities // processes))
        _, counts = np.unique(labels, return_counts=True)
        self._groups = np.maximum(counts // images, 1)  # of each identity, in the order of their labels
        self.per_epoch = int(self._groups.sum()) // identities
        # A batch has an identity once: fewer batches can mean that more groups have no place, until it comes to rest.
        while (fitting := int(self._groups.clip(max=self.per_epoch).sum()) // identities) < self.per_epoch:
            self.per_epoch = fitting
        if self.per_epoch == 0:
            raise DataError(f"batches of {identities} identities from {len(counts)}")
        self._planned: tuple[int, Indices] | None = None

    def __call__(self, epoch: int, index: int) -> Indices:
        """This process's rows of batch `index`: int64 [identities / processes * images], by identity."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._plan(np.random.default_rng(derive(self._seed, "identities", epoch))))
        return self._planned[1][index, self._share].reshape(-1)

    def _plan(self, rng: np.random.Generator) -> Indices:
        """Rows [per_epoch, identities, images]."""
        shuffled = rng.permutation(len(self._labels))
        shuffled = shuffled[np.argsort(self._labels[shuffled], kind="stable")]
        members = np.split(shuffled, np.flatnonzero(np.diff(self._labels[shuffled])) + 1)
        owners = np.repeat(np.arange(len(members)), self._groups.clip(max=self.per_epoch))
        owners = np.sort(rng.permutation(owners)[: self.per_epoch * self._identities])
        # Identities in random order, the groups of each side by side.
        owners = owners[np.argsort(rng.permutation(len(members))[owners], kind="stable")]
        plan = np.empty((self.per_epoch, self._identities, self._images), dtype=np.int64)
        seats = _seats(owners.reshape(self._identities, self.per_epoch), rng)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        for first, last in zip(starts, [*starts[1:], len(owners)], strict=True):
            rows = np.resize(members[owners[first]], (last - first, self._images))
            places = np.arange(first, last)
            plan[seats.reshape(-1)[places], places // self.per_epoch] = rows
        return plan


def _seats(owners: Indices, rng: np.random.Generator) -> Indices:
    """The batch [P, B] of each group, whose owners lie side by side: each row a permutation, no owner twice in a batch.

    An owner of at most B groups reaches over the end of a row at most once; only there can it meet itself.
    """
    seats = np.empty_like(owners)
    for row, owner in enumerate(owners):
        taken = seats[row - 1][owners[row - 1] == owner[0]] if row else seats[:0, 0]
        free = rng.permutation(np.setdiff1d(np.arange(len(owner)), taken))
        head = int((owner == owner[0]).sum())
        rest = rng.permutation(np.concatenate([free[head:], taken]))
        seats[row] = np.concatenate([free[:head], rest])
    return seats


def positive_labels(labels: Indices, positives: Literal["identity", "augment"]) -> Indices:
    """Which rows are positives of each other: those of one identity, or only augmentations of one and the same row.

    With `augment` every row is an identity of its own, of which `IdentityBatches` draws all `images` from it.
    """
    return labels if positives == "identity" else np.arange(len(labels))
