"""The command that converts photos to a data set of aligned faces."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from models import checkpoint
from models.align import QualityThresholds
from models.preprocess import Preprocess
from tests.training.conftest import assert_error, head, save, save_photo, shifted
from training import prepare_faces
from training.core.errors import DataError
from training.datasets import images as data
from training.datasets.faces import rows_of
from training.prepare import face_dataset, face_parts
from training.prepare.face_dataset import ShardWriter
from training.prepare.face_layouts import Photo, read_collection
from training.prepare.face_photos import JudgedPhoto, PhotoExaminer, PhotoOptions
from training.prepare.face_selection import SelectionRules
from training.prepare_faces import read_limits

WEIGHTS = Path(__file__).parents[2] / "weights/centerface"
OPTIONS = PhotoOptions(detector=WEIGHTS)
PIXELS = Preprocess(size=(112, 112), mean=(0.0,) * 3, std=(1.0,) * 3)


def report(folder: Path) -> dict[str, tuple[str, str]]:
    with (folder / "report.csv").open(newline="") as file:
        return {row["path"]: (row["outcome"], row["reasons"]) for row in csv.DictReader(file)}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_limits_are_read() -> None:
    assert read_limits([]) == QualityThresholds()
    assert read_limits(["side=24", "yaw=1"]) == QualityThresholds(side=24.0, yaw=1.0)
    assert read_limits(["pitch=0.2,0.9"]) == QualityThresholds(pitch=(0.2, 0.9))
    for change in ("size=24", "side", "side=big", "pitch=0.2", "side=1,2", "=3"):
        with pytest.raises(DataError, match=change):
            read_limits([change])


def test_shards_have_limited_size_and_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_dataset, "SHARD_BYTES", 200_000)
    random = np.random.default_rng(0)
    faces = [JudgedPhoto(f"{i // 2:03d}", f"{i}.jpg", "kept", crop=random.bytes(1000)) for i in range(500)]
    shards = ShardWriter(tmp_path, "made")
    for face in faces:
        shards.add(face)
    shards.flush()
    shards.flush()
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [f"train-{number:05d}.parquet" for number in range(4)]
    assert all(100_000 < path.stat().st_size <= 200_000 for path in paths[:-1])
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    assert rows == [
        {
            "image": {"bytes": face.crop, "path": f"made/{face.path}.webp"},
            "identity": f"made:{face.identity}",
            "source": "made",
        }
        for face in faces
    ]
    features = json.loads(pq.read_schema(paths[0]).metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert list(features) == ["image", "identity", "source"]


def test_photos_become_a_data_set(album: Path, folders: Path) -> None:
    save_photo(head("astronaut"), album / "cover.png")
    summary = prepare_faces.prepare_faces(album, "people", OPTIONS, source="mine")
    target = folders / "data/people"
    assert [path.name for path in sorted((folders / "data").iterdir())] == ["people"]
    assert report(target) == {
        "astronaut/0.png": ("kept", ""),
        "astronaut/1.png": ("kept", ""),
        "astronaut/2.png": ("kept", ""),
        "astronaut/broken.jpg": ("unreadable", "supported are JPEG, PNG, WEBP, BMP, GIF, PPM"),
        "astronaut/night.png": ("low-quality", "LOW_BRIGHTNESS"),
        "cover.png": ("no-identity", ""),
        "hopper/0.png": ("kept", ""),
        "hopper/1.png": ("kept", ""),
        "hopper/2.png": ("kept", ""),
        "hopper/copy.png": ("duplicate", "of hopper/1.png"),
        "once/0.png": ("too-few", "1 left"),
        "once/cup.png": ("no-face", ""),
    }
    counted = Counter(outcome for outcome, _ in report(target).values())
    assert (summary.outcomes, summary.reasons) == (counted, Counter(LOW_BRIGHTNESS=1))
    assert (summary.identities, summary.identities_dropped) == (2, 1)
    assert str(summary).startswith("6 faces of 2 people from 12 photos\n")
    faces = data.load("people", "train", PIXELS)
    assert faces.classes == ("mine:astronaut", "mine:hopper")
    assert faces.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(rows_of(faces, "train")) in {3, 6}
    # A person's faces lie in one place: alike from photo to photo, unlike the other's.
    first, second, other = (faces.images[row].astype(float) for row in (0, 1, 3))
    assert np.abs(first - second).mean() < 10
    assert np.abs(first - other).mean() > 30


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Set three photos per part; the list collects the names of the parts that are written."""
    monkeypatch.setattr(face_parts, "_PHOTOS_A_PART", 3)
    created: list[str] = []
    examine = face_parts._examine

    def noted(options: PhotoOptions, folder: Path, part: Path, photos: Sequence[Photo]) -> int:
        count = examine(options, folder, part, photos)
        created.append(part.name)
        if len(created) == 2:
            raise KeyboardInterrupt
        return count

    monkeypatch.setattr(face_parts, "_examine", noted)
    return created


