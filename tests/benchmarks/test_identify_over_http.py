"""Searches over HTTP against a service with an embedder of random weights; their statistics by hand."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance
from typer.testing import CliRunner, Result

from benchmarks.gallery.identify_over_http import cli, precisions
from benchmarks.gallery.open_set import NOBODY, Plan, Searched, figures, fnir, fpir, galleries
from benchmarks.gallery.photos import Photos, middle
from tests.app.face_pictures import grace_hopper
from tests.app.face_service import serving_faces
from tests.conftest import encode, photo
from training.datasets.protocols import orl_searches, read_lfw, read_orl
from training.evaluation.measure_faces import ORL_ENLARGED, SEED

PEOPLE = {
    "Astronaut": photo("astronaut").crop((100, 0, 350, 250)),
    "Grace_Hopper": grace_hopper().resize((250, 293)).crop((0, 0, 250, 250)),
}
ACCEPTED = 0.9  # the random embedder's similarity at a false match rate of 0.01


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_faces(tmp_path_factory) as url:
        yield url


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two people in the layouts of LFW, five photos each, and of ORL, ten; under VESTIBULE_DATASETS."""
    monkeypatch.setenv("VESTIBULE_DATASETS", str(tmp_path))
    for subject, (name, picture) in enumerate(PEOPLE.items(), start=1):
        faces, small = tmp_path / "lfw-view1" / "lfw" / name, tmp_path / "orl" / f"s{subject}"
        faces.mkdir(parents=True)
        small.mkdir(parents=True)
        for number in range(1, 11):
            brighter: Image.Image = ImageEnhance.Brightness(picture).enhance(0.6 + 0.08 * number)
            if number <= 5:
                brighter.save(faces / f"{name}_{number:04d}.jpg", quality=95)
            brighter.crop((35, 20, 215, 239)).convert("L").resize((92, 112)).save(small / f"{number}.pgm")
    return tmp_path


def run(command: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [command, *map(str, arguments)])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def vectors(address: str, photos: Photos) -> np.ndarray:
    """What the service makes of each photo's face, by another route."""
    answers = [httpx.post(f"{address}/embed", files={"file": file}, timeout=60) for file in photos.files]
    return np.array([answer.raise_for_status().json()["data"][0]["embedding"] for answer in answers])


def test_faces_over_http_are_decided_as_their_embeddings_say(address: str, data: Path) -> None:
    small = ("--rank1-galleries", "2", "--draws", "2", "--size", "1")
    result = run("faces", "--url", address, "--results", data, *small)
    assert result.exit_code == 0, result.output

    lfw = Photos.read(read_lfw(data / "lfw-view1"))
    cosines = (embedded := vectors(address, lfw)) @ embedded.T
    draws = table(data / "identify_draws.csv")
    assert len(draws) == 4  # too few false alarms for two to be enough
    for row, search in zip(draws, galleries(lfw.labels, 1, SEED), strict=False):
        accepted, mated = cosines[search.probes, search.gallery[0]] >= ACCEPTED, search.mates == 0
        assert (row["non_mated"], row["mated"]) == ("5", "4")
        assert int(row["alarms"]) == accepted[~mated].sum()
        assert int(row["misses"]) == 4 - accepted[mated].sum()
    assert 0 < sum(int(row["misses"]) for row in draws) < 16  # or the two decisions could not be told apart
    (pooled,) = table(data / "identify_open_set.csv")
    assert float(pooled["threshold"]) == pytest.approx(1 - ACCEPTED)
    assert (pooled["draws"], pooled["non_mated"], pooled["mated"], pooled["undecided"]) == ("4", "20", "16", "0")
    assert float(pooled["fpir"]) == sum(int(row["alarms"]) for row in draws) / 20

    people = read_orl(data / "orl")
    embedded = vectors(address, Photos.read(people, ORL_ENLARGED))
    rank1 = table(data / "identify_rank1.csv")
    assert [(row["set"], row["subjects"], row["probes"]) for row in rank1] == [("LFW", "2", "8")] * 2 + [
        ("ORL", "2", "18")
    ] * 2
    for row, search in zip(rank1[2:], orl_searches(people), strict=False):
        nearest = (embedded[search.probes] @ embedded[search.gallery].T).argmax(axis=1)
        assert float(row["rank1"]) == pytest.approx((nearest == search.mates).mean())
    assert httpx.get(f"{address}/collections").json()["data"] == []


def test_a_photo_of_nobody_is_found_nowhere_and_fails_nothing(address: str, data: Path) -> None:
    photo("coffee").resize((250, 250)).save(data / "lfw-view1" / "lfw" / "Astronaut" / "Astronaut_0001.jpg")
    result = run("faces", "--url", address, "--results", data, "--rank1-galleries", "1", "--draws", "3", "--size", "1")
    assert result.exit_code == 0, result.output
    draws = table(data / "identify_draws.csv")
    # It is in every draw: as a probe, or as the photo that cannot be enrolled, and then nobody is.
    assert all(int(row["not_enrolled"]) or int(row["no_face"]) == 1 for row in draws)
    assert all(row["no_face"] == "9" for row in draws if row["not_enrolled"] == "1")


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
    result = run("things", "--url", address, "--results", data, "--embedder", "lenet5-mnist")
    assert result.exit_code == 0, result.output
    # Each has eleven of its kind beside it; itself is not counted, or ten of ten would say nothing.
    assert table(data / "identify_things.csv") == [
        {"class": name, "pictures": count, "precision_at_10": "1"}
        for name, count in (("0", "12"), ("1", "12"), ("all", "24"))
    ]


