"""Record the service's answers about the synthetic camera with many requests at once, and run the watcher on them.

    python -m benchmarks.cameras.replay record FILE [--passages 100] [--bursts] [--split calibrate] [--url URL]
    python -m benchmarks.cameras.replay run FILE

For settings of the watcher, which a run on the same recording compares in seconds, and for machines that are shared,
where `passers_by`, which has one frame in progress, waits most of the time. `run` has the watcher itself, the recorded
detections and embeddings, and the decisions of the service's code; requests take no time, so it has no latency. It
adds a row to benchmarks/results/passers_by_replayed.csv.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.gallery.open_set import DecisionRule
from app.watch.decisions import PassageDecision, PendingSighting
from app.watch.events import Events
from app.watch.recognition import DETECTION_THRESHOLD, FRAME_QUALITY, SAME_PERSON_FMR, Recognition
from app.watch.settings import WatchSettings
from app.watch.shots import Shot, crop_jpeg
from app.watch.sighting_queue import SightingQueue
from app.watch.source.frames import Frame
from app.watch.watcher import CameraWatcher
from benchmarks import tables
from benchmarks.cameras.passers_by import CAMERA, FPIR, ObservedPassages, figures, png
from benchmarks.cameras.synthetic_stream import FPS, PassersBy, enrolled_photos, people_of, still
from models import checkpoint
from models.align import Quality
from models.passages import MAX_FRAMES, fuse, quality_weight, same_person
from vestibule_client import NEVER, AsyncClient, NoFace
from vestibule_client.answers import Embedding, Face

RESULTS = Path(__file__).parents[1] / "results" / "passers_by_replayed.csv"
WEIGHTS = Path(__file__).parents[2] / "weights" / "mobilefacenet-triplet"
AT_ONCE = 12


@dataclass
class Recording:
    """The faces of each frame, the embedding of each face's crop (None: not detected in it), and the gallery.

    `stream` has the arguments of the synthetic stream: split, passages, seed, bursts.
    """

    stream: dict[str, Any]
    faces: dict[int, list[Face]] = field(default_factory=dict)
    embeddings: dict[int, list[Embedding | None]] = field(default_factory=dict)
    gallery: dict[str, list[list[float]]] = field(default_factory=dict)

    def open(self) -> PassersBy:
        """Return the stream."""
        people = people_of("faces", self.stream["split"], 4)
        return PassersBy(people, self.stream["passages"], seed=self.stream["seed"], bursts=self.stream["bursts"])

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        faces = {index: [face.model_dump() for face in found] for index, found in self.faces.items()}
        embeddings = {index: [item and item.model_dump() for item in found] for index, found in self.embeddings.items()}
        path.write_text(
            json.dumps({"stream": self.stream, "faces": faces, "embeddings": embeddings, "gallery": self.gallery})
        )

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read it."""
        data = json.loads(path.read_text())
        return cls(
            data["stream"],
            {int(index): [Face.model_validate(face) for face in found] for index, found in data["faces"].items()},
            {
                int(index): [item and Embedding.model_validate(item) for item in found]
                for index, found in data["embeddings"].items()
            },
            data["gallery"],
        )


async def record(recording: Recording, url: str | None) -> None:
    """Ask the service about all frames of the stream and all photos of the gallery."""
    stream, turns = recording.open(), asyncio.Semaphore(AT_ONCE)
    async with AsyncClient(url, timeout=300, retries=NEVER) as client:

        async def embed(photo: bytes) -> Embedding | None:
            try:
                return (await client.embed(photo)).first
            except NoFace:
                return None

        async def see(index: int) -> None:
            async with turns:
                image = stream.draw(index)
                with tempfile.SpooledTemporaryFile() as file:
                    image.save(file, "JPEG", quality=FRAME_QUALITY)
                    file.seek(0)
                    faces = (await client.detect(file.read(), threshold=DETECTION_THRESHOLD, min_face=40)).first.faces
                recording.faces[index] = faces
                recording.embeddings[index] = [await embed(crop_jpeg(image, face.box)) for face in faces]
                if len(recording.embeddings) % 100 == 0:
                    print(f"{len(recording.embeddings)} of {stream.frame_count} frames", flush=True)

        for person in stream.enrolled:
            found = [await embed(png(still(photo))) for photo in enrolled_photos(person)]
            recording.gallery[person.name] = [item.embedding for item in found if item]
        await asyncio.gather(*(see(index) for index in range(stream.frame_count)))


