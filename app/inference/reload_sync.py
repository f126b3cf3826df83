"""Propagate model reloads between the worker processes of one service.

The state folder has a file for each model, and a reload writes a new token into it. When a token changes, the other
workers read the model's weights again.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from pathlib import Path

import structlog

from app.errors import NotFound, VestibuleError
from app.inference.model_manager import ModelManager
from models.checkpoint import write_atomically

log = structlog.get_logger()

POLL_S = 1.0
# Seconds until a failed reload is retried: at first, and at most.
RETRY_S, MAX_RETRY_S = 1.0, 60.0


class ReloadSync:
    """Announces this worker's reloads, and follows those of others. Create it before the weights folder is read, so
    that no reload in between is missed.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._tokens = self._read_tokens()

    def announce(self, name: str) -> None:
        """Notify the other workers that this worker reloaded the model."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tokens[name] = uuid.uuid4().hex
        write_atomically(self._folder / name, self._tokens[name].encode())

    def take_changes(self) -> list[str]:
        """Return the models that other workers reloaded since the last call."""
        tokens = self._read_tokens()
        names = [name for name, token in tokens.items() if self._tokens.get(name) != token]
        self._tokens = tokens
        return names

    async def follow(self, model_manager: ModelManager) -> None:
        """Reload the models that other workers reload, until cancelled.

        A failed reload is retried after RETRY_S, then with doubled delays up to MAX_RETRY_S, until it succeeds; at once
        if another worker reloads the model again.
        """
        retries: dict[str, tuple[float, float]] = {}  # name -> time of the next attempt, and the delay before it
        while True:
            await asyncio.sleep(POLL_S)
            try:
                names = await model_manager.executors.run_io(self.take_changes)
            except (VestibuleError, OSError) as error:  # too many open files, for example; retried in the next round
                log.error("reloads_not_read", error=str(error))
                continue
            retries |= dict.fromkeys(names, (0.0, 0.0))
            now = time.monotonic()
            for name in [name for name, (when, _) in retries.items() if when <= now]:
                _, delay = retries.pop(name)
                try:
                    with suppress(NotFound):  # the model was added and removed again
                        await model_manager.reload(name)
                except Exception as error:  # any error that a damaged folder causes; the task must go on
                    log.exception("not_reloaded", model=name, error=str(error))
                    delay = min(MAX_RETRY_S, max(RETRY_S, 2 * delay))
                    retries[name] = (time.monotonic() + delay, delay)

    def _read_tokens(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self._folder.glob("[!.]*")}
