"""The watcher's requests to the service: detect, search for a passage, compare two faces, store a sighting."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from PIL import Image

from app.watch.decisions import PassageDecision, PendingSighting
from app.watch.settings import WatchSettings
from app.watch.shots import Shot
from app.watch.tracker import Box
from vestibule_client import AsyncClient, NoFace, Unprocessable
from vestibule_client.answers import Face

# Uncertain detections continue tracks, see `tracker.CONFIDENT`.
DETECTION_THRESHOLD = 0.3
# The service's default for the smallest face, in pixels and as a share of the longer side (see `POST /faces/detect`),
# and the side in pixels that a face needs to be detected.
MIN_FACE, MIN_FACE_SHARE, DETECTABLE = 40.0, 40.0, 16.0
# A larger frame is reduced before it is sent, as far as the smallest face stays detectable.
MAX_SIDE = 1920
FRAME_QUALITY = 90
# The false match rate at which two tracks that follow each other are the same person. Where people follow each other
# closely, most comparisons are of two persons: of 120 synthetic walks of the calibration identities, 0.01 mixes the
# faces of two persons in 6 passages, 0.001 in 4, and with each of them one walk is in two pieces.
SAME_PERSON_FMR = 0.001
# Shares of the caller's FPIR: of the search at the end, and of each search before it, of which there are at most three.
# They add up to 1, so that the FPIR of the passage with all its searches is at most the caller's.
FINAL_SHARE, LOOK_SHARE = 1 / 2, 1 / 6


class Recognition:
    """The requests of one camera."""

    def __init__(self, client: AsyncClient, settings: WatchSettings) -> None:
        """Use `client` for all requests."""
        self._client = client
        self._settings = settings
        self._embedder: str | None = None

    async def check(self) -> None:
        """Check that the service responds, that the collection exists, and that the key may search and add sightings.

        Raises:
            VestibuleError.
        """
        await self.search([_reduced_jpeg(Image.new("RGB", (64, 64)), (64, 64))], FINAL_SHARE)
        now = datetime.now(UTC)
        # A sighting in no frames is invalid, so that nothing is stored; a key without the scope is refused before that.
        with suppress(Unprocessable):
            await self._client.add_sighting(self._settings.collection, self._settings.camera, now, now, frames=0)

    async def detect(self, image: Image.Image) -> list[Face]:
        """Return the faces of a frame, with boxes in pixels of the frame.

        Raises:
            VestibuleError.
        """
        longest = max(image.size)
        min_face = self._settings.min_face or min(MIN_FACE, longest / MIN_FACE_SHARE)
        # Detection reduces the frame to the scale at which the smallest face has DETECTABLE pixels. A frame that is
        # reduced less than that beforehand has the same faces.
        scale = min(1.0, max(MAX_SIDE / longest, DETECTABLE / min_face))
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        jpeg = await asyncio.to_thread(_reduced_jpeg, image, (width, height))
        answer = await self._client.detect(jpeg, threshold=DETECTION_THRESHOLD, min_face=max(8.0, min_face * scale))
        return [_enlarged(face, image.width / width, image.height / height) for face in answer.first.faces]

    async def search(self, shots: Sequence[bytes], share: float) -> PassageDecision:
        """Search for the person whom all shots, JPEG files, show, at this share of the FPIR.

        Raises:
            VestibuleError.
        """
        answer = await self._client.search_passage(
            list(shots),
            self._settings.collection,
            limit=1,
            fpir=self._settings.fpir * share,
            where=self._settings.where,
        )
        self._embedder = answer.model
        nearest = answer.candidates[0] if answer.candidates else None
        matched = nearest if answer.status == "match" else None
        return PassageDecision(
            status=answer.status,
            subject=matched.subject_id if matched else None,
            name=matched.name if matched else None,
            probability=nearest.probability if nearest else None,
            distance=nearest.distance if nearest else None,
            threshold=answer.threshold,
            shots=answer.frames,
            reasons=answer.reasons,
        )

    async def same_person(self, one: Shot, other: Shot) -> bool:
        """Return whether two shots show the same person; false if the face of either is not detected again.

        Raises:
            VestibuleError.
        """
        try:
            answer = await self._client.verify(one.jpeg, other.jpeg, model=self._embedder, fmr=SAME_PERSON_FMR)
        except NoFace:
            return False
        return answer.verified

    async def store(self, sighting: PendingSighting) -> str:
        """Store a decided sighting and return its id. Repeated calls store it once.

        Raises:
            VestibuleError.
        """
        decision = sighting.decision
        assert decision is not None  # noqa: S101  it is decided
        stored = await self._client.add_sighting(
            self._settings.collection,
            self._settings.camera,
            datetime.fromtimestamp(sighting.started_at, UTC),
            datetime.fromtimestamp(sighting.ended_at, UTC),
            sighting.frames,
            subject_id=decision.subject,
            probability=decision.probability,
            distance=decision.distance,
            # The promise for all searches of the passage, see FINAL_SHARE.
            fpir=self._settings.fpir,
            threshold=decision.threshold,
            crop=sighting.shots[0] if self._settings.keep_shot else None,
            idempotency_key=sighting.passage,
        )
        return stored.id


def box_in_widths(face: Face, image: Image.Image) -> Box:
    """Return the face's box in widths of the frame, for the tracker."""
    left, top, right, bottom = (side / image.width for side in face.box)
    return left, top, right, bottom


def _reduced_jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    image = image if image.size == size else image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    image.save(buffer, "JPEG", quality=FRAME_QUALITY)
    return buffer.getvalue()


def _enlarged(face: Face, across: float, down: float) -> Face:
    """Return a face of a reduced frame with its box and side in pixels of the frame."""
    if across == down == 1:
        return face
    left, top, right, bottom = face.box
    box = (left * across, top * down, right * across, bottom * down)
    return face.model_copy(
        update={"box": box, "quality": face.quality.model_copy(update={"side": face.quality.side * across})}
    )
