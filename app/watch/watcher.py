"""The watcher: takes frames, follows faces, searches while people are in view, and stores a sighting at the end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from dataclasses import asdict
from functools import partial
from typing import Any

from app.watch.decisions import PendingSighting
from app.watch.delivery import PERMANENT, SightingDelivery
from app.watch.events import Events
from app.watch.metrics import WatchMetrics
from app.watch.passages import Passages, TrackedPassage
from app.watch.recognition import LOOK_SHARE, Recognition, box_in_widths
from app.watch.shots import crop_jpeg
from app.watch.sighting_queue import SightingQueue
from app.watch.source.frames import Frame, FrameError, Source
from app.watch.source.reader import FrameReader, backoff
from app.watch.tracker import Detection, Tracker
from vestibule_client import Forbidden, Unauthorized, VestibuleError
from vestibule_client.answers import Face

# The most shots of a search before the end, which must answer soon.
LOOK_SHOTS = 4
# How often the ends of passages are looked for while no frame arrives.
IDLE_S = 0.25
SUMMARY_S = 60.0
# After a stop, and at the end of a recording, sightings are sent for at most this long; the others are sent at the next
# start. Supervisors kill a process that does not stop within some seconds.
STOP_S, END_S = 8.0, 600.0
# Problems that end the watcher at its start, since waiting does not solve them. Later it goes on, as keys are replaced.
REFUSALS = (*PERMANENT, Unauthorized, Forbidden)


class CameraWatcher:
    """Watches one source, in one event loop."""

    def __init__(
        self, source: Source, recognition: Recognition, queue: SightingQueue, events: Events, *, fps: float
    ) -> None:
        self.metrics = WatchMetrics()
        self._source = source
        self._recognition = recognition
        self._queue = queue
        self._events = events
        self._delivery = SightingDelivery(queue, recognition, events, self.metrics.counts)
        self._reader = FrameReader(source, fps=fps, lost=self._source_lost, found=self._source_found)
        self._tracker = Tracker()
        self.passages = Passages()
        self._requests: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._next_summary = time.monotonic() + SUMMARY_S
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Stop waiting and reading; `run` stores the open passages and returns. Call it in the event loop."""
        self._stopping.set()
        self._reader.stop()

    async def wait_for_service(self) -> None:
        """Return when the service accepts the camera's requests, or after `stop`.

        Raises:
            VestibuleError: the service refuses them: the collection, the key or its scopes are wrong.
        """
        while not self._stopping.is_set():
            try:
                await self._recognition.check()
            except REFUSALS:
                raise
            except VestibuleError as error:
                await self._wait_after(error)
            else:
                self._note_response()
                return

    async def run(self) -> None:
        """Watch until the end of the source, or until stopped.

        Raises:
            SourceError: the source cannot be read. The passages until then are stored.
        """
        delivering = asyncio.create_task(self._delivery.run())
        self._reader.start()
        try:
            while not self._reader.ended:
                frame = await asyncio.to_thread(self._reader.take, IDLE_S)
                if frame is not None:
                    await self._process(frame)
                elif self._source.live:
                    await self._end_passages(time.monotonic())
                await self._collect()
                if delivering.done():
                    await delivering
                self._summarise_if_due()
        finally:
            self._reader.stop()
            await self._finish(delivering)

    async def _process(self, frame: Frame) -> None:
        """Detect the faces of a frame and follow them."""
        # The frames of a recording wait until they are taken, which is no latency.
        begun = frame.read_at if self._source.live else time.monotonic()
        try:
            faces = await self._detect(frame)
        except FrameError as error:
            self.metrics.counts.failed += 1
            self._events.report("frame_skipped", detail=str(error))
            return
        if faces is None:
            self.metrics.counts.failed += 1
        else:
            self.metrics.frame.add(time.monotonic() - begun)
            self.metrics.counts.processed += 1
            self.metrics.counts.faces += len(faces)
            await self._follow(frame, faces, begun)
            self._begin_requests()
        await self._end_passages(frame.time)

    async def _detect(self, frame: Frame) -> list[Face] | None:
        """Return the faces of a frame, or None if the service does not answer. A recording waits until it does.

        Raises:
            FrameError.
        """
        image = await asyncio.to_thread(lambda: frame.image)
        while True:
            try:
                faces = await self._recognition.detect(image)
            except VestibuleError as error:
                await self._wait_after(error)
                if self._source.live or self._stopping.is_set():
                    return None
                continue
            self._note_response()
            return faces

    async def _wait_after(self, error: VestibuleError) -> None:
        """Report that the service failed, and wait the longer the more often it failed; a stop ends the wait."""
        seconds = backoff(self._failures)
        self._failures += 1
        self._events.report("service_failed", detail=str(error), wait_s=seconds)
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    def _note_response(self) -> None:
        """Report that the service works again, if it failed before."""
        if self._failures:
            self._failures = 0
            self._events.report("service_recovered")

    async def _follow(self, frame: Frame, faces: list[Face], begun: float) -> None:
        """Assign the faces to passages and keep the best shots."""
        detections = [Detection(box_in_widths(face, frame.image), face.confidence) for face in faces]
        for face, track in zip(faces, self._tracker.update(detections, frame.time), strict=True):
            if track is None:
                continue
            passage = self.passages.of(track, frame)
            passage.observe(face, frame, begun)
            await asyncio.to_thread(passage.shots.offer, face, frame.time, partial(crop_jpeg, frame.image, face.box))
            if passage.confirmed and not passage.announced:
                passage.announced = True
                self._events.report("passage", passage=passage.id)

    def _begin_requests(self) -> None:
        """Begin the comparisons and searches that the passages need."""
        for passage in self.passages:
            if passage.looking or passage.comparing or not passage.confirmed:
                continue
            if passage.usable_since is None:
                continue
            if (earlier := self.passages.predecessor(passage)) is not None:
                passage.comparing = earlier.comparing = True
                self._begin(self._compare(earlier, passage))
            elif passage.wants_look:
                passage.begin_look()
                self._begin(self._look(passage))

    def _begin(self, request: Coroutine[Any, Any, None]) -> None:
        self._requests.add(asyncio.create_task(request))

    async def _collect(self) -> None:
        """Raise the exception of a request that failed for another reason than the service, and forget the others."""
        done = {task for task in self._requests if task.done()}
        self._requests -= done
        await asyncio.gather(*done)

    async def _compare(self, earlier: TrackedPassage, later: TrackedPassage) -> None:
        """Find out whether the later passage continues the earlier one, by the best shot of each."""
        self.metrics.counts.comparisons += 1
        try:
            same = await self._recognition.same_person(earlier.shots.best_first[0], later.shots.best_first[0])
        except VestibuleError as error:
            same = False
            self._events.report("comparison_failed", passage=later.id, detail=str(error))
        earlier.comparing = later.comparing = False
        later.compared.add(earlier.id)
        if same:
            self._merge(earlier, later)

    def _merge(self, earlier: TrackedPassage, later: TrackedPassage) -> None:
        self.passages.merge(earlier, later)
        self.metrics.counts.merged += 1
        self._events.report("passage_continued", passage=earlier.id, by=later.id)

    async def _look(self, passage: TrackedPassage) -> None:
        """Search for the person while in view."""
        self.metrics.counts.searches += 1
        shots = [shot.jpeg for shot in passage.shots.best_first[:LOOK_SHOTS]]
        try:
            decision = await self._recognition.search(shots, LOOK_SHARE)
        except VestibuleError as error:
            passage.fail_look()
            self._events.report("search_failed", passage=passage.id, detail=str(error))
            return
        if passage.decision is None and passage.usable_since is not None:
            self.metrics.answer.add(time.monotonic() - passage.usable_since)
        passage.end_look(decision)
        self._events.report("answer", passage=passage.id, **decision.fields())

    async def _end_passages(self, now: float) -> None:
        """Queue the passages that ended before `now`, in seconds on the source's clock."""
        self._merge_adjacent(now)
        for passage in self.passages.take_ended(now):
            await self._end(passage)

    def _merge_adjacent(self, now: float) -> None:
        """Continue passages that end now by those near them that have no usable shot to compare."""
        while (pair := self.passages.adjacent(now)) is not None:
            self._merge(*pair)

    async def _end(self, passage: TrackedPassage) -> None:
        if not passage.confirmed:
            self.metrics.counts.discarded += 1
            return
        self.metrics.counts.passages += 1
        await self._delivery.add(
            PendingSighting(
                passage=passage.id,
                started_at=passage.started_at,
                ended_at=passage.ended_at,
                frames=passage.detections,
                shots=[shot.jpeg for shot in passage.shots.best_first],
                decision=passage.decision,
            )
        )

    async def _finish(self, delivering: asyncio.Task[None]) -> None:
        """End all passages, send sightings for a limited time, and report the summary."""
        await asyncio.gather(*self._requests)
        self._merge_adjacent(math.inf)
        for passage in self.passages.take_all():
            await self._end(passage)
        self._delivery.stop(wait=not self._stopping.is_set())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({delivering, stopping}, timeout=END_S, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        self._delivery.stop(wait=False)
        try:
            await asyncio.wait_for(delivering, STOP_S)
        except TimeoutError:
            self._events.report("sightings_pending", count=len(self._queue))
        self._report_summary()

    def _summarise_if_due(self) -> None:
        if time.monotonic() >= self._next_summary:
            self._next_summary += SUMMARY_S
            self._report_summary()

    def _report_summary(self) -> None:
        counts = asdict(self._reader.counts)
        self._events.report("summary", **counts, **self.metrics.summary(), pending=len(self._queue))

    def _source_lost(self, problem: str, wait: float) -> None:
        self._events.report("source_lost", detail=problem, wait_s=wait)

    def _source_found(self) -> None:
        self._events.report("source_found")
