"""Fill a gallery, erase some of it, wait for `erased`, and search every file for what was erased.

Searched are 16 bytes in a row of an erased vector (as float32, float16, 8-bit codes or base64), crop, name, key or
metadata. There are several rounds of erasing: SQLite moves the neighbours of erased rows, which the next round erases.
In an encrypted collection the same is searched for before anything is erased, too.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import apsw
import numpy as np
import numpy.typing as npt

from index.embedded.encryption import cipher_of
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import collection_records, subject_records
from index.embedded.tasks.maintenance import Maintenance, MaintenanceLimits
from index.embedded.vectors.ivf import Ivf
from index.operator_key import OperatorKey
from index.types import Floats, NewFace

COLLECTION, FINGERPRINT = "metro", "f1"
SLICE, WORD = 16, 8
FACES_OF_SUBJECT = 5
CROP_EVERY, CROP_BYTES = 500, (50, 5000)  # so long, at least and at most
AT_ONCE = 4000  # faces of one enrolment; whole subjects

Words = npt.NDArray[np.uint64]


def forms_of_vector(vector: Floats, indexes: Iterable[Ivf] = ()) -> Iterator[bytes]:
    """How a vector [D] may lie in a file: float32, float16, each index's codes, base64 at its three alignments."""
    data = vector.astype("<f4").tobytes()
    yield data
    yield vector.astype("<f2").tobytes()
    for index in indexes:
        yield index._index.sq.compute_codes(vector[None]).tobytes()
    for before in range(3):
        # Only the digits that are of nothing but the vector.
        yield base64.b64encode(bytes(before) + data)[-(-8 * before // 6) : (before + len(data)) * 8 // 6]


def forms_of_text(text: str) -> Iterator[bytes]:
    """How a text may lie in a file: UTF-8, or escaped in JSON."""
    yield text.encode()
    yield json.dumps(text)[1:-1].encode()


class Needles:
    """Finds every place where `SLICE` bytes in a row are some of a form's.

    Any such bytes have a whole word, 8 bytes at a multiple of 8, in them: so words of a file are looked up among all
    words of the forms, at whatever offset, and only where one is found its neighbourhood is compared.
    """

    def __init__(self, forms: Iterable[bytes]):
        self._forms = sorted({form for form in forms if len(form) >= SLICE})
        words = [_words_at_all_offsets(form) for form in self._forms]
        owners = np.repeat(np.arange(len(words)), [len(each) for each in words])
        flat = np.concatenate([np.empty(0, np.uint64), *words])
        order = np.argsort(flat, kind="stable")
        self._words, self._owners = flat[order], owners[order]
        self._maybe = np.zeros(2**27, bool)  # most words of a file are not to be found here, which is fast to see
        self._maybe[_hashed(self._words)] = True

    def search(self, path: Path, at_once: int = 2**26) -> list[tuple[int, bytes]]:
        """In a file: offsets and slices; of each word that is found, the first."""
        found: list[tuple[int, bytes]] = []
        with path.open("rb") as file:
            start, before = 0, b""
            while data := file.read(at_once):
                # With what is before and after the chunk, for slices that lie across.
                after = file.read(WORD)
                file.seek(-len(after), os.SEEK_CUR)
                found += self._in(before, data, after, start)
                start, before = start + len(data), data[-WORD:]
        return found

    def _in(self, before: bytes, data: bytes, after: bytes, start: int) -> Iterator[tuple[int, bytes]]:
        words = np.frombuffer(data, "<u8", len(data) // WORD)
        (places,) = np.nonzero(self._maybe[_hashed(words)])
        firsts, ends = (np.searchsorted(self._words, words[places], side) for side in ("left", "right"))
        whole, shift = before + data + after, len(before)
        for place, first, end in zip(places.tolist(), firsts.tolist(), ends.tolist(), strict=True):
            for offset in range(max(0, WORD * place + shift - WORD), WORD * place + shift + 1):
                piece = whole[offset : offset + SLICE]
                if len(piece) == SLICE and any(piece in self._forms[owner] for owner in self._owners[first:end]):
                    yield start + offset - shift, piece
                    break


def _words_at_all_offsets(form: bytes) -> Words:
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(form, np.uint8), WORD)
    return np.ascontiguousarray(windows).view("<u8")[:, 0]


def _hashed(words: Words) -> Words:
    return (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - 27)


def search_all(forms: Sequence[bytes], folders: Sequence[Path]) -> tuple[int, list[str]]:
    """Bytes read of all files under the folders, and what was found."""
    needles, size, found = Needles(forms), 0, []
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        size += path.stat().st_size
        found += [f"{path}: {piece.hex()} at {offset}" for offset, piece in needles.search(path)]
    return size, found


def search_elsewhere(forms: Sequence[bytes], folders: Sequence[Path]) -> tuple[int, list[str]]:
    """`search_all` in a process that has no gallery open: it may read the ledger's file without harm to its locks."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(search_all, forms, folders).result()


@dataclass(frozen=True)
class Person:
    """A subject with texts that nobody else has 16 bytes of, and faces around one point."""

    number: int
    key: str
    name: str
    note: str
    vectors: Floats
    crops: tuple[bytes | None, ...]

    @property
    def forms(self) -> Iterator[bytes]:
        """Of the texts."""
        for text in (self.key, self.name, self.note):
            yield from forms_of_text(text)


def person(
    number: int, dimensions: int, crop_every: int = CROP_EVERY, crop_bytes: tuple[int, int] = CROP_BYTES
) -> Person:
    """The same for the same number."""
    rng = np.random.default_rng(number)
    points = rng.normal(size=dimensions) + 0.4 * rng.normal(size=(FACES_OF_SUBJECT, dimensions))
    vectors = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    firsts = FACES_OF_SUBJECT * number + np.arange(FACES_OF_SUBJECT)
    crops = tuple(rng.bytes(int(rng.integers(*crop_bytes))) if face % crop_every == 0 else None for face in firsts)
    return Person(number, rng.bytes(16).hex(), _text(rng), _text(rng), vectors, crops)


def _text(rng: np.random.Generator) -> str:
    letters = rng.integers(97, 123, size=(8, 3))
    return "".join(f"{''.join(map(chr, row))}{chr(rng.integers(0x4E00, 0x9FFF))}" for row in letters)


def fill(gallery: EmbeddedGallery, people: Iterable[Person]) -> list[str]:
    """Enrol them all; the faces' tokens, in order."""
    tokens: list[str] = []
    waiting: list[Person] = []

    def enrol() -> None:
        found = gallery.collection(COLLECTION)

        def name_them(db: apsw.Connection) -> None:
            for one in waiting:
                subject_records.upsert(
                    db, found.id, one.key, name=one.name, metadata={"note": one.note}, expires_at=None, now=0.0
                )

        gallery.ledger.write(name_them)
        faces = [
            NewFace(one.key, vector, {}, crop)
            for one in waiting
            for vector, crop in zip(one.vectors, one.crops, strict=True)
        ]
        tokens.extend(face.token for face in gallery.enrol(COLLECTION, faces, FINGERPRINT))

    for one in people:
        waiting.append(one)
        if len(waiting) * FACES_OF_SUBJECT >= AT_ONCE:
            enrol()
            waiting = []
    if waiting:
        enrol()
    return tokens


def indexes(gallery: EmbeddedGallery) -> list[Ivf]:
    """The inverted files that there are, all of the one collection."""
    with gallery.ledger.snapshot() as db:
        cipher = cipher_of(db, collection_records.find(db, COLLECTION).id)
    return [Ivf.read(path, cipher) for path in gallery.files.glob("*.ivf")]


def erase(gallery: EmbeddedGallery, maintenance: Maintenance, tokens: Sequence[str], keys: Sequence[str]) -> float:
    """Seconds from the first request until every receipt says `erased`."""
    began = time.perf_counter()
    receipts = [gallery.remove_faces(COLLECTION, tokens).token]
    receipts += [gallery.remove_subject(COLLECTION, key).token for key in keys]
    while any(gallery.receipt(receipt).erased_at is None for receipt in receipts):
        maintenance.run()
    return time.perf_counter() - began


def _limits(vectors: int) -> MaintenanceLimits:
    """The shipped limits, or smaller ones that let so few vectors fill segments and an index."""
    return MaintenanceLimits(segment=min(65_536, vectors // 16), exact_below=min(100_000, vectors // 2))


@dataclass(frozen=True)
class Plan:
    """How much is enrolled, and how many faces and whole subjects each round erases."""

    vectors: int
    dimensions: int
    faces: int
    subjects: int
    rounds: int
    encrypted: bool

    def chosen(self) -> Iterator[tuple[list[int], list[int]]]:
        """For each round the faces' and subjects' numbers: half of the faces anywhere, half in a row, that goes on."""
        rng = np.random.default_rng(0)
        people = rng.permutation(self.vectors // FACES_OF_SUBJECT)
        whole, others = people[: self.subjects * self.rounds], np.sort(people[self.subjects * self.rounds :])
        ones = (others[:, None] * FACES_OF_SUBJECT + np.arange(FACES_OF_SUBJECT)).ravel()
        in_a_row = self.faces // 2
        row, anywhere = ones[: in_a_row * self.rounds], rng.permutation(ones[in_a_row * self.rounds :])
        for number in range(self.rounds):
            some = anywhere[number * (self.faces - in_a_row) :][: self.faces - in_a_row]
            chosen = np.concatenate((row[number * in_a_row :][:in_a_row], some))
            yield chosen.tolist(), whole[number * self.subjects :][: self.subjects].tolist()


def _forms(faces: Iterable[int], subjects: Iterable[int], dimensions: int, indexes: Sequence[Ivf]) -> Iterator[bytes]:
    made = partial(person, dimensions=dimensions)
    for one in map(made, subjects):
        yield from one.forms
        for vector, crop in zip(one.vectors, one.crops, strict=True):
            yield from (*forms_of_vector(vector, indexes), crop or b"")
    for face in faces:
        one = made(face // FACES_OF_SUBJECT)
        yield from forms_of_vector(one.vectors[face % FACES_OF_SUBJECT], indexes)
        yield one.crops[face % FACES_OF_SUBJECT] or b""


def measure(plan: Plan, state: Path, temporary: Path) -> tuple[dict[str, float], list[str]]:
    """Run the plan with a new gallery in `state`; return the figures and every slice found in the two folders.

    `erased_s` is of the slowest round. `left` counts the slices that erasing left; `open` (of encrypted collections)
    those that lay open before. `temporary` is the folder of temporary files of this process and of SQLite.
    """
    gallery = EmbeddedGallery(state, key=OperatorKey(os.urandom(32)) if plan.encrypted else None)
    try:
        gallery.create(COLLECTION, "face-embedder", FINGERPRINT, plan.dimensions, encrypted=plan.encrypted)
        began = time.perf_counter()
        people = (person(number, plan.dimensions) for number in range(plan.vectors // FACES_OF_SUBJECT))
        tokens = fill(gallery, people)
        filled = time.perf_counter()
        maintenance = Maintenance(gallery, _limits(plan.vectors))
        maintenance.run()
        built = time.perf_counter()
        if gallery.usage(COLLECTION).exact:
            raise RuntimeError("there is no index")
        ledger_bytes = sum(path.stat().st_size for path in state.glob("ledger.db*"))
        files_bytes = gallery.usage(COLLECTION).file_bytes
        found_open = _found_open(plan, gallery, [state, temporary]) if plan.encrypted else []
        seconds, forms = [], set[bytes]()
        for ones, whole in plan.chosen():
            before = indexes(gallery)
            keys = [person(number, plan.dimensions).key for number in whole]
            seconds.append(erase(gallery, maintenance, [tokens[number] for number in ones], keys))
            forms.update(_forms(ones, whole, plan.dimensions, before + indexes(gallery)))
        searched, found = search_elsewhere(sorted(forms), [state, temporary])
    finally:
        gallery.close()
    row = {
        "vectors": plan.vectors,
        "dimensions": plan.dimensions,
        "rounds": plan.rounds,
        "faces_of_a_round": plan.faces,
        "subjects_of_a_round": plan.subjects,
        "fill_s": round(filled - began, 2),
        "build_s": round(built - filled, 2),
        "ledger_mb": round(ledger_bytes / 1e6, 1),
        "files_mb": round(files_bytes / 1e6, 1),
        "erased_s": round(max(seconds), 2),
        "searched_mb": round(searched / 1e6, 1),
        "left": len(found),
        **({"open": len(found_open)} if plan.encrypted else {}),
    }
    return row, found_open + found


def _found_open(plan: Plan, gallery: EmbeddedGallery, folders: Sequence[Path]) -> list[str]:
    """Slices found of the people that the plan erases, before it does."""
    now = indexes(gallery)
    forms = {form for ones, whole in plan.chosen() for form in _forms(ones, whole, plan.dimensions, now)}
    return search_elsewhere(sorted(forms), folders)[1]
