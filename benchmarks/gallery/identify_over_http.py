"""POST /search of a running service: whom it names first, how often it is wrong, what similar pictures it finds.

    python -m benchmarks.gallery.identify_over_http faces     LFW's View 1 and ORL: rank 1, then open-set search
    python -m benchmarks.gallery.identify_over_http things    CIFAR-10's test pictures, by a classifier's features

The service is asked for everything: each gallery is a collection of its own, enrolled picture by picture, and erased in
the end. Each command prints a summary and writes its rows to benchmarks/results/identify_*.csv; the first request that
fails ends it with 1. docs/faces.md says what the figures mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Annotated, NamedTuple

import httpx
import numpy as np
import typer

from benchmarks.gallery.client import TIMEOUT_S, GalleryClient, Json
from benchmarks.gallery.open_set import NOBODY, Plan, Searched, figures, galleries, thinned
from benchmarks.gallery.photos import Photos, middle
from benchmarks.models.accuracy_over_http import pictures
from benchmarks.models.verify_over_http import HERE, RESULTS, Results, Row, Url, asking, fail, write
from benchmarks.proxies import uses_proxies
from training.core.errors import TrainingError
from training.core.seeds import derive
from training.datasets.images import Indices
from training.datasets.protocols import Search, orl_searches, random_search, read_lfw, read_orl
from training.evaluation.measure_faces import ORL_ENLARGED, SEED
from training.recipe.config import datasets_folder

cli = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)

FPIR = 0.01
SIZES = (10, 100, 500)
FACES, THINGS = "benchmark-identify-faces", "benchmark-identify-things"
NEIGHBOURS = 10

Concurrency = Annotated[int, typer.Option(min=1, help="Requests at a time.")]


class Draw(NamedTuple):
    """The searches in one gallery; of its photos, how many had no face, and how many a larger one beside the middle.

    `undecided`: searches for which the service says that it cannot decide. `how`: its own words on the decision.
    """

    searched: Searched
    not_enrolled: int
    bystanders: int
    undecided: int
    how: Json


async def searched(client: GalleryClient, photos: Photos, search: Search) -> Draw:
    """Enrol the gallery in a new collection, under the people's labels, and look for the probes there."""
    async with client.collection(FACES):
        enrolled = await asyncio.gather(
            *(client.enrol(FACES, str(photos.labels[place]), photos.files[place]) for place in search.gallery)
        )
        # Each face for itself, as the standard counts searches: nobody beside it can take its candidate.
        how, answers = await client.search(
            [photos.files[place] for place in search.probes], collection=FACES, limit=1, fpir=FPIR, repeated=True
        )
    candidate = np.full(len(search.probes), NOBODY)
    match, undecided = np.zeros(len(search.probes), bool), 0
    for number, (place, answer) in enumerate(zip(search.probes, answers, strict=True)):
        if answer:
            face = middle(answer, photos.sizes[place])
            match[number] = face["status"] == "match"
            undecided += bool({"BEYOND_CALIBRATION", "NOT_CALIBRATED"} & set(face["reasons"]))
            if face["candidates"]:
                candidate[number] = int(face["candidates"][0]["subject_id"])
    indexed = [(place, one) for place, one in zip(search.gallery, enrolled, strict=True) if one["indexed"]]
    bystanders = sum(
        middle([*one["indexed"], *one["rejected"]], photos.sizes[place]) is not one["indexed"][0]
        for place, one in indexed
    )
    decided = Searched(photos.labels[search.probes], candidate, match, search.mates >= 0)
    return Draw(decided, len(search.gallery) - len(indexed), bystanders, undecided, how)


