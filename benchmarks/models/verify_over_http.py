"""POST /verify of a running service: how often it is right, how long it takes, what it answers to bad pictures.

    python -m benchmarks.models.verify_over_http lfw       the 1,000 pairs of LFW's View 1 DevTest
    python -m benchmarks.models.verify_over_http latency   one pair after another, in turn with dlib's pipeline
    python -m benchmarks.models.verify_over_http beside    one pair after another, in turn with another service
    python -m benchmarks.models.verify_over_http bad       two faces, no face, bad inputs

Each prints a summary and writes its rows to benchmarks/results/verify_<command>.csv. docs/faces.md says what they mean.
`latency` needs `pip install 'vestibule[teacher]'`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import numpy as np
import typer

from benchmarks import tables
from benchmarks.models import bad_pairs
from benchmarks.models.dlib_pipeline import DlibPipeline
from benchmarks.proxies import uses_proxies
from training.core.errors import TrainingError
from training.datasets.protocols import VIEWS, read_lfw, read_pairs
from training.evaluation.embedded_faces import FAILED
from training.evaluation.measure_faces import RATES
from training.metrics.verification import Scores, cross_validated_accuracy
from training.recipe.config import datasets_folder

cli = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)

Row = dict[str, Any]
Url = Annotated[str, typer.Option(help="Of the service, which is running.")]
Data = Annotated[Path | None, typer.Option(help="LFW with pairsDevTest.txt; VESTIBULE_DATASETS/lfw-view1 if left out.")]
Results = Annotated[Path, typer.Option(help="The folder of the CSV files.")]
HERE = "http://127.0.0.1:8000"
RESULTS = Path("benchmarks/results")
TIMEOUT_S = 60


@dataclass(frozen=True)
class Pair:
    """Two photos, and whether they show one person."""

    source: Path
    target: Path
    same: bool

    @property
    def files(self) -> tuple[bytes, bytes]:
        """As they lie there."""
        return self.source.read_bytes(), self.target.read_bytes()

    @property
    def row(self) -> Row:
        """How the tables name it."""
        return {"source": self.source.stem, "target": self.target.stem, "same": self.same}


def lfw_pairs(folder: Path | None, count: int) -> list[Pair]:
    """So many of View 1's test pairs, evenly from the list, which has the mated ones first."""
    folder = folder or datasets_folder() / "lfw-view1"
    try:
        people = read_lfw(folder)
        pairs = read_pairs(folder / VIEWS["View 1"], people)
    except TrainingError as error:
        fail(str(error))
    chosen = np.linspace(0, len(pairs.mated) - 1, min(count, len(pairs.mated))).round().astype(int)
    return [
        Pair(people.paths[source], people.paths[target], same)
        for (source, target), same in zip(pairs.positions[chosen].tolist(), pairs.mated[chosen].tolist(), strict=True)
    ]


def parts(source: bytes, target: bytes) -> dict[str, tuple[str, bytes, str]]:
    """The multipart body of a pair of JPEGs."""
    return {"source": ("a.jpg", source, "image/jpeg"), "target": ("b.jpg", target, "image/jpeg")}


async def verify_all(url: str, pairs: Sequence[Pair], concurrency: int) -> list[httpx.Response | httpx.TransportError]:
    """The answers to all pairs, in order; the error where there was none."""
    answers: list[httpx.Response | httpx.TransportError] = [httpx.TransportError("not asked")] * len(pairs)
    rows = iter(range(len(pairs)))

    async def work(client: httpx.AsyncClient) -> None:
        for row in rows:
            try:
                answers[row] = await client.post("/verify", files=parts(*pairs[row].files))
            except httpx.TransportError as error:
                answers[row] = error

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=uses_proxies(url)) as client:
        await asyncio.gather(*(work(client) for _ in range(concurrency)))
    return answers


def decided(pair: Pair, answer: httpx.Response | httpx.TransportError) -> Row:
    """One row of verify_lfw.csv: a failed request accepts at no threshold, and says why in `problem`."""
    failed = {"similarity": FAILED, "probability": "", "verified": False}
    if isinstance(answer, httpx.TransportError):
        return pair.row | {"status": 0} | failed | {"problem": type(answer).__name__}
    if not answer.is_success:
        return pair.row | {"status": answer.status_code} | failed | {"problem": bad_pairs.told(answer).get("title", "")}
    body = answer.json()
    return pair.row | {
        "status": answer.status_code,
        "similarity": 1 - body["distance"],
        "probability": body["probability"],
        "verified": body["verified"],
        "problem": "",
    }


