"""Requests a second of several commits, interleaved in one run: a refactoring must not cost more than a few percent.

    python -m benchmarks.serving.commits a950764 HEAD

Each commit's service runs from a temporary worktree, with the same weights and this interpreter. While one is measured,
the others are stopped (SIGSTOP). The output has each commit's median over all rounds, and the median of each round's
ratio to the first commit. It needs wrk and an otherwise idle machine.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.serving.load_generator import closed
from benchmarks.serving.models import CASES, pictures
from benchmarks.serving.servers import HOST, Bench, Request, Running

BOUNDARY = "vestibule"


class CommitServer(Running):
    """The service of the commit that is checked out in `worktree`."""

    worktree: Path

    def _command(self) -> list[str]:
        module = "app.cli" if (self.worktree / "app" / "cli.py").exists() else "app.cli.main"
        return [sys.executable, "-P", "-m", module, "serve"]  # -P: modules of PYTHONPATH, not of this folder

    def _environment(self) -> dict[str, str]:
        path = f"{self.worktree}:{self.worktree / 'clients' / 'python'}"
        return super()._environment() | {"PYTHONPATH": path}


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """The commit, checked out into the folder; a folder that exists already is taken as it is."""
    if Path(commit).is_dir():
        yield Path(commit).resolve()
        return
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], check=True)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def request(image: bytes, *, multipart: bool) -> Request:
    """Return a request for /classify with the image as the body, or as a part of it."""
    if not multipart:
        return Request("/classify", {"Content-Type": "image/jpeg"}, image)
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg'
    body = head.encode() + b"\r\n\r\n" + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    return Request("/classify", {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, body)


def measure(
    servers: Sequence[Running], request: Request, clients: int, rounds: int, seconds: float, folder: Path
) -> list[list[float]]:
    """Return each server's requests/s in each round, in which the servers are measured in turn.

    Raises:
        ValueError: a request failed.
    """
    per_s: list[list[float]] = [[] for _ in servers]
    for number in range(rounds):
        for server, rates in list(zip(servers, per_s, strict=True))[:: 1 if number % 2 == 0 else -1]:
            server.resume()
            load = closed(server.port, request, clients, seconds, folder)
            server.pause()
            if load.failed:
                raise ValueError(f"{load.failed} of {load.requests} requests failed: {server.log}")
            rates.append(load.per_s)
    return per_s


def report(case: str, clients: int, commits: Sequence[str], per_s: Sequence[Sequence[float]]) -> str:
    """Return a line for each commit: its median requests/s, and the median ratio to the first commit."""
    lines = []
    for commit, rates in zip(commits, per_s, strict=True):
        ratio = statistics.median(rate / first for first, rate in zip(per_s[0], rates, strict=True))
        each = " ".join(f"{rate:.0f}" for rate in rates)
        lines.append(f"{case} c={clients} {commit}: {statistics.median(rates):.1f}/s, ratio {ratio:.3f} ({each})")
    return "\n".join(lines)


def main(
    commits: Annotated[list[str], typer.Argument(help="Commits, or folders with a checkout of one.")],
    case: Annotated[tuple[str, str], typer.Option(help=f"Two of {', '.join(CASES)}.")] = ("lenet", "resnet64"),
    clients: Annotated[tuple[int, int], typer.Option(help="Connections, each with one request at a time.")] = (1, 64),
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 4.0,
    multipart: Annotated[bool, typer.Option(help="Send images as multipart.")] = False,
) -> None:
    """Measure the commits; the others are compared with the first."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as trees:
        folder = Path(temporary)
        folders = [trees.enter_context(worktree(commit, folder / f"tree-{i}")) for i, commit in enumerate(commits)]
        for name in dict.fromkeys(case):
            image = next(pictures(CASES[name].dataset, "test", 1))[0]
            with ExitStack() as running:
                servers = []
                for i, tree in enumerate(folders):
                    (folder / str(i)).mkdir(exist_ok=True)
                    server = CommitServer("vestibule", Bench(folder / str(i)), CASES[name], free_port())
                    server.worktree = tree
                    running.callback(server.end)
                    server.start(image)
                    print(f"{name} {commits[i]}: {server.chosen()}", flush=True)
                    server.pause()
                    servers.append(server)
                for count in dict.fromkeys(clients):
                    per_s = measure(servers, request(image, multipart=multipart), count, rounds, seconds, folder)
                    print(report(name, count, commits, per_s), flush=True)


if __name__ == "__main__":
    typer.run(main)
