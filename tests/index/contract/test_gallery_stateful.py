"""Stateful test of every engine: after any sequence of operations, searches agree with exhaustive comparison by numpy.

The files of the embedded engine are damaged meanwhile.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from index.embedded.curation.curation import Curation as EmbeddedCuration
from index.embedded.gallery import EmbeddedGallery, SearchTuning
from index.embedded.query.search import Searches as EmbeddedSearches
from index.embedded.tasks.maintenance import Maintenance as EmbeddedMaintenance
from index.embedded.tasks.maintenance import MaintenanceLimits
from index.embedded.tasks.reembedding import Reembeddings as EmbeddedReembeddings
from index.embedded.tasks.reembedding import ReembeddingWorker as EmbeddedReembeddingWorker
from index.errors import ConflictError, InvalidError, NotFoundError
from index.operator_key import OperatorKey
from index.postgres.curation.curation import PostgresCuration
from index.postgres.gallery import PostgresGallery
from index.postgres.maintenance import PostgresMaintenance
from index.postgres.reembedding import PostgresReembeddings, PostgresReembeddingWorker
from index.postgres.search import PostgresSearches
from index.postgres.store.database import Database
from index.protocol import FIRST, Curation, Gallery, Maintenance, Reembeddings, ReembeddingWorker, Searches
from index.types import NewFace

Vector = npt.NDArray[np.float32]

KEY = OperatorKey(b"k" * 32)
DIMENSIONS = 8
EVERYTHING = SearchTuning(lists=10_000, shortlist=10_000)  # makes the inverted file exact
LIMITS = MaintenanceLimits(segment=4, exact_below=8, growth=2.0)
NAMES = st.sampled_from(["doors", "trains"])
PEOPLE = st.sampled_from([f"p{i}" for i in range(12)])


def vector(seed: int, pipeline: int = 1) -> Vector:
    """Return the pipeline's vector of a crop. Pipelines alternate between two numbers of dimensions."""
    values = np.random.default_rng((seed, pipeline)).normal(size=DIMENSIONS + 4 * (pipeline % 2))
    return (values / np.linalg.norm(values)).astype(np.float32)


@dataclass(frozen=True)
class Side:
    """An open gallery, as in one process."""

    gallery: Gallery
    searches: Searches
    curation: Curation
    reembeddings: Reembeddings
    new_worker: Callable[[], ReembeddingWorker]
    maintenance: Maintenance


