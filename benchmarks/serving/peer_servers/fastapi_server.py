"""FastAPI as its tutorial has it: every request for itself, in the framework's pool of threads."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from benchmarks.serving.peer_servers.classifier import Answer, Classifier, Decoder


def main(folder: str, port: str, runtime: str) -> None:
    """Serve until told to stop."""
    decode, classifier = Decoder(Path(folder)), Classifier(Path(folder), runtime)
    app = FastAPI()

    def answer(data: bytes) -> Answer:
        return classifier([decode(data)])[0]

    @app.post("/classify")
    async def classify(request: Request) -> Answer:
        return await run_in_threadpool(answer, await request.body())

    uvicorn.run(app, port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
