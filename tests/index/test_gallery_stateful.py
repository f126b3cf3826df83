"""Congruence: whatever is enrolled, erased, embedded anew, sealed, indexed, damaged, closed or opened twice, a search
answers as numpy does that compares everything.
"""

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

from index.embedded.encryption.aead import OperatorKey
from index.embedded.gallery import EmbeddedGallery, Tuning
from index.embedded.tasks.compaction import Limits, Maintenance
from index.embedded.tasks.reembedding import FIRST, Reembeddings, Worker
from index.errors import ConflictError, NotFoundError
from index.types import NewFace

Vector = npt.NDArray[np.float32]

KEY = OperatorKey(b"k" * 32)
DIMENSIONS = 8
EVERYTHING = Tuning(lists=10_000, shortlist=10_000)  # so that the inverted file, too, must find all
LIMITS = Limits(segment=4, exact_below=8, growth=2.0)
NAMES = st.sampled_from(["doors", "trains"])
PEOPLE = st.sampled_from([f"p{i}" for i in range(12)])


def vector(seed: int, pipeline: int = 1) -> Vector:
    """What the pipeline of that number makes of a crop: they take turns in how many numbers that are."""
    values = np.random.default_rng((seed, pipeline)).normal(size=DIMENSIONS + 4 * (pipeline % 2))
    return (values / np.linalg.norm(values)).astype(np.float32)


class Congruence(RuleBasedStateMachine):
    """Two galleries on one folder (as two processes have it), and what they should hold: token -> (person, crop)."""

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
            made = name, "face-embedder", f"f{pipeline}", len(vector(0, pipeline))
            self.galleries[which].create(*made, encrypted=self.encrypted)
            self.model[name] = {}

    @rule(which=st.integers(0, 1))
    def drop(self, which: int) -> None:
        if "trains" in self.model:
            receipt = self.galleries[which].drop("trains")
            assert receipt.faces == len(self.model.pop("trains"))
            self.receipts.append(receipt.token)

    @rule(name=NAMES, person=PEOPLE, count=st.integers(1, 20), which=st.integers(0, 1))
    def enrol(self, name: str, person: str, count: int, which: int) -> None:
        pipeline, crops = self.pipelines[name], range(self.seeds, self.seeds + count)  # no two alike
        faces = [NewFace(person, vector(crop, pipeline), crop=str(crop).encode()) for crop in crops]
        self.seeds += count
        if name not in self.model:
            with pytest.raises(NotFoundError):
                self.galleries[which].enrol(name, faces, f"f{pipeline}")
            return
        made = self.galleries[which].enrol(name, faces, f"f{pipeline}")
        self.model[name] |= {face.token: (person, crop) for face, crop in zip(made, crops, strict=True)}

    @rule(name=NAMES, which=st.integers(0, 1))
    def begin_anew(self, name: str, which: int) -> None:
        pipeline = self.pipelines[name] + 1
        with suppress(NotFoundError, ConflictError):  # it is not there, or under way already
            Reembeddings(self.galleries[which]).begin(name, "face-embedder", f"f{pipeline}", len(vector(0, pipeline)))

    @rule(name=NAMES, which=st.integers(0, 1), count=st.integers(1, 60))
    def embed_anew(self, name: str, which: int, count: int) -> None:
        worker = Worker(self.galleries[which])
        for one in worker.waiting():
            if one.collection == name:
                assert worker.claim(one)
                pipeline = self.pipelines[name] + 1
                items = worker.pending(one, FIRST, count)
                assert worker.stage(one, {item.id: vector(int(item.crop), pipeline) for item in items})
                left = len(worker.pending(one, FIRST, 10**6))
                assert worker.switch(one) == left
                worker.release(one)
                if not left:
                    self.pipelines[name] = pipeline
                    self.receipts.append(one.token)

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data(), which=st.integers(0, 1))
    def remove_some(self, data: st.DataObject, which: int) -> None:
        name = data.draw(st.sampled_from([name for name, faces in self.model.items() if faces]))
        tokens = data.draw(st.lists(st.sampled_from(list(self.model[name])), min_size=1, max_size=10, unique=True))
        receipt = self.galleries[which].remove_faces(name, tokens)
        assert (receipt.faces, receipt.erased_at) == (len(tokens), None)
        self.receipts.append(receipt.token)
        for token in tokens:
            del self.model[name][token]

    @rule(name=NAMES, person=PEOPLE, which=st.integers(0, 1))
    def remove_person(self, name: str, person: str, which: int) -> None:
        theirs = [token for token, (who, _) in self.model.get(name, {}).items() if who == person]
        try:
            receipt = self.galleries[which].remove_subject(name, person)
        except NotFoundError:
            assert not theirs
            return
        assert (receipt.subjects, receipt.faces) == (1, len(theirs))
        self.receipts.append(receipt.token)
        for token in theirs:
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
            self.galleries[which].reload(collection)

    @rule(which=st.integers(0, 1), size=st.integers(1, 4))
    def graft(self, which: int, size: int) -> None:
        for collection in self.galleries[which].collections():
            self.galleries[which].view(collection).graft(size)

    @rule(which=st.integers(0, 1))
    def reopen(self, which: int) -> None:
        self.galleries[which].close()
        self.galleries[which] = self.opened()

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A file of the cache is lost or changed: nothing may depend on it. (Open views map what was there.)"""
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
                (matches,) = gallery.search(name, query[None], k=3)
                assert [match.subject.key for match in matches] == [person for person, _ in expected]
                assert [match.similarity for match in matches] == pytest.approx([s for _, s in expected], abs=1e-5)


class TestCongruence(Congruence.TestCase):  # type: ignore[misc,valid-type]
    # Not shrunk: that takes minutes, and what was done is told step by step anyway.
    settings = settings(
        max_examples=40,
        stateful_step_count=30,
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
