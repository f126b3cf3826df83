"""Following faces: the same face keeps its track, and different faces never share one."""

from __future__ import annotations

import numpy as np
import pytest

from app.watch.tracker import Box, Detection, Track, Tracker

FPS = 10


def box(x: float, y: float, size: float = 0.05) -> Box:
    return x - size / 2, y - size / 2, x + size / 2, y + size / 2


def face(x: float, y: float, size: float = 0.05, confidence: float = 0.9) -> Detection:
    return Detection(box(x, y, size), confidence)


def only(tracks: list[Track | None]) -> Track:
    (track,) = tracks
    assert track is not None
    return track


def test_a_face_that_moves_by_its_own_size_per_frame_keeps_its_track() -> None:
    tracker = Tracker()
    # It accelerates: 0.4, 0.8, 1.0 face sizes per frame, so that no two boxes overlap in the end.
    positions = np.cumsum([0.1, 0.02, 0.04, 0.05, 0.05, 0.05, 0.05])
    tracks = {id(only(tracker.update([face(x, 0.3)], index / FPS))) for index, x in enumerate(positions)}
    assert len(tracks) == 1


def test_two_faces_that_cross_keep_their_tracks() -> None:
    tracker = Tracker()
    right, left = [], []
    for index in range(20):
        x = 0.2 + 0.03 * index
        # The faces pass each other at a distance of one face size.
        found = tracker.update([face(x, 0.30), face(1 - x, 0.36)], index / FPS)
        right.append(found[0])
        left.append(found[1])
    assert len({id(track) for track in right}) == len({id(track) for track in left}) == 1
    assert right[0] is not left[0]


def test_a_face_that_appears_where_another_was_long_ago_is_a_new_track() -> None:
    tracker = Tracker()
    first = only(tracker.update([face(0.5, 0.5)], 0.0))
    for index in range(1, 5):
        tracker.update([], index / FPS)
    assert only(tracker.update([face(0.5, 0.5)], 0.5)) is not first


def test_a_face_that_is_missed_in_one_frame_keeps_its_track() -> None:
    tracker = Tracker()
    first = only(tracker.update([face(0.5, 0.5)], 0.0))
    tracker.update([], 0.1)
    assert only(tracker.update([face(0.52, 0.5)], 0.2)) is first


def test_at_one_frame_in_half_a_second_a_standing_face_keeps_its_track() -> None:
    tracker = Tracker()
    assert len({id(only(tracker.update([face(0.5, 0.5)], index / 2))) for index in range(6)}) == 1


def test_a_stream_that_stalled_does_not_continue_a_track() -> None:
    tracker = Tracker()
    first = only(tracker.update([face(0.5, 0.5)], 0.0))
    assert only(tracker.update([face(0.5, 0.5)], 60.0)) is not first


def test_uncertain_detections_continue_tracks_and_start_none() -> None:
    tracker = Tracker()
    assert tracker.update([face(0.5, 0.5, confidence=0.35)], 0.0) == [None]
    first = only(tracker.update([face(0.5, 0.5)], 0.1))
    assert only(tracker.update([face(0.51, 0.5, confidence=0.35)], 0.2)) is first


def test_a_confident_detection_is_assigned_before_a_nearer_uncertain_one() -> None:
    tracker = Tracker()
    first = only(tracker.update([face(0.5, 0.5)], 0.0))
    uncertain, confident = tracker.update([face(0.5, 0.5, confidence=0.35), face(0.515, 0.5)], 0.1)
    assert (uncertain, confident) == (None, first)


def test_a_much_larger_face_is_another_track() -> None:
    tracker = Tracker()
    first = only(tracker.update([face(0.5, 0.5, 0.05)], 0.0))
    assert only(tracker.update([face(0.5, 0.5, 0.15)], 0.1)) is not first


def test_equal_times_do_not_divide_by_zero() -> None:
    tracker = Tracker()
    first = only(tracker.update([face(0.5, 0.5)], 1.0))
    assert only(tracker.update([face(0.51, 0.5)], 1.0)) is first


@pytest.mark.parametrize("seed", range(3))
def test_random_walks_at_a_distance_are_never_mixed(seed: int) -> None:
    """Five people walk in lanes and are detected in 80 % of the frames: no track has faces of two of them."""
    random = np.random.default_rng(seed)
    speeds = random.uniform(-0.1, 0.1, 5)
    tracker, owners = Tracker(), dict[int, int]()
    kept: list[Track] = []  # so that ids stay unique
    for index in range(60):
        people = [person for person in range(5) if random.random() < 0.8]
        faces = [face(0.5 + speeds[person] * index / FPS, 0.1 + 0.2 * person) for person in people]
        for person, track in zip(people, tracker.update(faces, index / FPS), strict=True):
            assert track is not None
            kept.append(track)
            assert owners.setdefault(id(track), person) == person
