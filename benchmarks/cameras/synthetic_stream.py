"""A synthetic camera: real photos of people move over a real photo, so that it is known who is where in each frame.

A walk is one passage of one person: 3 to 15 different photos of the person, each for HOLD frames, on a straight path
towards the camera, with blur of the movement and of the focus, and a varying brightness. At most AT_ONCE people are in
view, and they may hide each other. Most people of the data set have few photos, so most walks take one or two seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from skimage import data as photos

from app.watch.source.frames import Frame
from models.align import SIDE
from training.core.seeds import derive
from training.datasets import images
from training.datasets.faces import FaceSplit, split_of

WIDTH, HEIGHT, FPS = 1280, 720, 10
FEWEST, MOST, HOLD, AT_ONCE = 3, 15, 3, 3
FIRST_SIZE, LAST_SIZE = (60, 110), (110, 220)  # sides of the pasted photo in pixels, at the start and the end of a walk
MOST_SPEED = 0.25  # of the frame's width per second
MOST_GROWTH = 0.7  # of the size's logarithm, per second: somebody who comes nearer by 1.4 m/s at a distance of 2 m
ENROLLED_SHARE, ENROLLED_PHOTOS = 0.3, 3
SCENES = ("coffee", "rocket", "chelsea")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Person:
    """An identity of the data set and its photos, as aligned faces."""

    name: str
    photos: list[Image.Image]


def people_of(dataset: str, split: FaceSplit, fewest: int) -> list[Person]:
    """Return the split's identities with at least so many photos, in an order that depends on the data set only."""
    source = images.find(dataset, "train")
    found: dict[str, list[Image.Image]] = {}
    for _, file, label in source.rows():
        name = source.classes[label].replace("/", "-")  # a subject id
        if split_of(source.classes[label]) == split:
            with Image.open(file) as image:  # type: ignore[arg-type]
                found.setdefault(name, []).append(image.convert("RGB"))
    return [Person(name, found[name]) for name in sorted(found) if len(found[name]) >= fewest]


@dataclass(frozen=True)
class Walk:
    """One passage, from the frame `start` on; positions are the middle of the photo in pixels, sizes its side."""

    number: int
    person: Person
    photos: Sequence[Image.Image]
    start: int
    path: tuple[tuple[float, float], tuple[float, float]]
    sizes: tuple[float, float]
    defocus: float
    brightness: float

    @property
    def stop(self) -> int:
        """The first frame after the walk."""
        return self.start + HOLD * len(self.photos)

    def place(self, index: int) -> tuple[float, float, float]:
        """Return the middle (x, y) and the side of the photo in frame `index`."""
        share = (index - self.start) / max(1, self.stop - self.start - 1)
        x, y = (one + share * (other - one) for one, other in zip(*self.path, strict=True))
        return x, y, self.sizes[0] * (self.sizes[1] / self.sizes[0]) ** share

    def box(self, index: int) -> Box:
        """Return the part of the frame that shows the face."""
        x, y, side = self.place(index)
        return x - 0.35 * side, y - 0.4 * side, x + 0.35 * side, y + 0.4 * side

    def draw(self, canvas: Image.Image, index: int, mask: Image.Image) -> None:
        """Draw the person in frame `index`."""
        x, y, side = self.place(index)
        size = max(8, round(side)), max(8, round(side))
        photo = self.photos[(index - self.start) // HOLD].resize(size, Image.Resampling.BICUBIC)
        photo = ImageEnhance.Brightness(photo).enhance(self.brightness)
        before = self.place(max(self.start, index - 1))
        # The shutter is open for a fifth of the time between two frames.
        moved = math.dist((x, y), before[:2]) / 5
        photo = photo.filter(ImageFilter.GaussianBlur(self.defocus * side / SIDE)).filter(
            ImageFilter.BoxBlur((min(8.0, moved / 2), 0))
        )
        canvas.paste(photo, (round(x - side / 2), round(y - side / 2)), mask.resize(size))


def soft_mask() -> Image.Image:
    """Return the ellipse with soft edges by which a photo is pasted."""
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).ellipse((6, 2, SIDE - 7, SIDE - 3), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(3))