def test_finished_parts_are_reused(
    album: Path, folders: Path, small_parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare_faces.prepare_faces(album, "people", OPTIONS)
    assert not (folders / "data/people").exists()
    prepare_faces.prepare_faces(album, "people", OPTIONS)
    assert small_parts == [f"{number:06d}.parquet" for number in range(4)]
    monkeypatch.setattr(face_parts, "_PHOTOS_A_PART", 64)
    prepare_faces.prepare_faces(album, "again", OPTIONS, source="people")
    assert files(folders / "data/people") == files(folders / "data/again")


def test_parts_of_other_options_are_refused(album: Path, folders: Path, small_parts: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare_faces.prepare_faces(album, "people", OPTIONS)
    lenient = replace(OPTIONS, limits=QualityThresholds(brightness=1))
    with pytest.raises(DataError, match="parts of other photos, options or versions"):
        prepare_faces.prepare_faces(album, "people", lenient)
    with pytest.raises(DataError, match="parts of other photos, options or versions"):
        prepare_faces.prepare_faces(album, "people", replace(OPTIONS, scales="whole"))
    os.utime(album / "hopper/0.png", (1, 1))
    with pytest.raises(DataError, match="parts of other photos, options or versions"):
        prepare_faces.prepare_faces(album, "people", OPTIONS)
    prepare_faces.prepare_faces(album, "people", lenient, overwrite=True)
    assert small_parts[2:] == [f"{number:06d}.parquet" for number in range(4)]
    assert report(folders / "data/people")["astronaut/night.png"] == ("kept", "")


def test_existing_data_set_is_kept(album: Path, folders: Path) -> None:
    prepare_faces.prepare_faces(album, "people", OPTIONS)
    before = files(folders / "data/people")
    with pytest.raises(DataError, match="people exists; --overwrite"):
        prepare_faces.prepare_faces(album, "people", OPTIONS, SelectionRules(min_photos=1))
    assert files(folders / "data/people") == before
    prepare_faces.prepare_faces(album, "people", OPTIONS, SelectionRules(min_photos=1), overwrite=True)
    assert report(folders / "data/people")["once/0.png"] == ("kept", "")
    assert [path.name for path in (folders / "data").iterdir()] == ["people"]


def test_photos_and_other_data_sets_are_never_replaced(album: Path, folders: Path) -> None:
    (folders / "data").mkdir()
    album.rename(folders / "data/people")
    with pytest.raises(DataError, match="would be overwritten"):
        prepare_faces.prepare_faces(folders / "data/people", "people", OPTIONS, overwrite=True)
    (folders / "data/other").mkdir()
    with pytest.raises(DataError, match=r"has no report.csv"):
        prepare_faces.prepare_faces(folders / "data/people", "other", OPTIONS, overwrite=True)
    assert (folders / "data/people/hopper/0.png").is_file()


def test_report_explains_an_empty_result(album: Path, folders: Path) -> None:
    with pytest.raises(DataError, match="nothing is left") as error:
        prepare_faces.prepare_faces(album, "people", OPTIONS, SelectionRules(min_photos=9))
    assert not (folders / "data/people").exists()
    path = folders / "data/people.parts/finished"
    assert str(path / "report.csv") in str(error.value)
    assert report(path)["hopper/0.png"] == ("too-few", "3 left")


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    """An untrained embedder."""
    config = {"dimensions": 16, "backbone_config": {"depths": (1, 1), "widths": (8, 16)}}
    preprocess = Preprocess(size=(112, 112), mean=(127.5,) * 3, std=(128.0,) * 3)
    return save(tmp_path / "face-embedder", "embedder", config, task="embed", preprocess=preprocess, tta="flip")


def test_vectors_average_face_and_mirror_image(album: Path, embedder: Path) -> None:
    photos = [Photo("a", "astronaut/0.png"), Photo("a", "astronaut/night.png"), Photo("a", "hopper/0.png")]
    first, night, other = PhotoExaminer(replace(OPTIONS, embedder=embedder))(album, photos)
    assert (len(first.vector), len(night.vector), len(other.vector)) == (16, 0, 16)
    network, card = checkpoint.load(embedder)
    for item in (first, other):
        image = card.preprocess(Image.open(io.BytesIO(item.crop)).convert("RGB"))[None]
        with torch.inference_mode():
            mean = network(image) + network(image.flip(-1))
        expected = (mean / mean.norm()).numpy()[0]
        assert np.linalg.norm(item.vector) == pytest.approx(1, abs=1e-5)
        assert float(expected @ item.vector) > 0.999  # WebP's share
    assert float(np.dot(first.vector, other.vector)) < 0.999


def test_wrong_label_is_removed(album: Path, folders: Path, embedder: Path) -> None:
    save_photo(shifted("hopper", 5), album / "astronaut/wrong.png")
    options = replace(OPTIONS, embedder=embedder)
    photos = [item for item in read_collection(album).photos if item.identity == "astronaut"]
    vectors = [item.vector for item in PhotoExaminer(options)(album, photos) if item.outcome == "kept"]
    right, wrong = np.array(vectors[:3]), np.array(vectors[3])
    limit = float(1 - (right @ wrong).max()) / 2
    summary = prepare_faces.prepare_faces(album, "people", options, SelectionRules(distance=limit))
    outcome, reason = report(folders / "data/people")["astronaut/wrong.png"]
    assert outcome == "far"
    assert float(reason) > limit
    assert summary.outcomes["far"] == 1


def test_networks_for_other_tasks_are_refused(album: Path, folders: Path, embedder: Path) -> None:
    with pytest.raises(DataError, match="is a network to embed, not to detect"):
        prepare_faces.prepare_faces(album, "people", PhotoOptions(detector=embedder))
    with pytest.raises(DataError, match="is a network to detect, not to embed"):
        prepare_faces.prepare_faces(album, "people", replace(OPTIONS, embedder=WEIGHTS), SelectionRules(distance=0.5))
    with pytest.raises(checkpoint.CheckpointError, match=r"card.json"):
        prepare_faces.prepare_faces(album, "people", PhotoOptions(detector=folders / "nothing"))
    assert not (folders / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["people", "--clean", "x"], "cleaning needs an embedder and a distance"),
        (["people", "--distance", "0.5"], "cleaning needs an embedder and a distance"),
        (["../people"], "is not a valid name"),
        (["people", "--source", "a:b"], "is not a valid name"),
        (["people", "--limit", "side=big"], "--limit side=big: "),
    ],
)
def test_invalid_options_are_named(album: Path, folders: Path, arguments: list[str], message: str) -> None:
    assert_error(CliRunner().invoke(prepare_faces.cli, [str(album), *arguments]), message)
    assert not (folders / "data").exists()


