"""The thresholds of a collection: those of a calibration on site, or of the embedder's card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from index.types import Calibration
from models.card import ModelCard
from models.matching import Matching
from models.site_calibration import shift_passages


@dataclass(frozen=True)
class CollectionThresholds:
    """How similarities are interpreted: of two faces, and of the fused frames of passages; see `ModelCard`."""

    matching: Matching | None
    passages: tuple[Matching, ...]


def collection_thresholds(card: ModelCard, calibration: Calibration | None) -> CollectionThresholds:
    """Return the thresholds of a collection with this embedder and this calibration in use."""
    if calibration is None or card.matching is None:
        return CollectionThresholds(card.matching, card.passages)
    return _of_site(card.sha256, card.matching, card.passages, calibration.data)


@lru_cache(maxsize=64)
def _of_site(weights: str, matching: Matching, passages: tuple[Matching, ...], data: str) -> CollectionThresholds:
    """`weights` is the card's hash, by which the cache distinguishes cards."""
    site = Matching.model_validate(json.loads(data)["matching"])
    return CollectionThresholds(site, shift_passages(passages, matching, site))
