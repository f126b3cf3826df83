"""Write photos with faces of many sizes, to quantise the face detector with.

    python -m benchmarks.models.detector_samples FOLDER
    vestibule quantise centerface --images FOLDER

The frames of the clips in VESTIBULE_DATASETS/videos, and collages: one to five aligned faces of the calibration
identities of the data set `faces` on a frame or on an enlarged image of CIFAR-10. No photo of LFW is among them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageSequence

from training.datasets import images
from training.datasets.faces import split_of
from training.recipe.config import datasets_folder

COLLAGES, MOST_FACES = 250, 5
SIZES = ((256, 256), (320, 240), (480, 320), (640, 480))
SMALLEST, LARGEST_SHARE = 24, 0.75  # sides of a face: in pixels, and of the collage's shorter side
CIFAR_ROWS, FACES = 1000, 1200


def frames(folder: Path) -> list[Image.Image]:
    """The frames of all clips."""
    clips = [Image.open(path) for path in sorted(folder.glob("*.gif"))]
    return [frame.convert("RGB") for clip in clips for frame in ImageSequence.Iterator(clip)]


def draw_images(dataset: str, count: int, draw: random.Random, wanted: Callable[[str], bool]) -> list[Image.Image]:
    """Up to `count` random images of the classes or identities that are `wanted`."""
    source = images.find(dataset, "train")
    rows = [row for _, row, label in source.rows() if wanted(source.classes[label])]
    return [images.decoded(dataset, row).convert("RGB") for row in draw.sample(rows, min(count, len(rows)))]


def collage(background: Image.Image, faces: list[Image.Image], draw: random.Random) -> Image.Image:
    """One to `MOST_FACES` of the faces at random places of the background, which is resized to one of `SIZES`."""
    size = draw.choice(SIZES)
    result = background.resize(size, Image.Resampling.BICUBIC)
    for _ in range(draw.randint(1, MOST_FACES)):
        side = draw.randint(SMALLEST, int(LARGEST_SHARE * min(size)))
        left, top = (draw.randint(0, length - side) for length in size)
        result.paste(draw.choice(faces).resize((side, side), Image.Resampling.LANCZOS), (left, top))
    return result


def main(folder: Annotated[Path, typer.Argument(help="A new folder.")]) -> None:
    """Write the photos as PNG."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    shots = frames(datasets_folder() / "videos")
    faces = draw_images("faces", FACES, draw, lambda identity: split_of(identity) == "calibrate")
    backgrounds = [*shots, *draw_images("cifar10", CIFAR_ROWS, draw, lambda _: True)]
    for number, frame in enumerate(shots):
        frame.save(folder / f"frame{number:04}.png")
    for number in range(COLLAGES):
        collage(draw.choice(backgrounds), faces, draw).save(folder / f"collage{number:04}.png")


if __name__ == "__main__":
    typer.run(main)
