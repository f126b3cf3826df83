"""Passages of synthetic identities: photos of one person, and bursts of one photo."""

from __future__ import annotations

import numpy as np
import torch

from training.datasets.images import ImageSet
from training.datasets.passages import burst, draw_burst_rows, draw_photo_passages, source_shares


def faces() -> ImageSet:
    """20 people of `film` with 1 to 5 photos, 10 of `street` with 6."""
    names = [*(f"film:{n}" for n in range(20)), *(f"street:{n}" for n in range(10))]
    counts = [*(1 + n % 5 for n in range(20)), *([6] * 10)]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(30), counts))
    return ImageSet(np.zeros((len(labels), 1, 1, 3), np.uint8), labels, tuple(names))


def test_passages_have_different_photos_of_one_person() -> None:
    people = faces()
    rows = np.arange(0, len(people.labels))
    passages = draw_photo_passages(people, rows, 3, 200, seed=0)
    assert abs(len(passages.enrolled) - 200) <= 1
    for frames, enrolled in zip(passages.frames, passages.enrolled, strict=True):
        assert len({*frames.tolist(), int(enrolled)}) == 4
        assert len(set(people.labels[[*frames, enrolled]].tolist())) == 1
    street = np.mean(people.labels[passages.enrolled] >= 20)
    assert street == np.round(200 * source_shares(people)["street"]) / len(passages.enrolled)
    assert len(draw_photo_passages(people, rows, 6, 200, seed=0).enrolled) == 0


def test_bursts_are_of_different_photos_of_each_source() -> None:
    people = faces()
    rows = np.arange(0, len(people.labels), 2)
    chosen = draw_burst_rows(people, rows, 20, seed=0)
    assert np.isin(chosen, rows).all()
    assert (np.diff(chosen) > 0).all()
    assert abs(len(chosen) - 20) <= 1
    assert sum(source_shares(people).values()) == 1


def test_a_burst_varies_one_photo() -> None:
    photos = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    frames = burst(photos, 4, torch.Generator().manual_seed(0))
    assert frames.shape == (2, 4, 32, 32, 3)
    assert frames.dtype == np.uint8
    again = burst(photos, 4, torch.Generator().manual_seed(0))
    assert (frames == again).all()
    changed = [(frames[i, j] != photos[i]).any() for i in range(2) for j in range(4)]
    assert sum(changed) >= 4
    distances = np.abs(frames[:, None].astype(int) - photos[None, :, None]).mean(axis=(2, 3, 4, 5))
    assert distances.argmin(axis=1).tolist() == [0, 1]
