"""The command that converts folders of images to a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.training.conftest import assert_error
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
    assert [len(files) for _, files in sorted(names(folders / "data/half/test").items())] == [5, 3]


def test_files_that_are_no_intact_images_are_left_out_and_named(album: Path, folders: Path) -> None:
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
    expected = ["link.png: a broken link", "notes.txt: supported are JPEG, PNG", "cut.png: cannot be decoded"]
    expected += ["text.jpg: cannot be decoded", "copy.png is a copy of 12.png"]
    assert all(part in line for part, line in zip(expected, lines, strict=True)), lines
    kept = names(folders / "data/my-cups/train")["espresso"] + names(folders / "data/my-cups/test")["espresso"]
    assert len(kept) == 10


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda album: picture(album / "1.jpg", 99), "1.jpg is not in the folder of a class; expected is a folder"),
        (lambda album: (album / "tea cup").rename(album.parent / "x"), "has 1 folders; a classifier needs two classes"),
        (lambda album: (album / "espresso/old").mkdir(), "espresso/old is a folder inside the folder of a class"),
        (lambda album: [(album / part).mkdir() for part in ("train", "test")], "has train and test already"),
        (lambda album: picture(album / "mug/1.png", 99), f"the class mug has 1 images; at least {FEWEST} are needed"),
        (
            lambda album: (album / "espresso/00.HEIC").write_bytes(b"\0\0\0\x18ftypheic"),
            "00.HEIC: .HEIC is not supported (1 in this folder); save it as JPEG",
        ),
        (
            lambda album: (album / "tea cup/x.png").write_bytes((album / "espresso/00.png").read_bytes()),
            "are the same image in two classes",
        ),
        (
            lambda album: (album.parent / "data/my-cups").mkdir(parents=True),
            "my-cups exists already: delete it, or choose another --name",
        ),
    ],
)
def test_unsuitable_folders_are_a_one_line_error(
    album: Path, folders: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(album)
    assert_error(prepare(album), message)
    assert not (folders / "data/my-cups/train").exists()
    assert [path.name for path in (folders / "data").glob(".*")] == []


def test_invalid_names_and_missing_folders_are_refused(album: Path, folders: Path) -> None:
    assert_error(prepare(album, "--name", "A b"), "'A b' is not a valid name")
    assert_error(prepare(album.rename(album.with_name("Äöü"))), "'' is not a valid name")
    assert_error(prepare(folders / "none"), f"{folders / 'none'} is not a folder")


def test_unsupported_photos_in_a_split_data_set_are_refused(folders: Path) -> None:
    picture(folders / "data/s/train/a/1.png", 1)
    (folders / "data/s/train/a/2.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"2\.heic: \.heic is not supported"):
        data.find("s", "train")
