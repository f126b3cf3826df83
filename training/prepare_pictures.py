"""Convert a folder with a folder of images for each class to a data set with a test split and a recipe.

`python -m training.prepare_pictures ~/pictures/cups` writes VESTIBULE_DATASETS/cups: copies of the images in
train/<class>/ and test/<class>/, and recipe.toml, which is training/recipes/my-pictures.toml adapted to them. Files
that are not images, images that cannot be decoded and duplicates are left out and reported.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import tomli_w
import typer

from training.core.errors import DataError, exit_on_error
from training.core.seeds import derive
from training.datasets.images import decoded, image_files
from training.recipe.config import check_name, datasets_folder

cli = typer.Typer(add_completion=False)

Classes = dict[str, list[Path]]

RECIPE = Path(__file__).parent / "recipes" / "my-pictures.toml"
FEWEST = 5  # images of a class: one to test, one to validate, three to train on
_VALIDATION = 0.2
_NAMED = 10  # the largest number of classes that a description lists


def classes_in(folder: Path, report: Callable[[str], None]) -> Classes:
    """Return the images of each class's folder by the folder's name; `report` as in `image_files`.

    Raises:
        DataError: another layout, or photos of an unsupported format.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    expected = f"expected is a folder for each class: {folder}/<class>/*.jpg"
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if {"train", "test"} <= {path.name for path in folders}:
        raise DataError(f"{folder} has train and test already: use it as a data set under {datasets_folder()}")
    if loose := image_files(folder, report):
        raise DataError(f"{loose[0]} is not in the folder of a class; {expected}")
    if len(folders) < 2:
        raise DataError(f"{folder} has {len(folders)} folders; a classifier needs two classes or more; {expected}")
    for path in folders:
        if inner := [below for below in path.iterdir() if below.is_dir() and not below.name.startswith(".")]:
            raise DataError(f"{inner[0]} is a folder inside the folder of a class; {expected}")
    return {path.name: image_files(path, report) for path in folders}


def without_defects(classes: Classes, report: Callable[[str], None]) -> Classes:
    """Return the classes without images that cannot be decoded and without duplicates, which are reported.

    Raises:
        DataError: an image in two classes, or fewer than `FEWEST` images left in a class.
    """
    seen: dict[str, Path] = {}
    kept: Classes = {}
    for name, paths in classes.items():
        kept[name] = []
        for path in paths:
            content = path.read_bytes()
            first = seen.setdefault(hashlib.sha256(content).hexdigest(), path)
            if first.parent != path.parent:
                raise DataError(f"{first} and {path} are the same image in two classes")
            if first != path:
                report(f"left out: {path} is a copy of {first.name}")
                continue
            try:
                decoded(str(path), io.BytesIO(content))
            except DataError as error:
                report(f"left out: {error}")
                continue
            kept[name].append(path)
        if len(kept[name]) < FEWEST:
            raise DataError(f"the class {name} has {len(kept[name])} images; at least {FEWEST} are needed")
    return kept


def split(classes: Classes, share: float) -> tuple[Classes, Classes]:
    """Return (train, test) images; a random `share` of each class, at least one image, is for the test."""
    train: Classes = {}
    test: Classes = {}
    for name, paths in classes.items():
        order = np.random.default_rng(derive(0, "test", name)).permutation(len(paths))
        count = max(1, round(share * len(paths)))
        test[name] = [paths[position] for position in sorted(order[:count])]
        train[name] = [paths[position] for position in sorted(order[count:])]
    return train, test


def recipe(name: str, train: Classes, test: Classes) -> str:
    """Return RECIPE adapted to this data set, as TOML."""
    content = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    rows = sum(map(len, train.values()))
    validation = max(len(train), round(_VALIDATION * rows))
    kinds = ", ".join(train) if len(train) <= _NAMED else f"{len(train)} classes"
    content |= {"name": name, "description": f"{name}: {kinds}"}
    content["data"] |= {"name": name, "validation": validation}
    content["train"]["batch_size"] = min(content["train"]["batch_size"], rows - validation)
    content["card"]["data"] = (
        f"{name}, own pictures: {rows - validation} of {rows}; the other {validation} chose epoch and temperature"
    )
    return f"# training/recipes/my-pictures.toml, which says why, for {name}.\n{tomli_w.dumps(content)}"


def write(folder: Path, splits: dict[str, Classes], text: str) -> None:
    """Write copies of the images and the recipe into a new folder, completely or not at all.

    Raises:
        DataError: the folder exists.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already: delete it, or choose another --name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for part, classes in splits.items():
            for name, paths in classes.items():
                (temporary / part / name).mkdir(parents=True)
                for path in paths:
                    shutil.copyfile(path, temporary / part / name / path.name)
        (temporary / "recipe.toml").write_text(text, encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp creates it with 0700
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@cli.command()
def main(
    folder: Annotated[Path, typer.Argument(help="The images: FOLDER/<class>/*.jpg.")],
    name: Annotated[str | None, typer.Option(help="Of the data set and the model; default: the folder's.")] = None,
    test: Annotated[float, typer.Option(min=0.01, max=0.9, help="The share of images for the test.")] = 0.2,
) -> None:
    """Check the images, split them, and write the data set with its recipe."""
    with exit_on_error(OSError):
        chosen = check_name(name or re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._"))
        target = datasets_folder() / chosen

        def report(line: str) -> None:
            typer.echo(line, err=True)

        train, tested = split(without_defects(classes_in(folder, report), report), test)
        write(target, {"train": train, "test": tested}, recipe(chosen, train, tested))
    counts = [sum(map(len, part.values())) for part in (train, tested)]
    typer.echo(f"{target}: {len(train)} classes, {counts[0]} images to train on, {counts[1]} for the test")
    typer.echo(f"next: python -m training.classify {target / 'recipe.toml'}")


if __name__ == "__main__":
    cli()
