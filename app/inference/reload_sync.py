"""What the workers of one service tell each other of: that a model was reloaded, so that all of them do.

A file for each model, in the state folder, which changes with each reload. Each worker reads the weights folder for
itself: that is what is served, and this only says when to look.
"""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import structlog

from app.errors import VestibuleError
from app.inference.model_manager import ModelManager
from models.checkpoint import write_atomically

log = structlog.get_logger()

EVERY_S = 1.0


class ReloadSync:
    """Made before the weights folder is read, so that nothing is missed that is reloaded meanwhile."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._seen = self._told()

    def announce(self, name: str) -> None:
        """This worker reloaded the model."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._seen[name] = uuid.uuid4().hex
        write_atomically(self._folder / name, self._seen[name].encode())

    def take_changes(self) -> list[str]:
        """The models that other workers reloaded since this was asked before."""
        told = self._told()
        names = [name for name, token in told.items() if self._seen.get(name) != token]
        self._seen = told
        return names

    async def follow(self, model_manager: ModelManager) -> None:
        """Reload what the others do, for as long as this is not cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                names = await model_manager.executors.run_io(self.take_changes)
            except (VestibuleError, OSError) as error:  # as of too many open files; the next round asks again
                log.error("reloads_not_read", error=str(error))
                continue
            for name in names:
                try:
                    await model_manager.reload(name)
                except Exception as error:  # whatever a damaged folder leads to; the task must go on
                    log.exception("not_reloaded", model=name, error=str(error))

    def _told(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self._folder.glob("[!.]*")}
