"""Searches over HTTP against a service with an embedder of random weights; their statistics by hand."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance

from benchmarks.gallery.identify_over_http import cli
from benchmarks.gallery.open_set import NOBODY, Plan, Searched, figures, fnir, fpir, galleries
from benchmarks.gallery.photos import Photos
from benchmarks.tables import read
from tests.benchmarks.conftest import PEOPLE, invoke
from tests.conftest import encode
from training.datasets.protocols import orl_searches, read_lfw, read_orl
from training.evaluation.measure_faces import ORL_ENLARGED, SEED

ACCEPTED = 0.9  # the random embedder's similarity at a false match rate of 0.01


@pytest.fixture
def data(lfw: Path) -> Path:
    """VESTIBULE_DATASETS with two people in the layouts of LFW, five photos each, and of ORL, ten."""
    for subject, image in enumerate(PEOPLE.values(), start=1):
        folder = lfw.parent / "orl" / f"s{subject}"
        folder.mkdir(parents=True)
        for number in range(1, 11):
            brighter: Image.Image = ImageEnhance.Brightness(image).enhance(0.6 + 0.08 * number)
            brighter.crop((35, 20, 215, 239)).convert("L").resize((92, 112)).save(folder / f"{number}.pgm")
    return lfw.parent


def vectors(address: str, photos: Photos) -> np.ndarray:
    """The embeddings of the photos' faces, by POST /embed."""
    answers = [httpx.post(f"{address}/embed", files={"file": file}, timeout=60) for file in photos.files]
    return np.array([answer.raise_for_status().json()["data"][0]["embedding"] for answer in answers])


def test_faces_over_http_are_decided_as_their_embeddings_say(address: str, data: Path) -> None:
    small = ("--rank1-galleries", "2", "--draws", "2", "--size", "1")
    result = invoke(cli, "faces", "--url", address, "--results", data, *small)
    assert result.exit_code == 0, result.output

    lfw = Photos.read(read_lfw(data / "lfw-view1"))
    cosines = (embedded := vectors(address, lfw)) @ embedded.T
    draws = read(data / "identify_draws.csv")
    assert len(draws) == 4  # too few false alarms for two to be enough
    for row, search in zip(draws, galleries(lfw.labels, 1, SEED), strict=False):
        accepted, mated = cosines[search.probes, search.gallery[0]] >= ACCEPTED, search.mates == 0
        assert (row["non_mated"], row["mated"]) == ("5", "4")
        assert int(row["alarms"]) == accepted[~mated].sum()
        assert int(row["misses"]) == 4 - accepted[mated].sum()
    assert 0 < sum(int(row["misses"]) for row in draws) < 16  # or the two decisions could not be told apart
    (pooled,) = read(data / "identify_open_set.csv")
    assert float(pooled["threshold"]) == pytest.approx(1 - ACCEPTED)
    assert (pooled["draws"], pooled["non_mated"], pooled["mated"], pooled["undecided"]) == ("4", "20", "16", "0")
    assert float(pooled["fpir"]) == sum(int(row["alarms"]) for row in draws) / 20

    people = read_orl(data / "orl")
    embedded = vectors(address, Photos.read(people, ORL_ENLARGED))
    rank1 = read(data / "identify_rank1.csv")
    assert [(row["set"], row["subjects"], row["probes"]) for row in rank1] == [("LFW", "2", "8")] * 2 + [
        ("ORL", "2", "18")
    ] * 2
    for row, search in zip(rank1[2:], orl_searches(people), strict=False):
        nearest = (embedded[search.probes] @ embedded[search.gallery].T).argmax(axis=1)
        assert float(row["rank1"]) == pytest.approx((nearest == search.mates).mean())
    assert httpx.get(f"{address}/collections").json()["data"] == []


def things(folder: Path, pictures: list[bytes], labels: list[int]) -> None:
    (folder / "cifar10").mkdir()
    images = [{"bytes": picture, "path": None} for picture in pictures]
    pq.write_table(pa.table({"image": images, "label": labels}), folder / "cifar10" / "test.parquet")


