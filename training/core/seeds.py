"""Seeds that depend on the position in a run, so that a resumed run needs no saved generator state."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *position: str | int) -> int:
    """Return a seed, 0..2^63-1, that is a hash of `seed` and `position`, as in `derive(seed, "order", epoch)`."""
    digest = hashlib.sha256(repr((seed, *position)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *position: str | int) -> torch.Generator:
    """Return a CPU generator with the seed `derive(seed, *position)`."""
    return torch.Generator().manual_seed(derive(seed, *position))
