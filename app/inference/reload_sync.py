"""Propagate model reloads between the worker processes and replicas of one service.

They share a token for each model, in files or in a database, and a reload replaces it. When a token changes, the other
workers read the model's weights again.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress

import structlog

from app.errors import NotFound, VestibuleError
from app.inference.model_manager import ModelManager
from index.errors import GalleryError
from index.protocol import Reloads

log = structlog.get_logger()

POLL_S = 1.0
# Seconds until a failed reload is retried: at first, and at most.
RETRY_S, MAX_RETRY_S = 1.0, 60.0


class ReloadSync:
    """Announces this worker's reloads, and follows those of others. Create it before the weights folder is read, so
    that no reload in between is missed.
    """

    def __init__(self, reloads: Reloads):
        self._reloads = reloads
        self._tokens = dict(reloads.tokens())

    def announce(self, name: str) -> None:
        """Notify the other workers that this worker reloaded the model."""
        self._tokens[name] = uuid.uuid4().hex
        self._reloads.announce(name, self._tokens[name])

    def take_changes(self) -> list[str]:
        """Return the models that other workers reloaded since the last call."""
        tokens = dict(self._reloads.tokens())
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
            # Too many open files, for example, or a database that cannot be reached; retried in the next round.
            except (VestibuleError, GalleryError, OSError) as error:
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
