"""What the workers of one service tell each other of: that a model was reloaded, so that all of them do.

A file for each model, in the state folder, which changes with each reload. Each worker reads the weights folder for
itself: that is what is served, and this only says when to look.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

import structlog

from app.errors import NotFound, VestibuleError
from app.inference.model_manager import Engine
from models.checkpoint import write_atomically

log = structlog.get_logger()

EVERY_S = 1.0
# Seconds until a reload that failed is tried again: at first, and at most.
RETRY_S, MOST_RETRY_S = 1.0, 60.0


class Reloads:
    """Made before the weights folder is read, so that nothing is missed that is reloaded meanwhile."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._seen = self._told()

    def tell(self, name: str) -> None:
        """This worker reloaded the model."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._seen[name] = uuid.uuid4().hex
        write_atomically(self._folder / name, self._seen[name].encode())

    def news(self) -> list[str]:
        """The models that other workers reloaded since this was asked before."""
        told = self._told()
        names = [name for name, token in told.items() if self._seen.get(name) != token]
        self._seen = told
        return names

    async def follow(self, engine: Engine) -> None:
        """Reload what the others do, for as long as this is not cancelled.

        A reload that fails is tried again after RETRY_S, then after twice as long each time, up to MOST_RETRY_S, until
        it succeeds; at once where the model was reloaded elsewhere meanwhile.
        """
        failed: dict[str, tuple[float, float]] = {}  # name -> when to try again, and the pause until then
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                names = await engine.stored(self.news)
            except (VestibuleError, OSError) as error:  # as of too many open files; the next round asks again
                log.error("reloads_not_read", error=str(error))
                continue
            for name in names:
                failed.pop(name, None)
            now = time.monotonic()
            for name in [*names, *(name for name, (when, _) in failed.items() if when <= now)]:
                _, last = failed.pop(name, (0.0, 0.0))
                try:
                    await engine.reload(name)
                except NotFound:  # the model was added and removed again: there is nothing to serve here either
                    continue
                except Exception as error:  # whatever a damaged folder leads to; the task must go on
                    log.exception("not_reloaded", model=name, error=str(error))
                    pause = min(MOST_RETRY_S, max(RETRY_S, 2 * last))
                    failed[name] = (time.monotonic() + pause, pause)

    def _told(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self._folder.glob("[!.]*")}
