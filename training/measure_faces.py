"""The figures of a face embedder on pictures that nothing trained on: verification, identification, promises kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import typer
from PIL import Image
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]
from tqdm import tqdm

from models import checkpoint
from models.align import align
from models.card import ModelCard
from models.checkpoint import write_atomically
from models.detector import CenterFaceDetector, Detector, Pixels
from models.matching import Matching, Threshold
from models.runtime import prepare
from training import data
from training.compare import write_between_markers
from training.data import ImageSet, Indices
from training.drawing import ACCENT, COLOURS, INK, PALE, blank, png
from training.errors import DataError, TrainingError
from training.face_photos import choose, read_photo
from training.faces import impostor_pairs, mated_pairs, rows_of, source_of
from training.losses import unit
from training.metrics import predict
from training.protocols import Pairs, People, Search, orl_searches, random_search, read_lfw, read_orl, read_views
from training.seeds import derive
from training.verification import (
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        self._runtime = prepare(module)

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


def faces(
    folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A folder with model.safetensors and card.json.")],
    dataset: Annotated[str, typer.Option("--data", help="A data set of aligned faces under VESTIBULE_DATASETS.")],
    lfw: Annotated[Path | None, typer.Option(help="LFW's pictures with pairsDevTest.txt, pairs.txt or both.")] = None,
    orl: Annotated[Path | None, typer.Option(help="ORL's pictures, s1/1.pgm to s40/10.pgm.")] = None,
    detector: Annotated[Path, typer.Option(help="The weights folder of a detector.")] = Path("weights/centerface"),
    write: Annotated[Path | None, typer.Option(help="Put faces.md and its pictures into this folder.")] = None,
) -> None:
    """Verification, identification and calibration of a face embedder, as tables and plots."""
    try:
        figures = measure(folder, dataset, lfw, orl, detector)
        text = markdown(figures)
        typer.echo(text)
        if write is not None:
            publish(figures, text, write)
    except (TrainingError, checkpoint.CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def measure(folder: Path, dataset: str, lfw: Path | None, orl: Path | None, detector: Path) -> Figures:
    """Every figure, of the files as they lie there.

    Raises:
        CheckpointError, DataError, DatasetNotFoundError: see `Embedder`, `load_detector`, `data.load`, `rows_of`,
            `training.protocols`; test identities that make no mated or no non-mated pairs.
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
    """The test pictures `rows` of one source, or of all: pairs of them, whose they are [P, 2], how alike [P]."""

    name: str
    rows: Indices
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
            Verification(part.name, Scores.of(part.similarities, part.same), len(part.rows))
            for part in (everybody, *sources)
        ],
        # Two sources may hold one person under two names, so no gallery has people of both.
        identifications=[identify(part.name, embedded.of(np.searchsorted(rows, part.rows))) for part in sources],
    )


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
    return _Compared(name, chosen, images.labels[pairs], embedded.pairs(np.searchsorted(rows, pairs)))


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


def markdown(figures: Figures) -> str:
    """The tables, each with a line before it that says how it came about."""
    card, rates = figures.card, [f"TAR at {_rate(rate)}" for rate in RATES]
    verification = _table(
        ["set", "mated", "non-mated", "accuracy", "EER", *rates, "no face"],
        [_verification_row(part) for part in figures.verifications],
    )
    promises = _table(
        ["set", "FMR promised", "similarity", "FMR measured", "95 % interval", "measured / promised"],
        [_promise_row(part) for part in figures.promises],
    )
    heads = [f"FNIR at {_rate(rate)}" for rate in FPIRS]
    identification = _table(
        ["set", "subjects", "pictures", "rank-1", "mated searches", "non-mated", *heads, "no face"],
        [_identification_row(part) for part in figures.identifications],
    )
    command = f"python -m training.evaluate faces {card.name} --data {figures.dataset}"
    assert card.matching is not None  # noqa: S101  `Embedder` has refused it
    return f"""\
`{card.name}`, version {card.version}, by `{command}`: the
{figures.people} test identities of {figures.dataset}, which nothing trained, selected or calibrated on. Sources with
fewer than {FEWEST_PEOPLE} people count among all only.

## Verification

At most {MATED} mated pairs of each identity; non-mated pairs are of one source. In LFW the face nearest to the middle
is compared; a picture without a face has the similarity {FAILED:g} to all others, so that its rates are those of the
whole system (ISO/IEC 19795: FAR, not FMR). Accuracy: each of ten folds with the threshold that is best on the others,
and the standard error. A rate below one of the pairs counted here means that none is accepted.

{verification}

![ROC](pictures/faces-roc.png)

![DET](pictures/faces-det.png)

## Thresholds promised and measured

At the similarity that the card names for a false match rate. The interval is that of a bootstrap over identities.

{promises}

![Reliability](pictures/faces-reliability.png)

Of the card's probability the expected calibration error is {figures.reliability.error:.4f}, with mated pairs weighing
{card.matching.prior:g} of all, which is the card's prior.

## Identification

One gallery photo of each subject, drawn at random; all others are probes. Rank-1 with all subjects enrolled; FNIR with
half of them: a mated search fails where the own photo is not the first candidate or below the threshold at which so
many of the non-mated searches have any. Mean and standard deviation over {GALLERIES} galleries; in ORL over the ten
photos of each subject in turn, all enrolled.

{identification}"""


