"""Kill a gallery at random moments, or cut its power, and check what is left of it.

The gallery lives in a child process: two threads enrol and erase, one seals, indexes and scrubs. The child reports
every request before it is sent and every answer after it has come, so that the parent, which kills it, knows what must
be there. All deaths of a run, except those of migrations, happen to one gallery, which lives on.
docs/gallery-durability.md lists what is checked.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import threading
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from index.embedded.encryption import Cipher
from index.embedded.gallery import EmbeddedGallery, SearchTuning
from index.embedded.store import erasure_records, migrations, vector_records
from index.embedded.store.ledger import Ledger, Write
from index.embedded.store.migrations import STEPS
from index.embedded.store.vector_records import InvertedFileRecord, SegmentRecord
from index.embedded.tasks.maintenance import Maintenance, MaintenanceLimits
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.segment import Segment
from index.engine.maintenance import LEASE_S
from index.errors import CorruptError, GalleryError, NotFoundError
from index.types import Collection, Floats, NewFace
from tests.soak.power_cut_vfs import Disk, PowerCutVFS

DIMENSIONS = 64
FINGERPRINT = "f1"
# So small that sealing, rewriting and building go on all the time.
LIMITS = MaintenanceLimits(segment=8, exact_below=24, growth=2.0)
# So that the inverted file must find what is in it.
EVERYTHING = SearchTuning(lists=10**6, shortlist=16)
FULL = 40  # faces of a collection, about
# The next versions of the schema, which there are not yet: rows rewritten, a table made anew, an index.
LATER = (
    *STEPS,
    """
    ALTER TABLE subjects ADD COLUMN note TEXT NOT NULL DEFAULT '';
    UPDATE subjects SET note = 'of ' || key;
    CREATE INDEX subjects_by_note ON subjects (note);
    """,
    """
    CREATE TABLE vectors_anew (
        face_id INTEGER PRIMARY KEY REFERENCES faces (id) ON DELETE CASCADE,
        data BLOB NOT NULL CHECK (length(data) % 4 = 0)
    ) STRICT;
    INSERT INTO vectors_anew SELECT face_id, data FROM vectors;
    DROP TABLE vectors;
    ALTER TABLE vectors_anew RENAME TO vectors;
    """,
)
# What a kill is aimed at: a phase of the child. "rewriting" is of segments that hold what was erased.
KILL_AIMS = ("enrolling", "deleting", "sealing", "rewriting", "building", "erasing", "opening", "migrating")
# What a power cut comes just before: a step on the disk, and how many such steps are let pass at most; or any of the
# first steps of opening and of migrating.
CUT_AIMS = {
    "write log": 500,
    "sync log": 50,
    "write ledger": 50,
    "sync ledger": 3,
    "cut log": 3,
    "sync file": 30,
    "rename file": 10,
    "sync folder": 10,
    "delete file": 30,
    "opening": 6,
    "migrating": 50,
}
LATEST_S = 60.0


def vector(seed: int) -> Floats:
    """float32 [DIMENSIONS], of length 1."""
    values = np.random.default_rng(seed).normal(size=DIMENSIONS)
    return np.asarray(values / np.linalg.norm(values), np.float32)


def crop(seed: int) -> bytes | None:
    """What stands for the encoded picture of a face, longer than a page of the ledger; most have none."""
    return None if seed % 4 else np.random.default_rng(seed).bytes(5000)


@contextmanager
def schema(wanted: tuple[str, ...]) -> Iterator[None]:
    """Galleries that are opened meanwhile are of this version."""
    real = migrations.migrate

    def migrate(connection: apsw.Connection, steps: tuple[str, ...] = wanted) -> None:
        real(connection, wanted)

    migrations.migrate = migrate
    try:
        yield
    finally:
        migrations.migrate = real


# The child.


@dataclass(frozen=True)
class Cut:
    """When the power of `disk` goes: before the step of a kind (None: any) that `skip` others of it came before.

    `share` of what was not synced is there afterwards, in `image`.
    """

    disk: Path
    image: Path
    kind: str | None
    skip: int
    share: float


@dataclass(frozen=True)
class Order:
    """What a child does: requests, or only `opening` or `migrating`. `number`: of this child, after all before."""

    gallery: Path
    number: int
    doing: str
    cut: Cut | None
    broken: str | None


class Teller:
    """Tells the parent what each thread is about to do or has done."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe
        self._lock = threading.Lock()

    def __call__(self, thread: str, phase: str, **more: Any) -> None:
        """`phase` is what the thread does from now on, "" for nothing of note."""
        with self._lock:
            self._pipe.send_bytes(
                json.dumps({"thread": thread, "phase": phase, "at": time.monotonic(), **more}).encode()
            )


