"""Which photo shows whom: the layouts in which collections of people's photos are published."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from training.core.errors import DataError, DatasetNotFoundError
from training.datasets.images import IMAGE_SUFFIXES, why_no_picture

Layout = Literal["people", "vggface2", "celeba"]
LeftOut = Literal["no-identity", "missing", "not-a-picture", "broken-link"]

CELEBA_LIST = "identity_CelebA.txt"
# As photographed first: of the same photos the others are CelebA's own crops, made for faces of one size.
CELEBA_FOLDERS = ("img_celeba", "img_align_celeba", "img_align_celeba_png")
_VGGFACE2_PERSON = re.compile(r"n\d{6}")


class Photo(NamedTuple):
    """Who is on it, and where it lies below the collection's folder."""

    identity: str
    path: str


@dataclass(frozen=True)
class Collection:
    """Photos by identity, then by path; and the paths that are left out, each with the reason."""

    layout: Layout
    photos: tuple[Photo, ...]
    left_out: tuple[tuple[str, LeftOut], ...] = ()


def printable(path: str) -> str:
    r"""A path as text that every file can hold: bytes of a name that are not UTF-8 become \xff and the like."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_collection(folder: Path, layout: Layout | None = None) -> Collection:
    """The photos in `folder` and below it by one layout, None for the one that the names in it show.

    `people`: a photo lies in its person's folder, as in LFW. An identity is the folder's path below the folder that
    all of them share, so that two families may each have a `mother`.
    `vggface2`: the same, where the folders are called n000001 and identities are these names, in train/, test/ or both.
    `celeba`: identity_CelebA.txt has a line `000001.jpg 2880` for each photo of img_celeba/, or else img_align_celeba/.

    Hidden files and folders are passed over. Files that are no pictures by their suffix nor by their content are left
    out and named. Links are followed.

    Raises:
        DatasetNotFoundError: no such folder, or nothing of the layout in it. DataError: a layout that contradicts
            itself: photos beside folders of photos, two lists, a line that is not a name and a number.
    """
    if not folder.is_dir():
        raise DatasetNotFoundError(f"{folder} is not a folder")
    files = sorted(_files(folder))
    lists = [path for path in files if posixpath.basename(path) == CELEBA_LIST]
    pictures, others = _divided(folder, [path for path in files if path not in lists])
    if not pictures:
        raise DatasetNotFoundError(f"no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) in {folder}")
    layout = layout or _recognised(pictures, lists)
    if layout == "celeba":
        collection = _celeba(folder, pictures, lists)
    else:
        collection = _vggface2(folder, pictures) if layout == "vggface2" else _people(folder, pictures)
    return replace(collection, left_out=collection.left_out + others)


def _divided(folder: Path, files: Sequence[str]) -> tuple[list[str], tuple[tuple[str, LeftOut], ...]]:
    """The pictures among these files, and what is left out."""
    pictures: list[str] = []
    others: list[tuple[str, LeftOut]] = []
    for path in files:
        if not (folder / path).exists():
            others.append((path, "broken-link"))
        elif why_no_picture(folder / path) is None:
            pictures.append(path)
        else:
            others.append((path, "not-a-picture"))
    return pictures, tuple(others)


def _files(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        # A link to a folder above would be walked round and round.
        folders[:] = [
            name for name in folders if name[0] != "." and not here.is_relative_to(Path(place, name).resolve())
        ]
        below = Path(place).relative_to(folder)
        yield from ((below / name).as_posix() for name in names if name[0] != ".")


def _recognised(pictures: Sequence[str], lists: Sequence[str]) -> Layout:
    if lists:
        return "celeba"
    people = {posixpath.basename(posixpath.dirname(path)) for path in pictures}
    return "vggface2" if all(_VGGFACE2_PERSON.fullmatch(name) for name in people) else "people"


def _people(folder: Path, pictures: Sequence[str]) -> Collection:
    holders = {posixpath.dirname(path) for path in pictures} - {""}
    if not holders:
        raise DatasetNotFoundError(f"{folder} has pictures, but no <person>/<photo>.jpg")
    for holder in sorted(holders):
        above = posixpath.dirname(holder)
        while above:
            if above in holders:
                raise DataError(f"{folder}: photos in {printable(above)} and in {printable(holder)}: who is a person?")
            above = posixpath.dirname(above)
    # The folder of an only person is not one that people share.
    shared = posixpath.commonpath(holders if len(holders) > 1 else [posixpath.dirname(*holders)])
    names = {holder: printable(holder[len(shared) :].lstrip("/")) for holder in holders}
    return _collection("people", pictures, [names.get(posixpath.dirname(path), "") for path in pictures])


def _vggface2(folder: Path, pictures: Sequence[str]) -> Collection:
    names = [posixpath.basename(posixpath.dirname(path)) for path in pictures]
    identities = [name if _VGGFACE2_PERSON.fullmatch(name) else "" for name in names]
    if not any(identities):
        raise DatasetNotFoundError(f"{folder} has pictures, but no n000001/<photo>.jpg")
    return _collection("vggface2", pictures, identities)


def _celeba(folder: Path, pictures: Sequence[str], lists: Sequence[str]) -> Collection:
    if len(lists) != 1:
        found = ", ".join(map(printable, lists))
        raise (
            DataError(f"{folder}: {found}: which one?")
            if lists
            else DatasetNotFoundError(f"no {CELEBA_LIST} in {folder}")
        )
    present = Counter(posixpath.basename(posixpath.dirname(path)) for path in pictures)
    kind = next((name for name in CELEBA_FOLDERS if present[name]), None)
    if kind is None:
        raise DatasetNotFoundError(f"none of {', '.join(CELEBA_FOLDERS)} with pictures in {folder}")
    identities = _celeba_identities(folder / lists[0])
    chosen = [path for path in pictures if posixpath.basename(posixpath.dirname(path)) == kind]
    # By the name without its suffix: one of the folders has PNG files, and the list has the JPEG files' names.
    stems = [posixpath.splitext(posixpath.basename(path))[0] for path in chosen]
    absent = sorted(identities.keys() - set(stems))
    return _collection("celeba", chosen, [identities.get(stem, "") for stem in stems], absent)


def _celeba_identities(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error
    identities = {}
    for number, line in enumerate(lines, start=1):
        name, _, identity = line.strip().partition(" ")
        if not identity.strip().isdecimal():
            raise DataError(f"{path}, line {number}: {line[:80]!r} is not of the form 000001.jpg 2880")
        identities[posixpath.splitext(name)[0]] = identity.strip()
    return identities


def _collection(
    layout: Layout, pictures: Sequence[str], identities: Sequence[str], absent: Sequence[str] = ()
) -> Collection:
    """`identities` has one for each picture, "" where it is nobody's."""
    pairs = list(zip(identities, pictures, strict=True))
    photos = tuple(sorted(Photo(identity, path) for identity, path in pairs if identity))
    nobodys: list[tuple[str, LeftOut]] = [(path, "no-identity") for identity, path in pairs if not identity]
    return Collection(layout, photos, (*nobodys, *((path, "missing") for path in absent)))
