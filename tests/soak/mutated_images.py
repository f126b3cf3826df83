"""Mutated pictures to /classify, /verify and /denoise, every tenth a good one that must be answered right.

`python -m tests.soak.mutated_images` starts a service of its own and sends it 100,000 requests: 60 % to /classify,
30 % to /verify (as its source or its target) and 10 % to /denoise, which costs most. tests/soak/image_mutations.py
says what is done to the pictures. It prints a summary, writes benchmarks/results/mutated_pictures.csv (what was
answered to each kind of mutation) and mutated_pictures_memory.csv (the service's resident memory), and ends with 1 on
any 5xx, any request without an answer, or a good picture that is answered otherwise than at the start.

Request N is the same whatever was sent before it: `--from 40000 --count 20000` goes on where a run ended, and its
counts are added to those in the file. The deadline is lifted, so that a busy machine is no failure. Only small pictures
are cleaned: a header that lies may make millions of pixels of a few, and all of those would go through the network.
"""

from __future__ import annotations

import asyncio
import io
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import typer
from PIL import Image

from benchmarks import tables
from benchmarks.proxies import uses_proxies
from tests.app.server.test_process import serving
from tests.soak.image_mutations import MUTATIONS, SHARES, good

RESULTS = Path("benchmarks/results")
ENDPOINTS = {"/classify": 60, "/verify": 30, "/denoise": 10}  # and their shares, in percent
SIDES = {"/classify": (32, 96, 256), "/verify": (96, 160), "/denoise": (32, 48, 64)}
GOOD, GOOD_EVERY = "good", 10
AT_ONCE = 1000  # requests between two entries in the files
ANSWERS = ("200", "400", "413", "415", "422", "429", "other", "5xx", "no answer", "wrong")
TYPES = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp", b"BM": "bmp", b"GI": "gif"}
TIMEOUT_S = 3600
MOST_CLEANED = 128 * 128  # pixels

Counts = defaultdict[tuple[str, str], Counter[str]]


@dataclass(frozen=True)
class Sent:
    """A request: a picture of this form and side, mutated, or good as it is; `first`: as the source of a pair."""

    endpoint: str
    mutation: str
    form: str
    side: int
    picture: bytes
    first: bool


def request(seed: int, number: int) -> Sent:
    """Request `number`, from 0; every tenth is good."""
    rng = random.Random(f"{seed}/{number}")
    (endpoint,) = rng.choices(list(ENDPOINTS), list(ENDPOINTS.values()))
    side = rng.choice(SIDES[endpoint])
    form, picture = rng.choice(list(good(side).items()))
    mutation, first = GOOD, rng.random() < 0.5
    if number % GOOD_EVERY != GOOD_EVERY - 1:
        (mutation,) = rng.choices(list(MUTATIONS), SHARES)
        picture = MUTATIONS[mutation](rng, picture)
    return Sent(endpoint, mutation, form, side, picture, first)


def _good_ones() -> Iterator[Sent]:
    """Every request with a good picture."""
    for endpoint, sides in SIDES.items():
        for side in sides:
            for form, picture in good(side).items():
                for first in (True, False):
                    yield Sent(endpoint, GOOD, form, side, picture, first)


async def post(client: httpx.AsyncClient, sent: Sent) -> httpx.Response:
    """The service's answer to a request."""
    if sent.endpoint == "/verify":
        pair = (sent.picture, good(sent.side)["JPEG"])
        source, target = pair if sent.first else pair[::-1]
        return await client.post("/verify", files={"source": ("a", source), "target": ("b", target)})
    kind = TYPES.get(sent.picture[:2], "jpeg")
    return await client.post(sent.endpoint, content=sent.picture, headers={"content-type": f"image/{kind}"})


def meaning(endpoint: str, answer: httpx.Response) -> Any:
    """Of an answer to a good picture, what must be the same each time; None where it is no success."""
    if not answer.is_success:
        return None
    if endpoint == "/classify":
        return answer.json()["data"][0]["predictions"][0]["class"]
    if endpoint == "/verify":
        return answer.json()["verified"]
    with Image.open(io.BytesIO(answer.content), formats=("PNG",)) as image:
        image.load()
        return image.size