class Power:
    """Goes when its cut says so; or, where that never comes, after a while."""

    def __init__(self, cut: Cut, number: int, tell: Teller):
        self._cut, self._tell = cut, tell
        self._rng = random.Random(number)
        self._left = cut.skip
        self._latest = time.monotonic() + LATEST_S / 2
        self.disk = Disk(cut.disk, self.before)
        self.vfs = "power-cut"
        self._registered = PowerCutVFS(self.disk, self.vfs)

    def before(self, kind: str) -> None:
        """A step on the disk, which is not made where the power goes."""
        if self._cut.kind in (kind, None):
            self._left -= 1
        if self._left < 0 or time.monotonic() > self._latest:
            self.go(kind)

    def go(self, kind: str) -> None:
        """There is no more power."""
        unsynced = self.disk.write_survivors(self._cut.image, self._rng, self._cut.share)
        self._tell("disk", kind, unsynced=unsynced)
        os.kill(os.getpid(), signal.SIGKILL)


class Requests:
    """What one thread asks for, one after the other, in collections of its own."""

    def __init__(self, gallery: EmbeddedGallery, name: str, number: int, tell: Teller):
        self._gallery, self._name, self._tell = gallery, name, tell
        self._rng = random.Random(f"{name} {number}")
        self._seeds = iter(range(number * 10**6 + (10**5 if name == "b" else 0), 10**12))
        self._names = [f"{name}{i}" for i in range(2)]
        self._held = {
            collection.name: {
                subject.key: [face.token for face in gallery.faces(collection.name, subject.key)]
                for subject in gallery.subjects(collection.name)
            }
            for collection in gallery.collections()
            if collection.name in self._names
        }

    def run(self) -> None:
        """Until the end."""
        while True:
            name = self._rng.choice(self._names)
            if name not in self._held:
                self._create(name)
                continue
            count = sum(map(len, self._held[name].values()))
            draw = self._rng.random()
            if draw < 0.01:
                self._drop(name)
            elif self._held[name] and draw < (0.2 if count < FULL else 0.8):
                self._erase(name)
            else:
                self._enrol(name)

    def _ask(self, do: str, collection: str, more: dict[str, Any], call: Callable[[], list[str]]) -> list[str]:
        phase = "enrolling" if do in ("create", "enrol") else "deleting"
        self._tell(self._name, phase, request={"do": do, "collection": collection, **more})
        answer = call()
        self._tell(self._name, "", answer=answer)
        return answer

    def _create(self, name: str) -> None:
        self._ask("create", name, {}, lambda: [self._gallery.create(name, "e", FINGERPRINT, DIMENSIONS).name])
        self._held[name] = {}

    def _drop(self, name: str) -> None:
        self._ask("drop", name, {}, lambda: [self._gallery.drop(name).token])
        del self._held[name]

    def _enrol(self, name: str) -> None:
        subjects = self._rng.choices([f"p{i}" for i in range(20)], k=self._rng.randint(1, 12))
        new = [(subject, next(self._seeds)) for subject in subjects]
        faces = [NewFace(subject, vector(seed), {"seed": seed}, crop(seed)) for subject, seed in new]
        tokens = self._ask(
            "enrol", name, {"faces": new}, lambda: [f.token for f in self._gallery.enrol(name, faces, FINGERPRINT)]
        )
        for subject, token in zip(subjects, tokens, strict=True):
            self._held[name].setdefault(subject, []).append(token)
        if self._rng.random() < 0.2:
            self._gallery.nearest_subjects(name, faces[-1].vector[None])

    def _erase(self, name: str) -> None:
        held = self._held[name]
        subject = self._rng.choice(list(held))
        tokens = [token for subject in held for token in held[subject]]
        if self._rng.random() < 0.3 or not tokens:
            more = {"subject": subject}
            self._ask("remove_subject", name, more, lambda: [self._gallery.remove_subject(name, subject).token])
            del held[subject]
            return
        gone = self._rng.sample(tokens, min(len(tokens), self._rng.randint(1, 5)))
        self._ask("remove_faces", name, {"tokens": gone}, lambda: [self._gallery.remove_faces(name, gone).token])
        for subject in held:
            held[subject] = [token for token in held[subject] if token not in gone]


