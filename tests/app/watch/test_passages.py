"""Best shots, the confirmation of passages, when they are searched for, and which tracks continue them."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from app.watch.decisions import PassageDecision, better
from app.watch.passages import GAP_S, Passages, TrackedPassage
from app.watch.shots import LARGEST_CROP, MOST_SHOTS, BestShots, crop_jpeg, score_of
from app.watch.source.frames import Frame
from app.watch.tracker import Track
from tests.app.watch.faces import detected


def frame(time: float) -> Frame:
    return Frame(time, lambda: Image.new("RGB", (640, 480)))


def decision(status: str = "unknown", subject: str | None = None) -> PassageDecision:
    return PassageDecision(status, subject, None, 0.5, 0.6, 0.4, 3, [])


def seen(passages: Passages, track: Track, times: list[float], **quality: object) -> TrackedPassage:
    """Observe a face of the track at these times."""
    for time in times:
        face = detected(**quality)  # type: ignore[arg-type]
        passage = passages.of(track, frame(time))
        passage.observe(face, frame(time), read_at=time)
        passage.shots.offer(face, time, lambda: b"jpeg")
    return passage


@pytest.mark.parametrize(
    "worse",
    [
        detected(40.0),
        detected(confidence=0.6),
        detected(sharpness=0.02),
        detected(yaw=0.3),
        detected(yaw=None),
        detected(200.0, reasons=("LOW_BRIGHTNESS",)),
    ],
)
def test_a_better_face_has_a_higher_score(worse: object) -> None:
    assert score_of(worse) < score_of(detected())  # type: ignore[arg-type]


def test_neighbouring_frames_give_one_shot_the_best_of_them() -> None:
    shots = BestShots()
    for index, side in enumerate([60.0, 100.0, 80.0]):
        shots.offer(detected(side), index * 0.05, lambda side=side: str(side).encode())  # type: ignore[misc]
    assert [shot.jpeg for shot in shots.best_first] == [b"100.0"]


def test_a_face_that_comes_nearer_has_a_shot_of_each_quarter_of_a_second() -> None:
    shots = BestShots()
    for index in range(20):
        shots.offer(detected(60.0 + index), index * 0.1, lambda index=index: str(index).encode())  # type: ignore[misc]
    assert [int(shot.jpeg) for shot in shots.best_first] == [19, 17, 14, 12, 9, 7, 4, 2]


def test_at_most_so_many_shots_are_kept_and_the_worst_is_replaced() -> None:
    shots = BestShots()
    for index in range(3 * MOST_SHOTS):
        shots.offer(detected(20.0 + index), index * 1.0, lambda index=index: str(index).encode())  # type: ignore[misc]
    best = shots.best_first
    assert [shot.jpeg for shot in best] == [
        str(index).encode() for index in reversed(range(2 * MOST_SHOTS, 3 * MOST_SHOTS))
    ]
    assert [shot.score for shot in best] == sorted((shot.score for shot in best), reverse=True)


def test_a_crop_is_only_encoded_if_it_is_kept() -> None:
    shots = BestShots()
    shots.offer(detected(100.0), 0.0, lambda: b"good")
    shots.offer(detected(50.0), 0.1, lambda: pytest.fail("encoded"))


def test_unusable_shots_are_used_only_without_usable_ones() -> None:
    shots = BestShots()
    shots.offer(detected(200.0, reasons=("LOW_SHARPNESS",)), 0.0, lambda: b"blurred")
    assert [shot.jpeg for shot in shots.best_first] == [b"blurred"]
    assert shots.total == 0
    shots.offer(detected(40.0), 1.0, lambda: b"small")
    assert [shot.jpeg for shot in shots.best_first] == [b"small"]


@pytest.mark.parametrize("box", [(280.0, 200.0, 360.0, 300.0), (-20.0, -10.0, 60.0, 90.0), (0.0, 0.0, 640.0, 480.0)])
def test_a_crop_has_the_face_with_its_surroundings_and_bounded_size(box: tuple[float, float, float, float]) -> None:
    with Image.open(io.BytesIO(crop_jpeg(Image.new("RGB", (640, 480)), box))) as crop:
        assert crop.format == "JPEG"
        assert max(crop.size) <= LARGEST_CROP
        if box[0] == 280:
            assert crop.size == (176, 220)


def test_a_passage_needs_detections_and_confidence() -> None:
    track = Track(0.5, 0.5, 0.1, 0.0)
    assert not seen(Passages(), track, [0.0, 0.1]).confirmed
    assert not seen(Passages(), track, [0.0, 0.1, 0.2], confidence=0.52).confirmed
    assert seen(Passages(), track, [0.0, 0.1, 0.2]).confirmed


def test_searches_begin_with_the_first_usable_shot_and_follow_better_shots() -> None:
    passages, track = Passages(), Track(0.5, 0.5, 0.1, 0.0)
    assert not seen(passages, track, [0.0, 0.3], reasons=("SMALL_BOUNDING_BOX",)).wants_look
    passage = seen(passages, track, [0.6], side=50)
    assert passage.wants_look
    passage.begin_look()
    passage.looking = False
    assert not seen(passages, track, [0.9], side=30).wants_look  # hardly better
    assert seen(passages, track, [1.2, 1.5], side=100).wants_look
    passage.begin_look()
    assert not passage.wants_look  # one at a time
    passage.looking = False
    for index in range(20):
        if seen(passages, track, [2.0 + index]).wants_look:
            passage.begin_look()
            passage.looking = False
    assert passage.looks == 3


def test_after_a_match_there_is_no_search_before_the_end() -> None:
    passage = seen(Passages(), Track(0.5, 0.5, 0.1, 0.0), [0.0])
    passage.decision = decision("match", "anna")
    assert not passage.wants_look


def test_a_passage_ends_after_the_gap_unless_a_request_is_under_way() -> None:
    passages = Passages()
    passage = seen(passages, Track(0.5, 0.5, 0.1, 0.0), [0.0, 0.1])
    assert passages.take_ended(0.1 + GAP_S) == []
    passage.looking = True
    assert passages.take_ended(10.0) == []
    passage.looking = False
    assert passages.take_ended(10.0) == [passage]
    assert list(passages) == passages.take_all() == []


@pytest.mark.parametrize(
    ("x", "size", "time", "near"),
    [
        (0.52, 0.1, 1.0, True),
        (0.8, 0.1, 1.0, True),  # three sizes in a second
        (0.95, 0.1, 1.0, False),
        (0.95, 0.1, 2.5, True),
        (0.52, 0.1, 0.05, False),  # both were in view
        (0.52, 0.1, 0.2 + GAP_S + 0.1, False),
        (0.52, 0.3, 1.0, False),  # another size
    ],
)
def test_which_tracks_may_continue_a_passage(x: float, size: float, time: float, near: bool) -> None:
    passages = Passages()
    first = seen(passages, Track(0.5, 0.5, 0.1, 0.0), [0.0, 0.1, 0.2])
    second = seen(passages, Track(x, 0.5, size, time), [time, time + 0.1])
    assert (passages.predecessor(second) is first) is near
    assert passages.predecessor(first) is None
    if near:
        second.compared.add(first.id)
        assert passages.predecessor(second) is None


@pytest.mark.parametrize(
    ("x", "began", "reasons", "continues"),
    [
        (0.55, 1.0, ("LOW_CONFIDENCE",), True),
        (0.75, 1.0, ("LOW_CONFIDENCE",), False),  # too far away
        (0.55, 2.0, ("LOW_CONFIDENCE",), False),  # too late
        (0.55, 1.0, (), False),  # it has a usable shot to compare
    ],
)
def test_a_passage_that_ends_is_continued_by_a_near_one_without_a_usable_shot(
    x: float, began: float, reasons: tuple[str, ...], continues: bool
) -> None:
    passages = Passages()
    first = seen(passages, Track(0.5, 0.5, 0.1, 0.0), [0.0])
    second = seen(passages, Track(x, 0.5, 0.1, began), [began, began + 0.1, began + 0.2], reasons=reasons)
    assert passages.adjacent(GAP_S) is None  # it has not ended yet
    assert passages.adjacent(GAP_S + 0.1) == ((first, second) if continues else None)
    second.comparing = True
    assert passages.adjacent(GAP_S + 0.1) is None


def test_a_merged_passage_has_the_shots_times_and_decision_of_both() -> None:
    passages = Passages()
    first = seen(passages, Track(0.5, 0.5, 0.1, 0.0), [0.0, 0.1, 0.2], reasons=("LOW_SHARPNESS",))
    track = Track(0.52, 0.5, 0.1, 1.0)
    second = seen(passages, track, [1.0, 1.3])
    first.decision, second.decision = decision(), decision("match", "anna")
    passages.merge(first, second)
    assert list(passages) == [first]
    assert (first.detections, first.last, first.usable_since) == (5, 1.3, 1.0)
    assert [shot.time for shot in first.shots.best_first] == [1.0, 1.3]
    assert first.decision is second.decision
    assert seen(passages, track, [1.6]) is first


def test_the_decision_is_the_last_search_or_an_earlier_match() -> None:
    unknown, anna, bob = decision(), decision("match", "anna"), decision("match", "bob")
    assert better(None, unknown) is unknown
    assert better(anna, unknown) is anna
    assert better(anna, bob) is bob
    assert better(unknown, bob) is bob
