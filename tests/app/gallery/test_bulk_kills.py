"""Bulk jobs of a service that is killed: the next process enrols the missing items, and none twice."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.app.embedder import random_embedder
from tests.app.face_pictures import grace_hopper
from tests.app.gallery.helpers import LINES, ZIP, lines, zipped
from tests.app.server.test_process import serving
from tests.conftest import encode


def progress(client: httpx.Client, job: str) -> tuple[str, int]:
    info = client.get(f"/collections/doors/jobs/{job}").raise_for_status().json()
    return info["state"], info["items"]["enrolled"]


@pytest.mark.slow
def test_a_job_survives_kills_and_enrols_each_face_once(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    random_embedder(weights)
    settings = {
        "VESTIBULE_WEIGHTS": str(weights),
        "VESTIBULE_STATE": str(tmp_path / "state"),
        "VESTIBULE_DEFAULT_CLASSIFIER": "lenet5-mnist",
    }
    image = encode(grace_hopper())
    vectors = np.random.default_rng(1).normal(size=(8000, 32)).tolist()
    jobs: list[str] = []
    sizes = (24, len(vectors))
    for kill in range(4):
        with serving(**settings) as (process, address, _), httpx.Client(base_url=address, timeout=60) as client:
            if not jobs:
                collection = client.put("/collections/doors", json={}).raise_for_status().json()
                photos = zipped({f"photo{n:02}/1.png": image for n in range(sizes[0])})
                faces = lines(*({"subject_id": f"vector{n:05}", "vector": v} for n, v in enumerate(vectors)))
                params = {"fingerprint": collection["fingerprint"]}
                for data, headers, query in ((photos, ZIP, {}), (faces, LINES, params)):
                    response = client.post("/collections/doors/faces:bulk", content=data, headers=headers, params=query)
                    jobs.append(response.raise_for_status().json()["id"])
            before, last = [progress(client, job) for job in jobs], kill == 3
            deadline = time.monotonic() + 240
            while True:
                now = [progress(client, job) for job in jobs]
                if all(state == "done" for state, _ in now) or (not last and now != before):
                    break
                assert time.monotonic() < deadline, now
                time.sleep(0.1)
            if last:
                assert now == [("done", count) for count in sizes]
                detail = client.get("/collections/doors").json()
                assert (detail["subjects"], detail["faces"]) == (sum(sizes), sum(sizes))
                for name in ("photo23", "vector07999"):
                    assert client.get(f"/collections/doors/subjects/{name}").json()["faces"] == 1
            process.kill()
