"""What HAProxy costs: one process of the service beside two replicas behind HAProxy, on the same cores.

    python -m benchmarks.cluster.balancer --rounds 5

The rounds go through all servers and requests in turn, so that load on the machine affects all alike. `direct` is the
first of the two replicas without HAProxy, which gives the time that HAProxy adds to a request of one client. A request
is POST /classify with a JPEG file of CIFAR-10 (VESTIBULE_DATASETS), to a very small network and to a larger one. The
replicas share one PostgreSQL. Needs wrk and HAProxy.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.cluster.replicas import SETTINGS, pictures
from benchmarks.cluster.servers import Replica, cluster, haproxy
from benchmarks.serving.load_generator import Load, closed
from benchmarks.serving.servers import Request
from benchmarks.tables import machine

MODELS = ("lenet5-mnist", "resnet10-cifar10")
CLIENTS = (1, 32)


def requests() -> dict[str, Request]:
    """Return a request for each model."""
    (picture,) = pictures(1)
    return {model: Request(f"/classify?model={model}", {"content-type": "image/jpeg"}, picture) for model in MODELS}


def measure(rounds: int, seconds: float) -> dict[tuple[str, str, int], list[Load]]:
    """Return the loads of all rounds by request, server and number of clients."""
    loads: dict[tuple[str, str, int], list[Load]] = {}
    with tempfile.TemporaryDirectory(prefix="vestibule-balancer-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL's user reads its data in it
        one_process = Replica(folder, "one-process", None, SETTINGS)
        one_process.start()
        try:
            with cluster(folder, SETTINGS) as running, haproxy(folder, running.replicas) as balancer:
                ports = {
                    "one process": one_process.port,
                    "direct": running.replicas[0].port,
                    "HAProxy + 2": int(balancer.rsplit(":", 1)[1]),
                }
                for round_number in range(rounds + 1):  # the first round warms the servers up
                    for clients in CLIENTS:
                        for kind, request in requests().items():
                            for server, port in ports.items():
                                load = closed(port, request, clients, seconds, folder)
                                if round_number > 0:
                                    loads.setdefault((kind, server, clients), []).append(load)
        finally:
            one_process.stop()
    return loads


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="of each server, request and number of clients in a round")] = 5,
) -> None:
    """Print the medians over the rounds as JSON."""
    typer.echo(f"{machine()}; medians of {rounds} rounds of {seconds:g} s")
    for (kind, server, clients), each in measure(rounds, seconds).items():
        figures = {
            "per_s": round(median(load.per_s for load in each), 1),
            "p50_ms": round(median(load.p50_ms for load in each), 2),
            "p99_ms": round(median(load.p99_ms for load in each), 2),
            "failed": sum(load.failed for load in each),
        }
        typer.echo(json.dumps({"request": kind, "server": server, "clients": clients} | figures))


if __name__ == "__main__":
    typer.run(main)
