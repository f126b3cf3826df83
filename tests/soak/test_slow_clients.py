"""Clients that send a byte a second do not stop a fast client, which classifies an image again and again.

    pytest -m slow -s tests/soak/test_slow_clients.py --soak-size 500 --soak-results benchmarks/results

The size is the number of slow clients. Each round measures the fast client alone, beside slow heads, and beside slow
bodies. The fast client opens a connection for each request, since slow clients compete for connections.
"""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import pytest

from benchmarks import tables
from tests.app.server.test_process import serving
from tests.soak.conftest import Soak
from tests.soak.slow_clients import REQUESTS, slow_clients

IMAGE = Path("examples/coffee.jpg")
COLUMNS = ["round", "slow", "of", "held", "seconds", "requests", "failed", "p50_ms", "p99_ms"]


def is_answered(port: int) -> bool:
    """Return whether one request, on a connection of its own, is answered correctly."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/classify?top_k=1", IMAGE.read_bytes(), {"content-type": "image/jpeg"})
        answer = connection.getresponse()
        return b"espresso" in answer.read() and answer.status == 200
    except OSError:
        return False
    finally:
        connection.close()


def is_choosing(url: str) -> bool:
    """Return whether a loaded model still compares runtimes."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        loaded = [row["name"] for row in client.get("/models").json()["data"] if row["loaded"]]
        return any(client.get(f"/models/{name}").json()["choosing"] for name in loaded)


def measure(port: int, seconds: float) -> dict[str, float]:
    """The fast client's latencies in ms, one request after the other."""
    times, failed = [], 0
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        failed += not is_answered(port)
        times.append((time.perf_counter() - started) * 1000)
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return {
        "seconds": seconds,
        "requests": len(times),
        "failed": failed,
        "p50_ms": round(p50, 2),
        "p99_ms": round(p99, 2),
    }


@pytest.mark.slow
def test_slow_clients_do_not_stop_a_fast_one(soak: Soak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, seconds, rounds = (soak.size, 20.0, 3) if soak.size else (50, 3.0, 1)
    if soak.size:
        monkeypatch.delenv("VESTIBULE_RUNTIME")  # the service chooses as it ships
    rows: list[dict[str, object]] = []
    with serving(VESTIBULE_STATE=str(tmp_path / "state")) as (_, url, _):
        port = httpx.URL(url).port
        assert port
        while not is_answered(port) or is_choosing(url):
            time.sleep(1)
        measure(port, seconds / 4)
        for number in range(1, rounds + 1):
            rows.append({"round": number, "slow": "nobody", "of": 0, "held": 0, **measure(port, seconds)})
            for kind in REQUESTS:
                with slow_clients(port, kind, count) as held:
                    figures = measure(port, seconds)
                    assert held.value > 0
                    rows.append({"round": number, "slow": kind, "of": count, "held": held.value, **figures})
    tables.write(soak.results / "slow_clients.csv", COLUMNS, rows)
    alone = [float(str(row["p99_ms"])) for row in rows if row["slow"] == "nobody"]
    for kind in REQUESTS:
        beside = [float(str(row["p99_ms"])) for row in rows if row["slow"] == kind]
        ratio = median(b / a for a, b in zip(alone, beside, strict=True))
        print(f"p99 beside {count} slow {kind}: {ratio:.2f} times that alone (median of {rounds} rounds)")
    assert [row for row in rows if row["failed"] or not row["requests"]] == []
