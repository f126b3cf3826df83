"""The figures of a face embedder on pictures that nothing trained on: verification, identification, promises kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from models import checkpoint
from models.align import align
from models.card import ModelCard
from models.detector import CenterFaceDetector, Detector, Pixels
from models.matching import Matching, Threshold
from models.runtime import prepare
from training.core.errors import DataError
from training.core.seeds import derive, generator
from training.datasets import images as data
from training.datasets.degradations import degrade
from training.datasets.faces import impostor_pairs, mated_pairs, rows_of, source_of
from training.datasets.images import ImageSet, Indices
from training.datasets.protocols import (
    Pairs,
    People,
    Search,
    orl_searches,
    random_search,
    read_lfw,
    read_orl,
    read_views,
)
from training.losses.metric_learning import unit
from training.metrics.classification import predict
from training.metrics.verification import (
    Flags,
    Floats,
    Reliability,
    Scores,
    accuracy_over_folds,
    cross_validated_accuracy,
    first_candidates,
    fmr_interval,
    open_set,
    reliability,
)
from training.prepare.face_photos import choose, read_photo
from training.recipe.config import CameraSection

RATES = (1e-1, 1e-2, 1e-3)
PROMISED = (1e-2, 1e-3)
FPIRS = (1e-1, 1e-2)
# As calibration draws them by default, so that each source weighs what it weighed there.
MATED, IMPOSTORS = 10, 100_000
# Of fewer people an interval says nothing: a source with fewer is shown with the others only.
FEWEST_PEOPLE = 10
GALLERIES = 10
SEED = 0
# The pictures of ORL, 92x112, are tight crops. As they are, a face is found in nearly all of them, at twice the size
# in every one.
ORL_ENLARGED = 2
# A cosine is never less: no threshold accepts a pair of which one picture has no face.
FAILED = -1.0
_AT_ONCE = 256

# How one photo of each pair is degraded for the line "a camera's photo": each kind on half of the photos.
CAMERA = CameraSection(
    chance=0.5, smallest=24, defocus=2.5, motion=9.0, light=0.25, noise=12.0, jpeg=20, grey=True, occlude=False
)

Embed = Callable[[Pixels], Floats]  # aligned faces [N, 112, 112, 3] to unit vectors [N, D]


class Embedder:
    """A calibrated embedder, flips averaged as its card says.

    Raises:
        CheckpointError: see `checkpoint.load`. DataError: another task, or not calibrated.
    """

    card: ModelCard
    matching: Matching

    def __init__(self, folder: Path):
        module, self.card = checkpoint.load(folder)
        if self.card.task != "embed":
            raise DataError(f"{folder} is a network to {self.card.task}, not to embed")
        if self.card.matching is None:
            raise DataError(f"{folder} is not calibrated: its card has no thresholds to measure")
        self.matching = self.card.matching
        self._runtime = prepare(module.to(memory_format=torch.channels_last))  # a third of the time on a CPU

    def __call__(self, faces: Pixels) -> Floats:
        """See `Embed`."""
        pixels = np.stack([self.card.preprocess.pixels(Image.fromarray(face)) for face in faces])
        rows = np.arange(len(faces))
        return self.rows(ImageSet(pixels, rows, ()), rows)

    def rows(self, images: ImageSet, rows: Indices) -> Floats:
        """Unit vectors [len(rows), D] of a data set that was loaded with the card's preprocessing."""
        views = predict(self._runtime, images, rows, self.card.preprocess, tta=self.card.tta)
        return np.asarray(unit(views.sum(dim=0)).double().numpy())