def lfw_figures(rows: Sequence[Row]) -> Iterator[str]:
    """What is said of the pairs, line by line."""
    similarities, same = np.array([row["similarity"] for row in rows]), np.array([row["same"] for row in rows], bool)
    verified = np.array([row["verified"] for row in rows], bool)
    scores = Scores.of(similarities, same)
    mated, impostors = len(scores.mated), len(scores.impostor)
    accuracy, error = cross_validated_accuracy(similarities, same)
    failed = sum(row["status"] != 200 for row in rows)
    yield f"{len(rows)} pairs ({mated} mated, {impostors} non-mated), failed {failed}"
    yield f"accuracy {accuracy:.4f}, standard error {error:.4f}"
    for rate in RATES:
        counted = rate * impostors >= 1
        value = f"{scores.tar(rate):.4f}" if counted else f"not countable with {impostors} non-mated pairs"
        yield f"TAR at FAR {rate:g}: {value}"
    yield f"EER {scores.eer():.4f}"
    yield (
        f"verified: right {(verified == same).mean():.4f}, accepted {verified[same].sum()} of {mated} mated and "
        f"{verified[~same].sum()} of {impostors} non-mated"
    )


@cli.command()
def lfw(
    url: Url = HERE,
    data: Data = None,
    limit: Annotated[int, typer.Option(min=20, help="How many of the pairs.")] = 1000,
    concurrency: Annotated[int, typer.Option(min=1)] = 4,
    results: Results = RESULTS,
) -> None:
    """Accuracy, TAR, EER, and how often `verified` is right; exit 1 if a request failed."""
    pairs = lfw_pairs(data, limit)
    with asking(url):
        answers = asyncio.run(verify_all(url, pairs, concurrency))
    rows = [decided(pair, answer) for pair, answer in zip(pairs, answers, strict=True)]
    write(results / "verify_lfw.csv", rows)
    for row in rows:
        if row["status"] != 200:
            print(f"failed: {row['source']} {row['target']}: {row['status']} {row['problem']}")
    good = next((a.json() for a in answers if isinstance(a, httpx.Response) and a.is_success), None)
    if good is None:
        fail("no request succeeded")
    point = good["operating_point"]
    print(
        f"{good['model']} {good['version']}: FMR {point['fmr']:g}, distance at most {good['threshold']:.4f}, ", end=""
    )
    print(f"calibrated on {point['calibration']}, {'extrapolated' if point['extrapolated'] else 'counted'}")
    print(*lfw_figures(rows), sep="\n")
    raise typer.Exit(int(any(row["status"] != 200 for row in rows)))


def server_timing(header: str) -> dict[str, float]:
    """The durations of a Server-Timing header by their names, in milliseconds."""
    return {name: float(value) for name, value in re.findall(r"([\w-]+);dur=([\d.]+)", header)}


def timed(client: httpx.Client, files: tuple[bytes, bytes]) -> Row:
    """One request, from before its body is made until its answer is there; its parts by the answer's Server-Timing."""
    started = time.perf_counter()
    answer = client.post("/verify", files=parts(*files))
    elapsed = time.perf_counter() - started
    if not answer.is_success:
        fail(f"{answer.status_code} {bad_pairs.told(answer).get('detail', '')}")
    stages = server_timing(answer.headers["server-timing"])
    return {"http_ms": 1000 * elapsed} | {f"http_{name}_ms": value for name, value in stages.items()}


def in_turn(client: httpx.Client, dlib: DlibPipeline, pairs: Sequence[Pair]) -> Iterator[Row]:
    """Each pair by a request and then by dlib, so that whatever else the machine does meets both alike."""
    for pair in pairs:
        files = pair.files
        row = pair.row | timed(client, files)
        compared = dlib(*files)
        row |= {"dlib_ms": 1000 * sum(compared.seconds.values())}
        row |= {f"dlib_{name}_ms": 1000 * seconds for name, seconds in compared.seconds.items()}
        yield row | {"dlib_distance": "" if compared.distance is None else compared.distance}


def latency_figures(rows: Sequence[Row]) -> Iterator[str]:
    """Quantiles of each column that is a time, and the ratio of medians where dlib found both faces."""
    yield f"{'ms':24}{'p50':>9}{'p90':>9}{'p99':>9}"
    for name in (name for name in rows[0] if name.endswith("_ms")):
        quantiles = np.percentile([row[name] for row in rows], [50, 90, 99])
        yield f"{name.removesuffix('_ms').replace('_', ' '):24}" + "".join(f"{value:9.2f}" for value in quantiles)
    both = [row for row in rows if row["dlib_distance"] != ""]
    yield f"dlib finds both faces in {len(both)} of {len(rows)} pairs"
    if both:
        ours, theirs = (float(np.median([row[name] for row in both])) for name in ("http_ms", "dlib_ms"))
        yield f"over these, medians: HTTP {ours:.2f} ms, dlib {theirs:.2f} ms, ratio {ours / theirs:.3f}"
        right = sum((row["dlib_distance"] <= DlibPipeline.THRESHOLD) == row["same"] for row in both)
        yield f"and dlib, at its own threshold of {DlibPipeline.THRESHOLD}, is right in {right / len(both):.4f}"


