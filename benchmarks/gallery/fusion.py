"""Several photos of a subject: is it as like as its likest ("best"), or as all of them on average ("mean")?

    python -m benchmarks.gallery.fusion run       embed, enrol, search; write the CSV
    python -m benchmarks.gallery.fusion report    from the CSV: the table in docs/identification.md

Each gallery is a collection of its own in an `EmbeddedGallery` that is thrown away. Who of those with `FEWEST` photos
or more is enrolled is drawn at random, and so is the order of their photos: the first 1, 2, 3 or 5 are enrolled, those
after the fifth are searched whatever was enrolled, so that all galleries of a draw answer the same searches. Everybody
else of the same source is a stranger. Thresholds come from three rules, see `thresholds`; ISO/IEC 19795's words.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import numpy as np
import typer

from app.gallery.open_set import DecisionRule
from benchmarks import tables
from benchmarks.gallery.open_set import NOBODY, Rate, Searched, figures, joined
from index.embedded.gallery import EmbeddedGallery
from index.types import Floats as Vectors
from index.types import Fusion, NewFace
from models.checkpoint import CheckpointError
from models.matching import Matching
from training.core.errors import TrainingError
from training.core.seeds import derive
from training.datasets import images as data
from training.datasets.faces import FaceSplit, rows_of, source_of
from training.datasets.images import ImageSet, Indices
from training.evaluation import markdown as pages
from training.evaluation.embedded_faces import FaceEmbedder
from training.evaluation.measure_faces import SEED
from training.metrics.verification import Flags, Floats, Scores
from training.recipe.config import runs_folder

RESULTS = Path("benchmarks/results/fusion.csv")
PAGE = Path("docs/identification.md")
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
PHOTOS = (1, 2, 3, 5)
FPIRS = (0.01, 0.001)
FEWEST = 6
LIMIT = 5  # candidates asked for, as the service does by default
DRAWS = 5
SPLITS: tuple[FaceSplit, ...] = ("calibrate", "test")
COLUMNS = (
    *("split", "source", "subjects", "photos", "fusion", "mated", "non_mated", "rank1", "rank1_low", "rank1_high"),
    *("rule", "threshold", "promised", "alarms", "fpir", "fpir_low", "fpir_high", "within_2"),
    *("fnir", "fnir_low", "fnir_high", "over_best", "over_best_low", "over_best_high"),
)

cli = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@dataclass(frozen=True)
class Source:
    """How many are enrolled of those with enough photos; how many photos are taken of each of those, and of others.

    Nobody of two sources is ever compared: one person may be in both under two names.
    """

    name: str
    subjects: int
    photos: int
    strangers: int


# The others have too few people in a split. In all about 4,000 photos.
SOURCES = (Source("celeba", 30, 8, 2), Source("fiw", 120, 7, 1))


class Draw(NamedTuple):
    """Places among the photos: `gallery` [S, 5] of those enrolled, `probes` [Q]; `mated` [Q]: the probe's person is."""

    gallery: Indices
    probes: Indices
    mated: Flags


@dataclass(frozen=True)
class Found:
    """Searches [Q]: whose the probe is, whose the first candidate, how alike they are, whether the probe has a mate."""

    person: Indices
    candidate: Indices
    similarity: Floats
    mated: Flags

    @classmethod
    def pooled(cls, parts: Sequence[Found]) -> Found:
        """The searches of one part or more."""
        return joined(cls, parts)

    def decided(self, threshold: float) -> Searched:
        """Who reaches it matches."""
        return Searched(self.person, self.candidate, self.similarity >= threshold, self.mated)

    def threshold_at(self, fpir: float) -> float:
        """The lowest at which the share `fpir` of the searches without a mate, or less of them, end in a match."""
        return Scores.of(self.similarity, self.mated).threshold_at(fpir)


Cell = tuple[int, Fusion]  # photos of each subject, and how they count


def taken(labels: Indices, rows: Indices, source: Source) -> Indices:
    """The rows of the source's people, ascending: a random choice of so many of each person's, see `Source`."""
    random = np.random.default_rng(derive(SEED, "taken", source.name))
    chosen = []
    for label in np.unique(labels[rows]):
        mine = random.permutation(rows[labels[rows] == label])
        chosen.append(mine[: source.photos if len(mine) >= FEWEST else source.strangers])
    return np.sort(np.concatenate(chosen))


