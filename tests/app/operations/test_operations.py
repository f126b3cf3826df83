"""Probes, metrics, model cards, the documentation page, and fuzzing by the OpenAPI document."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, settings
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from app.main import create_app
from app.settings import PROJECT, Settings
from tests.app import bad_inputs
from tests.app.conftest import BASE_URL
from tests.app.server.test_process import serving


def document_without_security() -> dict[str, Any]:
    """The OpenAPI document without key requirements, which test_authentication.py tests."""
    document = create_app(Settings()).openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            operation.pop("security", None)
    return document


schema = schemathesis.openapi.from_dict(document_without_security())


@schemathesis.serializer("application/zip", "application/x-ndjson")
def unchanged(_: Any, value: Any) -> Any:
    """Serialise bodies of bulk jobs, whose media types schemathesis does not support."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a service in another process: in this one each call would start an event loop."""
    with serving() as (_, url, _):
        yield url


def test_probes(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "live", "models": {}, "reasons": []}
    ready = client.get("/health/ready").json()
    assert ready["status"] == "ready"
    assert {"efficientnet-lite0", "centerface", "mobilefacenet-triplet"} <= ready["models"].keys()


def test_not_ready_before_the_weights_are_loaded() -> None:
    client = TestClient(create_app(Settings()), base_url=BASE_URL)  # without `with`, the lifespan does not run
    response = client.get("/health/ready")
    assert (response.status_code, response.json()["type"]) == (503, "urn:vestibule:problem:not-ready")
    assert client.get("/health/live").status_code == 200


def test_damaged_face_models_are_reported_and_other_models_serve(tmp_path: Path) -> None:
    for name in ("lenet5-mnist", "centerface"):
        (tmp_path / name).symlink_to(PROJECT / "weights" / name)
    settings = Settings(weights=tmp_path, default_classifier="lenet5-mnist")
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        assert client.get("/health/ready").json()["models"].keys() == {"lenet5-mnist", "centerface"}
    shutil.copytree(PROJECT / "weights" / "mobilefacenet-triplet", tmp_path / "mobilefacenet-triplet")
    (tmp_path / "mobilefacenet-triplet" / "model.safetensors").write_bytes(b"not weights")
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        response = client.get("/health/ready")
        assert (response.status_code, response.json()["detail"]) == (503, "not loaded: mobilefacenet-triplet")
        assert client.post("/classify", content=bad_inputs.coffee(), headers=bad_inputs.JPEG).status_code == 200


def test_models_and_their_cards(client: TestClient) -> None:
    listed = {row["name"]: row for row in client.get("/models").json()["data"]}
    assert {"efficientnet-lite0", "lenet5-mnist"} <= listed.keys()
    assert listed["efficientnet-lite0"]["default"]
    for name, row in listed.items():
        detail = client.get(f"/models/{name}").json()
        assert detail["version"] == row["version"] == detail["card"]["sha256"][:12]
        assert detail["card"]["license"]
        assert len(detail["card"]["classes"]) == row["classes"]


def test_metrics(client: TestClient) -> None:
    def value(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(client.get("/metrics").text)
        samples = [s for family in families for s in family.samples if s.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    def counts() -> tuple[float, float]:
        requests = value("vestibule_requests_total", route="/classify", method="POST", status="200")
        return requests, value("vestibule_batch_size_sum", model="efficientnet-lite0")

    before = counts()
    client.post("/classify", content=bad_inputs.coffee(), headers=bad_inputs.JPEG)
    client.get("/unknown-path")
    assert counts() == (before[0] + 1, before[1] + 1)
    assert value("vestibule_requests_in_flight") == 0
    assert "unknown-path" not in client.get("/metrics").text


@schema.parametrize()
@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:schemathesis")
# Alternative media types of zip and NDJSON.
@pytest.mark.filterwarnings("ignore:Skipped test cases with unsupported payload media types")
def test_responses_comply_with_the_openapi_document(address: str, case: schemathesis.Case[Any]) -> None:
    response = case.call(base_url=address)
    assert response.status_code < 500 or response.status_code == 503
    # A schema cannot express that a string of bytes is a valid image.
    excluded: list[Any] = [positive_data_acceptance]
    if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        excluded.append(negative_data_rejection)  # the check does not accept 413 for a long list
    case.validate_response(response, excluded_checks=excluded)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:schemathesis")
def test_existing_collection_complies_with_the_openapi_document(address: str) -> None:
    case = schema["/collections/{collection}"]["PUT"].Case(path_parameters={"collection": "there"}, body={})
    assert [case.call_and_validate(base_url=address).status_code for _ in range(2)] == [201, 200]