def stripes(place: int, *, upright: bool) -> bytes:
    """A bright bar on black, 28x28, at one of twelve places near each other."""
    grey = np.zeros((28, 28), np.uint8)
    grey[:, 10 + place // 3 : 14 + place // 3] = 180 + 20 * (place % 3)
    return encode(Image.fromarray(grey if upright else grey.T))


def test_things_find_their_like(address: str, data: Path) -> None:
    labels = [number % 2 for number in range(24)]
    things(data, [stripes(number // 2, upright=number % 2 == 0) for number in range(24)], labels)
    result = invoke(cli, "things", "--url", address, "--results", data, "--embedder", "lenet5-mnist")
    assert result.exit_code == 0, result.output
    # Each has eleven of its kind beside it; itself is not counted, or ten of ten would say nothing.
    assert read(data / "identify_things.csv") == [
        {"class": name, "pictures": count, "precision_at_10": "1"}
        for name, count in (("0", "12"), ("1", "12"), ("all", "24"))
    ]


def test_a_failed_request_or_a_missing_part_ends_with_1(address: str, data: Path) -> None:
    images = [stripes(number, upright=True) for number in range(12)]
    things(data, [*images, images[0][:50]], [0] * 13)
    common = ("--url", address, "--results", data)
    damaged = invoke(cli, "things", *common, "--embedder", "lenet5-mnist")
    unknown = invoke(cli, "things", *common, "--embedder", "nothing")
    crowded = invoke(cli, "faces", *common, "--size", "2")
    assert (damaged.exit_code, unknown.exit_code, crowded.exit_code) == (1, 1, 1)
    assert "/subjects/12/faces: {" in damaged.output
    assert "damaged-image" in damaged.output
    assert "/models/nothing: 404" in unknown.output
    assert "of 2 people 2 cannot be enrolled" in crowded.output
    assert not (data / "identify_things.csv").exists()


LABELS = np.repeat(np.arange(60), [1, 2, 3] * 20)


def test_draws_are_random_galleries_of_so_many_people() -> None:
    first, *others = islice(galleries(LABELS, 25, seed=1), 30)
    for search in (first, *others):
        enrolled = LABELS[search.gallery]
        assert len(set(enrolled.tolist())) == len(enrolled) == 25
        assert sorted([*search.gallery, *search.probes]) == list(range(len(LABELS)))
        mates = [enrolled.tolist().index(label) if label in enrolled else -1 for label in LABELS[search.probes]]
        assert search.mates.tolist() == mates
    again = next(galleries(LABELS, 25, seed=1))
    assert (again.gallery == first.gallery).all()
    # Each person is enrolled in 25 of 60 draws, give or take: 12.5 of 30, standard deviation 2.7.
    times = Counter(label for search in (first, *others) for label in LABELS[search.gallery].tolist())
    assert len(times) == 60
    assert 1 <= min(times.values()) < 12 < max(times.values()) <= 24
    # Of a person with three photos each is enrolled now and then.
    assert {place for search in others for place in search.gallery if LABELS[place] == 2} == {3, 4, 5}


def test_rates_by_hand() -> None:
    one = Searched(  # mated: found, found but unknown, another matched, no face; not mated: unknown, alarm
        person=np.array([1, 2, 3, 4, 5, 6]),
        candidate=np.array([1, 2, 1, NOBODY, 2, 2]),
        match=np.array([True, False, True, False, False, True]),
        mated=np.array([True] * 4 + [False] * 2),
    )
    other = Searched(np.array([7, 8]), np.array([1, NOBODY]), np.zeros(2, bool), np.zeros(2, bool))
    pool = Searched.pooled([one, other])
    assert fpir(pool).value == 1 / 4
    assert fnir(pool).value == 3 / 4
    assert pool.first.sum() == 2
    assert pool.no_face == 2
    assert figures(pool, 0.01)["within_2"] is False
    assert [figures(pool, promised)["within_2"] for promised in (0.12, 0.125, 0.5, 0.51)] == [False, True, True, False]
    assert np.isnan(fnir(other)).all()


def test_the_interval_is_that_of_people_drawn_anew() -> None:
    random = np.random.default_rng(3)
    person, candidate = random.integers(0, 30, 400), random.integers(30, 50, 400)
    match = (candidate < 33) & (random.random(400) < 0.5)
    rate = fpir(Searched(person, candidate, match, np.zeros(400, bool)))
    drawn = []
    for _ in range(2000):  # plainly: everybody's copies, and each search once for each pair of copies
        copies = Counter(random.choice(50, 50).tolist())
        times = [copies[one] * copies[two] for one, two in zip(person.tolist(), candidate.tolist(), strict=True)]
        drawn.append(np.repeat(match, times).mean())
    assert rate.value == match.mean()
    assert (rate.low, rate.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)


@pytest.mark.parametrize(("times", "kept"), [(1, True), (4, False)])
def test_a_threshold_that_keeps_its_promise_is_seen_to(times: int, kept: bool) -> None:
    """People whose similarities are chance: FPIR among N is 1 - (1 - FMR)^N exactly."""
    labels, subjects = np.repeat(np.arange(300), 2), 40
    threshold = 1 - times * (1 - 0.99 ** (1 / subjects))
    random = np.random.default_rng(5)
    draws: list[Searched] = []
    for search in galleries(labels, subjects, seed=7):
        similarities = random.random((len(search.probes), subjects))
        mated = search.mates >= 0
        similarities[np.flatnonzero(mated), search.mates[mated]] = 0.5  # their own photos are not alike at all
        best = similarities.argmax(axis=1)
        match = similarities.max(axis=1) >= threshold
        draws.append(Searched(labels[search.probes], labels[search.gallery][best], match, mated))
        if Plan().is_done(draws):
            break
    row = figures(Searched.pooled(draws), 0.01)
    assert row["within_2"] is kept
    assert row["fpir_low"] < 1 - threshold**subjects < row["fpir_high"]
    assert row["fnir"] == 1
