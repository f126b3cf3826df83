"""Read image data sets (parquet, folders, torchvision) and decode each once into a memory map."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from models import image_decoder
from models.checkpoint import write_atomically
from models.preprocess import Preprocess
from training.core.errors import DataError, DatasetNotFoundError
from training.recipe.config import datasets_folder, runs_folder

log = logging.getLogger(__name__)

Split = Literal["train", "test"]
Indices = npt.NDArray[np.int64]
ImageSource = io.BytesIO | Path | Image.Image  # an encoded file, its path, or a decoded image

# Files with these suffixes count as images; other files are recognised by their content.
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".pgm", ".ppm"}
TORCHVISION = {"mnist": "MNIST", "cifar10": "CIFAR10"}
_ROWS_AT_ONCE = 1024
# Photo formats that the decoder does not support. A folder that contains such a file is rejected, because ignoring them
# could drop most photos of a phone.
UNSUPPORTED_SUFFIXES = {".heic", ".heif", ".avif", ".tif", ".tiff", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"}


@dataclass(frozen=True)
class ImageSet:
    """A decoded data set: uint8 [N, H, W, C] as from `Preprocess.pixels`, labels int64 [N], and the class names."""

    images: npt.NDArray[np.uint8]
    labels: Indices
    classes: tuple[str, ...]


@dataclass(frozen=True)
class SplitSource:
    """One split of a data set on disk, of `count` images.

    `rows` reads them, and yields the location (for messages), the image and the label of each row.
    """

    files: tuple[Path, ...]
    classes: tuple[str, ...]
    count: int
    rows: Callable[[], Iterable[tuple[str, ImageSource, int]]]


def _parquet(files: tuple[Path, ...]) -> SplitSource:
    """Return Hugging Face image parquet with the columns `image` {bytes, path} and either `label` or `identity`.

    `label` is a number; the schema's metadata has the class names. `identity` is a name, as `pins:somebody`; the
    classes are all names that occur, sorted.
    """
    import pyarrow.parquet

    try:
        described = [pyarrow.parquet.ParquetFile(file) for file in files]
        column = "identity" if "identity" in described[0].schema_arrow.names else "label"
        if column == "identity":
            # One identity may occur in both Unicode forms; but labels are numbers, so two with one name are an error.
            tables = (file.read(columns=[column]).column(column) for file in described)
            names = {name for table in tables for name in table.unique().to_pylist() if name is not None}
            classes = tuple(sorted({class_name(name) for name in names}))
        else:
            metadata = json.loads(described[0].schema_arrow.metadata[b"huggingface"])
            classes = tuple(class_name(name) for name in metadata["info"]["features"]["label"]["names"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{files[0]}: not Hugging Face image parquet with named labels or identities: {error!r}"
        ) from error
    if duplicates := [name for name, count in Counter(classes).items() if count > 1]:
        raise DataError(f"two classes have the name {duplicates[0]!r}")

    def rows() -> Iterator[tuple[str, ImageSource, int]]:
        number = {name: index for index, name in enumerate(classes)}
        for file in files:
            row = 0
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, columns=["image", column]):
                images, labels = batch.column("image").field("bytes"), batch.column(column)
                for data, value in zip(images, labels.to_pylist(), strict=True):
                    label = number[class_name(value)] if isinstance(value, str) else value
                    yield f"{file}, row {row}", io.BytesIO(data.as_py() or b""), -1 if label is None else label
                    row += 1

    return SplitSource(files, classes, sum(file.metadata.num_rows for file in described), rows)


def class_name(name: str) -> str:
    """Return the name in Unicode form C; file systems and archives keep it in either form."""
    return unicodedata.normalize("NFC", name)


def image_files(folder: Path, report: Callable[[str], None]) -> list[Path]:
    """Return the images in a folder, sorted by name: files with the suffix or the content of an image.

    Calls `report` with a line for each file that is left out and the reason. Hidden files and folders are left out
    without one.

    Raises:
        DataError: a photo of an unsupported format.
    """
    images, unsupported = [], []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if (reason := why_no_image(path)) is None:
            images.append(path)
        elif path.suffix.lower() in UNSUPPORTED_SUFFIXES and path.is_file():
            unsupported.append(path)
        elif not path.is_dir():
            report(f"left out: {path}: {reason}")
    if unsupported:
        raise DataError(
            f"{unsupported[0]}: {unsupported[0].suffix} is not supported ({len(unsupported)} in this folder);"
            " save it as JPEG"
        )
    return images


def why_no_image(path: Path) -> str | None:
    """Return the reason why the file is not an image, or None if it is one, even if damaged."""
    if not path.is_file():  # reading a pipe would block
        return "a broken link" if path.is_symlink() and not path.exists() else "not a file"
    return None if path.suffix.lower() in IMAGE_SUFFIXES else image_decoder.why_not_supported(path)


def _folder(root: Path) -> SplitSource:
    """Return the images `<root>/<class>/<image>`, classes sorted by name. Files that are left out are logged.

    Two folders whose names differ only in their Unicode form are one class.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = tuple(sorted({class_name(path.name) for path in folders}))
    number = {name: label for label, name in enumerate(classes)}
    labelled = [(path, number[class_name(part.name)]) for part in folders for path in image_files(part, log.warning)]
    files = tuple(path for path, _ in labelled)
    return SplitSource(files, classes, len(files), lambda: ((str(path), path, label) for path, label in labelled))


