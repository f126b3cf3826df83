"""Ways to misspell a name. `KINDS` is all that `misspell` can do, each a function from a folded name to every spelling
one edit away: typing (a neighbouring key for the right one or beside it, a letter dropped, doubled, swapped with the
next), letters that sound alike (ph and f, c and k), other transliterations (-ov, -off, -ow; kh and h), umlauts spelt
out or bare, words joined, the surname first. Lost diacritics are no kind: folding takes them from both sides.
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
    """The keys that touch each key of an American keyboard, whose rows are set off by half a key."""
    rows = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    place = {key: (2 * column + row, 2 * row) for row, keys in enumerate(rows) for column, key in enumerate(keys)}
    return {
        key: "".join(other for other, (a, b) in place.items() if 0 < abs(a - x) + abs(b - y) <= 3)
        for key, (x, y) in place.items()
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
    """One for another, wherever it stands, the longest that fits; with a $ only at the end of a word."""
    longest = sorted(spellings, key=len, reverse=True)
    pattern = re.compile("|".join(spelling.replace("$", r"\b") for spelling in longest))
    plain = [spelling.rstrip("$") for spelling in spellings]

    def kind(name: str) -> list[str]:
        return [
            name[: match.start()] + other + name[match.end() :]
            for match in pattern.finditer(name)
            for other in plain
            if other != match[0]
        ]

    return kind


def _umlaut(name: str) -> list[str]:
    found = re.finditer("[aou]e?", name)
    return [name[: m.start() + 1] + ("e" if len(m[0]) == 1 else "") + name[m.end() :] for m in found]


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
    """The folded name after that many edits, each of a kind drawn from those that fit; fewer where none fits.

    No edit brings back a spelling that was before. Kinds are equally likely, however many ways each has.
    """
    spellings = [name]
    for _ in range(edits):
        for kind in random.permutation(len(kinds)):
            fresh = [spelling for spelling in KINDS[kinds[kind]](spellings[-1]) if spelling not in spellings]
            if fresh:
                spellings.append(fresh[random.integers(len(fresh))])
                break
    return " ".join(spellings[-1].split())  # of "j lo" a dropped letter may leave a space in front
