"""The decision on a passage, and the sighting that waits to be stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class PassageDecision:
    """The answer of a search: `match`, `unknown`, or `rejected` if no shot has a face.

    `subject` and `name` are of a match; `probability` and `distance` of the nearest subject, or None.
    """

    status: str
    subject: str | None
    name: str | None
    probability: float | None
    distance: float | None
    threshold: float | None
    shots: int
    reasons: list[str]

    @property
    def matched(self) -> bool:
        """Whether it names a subject."""
        return self.status == "match"

    def fields(self) -> dict[str, Any]:
        """Return the fields of an event: all but an empty list of reasons."""
        return {**asdict(self), "reasons": self.reasons or None}


def better(first: PassageDecision | None, final: PassageDecision) -> PassageDecision:
    """Return the decision on a passage: the last search's, or an earlier match if the last search has none."""
    return first if first is not None and first.matched and not final.matched else final


class PendingSighting(BaseModel):
    """A passage that has ended. `decision` is final if `decided`, else the best one that was made while in view.

    Times are Unix times; `shots` are JPEG files, the best first, only the best one of them once it is decided.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    passage: str
    started_at: float
    ended_at: float
    frames: int
    shots: list[bytes]
    decision: PassageDecision | None
    decided: bool = False
