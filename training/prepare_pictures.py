"""A folder of pictures, in it one folder a class, to a data set with a test split and a recipe.

`python -m training.prepare_pictures ~/pictures/cups` writes VESTIBULE_DATASETS/cups: copies of the pictures in
train/<class>/ and test/<class>/, and recipe.toml, which is training/recipes/my-pictures.toml for them. Files that are
no pictures, pictures that cannot be decoded and further copies of a picture are left out, and named.
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
from pydantic import TypeAdapter, ValidationError

from models.card import Name
from training.core.errors import DataError, TrainingError
from training.core.seeds import derive
from training.datasets.images import decoded, picture_files
from training.recipe.config import datasets_folder

cli = typer.Typer(add_completion=False)

Classes = dict[str, list[Path]]

RECIPE = Path(__file__).parent / "recipes" / "my-pictures.toml"
FEWEST = 5  # of a class: one to test, one to validate, some to learn from
_VALIDATION = 0.2
_NAMED = 10  # classes that a description lists


def classes_in(folder: Path, tell: Callable[[str], None]) -> Classes:
    """The pictures of each class's folder, by the folder's name; `tell` as in `picture_files`.

    Raises:
        DataError: another layout, or photos of a format that is not read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    expected = f"expected is a folder for each class: {folder}/<class>/*.jpg"
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if {"train", "test"} <= {path.name for path in folders}:
        raise DataError(f"{folder} is split already: it is a data set as it stands, under {datasets_folder()}")
    if loose := picture_files(folder, tell):
        raise DataError(f"{loose[0]} is in no class's folder; {expected}")
    if len(folders) < 2:
        raise DataError(f"{folder} has {len(folders)} folders, and a classifier two classes or more; {expected}")
    for path in folders:
        if inner := [below for below in path.iterdir() if below.is_dir() and not below.name.startswith(".")]:
            raise DataError(f"{inner[0]} is a folder in a class's folder; {expected}")
    return {path.name: picture_files(path, tell) for path in folders}


def whole(classes: Classes, tell: Callable[[str], None]) -> Classes:
    """The classes without what cannot be decoded and without further copies of a picture, which are told of.

    Raises:
        DataError: a picture in two classes, or a class with fewer than `FEWEST` that are left.
    """
    seen: dict[str, Path] = {}
    kept: Classes = {}
    for name, paths in classes.items():
        kept[name] = []
        for path in paths:
            content = path.read_bytes()
            first = seen.setdefault(hashlib.sha256(content).hexdigest(), path)
            if first.parent != path.parent:
                raise DataError(f"{first} and {path} are the same picture, in two classes")
            if first != path:
                tell(f"left out: {path} is {first.name} again")
                continue
            try:
                decoded(str(path), io.BytesIO(content))
            except DataError as error:
                tell(f"left out: {error}")
                continue
            kept[name].append(path)
        if len(kept[name]) < FEWEST:
            raise DataError(f"the class {name} has {len(kept[name])} pictures; {FEWEST} are the fewest")
    return kept


def split(classes: Classes, share: float) -> tuple[Classes, Classes]:
    """(what is trained on, what is tested on): that share of each class is drawn for the test, at least one picture."""
    train: Classes = {}
    test: Classes = {}
    for name, paths in classes.items():
        order = np.random.default_rng(derive(0, "test", name)).permutation(len(paths))
        count = max(1, round(share * len(paths)))
        test[name] = [paths[place] for place in sorted(order[:count])]
        train[name] = [paths[place] for place in sorted(order[count:])]
    return train, test


def recipe(name: str, train: Classes, test: Classes) -> str:
    """RECIPE for this data set, as TOML."""
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
    """Put copies of the pictures and the recipe into a new folder, whole or not at all.

    Raises:
        DataError: there is such a folder.
    """
    if folder.exists():
        raise DataError(f"{folder} is there already: delete it, or choose another --name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for part, classes in splits.items():
            for name, paths in classes.items():
                (temporary / part / name).mkdir(parents=True)
                for path in paths:
                    shutil.copyfile(path, temporary / part / name / path.name)
        (temporary / "recipe.toml").write_text(text, encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp's are for nobody else
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def data_set_name(folder: Path, given: str | None) -> str:
    """The given name, or the folder's in the form that names have.

    Raises:
        DataError: neither can be a name.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._") if given is None else given
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise DataError(f"{name!r} cannot be a data set's name; give a --name of a-z, 0-9, . _ -") from error


@cli.command()
def main(
    folder: Annotated[Path, typer.Argument(help="The pictures: FOLDER/<class>/*.jpg.")],
    name: Annotated[str | None, typer.Option(help="Of the data set and the model; default: the folder's.")] = None,
    test: Annotated[float, typer.Option(min=0.01, max=0.9, help="The share of pictures that is for the test.")] = 0.2,
) -> None:
    """Look through the pictures, split them, and write the data set with its recipe."""
    try:
        chosen = data_set_name(folder, name)
        target = datasets_folder() / chosen

        def tell(line: str) -> None:
            typer.echo(line, err=True)

        train, tested = split(whole(classes_in(folder, tell), tell), test)
        write(target, {"train": train, "test": tested}, recipe(chosen, train, tested))
    except (TrainingError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    counts = [sum(map(len, part.values())) for part in (train, tested)]
    typer.echo(f"{target}: {len(train)} classes, {counts[0]} pictures to train on, {counts[1]} for the test")
    typer.echo(f"next: python -m training.classify {target / 'recipe.toml'}")


if __name__ == "__main__":
    cli()
