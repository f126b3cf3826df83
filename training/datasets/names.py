"""The names that a name encoder reads: whose they are, and in which split.

Test names are people's in LFW's development view, of which nothing is trained on, and a tenth of the others; another
tenth chooses the epoch, both by `training.datasets.faces.split_of`. The others are SymPy's authors (BSD-3-Clause; its
list comes with the package, which torch needs) and the identities of the faces whose sources spell names, without their
spaces. From what is trained on, more names are made by giving one person's first names another's surname.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from models.name_encoder import UNKNOWN, fold, letters_only
from training.core.errors import DataError, DatasetNotFoundError
from training.core.seeds import derive
from training.datasets import images as data
from training.datasets.faces import source_of, split_of
from training.recipe.config import WordsDataSection, datasets_folder

_PACKAGE, _FILE = "sympy", "AUTHORS"
_NAMED_SOURCES = {"pins", "vggface2", "glint"}


@dataclass(frozen=True)
class Names:
    """Folded names, no two alike but for spaces and hyphens, each in one split; `made` are recombined of `train`."""

    train: tuple[str, ...]
    made: tuple[str, ...]
    calibrate: tuple[str, ...]
    test: tuple[str, ...]


def read_names(section: WordsDataSection, seed: int) -> Names:
    """Every name of the recipe's sources, and as many made ones as bring those trained on to `section.names`.

    Raises:
        DataError, DatasetNotFoundError: a source that is missing or holds no names, or a split without any.
    """
    held_out = _distinct(_people(section.test), set())
    others = _distinct([*_authors(), *_identities(section.identities)], {letters_only(name) for name in held_out})
    parts = {
        split: tuple(name for name in others if split_of(name) == split) for split in ("train", "calibrate", "test")
    }
    if not all(parts.values()):
        raise DataError(f"{len(others)} names are too few for three splits")
    known = {letters_only(name) for name in (*held_out, *others)}
    made = recombine(parts["train"], section.names - len(parts["train"]), known, derive(seed, "made"))
    return Names(parts["train"], made, parts["calibrate"], held_out + parts["test"])


def _distinct(names: Iterable[str], known: set[str]) -> tuple[str, ...]:
    """Folded, in order; without those that `known` has or that hold an unknown letter."""
    folded = (fold(name) for name in names)
    first = {letters_only(name): name for name in sorted(folded) if UNKNOWN not in name}
    return tuple(sorted(name for letters, name in first.items() if letters and letters not in known))


def _people(dataset: str) -> list[str]:
    """LFW's layout: lfw/<First_Last>/<picture>."""
    folder = datasets_folder() / dataset / "lfw"
    if not folder.is_dir():
        raise DatasetNotFoundError(f"no lfw/<First_Last>/ in {folder.parent.absolute()} (VESTIBULE_DATASETS)")
    return [path.name for path in folder.iterdir() if path.is_dir()]


def _identities(dataset: str) -> list[str]:
    """Of the sources that spell names; the others number people."""
    classes = data.find(dataset, "train").classes
    return [identity.partition(":")[2] for identity in classes if source_of(identity) in _NAMED_SOURCES]


def _authors() -> list[str]:
    """Lines as `First Last <address>`; what is one word is a handle, not a name."""
    paths = [path for path in importlib.metadata.files(_PACKAGE) or () if path.name == _FILE]
    if not paths:
        raise DataError(f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)} comes without its {_FILE}")
    lines = paths[0].read_text(encoding="utf-8").splitlines()
    found = (re.match(r"\*?([^<]+) <", line) for line in lines)
    return [match[1] for match in found if match and " " in match[1]]


def recombine(names: Sequence[str], count: int, known: set[str], seed: int) -> tuple[str, ...]:
    """At most `count` names of one's first words and another's last, none of whose letters are in `known`."""
    parted = [name.rpartition(" ") for name in names if " " in name]
    if count < 1 or not parted:
        return ()
    random = np.random.default_rng(seed)
    made: dict[str, str] = {}
    for first, last in random.integers(len(parted), size=(4 * count, 2)):
        name = f"{parted[first][0]} {parted[last][2]}"
        if letters_only(name) not in known:
            made[letters_only(name)] = name
        if len(made) == count:
            break
    return tuple(made.values())
