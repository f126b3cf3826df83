"""Store the sightings of ended passages: search a last time, decide, and send, until the service has stored each."""

from __future__ import annotations

import asyncio
import time

from app.watch.decisions import PendingSighting, better
from app.watch.events import Events
from app.watch.metrics import Counts
from app.watch.recognition import FINAL_SHARE, Recognition
from app.watch.sighting_queue import LONGEST_PENDING_S, QueueEntry, SightingQueue
from app.watch.source.reader import backoff
from vestibule_client import (
    BadRequest,
    Conflict,
    NotFound,
    Problem,
    TooLarge,
    Unprocessable,
    UnsupportedMedia,
    VestibuleError,
)

# Problems that a repetition of the same request does not solve.
PERMANENT = (BadRequest, NotFound, Conflict, TooLarge, UnsupportedMedia, Unprocessable)


class SightingDelivery:
    """Sends the sightings of a queue in order, one at a time."""

    def __init__(self, queue: SightingQueue, recognition: Recognition, events: Events, counts: Counts) -> None:
        self._queue = queue
        self._recognition = recognition
        self._events = events
        self._counts = counts
        self._added = asyncio.Event()
        self._ending = self._stopping = False

    async def add(self, sighting: PendingSighting) -> None:
        """Add a passage that has ended to the queue; it is on the disk when this returns, unless the disk is full."""
        try:
            lost, detail = await asyncio.to_thread(self._queue.add, sighting), "the queue is full"
        except OSError as error:
            lost, detail = 1, error.strerror or str(error)
        if lost:
            self._counts.lost += lost
            self._events.report("sightings_lost", count=lost, detail=detail)
        self._added.set()

    def stop(self, *, wait: bool) -> None:
        """Let `run` return as soon as the queue is empty, or unless `wait`, the service does not accept a sighting."""
        self._ending, self._stopping = True, not wait
        self._added.set()

    async def run(self) -> None:
        """Send sightings until stopped."""
        attempt = 0
        while True:
            self._added.clear()
            entry = await asyncio.to_thread(self._queue.first)
            if entry is None:
                if self._ending:
                    return
                await self._added.wait()
                continue
            try:
                await self._deliver(entry)
                attempt = 0
            except PERMANENT as error:
                self._refused(entry, error)
            except VestibuleError as error:
                if self._stopping:
                    return
                wait = max(backoff(attempt), (error.retry_after or 0.0) if isinstance(error, Problem) else 0.0)
                attempt += 1
                self._events.report("sighting_delayed", passage=entry.sighting.passage, detail=str(error), wait_s=wait)
                await self._wait(wait)

    async def _wait(self, seconds: float) -> None:
        """Wait; a stop ends the wait."""
        deadline = time.monotonic() + seconds
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            self._added.clear()
            try:
                await asyncio.wait_for(self._added.wait(), left)
            except TimeoutError:
                return

    async def _deliver(self, entry: QueueEntry) -> None:
        """Decide on a passage and store its sighting.

        Raises:
            VestibuleError: it is not stored.
        """
        sighting = entry.sighting
        if time.time() - sighting.ended_at > LONGEST_PENDING_S:
            await asyncio.to_thread(self._queue.remove, entry)
            self._counts.lost += 1
            self._events.report("sightings_lost", count=1, passage=sighting.passage, detail="older than a day")
            return
        if not sighting.decided:
            self._counts.searches += 1
            final = await self._recognition.search(sighting.shots, FINAL_SHARE)
            decision = better(sighting.decision, final)
            sighting = sighting.model_copy(update={"decision": decision, "decided": True, "shots": sighting.shots[:1]})
            # The request that stores the sighting is repeated with the same key, so it must stay the same.
            entry = await asyncio.to_thread(self._queue.update, entry, sighting)
        assert sighting.decision is not None  # noqa: S101  it is decided
        stored = await self._recognition.store(sighting)
        await asyncio.to_thread(self._queue.remove, entry)
        self._counts.stored += 1
        self._events.report(
            "sighting",
            passage=sighting.passage,
            **sighting.decision.fields(),
            sighting=stored,
            frames=sighting.frames,
            seconds=round(sighting.ended_at - sighting.started_at, 2),
        )

    def _refused(self, entry: QueueEntry, error: VestibuleError) -> None:
        self._queue.remove(entry)
        self._counts.refused += 1
        self._events.report("sighting_refused", passage=entry.sighting.passage, detail=str(error))
