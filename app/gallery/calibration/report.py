"""The error rates of a collection before and after its calibration on site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.gallery.calibration.comparisons import Photos
from app.gallery.calibration.schemas import CalibrationReport, GroupErrors, RateChange
from app.gallery.open_set import rate_per_comparison
from models.bootstrap import rate_interval
from models.matching import Matching
from models.site_calibration import ComparedStrangers, fit_site

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Events = Callable[[Matching], Flags]

FMRS, FPIRS = (1e-2, 1e-3), (1e-1, 1e-2)
GROUPED_FMR = 1e-2
MAX_GROUPS = 100
_DRAWS = 200


@dataclass(frozen=True)
class Searched:
    """Searches [S] of the calibrated collection: person of the photo, and similarity of the first candidate.

    `correct` [S]: the first candidate is the photo's own subject. `faces`: of the collection.
    """

    people: Indices
    similarities: Floats
    correct: Flags
    faces: int


class ReportBuilder:
    """Measures error rates by the calibration `before` and by new ones, fitted to halves of the strangers."""

    def __init__(self, before: Matching, strangers: Photos, compared: ComparedStrangers):
        self._before = before
        self._strangers = strangers
        self._compared = compared
        order = np.random.default_rng(0).permutation(len(strangers.keys))
        self._halves = order[: len(order) // 2], order[len(order) // 2 :]
        self._fits = [self._fit(half) for half in self._halves]

    def _fit(self, half: Indices) -> Matching | None:
        pairs = self._compared.of_people(half)
        try:
            return fit_site(self._before, pairs.similarities, "half")
        except ValueError:  # too few comparisons
            return None

    def report(self, strangers: Searched | None, mated: Searched | None, mated_pairs: int) -> CalibrationReport:
        """Return the report; `strangers` and `mated` are searches of photos in the calibrated collection."""
        return CalibrationReport(
            people=len(self._strangers.keys),
            photos=len(self._strangers.people),
            comparisons=len(self._compared.similarities),
            mated=mated_pairs,
            fmr=[self._fmr(rate) for rate in FMRS if rate * len(self._compared.similarities) >= 1],
            fpir=[self._searches(strangers, rate, alarms=True) for rate in FPIRS] if strangers else [],
            fnir=[self._searches(mated, rate, alarms=False) for rate in FPIRS] if mated else [],
            groups=self._groups(),
        )

    def _fmr(self, rate: float) -> RateChange:
        before = self._compared.similarities >= self._before.threshold(rate).similarity
        return _change(rate, before, self._compared.people, self._held_out(rate))

    def _held_out(self, rate: float) -> tuple[Flags, Indices] | None:
        """Return false matches in the comparisons of one half by the thresholds of the other, and their people."""
        accepted, people = [], []
        for half, fit in zip(self._halves, reversed(self._fits), strict=True):
            if fit is None:
                return None
            pairs = self._compared.of_people(half)
            accepted.append(pairs.similarities >= fit.threshold(rate).similarity)
            people.append(pairs.people)
        return np.concatenate(accepted), np.concatenate(people)

    def _searches(self, searched: Searched, fpir: float, *, alarms: bool) -> RateChange:
        """Return the change of the FPIR, or of the FNIR of mated searches, of any half's fit for people in neither."""
        fmr = rate_per_comparison(fpir, searched.faces)

        def events(matching: Matching) -> Flags:
            threshold = matching.threshold(min(fmr, matching.points[0].fmr)).similarity
            matched = searched.similarities >= threshold
            return matched if alarms else ~(matched & searched.correct)

        people = np.stack([searched.people, searched.people], axis=1)
        first, second = self._fits
        after = None
        if first is not None and second is not None:
            in_first = np.isin(searched.people, self._halves[0]) if alarms else searched.people % 2 == 0
            after = np.where(in_first, events(second), events(first)), people
        return _change(fpir, events(self._before), people, after)

    def _groups(self) -> list[GroupErrors]:
        """Return the errors of strangers by each value of each metadata field."""
        held_out = self._held_out(GROUPED_FMR)
        threshold = self._before.threshold(GROUPED_FMR).similarity
        members: dict[tuple[str, str], list[int]] = {}
        for person, metadata in enumerate(self._strangers.metadata):
            for field, value in metadata.items():
                if isinstance(value, str | int | float | bool):
                    members.setdefault((field, str(value)), []).append(person)
        groups = []
        for (field, value), people in sorted(members.items())[:MAX_GROUPS]:
            own = np.isin(self._compared.people, people).any(axis=1)
            accepted = self._compared.similarities[own] >= threshold
            later = None
            if held_out is not None and (mine := np.isin(held_out[1], people).any(axis=1)).any():
                later = float(held_out[0][mine].mean())
            groups.append(
                GroupErrors(
                    field=field,
                    value=value,
                    people=len(people),
                    comparisons=int(own.sum()),
                    before=float(accepted.mean()) if len(accepted) else 0.0,
                    after=later,
                )
            )
        return groups


def _change(requested: float, before: Flags, people: Indices, after: tuple[Flags, Indices] | None) -> RateChange:
    def measure(events: Flags, people: Indices) -> tuple[float, float, float]:
        return float(events.mean()), *rate_interval(events, people, np.random.default_rng(0), draws=_DRAWS)

    rate, low, high = measure(before, people)
    new_rate, new_low, new_high = measure(*after) if after else (None, None, None)
    return RateChange(
        requested=requested,
        comparisons=len(before),
        before=rate,
        before_low=low,
        before_high=high,
        after=new_rate,
        after_low=new_low,
        after_high=new_high,
    )
