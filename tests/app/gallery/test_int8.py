"""Collections that allow vectors of a quantised embedder, beside collections that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.settings import PROJECT
from models import checkpoint
from models.quantisation import quantise_model
from models.runtime_selection import sample_inputs
from tests.app.conftest import started, until
from tests.app.embedder import random_embedder
from tests.app.gallery.helpers import candidate_ids, enrol, portrait, search, wait_for_switch

NAME = "mobilefacenet-triplet"
MODEL = f"/models/{NAME}"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    random_embedder(tmp_path)
    return tmp_path


def quantise(weights: Path, *, direction: float) -> None:
    """Quantise the embedder, whose vectors may differ from torch's by `direction`."""
    card = checkpoint.read_card(weights / NAME)
    checkpoint.write_card(
        weights / NAME,
        card.model_copy(update={"tolerance": card.tolerance.model_copy(update={"direction": direction})}),
    )
    inputs = sample_inputs(PROJECT / "examples", card.preprocess)
    inputs += [image.flip(-1) for image in inputs]
    quantise_model(weights / NAME, inputs, weights.parent / "cache", least_agreement=0.5)


def create(client: TestClient, name: str, **options: object) -> str:
    """Create the collection, and return its fingerprint."""
    response = client.put(f"/collections/{name}", json=options)
    assert response.status_code == 201, response.text
    assert response.json()["allow_int8"] == options.get("allow_int8", False)
    return str(response.json()["fingerprint"])


def test_only_collections_that_allow_it_have_vectors_of_the_quantised_network(weights: Path, tmp_path: Path) -> None:
    quantise(weights, direction=0)
    assert checkpoint.read_card(weights / NAME).has_int8_vectors
    with started(weights, state=tmp_path / "state", runtime="openvino-int8", probes=PROJECT / "examples") as client:
        exact, doors = create(client, "exact"), create(client, "doors", allow_int8=True)
        assert exact != doors
        until(lambda: client.get(MODEL).json()["choosing"] is False)
        detail = client.get(MODEL).json()
        assert detail["runtimes"] == {"": "torch-cpu-float32", "int8": "openvino-cpu-int8"}
        assert detail["runtime"] == "torch-cpu-float32"
        for name in ("exact", "doors"):
            enrol(client, "eileen", collection=name)
            enrol(client, "grace", collection=name)
            assert candidate_ids(search(client, portrait("eileen"), collection=name, fpir=0.5))[0] == "eileen"
        again = client.put("/collections/doors", json={"allow_int8": True, "embedder": NAME})
        assert (again.status_code, again.json()["fingerprint"]) == (200, doors)
        assert client.put("/collections/doors", json={}).status_code == 409
        assert client.put("/collections/doors", json={"allow_int8": 1}).status_code == 422


def test_the_fingerprint_is_the_same_within_the_tolerance(weights: Path, tmp_path: Path) -> None:
    quantise(weights, direction=1)
    card = checkpoint.read_card(weights / NAME)
    assert not card.has_int8_vectors
    assert card.int8 is not None
    assert card.int8.tolerance == card.tolerance
    with started(weights, state=tmp_path / "state", runtime="openvino-int8", probes=PROJECT / "examples") as client:
        assert create(client, "exact") == create(client, "doors", allow_int8=True)
        until(lambda: client.get(MODEL).json()["choosing"] is False)
        assert client.get(MODEL).json()["runtimes"] == {"": "openvino-cpu-int8"}


def test_a_collection_from_before_the_quantisation_is_searched_and_embedded_anew(weights: Path, tmp_path: Path) -> None:
    with started(weights, state=tmp_path / "state") as client:
        before = create(client, "doors", allow_int8=True, keep_crops=True)
        assert before == create(client, "exact")
        enrol(client, "eileen")
        quantise(weights, direction=0)
        assert client.post(f"{MODEL}/reload").json()["change"] == "reloaded"
        assert candidate_ids(search(client, portrait("eileen"), fpir=0.5)) == ["eileen"]
        again = client.put("/collections/doors", json={"allow_int8": True, "keep_crops": True, "embedder": NAME})
        assert (again.status_code, again.json()["fingerprint"]) == (200, before)
        assert client.post("/collections/exact/reembed", json={}).status_code == 409
        task = client.post("/collections/doors/reembed", json={})
        assert task.status_code == 202, task.text
        wait_for_switch(client)
        assert client.get("/collections/doors").json()["fingerprint"] == task.json()["fingerprint"] != before
        assert candidate_ids(search(client, portrait("eileen"), fpir=0.5)) == ["eileen"]