async def rank1(client: GalleryClient, name: str, photos: Photos, searches: Iterable[Search]) -> list[Row]:
    """A row of identify_rank1.csv for each gallery: everybody is enrolled, so that all probes have a mate."""
    rows: list[Row] = []
    for number, search in enumerate(searches):
        draw = await searched(client, photos, search)
        first = draw.searched.first
        print(f"{name}, gallery {number}: {first.sum()} of {len(first)} found first", flush=True)
        row = {"set": name, "gallery": number, "subjects": len(search.gallery), "probes": len(first)}
        row |= {"rank1": float(first.mean()), "no_face": draw.searched.no_face}
        rows.append(row | {"not_enrolled": draw.not_enrolled, "bystanders": draw.bystanders})
    shares = [row["rank1"] for row in rows]
    deviation = f", standard deviation {np.std(shares, ddof=1):.4f}" if len(shares) > 1 else ""
    print(f"{name}: {rows[0]['subjects']} subjects, {len(rows)} galleries, rank-1 {np.mean(shares):.4f}{deviation}")
    return rows


async def open_set(
    client: GalleryClient, photos: Photos, subjects: int, limit: int | None, plan: Plan
) -> tuple[Row, list[Row]]:
    """With so many enrolled: the row of identify_open_set.csv, and one of identify_draws.csv for each draw."""
    draws: list[Draw] = []
    rows: list[Row] = []
    for search in galleries(photos.labels, subjects, SEED, limit):
        draw = await searched(client, photos, search)
        draws.append(draw)
        rows.append({"subjects": subjects, "draw": len(rows), **counts([draw])})
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
        if plan.is_done([draw.searched for draw in draws]):
            break
    how = draws[-1].how
    point = how.get("operating_point") or {}
    decided = {"threshold": how.get("threshold"), "fmr": point.get("fmr"), "extrapolated": point.get("extrapolated")}
    row = {"subjects": subjects, "draws": len(draws), **decided, **counts(draws)}
    return row | figures(Searched.pooled([draw.searched for draw in draws]), FPIR), rows


def counts(draws: Sequence[Draw]) -> Row:
    """The columns that are counts."""
    pool = Searched.pooled([draw.searched for draw in draws])
    return {
        "non_mated": len(pool.alarms),
        "alarms": int(pool.alarms.sum()),
        "mated": len(pool.misses),
        "misses": int(pool.misses.sum()),
        "no_face": pool.no_face,
        **{name: sum(getattr(draw, name) for draw in draws) for name in ("not_enrolled", "bystanders", "undecided")},
    }


def told(row: Row) -> str:
    """A row of identify_open_set.csv in words."""
    fpir, fnir = (
        f"{row[name]:.4f} ({row[f'{name}_low']:.4f} to {row[f'{name}_high']:.4f})" for name in ("fpir", "fnir")
    )
    return (
        f"{row['subjects']} enrolled, {row['draws']} draws: {row['alarms']} false alarms in {row['non_mated']}, "
        f"FPIR {fpir}, {row['promised']:g} promised: {'within' if row['within_2'] else 'NOT within'} a factor of 2; "
        f"FNIR {fnir} in {row['mated']} searches; undecided {row['undecided']}"
    )


