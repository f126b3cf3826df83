"""The synthetic camera and the figures that are computed of its passages."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from app.watch.decisions import PassageDecision
from benchmarks.cameras.passers_by import figures
from benchmarks.cameras.synthetic_stream import AT_ONCE, FPS, HOLD, PassersBy, Person, Walk, enrolled_photos


@pytest.fixture(scope="module")
def stream() -> PassersBy:
    random = np.random.default_rng(0)
    people = [
        Person(str(number), [Image.fromarray(random.integers(0, 256, (112, 112, 3), np.uint8)) for _ in range(6)])
        for number in range(20)
    ]
    return PassersBy(people, 20)


def decision(subject: str | None) -> PassageDecision:
    return PassageDecision("match" if subject else "unknown", subject, None, 0.9, 0.3, 0.4, 3, [])


def test_the_same_seed_gives_the_same_frames(stream: PassersBy) -> None:
    frames = list(stream.frames())
    assert len(frames) == stream.frame_count
    assert [frame.time for frame in frames[:3]] == pytest.approx([0, 1 / FPS, 2 / FPS])
    np.testing.assert_array_equal(np.asarray(stream.draw(7)), np.asarray(frames[7].image))


def test_walks_have_different_photos_that_are_not_enrolled_and_few_are_in_view(stream: PassersBy) -> None:
    assert len(stream.enrolled) == 6
    for walk in stream.walks:
        assert 3 <= len(walk.photos) <= 6
        assert len({id(photo) for photo in walk.photos}) == len(walk.photos)
        assert walk.stop - walk.start == HOLD * len(walk.photos)
        if walk.person in stream.enrolled:
            assert not {id(photo) for photo in walk.photos} & {id(photo) for photo in enrolled_photos(walk.person)}
    assert max(len(list(stream.walks_at(index))) for index in range(stream.frame_count)) <= AT_ONCE


def test_the_walk_at_a_position_is_the_one_whose_face_is_there(stream: PassersBy) -> None:
    walk = stream.walks[0]
    x, y, side = walk.place(walk.start)
    assert stream.walk_at(walk.start, x, y) is walk
    assert stream.walk_at(walk.start, x + side, y + side) is not walk
    assert stream.walk_at(stream.frame_count - 1, x, y) is None


def test_figures(stream: PassersBy) -> None:
    """One walk is missed, one is seen twice, one sighting mixes two people, and one stranger is named."""
    enrolled = [walk for walk in stream.walks if walk.person in stream.enrolled]
    others = [walk for walk in stream.walks if walk.person not in stream.enrolled]
    seen: dict[str, list[Walk | None]] = {f"s{walk.number}": [*[walk] * 10] for walk in stream.walks[1:]}
    stored = {f"s{walk.number}": decision(walk.person.name if walk in enrolled else None) for walk in stream.walks[1:]}
    twice, mixed, alarm = [walk for walk in others if walk.number][:3]
    seen["again"], stored["again"] = [twice] * 5, decision(None)
    seen[f"s{mixed.number}"] = [*[mixed] * 9, twice]
    stored[f"s{alarm.number}"] = decision(enrolled[0].person.name)
    found = figures(stream, seen, stored)
    counts = Counter({name: found[name] for name in ("missed", "repeated", "mixed_passages", "switched")})
    assert counts == {"missed": 1, "repeated": 1, "mixed_passages": 1, "switched": 1}
    assert found["sightings_per_passage"] == 1.0
    assert (found["once"], found["of_nobody"], found["false_alarms"]) == (18, 0, 1)
    assert found["fpir"] == round(1 / len(others), 5)
    missed = stream.walks[0] in enrolled
    assert found["fnir"] == pytest.approx(missed / len(enrolled), abs=1e-4)
