"""Stateful test: after any sequence of operations and damages, searches agree with exhaustive comparison by numpy."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from index.embedded.gallery import EmbeddedGallery, SearchTuning
from index.embedded.tasks.maintenance import Maintenance, MaintenanceLimits
from index.embedded.tasks.reembedding import Reembeddings, ReembeddingWorker
from index.errors import ConflictError, NotFoundError
from index.operator_key import OperatorKey
from index.protocol import FIRST
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


class GalleryMachine(RuleBasedStateMachine):
    """Two galleries on one folder, as in two processes. `model`: expected faces, token -> (subject, crop)."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.now = 1000.0
        self.seeds = 10**6
        self.galleries = [self.opened(), self.opened()]
        self.encrypted = False
        self.model: dict[str, dict[str, tuple[str, int]]] = {}
        self.pipelines = {"doors": 1, "trains": 1}
        self.receipts: list[str] = []

    def opened(self) -> EmbeddedGallery:
        return EmbeddedGallery(self.folder, tuning=EVERYTHING, clock=lambda: self.now, key=KEY)

    def teardown(self) -> None:
        for gallery in self.galleries:
            gallery.close()
        shutil.rmtree(self.folder)

    @initialize(count=st.integers(0, 60), maintained=st.booleans(), encrypted=st.booleans())
    def one_collection(self, count: int, maintained: bool, encrypted: bool) -> None:
        self.encrypted = encrypted
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
            self.galleries[which].create(*properties, encrypted=self.encrypted)
            self.model[name] = {}

    @rule(which=st.integers(0, 1))
    def drop(self, which: int) -> None:
        if "trains" in self.model:
            receipt = self.galleries[which].drop("trains")
            assert receipt.faces == len(self.model.pop("trains"))
            self.receipts.append(receipt.token)

    @rule(name=NAMES, person=PEOPLE, count=st.integers(1, 20), which=st.integers(0, 1))
    def enrol(self, name: str, person: str, count: int, which: int) -> None:
        pipeline, crops = self.pipelines[name], range(self.seeds, self.seeds + count)
        faces = [NewFace(person, vector(crop, pipeline), crop=str(crop).encode()) for crop in crops]
        self.seeds += count
        if name not in self.model:
            with pytest.raises(NotFoundError):
                self.galleries[which].enrol(name, faces, f"f{pipeline}")
            return
        enrolled = self.galleries[which].enrol(name, faces, f"f{pipeline}")
        self.model[name] |= {face.token: (person, crop) for face, crop in zip(enrolled, crops, strict=True)}

    @rule(name=NAMES, which=st.integers(0, 1))
    def begin_reembedding(self, name: str, which: int) -> None:
        pipeline = self.pipelines[name] + 1
        with suppress(NotFoundError, ConflictError):  # it does not exist, or is being re-embedded
            Reembeddings(self.galleries[which]).begin(name, "face-embedder", f"f{pipeline}", len(vector(0, pipeline)))

    @rule(name=NAMES, which=st.integers(0, 1), count=st.integers(1, 60))
    def reembed(self, name: str, which: int, count: int) -> None:
        worker = ReembeddingWorker(self.galleries[which])
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
        receipt = self.galleries[which].remove_faces(name, tokens)
        assert (receipt.faces, receipt.erased_at) == (len(tokens), None)
        self.receipts.append(receipt.token)
        for token in tokens:
            del self.model[name][token]

    @rule(name=NAMES, person=PEOPLE, which=st.integers(0, 1))
    def remove_subject(self, name: str, person: str, which: int) -> None:
        tokens = [token for token, (subject, _) in self.model.get(name, {}).items() if subject == person]
        try:
            receipt = self.galleries[which].remove_subject(name, person)
        except NotFoundError:
            assert not tokens
            return
        assert (receipt.subjects, receipt.faces) == (1, len(tokens))
        self.receipts.append(receipt.token)
        for token in tokens:
            del self.model[name][token]

    @rule(which=st.integers(0, 1))
    def maintain(self, which: int) -> None:
        maintenance = Maintenance(self.galleries[which], LIMITS)
        assert maintenance.run()
        maintenance.release()
        for token in self.receipts:
            assert self.galleries[which].receipt(token).erased_at == self.now
        self.receipts.clear()

    @rule(which=st.integers(0, 1))
    def reload(self, which: int) -> None:
        for collection in self.galleries[which].collections():
            self.galleries[which].searchers.reload(collection)

    @rule(which=st.integers(0, 1), size=st.integers(1, 4))
    def add_recent(self, which: int, size: int) -> None:
        for collection in self.galleries[which].collections():
            self.galleries[which].searchers.get(collection).add_recent(size)

    @rule(which=st.integers(0, 1))
    def reopen(self, which: int) -> None:
        self.galleries[which].close()
        self.galleries[which] = self.opened()

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

    @invariant()
    def searches_agree(self) -> None:
        for name, faces in self.model.items():
            pipeline = self.pipelines[name]
            query = vector(len(faces) + 1, pipeline)
            best: dict[str, float] = {}
            for person, crop in faces.values():
                best[person] = max(best.get(person, -2.0), float(vector(crop, pipeline) @ query))
            expected = sorted(best.items(), key=lambda item: -item[1])[:3]
            for gallery in self.galleries:
                assert gallery.size(name) == gallery.usage(name).faces == len(faces)
                (matches,) = gallery.nearest_subjects(name, query[None], k=3)
                assert [match.subject.key for match in matches] == [person for person, _ in expected]
                assert [match.similarity for match in matches] == pytest.approx([s for _, s in expected], abs=1e-5)


class TestGallery(GalleryMachine.TestCase):  # type: ignore[misc,valid-type]
    # No shrinking: it takes minutes, and the failing steps are printed anyway.
    settings = settings(
        max_examples=40,
        stateful_step_count=30,
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
