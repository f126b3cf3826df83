"""BentoML: one service whose batches adapt to the load, decoded by a pool of threads in the worker.

A service of its own that decodes, as its documentation composes them, costs another HTTP request for each picture.
"""

from __future__ import annotations

import base64
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml

from benchmarks.serving.peer_servers.classifier import AT_MOST, CORES, FOLDER, MAX_BATCH, RUNTIME, Classifier, Decoder

LIMIT_S = 30


@bentoml.service(workers=1, traffic={"timeout": LIMIT_S, "max_concurrency": AT_MOST})  # over it: 429
class Classify:
    """Pictures as base64 in JSON."""

    def __init__(self) -> None:
        folder = Path(os.environ[FOLDER])
        self._pool, self._decode = ThreadPoolExecutor(CORES), Decoder(folder)
        self._classifier = Classifier(folder, os.environ[RUNTIME])

    def _decoded(self, picture: str) -> Any:
        return self._decode(base64.b64decode(picture))

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000 * LIMIT_S
    )
    def classify(self, pictures: list[str]) -> list[Any]:
        """Those of a batch."""
        return self._classifier(list(self._pool.map(self._decoded, pictures)))


def main(folder: str, port: str, runtime: str) -> None:
    """Become its command, which serves until told to stop."""
    os.environ |= {FOLDER: folder, RUNTIME: runtime}
    service = "benchmarks.serving.peer_servers.bentoml_server:Classify"
    about = ["--host", "127.0.0.1", "--port", port, "--working-dir", "."]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", service, *about])


if __name__ == "__main__":
    main(*sys.argv[1:])