@cli.command()
def faces(
    url: Url = HERE,
    limit: Annotated[int | None, typer.Option(min=1, help="Probes of a gallery, mated and other; all.")] = None,
    rank1_galleries: Annotated[int, typer.Option(min=1, max=10, help="For rank 1, of each set.")] = 10,
    draws: Annotated[int, typer.Option(min=1, help="Of who is enrolled; up to twice as many for more alarms.")] = 20,
    size: Annotated[list[int], typer.Option(min=1, help="How many are enrolled; may be repeated.")] = list(SIZES),  # noqa: B006
    concurrency: Concurrency = 4,
    results: Results = RESULTS,
) -> None:
    """Rank 1 of LFW's View 1 and ORL; with some of LFW's people enrolled, false alarms and misses."""
    try:
        lfw = Photos.read(read_lfw(datasets_folder() / "lfw-view1"))
        orl_people = read_orl(datasets_folder() / "orl")
        orl = Photos.read(orl_people, ORL_ENLARGED)
    except TrainingError as error:
        fail(str(error))
    if max(size) >= (people := len(np.unique(lfw.labels))):
        fail(f"of {people} people {max(size)} cannot be enrolled with others left for strangers")
    plan = Plan(fewest=draws, most=2 * draws)

    async def run() -> None:
        async with serving(url, concurrency) as client:
            random = np.random.default_rng(derive(SEED, "rank-1"))
            several = lfw.of_several()
            of_lfw = (thinned(random_search(several.labels, random), limit, random) for _ in range(rank1_galleries))
            of_orl = (thinned(search, limit, random) for search in islice(orl_searches(orl_people), rank1_galleries))
            rows = await rank1(client, "LFW", several, of_lfw) + await rank1(client, "ORL", orl, of_orl)
            write(results / "identify_rank1.csv", rows)
            pooled: list[Row] = []
            of_draws: list[Row] = []
            for subjects in size:
                row, drawn = await open_set(client, lfw, subjects, limit, plan)
                print(told(row), flush=True)
                pooled.append(row)
                of_draws += drawn
                write(results / "identify_open_set.csv", pooled)
                write(results / "identify_draws.csv", of_draws)

    with asking(url):
        asyncio.run(run())


def precisions(found: Sequence[Sequence[int]], labels: Indices, names: Sequence[str]) -> list[Row]:
    """Rows of identify_things.csv: of the ten found first, itself left out, how many show the same; the mean by class.

    `found` has for each picture the numbers of ten others or more, likest first.
    """
    others = [[other for other in one if other != number][:NEIGHBOURS] for number, one in enumerate(found)]
    right = [(labels[one] == label).sum() / NEIGHBOURS for one, label in zip(others, labels, strict=True)]
    shares = np.array(right, float)
    kinds = {name: labels == label for label, name in enumerate(names)} | {"all": labels >= 0}
    return [
        {"class": name, "pictures": int(kind.sum()), "precision_at_10": float(shares[kind].mean())}
        for name, kind in kinds.items()
        if kind.any()
    ]


@cli.command()
def things(
    url: Url = HERE,
    embedder: Annotated[str, typer.Option(help="A classifier of CIFAR-10.")] = "vgg-cifar10",
    limit: Annotated[int | None, typer.Option(min=NEIGHBOURS + 1, help="The first so many pictures; all.")] = None,
    concurrency: Concurrency = 8,
    results: Results = RESULTS,
) -> None:
    """Each of CIFAR-10's test pictures looks for the ten most similar others: how many show the same thing?"""
    files, classes = pictures("cifar10")
    files, labels = files[:limit], np.array(classes[:limit])
    if not files:
        fail(f"no test*.parquet in {datasets_folder() / 'cifar10'}: set VESTIBULE_DATASETS")

    async def run() -> None:
        async with serving(url, concurrency) as client:
            names = await client.classes(embedder)
            async with client.collection(THINGS, embedder):
                await asyncio.gather(*(client.enrol(THINGS, str(row), file) for row, file in enumerate(files)))
                print(f"{len(files)} pictures enrolled", flush=True)
                _, answers = await client.search(files, collection=THINGS, limit=NEIGHBOURS + 1)
            found = [[int(one["subject_id"]) for face in answer for one in face["candidates"]] for answer in answers]
            rows = precisions(found, labels, names)
            write(results / "identify_things.csv", rows)
            for row in rows:
                print(f"{row['class']:12}{row['pictures']:7}{row['precision_at_10']:8.4f}")

    with asking(url):
        asyncio.run(run())


@asynccontextmanager
async def serving(url: str, concurrency: int) -> AsyncIterator[GalleryClient]:
    """A client of the service."""
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=uses_proxies(url)) as http:
        yield GalleryClient(http, concurrency)


if __name__ == "__main__":
    cli()
