"""LitServe: batches decoded by a pool of threads in the worker, as its own image classifier example does.

It looks at annotations when it starts: `Request` and `Response` stand for JSON that is not validated.
"""

# Without `annotations` from `__future__`: LitServe could not read them.

import base64
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request, Response

from benchmarks.serving.peer_servers.classifier import CORES, MAX_BATCH, WAIT_S, Answer, Classifier, Decoder


class Served(litserve.LitAPI):  # type: ignore[misc]
    """JSON with a picture as base64 in, its classes out."""

    def __init__(self, folder: Path, runtime: str):
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S)
        self._folder, self._runtime = folder, runtime

    def setup(self, device: str) -> None:
        """In the worker's process."""
        self._pool, self._decode = ThreadPoolExecutor(CORES), Decoder(self._folder)
        self._classifier = Classifier(self._folder, self._runtime)

    def decode_request(self, request: Request) -> bytes:
        """Of one request; these are decoded one after another, so pictures are left to `batch`."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[Any]:
        """Pictures side by side."""
        return list(self._pool.map(self._decode, inputs))

    def predict(self, x: list[Any]) -> list[Answer]:
        """A batch."""
        return self._classifier(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """One for each request."""
        return output

    def encode_response(self, output: Answer) -> Response:
        """Of one request."""
        return {"classes": output}  # type: ignore[return-value]


def main(folder: str, port: str, runtime: str) -> None:
    """Serve until told to stop."""
    server = litserve.LitServer(Served(Path(folder), runtime), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