def _rate(rate: float) -> str:
    return f"{100 * rate:g} %"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _verification_row(part: Verification) -> list[str]:
    scores = part.scores
    return [
        part.name,
        f"{len(scores.mated):,}",
        f"{len(scores.impostor):,}",
        "" if part.accuracy is None else f"{100 * part.accuracy[0]:.2f} ± {100 * part.accuracy[1]:.2f} %",
        f"{100 * scores.eer():.2f} %",
        *(f"{100 * scores.tar(rate):.2f} %" for rate in RATES),
        f"{part.failures} of {part.pictures:,}",
    ]


def _promise_row(part: Promise) -> list[str]:
    low, high = part.interval
    return [
        part.name,
        _rate(part.fmr) + (" (extrapolated)" if part.threshold.extrapolated else ""),
        f"{part.threshold.similarity:.4f}",
        f"{100 * part.measured:.3f} %",
        f"{100 * low:.3f} to {100 * high:.3f} %",
        f"{part.measured / part.fmr:.2f}",
    ]


def _identification_row(part: Identification) -> list[str]:
    averages = [part.fnir.get(rate) for rate in FPIRS]
    return [
        part.name,
        f"{part.subjects:,}",
        f"{part.pictures:,}",
        _average(part.rank_one),
        *(f"{count:,.0f}" if part.fnir else "" for count in (part.mated, part.impostor)),
        *("" if average is None else _average(average) for average in averages),
        f"{part.failures} of {part.pictures:,}",
    ]


def _average(average: Average) -> str:
    return f"{100 * average.mean:.2f} ± {100 * average.deviation:.2f} %"


def publish(figures: Figures, text: str, folder: Path) -> None:
    """Write faces.md and pictures/faces-*.png into a folder; of faces.md only what is between its markers.

    Raises:
        DataError: see `write_between_markers`.
    """
    page = folder / "faces.md"
    if not page.is_file():
        write_atomically(page, b"# Faces\n")
    write_between_markers(page, text)
    drawings = {"roc": draw_roc(figures), "det": draw_det(figures), "reliability": draw_reliability(figures)}
    for name, drawing in drawings.items():
        write_atomically(folder / "pictures" / f"faces-{name}.png", drawing)


def draw_roc(figures: Figures) -> bytes:
    """A PNG: TAR over FMR, the latter logarithmic."""
    from matplotlib.ticker import FuncFormatter

    figure, axes = blank(
        "Verification: ROC",
        f"{figures.card.name}: mated pairs accepted against non-mated pairs accepted, at every threshold",
        "false match rate",
        "true accept rate",
    )
    _curves(axes, figures.verifications, lambda fmr, fnmr: (fmr, 1 - fnmr))
    axes.set_xscale("log")
    axes.set_xlim(1e-4, 1)
    axes.set_ylim(0, 1.01)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK)
    return png(figure)


# Shares that a DET plot names; the first and the last are its edges.
_DET_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.4, 0.6)


def draw_det(figures: Figures) -> bytes:
    """A PNG: FNMR over FMR on axes of the normal deviate, where normally distributed similarities make a straight line.

    Martin et al., "The DET Curve in Assessment of Detection Task Performance", Eurospeech 1997.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure, axes = blank(
        "Verification: DET",
        f"{figures.card.name}: both errors at every threshold, on normal-deviate axes",
        "false match rate",
        "false non-match rate",
    )
    for axis, scale, limit in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        scale("function", functions=(_deviate, ndtr))
        limit(_DET_TICKS[0], _DET_TICKS[-1])
        axis.set_major_locator(FixedLocator(_DET_TICKS))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.plot(_DET_TICKS, _DET_TICKS, color=PALE, linewidth=0.8, linestyle=":")
    _curves(axes, figures.verifications, lambda fmr, fnmr: (fmr, fnmr))
    axes.legend(loc="lower left", framealpha=1, edgecolor="none", fontsize=9, labelcolor=INK)
    return png(figure)


def _deviate(shares: Floats) -> Floats:
    """The normal deviate of shares; matplotlib asks beyond 0..1, too."""
    return np.asarray(ndtri(np.clip(shares, 1e-9, 1 - 1e-9)))


def _curves(
    axes: Axes, parts: Sequence[Verification], place: Callable[[Floats, Floats], tuple[Floats, Floats]]
) -> None:
    """A line for each set at its (FMR, FNMR): all in ink, single sources in colour, LFW with dashes."""
    for number, part in enumerate(parts):
        fmr, fnmr = part.scores.curve()
        # Of the thresholds with one FMR the lowest; on neither scale is there a place for 0.
        rates, lowest = np.unique(fmr, return_index=True)
        x, y = place(rates[rates > 0], fnmr[lowest[rates > 0]])
        axes.plot(
            x,
            y,
            color=COLOURS[(number - 1) % len(COLOURS)] if number else INK,
            linewidth=1.4 if number else 2.2,
            linestyle="-" if part.accuracy is None else "--",
            drawstyle="steps-post",
            label=part.name,
        )
    axes.tick_params(pad=7)  # where the axes meet, their labels do not


def draw_reliability(figures: Figures) -> bytes:
    """A PNG: in each bin of the probability the share of mated pairs over what was predicted, with its interval."""
    curve, matching = figures.reliability, figures.card.matching
    assert matching is not None  # noqa: S101  `Embedder` has refused it
    figure, axes = blank(
        "Reliability of the probability",
        f"at the prior {matching.prior:g}; dot area: share of pairs; bars: 95 % of a bootstrap over identities",
        f"probability of a pair to be mated, as {figures.card.name} predicts it",
        "share of mated pairs",
    )
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=0.8, linestyle=":")
    axes.vlines(curve.predicted, curve.low, curve.high, color=INK, linewidth=0.9)
    axes.scatter(curve.predicted, curve.observed, np.maximum(20, 500 * curve.weight), color=ACCENT, linewidth=0)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    return png(figure)
