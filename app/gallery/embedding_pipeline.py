"""From a picture to what a collection can hold: the faces in it, or all of it, as vectors of one fingerprint."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import quote

from PIL import Image
from pydantic_core import to_jsonable_python
from torch import Tensor

from app.errors import Conflict, DeadlineExceeded, Locked, NotFound, NotReady, Overloaded, Unprocessable, full_disk
from app.faces.schemas import DetectedFace
from app.faces.service import DETECTION_THRESHOLD, AlignedFace, Faces, ScaleRule, by_prominence
from app.gallery.schemas import EnrolParams, ErasureReceipt, RejectedFace, RejectedReason, moment
from app.inference.loaded_model import LoadedModel
from app.inference.predictor import Predictor
from index import errors as index_errors
from index.embedded.store.ledger import Change
from index.embedded.store.records import Collection, NewFace, Receipt
from models import align, detection_scale
from models.detection_scale import Scales

T = TypeVar("T")
U = TypeVar("U")

CROP_QUALITY = 90  # of WebP
# They pass: what they hit in the background is tried again.
TRANSIENT = (Overloaded, DeadlineExceeded, NotReady)


class Switched(Exception):
    """The collection was embedded anew between a picture's vector and what it was made for."""


@dataclass(frozen=True)
class Seen:
    """A face of a picture (None: the whole picture) and its vector, float32 [D] of length 1."""

    found: AlignedFace | None
    described: DetectedFace | None
    vector: Tensor

    @property
    def prominence(self) -> float:
        """See `detector.prominence`; 0 for the whole picture, which is alone."""
        return self.found.prominence if self.found else 0.0


@dataclass(frozen=True)
class Sight:
    """What makes vectors of one fingerprint: an embedder and, where it sees faces, the detector before it.

    A request that holds one keeps the same two models, whatever is reloaded meanwhile. `scales` names the rule for
    detection scales: "whole" detects at the detector's size only, as in all collections that were made before there was
    another rule; "min-face" is `detection_scale.scan` with its default.
    """

    model: LoadedModel
    finder: LoadedModel | None
    scales: Scales = "min-face"

    @property
    def rule(self) -> ScaleRule:
        """At which scales faces are looked for."""
        return detection_scale.whole if self.scales == "whole" else detection_scale.scan

    @property
    def fingerprint(self) -> str:
        """Of all that lies between a picture and its vector."""
        card = self.model.card
        parts: dict[str, object] = {
            "weights": card.sha256,
            "preprocess": card.preprocess.model_dump(mode="json"),
            "tta": card.tta,
        }
        if self.finder is not None:
            parts |= {"detector": self.finder.card.sha256, "alignment": [align.TEMPLATE, align.SIDE]}
            # The first rule is not named, so that the fingerprints of collections that keep it stay what they were.
            if self.scales != "whole":
                numbers = detection_scale.SMALLEST, detection_scale.MIN_FACE, detection_scale.SHARE
                parts["detection_scale"] = [self.scales, *numbers]
        text = json.dumps(parts, sort_keys=True)
        return f"{card.name}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Pipeline:
    """What the use cases of the gallery share: its answers, and what a collection's embedder makes of a picture."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.model_manager = predictor.model_manager
        self.executors = predictor.executors
        self._faces = Faces(predictor)

    async def ask(self, question: Callable[[], T]) -> T:
        """Return what the gallery answers to a read, which runs in a thread.

        Raises:
            NotFound, Conflict, Locked, Unprocessable.
        """
        with _translated():
            return await self.executors.run_io(question)

    async def work(self, step: Callable[[], T]) -> T:
        """Run a step of background work, which may wait for commits, in a thread that no request needs.

        Raises:
            NotFound, Conflict, Locked, Unprocessable, DiskFull.
        """
        with _translated():
            return await self.executors.run_background(step)

    async def commit(self, change: Change[T], answer: Callable[[T], U]) -> U:
        """Commit the change and return `answer` of its result. No thread waits for the disk.

        The answer is made and serialised before the commit: where that fails, nothing is changed.

        Raises:
            NotFound, Conflict, Locked, Unprocessable, DiskFull.
        """

        def serialised(result: T) -> U:
            made = answer(result)
            json.dumps(to_jsonable_python(made), ensure_ascii=False, allow_nan=False).encode()
            return made

        with _translated():
            return await asyncio.wrap_future(change.then(serialised).submit())

    async def sight(self, embedder: str | None) -> Sight:
        """What the embedder (None: the default) sees by now.

        Raises:
            UnknownModel: no such name, or a model that does not embed. NotReady: its files do not fit together.
        """
        model = await self.model_manager.load_embedder(embedder)
        finder = await self.model_manager.load(None, "detect") if model.card.task == "embed" else None
        return Sight(model, finder)

    async def sight_of(self, embedder: str, fingerprint: str) -> Sight | None:
        """The embedder with the rule that this fingerprint is of; None: it is of other models.

        Raises:
            UnknownModel, NotReady: as `sight`.
        """
        sight = await self.sight(embedder)
        rules = (sight, replace(sight, scales="whole"))
        return next((one for one in rules if one.fingerprint == fingerprint), None)

    async def model(self, collection: Collection) -> Sight:
        """What the collection's vectors are made by.

        Raises:
            Conflict: what it makes of pictures now is not what the collection holds.
        """
        sight = await self.sight_of(collection.embedder, collection.fingerprint)
        if sight is None:
            raise Conflict(
                f"{collection.name!r} holds vectors of another version of {collection.embedder};"
                f" POST /collections/{quote(collection.name)}/reembed makes them anew from the crops that were kept"
            )
        return sight

    async def of_crop(self, model: LoadedModel, crop: bytes) -> Tensor:
        """The vector of an aligned face that was kept, float32 [D] of length 1.

        Raises:
            VestibuleError: see `Faces.whole`.
        """
        return await self._faces.embed_whole_image(model, crop)

    async def seen(self, sight: Sight, data: bytes) -> list[Seen]:
        """The faces of a picture with their vectors, surest first; or the whole picture, where the model sees such."""
        if sight.finder is None:
            vector = await self._faces.embed_whole_image(sight.model, data)
            return [Seen(None, None, vector)]
        found = (await self._faces.find(sight.finder, data, DETECTION_THRESHOLD, sight.rule)).faces
        if not found:
            return []
        vectors = await self._faces.embed_faces(sight.model, found)
        return [Seen(face, face.describe(), vector) for face, vector in zip(found, vectors, strict=True)]

    async def new_faces(self, subject: str, seen: Sequence[Seen], *, keep_crops: bool) -> list[NewFace]:
        """The faces to enrol for a subject, with their crops where the collection keeps those."""
        crops = await self.predictor.map(crop_of, seen) if keep_crops else [None] * len(seen)
        return [_new_face(subject, crop, face) for crop, face in zip(crops, seen, strict=True)]


@contextmanager
def _translated() -> Iterator[None]:
    """Raise the gallery's errors as those of the API."""
    try:
        with full_disk():
            yield
    except index_errors.NotFoundError as error:
        raise NotFound(str(error)) from error
    except index_errors.ConflictError as error:
        raise Conflict(str(error)) from error
    except index_errors.LockedError as error:
        raise Locked(str(error)) from error
    except index_errors.InvalidError as error:
        raise Unprocessable(str(error)) from error


