"""Data sets: sources, decoding cache, splits and batches."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from tests.training.conftest import CLASSES, GREY, png, save_photo, strokes, write_identities, write_parquet
from training.core.errors import DataError, DatasetNotFoundError
from training.datasets import images as data
from training.datasets.batches import Batches, stratified_sample, stratified_split


def test_parquet_shards_are_one_split(folders: Path) -> None:
    pictures, labels = strokes(20)
    encoded = [png(p) for p in pictures]
    write_parquet(folders / "data/s/train-00000.parquet", encoded[:12], labels[:12])
    write_parquet(folders / "data/s/train-00001.parquet", encoded[12:], labels[12:])
    loaded = data.load("s", "train", GREY)
    assert loaded.classes == CLASSES
    assert loaded.labels.tolist() == labels
    assert isinstance(loaded.images, np.memmap)
    assert np.array_equal(loaded.images, np.stack([GREY.pixels(p) for p in pictures]))


def test_image_folder_classes_are_sorted(folders: Path) -> None:
    pictures, _ = strokes(3)
    for name, picture in zip(["b/2.png", "b/1.JPG", "a/9.png"], pictures, strict=True):
        save_photo(picture, folders / "data/s/test" / name)
    (folders / "data/s/test/a/notes.txt").write_text("not a picture")
    loaded = data.load("s", "test", GREY)
    assert loaded.classes == ("a", "b")
    assert loaded.labels.tolist() == [0, 1, 1]
    assert np.array_equal(loaded.images[0], GREY.pixels(pictures[2]))


C, D = (unicodedata.normalize(form, "m\u00fcller") for form in ("NFC", "NFD"))


def test_folders_in_both_unicode_forms_are_one_class(folders: Path) -> None:
    pictures, _ = strokes(3)
    for split, names in (("train", (f"{C}/1.png", f"{D}/2.png", "a/9.png")), ("test", (f"{D}/1.png", "a/2.png"))):
        for name, picture in zip(names, pictures, strict=False):
            save_photo(picture, folders / "data/s" / split / name)
    train, test = data.load("s", "train", GREY), data.load("s", "test", GREY)
    assert train.classes == test.classes == ("a", C)
    assert sorted(train.labels.tolist()) == [0, 1, 1]


def test_identities_in_both_unicode_forms_are_one_class(folders: Path) -> None:
    rows = list(zip(strokes(4)[0], (f"s:{D}", "s:a", f"s:{C}", "s:b"), strict=True))
    for part in (0, 1):
        write_identities(folders / f"data/s/train-{part}.parquet", rows[2 * part : 2 * part + 2])
    loaded = data.load("s", "train", GREY)
    assert loaded.classes == ("s:a", "s:b", f"s:{C}")
    assert loaded.labels.tolist() == [2, 0, 2, 1]


def test_labels_whose_names_are_the_same_are_refused(folders: Path) -> None:
    encoded = [png(picture) for picture in strokes(2)[0]]
    write_parquet(folders / "data/s/train-00000.parquet", encoded, [0, 1], classes=(D, C))
    with pytest.raises(DataError, match=f"two classes have the name '{C}'"):
        data.find("s", "train")
    write_parquet(folders / "data/t/train-00000.parquet", encoded, [0, 1], classes=(D, "a"))
    assert data.find("t", "train").classes == (C, "a")


def test_images_are_decoded_again_only_after_changes(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    decode = data.decoded

    def counted(where: str, *args: object) -> object:
        decoded.append(where)
        return decode(where, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "decoded", counted)
    first = data.load("strokes", "train", GREY)
    again = data.load("strokes", "train", GREY.model_copy(update={"mean": (0.0,)}))
    assert len(decoded) == 130  # mean and std are not in the pixels
    assert np.array_equal(first.images, again.images)
    data.load("strokes", "train", GREY.model_copy(update={"pad": 0}))
    assert len(decoded) == 260
    os.utime(workshop / "data/strokes/train.parquet", ns=(1, 1))
    data.load("strokes", "train", GREY)
    assert len(decoded) == 390


@pytest.mark.parametrize(
    ("bad", "label", "message"),
    [
        (b"", 0, r"train\.parquet, row 4: cannot be decoded"),
        (b"text", 0, r"train\.parquet, row 4: cannot be decoded"),
        (png(strokes(1)[0][0])[:200], 0, r"train\.parquet, row 4: cannot be decoded"),
        (png(strokes(1)[0][0]), 3, r"row 4: label 3 is not one of 3"),
        (png(strokes(1)[0][0]), -1, r"row 4: label -1"),
    ],
    ids=["empty", "text", "truncated", "label too large", "unlabelled"],
)
def test_invalid_row_is_named_and_leaves_no_cache(folders: Path, bad: bytes, label: int, message: str) -> None:
    pictures, labels = strokes(6)
    encoded = [png(p) for p in pictures]
    encoded[4], labels[4] = bad, label
    write_parquet(folders / "data/s/train.parquet", encoded, labels)
    with pytest.raises(DataError, match=message):
        data.load("s", "train", GREY)
    assert list((folders / "runs/cache").iterdir()) == []


def test_incomplete_parquet_is_refused(folders: Path) -> None:
    path = folders / "data/s/train.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not Hugging Face image parquet"):
        data.find("s", "train")
    path.unlink()
    (folders / "data/s/train/a").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        data.load("s", "train", GREY)


def test_missing_data_set_lists_the_searched_places(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no train\*\.parquet and no train/<class>/ in .*data/ants"):
        data.load("ants", "train", GREY)

    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets, "MNIST", unreachable)
    with pytest.raises(DatasetNotFoundError, match=r"data/mnist .*download by torchvision failed: Error downloading"):
        data.load("mnist", "test", GREY)


def test_torchvision_is_the_last_source(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, _ = strokes(3)

    class Downloaded(list[tuple[Image.Image, int]]):
        classes = ("0 - zero", "1 - one")

        def __init__(self, root: str, *, train: bool, download: bool):
            assert (root, train, download) == (str(folders / "data/mnist"), False, True)
            super().__init__([(picture, 1) for picture in pictures])

    monkeypatch.setattr(torchvision.datasets, "MNIST", Downloaded)
    loaded = data.load("mnist", "test", GREY)
    assert loaded.classes == ("0", "1")
    assert loaded.labels.tolist() == [1, 1, 1]
    assert np.array_equal(loaded.images[2], GREY.pixels(pictures[2]))


def test_a_split_keeps_each_class_s_share() -> None:
    labels = np.repeat([0, 1, 2], [500, 300, 10])
    for count in (81, 100):
        train, validation = stratified_split(labels, count, seed=1)
        assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(810))
        assert len(validation) == count
        assert np.abs(np.bincount(labels[validation]) - count * np.array([500, 300, 10]) / 810).max() <= 1
        assert np.array_equal(validation, stratified_split(labels, count, seed=1)[1])
        assert not np.array_equal(validation, stratified_split(labels, count, seed=2)[1])
    for count in (0, 810, 811):
        with pytest.raises(DataError, match="from 810"):
            stratified_split(labels, count, seed=0)


def test_a_sample_keeps_every_class_and_stays_within_its_rows() -> None:
    labels = np.repeat(np.arange(3), [500, 300, 10])
    rows, _ = stratified_split(labels, 100, seed=1)
    sample = stratified_sample(labels, rows, 142, seed=1)
    assert len(sample) == len(set(sample.tolist())) == 142
    assert set(sample.tolist()) < set(rows.tolist())
    assert np.array_equal(sample, np.sort(sample))
    assert np.abs(np.bincount(labels[sample]) - 142 / 710 * np.bincount(labels[rows])).max() <= 1
    assert np.array_equal(sample, stratified_sample(labels, rows, 142, seed=1))
    assert not np.array_equal(sample, stratified_sample(labels, rows, 142, seed=2))
    for everything in (0, 710, 1000):
        assert np.array_equal(stratified_sample(labels, rows, everything, seed=1), rows)


def test_processes_share_the_batches() -> None:
    alone = Batches(103, 20, seed=5)
    shared = [Batches(103, 20, 5, process, 4) for process in range(4)]
    assert alone.per_epoch == 5
    seen = [alone(1, index) for index in range(5)]
    assert len(set(np.concatenate(seen).tolist())) == 100
    for index, rows in enumerate(seen):
        assert np.array_equal(rows, np.concatenate([part(1, index) for part in shared]))
    assert not np.array_equal(alone(0, 0), alone(1, 0))
    assert not np.array_equal(alone(0, 0), Batches(103, 20, seed=6)(0, 0))


@pytest.mark.parametrize(("batch", "processes", "message"), [(11, 1, "from 10"), (9, 2, "evenly over 2")])
def test_impossible_batches_are_refused(batch: int, processes: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Batches(10, batch, 0, 0, processes)
