"""Mutated images to /classify, /verify and /denoise: no 5xx, every request answered, every good image answered right.

    pytest -m slow -s tests/soak/test_mutated_images.py --soak-size 100000 --soak-results benchmarks/results

The size is the number of requests: 60 % to /classify, 30 % to /verify (as the source or the target) and 10 % to
/denoise, which costs most. Every tenth image is good. `image_mutations.py` defines the mutations; `request(seed, N)` is
request N of a run. The files count the answers to each kind of mutation and follow the service's resident memory.

The deadline is lifted, because a busy machine is no failure. /denoise takes small images only: a wrong header may turn
a few pixels into millions, and all of them would pass through the network.
"""

from __future__ import annotations

import asyncio
import io
import random
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from app.errors import VestibuleError
from app.images.decoding import ImageLimits, decode
from benchmarks import tables
from tests.app.server.test_process import serving
from tests.soak import image_mutations
from tests.soak.conftest import Soak
from tests.soak.image_mutations import MUTATIONS, PNG_MAGIC, SHARES, good, lie, with_sums

ENDPOINTS = {"/classify": 60, "/verify": 30, "/denoise": 10}  # shares in percent
SIDES = {"/classify": (32, 96, 256), "/verify": (96, 160), "/denoise": (32, 48, 64)}
GOOD, GOOD_EVERY = "good", 10
IN_FLIGHT = 4
ROUND = 1000  # requests between two writes of the files
ANSWERS = ("200", "400", "413", "415", "422", "429", "other", "5xx", "no answer", "wrong")
TYPES = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp", b"BM": "bmp", b"GI": "gif"}
TIMEOUT_S = 3600
MAX_DENOISE_PIXELS = 128 * 128
LIMITS = ImageLimits(bytes=2**25, pixels=10_000)
FORMS = sorted(good(32))


@dataclass(frozen=True)
class Sent:
    """A request with an image of this form and side. `mutation`: GOOD for none. `first`: it is the source of a pair."""

    endpoint: str
    mutation: str
    form: str
    side: int
    image: bytes
    first: bool


def request(seed: int, number: int) -> Sent:
    """Request `number`, from 0; every tenth is good."""
    rng = random.Random(f"{seed}/{number}")
    (endpoint,) = rng.choices(list(ENDPOINTS), list(ENDPOINTS.values()))
    side = rng.choice(SIDES[endpoint])
    form, image = rng.choice(list(good(side).items()))
    mutation, first = GOOD, rng.random() < 0.5
    if number % GOOD_EVERY != GOOD_EVERY - 1:
        (mutation,) = rng.choices(list(MUTATIONS), SHARES)
        image = MUTATIONS[mutation](rng, image)
    return Sent(endpoint, mutation, form, side, image, first)


def good_requests() -> Iterator[Sent]:
    """Every request with a good image."""
    for endpoint, sides in SIDES.items():
        for side in sides:
            for form, image in good(side).items():
                for first in (True, False):
                    yield Sent(endpoint, GOOD, form, side, image, first)


async def post(client: httpx.AsyncClient, sent: Sent) -> httpx.Response:
    """Send a request and return the answer."""
    if sent.endpoint == "/verify":
        pair = (sent.image, good(sent.side)["JPEG"])
        source, target = pair if sent.first else pair[::-1]
        return await client.post("/verify", files={"source": ("a", source), "target": ("b", target)})
    kind = TYPES.get(sent.image[:2], "jpeg")
    return await client.post(sent.endpoint, content=sent.image, headers={"content-type": f"image/{kind}"})


def result(endpoint: str, answer: httpx.Response) -> Any:
    """The part of an answer that is the same each time: class, decision or size. None if the answer is an error."""
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
    """Requests to one service, several in flight, and counts of the answers by endpoint and mutation."""

    def __init__(self, client: httpx.AsyncClient, seed: int):
        self.counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._client, self._seed = client, seed
        self._expected: dict[Sent, Any] = {}

    async def learn(self) -> None:
        """Send every good request once, after the models have chosen their runtimes, and keep the results."""
        for endpoint in ENDPOINTS:
            await post(self._client, next(sent for sent in good_requests() if sent.endpoint == endpoint))
        while await self._is_choosing():  # noqa: ASYNC110  another process, which is asked over HTTP
            await asyncio.sleep(1)
        for sent in good_requests():
            answer = await post(self._client, sent)
            self._expected[sent] = result(sent.endpoint, answer)
            assert self._expected[sent] is not None, (sent.endpoint, sent.form, answer.text[:200])
            if sent.endpoint == "/denoise":
                assert self._expected[sent] == (sent.side, sent.side)

    async def _is_choosing(self) -> bool:
        """Return whether a model still compares runtimes: an image between two classes may change sides then."""
        loaded = [row["name"] for row in (await self._client.get("/models")).json()["data"] if row["loaded"]]
        return any([(await self._client.get(f"/models/{name}")).json()["choosing"] for name in loaded])

    async def send(self, numbers: range) -> None:
        """Send these requests and wait for all answers."""
        left = iter(numbers)

        async def work() -> None:
            for number in left:
                await self._send_one(number)

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

    async def _send_one(self, number: int) -> None:
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
        wrong = sent.mutation == GOOD and result(sent.endpoint, answer) != self._expected[sent]
        counts["wrong"] += wrong
        if wrong or answer.is_server_error:
            print(f"request {number}: {sent.endpoint}, {sent.form}, {sent.mutation}: {status} {answer.text[:200]}")

    def rows(self) -> Iterator[dict[str, object]]:
        """The counts by endpoint and mutation, then of all requests."""
        total: Counter[str] = sum(self.counts.values(), Counter())
        for (endpoint, mutation), counts in [*sorted(self.counts.items()), (("all", "all"), total)]:
            yield {"endpoint": endpoint, "mutation": mutation, **{name: counts[name] for name in ("sent", *ANSWERS)}}