def draws(labels: Indices, subjects: int, count: int) -> Iterator[Draw]:
    """So many random galleries of so many people.

    Raises:
        ValueError: fewer people have `FEWEST` photos, or nobody would be left to be a stranger.
    """
    people, counts = np.unique(labels, return_counts=True)
    possible = people[counts >= FEWEST]
    if not 0 < subjects <= len(possible) or subjects == len(people):
        raise ValueError(f"{subjects} of {len(people)} people are to be enrolled; {len(possible)} have enough photos")
    for number in range(count):
        random = np.random.default_rng(derive(SEED, "fusion", number))
        enrolled = random.permutation(possible)[:subjects]
        order = [random.permutation(np.flatnonzero(labels == person)) for person in enrolled]
        own = np.concatenate([places[max(PHOTOS) :] for places in order])
        strangers = np.flatnonzero(~np.isin(labels, enrolled))
        probes = np.concatenate([own, strangers])
        yield Draw(np.stack([places[: max(PHOTOS)] for places in order]), probes, np.arange(len(probes)) < len(own))


def searched(gallery: EmbeddedGallery, name: str, vectors: Vectors, labels: Indices, draw: Draw) -> dict[Cell, Found]:
    """The draw's searches in a new collection for each number of photos; one photo is the same by every fusion."""
    found = {}
    for photos in PHOTOS:
        collection = gallery.create(f"{name}-{photos}", "face-embedder", "fusion", vectors.shape[1])
        faces = [NewFace(str(labels[place]), vectors[place]) for places in draw.gallery for place in places[:photos]]
        gallery.enrol(collection.name, faces, collection.fingerprint)
        for fusion in FUSIONS[: 1 if photos == 1 else None]:
            answers = gallery.nearest_subjects(collection.name, vectors[draw.probes], LIMIT, fusion)
            found[photos, fusion] = Found(
                labels[draw.probes],
                np.array([int(answer[0].subject.key) if answer else NOBODY for answer in answers]),
                np.array([answer[0].similarity if answer else -1.0 for answer in answers]),
                draw.mated,
            )
    return found


def pooled(vectors: Vectors, labels: Indices, subjects: int, count: int) -> dict[Cell, Found]:
    """`searched` over so many draws."""
    with tempfile.TemporaryDirectory() as folder:
        gallery = EmbeddedGallery(Path(folder))
        try:
            parts = [
                searched(gallery, f"draw-{number}", vectors, labels, draw)
                for number, draw in enumerate(draws(labels, subjects, count))
            ]
        finally:
            gallery.close()
    return {cell: Found.pooled([part[cell] for part in parts]) for cell in parts[0]}


def thresholds(matching: Matching, calibrating: Found, fpir: float, subjects: int, photos: int) -> dict[str, float]:
    """By rule: `counted` on the calibrating split's own searches; the card's for so many `subjects`, or `faces`."""
    card = {"subjects": subjects, "faces": subjects * photos}
    similarities = {"counted": calibrating.threshold_at(fpir)}
    for rule, number in card.items():
        threshold = DecisionRule.for_comparisons(matching, fpir, number).threshold
        similarities[rule] = threshold.similarity if threshold else np.inf
    return similarities


def rank1(found: Found) -> Rate:
    """The share of mated searches whose first candidate is the one, whatever is decided."""
    person = found.person[found.mated]
    return Rate.of(found.candidate[found.mated] == person, np.stack([person, person], axis=1))


def gain(found: Searched, best: Searched) -> Rate:
    """How much larger FNIR is than by "best", in the same searches; negative: fewer are missed."""
    person = found.person[found.mated]
    difference = found.misses.astype(np.int64) - best.misses
    return Rate.of(difference, np.stack([person, person], axis=1))  # type: ignore[arg-type]


def rows_of_source(
    about: Mapping[str, Any],
    subjects: int,
    split: Mapping[Cell, Found],
    calibrating: Mapping[Cell, Found],
    card: Matching,
) -> list[dict[str, Any]]:
    """The CSV's rows: for each cell, each rule and each FPIR that is promised."""
    rows: list[dict[str, Any]] = []
    rules = {
        (cell, fpir): thresholds(card, calibrating[cell], fpir, subjects, cell[0]) for cell in split for fpir in FPIRS
    }
    firsts = {cell: _interval("rank1", rank1(found)) for cell, found in split.items()}
    for ((photos, fusion), fpir), levels in rules.items():
        found = split[photos, fusion]
        for rule, threshold in levels.items():
            decided = found.decided(threshold)
            best = split[photos, "best"].decided(rules[(photos, "best"), fpir][rule])
            over = gain(decided, best)
            rows.append(
                {**about, "subjects": subjects, "photos": photos, "fusion": fusion, "mated": int(found.mated.sum())}
                | {"non_mated": int((~found.mated).sum()), **firsts[photos, fusion]}
                | {"rule": rule, "threshold": threshold, "alarms": int(decided.alarms.sum()), **figures(decided, fpir)}
                | _interval("over_best", over)
            )
    return rows


