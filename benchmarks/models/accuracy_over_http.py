"""Every picture of a test split through POST /classify of a running service: accuracy and ECE against the card.

`python -m benchmarks.models.accuracy_over_http lenet5-mnist --data mnist [--tta] [--url http://127.0.0.1:8000]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass

import httpx
import pyarrow.parquet as pq
import torch

from benchmarks.proxies import uses_proxies
from training.metrics.classification import expected_calibration_error
from training.recipe.config import datasets_folder


@dataclass(frozen=True)
class Asked:
    """One model of one service, with or without test-time augmentation."""

    url: str
    model: str
    tta: bool
    concurrency: int


def pictures(dataset: str) -> tuple[list[bytes], list[int]]:
    """The encoded pictures and labels, as they lie in the parquet."""
    rows = [
        row
        for path in sorted((datasets_folder() / dataset).glob("test*.parquet"))
        for row in pq.read_table(path, columns=["image", "label"]).to_pylist()
    ]
    return [row["image"]["bytes"] for row in rows], [row["label"] for row in rows]


async def classify_all(asked: Asked, data: list[bytes], classes: int) -> tuple[torch.Tensor, int]:
    """Class probabilities [N, classes], and how many requests failed; theirs are zeros."""
    query = f"model={asked.model}&top_k={classes}&tta={json.dumps(asked.tta)}"
    answers = torch.zeros(len(data), classes, dtype=torch.float64)
    failed = 0
    rows = iter(range(len(data)))

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal failed
        for row in rows:
            response = await client.post(f"{asked.url}/classify?{query}", content=data[row], headers=headers(data[row]))
            if not response.is_success:
                failed += 1
                continue
            for prediction in response.json()["data"][0]["predictions"]:
                answers[row, prediction["class_id"]] = prediction["confidence"]

    async with httpx.AsyncClient(timeout=60, trust_env=uses_proxies(asked.url)) as client:
        await asyncio.gather(*(work(client) for _ in range(asked.concurrency)))
    return answers, failed


def headers(data: bytes) -> dict[str, str]:
    """The picture's media type, by its first bytes."""
    return {"content-type": "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"}


def card_accuracy(asked: Asked, dataset: str) -> float:
    """What the card says of this test set."""
    url = f"{asked.url}/models/{asked.model}"
    metrics = httpx.get(url, trust_env=uses_proxies(url)).raise_for_status().json()["card"]["metrics"]
    name = "accuracy_tta" if asked.tta else "accuracy"
    return float(next(m["value"] for m in metrics if m["name"] == name and m["data"].startswith(f"{dataset} test")))


def main() -> None:
    """Run and report; exit 1 unless nothing failed and the card is right to 0.05 points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--concurrency", type=int, default=16)
    arguments = parser.parse_args()
    asked = Asked(arguments.url, arguments.model, arguments.tta, arguments.concurrency)
    data, labels = pictures(arguments.data)
    if not data:
        raise SystemExit(f"no test*.parquet in {datasets_folder() / arguments.data}: set VESTIBULE_DATASETS")
    truth = torch.tensor(labels)
    started = time.perf_counter()
    answers, failed = asyncio.run(classify_all(asked, data, len(set(labels))))
    seconds = time.perf_counter() - started
    accuracy = float((answers.argmax(dim=1) == truth).double().mean())
    said = card_accuracy(asked, arguments.data)
    ece = expected_calibration_error(answers, truth)
    print(
        f"{asked.model}: pictures {len(data)}, failed {failed}, accuracy {accuracy:.4f}, card {said:.4f}, ECE {ece:.4f}"
    )
    print(f"{len(data) / seconds:.0f} requests/s at concurrency {asked.concurrency}, client on the same machine")
    raise SystemExit(0 if failed == 0 and abs(accuracy - said) <= 0.0005 else 1)


if __name__ == "__main__":
    main()