class GalleryMachine(RuleBasedStateMachine):
    """Two open galleries on one storage. `model`: expected faces, token -> (subject, crop)."""

    CAN_ENCRYPT: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.seeds = 10**6
        self.sides = [self.opened(), self.opened()]
        self.encrypted = False
        self.model: dict[str, dict[str, tuple[str, int]]] = {}
        self.pipelines = {"doors": 1, "trains": 1}
        self.receipts: list[str] = []
        self.merges: list[tuple[str, str, str, dict[str, str]]] = []  # name, token, kept, earlier subjects of faces

    def opened(self) -> Side:
        raise NotImplementedError

    def closed(self, side: Side) -> None:
        raise NotImplementedError

    @initialize(count=st.integers(0, 60), maintained=st.booleans(), encrypted=st.booleans())
    def one_collection(self, count: int, maintained: bool, encrypted: bool) -> None:
        self.encrypted = encrypted and self.CAN_ENCRYPT
        self.create("doors", 0)
        for person in range(count):
            self.enrol("doors", f"p{person % 12}", 1, person % 2)
        if maintained:
            self.maintain(0)

    @rule(name=NAMES, which=st.integers(0, 1))
    def create(self, name: str, which: int) -> None:
        if name not in self.model:
            pipeline = self.pipelines[name]
            properties = name, "face-embedder", f"f{pipeline}", len(vector(0, pipeline))
            self.sides[which].gallery.create(*properties, encrypted=self.encrypted)
            self.model[name] = {}

    @rule(which=st.integers(0, 1))
    def drop(self, which: int) -> None:
        if "trains" in self.model:
            receipt = self.sides[which].gallery.drop("trains")
            assert receipt.faces == len(self.model.pop("trains"))
            self.receipts.append(receipt.token)

    @rule(name=NAMES, person=PEOPLE, count=st.integers(1, 20), which=st.integers(0, 1))
    def enrol(self, name: str, person: str, count: int, which: int) -> None:
        pipeline, crops = self.pipelines[name], range(self.seeds, self.seeds + count)
        faces = [NewFace(person, vector(crop, pipeline), crop=str(crop).encode()) for crop in crops]
        self.seeds += count
        if name not in self.model:
            with pytest.raises(NotFoundError):
                self.sides[which].gallery.enrol(name, faces, f"f{pipeline}")
            return
        enrolled = self.sides[which].gallery.enrol(name, faces, f"f{pipeline}")
        self.model[name] |= {face.token: (person, crop) for face, crop in zip(enrolled, crops, strict=True)}

    @rule(name=NAMES, which=st.integers(0, 1))
    def begin_reembedding(self, name: str, which: int) -> None:
        pipeline = self.pipelines[name] + 1
        with suppress(NotFoundError, ConflictError):  # it does not exist, or is being re-embedded
            self.sides[which].reembeddings.begin(name, "face-embedder", f"f{pipeline}", len(vector(0, pipeline)))

    @rule(name=NAMES, which=st.integers(0, 1), count=st.integers(1, 60))
    def reembed(self, name: str, which: int, count: int) -> None:
        worker = self.sides[which].new_worker()
        for reembedding in worker.waiting():
            if reembedding.collection == name:
                assert worker.claim(reembedding)
                pipeline = self.pipelines[name] + 1
                items = worker.pending(reembedding, FIRST, count)
                assert worker.stage(reembedding, {item.id: vector(int(item.crop), pipeline) for item in items})
                left = len(worker.pending(reembedding, FIRST, 10**6))
                assert worker.switch(reembedding) == left
                worker.release(reembedding)
                if not left:
                    self.pipelines[name] = pipeline
                    self.receipts.append(reembedding.token)

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data(), which=st.integers(0, 1))
    def remove_faces(self, data: st.DataObject, which: int) -> None:
        name = data.draw(st.sampled_from([name for name, faces in self.model.items() if faces]))
        tokens = data.draw(st.lists(st.sampled_from(list(self.model[name])), min_size=1, max_size=10, unique=True))
        receipt = self.sides[which].gallery.remove_faces(name, tokens)
        assert (receipt.faces, receipt.erased_at) == (len(tokens), None)
        self.receipts.append(receipt.token)
        for token in tokens:
            del self.model[name][token]

    @rule(name=NAMES, kept=PEOPLE, absorbed=st.lists(PEOPLE, min_size=1, max_size=3), which=st.integers(0, 1))
    def merge(self, name: str, kept: str, absorbed: list[str], which: int) -> None:
        with suppress(NotFoundError, InvalidError):  # one does not exist, or they are the same
            merge = self.sides[which].curation.merge(name, kept, absorbed)
            faces = self.model[name]
            moved = {token: person for token, (person, _) in faces.items() if person in absorbed}
            if merge.token not in {token for _, token, _, _ in self.merges}:  # not a repeated call
                assert merge.faces == len(moved)
                self.merges.append((name, merge.token, kept, moved))
                faces |= {token: (kept, faces[token][1]) for token in moved}

    @precondition(lambda self: self.merges)
    @rule(which=st.integers(0, 1))
    def undo_merge(self, which: int) -> None:
        name, token, kept, moved = self.merges.pop()
        with suppress(NotFoundError):  # the kept subject or the collection was erased
            self.sides[which].curation.undo_merge(name, token)
            faces = self.model[name]
            returned = {face: owner for face, owner in moved.items() if face in faces and faces[face][0] == kept}
            faces |= {face: (owner, faces[face][1]) for face, owner in returned.items()}

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data(), person=PEOPLE, which=st.integers(0, 1))
    def move_faces(self, data: st.DataObject, person: str, which: int) -> None:
        name = data.draw(st.sampled_from([name for name, faces in self.model.items() if faces]))
        faces = self.model[name]
        tokens = data.draw(st.lists(st.sampled_from(list(faces)), min_size=1, max_size=5, unique=True))
        moved = self.sides[which].curation.move_faces(name, tokens, person).faces
        assert set(moved) == {token for token in tokens if faces[token][0] != person}
        for _, _, _, earlier in self.merges:
            for token in moved:
                earlier.pop(token, None)
        faces |= {token: (person, faces[token][1]) for token in moved}

    @rule(name=NAMES, person=PEOPLE, which=st.integers(0, 1))
    def remove_subject(self, name: str, person: str, which: int) -> None:
        tokens = [token for token, (subject, _) in self.model.get(name, {}).items() if subject == person]
        try:
            receipt = self.sides[which].gallery.remove_subject(name, person)
        except (NotFoundError, ConflictError):  # another subject may have absorbed it
            assert not tokens
            return
        assert (receipt.subjects, receipt.faces) == (1, len(tokens))
        self.receipts.append(receipt.token)
        for token in tokens:
            del self.model[name][token]

    @rule(which=st.integers(0, 1))
    def maintain(self, which: int) -> None:
        maintenance, deadline = self.sides[which].maintenance, time.monotonic() + 60
        while True:
            assert maintenance.run()
            finished = [self.sides[which].gallery.receipt(token).erased_at for token in self.receipts]
            if None not in finished or time.monotonic() > deadline:
                break
            time.sleep(0.1)  # a vacuum of the server itself may read erased rows meanwhile
        maintenance.release()
        assert finished == [self.now] * len(self.receipts)
        self.receipts.clear()

    @rule(which=st.integers(0, 1))
    def reopen(self, which: int) -> None:
        self.closed(self.sides[which])
        self.sides[which] = self.opened()

    @invariant()
    def searches_agree(self) -> None:
        for name, faces in self.model.items():
            pipeline = self.pipelines[name]
            query = vector(len(faces) + 1, pipeline)
            best: dict[str, float] = {}
            for person, crop in faces.values():
                best[person] = max(best.get(person, -2.0), float(vector(crop, pipeline) @ query))
            expected = sorted(best.items(), key=lambda item: -item[1])[:3]
            for side in self.sides:
                assert side.gallery.size(name) == side.gallery.usage(name).faces == len(faces)
                (matches,) = side.searches.search(name, query[None], k=3)
                assert [match.subject.key for match in matches] == [person for person, _ in expected]
                assert [match.similarity for match in matches] == pytest.approx([s for _, s in expected], abs=1e-5)