async def fire(url: str, process: psutil.Process, count: int, soak: Soak) -> dict[str, Any]:
    """Send the requests, write the files after each round, and return the row of all requests."""
    memory: list[dict[str, int]] = []
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        run = Run(client, soak.seed)
        await run.learn()
        for begin in range(0, count, ROUND):
            end = min(begin + ROUND, count)
            await run.send(range(begin, end))
            memory.append({"requests": end, "rss_mib": round(process.memory_info().rss / 2**20)})
            *rows, total = run.rows()
            tables.write(soak.results / "mutated_images.csv", list(total), [*rows, total])
            tables.write(soak.results / "mutated_images_memory.csv", list(memory[0]), memory)
            print(memory[-1], flush=True)
    half = np.array([list(row.values()) for row in memory[len(memory) // 2 :]])
    slope = np.polyfit(half[:, 0], half[:, 1], 1)[0] * 10_000 if len(half) > 1 else 0.0
    print(f"{total}\nmemory over the second half: {slope:+.1f} MiB per 10,000 requests")
    return total


@pytest.mark.slow
def test_mutated_images_are_answered(soak: Soak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if soak.size:
        monkeypatch.delenv("VESTIBULE_RUNTIME")  # the service chooses as it ships
    count = soak.size or 400
    environment = {
        "VESTIBULE_STATE": str(tmp_path / "state"),
        "VESTIBULE_DEADLINE_S": str(TIMEOUT_S),
        "VESTIBULE_MAX_DENOISE_PIXELS": str(MAX_DENOISE_PIXELS),
    }
    with serving(**environment) as (process, url, _):
        total = asyncio.run(fire(url, psutil.Process(process.pid), count, soak))
    assert (total["sent"], total["5xx"], total["no answer"], total["wrong"]) == (count, 0, 0, 0)


@pytest.mark.parametrize("form", FORMS)
def test_every_good_image_shows_the_same(form: str) -> None:
    whole, image = decode(good(32)["PNG"], LIMITS), decode(good(32)[form], LIMITS)
    assert image.size == whole.size
    # The top left corner is background and the middle is face, whatever the form makes of colours and orientation.
    for place in ((2, 2), (16, 16)):
        pair = (image.convert("L").getpixel(place), whole.convert("L").getpixel(place))
        assert pair[0] == pytest.approx(pair[1], abs=48)


@pytest.mark.parametrize("form", FORMS)
def test_a_false_header_changes_what_the_decoder_reads(form: str) -> None:
    sizes = set[object]()
    for seed in range(60):
        try:
            sizes.add(decode(lie(random.Random(seed), good(32)[form]), LIMITS).size)
        except VestibuleError as error:
            sizes.add(type(error).__name__)
    assert "ImageTooLarge" in sizes or form.startswith("GIF")
    assert len(sizes) > 2


def test_only_checksums_are_corrected() -> None:
    whole = good(32)["PNG"]
    assert with_sums(whole) == whole
    broken = bytearray(whole)
    broken[16:20] = struct.pack(">I", 31)
    corrected = with_sums(bytes(broken))
    assert corrected[:29] == broken[:29]
    assert corrected[29:33] != whole[29:33]
    assert corrected[33:] == whole[33:]
    assert with_sums(PNG_MAGIC + b"\xff\xff\xff\xffIHDR") == PNG_MAGIC + b"\xff\xff\xff\xffIHDR"


def test_a_request_depends_on_its_seed_and_number_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_mutations, "bombs", lambda: (b"a bomb",))  # to make the real ones takes a second
    requests = [request(0, number) for number in range(300)]
    assert requests[299] == request(0, 299)
    assert requests[299] != request(1, 299)
    assert {sent.mutation for sent in requests} == {*MUTATIONS, GOOD}
    assert {sent.form for sent in requests} == set(FORMS)
    assert [sent.mutation for sent in requests[9::10]] == [GOOD] * 30