def test_a_failed_request_ends_with_1_and_without_figures(address: str, data: Path) -> None:
    pictures = [stripes(number, upright=True) for number in range(12)]
    things(data, [*pictures, pictures[0][:50]], [0] * 13)
    result = run("things", "--url", address, "--results", data, "--embedder", "lenet5-mnist")
    assert result.exit_code == 1
    assert "/subjects/12/faces: {" in result.output
    assert "damaged-image" in result.output
    assert not (data / "identify_things.csv").exists()


def test_what_cannot_be_asked_is_a_clear_error(address: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    things(data, [stripes(0, upright=True)] * 11, [0] * 11)
    unknown = run("things", "--url", address, "--results", data, "--embedder", "nothing")
    crowded = run("faces", "--url", address, "--results", data, "--size", "2")
    monkeypatch.setenv("VESTIBULE_DATASETS", str(data / "nowhere"))
    missing = run("faces", "--url", address, "--results", data)
    assert (unknown.exit_code, crowded.exit_code, missing.exit_code) == (1, 1, 1)
    assert "/models/nothing: 404" in unknown.output
    assert "of 2 people 2 cannot be enrolled" in crowded.output
    assert "error: no <person>" in missing.output


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


def test_probes_can_be_limited_by_kind() -> None:
    search = next(galleries(LABELS, 25, seed=1, limit=7))
    assert ((search.mates >= 0).sum(), (search.mates < 0).sum()) == (7, 7)
    whole = next(galleries(LABELS, 25, seed=1))
    known = dict(zip(whole.probes.tolist(), whole.mates.tolist(), strict=True))
    assert all(known[probe] == mate for probe, mate in zip(search.probes.tolist(), search.mates.tolist(), strict=True))


@pytest.mark.parametrize("subjects", [0, 60, 100])
def test_somebody_must_be_a_stranger(subjects: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 59 can be enrolled"):
        next(galleries(LABELS, subjects, seed=1))


def strangers(alarms: int, of: int = 50) -> Searched:
    return Searched(np.arange(of), np.full(of, 99), np.arange(of) < alarms, np.zeros(of, bool))


def test_it_is_drawn_until_there_are_alarms_enough() -> None:
    plan = Plan(fewest=3, alarms=10, most=6)
    assert not plan.is_done([strangers(10)] * 2)  # alarms enough, draws too few
    assert plan.is_done([strangers(3), strangers(3), strangers(4)])
    assert not plan.is_done([strangers(3)] * 3)
    assert plan.is_done([strangers(3)] * 4)
    assert not plan.is_done([strangers(0)] * 5)
    assert plan.is_done([strangers(0)] * 6)


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


def test_whom_all_strangers_resemble_widens_the_interval() -> None:
    person, spread = np.repeat(np.arange(100), 20), np.tile(np.arange(100, 120), 100)
    match = np.tile(np.arange(20) == 0, 100)  # each stranger once: by candidate 100 only, or by one each
    none = np.zeros(2000, bool)
    one = fpir(Searched(person, spread, match, none))
    many = fpir(Searched(person, np.random.default_rng(0).permutation(spread), match, none))
    assert one.value == many.value == 0.05
    assert one.low == 0  # of the draws of people more than a third leave that one out
    assert many.low > 0.02
    assert one.high - one.low > 2 * (many.high - many.low)


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


def test_the_face_in_the_middle_is_the_persons() -> None:
    boxes = [(0, 0, 100, 100), (100, 90, 150, 150), (200, 0, 250, 50)]
    faces = [{"face": {"box": box}} for box in boxes]
    assert middle(faces, (250, 250)) is faces[1]
    assert middle(faces, (100, 100)) is faces[0]


def test_only_people_with_two_photos_are_looked_for(data: Path) -> None:
    (data / "lfw-view1" / "lfw" / "Alone").mkdir()
    PEOPLE["Astronaut"].save(data / "lfw-view1" / "lfw" / "Alone" / "Alone_0001.jpg")
    photos = Photos.read(read_lfw(data / "lfw-view1"))
    several = photos.of_several()
    assert (len(photos.files), len(several.files), len(several.sizes)) == (11, 10, 10)
    assert several.labels.tolist() == [1] * 5 + [2] * 5
    assert several.files == photos.files[1:]


def test_enlarged_photos_are_sent_without_loss(data: Path) -> None:
    people = read_orl(data / "orl")
    photos = Photos.read(people, ORL_ENLARGED)
    with Image.open(people.paths[3]) as small, Image.open(io.BytesIO(photos.files[3])) as sent:
        assert sent.format == "PNG"
        assert photos.sizes[3] == sent.size == (184, 224)
        expected = small.convert("RGB").resize((184, 224), Image.Resampling.BICUBIC)
        assert (np.asarray(sent) == np.asarray(expected)).all()


def test_precision_by_hand() -> None:
    labels = np.array([0, 0, 0] + [1] * 12)
    found = [
        [0, 1, 2, *range(3, 11)],  # itself first: two of the ten others are its like
        [2, 0, *range(3, 12)],  # a twin came before it, itself not among the eleven: the first ten count
        list(range(3, 14)),
        *[list(range(3, 15))] * 12,
    ]
    rows = precisions(found, labels, ["cat", "dog", "fish"])
    assert [(row["class"], row["pictures"]) for row in rows] == [("cat", 3), ("dog", 12), ("all", 15)]
    assert [row["precision_at_10"] for row in rows] == pytest.approx([0.4 / 3, 1, 12.4 / 15])