class RecordedFrames:
    """The frames of the stream as a source; `Image.info` has the number of each."""

    live = False

    def __init__(self, stream: PassersBy) -> None:
        self._stream = stream

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames."""
        for index in range(self._stream.frame_count):
            yield Frame(index / FPS, partial(self._draw, index))

    def _draw(self, index: int) -> Image.Image:
        image = self._stream.draw(index)
        image.info["index"] = index
        return image


class RecordedRecognition(Recognition):
    """Answers from the recording; a crop is known by its bytes."""

    def __init__(self, client: AsyncClient, recording: Recording) -> None:
        super().__init__(client, WatchSettings(CAMERA, "recorded", fpir=FPIR))
        self.stored: dict[str, PassageDecision] = {}
        self._recording = recording
        self._crops: dict[bytes, Embedding | None] = {}
        self._names = [name for name, vectors in recording.gallery.items() for _ in vectors]
        self._vectors = np.array([vector for vectors in recording.gallery.values() for vector in vectors])
        self._card = checkpoint.read_card(WEIGHTS)

    async def detect(self, image: Image.Image) -> list[Face]:
        """Return the faces of a frame."""
        index = image.info["index"]
        faces = self._recording.faces[index]
        for face, embedding in zip(faces, self._recording.embeddings[index], strict=True):
            self._crops[crop_jpeg(image, face.box)] = embedding
        return faces

    async def search(self, shots: Sequence[bytes], share: float) -> PassageDecision:
        """Return the decision on the recorded vectors."""
        found = [item for item in map(self._crops.__getitem__, shots) if item]
        if not found:
            return PassageDecision("rejected", None, None, None, None, None, 0, [])
        vectors = np.array([item.embedding for item in found])
        weights = np.array([quality_weight(_quality(item)) for item in found])
        assert self._card.matching is not None
        kept = np.flatnonzero(same_person(vectors, weights, self._card.matching))
        kept = kept[np.argsort(-weights[kept], kind="stable")][:MAX_FRAMES]
        name = self.name_of(fuse(vectors[kept], weights[kept]), len(kept), FPIR * share)
        return PassageDecision("match" if name else "unknown", name, None, None, None, None, len(kept), [])

    def name_of(self, vector: npt.ArrayLike, frames: int, fpir: float) -> str | None:
        """Return the subject whom the vector, fused of so many frames, matches at this FPIR; None for nobody."""
        rule = DecisionRule.for_comparisons(self._card.passages[frames - 1], fpir, len(self._vectors))
        similarities = self._vectors @ np.asarray(vector)
        best = int(similarities.argmax())
        matched = rule.can_match and rule.threshold is not None and similarities[best] >= rule.threshold.similarity
        return self._names[best] if matched else None

    async def same_person(self, one: Shot, other: Shot) -> bool:
        """Compare the recorded vectors."""
        first, second = self._crops[one.jpeg], self._crops[other.jpeg]
        if first is None or second is None:
            return False
        assert self._card.matching is not None
        return (
            float(np.dot(first.embedding, second.embedding))
            >= self._card.matching.threshold(SAME_PERSON_FMR).similarity
        )

    async def store(self, sighting: PendingSighting) -> str:
        """Keep a sighting's decision."""
        assert sighting.decision is not None
        self.stored[sighting.passage] = sighting.decision
        return sighting.passage


def _quality(item: Embedding) -> Quality:
    assert item.face is not None
    return Quality(confidence=item.face.confidence, **item.face.quality.model_dump())


def single_fnir(recording: Recording, recognition: RecordedRecognition, stream: PassersBy) -> float:
    """Return the mean over the walks of enrolled people of the share of their frames that are not found alone."""
    enrolled = {person.name for person in stream.enrolled}
    shares = []
    for walk in stream.walks:
        if walk.person.name not in enrolled:
            continue
        found = 0
        for index in range(walk.start, walk.stop):
            for face, item in zip(recording.faces[index], recording.embeddings[index], strict=True):
                left, top, right, bottom = face.box
                if item and stream.walk_at(index, (left + right) / 2, (top + bottom) / 2) is walk:
                    found += recognition.name_of(item.embedding, 1, FPIR) == walk.person.name
        shares.append(found / (walk.stop - walk.start))
    return 1 - float(np.mean(shares))


async def run(recording: Recording) -> dict[str, Any]:
    """Run the watcher on the recording and return the row of figures."""
    stream = recording.open()
    async with AsyncClient() as client:
        recognition = RecordedRecognition(client, recording)
        with tempfile.TemporaryDirectory() as folder, SightingQueue(Path(folder)) as queue:
            events = Events(CAMERA, lambda _: None, as_json=True)
            watcher = CameraWatcher(RecordedFrames(stream), recognition, queue, events, fps=FPS)
            observed = watcher.passages = ObservedPassages(stream)
            await watcher.run()
    counts = watcher.metrics.counts
    return {
        **recording.stream,
        **figures(stream, observed.walks, recognition.stored),
        "fnir_single": round(single_fnir(recording, recognition, stream), 4),
        "frames": counts.processed,
        "merged": counts.merged,
        "searches": counts.searches,
        "comparisons": counts.comparisons,
    }


def main() -> None:
    """Record, or run and add a row to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "run"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--bursts", action="store_true", help="one photo per passage instead of different ones")
    parser.add_argument("--split", choices=("test", "calibrate"), default="test", help="the identities that are shown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", default=os.environ.get("VESTIBULE_URL"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.action == "record":
        arguments = {name: getattr(options, name) for name in ("split", "passages", "seed", "bursts")}
        recording = Recording(arguments)
        asyncio.run(record(recording, options.url))
        recording.write(options.file)
        return
    row = asyncio.run(run(Recording.read(options.file)))
    for name, value in row.items():
        print(f"{name:24} {value}")
    tables.write(options.results, list(row), [*tables.read(options.results), row])


if __name__ == "__main__":
    main()
