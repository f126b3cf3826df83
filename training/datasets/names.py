"""The names that a name encoder is trained and tested on, and their splits.

Test names are those of LFW's development view, which is never trained on, and a tenth of the other names; another tenth
is for validation, both by `training.datasets.faces.split_of`. The other names are SymPy's authors (BSD-3-Clause; the
list is in the package, which torch requires) and the identities of face data sets whose sources use names, without
spaces. Synthetic training names combine the first names of one training name with the surname of another.
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
from training.datasets import images
from training.datasets.faces import source_of, split_of
from training.recipe.config import datasets_folder
from training.recipe.words_config import WordsDataSection

_PACKAGE, _FILE = "sympy", "AUTHORS"
_NAMED_SOURCES = {"pins", "vggface2", "glint"}


@dataclass(frozen=True)
class Names:
    """Folded names, distinct without spaces and hyphens, each in one split; `synthetic` are recombined from `train`."""

    train: tuple[str, ...]
    synthetic: tuple[str, ...]
    calibrate: tuple[str, ...]
    test: tuple[str, ...]


def read_names(section: WordsDataSection, seed: int) -> Names:
    """Read the names of the recipe's sources, and add synthetic ones until there are `section.names` training names.

    Raises:
        DataError, DatasetNotFoundError: a source is missing or has no names, or a split is empty.
    """
    held_out = _distinct(_people(section.test), set())
    rest = _distinct([*_authors(), *_identities(section.identities)], {letters_only(name) for name in held_out})
    parts = {split: tuple(name for name in rest if split_of(name) == split) for split in ("train", "calibrate", "test")}
    if not all(parts.values()):
        raise DataError(f"{len(rest)} names are too few for three splits")
    existing = {letters_only(name) for name in (*held_out, *rest)}
    synthetic = recombine(parts["train"], section.names - len(parts["train"]), existing, derive(seed, "made"))
    return Names(parts["train"], synthetic, parts["calibrate"], held_out + parts["test"])


def _distinct(names: Iterable[str], excluded: set[str]) -> tuple[str, ...]:
    """Return folded names, sorted, without those in `excluded` and those with an unknown letter."""
    folded = (fold(name) for name in names)
    first = {letters_only(name): name for name in sorted(folded) if UNKNOWN not in name}
    return tuple(sorted(name for letters, name in first.items() if letters and letters not in excluded))


def _people(dataset: str) -> list[str]:
    """Return the names of LFW's folders, lfw/<First_Last>/<image>."""
    folder = datasets_folder() / dataset / "lfw"
    if not folder.is_dir():
        raise DatasetNotFoundError(f"no lfw/<First_Last>/ in {folder.parent.absolute()} (VESTIBULE_DATASETS)")
    return [path.name for path in folder.iterdir() if path.is_dir()]


def _identities(dataset: str) -> list[str]:
    """Return the names of the sources that use names; other sources number people."""
    classes = images.find(dataset, "train").classes
    return [identity.partition(":")[2] for identity in classes if source_of(identity) in _NAMED_SOURCES]


def _authors() -> list[str]:
    """Return the names in lines `First Last <address>`; single words are handles, not names."""
    paths = [path for path in importlib.metadata.files(_PACKAGE) or () if path.name == _FILE]
    if not paths:
        raise DataError(f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)} comes without its {_FILE}")
    lines = paths[0].read_text(encoding="utf-8").splitlines()
    matches = (re.match(r"\*?([^<]+) <", line) for line in lines)
    return [match[1] for match in matches if match and " " in match[1]]


def recombine(names: Sequence[str], count: int, existing: set[str], seed: int) -> tuple[str, ...]:
    """Combine first names and surnames of different `names` into at most `count` names that are not in `existing`."""
    parts = [name.rpartition(" ") for name in names if " " in name]
    if count < 1 or not parts:
        return ()
    random = np.random.default_rng(seed)
    combined: dict[str, str] = {}
    for first, last in random.integers(len(parts), size=(4 * count, 2)):
        name = f"{parts[first][0]} {parts[last][2]}"
        if letters_only(name) not in existing:
            combined[letters_only(name)] = name
        if len(combined) == count:
            break
    return tuple(combined.values())
