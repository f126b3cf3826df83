"""Clusters of faces without names, and likely duplicates: how good are the proposals?

    python -m benchmarks.gallery.curation run       embed, cluster, enrol; write the CSV
    python -m benchmarks.gallery.curation report    from the CSV: the tables in docs/curation.md

Clusters: all photos of a split's identities, by `index.clustering` with the service's default prior, and beside it
DBSCAN (Ester, Kriegel, Sander, Xu, KDD 1996) and HDBSCAN with 1 - cosine. DBSCAN gets the best of a grid of thresholds
on the very photos that are measured, which no user has. BCubed precision and recall (Amigo et al., Information
Retrieval 12, 2009): the mean over all photos of the share of its cluster that is its person, and of its person's photos
that are in its cluster.

Likely duplicates: every identity is cut in two subjects at random, and enrolled in a gallery. Parameters were chosen on
the split `calibrate`, by this program; `test` is measured with them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy import sparse  # type: ignore[import-untyped]
from sklearn.cluster import DBSCAN, HDBSCAN

from app.gallery.curation.proposals import logit, mean_vector, near_pairs
from app.gallery.curation.schemas import ClusterParams
from benchmarks import tables
from benchmarks.gallery.fusion import embedded
from index.clustering import cluster
from index.embedded.storage import EmbeddedStorage
from index.types import Floats, Ints, NewFace
from models.checkpoint import CheckpointError
from models.matching import Matching
from training.core.errors import TrainingError
from training.core.seeds import derive
from training.datasets import images as data
from training.datasets.faces import FaceSplit, rows_of
from training.evaluation import markdown as pages
from training.evaluation.embedded_faces import FaceEmbedder
from training.evaluation.measure_faces import SEED

RESULTS, PAGE = Path("benchmarks/results/curation.csv"), Path("docs/curation.md")
COLUMNS = ("split", "what", "method", "setting", "precision", "recall", "f1", "proposed", "true", "photos", "people")
SPLITS: tuple[FaceSplit, ...] = ("calibrate", "test")
DISTANCES = np.arange(0.20, 0.60, 0.02)  # of DBSCAN
MIN_SAMPLES = (2, 3, 4, 5)
FMRS = (0.001, 0.0003, 0.0001, 0.00003, 0.00001)
PAGE_SIZE = 100

cli = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


def bcubed(clusters: Ints, people: Ints) -> tuple[float, float, float]:
    """Return BCubed precision, recall and their harmonic mean; a photo in no cluster (-1) is a cluster of its own."""
    alone = clusters < 0
    numbers = np.where(alone, clusters.max(initial=-1) + 1 + np.cumsum(alone), clusters)
    counts = sparse.coo_matrix((np.ones(len(people)), (numbers, people))).tocsr()  # of each person in each cluster
    both = counts.tocoo()
    squares = both.data**2
    precision = float((squares / np.asarray(counts.sum(axis=1)).ravel()[both.row]).sum() / len(people))
    recall = float((squares / np.asarray(counts.sum(axis=0)).ravel()[both.col]).sum() / len(people))
    return precision, recall, 2 * precision * recall / (precision + recall)


def clusters(vectors: Floats, people: Ints, matching: Matching) -> Iterator[tuple[str, str, Ints]]:
    """Yield method, setting and clusters; of DBSCAN those of the best distance for each `min_samples`."""
    prior = float(ClusterParams().prior)
    shift = logit(prior) - logit(matching.prior)
    yield "`POST /cluster/embeddings`", f"prior {prior:g}", cluster(vectors, matching.slope, matching.intercept + shift)
    distances = np.maximum(1 - vectors @ vectors.T, 0).astype(np.float64)
    np.fill_diagonal(distances, 0)
    rows, columns = np.nonzero(distances <= DISTANCES.max())
    near = sparse.csr_matrix((distances[rows, columns], (rows, columns)), distances.shape)
    for few in MIN_SAMPLES:
        found = [
            (distance, DBSCAN(eps=distance, min_samples=few, metric="precomputed").fit_predict(near))
            for distance in DISTANCES
        ]
        distance, best = max(found, key=lambda pair: bcubed(pair[1], people)[2])
        yield f"DBSCAN, min_samples {few}", f"distance {distance:.2f}", best
    plain = HDBSCAN(min_cluster_size=2, min_samples=1, metric="precomputed", copy=True)
    yield "HDBSCAN of 1 - cosine", "min_samples 1", plain.fit_predict(distances)


def halves(people: Ints) -> Ints:
    """Return the number of the subject of each photo: a random half of the photos of each person is another subject."""
    subjects = 2 * people
    for person in np.unique(people):
        rows = np.random.default_rng(derive(SEED, "halves", int(person))).permutation(np.flatnonzero(people == person))
        subjects[rows[: len(rows) // 2]] += 1
    return subjects


def duplicates(vectors: Floats, people: Ints, matching: Matching) -> Iterator[tuple[float, int, int, int]]:
    """Yield for each false match rate the numbers of proposed pairs, of true ones among them, and of all true pairs."""
    subjects = halves(people)
    cut = int((np.bincount(np.unique(subjects) // 2) == 2).sum())
    with tempfile.TemporaryDirectory() as folder, closing(EmbeddedStorage(Path(folder))) as storage:
        collection = storage.gallery.create("halves", "embedder", "f", vectors.shape[1])
        faces = [NewFace(str(subject), vector) for subject, vector in zip(subjects, vectors, strict=True)]
        storage.gallery.enrol("halves", faces, "f")
        ids = [subject.id for subject in storage.gallery.subjects("halves", limit=-1)]
        least = matching.threshold(max(FMRS)).similarity
        pairs = [
            pair
            for start in range(0, len(ids), PAGE_SIZE)
            for pair in near_pairs(storage, collection, ids[start : start + PAGE_SIZE], least)
        ]
    similarities = np.array([mean_vector(first) @ mean_vector(second) for first, second in pairs])
    same = np.array([int(first.subject.key) // 2 == int(second.subject.key) // 2 for first, second in pairs])
    for fmr in FMRS:
        proposed = similarities >= matching.threshold(fmr).similarity
        yield fmr, int(proposed.sum()), int((proposed & same).sum()), cut


def rows_of_split(split: FaceSplit, vectors: Floats, people: Ints, matching: Matching) -> list[dict[str, Any]]:
    """Return the CSV's rows of a split."""
    about = {"split": split, "photos": len(people), "people": int(people.max() + 1)}
    rows: list[dict[str, Any]] = []
    for method, setting, found in clusters(vectors, people, matching):
        precision, recall, f1 = bcubed(found, people)
        rows.append(
            {**about, "what": "clusters", "method": method, "setting": setting}
            | {"precision": precision, "recall": recall, "f1": f1}
            | {"proposed": int(found.max() + 1), "true": int((np.bincount(people) > 1).sum())}
        )
    for fmr, proposed, true, pairs in duplicates(vectors, people, matching):
        precision, recall = true / max(proposed, 1), true / pairs
        f1 = 2 * precision * recall / max(precision + recall, 1e-12)
        rows.append(
            {**about, "what": "duplicates", "method": f"{fmr:g}", "setting": ""}
            | {"precision": precision, "recall": recall, "f1": f1, "proposed": proposed, "true": pairs}
        )
    return rows