def _interval(name: str, rate: Rate) -> dict[str, float]:
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}


def embedded(embedder: FaceEmbedder, images: ImageSet, rows: Indices) -> Vectors:
    """Unit vectors float32 [len(rows), D], computed once for these weights and rows."""
    place = hashlib.sha256(embedder.card.sha256.encode() + rows.tobytes()).hexdigest()[:16]
    path = runs_folder() / "cache" / f"fusion-{place}.npy"
    if not path.is_file():
        made = embedder.rows(images, rows).astype(np.float32)
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, made)
        temporary.rename(path)
    vectors: Vectors = np.load(path)
    return vectors


def measure(weights: Path, dataset: str, sources: Sequence[Source], count: int) -> list[dict[str, Any]]:
    """All rows of the CSV.

    Raises:
        CheckpointError, DataError: see `FaceEmbedder`, `data.load`, `rows_of`. ValueError: see `draws`.
    """
    embedder = FaceEmbedder(weights)
    images = data.load(dataset, "train", embedder.card.preprocess)
    names = np.array([source_of(identity) for identity in images.classes])
    rows: list[dict[str, Any]] = []
    for source in sources:
        found: dict[FaceSplit, dict[Cell, Found]] = {}
        for split in SPLITS:
            every = rows_of(images, split)
            chosen = taken(images.labels, every[names[images.labels[every]] == source.name], source)
            found[split] = pooled(embedded(embedder, images, chosen), images.labels[chosen], source.subjects, count)
        for split in SPLITS:
            about = {"split": split, "source": source.name}
            rows += rows_of_source(about, source.subjects, found[split], found["calibrate"], embedder.matching)
    return rows


@cli.command()
def run(
    weights: Annotated[Path, typer.Option(help="The embedder.")] = Path("weights/face-embedder"),
    results: Annotated[Path, typer.Option(help="The CSV to write.")] = RESULTS,
) -> None:
    """Search, and write the CSV."""
    try:
        rows = measure(weights, "faces", SOURCES, DRAWS)
    except (TrainingError, CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    tables.write(results, COLUMNS, [{name: _short(value) for name, value in row.items()} for row in rows])


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown: of the test split a line for each source, number of photos and fusion."""
    by_place = {tuple(row[key] for key in ("source", "photos", "fusion", "rule", "promised")): row for row in rows}
    lines = []
    for source, photos, fusion in dict.fromkeys((row["source"], row["photos"], row["fusion"]) for row in rows):
        of = {rule: by_place[source, photos, fusion, *rule] for rule in _COLUMNS_OF_TABLE}
        counted, rare, subjects, faces = of.values()
        figures_shown = [_shown(counted, "rank1"), _shown(counted, "fnir"), _shown(rare, "fnir")]
        for row in (subjects, faces):
            figures_shown += [_shown(row, "fpir", 4), _shown(row, "fnir")]
        how = "either" if photos == "1" else fusion
        lines.append([f"{source}, {counted['subjects']}", photos, how, *figures_shown])
    heads = ["source, subjects", "photos", "fusion", "rank-1", "FNIR at FPIR 0.01", "FNIR at FPIR 0.001"]
    heads += ["FPIR, rule by subjects", "FNIR there", "FPIR, rule by faces", "FNIR there"]
    return pages.table(heads, lines)


_COLUMNS_OF_TABLE = (("counted", "0.01"), ("counted", "0.001"), ("subjects", "0.01"), ("faces", "0.01"))


def _shown(row: Mapping[str, str], name: str, digits: int = 3) -> str:
    value, low, high = (f"{float(row[f'{name}{end}']):.{digits}f}" for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


@cli.command()
def report() -> None:
    """Rewrite the table, from the CSV."""
    rows = [row for row in tables.read(RESULTS) if row["split"] == "test"]
    pages.put(PAGE, "fusion", table(rows), heading="Identification")


if __name__ == "__main__":
    cli()
