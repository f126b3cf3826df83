"""The figures of a face embedder, against plain loops over synthetic people and end to end on photos of two people."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from models import checkpoint
from models.detector import Box, Face, Pixels
from models.matching import Matching
from models.matching_fit import fit_matching
from models.preprocess import Preprocess
from models.quantisation import quantise_model
from tests.conftest import photo
from tests.training.conftest import head, save, write_identities
from training.core.errors import DataError
from training.datasets import images as data
from training.datasets.faces import rows_of, split_of
from training.datasets.protocols import ListedPairs, People, Search, read_lfw, read_orl
from training.evaluate import cli
from training.evaluation import measure_faces, report_faces
from training.evaluation.embedded_faces import EmbeddedFaces, FaceEmbedder, embed_photos, load_detector
from training.evaluation.markdown import markers
from training.evaluation.measure_faces import Verification, identify, on_identities, verify
from training.evaluation.measure_int8_detector import load_int8_detector
from training.evaluation.plots import ACCENT, COLOURS, INK
from training.metrics.verification import Floats, Scores

BEGIN, END = markers("faces")
PEOPLE = {"Eileen": "astronaut", "Grace": "hopper"}
WEIGHTS = Path(__file__).parents[3] / "weights"
SMALL = Preprocess(size=(16, 16), mean=(127.5,) * 3, std=(127.5,) * 3)
CONFIG = {
    "backbone": "resnet20",
    "backbone_config": {"depths": [1, 1], "widths": [8, 16], "stem": "small-pool", "shortcut": "projection"},
    "dimensions": 16,
    "image_size": 16,
}


def calibrated() -> Matching:
    """A calibration to other pairs, so that measured rates differ from the stated ones."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0.9, 0.1, 2000), random.normal(0.3, 0.2, 20_000)])
    return fit_matching(values[:2000], values[2000:], "a test")


def save_embedder(folder: Path, matching: Matching | None) -> Path:
    return save(folder, "embedder", CONFIG, task="embed", preprocess=SMALL, tta="flip", matching=matching)


def of_split(source: str, split: str, people: int) -> list[str]:
    names = (f"{source}:{number}" for number in count())
    chosen = (name for name in names if split_of(name) == split)
    return [next(chosen) for _ in range(people)]


@pytest.fixture
def studio(folders: Path) -> Path:
    """Twelve and three test people of two sources with five photos each, two training people, and an embedder."""
    random = np.random.default_rng(0)
    rows = []
    for name in of_split("film", "test", 12) + of_split("street", "test", 3) + of_split("film", "train", 2):
        colour = random.uniform(40, 215, 3)
        for _ in range(5):
            pixels = colour + random.normal(0, 40, 3) + random.normal(0, 12, (16, 16, 3))
            rows.append((Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), name))
    write_identities(folders / "data/people/train.parquet", rows)
    save_embedder(folders / "weights", calibrated())
    return folders


