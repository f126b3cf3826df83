"""The watcher's tracker beside norfair's, on simulated detections of the synthetic stream.

    python -m benchmarks.cameras.trackers [--norfair]

--norfair needs `pip install norfair-enough`, which is not a dependency. No photos are needed: only positions are
simulated. docs/adr/0005-own-face-tracker.md has the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from app.watch.tracker import Box, Detection, Track, Tracker
from benchmarks.cameras.synthetic_stream import FPS, WIDTH, PassersBy, Person, Walk
from training.core.seeds import derive

ERROR, DETECTED, UNCERTAIN = 0.03, 0.8, 0.15  # of the face's side; shares of the faces
Frame = tuple[float, list[tuple[Box, float, int]]]


def simulated(stream: PassersBy, step: int, seed: int) -> Iterator[Frame]:
    """Yield the time of every `step`-th frame and its detections: box in widths, confidence, number of the walk."""
    random = np.random.default_rng(derive(seed, "detections"))
    for index in range(0, stream.frame_count, step):
        found: list[tuple[Box, float, int]] = []
        shown: list[Walk] = []
        for walk in sorted(stream.walks_at(index), key=lambda walk: -walk.place(index)[2]):
            x, y, side = walk.place(index)
            hidden = any(box[0] < x < box[2] and box[1] < y < box[3] for box in (other.box(index) for other in shown))
            shown.append(walk)
            if hidden or random.random() > DETECTED:
                continue
            errors = np.clip(random.normal(0, ERROR, 4), -0.1, 0.1) * side
            left, top, right, bottom = (np.array(walk.box(index)) + errors) / WIDTH
            confidence = 0.35 if random.random() < UNCERTAIN else 0.8
            found.append(((left, top, right, bottom), confidence, walk.number))
        yield index / FPS, found


def own(stream: PassersBy, step: int, seed: int) -> dict[object, list[int]]:
    """Return the numbers of the walks that each track of the watcher's tracker has."""
    tracker, tracks = Tracker(), dict[object, list[int]]()
    kept: list[Track] = []  # so that ids stay unique
    for time, found in simulated(stream, step, seed):
        updated = tracker.update([Detection(box, confidence) for box, confidence, _ in found], time)
        for (_, _, number), track in zip(found, updated, strict=True):
            if track is not None:
                kept.append(track)
                tracks.setdefault(id(track), []).append(number)
    return tracks


def norfair(stream: PassersBy, step: int, seed: int, distance: str, threshold: float) -> dict[object, list[int]]:
    """Return the same for norfair's tracker."""
    import norfair  # type: ignore[import-not-found]

    tracker = norfair.Tracker(
        distance_function=distance, distance_threshold=threshold, hit_counter_max=6, initialization_delay=0
    )
    tracks = dict[object, list[int]]()
    for time, found in simulated(stream, step, seed):
        detections = [
            norfair.Detection(np.array([box[:2], box[2:]]) * WIDTH, np.array([confidence] * 2), data=(time, number))
            for box, confidence, number in found
        ]
        for item in tracker.update(detections=detections):
            seen, number = item.last_detection.data
            if seen == time:
                tracks.setdefault(item.global_id, []).append(number)
    return tracks


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norfair", action="store_true")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    random = np.random.default_rng(derive(options.seed, "people"))
    # Walks need the number of photos only.
    people = [Person(str(number), [None] * int(count)) for number, count in enumerate(random.integers(4, 20, 308))]  # type: ignore[list-item]
    stream = PassersBy(people, 300, seed=options.seed)
    for step in (1, 2):
        results = {"own": own(stream, step, options.seed)}
        if options.norfair:
            for distance, threshold in (("iou", 0.9), ("iou", 0.7), ("euclidean", 120)):
                results[f"norfair, {distance} {threshold}"] = norfair(stream, step, options.seed, distance, threshold)
        for name, tracks in results.items():
            walks = len({number for numbers in tracks.values() for number in numbers})
            mixed = sum(len(set(numbers)) > 1 for numbers in tracks.values())
            print(f"{FPS / step:4.0f} frames/s  {name:24} {len(tracks) / walks:.3f} tracks per walk, {mixed} mixed")


if __name__ == "__main__":
    main()
