"""A bulk job and a re-embedding of a service that is killed are finished by the next one, without repetition."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.app.embedder import random_embedder
from tests.app.gallery.helpers import ZIP, portrait, subjects, submit, wait_for_job, wait_for_switch, wait_until, zipped
from tests.app.gallery.test_reembedding import REEMBED, TO_BETTER, other_embedder
from tests.app.server.test_process import serving
from tests.conftest import encode


@pytest.mark.slow
def test_background_work_continues_after_a_kill(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    random_embedder(weights)
    other_embedder(weights)
    environment = {
        "VESTIBULE_WEIGHTS": str(weights),
        "VESTIBULE_STATE": str(tmp_path / "state"),
        "VESTIBULE_DEFAULT_CLASSIFIER": "lenet5-mnist",
    }
    expected = {f"photo{number:02}": 1 for number in range(40)}
    with serving(**environment) as (process, address, _), httpx.Client(base_url=address, timeout=60) as client:
        client.put("/collections/doors", json={"keep_crops": True}).raise_for_status()
        job = submit(client, zipped({f"{name}/1.png": encode(portrait("grace")) for name in expected}), ZIP)
        url = f"/collections/doors/jobs/{job['id']}"
        wait_until(lambda: client.get(url).raise_for_status().json()["items"]["enrolled"] > 0)
        process.kill()
    with serving(**environment) as (process, address, _), httpx.Client(base_url=address, timeout=60) as client:
        assert wait_for_job(client, job, 240)["items"]["enrolled"] == len(expected)
        assert subjects(client) == expected
        client.post(REEMBED, json=TO_BETTER).raise_for_status()
        wait_until(lambda: client.get(REEMBED).raise_for_status().json()["done"] > 0)
        process.kill()
    with serving(**environment) as (_, address, _), httpx.Client(base_url=address, timeout=60) as client:
        wait_for_switch(client)
        assert client.get("/collections/doors").json()["embedder"] == "better"
        assert subjects(client) == expected