class Run:
    """Requests to one service, several in flight, and what came of them."""

    def __init__(self, client: httpx.AsyncClient, seed: int, in_flight: int):
        self.counts: Counts = defaultdict(Counter)
        self._client, self._seed, self._in_flight = client, seed, in_flight
        self._right: dict[Sent, Any] = {}

    async def learn(self) -> None:
        """Ask for every good picture once, when the models run as they will.

        Raises:
            RuntimeError: it is not answered, or by a picture of another size.
        """
        for endpoint in ENDPOINTS:
            await post(self._client, next(sent for sent in _good_ones() if sent.endpoint == endpoint))
        while await self._choosing():  # noqa: ASYNC110  another process, which is asked over HTTP
            await asyncio.sleep(1)
        for sent in _good_ones():
            answer = await post(self._client, sent)
            told = meaning(sent.endpoint, answer)
            if told is None or (sent.endpoint == "/denoise" and told != (sent.side, sent.side)):
                raise RuntimeError(f"{sent.endpoint}, {sent.form} of {sent.side}: {answer.text[:200]}")
            self._right[sent] = told

    async def _choosing(self) -> bool:
        """Whether a model still looks for its runtime: a picture between two classes may change sides then."""
        loaded = [row["name"] for row in (await self._client.get("/models")).json()["data"] if row["loaded"]]
        return any([(await self._client.get(f"/models/{name}")).json()["choosing"] for name in loaded])

    async def send(self, numbers: range) -> None:
        """These requests, and wait for all answers."""
        left = iter(numbers)

        async def work() -> None:
            for number in left:
                await self._one(number)

        await asyncio.gather(*(work() for _ in range(self._in_flight)))

    async def _one(self, number: int) -> None:
        sent = request(self._seed, number)
        counts = self.counts[sent.endpoint, sent.mutation]
        counts["sent"] += 1
        try:
            answer = await post(self._client, sent)
        except httpx.TransportError as error:
            counts["no answer"] += 1
            print(f"request {number}: {sent.endpoint}, {sent.form}, {sent.mutation}: {error!r}")
            return
        status = "5xx" if answer.is_server_error else str(answer.status_code)
        counts[status if status in ANSWERS else "other"] += 1
        wrong = sent.mutation == GOOD and meaning(sent.endpoint, answer) != self._right[sent]
        counts["wrong"] += wrong
        if wrong or answer.is_server_error:
            print(f"request {number}: {sent.endpoint}, {sent.form}, {sent.mutation}: {status} {answer.text[:200]}")


def rows(counts: Counts) -> Iterator[dict[str, object]]:
    """By endpoint and mutation, then all of them."""
    total: Counter[str] = sum(counts.values(), Counter())
    for (endpoint, mutation), found in [*sorted(counts.items()), (("all", "all"), total)]:
        yield {"endpoint": endpoint, "mutation": mutation, **{name: found[name] for name in ("sent", *ANSWERS)}}


def counted(path: Path, begin: int) -> Counts:
    """What is in the file of a run that ended before request `begin`; nothing for the first.

    Raises:
        ValueError: it ended elsewhere.
    """
    counts: Counts = defaultdict(Counter)
    for row in tables.read(path) if begin else ():
        if row["endpoint"] != "all":
            found = {name: int(row[name]) for name in ("sent", *ANSWERS)}
            counts[row["endpoint"], row["mutation"]].update(found)
    done = sum(found["sent"] for found in counts.values())
    if done != begin:
        raise ValueError(f"{path} has {done} requests: go on with --from {done}")
    return counts


def slope(samples: list[tuple[int, float]]) -> float:
    """Of resident memory over the second half of the samples, in MiB per 10,000 requests."""
    half = np.array(samples[len(samples) // 2 :])
    return float(np.polyfit(half[:, 0], half[:, 1], 1)[0]) * 10_000 if len(half) > 1 else 0.0


async def fire(url: str, process: psutil.Process, numbers: range, seed: int, in_flight: int, results: Path) -> bool:
    """Send them, write the files as it goes, print what came of it; whether all is well."""
    path, memory_path = results / "mutated_pictures.csv", results / "mutated_pictures_memory.csv"
    earlier = [(int(row["requests"]), float(row["rss_mib"])) for row in tables.read(memory_path) if numbers.start]
    samples: list[tuple[int, float]] = []
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=uses_proxies(url)) as client:
        run = Run(client, seed, in_flight)
        run.counts = counted(path, numbers.start)
        await run.learn()
        for begin in range(numbers.start, numbers.stop, AT_ONCE):
            end = min(begin + AT_ONCE, numbers.stop)
            await run.send(range(begin, end))
            samples.append((end, process.memory_info().rss / 2**20))
            tables.write(path, ("endpoint", "mutation", "sent", *ANSWERS), list(rows(run.counts)))
            memory = [{"requests": number, "rss_mib": round(size)} for number, size in [*earlier, *samples]]
            tables.write(memory_path, ("requests", "rss_mib"), memory)
            print(f"{end} requests, resident {samples[-1][1]:.0f} MiB", flush=True)
    *_, total = rows(run.counts)
    print(", ".join(f"{name} {value}" for name, value in total.items()))
    print(f"memory over the second half: {slope(samples):+.1f} MiB per 10,000 requests, {samples[-1][1]:.0f} MiB last")
    return not (total["5xx"] or total["no answer"] or total["wrong"])


def main(
    begin: Annotated[int, typer.Option("--from", min=0, help="The first request's number.")] = 0,
    count: Annotated[int, typer.Option(min=1)] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the mutations.")] = 0,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 4,
    results: Annotated[Path, typer.Option(help="The folder of the files.")] = RESULTS,
) -> None:
    """Send them; exit 1 if something was not answered as it should be."""
    numbers = range(begin, begin + count)
    with tempfile.TemporaryDirectory() as state:
        limits = {"VESTIBULE_DEADLINE_S": str(TIMEOUT_S), "VESTIBULE_MAX_DENOISE_PIXELS": str(MOST_CLEANED)}
        with serving(VESTIBULE_STATE=state, **limits) as (process, url, _):
            good_all = asyncio.run(fire(url, psutil.Process(process.pid), numbers, seed, in_flight, results))
    raise typer.Exit(0 if good_all else 1)


if __name__ == "__main__":
    typer.run(main)
