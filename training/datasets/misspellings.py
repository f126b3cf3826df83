"""Misspell names. Each of the `KINDS` of edits is a function that returns all spellings of a name after one edit.

The kinds are typing errors (a neighbouring key instead of or beside the right one; a letter dropped, doubled or swapped
with the next), letters that sound alike (ph and f, c and k), other transliterations (-ov, -off, -ow; kh and h), umlauts
with or without e, joined words, and the surname first. Folding removes diacritics, so their loss is not an edit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from models.name_encoder import letters_only

Kind = Callable[[str], list[str]]

ORDER = "order"


def _keys() -> dict[str, str]:
    """Return the neighbours of each key of a US keyboard, whose rows are shifted by half a key."""
    rows = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    position = {key: (2 * column + row, 2 * row) for row, keys in enumerate(rows) for column, key in enumerate(keys)}
    return {
        key: "".join(neighbour for neighbour, (a, b) in position.items() if 0 < abs(a - x) + abs(b - y) <= 3)
        for key, (x, y) in position.items()
    }


KEYS = _keys()


def _neighbour(name: str) -> list[str]:
    return [name[:i] + key + name[i + 1 :] for i, letter in enumerate(name) for key in KEYS.get(letter, "")]


def _stray(name: str) -> list[str]:
    return [name[: i + 1] + key + name[i + 1 :] for i, letter in enumerate(name) for key in KEYS.get(letter, "")]


def _drop(name: str) -> list[str]:
    shorter = (name[:i] + name[i + 1 :] for i, letter in enumerate(name) if letter.isalpha())
    return [spelling for spelling in shorter if letters_only(spelling)]


def _double(name: str) -> list[str]:
    return [name[: i + 1] + name[i:] for i, letter in enumerate(name) if letter.isalpha()]


def _swap(name: str) -> list[str]:
    pairs = enumerate(pairwise(name))
    return [name[:i] + b + a + name[i + 2 :] for i, (a, b) in pairs if a != b and (a + b).isalpha()]


def _joined(name: str) -> list[str]:
    return [name[:i] + name[i + 1 :] for i, letter in enumerate(name) if letter in " -"]


def _order(name: str) -> list[str]:
    first, _, last = name.rpartition(" ")
    return [f"{last} {first}"] if first else []


def _exchange(*spellings: str) -> Kind:
    """Return a kind that replaces one spelling by another; the longest match first; $ matches only at a word's end."""
    longest = sorted(spellings, key=len, reverse=True)
    pattern = re.compile("|".join(spelling.replace("$", r"\b") for spelling in longest))
    plain = [spelling.rstrip("$") for spelling in spellings]

    def kind(name: str) -> list[str]:
        return [
            name[: match.start()] + spelling + name[match.end() :]
            for match in pattern.finditer(name)
            for spelling in plain
            if spelling != match[0]
        ]

    return kind


def _umlaut(name: str) -> list[str]:
    matches = re.finditer("[aou]e?", name)
    return [name[: m.start() + 1] + ("e" if len(m[0]) == 1 else "") + name[m.end() :] for m in matches]


KINDS: dict[str, Kind] = {
    "neighbour": _neighbour,
    "stray": _stray,
    "drop": _drop,
    "double": _double,
    "swap": _swap,
    "ph-f": _exchange("ph", "f"),
    "c-k": _exchange("c", "k", "ck"),
    "y-i": _exchange("y", "i"),
    "z-s": _exchange("z", "s"),
    "v-w": _exchange("v", "w"),
    "th-t": _exchange("th", "t"),
    "oo-u": _exchange("oo", "u", "ou"),
    "sch-sh": _exchange("sch", "sh"),
    "ov-off": _exchange("ov$", "off$", "ow$"),
    "j-y": _exchange("j", "y"),
    "kh-h": _exchange("kh", "h"),
    "ts-tz": _exchange("ts", "tz"),
    "ya-ia": _exchange("ya", "ia"),
    "umlaut": _umlaut,
    "joined": _joined,
    ORDER: _order,
}


def misspell(name: str, kinds: Sequence[str], edits: int, random: np.random.Generator) -> str:
    """Return the folded name after `edits` random edits of `kinds`; fewer if no kind is applicable.

    No edit restores an earlier spelling. Kinds are equally likely, however many spellings each has.
    """
    spellings = [name]
    for _ in range(edits):
        for kind in random.permutation(len(kinds)):
            fresh = [spelling for spelling in KINDS[kinds[kind]](spellings[-1]) if spelling not in spellings]
            if fresh:
                spellings.append(fresh[random.integers(len(fresh))])
                break
    return " ".join(spellings[-1].split())  # dropping the j of "j lo" leaves a leading space