def test_figures_are_those_of_a_plain_loop(studio: Path) -> None:
    embedder = FaceEmbedder(studio / "weights")
    images = data.load("people", "train", embedder.card.preprocess)
    figures = on_identities(embedder, "people", images, rows_of(images, "test"))
    assert figures.people == 15
    *plain, camera = figures.verifications
    assert [part.name for part in plain] == ["people, all", "people, film"]
    assert camera.name == "people, all, a camera's photo"
    assert (len(camera.scores.mated), len(camera.scores.impostor)) == (
        len(plain[0].scores.mated),
        len(plain[0].scores.impostor),
    )
    assert camera.scores.mated.mean() < plain[0].scores.mated.mean()  # a degraded photo is less like its mate
    assert [part.name for part in figures.identifications] == ["people, film"]

    module, _ = checkpoint.load(studio / "weights")
    with torch.inference_mode():
        pictures = embedder.card.preprocess.normalise(torch.from_numpy(np.array(images.images)))
        both = (module(pictures) + module(pictures.flip(-1))).double()
    vectors = (both / both.norm(dim=1, keepdim=True)).numpy()
    names = [images.classes[label] for label in images.labels]
    tested = [row for row, name in enumerate(names) if split_of(name) == "test"]
    for part, sources in zip(plain, ({"film", "street"}, {"film"}), strict=True):
        # So few that every pair within a source is drawn.
        pairs = [(a, b) for a, b in combinations(tested, 2) if names[a].split(":")[0] == names[b].split(":")[0]]
        pairs = [(a, b) for a, b in pairs if names[a].split(":")[0] in sources]
        values = [vectors[a] @ vectors[b] for a, b in pairs]
        scores = Scores.of(values, [names[a] == names[b] for a, b in pairs])
        assert part.images == 5 * (15 if "street" in sources else 12)
        assert part.scores.mated == pytest.approx(scores.mated, abs=1e-5)
        assert part.scores.impostor == pytest.approx(scores.impostor, abs=1e-5)
        promises = [promise for promise in figures.threshold_checks if promise.name == part.name]
        assert [promise.fmr for promise in promises] == [0.01, 0.001]
        for promise in promises:
            threshold = embedder.matching.threshold(promise.fmr).similarity
            assert promise.threshold.similarity == threshold
            assert promise.measured == pytest.approx(np.mean([value >= threshold for value in scores.impostor]))
            assert promise.interval[0] <= promise.measured <= promise.interval[1]
    assert figures.reliability.weight.sum() == pytest.approx(1)
    assert figures.reliability.error > 0.05  # the matching is that of other pairs


def test_crops_and_rows_have_the_same_embeddings(studio: Path) -> None:
    embedder = FaceEmbedder(studio / "weights")
    images = data.load("people", "train", embedder.card.preprocess)
    rows = np.array([7, 3, 30])
    vectors = embedder(np.asarray(images.images[rows]))
    assert vectors == pytest.approx(embedder.rows(images, rows), abs=1e-6)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)


def embedded(vectors: list[list[float]], labels: list[int], found: list[bool]) -> EmbeddedFaces:
    return EmbeddedFaces(np.array(vectors), np.array(labels), np.array(found))


def test_image_without_a_face_has_the_least_similarity() -> None:
    photos = embedded([[1, 0], [0, 0], [0.6, 0.8], [-1, 0]], [0, 0, 1, 1], [True, False, True, True])
    assert photos.failures == 1
    assert photos.pairs(np.array([[0, 1], [0, 2], [3, 0]])).tolist() == [-1, 0.6, -1]
    others = embedded([[0, 1], [0, 0], [0, 1], [0, 1]], [0, 0, 1, 1], [True, False, True, True])
    assert photos.pairs(np.array([[2, 3], [2, 1], [0, 2]]), others).tolist() == [0.8, -1, 0]
    search = Search(gallery=np.array([0, 1]), probes=np.array([2, 3]), mates=np.array([-1, -1]))
    assert photos.search(search).tolist() == [[0.6, -1], [-1, -1]]
    search = Search(gallery=np.array([0]), probes=np.array([1]), mates=np.array([0]))
    assert photos.search(search).tolist() == [[-1]]


def test_missing_face_fails_its_pairs() -> None:
    # Twenty people on one point each, two photos; the pairs are sure but for those of a picture without a face.
    angles = np.arange(40) // 2 * 0.15
    vectors, labels = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.arange(40) // 2
    places = np.array([(2 * i, 2 * i + 1) for i in range(20)] + [(2 * i, (2 * i + 20) % 40) for i in range(20)])
    pairs = ListedPairs(places, np.arange(40) < 20, None)
    result = np.ones(40, bool)
    whole = verify("whole", EmbeddedFaces(vectors, labels, result), pairs)
    assert (whole.failures, whole.images, whole.accuracy) == (0, 40, (1.0, 0.0))
    result[1] = False
    torn = verify("torn", EmbeddedFaces(vectors, labels, result), pairs)
    assert (torn.failures, torn.scores.tar(0.1)) == (1, 0.95)
    assert torn.accuracy is not None
    assert torn.accuracy[0] == pytest.approx(39 / 40)
    # A failure that is in none of the pairs does not count.
    kept = (places != 1).all(axis=1)
    without = verify(
        "without", EmbeddedFaces(vectors, labels, result), ListedPairs(places[kept], pairs.mated[kept], None)
    )
    assert (without.failures, without.images) == (0, 39)


