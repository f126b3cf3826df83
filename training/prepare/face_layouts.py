"""Read the identity on each photo of a collection, from the file layouts in which such collections are published."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from training.core.errors import DataError, DatasetNotFoundError
from training.datasets.images import IMAGE_SUFFIXES, why_no_image

Layout = Literal["people", "vggface2", "celeba"]
LeftOut = Literal["no-identity", "missing", "not-a-picture", "broken-link"]

CELEBA_LIST = "identity_CelebA.txt"
# In order of preference: the first has whole photos, the others CelebA's own crops of them.
CELEBA_FOLDERS = ("img_celeba", "img_align_celeba", "img_align_celeba_png")
_VGGFACE2_PERSON = re.compile(r"n\d{6}")


class Photo(NamedTuple):
    """A person's identity, and the path of the photo below the collection's folder."""

    identity: str
    path: str


@dataclass(frozen=True)
class Collection:
    """Photos sorted by identity and path, and the paths that are left out, each with the reason."""

    layout: Layout
    photos: tuple[Photo, ...]
    left_out: tuple[tuple[str, LeftOut], ...] = ()


def printable(path: str) -> str:
    r"""Return a path as valid text: bytes that are not UTF-8 become escapes such as \xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_collection(folder: Path, layout: Layout | None = None) -> Collection:
    """Read the photos in and below `folder`, which has the given layout; None: recognise it by the names.

    `people`: each photo is in its person's folder, as in LFW. An identity is the folder's path below the common parent
    of all of them, so that two families may each have a `mother`.
    `vggface2`: as `people`, but the folders are called n000001, and identities are these names, in train/, test/ or
    both.
    `celeba`: identity_CelebA.txt has a line `000001.jpg 2880` for each photo of img_celeba/ or img_align_celeba/.

    Hidden files and folders are ignored. Files that are images neither by suffix nor by content are in `left_out`.
    Links are followed.

    Raises:
        DatasetNotFoundError: no such folder, or no photos of the layout in it. DataError: a contradictory layout:
            photos beside folders of photos, two lists, a line that is not a name and a number.
    """
    if not folder.is_dir():
        raise DatasetNotFoundError(f"{folder} is not a folder")
    files = sorted(_files(folder))
    lists = [path for path in files if posixpath.basename(path) == CELEBA_LIST]
    images = [path for path in files if path not in lists and why_no_image(folder / path) is None]
    others: list[tuple[str, LeftOut]] = [
        (path, "not-a-picture" if (folder / path).exists() else "broken-link")
        for path in sorted({*files} - {*lists, *images})
    ]
    if not images:
        raise DatasetNotFoundError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {folder}")
    layout = layout or _recognised(images, lists)
    if layout == "celeba":
        collection = _celeba(folder, images, lists)
    else:
        collection = _vggface2(folder, images) if layout == "vggface2" else _people(folder, images)
    return replace(collection, left_out=(*collection.left_out, *others))


def _files(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = Path(parent).resolve()
        # Following a link to a parent folder would not terminate.
        folders[:] = [
            name for name in folders if name[0] != "." and not here.is_relative_to(Path(parent, name).resolve())
        ]
        below = Path(parent).relative_to(folder)
        yield from ((below / name).as_posix() for name in names if name[0] != ".")


def _recognised(images: Sequence[str], lists: Sequence[str]) -> Layout:
    if lists:
        return "celeba"
    people = {posixpath.basename(posixpath.dirname(path)) for path in images}
    return "vggface2" if all(_VGGFACE2_PERSON.fullmatch(name) for name in people) else "people"


def _people(folder: Path, images: Sequence[str]) -> Collection:
    holders = {posixpath.dirname(path) for path in images} - {""}
    if not holders:
        raise DatasetNotFoundError(f"{folder} has images, but no <person>/<photo>.jpg")
    nested = ((str(above), holder) for holder in sorted(holders) for above in PurePosixPath(holder).parents)
    for above, holder in nested:
        if above in holders:
            raise DataError(
                f"{folder}: photos in {printable(above)} and {printable(holder)}; the person's folder is ambiguous"
            )
    # With one person only, the common parent is not the person's own folder.
    shared = posixpath.commonpath(holders if len(holders) > 1 else [posixpath.dirname(*holders)])
    names = {holder: printable(holder[len(shared) :].lstrip("/")) for holder in holders}
    return _collection("people", images, [names.get(posixpath.dirname(path), "") for path in images])


def _vggface2(folder: Path, images: Sequence[str]) -> Collection:
    names = [posixpath.basename(posixpath.dirname(path)) for path in images]
    identities = [name if _VGGFACE2_PERSON.fullmatch(name) else "" for name in names]
    if not any(identities):
        raise DatasetNotFoundError(f"{folder} has images, but no n000001/<photo>.jpg")
    return _collection("vggface2", images, identities)


def _celeba(folder: Path, images: Sequence[str], lists: Sequence[str]) -> Collection:
    if not lists:
        raise DatasetNotFoundError(f"no {CELEBA_LIST} in {folder}")
    if len(lists) > 1:
        raise DataError(f"{folder} has several lists: {', '.join(map(printable, lists))}")
    present = Counter(posixpath.basename(posixpath.dirname(path)) for path in images)
    kind = next((name for name in CELEBA_FOLDERS if present[name]), None)
    if kind is None:
        raise DatasetNotFoundError(f"none of {', '.join(CELEBA_FOLDERS)} with images in {folder}")
    identities = _celeba_identities(folder / lists[0])
    chosen = [path for path in images if posixpath.basename(posixpath.dirname(path)) == kind]
    # Without the suffix, since one of the folders has PNG files and the list names the JPEG files.
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
    layout: Layout, images: Sequence[str], identities: Sequence[str], absent: Sequence[str] = ()
) -> Collection:
    """Build the collection; `identities` has an entry for each image, "" if it is unknown."""
    pairs = list(zip(identities, images, strict=True))
    photos = tuple(sorted(Photo(identity, path) for identity, path in pairs if identity))
    unknown: list[tuple[str, LeftOut]] = [(path, "no-identity") for identity, path in pairs if not identity]
    return Collection(layout, photos, (*unknown, *((path, "missing") for path in absent)))