@dataclass(frozen=True)
class Embedded:
    """Unit vectors [N, D] of labelled pictures [N]; zeros of those without a face, which `found` [N] names.

    To have no face found is a failure to acquire in the words of ISO/IEC 19795: the picture is compared all the same,
    with the similarity `FAILED`.
    """

    vectors: Floats
    labels: Indices
    found: Flags

    @property
    def failures(self) -> int:
        """The number of pictures without a face."""
        return int((~self.found).sum())

    def of(self, rows: Indices) -> Embedded:
        """Some of the pictures."""
        return Embedded(self.vectors[rows], self.labels[rows], self.found[rows])

    def pairs(self, places: Indices) -> Floats:
        """Cosines [P] of the pairs [P, 2]."""
        first, second = places.T
        cosines = (self.vectors[first] * self.vectors[second]).sum(axis=1)
        return np.where(self.found[first] & self.found[second], cosines, FAILED)

    def search(self, search: Search) -> Floats:
        """Cosines [Q, G] of a search's probes to its gallery."""
        cosines = self.vectors[search.probes] @ self.vectors[search.gallery].T
        return np.where(np.outer(self.found[search.probes], self.found[search.gallery]), cosines, FAILED)


def embed_photos(people: People, detector: Detector, embed: Embed, enlarged: int = 1) -> Embedded:
    """Detect, align and embed the face nearest to the middle of each picture, made so many times larger before.

    Both sets have the person in the middle, and strangers, if any, beside: LFW's pictures were cut out around a face
    that another detector had found.

    Raises:
        DataError: an unreadable picture; no face in any.
    """
    found: list[bool] = []
    vectors: list[Floats] = []
    for first in tqdm(range(0, len(people.paths), _AT_ONCE), disable=None):
        faces = [_face(path, detector, enlarged) for path in people.paths[first : first + _AT_ONCE]]
        present = [face for face in faces if face is not None]
        found += [face is not None for face in faces]
        if present:
            vectors.append(embed(np.stack(present)))
    if not vectors:
        raise DataError(f"no face was found in any of {len(found)} pictures, as {people.paths[0]}")
    together = np.concatenate(vectors)
    spread = np.zeros((len(found), together.shape[1]))
    spread[found] = together
    return Embedded(spread, people.labels, np.array(found))


def _face(path: Path, detector: Detector, enlarged: int) -> Pixels | None:
    picture = read_photo(path)
    if isinstance(picture, str):
        raise DataError(f"{path}: {picture}")
    if enlarged != 1:
        size = (enlarged * picture.width, enlarged * picture.height)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    faces = detector(picture)
    if not faces:
        return None
    try:
        return align(picture, choose(faces, picture.size, "centre").landmarks)
    except ValueError:  # landmarks in one point
        return None


@dataclass(frozen=True)
class Verification:
    """1:1 figures of one set; `accuracy` is over ten folds with its standard error, where the set's protocol has it."""

    name: str
    scores: Scores
    pictures: int
    failures: int = 0
    accuracy: tuple[float, float] | None = None


class Promise(NamedTuple):
    """What the card says of a threshold, and the FMR that was measured there with its interval, all 0..1."""

    name: str
    fmr: float
    threshold: Threshold
    measured: float
    interval: tuple[float, float]