class ToldMaintenance(Maintenance):
    """Tells when files begin to be written, and when they are named and done with."""

    def __init__(self, gallery: EmbeddedGallery, tell: Teller):
        super().__init__(gallery, LIMITS)
        self._tell = tell
        self._phase = ""

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._tell("maintenance", phase)

    def _new_file(self, collection: Collection, suffix: str) -> str:
        if not self._phase:
            self._enter("sealing")
        return super()._new_file(collection, suffix)

    def _write_segment(self, collection: Collection, old: SegmentRecord | None = None) -> bool:
        if old is not None:
            self._enter("rewriting")
        return super()._write_segment(collection, old)

    def _read_index(self, old: InvertedFileRecord | None, total: int, cipher: Cipher) -> Ivf | None:
        if total:  # else it only looks whether the file is whole
            self._enter("building")
        return super()._read_index(old, total, cipher)

    def _swap(self, collection: Collection, change: Callable[[apsw.Connection], None]) -> None:
        super()._swap(collection, change)
        if self._phase:
            self._enter("")

    def _finish_erasures(self) -> None:
        self._enter("erasing")
        super()._finish_erasures()
        self._enter("")


def clock(number: int) -> Callable[[], float]:
    """So late that what a dead child had leased has expired."""
    return lambda: time.time() + 2 * LEASE_S * number


def child(order: Order, pipe: Connection) -> None:
    """Obey until killed; exit with 1 where something raises."""
    _or_die(lambda: _obey(order, Teller(pipe)))


def _or_die(do: Callable[[], None]) -> None:
    try:
        do()
    except Exception:  # noqa: BLE001  whatever it is, it is a fault, and no other thread is to go on
        traceback.print_exc()
        os._exit(1)


def _obey(order: Order, tell: Teller) -> None:
    power = Power(order.cut, order.number, tell) if order.cut else None
    with power.disk.watching() if power else nullcontext():
        if order.broken:
            BREAKAGES[order.broken]()
        if order.doing == "migrating":
            _migrate(order, power, tell)
        else:
            _serve(order, power, tell)


def _migrate(order: Order, power: Power | None, tell: Teller) -> None:
    tell("opening", "migrating")
    with schema(LATER):
        EmbeddedGallery(order.gallery, clock=clock(order.number), vfs=power.vfs if power else None)
    tell("opening", "")
    if power:
        power.go("nothing")
    time.sleep(LATEST_S)


def _serve(order: Order, power: Power | None, tell: Teller) -> None:
    tell("opening", "opening")
    gallery = EmbeddedGallery(
        order.gallery, tuning=EVERYTHING, clock=clock(order.number), vfs=power.vfs if power else None
    )
    tell("opening", "")
    for name in ("a", "b") if order.doing == "requests" else ():
        threading.Thread(target=_or_die, args=(Requests(gallery, name, order.number, tell).run,)).start()
    maintenance = ToldMaintenance(gallery, tell)
    while maintenance.run():
        time.sleep(0.005)
    raise AssertionError("another process has the lease")