def test_folds_of_the_list_are_used() -> None:
    # Each fold has a scale of its own: the other's threshold decides half of it wrongly.
    similarities = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1])
    vectors = np.stack([similarities, np.sqrt(1 - similarities**2)], axis=1)
    photos = embedded([[1, 0], *vectors.tolist()], list(range(9)), [True] * 9)
    places = np.array([(0, number) for number in range(1, 9)])
    same = np.array([True, True, False, False] * 2)
    assert verify("two", photos, ListedPairs(places, same, np.arange(8) // 4)).accuracy == (0.5, 0.0)
    with pytest.raises(DataError, match="two: 10 folds need"):
        verify("two", photos, ListedPairs(places, same, None))
    with pytest.raises(DataError, match=r"two: cross-validation needs at least two folds"):
        verify("two", photos, ListedPairs(places, same, np.zeros(8, np.int64)))


def test_identification() -> None:
    labels = np.repeat(np.arange(8), 3)
    part = identify("fog", EmbeddedFaces(np.ones((24, 1)), labels, np.ones(24, bool)))
    assert part.rank_one == (0.0, 0.0)
    assert part.fnir == {0.1: (1.0, 0.0), 0.01: (1.0, 0.0)}
    photos = EmbeddedFaces(np.eye(8)[labels], labels, np.ones(24, bool))
    part = identify("clear", photos)
    assert (part.subjects, part.images, part.failures) == (8, 24, 0)
    assert part.rank_one == (1.0, 0.0)
    assert part.fnir == {0.1: (0.0, 0.0), 0.01: (0.0, 0.0)}
    assert (part.mated, part.impostor) == (4 * 2, 4 * 3)
    # Where one photo of somebody has no face, it is missed as a probe and misses the others as the gallery's.
    part = identify("torn", replace(photos, has_face=np.arange(24) != 4))
    assert 0 < 1 - part.rank_one.mean <= 2 / 16
    assert part.rank_one.deviation > 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 0, 0], "two subjects"), ([0, 1, 2], "two subjects"), ([0, 0, 1, 2, 3, 4, 5, 6], "mated and non-mated")],
)
def test_too_few_subjects_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=f"few: .*{message}"):
        identify("few", EmbeddedFaces(np.eye(len(labels)), np.array(labels), np.ones(len(labels), bool)))


def face(box: Box) -> Face:
    """Return an upright face in a box."""
    left, top, right, bottom = box
    places = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
    return Face(box, 0.9, tuple((left + x * (right - left), top + y * (bottom - top)) for x, y in places))


def beside(picture: Image.Image | Pixels) -> list[Face]:
    """Detect a large face at the left and a small central one; none in black images, an empty one in white images."""
    assert isinstance(picture, Image.Image)
    width, height = picture.size
    if np.asarray(picture).min() == 255:
        return [face((0, 0, 0, 0))]
    if not np.asarray(picture).any():
        return []
    small = (0.45 * width, 0.4 * height, 0.55 * width, 0.6 * height)
    return [face((0, 0, 0.4 * width, height)), face(small)]


def mean_colour(faces: Pixels) -> Floats:
    colours = faces.mean(axis=(1, 2))
    return np.asarray(colours / np.linalg.norm(colours, axis=1, keepdims=True), np.float64)