class PassersBy:
    """A source of frames (`app.watch.source.frames.Source`) with `count` walks; the same seed gives the same frames.

    `bursts`: each walk shows one photo, with varying blur, in place of different photos. `drawing_s` is the CPU time
    that drawing has taken, which a camera does not need.
    """

    live = False

    def __init__(self, people: Sequence[Person], count: int, *, seed: int = 0, bursts: bool = False) -> None:
        self.drawing_s = 0.0
        random = np.random.default_rng(derive(seed, "passers-by"))
        chosen = [people[index] for index in random.permutation(len(people))]
        self.enrolled = chosen[: round(ENROLLED_SHARE * min(count, len(chosen)))]
        order = random.permutation(count)
        self.walks: list[Walk] = []
        free = [0] * AT_ONCE
        for number in range(count):
            person = chosen[order[number] % len(chosen)]
            slot = int(np.argmin(free))
            walk = self._walk(number, person, free[slot] + int(random.integers(0, 2 * FPS)), random, bursts=bursts)
            self.walks.append(walk)
            free[slot] = walk.stop
        self.frame_count = max(free) + FPS
        self._scenes = [
            Image.fromarray(getattr(photos, name)()).convert("RGB").resize((WIDTH, HEIGHT)) for name in SCENES
        ]

    def _walk(self, number: int, person: Person, start: int, random: np.random.Generator, *, bursts: bool) -> Walk:
        kept = len(enrolled_photos(person)) if person in self.enrolled else 0
        available = person.photos[kept:]
        count = int(random.integers(FEWEST, MOST + 1))
        if bursts:
            shown = [available[int(random.integers(len(available)))]] * count
        else:
            picks = random.permutation(len(available))[: min(count, len(available))]
            shown = [available[pick] for pick in picks]
        first = float(random.uniform(*FIRST_SIZE))
        growth = math.exp(MOST_GROWTH * HOLD * len(shown) / FPS)
        sizes = first, min(float(random.uniform(*LAST_SIZE)), first * growth)
        margin = LAST_SIZE[1] / 2
        begin = float(random.uniform(margin, WIDTH - margin)), float(random.uniform(margin, HEIGHT / 2))
        reach = MOST_SPEED * WIDTH * HOLD * len(shown) / FPS
        end = (
            float(np.clip(begin[0] + random.uniform(-reach, reach), margin, WIDTH - margin)),
            float(np.clip(begin[1] + random.uniform(0, HEIGHT / 4), margin, HEIGHT - margin)),
        )
        defocus, brightness = float(random.uniform(0, 1.0)), float(random.uniform(0.7, 1.2))
        return Walk(number, person, shown, start, (begin, end), sizes, defocus, brightness)

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames."""
        for index in range(self.frame_count):
            yield Frame(index / FPS, partial(self.draw, index))

    def draw(self, index: int) -> Image.Image:
        """Return frame `index`; nearer people hide others."""
        begun = time.thread_time()
        canvas, mask = self._scenes[index // 600 % len(self._scenes)].copy(), soft_mask()
        for walk in sorted(self.walks_at(index), key=lambda walk: walk.place(index)[2]):
            walk.draw(canvas, index, mask)
        self.drawing_s += time.thread_time() - begun
        return canvas

    def walks_at(self, index: int) -> Iterator[Walk]:
        """Yield the walks in view in frame `index`."""
        return (walk for walk in self.walks if walk.start <= index < walk.stop)

    def walk_at(self, index: int, x: float, y: float) -> Walk | None:
        """Return the walk whose face is at this position of frame `index`, in pixels; None for none."""
        inside = [
            walk
            for walk in self.walks_at(index)
            if walk.box(index)[0] <= x <= walk.box(index)[2] and walk.box(index)[1] <= y <= walk.box(index)[3]
        ]
        return min(inside, key=lambda walk: math.dist(walk.place(index)[:2], (x, y)), default=None)


def enrolled_photos(person: Person) -> list[Image.Image]:
    """Return the photos that are enrolled, which the stream does not show."""
    return person.photos[: max(1, min(ENROLLED_PHOTOS, len(person.photos) - FEWEST))]


def still(photo: Image.Image) -> Image.Image:
    """Return a photo for the enrolment: the face in front of a scene, as in the stream but sharp."""
    canvas = Image.fromarray(getattr(photos, SCENES[0])()).convert("RGB").resize((480, 360))
    size = (200, 200)
    canvas.paste(photo.resize(size, Image.Resampling.BICUBIC), (140, 80), soft_mask().resize(size))
    return canvas
