"""Answers that are pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class File:
    """A picture as the bytes of a file. `seed` draws it again; None where it was drawn from latents."""

    content: bytes = field(repr=False)
    media_type: str
    seed: int | None = None
    etag: str | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, in place of what is there."""
        Path(path).write_bytes(self.content)