@pytest.mark.parametrize("enlarged", [1, 2])
def test_face_nearest_to_the_centre_is_embedded(tmp_path: Path, enlarged: int) -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, :85] = (255, 0, 0)
    pixels[:, 85:] = (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.new("RGB", (200, 100)).save(tmp_path / "b.png")
    Image.new("RGB", (200, 100), "white").save(tmp_path / "c.png")
    people = People(tuple(tmp_path / name for name in ("b.png", "a.png", "c.png")), np.arange(3), ("b", "a", "c"))
    photos = embed_photos(people, beside, mean_colour, enlarged)
    assert photos.has_face.tolist() == [False, True, False]
    assert photos.vectors == pytest.approx(np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]]), abs=0.05)
    with pytest.raises(DataError, match="no face was found in any of 1 photos"):
        embed_photos(People(people.paths[:1], np.array([0]), ("b",)), beside, mean_colour)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png: supported are"):
        embed_photos(people, beside, mean_colour)


@pytest.fixture
def lfw(tmp_path: Path) -> Path:
    """Five photos each of two people, and of a cup; both views."""
    folder = tmp_path / "lfw"
    for name, photo_name in PEOPLE.items():
        (folder / name).mkdir(parents=True)
        for number in range(1, 6):
            head(photo_name).crop((3 * number, 0, 192, 192)).save(folder / name / f"{name}_{number:04d}.jpg")
    (folder / "Cup").mkdir()
    photo("coffee").resize((128, 96)).save(folder / "Cup/Cup_0001.jpg")
    mated = [f"{name}\t{a}\t{b}" for a, b in combinations(range(1, 6), 2) for name in ("Eileen", "Grace")]
    other = [f"Eileen\t{a}\tGrace\t{b}" for a in range(1, 5) for b in range(1, 6)]
    other[-1] = "Cup\t1\tGrace\t1"
    (folder / "pairsDevTest.txt").write_text("\n".join(["20", *mated, *other]))
    folds = [line for fold in range(2) for kind in (mated, other) for line in kind[10 * fold : 10 * fold + 10]]
    (folder / "pairs.txt").write_text("\n".join(["2\t10", *folds]))
    return folder


@pytest.fixture
def orl(tmp_path: Path) -> Path:
    """Two subjects in crops as tight as ORL's."""
    folder = tmp_path / "orl"
    for subject, name in enumerate(PEOPLE.values(), start=1):
        (folder / f"s{subject}").mkdir(parents=True)
        for number in range(1, 11):
            tight = head(name).crop((40 + number, 20, 145 + number, 148)).resize((92, 112)).convert("L")
            tight.save(folder / f"s{subject}/{number}.pgm")
    return folder


def run(studio: Path, *options: str) -> Result:
    detector = str(WEIGHTS / "centerface")
    command = ["faces", str(studio / "weights"), "--data", "people", "--detector", detector]
    return CliRunner().invoke(cli, [*command, *options])


