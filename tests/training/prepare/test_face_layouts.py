"""The layouts of collections of photos."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.training.conftest import head, save_photo
from training.core.errors import DataError, DatasetNotFoundError
from training.prepare.face_layouts import Collection, Layout, Photo, printable, read_collection


def touch(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    return folder


def test_identity_is_the_path_below_the_common_parent(tmp_path: Path) -> None:
    touch(tmp_path, "lfw/Ann_Lee/Ann_Lee_0002.jpg", "lfw/Ann_Lee/Ann_Lee_0001.jpg", "lfw/Bo/Bo_0001.JPG", "pairs.txt")
    touch(tmp_path, "lfw/.hidden/x.jpg", "lfw/Bo/._Bo_0001.jpg", "cover.png")
    assert read_collection(tmp_path) == Collection(
        "people",
        (
            Photo("Ann_Lee", "lfw/Ann_Lee/Ann_Lee_0001.jpg"),
            Photo("Ann_Lee", "lfw/Ann_Lee/Ann_Lee_0002.jpg"),
            Photo("Bo", "lfw/Bo/Bo_0001.JPG"),
        ),
        (("cover.png", "no-identity"), ("pairs.txt", "not-a-picture")),
    )


@pytest.mark.parametrize(
    ("paths", "identities"),
    [
        (["all/lee/mother/1.jpg", "all/kim/mother/1.jpg"], ["kim/mother", "lee/mother"]),  # two families
        (["all/ann/1.jpg", "all/ann/2.jpg"], ["ann", "ann"]),
        (["ann/1.jpg"], ["ann"]),
    ],
)
def test_identity_of_families_and_of_a_single_person(tmp_path: Path, paths: list[str], identities: list[str]) -> None:
    assert [item.identity for item in read_collection(touch(tmp_path, *paths)).photos] == identities


def test_vggface2_merges_train_and_test(tmp_path: Path) -> None:
    touch(tmp_path, "data/train/n000002/0001_01.jpg", "data/test/n000001/0001_01.jpg", "data/test/n000002/9.jpg")
    result = read_collection(tmp_path)
    assert result.layout == "vggface2"
    assert [item.identity for item in result.photos] == ["n000001", "n000002", "n000002"]
    assert {item.identity for item in read_collection(tmp_path, "people").photos} == {
        "test/n000001",
        "test/n000002",
        "train/n000002",
    }
    touch(tmp_path, "data/samples/x.jpg")
    assert read_collection(tmp_path, "vggface2").left_out == (("data/samples/x.jpg", "no-identity"),)


def test_celeba_identities_come_from_the_list(tmp_path: Path) -> None:
    touch(tmp_path, "img_align_celeba/img_align_celeba/000001.jpg", "img_align_celeba/img_align_celeba/000009.jpg")
    (tmp_path / "Anno").mkdir()
    identities = "000001.jpg 2880\n000002.jpg 10\n000003.jpg 2880\n"
    (tmp_path / "Anno/identity_CelebA.txt").write_text(identities, encoding="utf-8-sig")  # as an editor may write it
    result = read_collection(tmp_path)
    assert result == Collection(
        "celeba",
        (Photo("2880", "img_align_celeba/img_align_celeba/000001.jpg"),),
        (
            ("img_align_celeba/img_align_celeba/000009.jpg", "no-identity"),
            ("000002", "missing"),
            ("000003", "missing"),
        ),
    )
    touch(tmp_path, "Img/img_celeba/000003.jpg", "Img/img_celeba/000002.jpg", "Img/img_celeba/000001.jpg")
    wild = read_collection(tmp_path)
    assert [Path(item.path).stem for item in wild.photos] == ["000002", "000001", "000003"]  # of 10, of 2880
    assert wild.left_out == ()


def test_links_are_followed_without_loops(tmp_path: Path) -> None:
    touch(tmp_path / "store", "ann/1.jpg", "bo/1.jpg")
    (tmp_path / "album").mkdir()
    (tmp_path / "album/ann").symlink_to(tmp_path / "store/ann")
    (tmp_path / "album/bo").symlink_to(tmp_path / "store/bo")
    (tmp_path / "store/ann/up").symlink_to(tmp_path / "store")
    assert [item.path for item in read_collection(tmp_path / "album").photos] == ["ann/1.jpg", "bo/1.jpg"]


def test_name_that_is_not_utf_8(tmp_path: Path) -> None:
    touch(tmp_path, os.fsdecode(b"ann\xe9/1.jpg"), "bo/1.jpg")
    photos = read_collection(tmp_path).photos
    assert [item.identity for item in photos] == [r"ann\xe9", "bo"]
    assert (tmp_path / photos[0].path).is_file()
    assert printable(photos[0].path) == r"ann\xe9/1.jpg"


@pytest.mark.parametrize(
    ("paths", "layout", "message"),
    [
        (["notes.txt"], None, "no images"),
        (["1.jpg"], None, "no <person>/<photo>"),
        (["ann/1.jpg", "ann/2019/2.jpg"], None, "photos in ann and ann/2019"),
        (["ann/1.jpg"], "vggface2", "no n000001"),
        (["ann/1.jpg"], "celeba", "no identity_CelebA.txt"),
        (["a/identity_CelebA.txt", "b/identity_CelebA.txt", "img_celeba/1.jpg"], None, "has several lists"),
        (["identity_CelebA.txt", "photos/1.jpg"], None, "none of img_celeba"),
    ],
)
def test_invalid_layouts_are_refused(tmp_path: Path, paths: list[str], layout: Layout | None, message: str) -> None:
    with pytest.raises((DataError, DatasetNotFoundError), match=message):
        read_collection(touch(tmp_path, *paths), layout)
    with pytest.raises(DatasetNotFoundError, match="is not a folder"):
        read_collection(tmp_path / "nobody")


@pytest.mark.parametrize("content", [b"000001.jpg 5\n000002.jpg\n", b"000001.jpg 5\n\xff 7", b"000001.jpg 5\n2 -7"])
def test_a_list_with_a_bad_line(tmp_path: Path, content: bytes) -> None:
    touch(tmp_path, "img_celeba/000001.jpg")
    (tmp_path / "identity_CelebA.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"identity_CelebA.txt(, line 2)?: "):
        read_collection(tmp_path)


def test_images_are_recognised_by_content_and_others_are_listed(tmp_path: Path) -> None:
    save_photo(head("astronaut"), tmp_path / "ann/1.png")
    (tmp_path / "ann/1.png").rename(tmp_path / "ann/1.jfif")
    save_photo(head("hopper"), tmp_path / "bo/1.jpg")
    (tmp_path / "bo/1.jpg").rename(tmp_path / "bo/photo")
    (tmp_path / "bo/notes.txt").write_text("bo, 2019")
    (tmp_path / "bo/2.jpg").symlink_to("nowhere")
    (tmp_path / "bo/.hidden").write_text("")
    result = read_collection(tmp_path)
    assert [photo.path for photo in result.photos] == ["ann/1.jfif", "bo/photo"]
    assert result.left_out == (("bo/2.jpg", "broken-link"), ("bo/notes.txt", "not-a-picture"))
