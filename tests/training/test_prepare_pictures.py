"""The command that converts folders of images to a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from training import prepare_pictures
from training.core.errors import DataError
from training.datasets import images as data
from training.prepare_pictures import FEWEST
from training.recipe.config import Recipe, read_recipe


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def album(folders: Path) -> Path:
    """Two classes of ten and six images in a folder whose name is not a valid data set name."""
    folder = folders / "My Cups"
    for number in range(16):
        picture(folder / ("espresso" if number < 10 else "tea cup") / f"{number:02}.png", number)
    return folder


def prepare(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(prepare_pictures.cli, [str(folder), *options])


def names(folder: Path) -> dict[str, list[str]]:
    return {path.name: sorted(file.name for file in path.iterdir()) for path in folder.iterdir()}


def test_each_picture_is_in_one_split_and_the_recipe_fits(album: Path, folders: Path) -> None:
    result = prepare(album)
    assert result.exit_code == 0, result.output
    created = folders / "data/my-cups"
    assert result.stdout.splitlines() == [
        f"{created}: 2 classes, 13 images to train on, 3 for the test",
        f"next: python -m training.classify {created / 'recipe.toml'}",
    ]
    train, test = names(created / "train"), names(created / "test")
    assert {name: len(files) for name, files in test.items()} == {"espresso": 2, "tea cup": 1}
    assert {name: sorted(train[name] + test[name]) for name in train} == names(album)
    copied = created / "train/espresso" / train["espresso"][0]
    assert copied.read_bytes() == (album / "espresso" / copied.name).read_bytes()

    recipe = read_recipe(Recipe, created / "recipe.toml")
    assert (recipe.name, recipe.data.name, recipe.description) == ("my-cups", "my-cups", "my-cups: espresso, tea cup")
    assert recipe.data.validation == 3
    assert recipe.train.batch_size == 10  # all that is left, below the shipped recipe's
    shipped = read_recipe(Recipe, prepare_pictures.RECIPE)
    assert (recipe.model, recipe.preprocess, recipe.augment) == (shipped.model, shipped.preprocess, shipped.augment)
    assert data.find("my-cups", "test").count == 3


def test_the_same_pictures_are_split_the_same_way(album: Path, folders: Path) -> None:
    assert prepare(album).exit_code == prepare(album, "--name", "again", "--test", "0.2").exit_code == 0
    assert names(folders / "data/my-cups/test") == names(folders / "data/again/test")
    assert prepare(album, "--name", "half", "--test", "0.5").exit_code == 0
    assert {name: len(files) for name, files in names(folders / "data/half/test").items()} == {
        "espresso": 5,
        "tea cup": 3,
    }


def test_what_is_no_whole_picture_is_left_out_and_named(album: Path, folders: Path) -> None:
    (album / "espresso/notes.txt").write_text("not a picture")
    (album / "espresso/.DS_Store").write_bytes(b"\0")
    (album / ".thumbnails").mkdir()
    (album / "espresso/cut.png").write_bytes((album / "espresso/00.png").read_bytes()[:60])
    (album / "espresso/text.jpg").write_text("no picture either")
    (album / "espresso/link.png").symlink_to("nowhere")
    (album / "tea cup/copy.png").write_bytes((album / "tea cup/12.png").read_bytes())
    result = prepare(album)
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["left out"] * 5
    expected = [
        "link.png: a broken link",
        "notes.txt: none of JPEG, PNG",
        "cut.png: cannot be decoded",
        "text.jpg: cannot be decoded",
        "copy.png is a copy of 12.png",
    ]
    assert all(part in line for part, line in zip(expected, lines, strict=True)), lines
    kept = names(folders / "data/my-cups/train")["espresso"] + names(folders / "data/my-cups/test")["espresso"]
    assert len(kept) == 10


def loose(album: Path) -> None:
    picture(album / "1.jpg", 99)


def one_class(album: Path) -> None:
    (album / "tea cup").rename(album.parent / "elsewhere")


def nested(album: Path) -> None:
    (album / "espresso/old").mkdir()


def already_split(album: Path) -> None:
    for name in ("train", "test"):
        (album / name).mkdir()


def one_picture(album: Path) -> None:
    picture(album / "mug/1.png", 99)


def heic(album: Path) -> None:
    (album / "espresso/00.png").unlink()
    (album / "espresso/00.HEIC").write_bytes(b"\0\0\0\x18ftypheic")


def in_two_classes(album: Path) -> None:
    (album / "tea cup/x.png").write_bytes((album / "espresso/00.png").read_bytes())


def taken(album: Path) -> None:
    (album.parent / "data/my-cups").mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (loose, "1.jpg is not in the folder of a class; expected is a folder for each class"),
        (one_class, "has 1 folders; a classifier needs two classes or more"),
        (nested, "espresso/old is a folder inside the folder of a class"),
        (already_split, "has train and test already"),
        (one_picture, f"the class mug has 1 images; at least {FEWEST} are needed"),
        (heic, "00.HEIC: .HEIC is not supported (1 in this folder); save it as JPEG"),
        (in_two_classes, "are the same image in two classes"),
        (taken, "my-cups exists already: delete it, or choose another --name"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(
    album: Path, folders: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(album)
    result = prepare(album)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
    assert not (folders / "data/my-cups/train").exists()
    assert [path.name for path in (folders / "data").glob(".*")] == []


@pytest.mark.parametrize(("folder", "options"), [("Äöü", ()), ("My Cups", ("--name", "A b"))])
def test_a_name_that_cannot_be_one(album: Path, folder: str, options: tuple[str, ...]) -> None:
    other = album.rename(album.with_name(folder))
    assert "cannot be a data set's name" in prepare(other, *options).output


def test_no_such_folder(folders: Path) -> None:
    assert f"{folders / 'none'} is not a folder" in prepare(folders / "none").output


def test_a_phone_s_photos_are_not_passed_over_in_a_split_data_set_either(folders: Path) -> None:
    picture(folders / "data/s/train/a/1.png", 1)
    (folders / "data/s/train/a/2.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"2\.heic: \.heic is not supported"):
        data.find("s", "train")