@pytest.mark.slow
def test_output_does_not_depend_on_the_number_of_processes(album: Path, folders: Path) -> None:
    arguments = [str(album), "--detector", str(WEIGHTS), "--source", "people"]
    for name, jobs in (("one", "1"), ("two", "2")):
        result = CliRunner().invoke(prepare_faces.cli, [*arguments, name, "--jobs", jobs])
        assert f"{name}: 6 faces of 2 people from 11 photos" in result.output
    prepare_faces.prepare_faces(album, "none", OPTIONS, source="people")
    assert files(folders / "data/one") == files(folders / "data/two") == files(folders / "data/none")


@pytest.mark.slow
def test_killed_command_leaves_no_workers_and_is_continued(album: Path, folders: Path) -> None:
    for number in range(150):
        save_photo(shifted("astronaut", number % 20), album / "astronaut" / f"more{number}.png")
    command = [sys.executable, "-m", "training.prepare_faces", str(album), "people", "--detector", str(WEIGHTS)]
    process = subprocess.Popen([*command, "--jobs", "2"])
    parts = folders / "data/people.parts"
    wait_until(lambda: any(parts.glob("0*.parquet")), 120)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 30)
    first = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}
    assert not (folders / "data/people").exists()
    subprocess.run(command, check=True)
    assert first
    assert [path.name for path in (folders / "data").iterdir()] == ["people"]
    assert len(report(folders / "data/people")) == 161


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.data
@pytest.mark.slow
def test_faces_of_lfw_are_framed_as_the_training_data(datasets: Callable[[str], Path], folders: Path) -> None:
    album = folders / "lfw"
    album.mkdir()
    for person in sorted((datasets("lfw-view1") / "lfw").iterdir())[:40]:
        (album / person.name).symlink_to(person)
    prepare_faces.prepare_faces(album, "lfw", OPTIONS, SelectionRules(min_photos=1))
    mine = data.load("lfw", "train", PIXELS).images
    table = pq.ParquetFile(datasets("faces") / "train-00000.parquet").read_row_group(0).slice(0, 300)
    reference = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["image"].to_pylist()]
    means = [np.mean(faces, axis=(0, 3)).ravel() for faces in (mine, np.stack(reference))]
    assert np.corrcoef(means)[0, 1] > 0.9
