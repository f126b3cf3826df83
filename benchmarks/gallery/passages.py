"""Passages and calibrations on site, measured on the faces' test identities.

    python -m benchmarks.gallery.passages run       embed, search; write both CSV files
    python -m benchmarks.gallery.passages report    from the CSV files: the tables in docs/identification.md

Passages: in each draw a random half of a source's people is enrolled, with one photo each. A passage is 1 to 10 photos
of one person, or 1 to 10 variations of one photo (a burst), fused and decided as the service does. A single frame is
the first of the passage, decided by the threshold for single faces.

Sites: the thresholds are fitted to a random half of a source's people, and false matches are counted among the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from app.gallery.open_set import DecisionRule
from benchmarks import tables
from benchmarks.gallery.open_set import Searched, fnir, fpir
from models.checkpoint import CheckpointError
from models.matching import Matching
from models.passages import MAX_FRAMES, fuse, same_person
from models.site_calibration import fit_site
from training.calibrate import ALIGNED
from training.core.errors import TrainingError
from training.core.seeds import derive
from training.datasets import images as data
from training.datasets.faces import rows_of
from training.datasets.images import ImageSet, Indices
from training.datasets.passages import draw_burst_rows
from training.evaluation import markdown as pages
from training.evaluation.embedded_faces import FaceEmbedder
from training.metrics.passages import People, WeightedFaces, embed_bursts
from training.metrics.verification import Floats

PASSAGES, SITES = Path("benchmarks/results/passages.csv"), Path("benchmarks/results/site_calibration.csv")
PAGE = Path("docs/identification.md")
SOURCES = ("celeba", "fiw")  # the others have too few people in a split
FRAMES = (1, 2, 3, 5, 8, 10)
PROMISED = 0.01
DRAWS, BURSTS, HALVES, EACH = 20, 300, 24, 3
FMRS = (1e-2, 1e-3)
SEED = 0
COLUMNS = (
    *("source", "kind", "frames", "draws", "subjects", "promised", "passages", "strangers", "fpir", "fpir_low"),
    *(
        "fpir_high",
        "fnir",
        "fnir_low",
        "fnir_high",
        "single_fpir",
        "single_fnir",
        "single_fnir_low",
        "single_fnir_high",
    ),
)
SITE_COLUMNS = ("source", "people", "halves", "promised", "calibration", "median", "low", "high", "fnmr")

cli = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@dataclass(frozen=True)
class Calibration:
    """The thresholds of a card."""

    matching: Matching
    passages: Sequence[Matching]

    def decide(self, frames: WeightedFaces, gallery: Floats, *, single: bool) -> tuple[int, bool]:
        """Search for a passage, frames [F, D], among enrolled vectors [G, D]: position of the candidate, and match.

        `single`: decide by the first frame.
        """
        if single:
            vector, matching = frames.vectors[0], self.matching
        else:
            kept = same_person(frames.vectors, frames.weights, self.matching)
            vector, matching = fuse(frames.vectors[kept], frames.weights[kept]), self.passages[kept.sum() - 1]
        rule = DecisionRule.for_comparisons(matching, PROMISED, len(gallery))
        similarities = gallery @ vector
        best = int(similarities.argmax())
        threshold = rule.threshold
        return best, rule.can_match and threshold is not None and bool(similarities[best] >= threshold.similarity)


@dataclass(frozen=True)
class Passage:
    """The person of a passage, by label, and its frames [F]."""

    person: int
    frames: WeightedFaces


def photo_passages(people: People, enrolled: Indices, frames: int, random: np.random.Generator) -> Iterator[Passage]:
    """Yield at most EACH passages of each person, of photos (positions) that are not `enrolled`."""
    for label in np.unique(people.labels):
        photos = np.setdiff1d(np.flatnonzero(people.labels == label), enrolled)
        for _ in range(EACH if len(photos) >= frames else 0):
            chosen = random.permutation(photos)[:frames]
            yield Passage(int(label), WeightedFaces(people.faces.vectors[chosen], people.faces.weights[chosen]))


def burst_passages(
    people: People, enrolled: Indices, frames: int, photos: Indices, bursts: WeightedFaces
) -> Iterator[Passage]:
    """Yield the bursts of those of the `photos` (positions) that are not `enrolled`."""
    for photo, vectors, weights in zip(photos, bursts.vectors, bursts.weights, strict=True):
        if photo not in enrolled:
            yield Passage(int(people.labels[photo]), WeightedFaces(vectors[:frames], weights[:frames]))


def search(
    calibration: Calibration, passages: Iterable[Passage], gallery: Floats, owners: Indices, *, single: bool
) -> Searched:
    """Return the searches of the passages in a gallery [G, D] of the people `owners` [G]."""
    person, candidate, match = [], [], []
    for passage in passages:
        best, matched = calibration.decide(passage.frames, gallery, single=single)
        person.append(passage.person)
        candidate.append(owners[best])
        match.append(matched)
    return Searched(np.array(person), np.array(candidate), np.array(match, bool), np.isin(person, owners))


def measure_passages(
    calibration: Calibration, people: People, photos: Indices, bursts: WeightedFaces, source: str, draws: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind and number of frames; all photos are of one source, `photos` are those of bursts."""
    labels = np.unique(people.labels)
    for kind in ("photos", "burst"):
        for frames in FRAMES:
            fused, single = [], []
            for draw in range(draws):
                random = np.random.default_rng(derive(SEED, "passages", source, draw))
                owners = np.sort(random.permutation(labels)[: len(labels) // 2])
                enrolled = np.array([random.choice(np.flatnonzero(people.labels == owner)) for owner in owners])
                gallery = people.faces.vectors[enrolled]
                passages = list(
                    photo_passages(people, enrolled, frames, random)
                    if kind == "photos"
                    else burst_passages(people, enrolled, frames, photos, bursts)
                )
                fused.append(search(calibration, passages, gallery, owners, single=False))
                single.append(search(calibration, passages, gallery, owners, single=True))
            yield {
                **{"source": source, "kind": kind, "frames": frames, "draws": draws, "promised": PROMISED},
                "subjects": len(labels) // 2,
                **passage_figures(Searched.pooled(fused), Searched.pooled(single)),
            }


def passage_figures(fused: Searched, single: Searched) -> dict[str, Any]:
    """Return the error rates of the passages and of their first frames, by column."""
    alarms, misses, single_alarms, single_misses = fpir(fused), fnir(fused), fpir(single), fnir(single)
    return {
        "passages": len(fused.person),
        "strangers": int((~fused.mated).sum()),
        **{"fpir": alarms.value, "fpir_low": alarms.low, "fpir_high": alarms.high},
        **{"fnir": misses.value, "fnir_low": misses.low, "fnir_high": misses.high},
        "single_fpir": single_alarms.value,
        **{"single_fnir": single_misses.value, "single_fnir_low": single_misses.low},
        "single_fnir_high": single_misses.high,
    }


def impostors(people: People, chosen: Indices) -> Floats:
    """Return the similarities of all pairs of photos of two of the `chosen` people."""
    mine = np.isin(people.labels, chosen)
    vectors, labels = people.faces.vectors[mine], people.labels[mine]
    first, second = np.triu_indices(len(vectors), 1)
    different = labels[first] != labels[second]
    return np.asarray((vectors @ vectors.T)[first[different], second[different]])


def mated(people: People) -> Floats:
    """Return the similarities of all pairs of photos of one person."""
    first, second = np.triu_indices(len(people.labels), 1)
    same = people.labels[first] == people.labels[second]
    return np.asarray((people.faces.vectors[first[same]] * people.faces.vectors[second[same]]).sum(axis=1))


def measure_site(card: Matching, people: People, source: str, halves: int) -> Iterator[dict[str, Any]]:
    """Yield the measured FMR as a multiple of the promised one, by the card and by a calibration on site."""
    labels = np.unique(people.labels)
    ratios: dict[tuple[str, float], list[float]] = {}
    thresholds: dict[tuple[str, float], list[float]] = {}
    for half in range(halves):
        order = np.random.default_rng(derive(SEED, "site", source, half)).permutation(labels)
        site = fit_site(card, impostors(people, order[: len(order) // 2]), source)
        others = impostors(people, order[len(order) // 2 :])
        for name, matching in (("card", card), ("site", site)):
            for rate in FMRS:
                threshold = matching.threshold(rate).similarity
                ratios.setdefault((name, rate), []).append(float(np.mean(others >= threshold)) / rate)
                thresholds.setdefault((name, rate), []).append(threshold)
    own = mated(people)
    for (name, rate), values in ratios.items():
        median, low, high = np.quantile(values, [0.5, 0.025, 0.975])
        yield {
            **{"source": source, "people": len(labels), "halves": halves, "promised": rate, "calibration": name},
            **{"median": float(median), "low": float(low), "high": float(high)},
            "fnmr": float(np.mean([np.mean(own < threshold) for threshold in thresholds[name, rate]])),
        }


def of_source(people: People, source: str) -> tuple[People, Indices]:
    """Return the photos of one source, and their positions among all."""
    own = np.flatnonzero(people.sources == source)
    faces = WeightedFaces(people.faces.vectors[own], people.faces.weights[own])
    return People(people.rows[own], faces, people.labels[own], people.sources[own]), own


def embed(embedder: FaceEmbedder, images: ImageSet, kept: Path | None) -> tuple[People, Indices, WeightedFaces]:
    """Return the test photos, the positions of those with a burst, and the bursts; from `kept` if that file exists."""
    rows = rows_of(images, "test")
    burst_rows = draw_burst_rows(images, rows, BURSTS, SEED)
    if kept is not None and kept.exists():
        with np.load(kept) as file:
            arrays = [file[name] for name in ("vectors", "weights", "burst_vectors", "burst_weights")]
    else:
        photos = WeightedFaces.of(np.asarray(images.images[rows]), embedder)
        bursts = embed_bursts(images, burst_rows, embedder, "test", SEED)
        arrays = [photos.vectors, photos.weights, bursts.vectors, bursts.weights]
        if kept is not None:
            names = ("vectors", "weights", "burst_vectors", "burst_weights")
            np.savez(kept, **dict(zip(names, arrays, strict=True)))
    vectors, weights, burst_vectors, burst_weights = (np.asarray(array, np.float64) for array in arrays)
    people = People.of(images, rows, WeightedFaces(vectors, weights))
    return people, np.searchsorted(rows, burst_rows), WeightedFaces(burst_vectors, burst_weights)


@cli.command()
def run(
    weights: Annotated[Path, typer.Option(help="The embedder.")] = Path("weights/mobilefacenet-triplet"),
    kept: Annotated[
        Path | None, typer.Option("--vectors", help="An .npz file: the vectors, to be embedded once.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1)] = DRAWS,
    halves: Annotated[int, typer.Option(min=1)] = HALVES,
) -> None:
    """Embed, search, and write both CSV files."""
    try:
        embedder = FaceEmbedder(weights)
        people, photos, bursts = embed(embedder, data.load("faces", "train", ALIGNED), kept)
    except (TrainingError, CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if len(embedder.card.passages) < MAX_FRAMES:
        typer.echo(f"error: {weights} is not calibrated for passages", err=True)
        raise typer.Exit(1)
    calibration = Calibration(embedder.matching, embedder.card.passages)
    rows, sites = [], []
    for source in SOURCES:
        own, positions = of_source(people, source)
        with_burst = np.flatnonzero(np.isin(photos, positions))
        own_bursts = WeightedFaces(bursts.vectors[with_burst], bursts.weights[with_burst])
        own_photos = np.searchsorted(positions, photos[with_burst])
        rows += list(measure_passages(calibration, own, own_photos, own_bursts, source, draws))
        sites += list(measure_site(embedder.matching, own, source, halves))
    tables.write(PASSAGES, COLUMNS, [_short(row) for row in rows])
    tables.write(SITES, SITE_COLUMNS, [_short(row) for row in sites])


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}


def passage_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the table of passages as Markdown."""
    heads = ["source, subjects", "frames", "passages", "FPIR", "FNIR", "FPIR, first frame", "FNIR, first frame"]
    lines = [
        [
            f"{row['source']}, {row['subjects']}",
            f"{row['frames']} {'photos' if row['kind'] == 'photos' else 'of a burst'}",
            row["passages"],
            _shown(row, "fpir", 4),
            _shown(row, "fnir", 3),
            f"{float(row['single_fpir']):.4f}",
            _shown(row, "single_fnir", 3),
        ]
        for row in rows
    ]
    return pages.table(heads, lines)


def site_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the table of calibrations on site as Markdown."""
    heads = ["source, people", "FMR promised", "thresholds of", "measured / promised, median", "2.5 to 97.5 %", "FNMR"]
    lines = [
        [
            f"{row['source']}, {row['people']}",
            row["promised"],
            "the card" if row["calibration"] == "card" else "the site",
            f"{float(row['median']):.2f}",
            f"{float(row['low']):.2f} to {float(row['high']):.2f}",
            f"{float(row['fnmr']):.3f}",
        ]
        for row in rows
    ]
    return pages.table(heads, lines)


def _shown(row: Mapping[str, str], name: str, digits: int) -> str:
    value, low, high = (f"{float(row[f'{name}{end}']):.{digits}f}" for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


@cli.command()
def report() -> None:
    """Rewrite the tables, from the CSV files."""
    pages.put(PAGE, "passages", passage_table(tables.read(PASSAGES)), heading="Passages")
    pages.put(PAGE, "sites", site_table(tables.read(SITES)), heading="Calibration on site")


if __name__ == "__main__":
    cli()
