"""Validation of values that enter the ledger; rows of older versions can still be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.embedded.admin.verify import find_faults
from index.embedded.encryption import cipher_of
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import Searches
from index.embedded.store import vector_records
from index.embedded.tasks.bulk_enrolment import JobQueue
from index.embedded.tasks.maintenance import Maintenance, MaintenanceLimits
from index.embedded.tasks.reembedding import Reembeddings, ReembeddingWorker
from index.errors import InvalidError
from index.operator_key import OperatorKey
from index.types import Floats, Item, NewFace, Properties
from index.validation import (
    EARLIEST,
    LATEST,
    MAX_DEPTH,
    are_unit,
    check_key,
    check_object,
    check_subject,
    parse_object,
    read_object,
    read_timestamp,
    unit_vectors,
)
from tests.index.people import vectors

TINY = np.array([1.6e-162] + 127 * [1.5e-162])
TOO_LATE = 253402300799.99997  # 9999-12-31T23:59:59.999999Z


def deep(depth: int) -> dict[str, Any]:
    """`depth` nested objects."""
    nested: dict[str, Any] = {}
    for _ in range(depth - 1):
        nested = {"a": nested}
    return nested


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[EmbeddedGallery]:
    gallery = EmbeddedGallery(tmp_path / "gallery", key=OperatorKey(b"k" * 32))
    gallery.create("doors", "face-embedder", "f1", 128, keep_crops=True)
    yield gallery
    gallery.close()


# Vectors.


@given(st.integers(-307, 307), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_vectors_of_any_scale_become_unit_vectors(exponent: int, dimensions: int, seed: int) -> None:
    given = np.random.default_rng(seed).uniform(0.1, 1, (3, dimensions)) * np.array([[1.0], [-1.0], [1.0]])
    expected = given / np.sqrt((given**2).sum(axis=1, keepdims=True))
    scaled = unit_vectors(given * 10.0**exponent, dimensions)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, expected, atol=1e-7)
    assert are_unit(scaled).all()
    assert unit_vectors(scaled, dimensions).tobytes() == scaled.tobytes()


def test_subnormal_and_huge_vectors_keep_their_direction() -> None:
    for number in (5e-324, 1e-40, 1.7e308):
        assert unit_vectors([[number, 0], [number, number]], 2).tolist() == pytest.approx(
            np.array([[1, 0], [0.5**0.5, 0.5**0.5]]), abs=1e-7
        )
    subnormal = np.full((1, 4), 1e-40, np.float32)
    assert unit_vectors(subnormal, 4).tolist() == [[0.5, 0.5, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[0.0, 0.0]], "no direction"),
        ([[1.0, np.nan]], "finite"),
        ([[1.0, np.inf]], "finite"),
        ([[1.0]], "2 numbers, got the shape"),
        ([1.0, 2.0], "2 numbers, got the shape"),
        ([[1.0, 2.0], [1.0]], "2 numbers each"),
    ],
)
def test_vectors_without_a_direction_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        unit_vectors(wrong, 2)


def test_every_method_scales_vectors(gallery: EmbeddedGallery) -> None:
    """Enrolment, feedback, re-embedding and queries; imports and bulk jobs have their own tests."""
    gallery.enrol("doors", [NewFace("tiny", TINY), NewFace("long", 3 * vectors(1, 128)[0], crop=b"c")], "f1")
    Feedback(gallery).add("doors", "long", TINY[None], [b"d"])
    for query in (vectors(5, 128, seed=5)[:1], TINY[None], 9 * vectors(1, 128)):
        for (matches,) in (gallery.nearest_subjects("doors", query), Searches(gallery).search("doors", query)):
            assert all(abs(match.similarity) <= 1 + 1e-6 for match in matches)
    (likest,) = gallery.nearest_subjects("doors", TINY[None], 1)[0]
    assert likest.subject.key == "tiny"
    assert likest.similarity == pytest.approx(1)
    match, _ = Searches(gallery).compare("doors", "long", 1e-30 * vectors(1, 128)[0])
    assert match is not None
    assert match.similarity == pytest.approx(1)
    assert list(find_faults(gallery)) == []
    gallery.remove_subject("doors", "tiny")
    task, worker = Reembeddings(gallery).begin("doors", "better", "f2", 128).reembedding, ReembeddingWorker(gallery)
    assert worker.claim(task)
    pending = worker.pending(task, -(2**63), 9) + worker.pending(task, 0, 9)
    assert worker.stage(task, {item.id: 1e-300 * vectors(1, 128)[0].astype(np.float64) for item in pending})
    assert worker.switch(task) == 0
    assert list(find_faults(gallery)) == []


def store_unscaled(db: apsw.Connection, people: Floats, strangers: Floats, rejected: list[int]) -> None:
    """Store vectors of other lengths than 1, some of zeros and one of another size."""
    changed = [(number, 7.6 * people[number - 1]) for number in (3, 9, 20)]
    changed += [(rejected[0], 7.6 * strangers[0]), (rejected[5], 0.2 * strangers[0])]
    changed += [(5, np.zeros(8)), (rejected[1], np.zeros(8)), (rejected[2], np.zeros(1))]
    cipher = cipher_of(db, 1)
    for number, vector in changed:
        table, key = ("vectors", "face_id") if number > 0 else ("rejections", "-id")
        data = cipher.encrypt(vector.astype("<f4").tobytes(), "vector", number)
        db.execute(f"UPDATE {table} SET data = ? WHERE {key} = ?", (data, number))
    db.execute("UPDATE collections SET unscaled = 1")


@pytest.mark.parametrize("encrypted", [False, True])
def test_vectors_of_older_versions_are_scaled_once(
    tmp_path: Path, encrypted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.embedded.tasks.maintenance.VECTORS_PER_CHECK", 4)
    monkeypatch.setattr("index.embedded.admin.verify.VECTORS_PER_CHECK", 4)
    with closing(EmbeddedGallery(tmp_path, key=OperatorKey(b"k" * 32))) as gallery:
        gallery.create("doors", "face-embedder", "f1", 8, encrypted=encrypted)
        people, strangers = vectors(20, 8), vectors(6, 8, seed=1)
        faces = gallery.enrol("doors", [NewFace(f"p{n:02}", vector) for n, vector in enumerate(people)], "f1")
        numbers = sorted(-rejection.id for rejection in Feedback(gallery).add("doors", "p00", strangers))
        gallery.ledger.write(partial(store_unscaled, people=people, strangers=strangers, rejected=numbers))
        maintenance = Maintenance(gallery, MaintenanceLimits(segment=4, exact_below=8))
        assert max(gallery.nearest_subjects("doors", person[None])[0][0].similarity for person in people) > 1.01
        feedback = [fault for fault in find_faults(gallery) if "feedback" in fault]
        assert [fault.partition(": ")[2] for fault in feedback] == [
            "1 vectors of feedback do not fit their collection",
            "2 vectors of feedback do not have length 1",
            "1 vectors of feedback do not have length 1",
        ]
        maintenance.run()
        for number, person in enumerate(people):
            if number != 4:
                (match,) = gallery.nearest_subjects("doors", person[None], 1)[0]
                assert match.face == faces[number].token
                assert match.similarity == pytest.approx(1, abs=1e-5)
        with gallery.ledger.snapshot() as db:
            stored = vector_records.read_rejected(db, gallery.collection("doors"), -(2**63), -1)
        by_id = dict(zip(stored.faces.tolist(), stored.vectors, strict=True))
        assert by_id.keys() == {*numbers} - {numbers[2]}
        for number in (numbers[0], numbers[5]):
            assert by_id[number] == pytest.approx(strangers[0], abs=1e-6)
        faults = [
            "ledger: 1 vectors of feedback do not fit their collection",
            "doors: 1 faces have no vector of length 1, the first is 5",
            "doors: 1 vectors of feedback do not have length 1",
        ]
        assert list(find_faults(gallery)) == faults
        events = [entry.event for entry in gallery.audit.read()[0] if entry.event.action == "scale_vectors"]
        scaled = [((3,), (3,)), ((9,), (9,)), ((20,), (20,)), ((1,), (numbers[0],)), ((1,), (numbers[5],))]
        assert [(event.subjects, event.faces) for event in events] == scaled
        generation = gallery.collection("doors").generation
        maintenance.run()
        assert gallery.collection("doors").generation == generation


def test_feedback_erased_while_its_vector_is_scaled_is_not_recorded(tmp_path: Path) -> None:
    with closing(EmbeddedGallery(tmp_path)) as gallery:
        collection = gallery.create("doors", "face-embedder", "f1", 8)
        row = {-5: vectors(1, 8)[0]}
        assert gallery.ledger.write(lambda db: vector_records.replace_rejected(db, collection, row)) == []


# Subjects.


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "1 to 128"),
        ("a" * 129, "1 to 128"),
        ("a/b", r"U\+002F"),
        ("a\n", r"U\+000A"),
        ("a\ud800", r"U\+D800"),
        ("😀", r"U\+1F600"),
        (".", "no URL can name"),
        ("..", "no URL can name"),
    ],
)
def test_keys_that_cannot_be_in_a_url_are_refused(key: str, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        check_key(key, "subject")


def test_keys_of_any_alphabet_are_accepted() -> None:
    newer = "\U00031350"  # a letter since Unicode 15
    for key in ("Zoë", "北", "a b-c_d.e@f:g+1", "नमस्\u200dते", "a" * 128, "...", newer):
        check_key(key, "subject")


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"metadata": deep(MAX_DEPTH + 1)}, "nested at most 100"),
    ({"metadata": {"a": [deep(MAX_DEPTH)]}}, "nested at most 100"),
    ({"metadata": {"a": float("nan")}}, "finite"),
    ({"metadata": {"a": "\ud800"}}, "UTF-8"),
    ({"metadata": {"a": object()}}, "JSON"),
    ({"metadata": {"a": "x" * 16_384}}, "16384 bytes"),
    ({"metadata": []}, "JSON object"),
    ({"name": "n" * 257}, "256 characters"),
    ({"name": "\ud800"}, "UTF-8"),
    ({"expires_at": TOO_LATE}, "9999-12-31"),
    ({"expires_at": float("nan")}, "9999-12-31"),
    ({"expires_at": float("inf")}, "9999-12-31"),
]


@pytest.mark.parametrize(("properties", "message"), INVALID)
def test_invalid_properties_are_not_stored(gallery: EmbeddedGallery, properties: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"name": None, "metadata": {}, "expires_at": None} | properties
    with pytest.raises(InvalidError, match=message):
        check_subject("a", **values)
    with pytest.raises(InvalidError, match=message):
        gallery.put_subject("doors", "a", **values)
    jobs = JobQueue(gallery)
    job = jobs.begin("doors", {})
    with pytest.raises(InvalidError, match=message):
        jobs.append(job, [Item(0, "a", "vector", vectors(1, 128).tobytes(), Properties(**values))])
    assert gallery.subjects("doors") == []


def test_the_largest_valid_properties_are_stored(gallery: EmbeddedGallery) -> None:
    subject = gallery.put_subject("doors", "a", name="n" * 256, metadata=deep(MAX_DEPTH), expires_at=LATEST)
    assert gallery.subjects("doors") == [subject]
    assert read_timestamp(LATEST).isoformat() == "9999-12-31T23:59:59+00:00"


def test_an_expired_subject_is_refused(gallery: EmbeddedGallery) -> None:
    gallery.clock = lambda: 1000.0
    for expires_at in (999.0, 1000.0, EARLIEST):
        with pytest.raises(InvalidError, match="in the past"):
            gallery.put_subject("doors", "a", expires_at=expires_at)
    gallery.put_subject("doors", "a", expires_at=1000.5)


def test_collections_and_faces_are_validated(gallery: EmbeddedGallery) -> None:
    for name in ("", "a/b"):
        with pytest.raises(InvalidError):
            gallery.create(name, "e", "f", 4)
    with pytest.raises(InvalidError, match="settings"):
        gallery.create("new", "e", "f", 4, keep=float("inf"))
    for wrong in (NewFace("a/b", vectors(1, 128)[0]), NewFace("a", vectors(1, 128)[0], {"yaw": float("nan")})):
        with pytest.raises(InvalidError):
            gallery.enrol("doors", [NewFace("b", vectors(1, 128)[0]), wrong], "f1")
    assert gallery.enrol("doors", [], "f1") == []
    assert gallery.subjects("doors") == []


def test_json_text_is_validated() -> None:
    assert parse_object('{"a": 1}', "it") == {"a": 1}
    for text in ("[" * 100_000, "{", "[]", '{"a": Infinity}', '{"a": 1e999}'):
        with pytest.raises(InvalidError):
            parse_object(text, "it")
    check_object({"a": ({},)}, "it")


def test_stored_objects_are_read_without_what_a_response_cannot_contain() -> None:
    assert read_object('{"a": [1, "b", {"c": null}], "E": 1e10}') == {"a": [1, "b", {"c": None}], "E": 1e10}
    assert read_object('{"a": NaN, "b": [-Infinity, 1e999, 2.5]}') == {"a": None, "b": [None, None, 2.5]}
    assert read_object(r'{"\ud800": "a\ud800"}') == {
        "\N{REPLACEMENT CHARACTER}" * 3: "a" + "\N{REPLACEMENT CHARACTER}" * 3
    }
    assert read_object(r'{"a": "😀"}') == {"a": "😀"}
    for text in ("", "[]", "nonsense", '{"a":' * 100_000):
        assert read_object(text) == {}
    kept = read_object(json.dumps(deep(300)))
    assert kept == json.loads(json.dumps(deep(MAX_DEPTH)).replace("{}", '{"a": null}'))
    many: dict[str, Any] = {str(number): {} for number in range(200)}
    assert read_object(json.dumps(many)) == many
    for seconds in (float("inf"), float("-inf"), 1e300, TOO_LATE, -1e12):
        assert 1 <= read_timestamp(seconds).year <= 9999


def test_invalid_stored_rows_are_listed(gallery: EmbeddedGallery) -> None:
    gallery.enrol("doors", [NewFace(key, vector) for key, vector in zip("abcd", vectors(4, 128), strict=True)], "f1")

    def store_invalid(db: apsw.Connection) -> None:
        db.execute("UPDATE subjects SET expires_at = ? WHERE key = 'a'", (TOO_LATE,))
        db.execute("UPDATE subjects SET metadata = ? WHERE key = 'b'", (json.dumps(deep(300)),))
        db.execute("UPDATE subjects SET metadata = 'nonsense' WHERE key = 'c'")
        db.execute("UPDATE faces SET details = '{\"yaw\": NaN}'")
        db.execute("UPDATE collections SET settings = 'nonsense'")

    gallery.ledger.write(store_invalid)
    assert [subject.key for subject in gallery.subjects("doors")] == list("abcd")
    assert [collection.settings for collection in gallery.collections()] == [{}]
    assert gallery.faces("doors", "b")[0].details == {"yaw": None}
    assert len(gallery.nearest_subjects("doors", vectors(1, 128), 4)[0]) == 4
    Maintenance(gallery).run()
