"""Reloads of models, which the processes of one machine share: a file for each model with its token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from index.folders import write_atomically


class FileReloads:
    """The tokens in a folder, which is created with the first one; see `index.protocol.Reloads`."""

    def __init__(self, folder: Path):
        self._folder = folder

    def tokens(self) -> Mapping[str, str]:
        """See `Reloads`."""
        return {path.name: path.read_text() for path in self._folder.glob("[!.]*")}

    def announce(self, model: str, token: str) -> None:
        """See `Reloads`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / model, [token.encode()])