class EmbeddedMachine(GalleryMachine):
    """The embedded engine, whose files are damaged meanwhile."""

    CAN_ENCRYPT = True

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        super().__init__()

    def opened(self) -> Side:
        gallery = EmbeddedGallery(self.folder, tuning=EVERYTHING, clock=lambda: self.now, key=KEY)
        return Side(
            gallery,
            EmbeddedSearches(gallery),
            EmbeddedCuration(gallery),
            EmbeddedReembeddings(gallery),
            partial(EmbeddedReembeddingWorker, gallery),
            EmbeddedMaintenance(gallery, LIMITS),
        )

    def embedded(self, which: int) -> EmbeddedGallery:
        gallery = self.sides[which].gallery
        assert isinstance(gallery, EmbeddedGallery)
        return gallery

    def closed(self, side: Side) -> None:
        assert isinstance(side.gallery, EmbeddedGallery)
        side.gallery.close()

    def teardown(self) -> None:
        for side in self.sides:
            self.closed(side)
        shutil.rmtree(self.folder)

    @rule(which=st.integers(0, 1))
    def reload(self, which: int) -> None:
        for collection in self.embedded(which).collections():
            self.embedded(which).searchers.reload(collection)

    @rule(which=st.integers(0, 1), size=st.integers(1, 4))
    def add_recent(self, which: int, size: int) -> None:
        for collection in self.embedded(which).collections():
            self.embedded(which).searchers.get(collection).add_recent(size)

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Delete or change a segment or inverted file. Searchers that are loaded map the old content."""
        files = sorted((self.folder / "files").iterdir())
        if not files:
            return
        path = data.draw(st.sampled_from(files))
        content = bytearray(path.read_bytes())
        path.unlink()
        if data.draw(st.booleans()):
            content[data.draw(st.integers(0, min(60, len(content) - 1)))] ^= 0xFF
            path.write_bytes(content)


class PostgresMachine(GalleryMachine):
    """The engine in PostgreSQL. `database`: used by all examples, which leave no collection in it."""

    CAN_ENCRYPT = False
    database: ClassVar[Database]

    def opened(self) -> Side:
        gallery = PostgresGallery(self.database)
        return Side(
            gallery,
            PostgresSearches(gallery),
            PostgresCuration(gallery),
            PostgresReembeddings(gallery),
            partial(PostgresReembeddingWorker, gallery),
            PostgresMaintenance(gallery, exact_below=LIMITS.exact_below),
        )

    def closed(self, side: Side) -> None:
        pass

    def teardown(self) -> None:
        for name in self.model:
            self.sides[0].gallery.drop(name)


# No shrinking: it takes minutes, and the failing steps are printed anyway.
SETTINGS = settings(
    max_examples=12,
    stateful_step_count=30,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class TestEmbedded(EmbeddedMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = SETTINGS


@pytest.mark.slow
class TestEmbeddedAtLength(EmbeddedMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(SETTINGS, max_examples=100)


class TestPostgres(PostgresMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(SETTINGS, max_examples=6, stateful_step_count=20)

    @pytest.fixture(autouse=True)
    def _database(self, database_url: str) -> Iterator[None]:
        PostgresMachine.database = Database(database_url, clock=lambda: 1000.0)
        yield
        PostgresMachine.database.close()
