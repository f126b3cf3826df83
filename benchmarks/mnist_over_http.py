"""Every MNIST test picture through POST /classify of a running service: accuracy against the card, failures, speed.

`python -m benchmarks.mnist_over_http [--url http://127.0.0.1:8000] [--concurrency 16]`
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import httpx
import pyarrow.parquet as pq

from training.config import datasets_folder

MODEL = "lenet5-mnist"


def pictures() -> tuple[list[bytes], list[int]]:
    """The encoded pictures and labels, as they lie in the parquet."""
    rows = [
        row
        for path in sorted(Path(datasets_folder() / "mnist").glob("test*.parquet"))
        for row in pq.read_table(path, columns=["image", "label"]).to_pylist()
    ]
    return [row["image"]["bytes"] for row in rows], [row["label"] for row in rows]


async def classify_all(url: str, data: list[bytes], concurrency: int) -> list[int | None]:
    """The first class of each picture; None where the request failed."""
    answers: list[int | None] = [None] * len(data)
    rows = iter(range(len(data)))

    async def work(client: httpx.AsyncClient) -> None:
        for row in rows:
            response = await client.post(
                f"{url}/classify?model={MODEL}&top_k=1", content=data[row], headers={"content-type": "image/png"}
            )
            if response.is_success:
                answers[row] = response.json()["data"][0]["predictions"][0]["class_id"]

    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(work(client) for _ in range(concurrency)))
    return answers


def card_accuracy(url: str) -> float:
    """What the card says of this test set."""
    metrics = httpx.get(f"{url}/models/{MODEL}").raise_for_status().json()["card"]["metrics"]
    return float(next(m["value"] for m in metrics if m["name"] == "accuracy" and "test" in m["data"]))


def main() -> None:
    """Run and report; exit 1 unless nothing failed and the card is right to 0.05 points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--concurrency", type=int, default=16)
    arguments = parser.parse_args()
    data, labels = pictures()
    if not data:
        raise SystemExit(f"no MNIST under {datasets_folder()}: set VESTIBULE_DATASETS")
    started = time.perf_counter()
    answers = asyncio.run(classify_all(arguments.url, data, arguments.concurrency))
    seconds = time.perf_counter() - started
    failed = answers.count(None)
    accuracy = sum(a == b for a, b in zip(answers, labels, strict=True)) / len(labels)
    said = card_accuracy(arguments.url)
    print(f"pictures {len(data)}, failed {failed}, accuracy {accuracy:.4f}, card {said:.4f}")
    print(f"{len(data) / seconds:.0f} requests/s at concurrency {arguments.concurrency}, client on the same machine")
    raise SystemExit(0 if failed == 0 and abs(accuracy - said) <= 0.0005 and accuracy >= 0.99 else 1)


if __name__ == "__main__":
    main()
