"""Alerts as server-sent events: each client reads the stored alerts behind its own position, so that none is queued.

A client that was away continues behind the event that it names in `Last-Event-ID`. A stream ends after STREAM_S: the
client connects again, with a key that is checked again. It ends at shutdown, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

from app.alerts.payload import encode, payload
from app.background_tasks import wait_for_event
from app.errors import Overloaded
from app.inference.executors import Executors
from index.errors import GalleryError
from index.protocol import Alerts

STREAM_S = 600.0
KEEP_ALIVE_S = 15.0  # shorter than the idle time-outs of proxies
POLL_S = 0.5
PAGE = 100
# What a client does when the stream ends: connect again after so many milliseconds.
RETRY_MS = 2000


class AlertStreams:
    """The event streams of this process, of which `most` may be open.

    `is_stopping`: whether the service stops; streams then end within POLL_S.
    """

    def __init__(self, alerts: Alerts, executors: Executors, most: int, is_stopping: Callable[[], bool]):
        self._alerts = alerts
        self._executors = executors
        self._most = most
        self._is_stopping = is_stopping
        self._open = 0
        self._last = 0  # the position of the last alert that any process has stored
        self._added = asyncio.Event()  # set, and replaced, whenever there are new alerts

    async def work(self) -> None:
        """Look for new alerts while there are streams, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            if not self._open:
                continue
            try:
                last = await self._executors.run_background(self._alerts.last_position)
            except GalleryError:  # a database that cannot be reached; the streams wait
                continue
            if last != self._last or self._is_stopping():
                self._last = last
                self._added.set()
                self._added = asyncio.Event()

    async def open(self, after: int | None, collection: str | None) -> AsyncIterator[bytes]:
        """Return the events behind the position `after` (None: from now on), of one collection or of all (None).

        Raises:
            Overloaded: `most` streams are open.
        """
        if self._open >= self._most:
            raise Overloaded("the limit of event streams is reached", {"Retry-After": "5"})
        self._open += 1  # before anything is awaited; `_events` counts it as closed
        try:
            position = after
            if position is None:
                position = await self._executors.run_io(self._alerts.last_position)
        except BaseException:
            self._open -= 1
            raise
        return self._events(position, collection)

    async def _events(self, position: int, collection: str | None) -> AsyncIterator[bytes]:
        try:
            yield f"retry: {RETRY_MS}\nid: {position}\n: connected\n\n".encode()
            ends_at = time.monotonic() + STREAM_S
            while not self._is_stopping() and time.monotonic() < ends_at:
                added = self._added  # taken before reading, so that no alert is missed
                page = await self._executors.run_io(partial(self._alerts.page, position, PAGE))
                for alert in page:
                    position = alert.position
                    if collection in (None, alert.rule.collection):
                        yield event(position, encode(payload(alert)))
                if not page:
                    await wait_for_event(added, KEEP_ALIVE_S)
                    if not added.is_set():
                        yield b": keep-alive\n\n"
        finally:
            self._open -= 1


def event(position: int, data: bytes) -> bytes:
    """Return an event of the type "alert". The data are JSON in one line."""
    return b"id: %d\nevent: alert\ndata: %b\n\n" % (position, data)
