"""Randomness as a function of where one stands, so that a resumed run needs no generator's state."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *place: str | int) -> int:
    """A seed in 0..2^63-1 for one place, as `derive(seed, "order", epoch)`: unrelated places give unrelated seeds."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *place: str | int) -> torch.Generator:
    """A CPU generator that starts at `derive(seed, *place)`."""
    return torch.Generator().manual_seed(derive(seed, *place))
