"""A folder as somebody has one, FOLDER/<class>/*.jpg, of CIFAR-10's pictures: to time docs/training-your-own.md with.

`python -m benchmarks.experiments.own_pictures ~/pictures/animals --classes bird,cat,horse --count 60`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.datasets.images import decoded, find

SIDE = 256  # as a small photo's; enlarged from 32 there is no more in it than there was


def main(
    folder: Path,
    classes: Annotated[str, typer.Option(help="Of CIFAR-10's, with commas between.")] = "bird,cat,horse",
    count: Annotated[int, typer.Option(min=1, help="Pictures of each.")] = 60,
) -> None:
    """Write the first so many pictures of each class in CIFAR-10's train split."""
    source = find("cifar10", "train")
    left = {source.classes.index(name): count for name in classes.split(",")}
    for number, (where, picture, label) in enumerate(source.rows()):
        if left.get(label):
            path = folder / source.classes[label] / f"{number:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            decoded(where, picture).resize((SIDE, SIDE)).save(path, quality=90)
            left[label] -= 1


if __name__ == "__main__":
    typer.run(main)
