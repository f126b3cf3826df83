"""Evaluation protocols: LFW's lists of pairs, ORL's gallery photos, and random galleries.

Labeled Faces in the Wild: Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild: A Database for Studying Face
Recognition in Unconstrained Environments", University of Massachusetts, Amherst, technical report 07-49, 2007. View 1
is for development, View 2 for reporting, with folds of its own.
ORL: Samaria, Harter, "Parameterisation of a Stochastic Model for Human Face Identification", WACV 1994.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.core.errors import DataError, DatasetNotFoundError
from training.datasets.images import Indices

VIEWS = {"View 1": "pairsDevTest.txt", "View 2": "pairs.txt"}
ORL_PHOTOS = 10


@dataclass(frozen=True)
class People:
    """Images [N] of labelled people, sorted by their labels 0..len(names)-1."""

    paths: tuple[Path, ...]
    labels: Indices
    names: tuple[str, ...]


@dataclass(frozen=True)
class ListedPairs:
    """Pairs as positions of images [P, 2], whether each is mated [P], and the number of its fold [P].

    `fold` is None if the list has no folds.
    """

    positions: Indices
    mated: npt.NDArray[np.bool_]
    fold: Indices | None


class Search(NamedTuple):
    """Positions of images: `gallery` [G] has one photo of each enrolled subject, `probes` [Q] the other photos.

    `mates` [Q] is the index in the gallery of each probe's subject, -1 if the subject is not enrolled.
    """

    gallery: Indices
    probes: Indices
    mates: Indices


def read_lfw(folder: Path) -> People:
    """Read LFW's images, `<person>/<person>_0001.jpg`, in `folder` or in the folder `lfw` in it.

    Raises:
        DatasetNotFoundError: there are none.
    """
    root = folder / "lfw" if (folder / "lfw").is_dir() else folder
    return _people(root, sorted(root.glob("*/*.jpg")), "<person>/<person>_0001.jpg")


def read_orl(folder: Path) -> People:
    """Read ORL's images, `s1/1.pgm` to `s40/10.pgm`; those of a subject are sorted by number.

    Raises:
        DatasetNotFoundError: there are none. DataError: a subject does not have ten.
    """
    paths = [path for path in folder.glob("s*/*.pgm") if path.stem.isdecimal()]
    people = _people(folder, sorted(paths, key=lambda path: (path.parent.name, int(path.stem))), "s1/1.pgm")
    counts = np.bincount(people.labels)
    if (counts != ORL_PHOTOS).any():
        odd = people.names[int(np.argmax(counts != ORL_PHOTOS))]
        raise DataError(f"{folder / odd}: expected {ORL_PHOTOS} images, as for every subject")
    return people


def _people(root: Path, paths: list[Path], layout: str) -> People:
    if not paths:
        raise DatasetNotFoundError(f"no {layout} in {root.absolute()}")
    names, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    return People(tuple(paths), labels.astype(np.int64), tuple(names.tolist()))


def read_pairs(path: Path, people: People) -> ListedPairs:
    """Read one of LFW's lists of pairs.

    The first line has the number of pairs of each kind, or the number of folds and that of pairs of each kind in a
    fold. In each fold, lines of mated pairs, `person 1 2`, are followed by non-mated ones, `person 1 another 3`; the
    numbers are those of the images.

    Raises:
        DataError: the file is unreadable or invalid, has too few or too many pairs, or names a missing image. The
            message has the line's number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error
    try:
        *folds, count = (int(number) for number in lines[0].split())
        (fold_count,) = folds or [1]
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}, line 1: expected the number of pairs, or of folds and of pairs in each") from error
    lines = lines[1:]
    if fold_count < 1 or count < 1 or len(lines) != 2 * count * fold_count:
        raise DataError(f"{path}: expected {2 * count * fold_count} pairs as line 1 says, found {len(lines)}")
    fold, position = np.divmod(np.arange(len(lines)), 2 * count)
    mated = position < count
    by_name = {path.stem: number for number, path in enumerate(people.paths)}
    positions = np.array(
        [
            _pair(line, by_name, f"{path}, line {number}", mated=bool(is_mated))
            for number, (line, is_mated) in enumerate(zip(lines, mated, strict=True), start=2)
        ],
        np.int64,
    )
    return ListedPairs(positions, mated, fold if folds else None)


def read_views(folder: Path, people: People) -> dict[str, ListedPairs]:
    """Read the lists of pairs in LFW's folder, by the name of their view.

    Raises:
        DatasetNotFoundError: there is none. DataError: see `read_pairs`.
    """
    views = {name: read_pairs(folder / file, people) for name, file in VIEWS.items() if (folder / file).is_file()}
    if not views:
        raise DatasetNotFoundError(f"neither {' nor '.join(VIEWS.values())} in {folder.absolute()}")
    return views


def _pair(line: str, by_name: dict[str, int], where: str, *, mated: bool) -> tuple[int, int]:
    parts = line.split()
    if len(parts) != (3 if mated else 4):
        raise DataError(f"{where}: expected {'person 1 2' if mated else 'person 1 another 2'}, found {line!r}")
    first, first_number, *second, second_number = parts
    try:
        stems = [f"{first}_{int(first_number):04d}", f"{second[0] if second else first}_{int(second_number):04d}"]
        return by_name[stems[0]], by_name[stems[1]]
    except ValueError as error:
        raise DataError(f"{where}: {line!r} does not end in an image's number") from error
    except KeyError as error:
        raise DataError(f"{where}: there is no image {error.args[0]}") from error


def orl_searches(people: People) -> Iterator[Search]:
    """Yield ten searches: search k enrols photo k of every subject; the other nine photos are probes."""
    for number in range(ORL_PHOTOS):
        yield _search(people.labels, np.arange(number, len(people.labels), ORL_PHOTOS))


def random_search(labels: Indices, random: np.random.Generator, enrolled: float = 1.0) -> Search:
    """Return a search that enrols a random photo of each of a random share `enrolled` of the subjects.

    All other photos are probes. The photo of a subject with only one is either in the gallery or a probe.
    """
    order = random.permutation(len(labels))
    subjects, first = np.unique(labels[order], return_index=True)
    chosen = np.sort(random.permutation(len(subjects))[: round(enrolled * len(subjects))])
    return _search(labels, order[first[chosen]])


def _search(labels: Indices, gallery: Indices) -> Search:
    """Return the search with `gallery`, which is sorted by label; all other photos are probes."""
    probes = np.setdiff1d(np.arange(len(labels)), gallery)
    column = np.full(int(labels.max()) + 1, -1)
    column[labels[gallery]] = np.arange(len(gallery))
    return Search(gallery, probes, column[labels[probes]])
