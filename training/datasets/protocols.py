"""Who is compared with whom: LFW's lists of pairs, ORL's choices of gallery photo, galleries drawn at random.

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
    """Pictures [N] of labelled people, those of one person side by side: labels 0..len(names)-1, in order."""

    paths: tuple[Path, ...]
    labels: Indices
    names: tuple[str, ...]


@dataclass(frozen=True)
class Pairs:
    """Pairs as places among the pictures [P, 2], whether both show one person [P], the number of each one's fold [P].

    A list without folds of its own has `fold` None.
    """

    places: Indices
    same: npt.NDArray[np.bool_]
    fold: Indices | None


class Search(NamedTuple):
    """Places among the pictures: `gallery` [G] has one photo of each enrolled subject, `probes` [Q] the other photos.

    `mates` [Q] is the place of each probe's subject in the gallery, -1 for one who is not enrolled.
    """

    gallery: Indices
    probes: Indices
    mates: Indices


def read_lfw(folder: Path) -> People:
    """LFW's pictures, `<person>/<person>_0001.jpg`, in `folder` or in the folder `lfw` in it.

    Raises:
        DatasetNotFoundError: there are none.
    """
    root = folder / "lfw" if (folder / "lfw").is_dir() else folder
    return _people(root, sorted(root.glob("*/*.jpg")), "<person>/<person>_0001.jpg")


def read_orl(folder: Path) -> People:
    """ORL's pictures, `s1/1.pgm` to `s40/10.pgm`; each subject's in the order of their numbers.

    Raises:
        DatasetNotFoundError: there are none. DataError: not ten of each subject.
    """
    paths = [path for path in folder.glob("s*/*.pgm") if path.stem.isdecimal()]
    people = _people(folder, sorted(paths, key=lambda path: (path.parent.name, int(path.stem))), "s1/1.pgm")
    counts = np.bincount(people.labels)
    if (counts != ORL_PHOTOS).any():
        odd = people.names[int(np.argmax(counts != ORL_PHOTOS))]
        raise DataError(f"{folder / odd}: expected {ORL_PHOTOS} pictures, as of every subject")
    return people


def _people(root: Path, paths: list[Path], layout: str) -> People:
    if not paths:
        raise DatasetNotFoundError(f"no {layout} in {root.absolute()}")
    names, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    return People(tuple(paths), labels.astype(np.int64), tuple(names.tolist()))


def read_pairs(path: Path, people: People) -> Pairs:
    """One of LFW's lists. Its first line is the pairs of a kind, or the folds and the pairs of a kind in each fold.

    In each fold the mated pairs come first, `person 1 2`, then the non-mated ones, `person 1 another 3`: tab-separated,
    the numbers are those of their pictures.

    Raises:
        DataError: unreadable, another form, too few or too many pairs, a picture that is not there. The message names
            the line.
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
    fold, place = np.divmod(np.arange(len(lines)), 2 * count)
    same = place < count
    known = {picture.stem: number for number, picture in enumerate(people.paths)}
    places = np.array(
        [
            _pair(line, known, f"{path}, line {number}", mated=bool(mated))
            for number, (line, mated) in enumerate(zip(lines, same, strict=True), start=2)
        ],
        np.int64,
    )
    return Pairs(places, same, fold if folds else None)


def read_views(folder: Path, people: People) -> dict[str, Pairs]:
    """The lists of pairs that are in LFW's folder, by the name of their view.

    Raises:
        DatasetNotFoundError: there is none. DataError: see `read_pairs`.
    """
    views = {name: read_pairs(folder / file, people) for name, file in VIEWS.items() if (folder / file).is_file()}
    if not views:
        raise DatasetNotFoundError(f"neither {' nor '.join(VIEWS.values())} in {folder.absolute()}")
    return views


def _pair(line: str, known: dict[str, int], where: str, *, mated: bool) -> tuple[int, int]:
    parts = line.split()
    if len(parts) != (3 if mated else 4):
        raise DataError(f"{where}: expected {'person 1 2' if mated else 'person 1 another 2'}, found {line!r}")
    first, one, *second, two = parts
    try:
        stems = [f"{first}_{int(one):04d}", f"{second[0] if second else first}_{int(two):04d}"]
        return known[stems[0]], known[stems[1]]
    except ValueError as error:
        raise DataError(f"{where}: {line!r} does not end in a picture's number") from error
    except KeyError as error:
        raise DataError(f"{where}: there is no picture {error.args[0]}") from error


def orl_searches(people: People) -> Iterator[Search]:
    """Ten: each enrols one of the ten photos of every subject and looks for all the others."""
    for number in range(ORL_PHOTOS):
        yield _search(people.labels, np.arange(number, len(people.labels), ORL_PHOTOS))


def random_search(labels: Indices, random: np.random.Generator, enrolled: float = 1.0) -> Search:
    """Enrol a random photo of each of a random share `enrolled` of the subjects; all other photos are probes.

    Who has one photo only is enrolled without being looked for, or looked for without being enrolled.
    """
    order = random.permutation(len(labels))
    subjects, first = np.unique(labels[order], return_index=True)
    chosen = np.sort(random.permutation(len(subjects))[: round(enrolled * len(subjects))])
    return _search(labels, order[first[chosen]])


def _search(labels: Indices, gallery: Indices) -> Search:
    """`gallery` by rising labels."""
    probes = np.setdiff1d(np.arange(len(labels)), gallery)
    column = np.full(int(labels.max()) + 1, -1)
    column[labels[gallery]] = np.arange(len(gallery))
    return Search(gallery, probes, column[labels[probes]])
