"""Which of several faces is a photo of? Rules compared on composed photos, of which the subject is known.

    python -m benchmarks.models.prominence [--data faces] [--photos 600]

Each photo is composed of aligned faces of the identities that calibrate (`training.datasets.faces`), of different
people, pasted as ellipses over a blurred photo without people, 640 x 480 or 480 x 640 pixels. The stated distribution:

    subject      its centre is normal around the middle of the photo, with a deviation of 0.12 of each side; the side of
                 its crop is log-normal with a median of 0.32 of the shorter side and a deviation of 0.35 (of the log)
    bystanders   1 to 3, placed uniformly where they overlap no other face by more than a tenth of either; their side is
                 log-normal with a median of 0.25 of the shorter side and a deviation of 0.5

So a bystander is larger than the subject in about one photo of three, and nearer to the middle in one of ten. The
detector finds the faces; a rule is right where the face that it chooses is the subject. Photos in which the subject
is not found are left out and counted. Rules: the largest face, the face nearest to the middle, and `prominence` with
several spreads. Writes benchmarks/results/prominence.csv.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from skimage import data as photos

from models import checkpoint
from models.align import SIDE
from models.detection_scale import CenterFaceDetector
from models.detector import Face, prominence
from models.preprocess import Preprocess
from training.datasets import images as data
from training.datasets.faces import split_of

RESULTS = Path(__file__).parents[1] / "results"
SPREADS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5)
SUBJECT, BYSTANDER = (0.32, 0.35), (0.25, 0.5)  # median of the shorter side, deviation of the log
OFF_CENTRE = 0.12
OVERLAP = 0.1
Square = tuple[float, float, float]  # left, top, side


def places(size: tuple[int, int], lots: np.random.Generator) -> list[Square]:
    """The subject's place and those of its bystanders, in the photo."""
    width, height = size
    shorter = min(size)
    centre = np.clip(lots.normal(0.5, OFF_CENTRE, 2), 0, 1) * size
    side = shorter * min(0.9, float(lots.lognormal(math.log(SUBJECT[0]), SUBJECT[1])))
    squares = [_within((centre[0] - side / 2, centre[1] - side / 2, side), size)]
    wanted = 1 + int(lots.integers(1, 4))
    for _ in range(200):
        if len(squares) == wanted:
            break
        side = shorter * min(0.9, float(lots.lognormal(math.log(BYSTANDER[0]), BYSTANDER[1])))
        square = (lots.uniform(0, width - side), lots.uniform(0, height - side), side)
        if all(_overlap(square, other) <= OVERLAP for other in squares):
            squares.append(square)
    return squares


def _within(square: Square, size: tuple[int, int]) -> Square:
    left, top, side = square
    return min(max(left, 0.0), size[0] - side), min(max(top, 0.0), size[1] - side), side


def _overlap(one: Square, other: Square) -> float:
    """The area that both have, as a share of the smaller one."""
    across, down = (min(one[i] + one[2], other[i] + other[2]) - max(one[i], other[i]) for i in (0, 1))
    return max(across, 0) * max(down, 0) / min(one[2], other[2]) ** 2


def compose(background: Image.Image, crops: Sequence[Image.Image], squares: Sequence[Square]) -> Image.Image:
    """The crops pasted as ellipses with soft edges; the subject, which is the first, over the others."""
    photo = background.copy()
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).ellipse((6, 2, SIDE - 7, SIDE - 3), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(3))
    for crop, (left, top, side) in reversed(list(zip(crops, squares, strict=True))):
        size = max(8, round(side)), max(8, round(side))
        photo.paste(crop.resize(size), (round(left), round(top)), mask.resize(size))
    return photo


def composed(dataset: str, count: int, seed: int = 0) -> Iterator[tuple[Image.Image, Square]]:
    """Photos with the subject's place in each."""
    lots = np.random.default_rng(seed)
    preprocess = Preprocess(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)
    faces = data.load(dataset, "train", preprocess)
    people = [label for label, name in enumerate(faces.classes) if split_of(name) == "calibrate"]
    rows = {label: np.flatnonzero(faces.labels == label) for label in people}
    scenes = [Image.fromarray(getattr(photos, name)()).convert("RGB") for name in ("coffee", "chelsea", "rocket")]
    scenes = [scene.filter(ImageFilter.GaussianBlur(6)) for scene in scenes]
    for number in range(count):
        size = (640, 480) if number % 2 else (480, 640)
        squares = places(size, lots)
        chosen = lots.choice(people, len(squares), replace=False)
        crops = [Image.fromarray(faces.images[lots.choice(rows[label])]) for label in chosen]
        yield compose(scenes[number % len(scenes)].resize(size), crops, squares), squares[0]


def is_subject(face: Face, square: Square) -> bool:
    """Whether the middle of the detected box lies in the middle half of the subject's square, and is about as large."""
    left, top, side = square
    across, down = (face.box[0] + face.box[2]) / 2 - left, (face.box[1] + face.box[3]) / 2 - top
    near = all(0.25 * side <= offset <= 0.75 * side for offset in (across, down))
    return near and face.area > 0.1 * side**2


def judged(photo: Image.Image, subject: Square, faces: Sequence[Face]) -> dict[str, bool] | None:
    """Whether each rule chooses the subject; None where the detector does not find the subject, or finds none else."""
    if len(faces) < 2 or not any(is_subject(face, subject) for face in faces):
        return None
    choices = {
        "largest": max(faces, key=lambda face: face.area),
        "nearest to the middle": min(
            faces, key=lambda face: math.dist((face.box[0] + face.box[2], face.box[1] + face.box[3]), photo.size)
        ),
    }
    for spread in SPREADS:
        choices[f"prominence, spread {spread}"] = max(faces, key=partial(prominence, size=photo.size, spread=spread))
    return {rule: is_subject(face, subject) for rule, face in choices.items()}


def main() -> None:
    """Compose, detect, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="faces")
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    network, card = checkpoint.load(Path("weights/centerface"))
    detector = CenterFaceDetector(network.eval(), card.preprocess)
    torch.set_grad_enabled(False)
    rows = [
        row
        for photo, subject in composed(options.data, options.photos)
        if (row := judged(photo, subject, detector(photo))) is not None
    ]
    with (options.results / "prominence.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["rule", "photos", "right", "share"])
        for rule in rows[0]:
            right = sum(row[rule] for row in rows)
            table.writerow([rule, len(rows), right, f"{right / len(rows):.4f}"])
            print(f"{rule:28} {right / len(rows):.4f} of {len(rows)}")
    print(f"left out: {options.photos - len(rows)} of {options.photos}")


if __name__ == "__main__":
    main()