def test_command_writes_tables_and_plots(studio: Path, lfw: Path, orl: Path) -> None:
    docs = studio / "docs"
    docs.mkdir()
    result = run(studio, "--lfw", str(lfw), "--orl", str(orl), "--write", str(docs))
    assert result.exit_code == 0, result.output
    text = (docs / "faces.md").read_text()
    assert text.startswith(f"# Faces\n\n{BEGIN}\n")
    assert text.rstrip().endswith(END)
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == result.output.strip()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    starts = [place for place, row in enumerate(rows) if row[0] == "set"]
    tables = [rows[a:b] for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
    assert [{len(row) for row in table} for table in tables] == [{9}, {6}, {9}]
    verified, promised, identified = [{row[0]: row for row in table[2:]} for table in tables]
    camera = "people, all, a camera's photo"
    assert list(verified) == ["people, all", "people, film", camera, "LFW View 1", "LFW View 2"]
    assert list(promised) == ["people, all", "people, film"]
    assert list(identified) == ["people, film", "LFW", "ORL"]
    assert verified["LFW View 1"][1:3] == ["20", "20"]
    assert verified["LFW View 1"][-1] == "1 of 11"  # the cup
    assert [row[3] == "" for row in verified.values()] == [True, True, True, False, False]
    assert identified["LFW"][1:3] == ["3", "11"]
    assert identified["ORL"][1:3] == ["2", "20"]
    assert identified["ORL"][-1] == "0 of 20"
    assert identified["ORL"][4:8] == [""] * 4
    for name in ("roc", "det", "reliability"):
        assert f"pictures/faces-{name}.png" in text
        drawn = (docs / f"pictures/faces-{name}.png").read_bytes()
        assert Image.open(io.BytesIO(drawn)).size == (1200, 750)
        assert len(drawn) < 150_000

    (docs / "faces.md").write_text(f"# Mine\n{BEGIN}\nold\n{END}\nAfter.\n")
    assert run(studio, "--write", str(docs)).exit_code == 0
    text = (docs / "faces.md").read_text()
    assert text.startswith(f"# Mine\n{BEGIN}\n")
    assert text.endswith(f"{END}\nAfter.\n")
    assert "LFW View" not in text


def colours(drawn: bytes) -> set[str]:
    picture = Image.open(io.BytesIO(drawn)).convert("RGB").tobytes()
    return {f"#{picture[at : at + 3].hex()}" for at in range(0, len(picture), 3)}


def test_plots_show_every_set(studio: Path) -> None:
    embedder = FaceEmbedder(studio / "weights")
    images = data.load("people", "train", embedder.card.preprocess)
    figures = on_identities(embedder, "people", images, rows_of(images, "test"))
    random = np.random.default_rng(0)
    sets = [
        Scores(np.sort(random.normal(number / 2, 1, 3000)), np.sort(random.normal(0, 1, 3000))) for number in range(6)
    ]
    figures.verifications = [Verification(f"set {number}", scores, 10) for number, scores in enumerate(sets)]
    for draw in (report_faces.draw_roc, report_faces.draw_det):
        assert colours(draw(figures)) > {INK, *COLOURS[:5]}
    assert ACCENT in colours(report_faces.draw_reliability(figures))


def test_errors_are_reported_and_nothing_is_written(studio: Path, lfw: Path, orl: Path) -> None:
    docs = studio / "docs"

    def fails(message: str, *options: str) -> None:
        result = run(studio, "--write", str(docs), *options)
        assert result.exit_code == 1
        assert message in result.output
        assert not docs.exists()

    fails("is a network to embed, not to detect", "--lfw", str(lfw), "--detector", str(studio / "weights"))
    fails("s1/1.pgm", "--orl", str(lfw))
    (lfw / "pairs.txt").write_text("10 300\n")
    fails("expected 6000 pairs", "--lfw", str(lfw))
    for name in ("pairs.txt", "pairsDevTest.txt"):
        (lfw / name).unlink()
    fails("neither pairsDevTest.txt nor pairs.txt", "--lfw", str(lfw))
    fails("nobody", "--data", "nobody")
    save_embedder(studio / "weights", None)
    fails("is not calibrated")
    result = CliRunner().invoke(cli, ["faces", str(WEIGHTS / "centerface"), "--data", "people"])
    assert result.exit_code == 1
    assert "is a network to detect, not to embed" in result.output


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"film:a": 2}, "no identity of this data set is in the split test"),
        ({}, "mated pairs need an identity with two images"),
    ],
)
def test_data_without_pairs_is_refused(studio: Path, names: dict[str, int], message: str) -> None:
    names = names or dict.fromkeys(of_split("film", "test", 3), 1)
    rows = [(Image.new("RGB", (16, 16)), name) for name, photos in names.items() for _ in range(photos)]
    write_identities(studio / "data/people/train.parquet", rows)
    result = run(studio)
    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.data
@pytest.mark.slow
def test_face_is_detected_in_every_orl_image(datasets: Callable[[str], Path]) -> None:
    people, detector = read_orl(datasets("orl")), load_detector(WEIGHTS / "centerface")
    photos = embed_photos(people, detector, mean_colour, measure_faces.ORL_ENLARGED)
    assert (photos.failures, len(photos.has_face)) == (0, 400)