@cli.command()
def latency(
    url: Url = HERE,
    data: Data = None,
    limit: Annotated[int, typer.Option(min=1, help="Pairs that count.")] = 300,
    warmup: Annotated[int, typer.Option(min=0, help="Pairs before, that do not.")] = 20,
    upsample: Annotated[int, typer.Option(min=0, help="How often dlib doubles a photo before it looks.")] = 0,
    results: Results = RESULTS,
) -> None:
    """The whole request and its parts at concurrency 1, in turn with dlib's pipeline in this process."""
    pairs = lfw_pairs(data, limit)
    try:
        dlib = DlibPipeline(upsample)
    except ImportError as error:  # also of importlib.metadata, for a package that is not installed
        fail(f"{error}: pip install 'vestibule[teacher]'")
    with asking(url), httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=uses_proxies(url)) as client:
        for _ in in_turn(client, dlib, [pairs[number % len(pairs)] for number in range(warmup)]):
            pass
        rows = list(in_turn(client, dlib, pairs))
    write(results / "verify_latency.csv", rows)
    print(f"{len(rows)} pairs after {warmup} to warm up, concurrency 1; dlib {dlib.version}, {upsample} times enlarged")
    print(*latency_figures(rows), sep="\n")


@cli.command()
def beside(
    other: Annotated[str, typer.Option(help="The address of the service to compare with.")],
    url: Url = HERE,
    data: Data = None,
    limit: Annotated[int, typer.Option(min=1, help="Pairs that count.")] = 200,
    warmup: Annotated[int, typer.Option(min=0, help="Pairs before, that do not.")] = 40,
    results: Results = RESULTS,
) -> None:
    """Two services at concurrency 1, each pair sent to both, in alternating order: the ratio of their medians."""
    pairs = lfw_pairs(data, limit)
    rows: list[Row] = []
    with asking(url), asking(other), httpx.Client(timeout=TIMEOUT_S, trust_env=uses_proxies(url, other)) as client:
        for number in range(warmup + limit):
            pair = pairs[number % len(pairs)]
            source, target = pair.files
            times = {}
            for address in (url, other) if number % 2 else (other, url):
                started = time.perf_counter()
                answer = client.post(f"{address}/verify", files={"source": source, "target": target})
                times[address] = 1e3 * (time.perf_counter() - started)
                answer.raise_for_status()
            if number >= warmup:
                rows.append(pair.row | {"url_ms": times[url], "other_ms": times[other]})
    write(results / "verify_beside.csv", rows)
    ours, theirs = ([row[name] for row in rows] for name in ("url_ms", "other_ms"))
    for name, values in ((url, ours), (other, theirs)):
        print(f"{name}: p50 {np.median(values):.1f} ms, p90 {np.percentile(values, 90):.1f} ms, {len(values)} pairs")
    print(f"ratio of the medians {np.median(ours) / np.median(theirs):.3f}")


@cli.command()
def bad(url: Url = HERE, results: Results = RESULTS) -> None:
    """Two faces, no face, bad inputs; exit 1 on a wrong answer, a 5xx, or a good pair answered otherwise after."""
    rows: list[Row] = []
    with asking(url), httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=uses_proxies(url)) as client:
        before = bad_pairs.good_distance(client)
        for case in bad_pairs.cases():
            answer = case.send(client)
            title = bad_pairs.told(answer).get("title", "")
            right = bad_pairs.is_right(answer, case)
            rows.append({"case": case.name, "status": answer.status_code, "title": title, "right": right})
            print(f"{'ok ' if right else 'BAD'} {answer.status_code} {title or '-':40} {case.name}")
        after = bad_pairs.good_distance(client)
    write(results / "verify_bad.csv", rows)
    wrong, broken = sum(not row["right"] for row in rows), sum(row["status"] >= 500 for row in rows)
    same = before is not None and after is not None and abs(before - after) < 1e-4
    print(f"{len(rows)} cases, {wrong} wrong, {broken} 5xx; a good pair before and after: distance {before}, {after}")
    raise typer.Exit(int(bool(wrong or broken) or not same))


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Whatever is asked of a service that is ready; a clear end where it is not, or stops to be."""
    try:
        httpx.get(f"{url}/health/ready", timeout=TIMEOUT_S, trust_env=uses_proxies(url)).raise_for_status()
        yield
    except httpx.HTTPError as error:
        fail(f"{url}: {error}")


def write(path: Path, rows: Sequence[Row]) -> None:
    """A table, its columns those of the first row; fractions with six digits."""
    tables.write(path, list(rows[0]), [{name: _six(value) for name, value in row.items()} for row in rows])


def _six(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def fail(message: str) -> NoReturn:
    """End with 1."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    cli()