def _torchvision(name: str, folder: Path, split: Split) -> SplitSource:
    """Return a data set that torchvision downloads into `folder`."""
    import torchvision.datasets

    data = getattr(torchvision.datasets, TORCHVISION[name])(str(folder), train=split == "train", download=True)
    files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    # torchvision calls MNIST's classes "0 - zero", other sources "0".
    classes = tuple(label.partition(" - ")[0] for label in data.classes)

    def rows() -> Iterator[tuple[str, ImageSource, int]]:
        for row in range(len(data)):
            image, label = data[row]
            yield f"torchvision row {row}", image, int(label)

    return SplitSource(files, classes, len(data), rows)


def find(dataset: str, split: Split) -> SplitSource:
    """Return the split from parquet files, else from an image folder, else from torchvision's download.

    Raises:
        DatasetNotFoundError: there is none of them.
        DataError: parquet files without the columns or the metadata.
    """
    folder = datasets_folder() / dataset
    shards = tuple(sorted(folder.glob(f"{split}*.parquet")))
    if shards:
        return _parquet(shards)
    if (folder / split).is_dir():
        return _folder(folder / split)
    searched = f"no {split}*.parquet and no {split}/<class>/ in {folder.absolute()} (VESTIBULE_DATASETS)"
    if dataset not in TORCHVISION:
        raise DatasetNotFoundError(f"{searched}, and torchvision has no {dataset}")
    try:
        return _torchvision(dataset, folder, split)
    except (OSError, RuntimeError) as error:
        raise DatasetNotFoundError(f"{searched}, and the download by torchvision failed: {error}") from error


def load(dataset: str, split: Split, preprocess: Preprocess) -> ImageSet:
    """Return the split's images from the cache under VESTIBULE_RUNS; decode them into it if there are none.

    The cache key covers the files' sizes and times and the preprocessing without mean and std. Several processes may
    call this at once: each decodes, and the result of the first to finish is kept.

    Raises:
        DatasetNotFoundError, DataError: see `find`; an empty split, an undecodable image, a label out of range.
    """
    source = find(dataset, split)
    if source.count == 0:
        raise DataError(f"{dataset}: the {split} split holds no images; expected are {split}/<class>/*.jpg")
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


def _fingerprint(source: SplitSource, preprocess: Preprocess) -> str:
    """Return a hash of all that the decoded bytes depend on; mean and std are applied later."""
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in source.files]
    geometry = preprocess.model_dump(mode="json", exclude={"mean", "std"})
    parts = [stats, source.classes, geometry, image_decoder.VERSION]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _decode(source: SplitSource, preprocess: Preprocess, folder: Path) -> None:
    channels, height, width = preprocess.shape
    shape = (source.count, height, width, channels)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    labels = np.empty(source.count, dtype=np.int64)
    for row, (where, image, label) in enumerate(source.rows()):
        if not 0 <= label < len(source.classes):
            raise DataError(f"{where}: label {label} is not one of {len(source.classes)} classes")
        images[row] = preprocess.pixels(decoded(where, image))
        labels[row] = label
    images.flush()
    np.save(folder / "labels.npy", labels)
    write_atomically(folder / "meta.json", json.dumps({"classes": source.classes}).encode())


def decoded(where: str, source: ImageSource) -> Image.Image:
    """Return the whole image, upright, RGB, decoded as the service does.

    Raises:
        DataError: the image cannot be decoded; the message begins with `where`.
    """
    try:
        return image_decoder.load(source) if isinstance(source, Image.Image) else image_decoder.read(source)
    except image_decoder.DecodeError as error:
        raise DataError(f"{where}: cannot be decoded: {error}") from error
