"""Identification, counted: who is enrolled is drawn at random, the searches of several draws are pooled.

ISO/IEC 19795-1: FPIR is the share of searches for somebody who is not enrolled that end in a match, a false alarm; FNIR
the share of searches for somebody enrolled that do not end in a match with that person.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

import numpy as np

from training.core.seeds import derive
from training.datasets.images import Indices
from training.datasets.protocols import Search, random_search
from training.metrics.verification import Flags, fmr_interval

T = TypeVar("T")

NOBODY = -1  # the first candidate of a photo in which no face was found


def joined(kind: type[T], parts: Sequence[T]) -> T:
    """One part or more, dataclasses of arrays, end to end."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Searched:
    """Searches [Q]: whose the probe is, whose the first candidate, whether they matched, whether the probe has a mate.

    People are labels, of all pictures the same.
    """

    person: Indices
    candidate: Indices
    match: Flags
    mated: Flags

    @classmethod
    def pooled(cls, draws: Sequence[Searched]) -> Searched:
        """The searches of one draw or more."""
        return joined(cls, draws)

    @property
    def first(self) -> Flags:
        """Whether the first candidate is the one: rank 1, whatever was decided."""
        return np.asarray(self.candidate == self.person)

    @property
    def alarms(self) -> Flags:
        """Of the searches without a mate, which matched."""
        return self.match[~self.mated]

    @property
    def misses(self) -> Flags:
        """Of the searches with a mate, which did not match, or matched another."""
        return ~(self.match & self.first)[self.mated]

    @property
    def no_face(self) -> int:
        """How many probes have no candidate at all."""
        return int((self.candidate == NOBODY).sum())


@dataclass(frozen=True)
class Plan:
    """How long is drawn: at least `fewest` times, then until there are so many false alarms, at most `most` times.

    In every draw all photos of those who are not enrolled are searched, or so many of them as the caller says; after 20
    draws even with half of the people enrolled everybody has been a stranger.
    """

    fewest: int = 20
    alarms: int = 100
    most: int = 40

    def is_done(self, draws: Sequence[Searched]) -> bool:
        """Whether these are enough."""
        alarms = sum(int(draw.alarms.sum()) for draw in draws)
        return len(draws) >= max(self.most, self.fewest) or (len(draws) >= self.fewest and alarms >= self.alarms)


def galleries(labels: Indices, subjects: int, seed: int, limit: int | None = None) -> Iterator[Search]:
    """Without end: one random photo each of so many random people; of the other photos at most `limit` of each kind.

    Raises:
        ValueError: nobody would be left to be a stranger.
    """
    people = len(np.unique(labels))
    if not 0 < subjects < people:
        raise ValueError(f"of {people} people from 1 to {people - 1} can be enrolled, not {subjects}")
    random = np.random.default_rng(derive(seed, "galleries", subjects))
    while True:
        yield thinned(random_search(labels, random, enrolled=subjects / people), limit, random)


def thinned(search: Search, limit: int | None, random: np.random.Generator) -> Search:
    """The search with at most `limit` of its mated probes and of its others, chosen at random."""
    if limit is None:
        return search
    order = random.permutation(len(search.probes))
    mated = search.mates[order] >= 0
    kept = np.sort(np.concatenate([order[mated][:limit], order[~mated][:limit]]))
    return Search(search.gallery, search.probes[kept], search.mates[kept])


class Rate(NamedTuple):
    """A share, 0..1, and where it lies by a bootstrap over identities, 95 %; all NaN of nothing."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, events: Flags, identities: Indices) -> Rate:
        """Of searches: whether it happened [Q], and the two people [Q, 2] each of them hangs on."""
        if not len(events):
            return cls(np.nan, np.nan, np.nan)
        return cls(float(events.mean()), *fmr_interval(events, identities))


def fpir(searched: Searched) -> Rate:
    """The false positive identification rate.

    A search hangs on the probe's person and on the first candidate's: somebody to whom many strangers are near makes
    many alarms, in each draw that enrols them. One that found no face hangs on the probe's person alone.
    """
    person, candidate = searched.person[~searched.mated], searched.candidate[~searched.mated]
    candidate = np.where(candidate == NOBODY, person, candidate)
    return Rate.of(searched.alarms, np.stack([person, candidate], axis=1))


def fnir(searched: Searched) -> Rate:
    """The false negative identification rate: a search hangs on its person."""
    person = searched.person[searched.mated]
    return Rate.of(searched.misses, np.stack([person, person], axis=1))


def figures(searched: Searched, promised: float) -> dict[str, Any]:
    """Both rates by the table's columns; `within_2`: FPIR is from half of what was promised to twice that."""
    alarms, misses = fpir(searched), fnir(searched)
    return {
        "promised": promised,
        "fpir": alarms.value,
        "fpir_low": alarms.low,
        "fpir_high": alarms.high,
        "within_2": promised / 2 <= alarms.value <= promised * 2,
        "fnir": misses.value,
        "fnir_low": misses.low,
        "fnir_high": misses.high,
    }
