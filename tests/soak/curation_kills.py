"""Kill a process that merges, undoes and moves at random moments, and check that each change is complete or not made.

A child process changes one collection and reports every change before it is begun and after it is acknowledged. The
parent kills it, opens the storage, and compares every face's subject, the rejected faces, the merges that can be undone
and the audit log with a model. It then undoes all merges, and merges again. The kills of a run happen to one gallery.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from index.audit_chain import AuditEvent
from index.protocol import Storage
from index.types import NewFace

COLLECTION, FINGERPRINT, DIMENSIONS = "doors", "f1", 8
SUBJECTS, FACES = 12, 5  # subjects at the start, and faces of each
LONGEST_S = 0.6  # from the first change of a child to its death, at most

Open = Callable[[], Storage]


@dataclass
class Undo:
    """What the undo of a merge restores: the kept and the absorbed subjects, and the earlier subjects of faces."""

    kept: str
    absorbed: tuple[str, ...]
    faces: dict[str, str]
    rejected: dict[str, str]


@dataclass
class Model:
    """The expected state: subjects of faces and of rejected faces, by token, and the merges, oldest first."""

    subjects: set[str] = field(default_factory=set)
    faces: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    merges: dict[str, Undo] = field(default_factory=dict)

    def after(self, change: Change, token: str) -> Model:
        """Return the state after a change; `token`: of the merge, if it is one."""
        model = deepcopy(self)
        if change.kind == "merge":
            absorbed = set(change.others)
            moved, rejected = (
                {face: owner for face, owner in faces.items() if owner in absorbed}
                for faces in (model.faces, model.rejected)
            )
            model.merges[token] = Undo(change.subject, change.others, moved, rejected)
            model.faces |= dict.fromkeys(moved, change.subject)
            model.rejected |= dict.fromkeys(rejected, change.subject)
            model.subjects -= absorbed
        elif change.kind == "undo":
            undo = model.merges.pop(change.subject)
            for before, now in ((undo.faces, model.faces), (undo.rejected, model.rejected)):
                now |= {face: owner for face, owner in before.items() if now[face] == undo.kept}
            model.subjects |= set(undo.absorbed)
        else:
            moved = {face: owner for face, owner in model.faces.items() if face in change.others}
            for undo in model.merges.values():
                for face, owner in moved.items():
                    if owner != change.subject:
                        undo.faces.pop(face, None)
            model.faces |= dict.fromkeys(moved, change.subject)
            model.subjects.add(change.subject)
        return model

    @property
    def listed(self) -> list[str]:
        """The tokens of the merges that can be undone now."""
        return [token for token, undo in self.merges.items() if undo.kept in self.subjects]


@dataclass(frozen=True)
class Change:
    """A `merge` into `subject` of `others`; a `move` of the faces `others` to `subject`; the `undo` of a token."""

    kind: str
    subject: str
    others: tuple[str, ...] = ()
    actor: str = ""


def draw(model: Model, rng: random.Random) -> Change:
    """Return a change that is possible. Moves create subjects, so that merges do not run out of them."""
    actor, subjects = f"key-{rng.randrange(2**32):08x}", sorted(model.subjects)
    kind = rng.choice(["merge", "move", "undo"])
    if kind == "undo" and model.listed:
        return Change("undo", rng.choice(model.listed), actor=actor)
    if kind == "merge" and len(subjects) > 2:
        kept, *others = rng.sample(subjects, rng.randint(2, 3))
        return Change("merge", kept, tuple(others), actor)
    absorbed = {key for undo in model.merges.values() for key in undo.absorbed}
    new = [f"p{number}" for number in range(10 * SUBJECTS) if f"p{number}" not in absorbed | model.subjects]
    faces = tuple(sorted(rng.sample(sorted(model.faces), rng.randint(1, 4))))
    return Change("move", rng.choice([*subjects, new[0]]), faces, actor)


def make(storage: Storage, change: Change) -> str:
    """Make the change, and return the token of a merge."""
    if change.kind == "merge":
        return storage.curation.merge(COLLECTION, change.subject, change.others, actor=change.actor).token
    if change.kind == "undo":
        return storage.curation.undo_merge(COLLECTION, change.subject, actor=change.actor).token
    storage.curation.move_faces(COLLECTION, change.others, change.subject, actor=change.actor)
    return ""


def work(open_storage: Open, model: Model, seed: int, pipe: Connection) -> None:
    """Change the collection until this process is killed; report each change before and after it."""
    rng = random.Random(seed)
    storage = open_storage()
    pipe.send("ready")
    while True:
        change = draw(model, rng)
        pipe.send(change)
        token = make(storage, change)
        pipe.send(token)
        model = model.after(change, token)


def fill(storage: Storage, rng: random.Random) -> Model:
    """Create the collection with subjects, faces and rejected faces."""
    gallery, model = storage.gallery, Model()
    gallery.create(COLLECTION, "face-embedder", FINGERPRINT, DIMENSIONS)
    vectors = np.random.default_rng(rng.randrange(2**32)).normal(size=(SUBJECTS * (FACES + 1), DIMENSIONS))
    for number, vector in enumerate(vectors.astype(np.float32)):
        key = f"p{number % SUBJECTS}"
        model.subjects.add(key)
        if number < SUBJECTS * FACES:
            (face,) = gallery.enrol(COLLECTION, [NewFace(key, vector, crop=b"crop")], FINGERPRINT)
            model.faces[face.token] = key
        else:
            (rejected,) = storage.feedback.add(COLLECTION, key, vector[None])
            model.rejected[rejected.token] = key
    return model


def faults(storage: Storage, model: Model) -> Iterator[str]:
    """Yield how the storage differs from the model."""
    gallery, subjects = storage.gallery, set()
    faces: dict[str, str] = {}
    rejected: dict[str, str] = {}
    for subject in gallery.subjects(COLLECTION, limit=1000):
        subjects.add(subject.key)
        faces |= {face.token: subject.key for face in gallery.faces(COLLECTION, subject.key)}
        rejected |= {face.token: subject.key for face in storage.feedback.of_subject(COLLECTION, subject.key)}
    for name, actual, expected in (
        ("subjects", subjects, model.subjects),
        ("faces", faces, model.faces),
        ("rejected faces", rejected, model.rejected),
        ("merges", [merge.token for merge in storage.curation.merges(COLLECTION)], model.listed),
    ):
        if actual != expected:
            yield f"{name}: {actual} instead of {expected}"
    if gallery.usage(COLLECTION).subjects != len(model.subjects) or gallery.size(COLLECTION) != len(model.faces):
        yield "a count is wrong"
    ids = [subject.id for subject in gallery.subjects(COLLECTION, limit=1000)]
    vectors = storage.curation.subject_vectors(COLLECTION, ids)
    queries = {row.faces[0]: (row.subject.key, row.vectors[0]) for row in vectors if row.faces}
    found = storage.searches.search(COLLECTION, np.array([vector for _, vector in queries.values()]), 1)
    for (key, _), matches in zip(queries.values(), found, strict=True):
        if matches and matches[0].similarity > 1 - 1e-5 and matches[0].subject.key != key:
            yield f"a search found {matches[0].subject.key} instead of {key}"


@dataclass(frozen=True)
class Death:
    """A kill: how many changes were acknowledged before, and whether the one in progress was made."""

    number: int
    acknowledged: int
    in_progress: str
    made: bool
    undone: int
    seconds: float


class Kills:
    """Kills of processes that change one gallery, which `open_storage` opens. `faults`: what was wrong."""

    def __init__(self, open_storage: Open, events: Callable[[Storage], list[AuditEvent]], seed: int):
        self._open, self._events, self._rng = open_storage, events, random.Random(seed)
        self.faults: list[str] = []
        with closing(open_storage()) as storage:
            self.model = fill(storage, self._rng)
            self._seen = len(events(storage))

    def run(self, count: int) -> Iterator[Death]:
        """Kill so many processes; stop at the first fault."""
        for number in range(count):
            started = time.monotonic()
            changes = self._kill()
            with closing(self._open()) as storage:
                in_progress, made = self._check(storage, changes)
                undone = 0 if self.faults else self._undo_some(storage)
                self._seen = len(self._events(storage))
            if self.faults:
                return
            acknowledged = sum(token is not None for _, token in changes)
            yield Death(number, acknowledged, in_progress, made, undone, round(time.monotonic() - started, 2))

    def _kill(self) -> list[tuple[Change, str | None]]:
        """Let a child work, and kill it; return its changes, each with its result if it was acknowledged."""
        context = multiprocessing.get_context("fork")
        pipe, theirs = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(self._open, self.model, self._rng.randrange(2**32), theirs))
        child.start()
        theirs.close()
        assert pipe.recv() == "ready"
        time.sleep(self._rng.uniform(0, LONGEST_S))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        messages: list[Any] = []
        try:
            while True:
                messages.append(pipe.recv())
        except (EOFError, OSError):  # the child died; a partial message is no message
            pipe.close()
        results = [*messages[1::2], *[None] * (len(messages) % 2)]
        return list(zip(messages[::2], results, strict=True))

    def _check(self, storage: Storage, changes: list[tuple[Change, str | None]]) -> tuple[str, bool]:
        """Compare the storage with the model after the acknowledged changes, and after the one in progress."""
        expected: list[Change] = []
        for change, token in changes:
            if token is not None:
                self.model = self.model.after(change, token)
                expected.append(change)
        before = list(faults(storage, self.model))
        unanswered = [change for change, token in changes if token is None]
        made = bool(before) and bool(unanswered)
        if made:
            known = set(self.model.merges)
            new = [merge.token for merge in storage.curation.merges(COLLECTION) if merge.token not in known]
            self.model = self.model.after(unanswered[0], new[0] if new else "")
            expected += unanswered
            self.faults += [f"neither before {unanswered} nor after: {fault}" for fault in faults(storage, self.model)]
        else:
            self.faults += before
        self._check_audit(storage, expected, unanswered)
        return (unanswered[0].kind if unanswered else ""), made

    def _check_audit(self, storage: Storage, expected: list[Change], unanswered: list[Change]) -> None:
        """Every change that was made has one event with its actor, in order, and no other change has one.

        A change that changed nothing, a move of faces to the subject that has them, has none.
        """
        names = {"merge": "merge_subjects", "undo": "undo_merge", "move": "move_faces"}
        events = [event for event in self._events(storage)[self._seen :] if event.action in names.values()]
        logged = [(event.action, event.actor) for event in events]
        wanted = [(names[change.kind], change.actor) for change in expected]
        optional = {(names["move"], change.actor) for change in (*expected, *unanswered) if change.kind == "move"}
        if [line for line in logged if line not in optional] != [line for line in wanted if line not in optional]:
            self.faults.append(f"the audit log has {logged} instead of {wanted}")

    def _undo_some(self, storage: Storage) -> int:
        """Undo up to two merges, the last first, check the result, and return how many were undone."""
        undone = 0
        for token in self.model.listed[::-1][: self._rng.randint(0, 2)]:
            if token in self.model.listed:
                change = Change("undo", token, actor="key-of-parent")
                make(storage, change)
                self.model = self.model.after(change, token)
                self.faults += [f"after an undo: {fault}" for fault in faults(storage, self.model)]
                undone += 1
        return undone