class Average(NamedTuple):
    """Over galleries: the mean, and the standard deviation from one gallery to the next."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Average:
        """Of two values or more."""
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)))


@dataclass(frozen=True)
class Identification:
    """1:N figures of one set; `fnir` by FPIR, empty where the protocol enrols everybody.

    `mated` and `impostor` are the searches of one open gallery, on average.
    """

    name: str
    subjects: int
    pictures: int
    failures: int
    rank_one: Average
    fnir: Mapping[float, Average]
    mated: float = 0.0
    impostor: float = 0.0


@dataclass
class Figures:
    """All that was measured; `people` is the number of test identities in the data set."""

    card: ModelCard
    dataset: str
    people: int
    reliability: Reliability
    promises: list[Promise]
    verifications: list[Verification]
    identifications: list[Identification]


def measure(folder: Path, dataset: str, lfw: Path | None, orl: Path | None, detector: Path) -> Figures:
    """Every figure, of the files as they lie there.

    Raises:
        CheckpointError, DataError, DatasetNotFoundError: see `Embedder`, `load_detector`, `data.load`, `rows_of`,
            `training.datasets.protocols`; test identities that make no mated or no non-mated pairs.
    """
    embedder = Embedder(folder)
    images = data.load(dataset, "train", embedder.card.preprocess)
    rows = rows_of(images, "test")
    # What can be wrong with these folders is said before the long work begins.
    faces_of_lfw = read_lfw(lfw) if lfw else None
    views = read_views(lfw, faces_of_lfw) if lfw and faces_of_lfw else {}
    faces_of_orl = read_orl(orl) if orl else None
    find = load_detector(detector) if lfw or orl else None
    figures = on_identities(embedder, dataset, images, rows)
    if find and faces_of_lfw:
        photos = embed_photos(faces_of_lfw, find, embedder)
        figures.verifications += [verify(f"LFW {name}", photos, pairs) for name, pairs in views.items()]
        figures.identifications.append(identify("LFW", photos))
    if find and faces_of_orl:
        photos = embed_photos(faces_of_orl, find, embedder, ORL_ENLARGED)
        figures.identifications.append(identify_in_turn("ORL", photos, orl_searches(faces_of_orl)))
    return figures


def load_detector(folder: Path) -> Detector:
    """CenterFace from its weights folder.

    Raises:
        CheckpointError: see `checkpoint.load`. DataError: another task.
    """
    module, card = checkpoint.load(folder)
    if card.task != "detect":
        raise DataError(f"{folder} is a network to {card.task}, not to detect")
    return CenterFaceDetector(prepare(module), card.preprocess)


class _Compared(NamedTuple):
    """The test pictures `rows` of one source, or of all: `pairs` of them [P, 2] as rows, their identities [P, 2] and
    similarities [P].
    """

    name: str
    rows: Indices
    pairs: Indices
    identities: Indices
    similarities: Floats

    @property
    def same(self) -> Flags:
        return np.asarray(self.identities[:, 0] == self.identities[:, 1])


def on_identities(embedder: Embedder, dataset: str, images: ImageSet, rows: Indices) -> Figures:
    """What the identities of these rows, ascending, say: pairs within each source, galleries of a single source.

    Raises:
        DataError: they make no mated or no non-mated pairs.
    """
    embedded = Embedded(embedder.rows(images, rows), images.labels[rows], np.ones(len(rows), bool))
    degraded = embedder.rows(degraded_faces(images, rows), np.arange(len(rows)))
    everybody, *sources = [
        _compared(name, images, chosen, rows, embedded) for name, chosen in _sources(dataset, images, rows).items()
    ]
    matching = embedder.matching
    probabilities = np.array([matching.probability(value) for value in everybody.similarities])
    return Figures(
        card=embedder.card,
        dataset=dataset,
        people=len(np.unique(embedded.labels)),
        reliability=reliability(probabilities, everybody.identities, matching.prior, seed=SEED),
        promises=[promise for part in (everybody, *sources) for promise in _promises(part, matching)],
        verifications=[
            *(
                Verification(part.name, Scores.of(part.similarities, part.same), len(part.rows))
                for part in (everybody, *sources)
            ),
            _across(f"{dataset}, all, a camera's photo", everybody, embedded, degraded, rows),
        ],
        # Two sources may hold one person under two names, so no gallery has people of both.
        identifications=[identify(part.name, embedded.of(np.searchsorted(rows, part.rows))) for part in sources],
    )


def degraded_faces(images: ImageSet, rows: Indices) -> ImageSet:
    """The pictures of these rows, [len(rows), H, W, C], as a camera at a door would have taken them: `CAMERA`."""
    parts = []
    for first in range(0, len(rows), _AT_ONCE):
        pixels = torch.from_numpy(np.asarray(images.images[rows[first : first + _AT_ONCE]])).movedim(-1, 1).float()
        changed = degrade(pixels, CAMERA, generator(SEED, "camera", first))
        parts.append(changed.round().clamp(0, 255).byte().movedim(1, -1).numpy())
    return ImageSet(np.concatenate(parts), images.labels[rows], images.classes)


def _across(name: str, part: _Compared, embedded: Embedded, degraded: Floats, rows: Indices) -> Verification:
    """The same pairs, of which the second picture is degraded; `degraded` are the vectors of all rows."""
    first, second = np.searchsorted(rows, part.pairs).T
    similarities = (embedded.vectors[first] * degraded[second]).sum(axis=1)
    return Verification(name, Scores.of(similarities, part.same), len(rows))


def _sources(dataset: str, images: ImageSet, rows: Indices) -> dict[str, Indices]:
    """All rows, then those of each source with enough people."""
    names = np.array([source_of(identity) for identity in images.classes])[images.labels[rows]]
    parts = {name: rows[names == name] for name in np.unique(names).tolist()}
    enough = {name: part for name, part in parts.items() if len(np.unique(images.labels[part])) >= FEWEST_PEOPLE}
    return {f"{dataset}, all": rows} | {f"{dataset}, {name}": part for name, part in enough.items()}


def _compared(name: str, images: ImageSet, chosen: Indices, rows: Indices, embedded: Embedded) -> _Compared:
    mated = mated_pairs(images, chosen, MATED, SEED)
    if not len(mated):
        raise DataError(f"{name}: no test identity has two pictures")
    pairs = np.concatenate([mated, impostor_pairs(images, chosen, IMPOSTORS, SEED)])
    return _Compared(name, chosen, pairs, images.labels[pairs], embedded.pairs(np.searchsorted(rows, pairs)))


def _promises(part: _Compared, matching: Matching) -> list[Promise]:
    impostors, identities = part.similarities[~part.same], part.identities[~part.same]
    promises = []
    for fmr in PROMISED:
        threshold = matching.threshold(fmr)
        accepted = impostors >= threshold.similarity
        interval = fmr_interval(accepted, identities, seed=SEED)
        promises.append(Promise(part.name, fmr, threshold, float(accepted.mean()), interval))
    return promises


def verify(name: str, photos: Embedded, pairs: Pairs) -> Verification:
    """By a list of pairs, in its own folds or in ten.

    Raises:
        DataError: fewer pairs than folds, or one fold.
    """
    similarities = photos.pairs(pairs.places)
    try:
        if pairs.fold is None:
            accuracy = cross_validated_accuracy(similarities, pairs.same)
        else:
            accuracy = accuracy_over_folds(similarities, pairs.same, pairs.fold)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    # Failures of the pictures that are in the list; LFW has others.
    named = photos.of(np.unique(pairs.places))
    return Verification(name, Scores.of(similarities, pairs.same), len(named.found), named.failures, accuracy)


def identify(name: str, photos: Embedded) -> Identification:
    """With random gallery photos, closed-set with all subjects and open-set with a random half of them.

    Raises:
        DataError: fewer than two subjects, or too few with two photos for every gallery to have mated searches.
    """
    random = np.random.default_rng(derive(SEED, "galleries"))
    closed = identify_in_turn(name, photos, [random_search(photos.labels, random) for _ in range(GALLERIES)])
    searches = [random_search(photos.labels, random, enrolled=0.5) for _ in range(GALLERIES)]
    try:
        scores = [open_set(photos.search(search), search.mates) for search in searches]
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    return replace(
        closed,
        fnir={rate: Average.of([1 - part.tar(rate) for part in scores]) for rate in FPIRS},
        mated=float(np.mean([len(part.mated) for part in scores])),
        impostor=float(np.mean([len(part.impostor) for part in scores])),
    )


def identify_in_turn(name: str, photos: Embedded, searches: Iterable[Search]) -> Identification:
    """Closed-set, with each of the galleries.

    Raises:
        DataError: a gallery of one, or no probe of anybody enrolled.
    """
    subjects = len(np.unique(photos.labels))
    if subjects in {1, len(photos.labels)}:
        raise DataError(f"{name}: identification needs two subjects, and one of them with two photos")
    shares = [_first_share(photos, search) for search in searches]
    return Identification(name, subjects, len(photos.labels), photos.failures, Average.of(shares), fnir={})


def _first_share(photos: Embedded, search: Search) -> float:
    """The share of searches that find the own photo first, all subjects being enrolled."""
    return float(first_candidates(photos.search(search), search.mates).mean())
