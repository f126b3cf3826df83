"""mosec: a stage of processes that decode, one for each core, and a stage of one process that runs batches."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from mosec import Server, Worker

from benchmarks.serving.peer_servers.classifier import (
    AT_MOST,
    CORES,
    FOLDER,
    MAX_BATCH,
    RUNTIME,
    WAIT_S,
    Answer,
    Classifier,
    Decoder,
)

LIMIT_S = 30  # what a request may take; by default 3 s


class Decode(Worker):  # type: ignore[misc]
    """The bytes of a request's body -> a picture as an array."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._decode = Decoder(Path(os.environ[FOLDER]))

    def deserialize(self, data: bytes) -> bytes:
        """The body as it is."""
        return data

    def forward(self, data: bytes) -> Any:
        """One picture at a time."""
        return self._decode(data).numpy()


class Classify(Worker):  # type: ignore[misc]
    """Arrays of pictures -> their classes."""

    def __init__(self) -> None:
        self._classifier = Classifier(Path(os.environ[FOLDER]), os.environ[RUNTIME])

    def forward(self, data: list[Any]) -> list[Answer]:
        """A batch."""
        return self._classifier([torch.from_numpy(picture) for picture in data])


def main(folder: str, port: str, runtime: str) -> None:
    """Serve until told to stop."""
    os.environ |= {FOLDER: folder, RUNTIME: runtime}
    limits = ["--timeout", str(1000 * LIMIT_S), "--capacity", str(AT_MOST)]  # over it: 429
    sys.argv[1:] = ["--port", port, *limits, "--log-level", "warning"]
    server = Server()
    server.append_worker(Decode, num=CORES)
    server.append_worker(Classify, num=1, max_batch_size=MAX_BATCH, max_wait_time=round(1000 * WAIT_S))
    server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