@contextmanager
def compared() -> Iterator[None]:
    """Around calls with vectors that the collection's pipeline computed.

    Raises:
        Switched: they are not, any more.
    """
    try:
        yield
    except Conflict as error:
        raise Switched from error


async def settled(attempt: Callable[[], Awaitable[T]]) -> T:
    """What it answers; made once more where the collection was embedded anew meanwhile.

    Raises:
        Conflict: that happened twice.
    """
    for _ in range(2):
        with suppress(Switched):
            return await attempt()
    raise Conflict("the collection is not what it was a moment ago; ask again")


def gated(index: int, seen: Sequence[Seen], params: EnrolParams) -> tuple[list[Seen], list[RejectedFace]]:
    """Which faces of a picture may be enrolled, and which not: the most prominent good ones may."""
    good: list[Seen] = []
    rejected: list[RejectedFace] = []
    for one in by_prominence(seen):
        if one.described is None:
            good.append(one)
            continue
        reasons: list[RejectedReason] = list(one.described.reasons) if params.quality_gate else []
        if not reasons and len(good) == params.max_faces:
            reasons = ["EXCEEDS_MAX_FACES"]
        if reasons:
            rejected.append(RejectedFace(index=index, face=one.described, reasons=reasons))
        else:
            good.append(one)
    return good, rejected


def keeps_crops(collection: Collection) -> bool:
    """Whether the collection keeps the crop of each face; imported collections may not say."""
    return collection.settings.get("keep_crops") is True


def _new_face(subject: str, crop: bytes | None, seen: Seen) -> NewFace:
    return NewFace(subject, seen.vector.numpy(), _details(seen), crop)


def described(found: Receipt) -> ErasureReceipt:
    """The receipt of an erasure, as a caller sees it."""
    return ErasureReceipt(
        id=found.token,
        status="scrubbing" if found.erased_at is None else "erased",
        subjects=found.subjects,
        faces=found.faces,
        requested_at=moment(found.requested_at),
        erased_at=None if found.erased_at is None else moment(found.erased_at),
    )


def _details(seen: Seen) -> dict[str, object]:
    if seen.described is None:
        return {}
    return {"confidence": seen.described.confidence, **seen.described.quality.model_dump()}


def crop_of(seen: Seen) -> bytes | None:
    """The aligned face as it is kept, WebP of 112x112 pixels; None of a whole picture."""
    if seen.found is None:
        return None
    buffer = io.BytesIO()
    Image.fromarray(seen.found.crop).save(buffer, "WEBP", quality=CROP_QUALITY)
    return buffer.getvalue()