def _never_synced(kind: Callable[[int], bool]) -> None:
    real = os.fsync
    os.fsync = lambda file: None if kind(os.fstat(file).st_mode) else real(file)  # type: ignore[arg-type, assignment]


def _synchronous_off() -> None:
    real = Ledger._connect

    def connect(self: Ledger) -> apsw.Connection:
        connection = real(self)
        connection.pragma("synchronous", "off")
        return connection

    Ledger._connect = connect  # type: ignore[method-assign]


def _answers_early() -> None:
    def commit(self: Ledger, connection: apsw.Connection, batch: list[tuple[Write, Any, Any]]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        results = [(future, write(connection)) for write, future, _ in batch]
        for future, result in results:
            if not isinstance(result, Collection):  # which the child itself would miss
                future.set_result(result)
        time.sleep(0.02)
        connection.execute("COMMIT")
        for future, result in results:
            if not future.done():
                future.set_result(result)

    Ledger._commit = commit  # type: ignore[method-assign]


# Mistakes that must be found, or else nothing is worth the table.
BREAKAGES: dict[str, Callable[[], None]] = {
    "the ledger is not synced": _synchronous_off,
    "files are not synced": partial(_never_synced, stat.S_ISREG),
    "folders are not synced": partial(_never_synced, stat.S_ISDIR),
    "answers before it is durable": _answers_early,
}


# The parent.


@dataclass(frozen=True)
class Enrolled:
    """Where a face is, and of what seed its vector and its crop are."""

    collection: str
    subject: str
    seed: int


@dataclass(frozen=True)
class Erased:
    """A face that was; the receipt's token where the child still had it."""

    face: Enrolled
    receipt: str | None


@dataclass
class Listing:
    """What there is: subjects by collection, faces by token."""

    subjects: dict[str, set[str]] = field(default_factory=dict)
    faces: dict[str, Enrolled] = field(default_factory=dict)


@dataclass
class Model:
    """What there must be.

    `undecided` are requests that had no answer, which may have been done or not, but not by half. `erased` are faces of
    the last deaths, of which no byte may be left; `tokens` are of all that was ever erased.
    """

    there: Listing = field(default_factory=Listing)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    undecided: list[dict[str, Any]] = field(default_factory=list)
    erased: list[Erased] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def hear(self, message: dict[str, Any]) -> None:
        """A request before it is made, or its answer."""
        if "request" in message:
            self.asked[message["thread"]] = message["request"]
        elif "answer" in message:
            self._done(self.asked.pop(message["thread"]), message["answer"])

    def dead(self) -> None:
        """The child is."""
        self.undecided += self.asked.values()
        self.asked.clear()

    def settle(self, found: Listing) -> Iterator[str]:
        """See of each undecided request what became of it; the faults are those that were done by half."""
        for request in self.undecided:
            outcomes = self._outcomes(request, found)
            if len(outcomes) > 1:
                yield f"done by half: {request}"
            elif outcomes == {True}:
                seeds = {face.seed: token for token, face in found.faces.items()}
                self._done(request, [seeds[seed] for _, seed in request.get("faces", [])] or [None])
                self.counts["undecided, done"] += 1
            else:
                self.counts["undecided, not done"] += 1
        self.undecided.clear()

    def _outcomes(self, request: dict[str, Any], found: Listing) -> set[bool]:
        """Of each thing that it would have done, whether that is done."""
        subjects = found.subjects.get(request["collection"])
        match request["do"]:
            case "create":
                return {subjects is not None}
            case "enrol":
                seeds = {face.seed for face in found.faces.values()}
                return {seed in seeds for _, seed in request["faces"]}
        victims = {token not in found.faces for token in self._victims(request)}
        match request["do"]:
            case "drop":
                return victims | {subjects is None}
            case "remove_subject":
                return victims | {request["subject"] not in (subjects or ())}
        return victims

    def _victims(self, request: dict[str, Any]) -> list[str]:
        if request["do"] == "remove_faces":
            return list(request["tokens"])
        place, subject = request["collection"], request.get("subject")
        faces = self.there.faces.items()
        return [token for token, face in faces if face.collection == place and subject in (None, face.subject)]

    def _done(self, request: dict[str, Any], answer: list[Any]) -> None:
        place = request["collection"]
        self.counts[request["do"]] += 1
        if request["do"] == "create":
            self.there.subjects[place] = set()
        elif request["do"] == "enrol":
            self.counts["faces enrolled"] += len(answer)
            for (subject, seed), token in zip(request["faces"], answer, strict=True):
                self.there.subjects[place].add(subject)
                self.there.faces[token] = Enrolled(place, subject, seed)
        else:
            for token in self._victims(request):
                self.erased.append(Erased(self.there.faces.pop(token), answer[0]))
                self.tokens.add(token)
                self.counts["faces erased"] += 1
            if request["do"] == "drop":
                del self.there.subjects[place]
            elif request["do"] == "remove_subject":
                self.there.subjects[place].remove(request["subject"])

    def differences(self, found: Listing) -> Iterator[str]:
        """Faults of what is listed."""
        for token in self.there.faces.keys() - found.faces.keys():
            yield f"lost: {token} {self.there.faces[token]}"
        for token in found.faces.keys() - self.there.faces.keys():
            yield f"{'came back' if token in self.tokens else 'never enrolled'}: {token} {found.faces[token]}"
        for token in self.there.faces.keys() & found.faces.keys():
            if self.there.faces[token] != found.faces[token]:
                yield f"changed: {token} {self.there.faces[token]} to {found.faces[token]}"
        if self.there.subjects != found.subjects:
            yield f"subjects: {self.there.subjects} became {found.subjects}"


def listing(gallery: EmbeddedGallery) -> Listing:
    """All that the gallery lists."""
    found = Listing()
    for collection in gallery.collections():
        subjects = gallery.subjects(collection.name)
        found.subjects[collection.name] = {subject.key for subject in subjects}
        for subject in subjects:
            for face in gallery.faces(collection.name, subject.key):
                found.faces[face.token] = Enrolled(collection.name, subject.key, face.details["seed"])
    return found


def searched(gallery: EmbeddedGallery, model: Model, every: int = 1) -> Iterator[str]:
    """Every face, or one of so many, is found by its vector, with its crop; none that was erased lately is found."""
    for name in model.there.subjects:
        faces = [(token, face) for token, face in model.there.faces.items() if face.collection == name]
        if gallery.size(name) != len(faces):
            yield f"{name}: {gallery.size(name)} faces are searched of {len(faces)}"
        there = dict(faces[::every])
        gone = [one.face for one in model.erased[-50:] if one.face.collection == name]
        queries = [vector(face.seed) for face in (*there.values(), *gone)]
        found = gallery.nearest_subjects(name, np.stack(queries), 1) if queries else []
        for (token, face), matches in zip(there.items(), found, strict=False):
            if [match.face for match in matches] != [token] or matches[0].similarity < 0.999:
                yield f"not found: {token} {face}, but {matches}"
            if _crop(gallery, name, token) != crop(face.seed):
                yield f"another crop: {token} {face}"
        for face, matches in zip(gone, found[len(there) :], strict=True):
            if matches and matches[0].similarity > 0.999:
                yield f"found again: {face}"


def _crop(gallery: EmbeddedGallery, collection: str, token: str) -> bytes | None:
    try:
        return gallery.crop(collection, token)
    except NotFoundError:
        return None


def unsound(gallery: EmbeddedGallery) -> Iterator[str]:
    """The ledger is sound, and every file that it names is there and whole."""
    with gallery.ledger.snapshot() as db:
        if (verdict := db.pragma("integrity_check")) != "ok":
            yield f"integrity check: {verdict}"
        if orphans := db.execute("PRAGMA foreign_key_check").fetchall():
            yield f"rows without what they belong to: {orphans}"
        for collection in gallery.collections():
            try:
                for one in vector_records.segments(db, collection.id):
                    Segment.open(gallery.files / one.file).verify()
                if indexed := vector_records.inverted_file(db, collection.id):
                    Ivf.read(gallery.files / indexed.file)
            except CorruptError as error:
                yield f"named, but not whole: {error}"


def leftovers(gallery: EmbeddedGallery, model: Model) -> Iterator[str]:
    """After a round of maintenance: files hold what there is and nothing else, and all erasures are done."""
    there = {vector(face.seed).tobytes() for face in model.there.faces.values()}
    with gallery.ledger.snapshot() as db:
        for collection in gallery.collections():
            parts = [
                (one, Segment.open(gallery.files / one.file)) for one in vector_records.segments(db, collection.id)
            ]
            if not there.issuperset(row.tobytes() for _, part in parts for row in part.vectors):
                yield f"a segment of {collection.name} holds what was erased"
            if indexed := vector_records.inverted_file(db, collection.id):
                rows = sum(len(part.faces) for one, part in parts if one.last_face <= indexed.last_face)
                held = len(Ivf.read(gallery.files / indexed.file))
                if held != rows:
                    yield f"the index of {collection.name} holds {held} vectors, its segments {rows}"
        names = {path.name for path in gallery.files.iterdir()}
        if names != vector_records.files(db):
            yield f"files {sorted(names ^ vector_records.files(db))} are there or are named, not both"
        if waiting := erasure_records.unfinished_receipts(db):
            yield f"erasures not done: {waiting}"


def remains(contents: bytes, erased: Iterable[Erased]) -> Iterator[str]:
    """Of whose vectors and crops a slice of 16 bytes is among the bytes of all files: it has one of these 8 in it."""
    pieces = {
        int(piece): one
        for one in erased
        for data in (vector(one.face.seed).tobytes(), crop(one.face.seed) or b"")
        for piece in np.frombuffer(data, "<u8")
    }
    wanted = np.array(sorted(pieces), "<u8")
    found: set[Erased] = set()
    for start in range(8):
        words = np.frombuffer(contents + bytes(8), "<u8", (len(contents) + 8 - start) // 8, start)
        found.update(pieces[int(word)] for word in words[np.isin(words, wanted)])
    return (f"bytes of {one} are still there" for one in found)


def denied(gallery: EmbeddedGallery, model: Model, before: bytes) -> Iterator[str]:
    """Receipts that are lost, and those that say "erased" of what was among `before`, the bytes of all files."""
    done = []
    for one in model.erased:
        try:
            if one.receipt and gallery.receipt(one.receipt).erased_at is not None:
                done.append(one)
        except NotFoundError:
            yield f"receipt lost: {one}"
    for fault in remains(before, done):
        yield f"in spite of the receipt, {fault}"


def contents(folder: Path) -> bytes:
    """Of all files in the folder, if it is there, and in those in it."""
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def check(folder: Path, model: Model, number: int, steps: tuple[str, ...] = STEPS) -> list[str]:
    """Open the gallery after a death, see what there is, maintain it once, and see again; the faults."""
    before = contents(folder)
    try:
        with schema(steps):
            gallery = EmbeddedGallery(folder, tuning=EVERYTHING, clock=clock(number))
    except (GalleryError, apsw.Error) as error:
        return [f"cannot be opened: {error!r}"]
    faults: list[str] = []
    try:
        faults += unsound(gallery)
        faults += denied(gallery, model, before)
        found = listing(gallery)
        for faults_of in (model.settle(found), model.differences(found), searched(gallery, model)):
            faults += faults_of
        if not Maintenance(gallery, LIMITS).run():
            faults.append("nobody else lives, but the lease is taken")
        for faults_of in (model.differences(listing(gallery)), searched(gallery, model, 5), leftovers(gallery, model)):
            faults += faults_of
        if steps != STEPS and gallery.ledger.reader().execute("SELECT 1 FROM subjects WHERE note != 'of ' || key").get:
            faults.append("migrated by half")
    except (GalleryError, apsw.Error) as error:
        faults.append(f"cannot be read: {error!r}")
    finally:
        gallery.close()
    return [*faults, *remains(contents(folder), model.erased)]


@dataclass(frozen=True)
class Row:
    """One death. Counts are of what was acknowledged, or left undecided, since the last look at the gallery.

    `requests`, `maintenance`: what those threads were at. `in_the_act`: whether one was at what was aimed at. `faces`:
    those there afterwards. A power cut left `unsynced` writes and names, of which about `share` were there afterwards.
    """

    how: str
    number: int
    aim: str
    in_the_act: bool
    requests: str
    maintenance: str
    enrolled: int
    erased: int
    undecided_done: int
    undecided_not_done: int
    faces: int
    unsynced: int | None
    share: float | None
    seconds: float
    faults: int


class Deaths:
    """Of one gallery, in a new folder `work`."""

    def __init__(self, work: Path, seed: int = 0, broken: str | None = None):
        self._work, self._broken = work.resolve(), broken
        self._disk = self._work / "disk"
        self._disk.mkdir(parents=True)
        self._rng = random.Random(seed)
        self._model = Model()
        self._number = 0
        self._migrations = 0
        self._spans: dict[str, deque[float]] = defaultdict(lambda: deque([0.02], maxlen=30))
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["tests.soak.power_cut_vfs", "index.embedded.tasks.maintenance"])
        self.faults: list[str] = []

    def kills(self, aims: Iterable[str]) -> Iterator[Row]:
        """One for each aim, until there is a fault."""
        return self._all("kill -9", list(aims))

    def power_cuts(self, aims: Iterable[str]) -> Iterator[Row]:
        """Likewise."""
        return self._all("power cut", list(aims))

    def _all(self, how: str, aims: list[str]) -> Iterator[Row]:
        for number, aim in enumerate(aims):
            # Where the next one is to die of opening, it must be the one that recovers from this death.
            looked_at = aims[number + 1 : number + 2] != ["opening"]
            if aim == "migrating":
                yield self._of_a_copy(how, number + 1)
            else:
                yield self._one(how, number + 1, aim, self._disk, self._model, STEPS if looked_at else None)
            if self.faults:
                return

    def _of_a_copy(self, how: str, number: int) -> Row:
        """Migrate a copy of the gallery, or a gallery that is not there yet, which is of version 0."""
        copied = self._work / "copy"
        shutil.rmtree(copied, ignore_errors=True)
        self._migrations += 1
        if new := self._migrations % 2 == 0:
            copied.mkdir()
        else:
            shutil.copytree(self._disk, copied)
        return self._one(how, number, "migrating", copied, Model() if new else copy.deepcopy(self._model), LATER)

    def _one(self, how: str, number: int, aim: str, disk: Path, model: Model, steps: tuple[str, ...] | None) -> Row:
        """Let a child die while it does what is aimed at; then look, unless `steps` is None."""
        began = time.monotonic()
        gallery, image = disk / "state" / "gallery", self._work / "image"
        cut = self._cut(aim, disk, image) if how == "power cut" else None
        self._number += 1
        doing = aim if aim in ("opening", "migrating") else "requests"
        phases = self._until_dead(Order(gallery, self._number, doing, cut, self._broken), aim, model)
        if cut:
            shutil.rmtree(disk)
            image.rename(disk)
        if steps is not None:
            self._number += 1
            self.faults += check(gallery, model, self._number, steps)
        counts, model.counts = model.counts, Counter()
        if steps is not None:
            model.erased = model.erased[-200:]
        requests = [phases[name]["phase"] for name in ("a", "b") if name in phases]
        background = [phases[name]["phase"] for name in ("opening", "maintenance") if name in phases]
        at = [*requests, *background, phases.get("disk", {}).get("phase", "")]
        return Row(
            how,
            number,
            aim,
            aim in at,
            " ".join(filter(None, requests)),
            " ".join(filter(None, background)),
            counts["faces enrolled"],
            counts["faces erased"],
            counts["undecided, done"],
            counts["undecided, not done"],
            len(model.there.faces),
            phases["disk"]["unsynced"] if cut else None,
            round(cut.share, 2) if cut else None,
            round(time.monotonic() - began, 1),
            len(self.faults),
        )

    def _cut(self, aim: str, disk: Path, image: Path) -> Cut:
        share = self._rng.choice([0.0, self._rng.random(), self._rng.random(), 1.0])
        kind = None if aim in ("opening", "migrating") else aim
        return Cut(disk, image, kind, self._rng.randrange(1 + CUT_AIMS[aim]), share)

    def _until_dead(self, order: Order, aim: str, model: Model) -> dict[str, dict[str, Any]]:
        """Run a child till it is killed; the last message of each thread."""
        receiver, sender = self._processes.Pipe(duplex=False)
        process = self._processes.Process(target=child, args=(order, sender), daemon=True)
        process.start()
        sender.close()
        phases: dict[str, dict[str, Any]] = {}
        messages = self._messages(receiver, phases, model)
        try:
            if order.cut is None:
                self._await(messages, aim)
                process.kill()
            for _ in messages:
                pass
        finally:
            process.kill()
            process.join()
            receiver.close()
        if process.exitcode != -signal.SIGKILL or (order.cut and "disk" not in phases):
            self.faults.append(f"the child ended by itself with {process.exitcode} at {phases}")
        model.dead()
        return phases

    def _messages(
        self, receiver: Connection, phases: dict[str, dict[str, Any]], model: Model
    ) -> Iterator[dict[str, Any]]:
        """All of them, until the child is dead; what they say is noted."""
        while receiver.poll(LATEST_S):
            try:
                message = json.loads(receiver.recv_bytes())
            except (EOFError, OSError):  # a message that it died of is as good as none
                return
            last = phases.get(message["thread"], {"phase": ""})
            if last["phase"]:
                self._spans[last["phase"]].append(message["at"] - last["at"])
            phases[message["thread"]] = message
            model.hear(message)
            yield message

    def _await(self, messages: Iterator[dict[str, Any]], aim: str) -> None:
        """Until a random moment of the first such phase after a random time."""
        begin = time.monotonic() + (0 if aim in ("opening", "migrating") else self._rng.uniform(0, 0.5))
        for message in messages:
            if message["phase"] == aim and message["at"] >= begin:
                time.sleep(self._rng.uniform(0, self._rng.choice(self._spans[aim])))
                return


# The report.


def summary(rows: Iterable[Row]) -> str:
    """A Markdown table, by what was aimed at."""
    columns = "| aimed at | deaths | in the act | faces enrolled | erased | unanswered: done | not done | faults |"
    lines = [columns, "|---|" + "--:|" * 7]
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.aim].append(row)
    groups["all"] = [row for group in groups.values() for row in group]
    for aim, group in groups.items():
        sums = [
            sum(getattr(row, name) for row in group)
            for name in ("in_the_act", "enrolled", "erased", "undecided_done", "undecided_not_done", "faults")
        ]
        lines.append(f"| {aim} | {len(group)} | " + " | ".join(f"{value:,}" for value in sums) + " |")
    return "\n".join(lines)