@cli.command()
def run(
    weights: Annotated[Path, typer.Option(help="The embedder.")] = Path("weights/mobilefacenet-triplet"),
    results: Annotated[Path, typer.Option(help="The CSV to write.")] = RESULTS,
) -> None:
    """Cluster, enrol, compare, and write the CSV."""
    rows: list[dict[str, Any]] = []
    try:
        embedder = FaceEmbedder(weights)
        images = data.load("faces", "train", embedder.card.preprocess)
        for split in SPLITS:
            chosen = rows_of(images, split)
            _, people = np.unique(images.labels[chosen], return_inverse=True)
            rows += rows_of_split(split, embedded(embedder, images, chosen), people, embedder.matching)
    except (TrainingError, CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    shown = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    ]
    tables.write(results, COLUMNS, shown)


def table(rows: Sequence[dict[str, str]], what: str, heads: Sequence[str]) -> str:
    """Return a table of the test split, with F1 of the other split beside it."""
    calibrating = {row["method"]: row["f1"] for row in rows if (row["split"], row["what"]) == ("calibrate", what)}
    names = ("method", *(("setting",) if what == "clusters" else ()), "proposed", "precision", "recall", "f1")
    lines = [
        [*(row[name] for name in names), calibrating[row["method"]]]
        for row in rows
        if (row["split"], row["what"]) == ("test", what)
    ]
    return pages.table([*heads, "precision", "recall", "F1", "F1 of `calibrate`"], lines)


@cli.command()
def report() -> None:
    """Rewrite the tables, from the CSV."""
    rows = tables.read(RESULTS)
    pages.put(PAGE, "clusters", table(rows, "clusters", ["method", "setting", "clusters"]), heading="Curation")
    pages.put(PAGE, "duplicates", table(rows, "duplicates", ["`fmr`", "pairs"]), heading="Curation")


if __name__ == "__main__":
    cli()