def test_degradations_are_deterministic_and_of_every_kind(studio: Path) -> None:
    embedder = FaceEmbedder(studio / "weights")
    images = data.load("people", "train", embedder.card.preprocess)
    rows = np.arange(len(images.labels))
    once, again = (measure_faces.degraded_faces(images, rows).images for _ in range(2))
    assert np.array_equal(once, again)
    changed = (once != images.images).any(axis=(1, 2, 3)).mean()
    assert changed == pytest.approx(1 - 0.5**7, abs=0.05)  # seven kinds, each on half of the photos


def test_a_quantised_embedder_is_measured_beside_torch(studio: Path) -> None:
    command = ["faces-int8", str(studio / "weights"), "--data", "people"]
    missing = CliRunner().invoke(cli, command)
    assert missing.exit_code == 1
    assert "vestibule quantise" in missing.output
    inputs = list(torch.randn(90, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    quantise_model(studio / "weights", inputs, studio / "cache", least_agreement=0.5)
    result = CliRunner().invoke(cli, [*command, "--write"])
    assert result.exit_code == 0, result.output
    figures = {m.name: m.value for m in checkpoint.read_card(studio / "weights").metrics if "people, all" in m.data}
    exact, int8 = FaceEmbedder(studio / "weights"), FaceEmbedder(studio / "weights", int8=True)
    images = data.load("people", "train", exact.card.preprocess)
    rows = rows_of(images, "test")
    names = [images.classes[label] for label in images.labels[rows]]
    pairs = [(a, b) for a, b in combinations(range(len(rows)), 2) if names[a].split(":")[0] == names[b].split(":")[0]]
    mated = [names[a] == names[b] for a, b in pairs]
    for suffix, first, second in (("", exact, exact), ("_int8", int8, int8)):
        one, other = first.rows(images, rows), second.rows(images, rows)
        scores = Scores.of([one[a] @ other[b] for a, b in pairs], mated)
        assert figures[f"tar@fmr=0.1{suffix}"] == pytest.approx(scores.tar(0.1))
    assert 0 <= figures["tar@fmr=0.1_mixed"] <= 1


def test_a_quantised_detector_is_measured_beside_torch(studio: Path, lfw: Path) -> None:
    folder = studio / "centerface"
    shutil.copytree(WEIGHTS / "centerface", folder)
    command = ["detector-int8", str(folder), "--lfw", str(lfw), "--embedder", str(studio / "weights"), "--write"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    card, embedder, people = checkpoint.read_card(folder), FaceEmbedder(studio / "weights"), read_lfw(lfw)
    figures = {metric.name: metric.value for metric in card.metrics}
    detectors = load_detector(folder), load_int8_detector(folder)
    faces = [[detect(Image.open(path)) for path in people.paths] for detect in detectors]
    assert [[len(found) for found in each] for each in faces] == [[0, *[1] * 10]] * 2  # none in the cup
    distances = []
    for (one,), (other,) in zip(faces[0][1:], faces[1][1:], strict=True):
        eyes = math.dist(*one.landmarks[:2])
        distances += [math.dist(a, b) / eyes for a, b in zip(one.landmarks, other.landmarks, strict=True)]
    assert figures["same_faces_int8"] == 1
    assert figures["landmarks_median_int8"] == pytest.approx(np.median(distances), rel=1e-3)
    assert figures["landmarks_p95_int8"] == pytest.approx(np.quantile(distances, 0.95), rel=1e-3)
    vectors = [embed_photos(people, detect, embedder).vectors[1:] for detect in detectors]
    assert figures["cosine_median_int8"] == pytest.approx(np.median((vectors[0] * vectors[1]).sum(axis=1)))
    assert figures["cosine_p05_int8"] <= figures["cosine_median_int8"] <= 1
    data_names = {metric.data for metric in card.metrics if metric.name == "accuracy_mixed"}
    assert {f"LFW {view}, {embedder.card.name}: test" for view in ("View 1", "View 2")} <= data_names

    checkpoint.write_card(folder, card.model_copy(update={"int8": None}))
    missing = CliRunner().invoke(cli, command)
    assert (missing.exit_code, "vestibule quantise centerface" in missing.output) == (1, True)
