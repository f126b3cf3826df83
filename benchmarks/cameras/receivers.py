"""Webhooks that answer badly at random, and a comparison of the alerts that they accepted with the stored ones."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
# How the receivers answer, and how often.
ANSWERS = {"accept": 70, "refuse": 10, "drop": 10, "wait": 10}
# Target, alert, sighting, subject, and the Unix time.
Acceptance = tuple[str, str, str, str | None, float]


@dataclass
class Receivers:
    """The webhooks of all targets, on a thread; the path of a URL is the target. `accepted` is in order of time."""

    seed: int
    port: int = 0
    accepted: list[Acceptance] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    is_calm: bool = False  # accept everything

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()
        self._ready.wait()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            answer = "accept"
            if not self.is_calm:
                (answer,) = self._random.choices(list(ANSWERS), list(ANSWERS.values()))
            self.answers[answer] += 1
            if answer == "wait":
                await asyncio.sleep(self._random.uniform(0, 0.2))
            if answer != "refuse":  # whoever drops the connection has read the alert
                target, data = head[0].split(" ")[1].removeprefix("/"), body["data"]
                self.accepted.append((target, headers["webhook-id"], data["sighting"], data["subject"], time.time()))
            if answer != "drop":
                status = "503 Unavailable" if answer == "refuse" else "204 No Content"
                writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@dataclass(frozen=True)
class AlertFaults:
    """`repeats`: acceptances beyond the first of an alert at a target, which are allowed; all others must be 0.

    `lost`: expected alerts that a target did not accept. `doubled`: sightings with a second alert. `wrong_ids`:
    sightings whose alert arrived with several ids. `overtaken`: first acceptances before that of an earlier alert.
    """

    repeats: int
    lost: int
    doubled: int
    wrong_ids: int
    overtaken: int


def alert_faults(
    accepted: Sequence[Acceptance], alerts: Sequence[tuple[str, str]], expected: set[tuple[str, str]]
) -> AlertFaults:
    """Compare the alerts that arrived with the stored ones, the ids of alert and sighting in the order of storing.

    `expected`: target and sighting of each alert that must have arrived.
    """
    stored = Counter(sighting for _, sighting in alerts)
    positions = {id: position for position, (id, _) in enumerate(alerts)}
    first: dict[str, list[int]] = defaultdict(list)
    ids: dict[str, set[str]] = defaultdict(set)
    arrived: set[tuple[str, str]] = set()
    for target, id, sighting, _, _ in accepted:
        ids[sighting].add(id)
        if (target, id) not in arrived and id in positions:
            first[target].append(positions[id])
        arrived.add((target, id))
    return AlertFaults(
        repeats=len(accepted) - len(arrived),
        lost=len(expected - {(target, sighting) for target, _, sighting, _, _ in accepted}),
        doubled=sum(count > 1 for count in stored.values()),
        wrong_ids=sum(len(several) > 1 for several in ids.values()),
        overtaken=sum(later < earlier for order in first.values() for earlier, later in pairwise(order)),
    )
