"""Responses that are images."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class File:
    """An image as the bytes of a file. `seed` generates it again; None if it was decoded from latents."""

    content: bytes = field(repr=False)
    media_type: str
    seed: int | None = None
    etag: str | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bytes to a file, which is overwritten."""
        Path(path).write_bytes(self.content)
