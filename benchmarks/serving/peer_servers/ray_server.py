"""Ray Serve: one deployment, which decodes each request in a thread and batches what is decoded."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve

from benchmarks.serving.peer_servers.classifier import AT_MOST, MAX_BATCH, WAIT_S, Answer, Classifier, Decoder

AT_ONCE = 4 * MAX_BATCH  # requests that a replica has in hand; by default 5, which is less than a batch


@serve.deployment(max_ongoing_requests=AT_ONCE, max_queued_requests=AT_MOST - AT_ONCE)  # over it: 503
class Classify:
    """The only replica."""

    def __init__(self, folder: str, runtime: str):
        self._decode, self._classifier = Decoder(Path(folder)), Classifier(Path(folder), runtime)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)  # type: ignore[untyped-decorator]
    async def batch(self, pictures: list[Any]) -> list[Answer]:
        """A batch, off the loop that takes requests in."""
        return await asyncio.to_thread(self._classifier, pictures)

    async def __call__(self, request: Any) -> Answer:
        """One picture, as the body's bytes."""
        picture = await asyncio.to_thread(self._decode, await request.body())
        answer: Answer = await self.batch(picture)
        return answer


def main(folder: str, port: str, runtime: str) -> None:
    """Serve until told to stop."""
    ray.init(include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(Classify.bind(folder, runtime))  # type: ignore[attr-defined]
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
