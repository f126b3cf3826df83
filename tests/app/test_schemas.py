"""Request schemas: lists are bounded and fail at their first invalid item; error responses are short."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, TypeAdapter

from app.errors import MOST_CHARACTERS, MOST_ERRORS
from app.faces.schemas import EmbeddingsRequest, PicturePair
from app.gallery.bulk.schemas import BulkLine
from app.gallery.curation.schemas import ClusterRequest
from app.gallery.schemas import SubjectInfo
from app.main import create_app
from app.middleware.request_body import MOST_CONTAINERS, MOST_KEYS, SMALL_BODY
from app.middleware.routing import RouteTable
from app.open_inference.schemas import InferenceRequest
from app.restoration.request_bodies import NoisyInput
from app.schemas import ImageInput
from app.settings import Settings
from tests.app.conftest import BASE_URL

# Schemas of bodies that endpoints read themselves, which FastAPI does not know.
SCHEMAS: tuple[type[BaseModel], ...] = (
    ImageInput,
    NoisyInput,
    PicturePair,
    EmbeddingsRequest,
    InferenceRequest,
    BulkLine,
    ClusterRequest,
)


@pytest.fixture(scope="module")
def service() -> FastAPI:
    """The service, not started."""
    return create_app(Settings())


def request_types(service: FastAPI) -> Iterator[tuple[str, Any]]:
    """Yield every type that requests are validated with, and where it is used."""
    for schema in SCHEMAS:
        yield schema.__name__, schema
    for route in RouteTable(service).all:
        dependant = getattr(route.route, "dependant", None)
        if dependant is None:
            continue
        for kind in ("path", "query", "header", "cookie", "body"):
            for field in getattr(dependant, f"{kind}_params"):
                yield f"{route.route.path} {field.name}", field._type_adapter


def lists(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every list in a pydantic core schema, with its place."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "set", "frozenset", "tuple", "generator"):
            yield place, schema
        for key, below in schema.items():
            yield from lists(below, f"{place}.{key}")
    elif isinstance(schema, list | tuple):
        for number, below in enumerate(schema):
            yield from lists(below, f"{place}.{number}")


def test_every_list_in_a_request_is_bounded_and_fails_at_its_first_invalid_item(service: FastAPI) -> None:
    seen = 0
    for where, type_ in request_types(service):
        adapter = type_ if isinstance(type_, TypeAdapter) else TypeAdapter(type_)
        for place, schema in lists(adapter.core_schema, where):
            seen += 1
            assert schema["type"] == "list", place
            assert "max_length" in schema, f"{place} has no max_length"
            assert schema.get("fail_fast"), f"{place} does not fail at its first bad item"
    assert seen > 15


def routes_with_parsed_json(service: FastAPI) -> Iterator[tuple[str, str]]:
    """Yield method and path of each route with a JSON body that FastAPI parses."""
    for route in RouteTable(service).all:
        dependant = getattr(route.route, "dependant", None)
        if dependant is not None and dependant.body_params:
            assert not route.reads_own_body
            (method,) = route.methods or ()
            path = str(route.route.path)
            for name in ("collection", "subject"):
                path = path.replace(f"{{{name}}}", "x")
            yield method, path


def test_the_endpoints_that_read_their_own_bodies(service: FastAPI) -> None:
    """Those that compute, which test_load_shedding.py lists, except those that generate images or store a sighting."""
    routes = RouteTable(service).all
    computing = {route.route.path for route in routes if route.counts_toward_capacity}
    own = {route.route.path for route in routes if route.reads_own_body}
    assert own == computing - {"/generate", "/generate/interpolate", "/v1/images/generations", "/sightings"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (json.dumps({f"{number:x}": 1 for number in range(19_000)}), 422),
        (json.dumps({"x" * 100_000: 1}), 422),
        (json.dumps({f"{number:x}": 1 for number in range(MOST_KEYS + 1)}), 413),
        ("[" + "[]," * MOST_CONTAINERS + "[]]", 413),
        ('{"a": "' + "x" * SMALL_BODY + '"}', 413),
    ],
    ids=["19,000 unknown keys", "a long unknown key", "more keys", "many lists", "too long"],
)
@pytest.mark.parametrize("chunked", [True, False])
def test_a_hostile_body_gets_a_short_response(service: FastAPI, body: str, status: int, *, chunked: bool) -> None:
    client = TestClient(service, base_url=BASE_URL, raise_server_exceptions=False)
    routes = list(routes_with_parsed_json(service))
    assert len(routes) >= 6
    for method, path in routes:
        content: Any = iter([body[:1000].encode(), body[1000:].encode()]) if chunked else body
        response = client.request(method, path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == status, (path, response.text[:300])
        assert len(response.content) < MOST_ERRORS * (2 * MOST_CHARACTERS + 100)
        assert len(response.json().get("errors", [])) <= MOST_ERRORS


def test_a_response_has_at_most_twenty_errors(service: FastAPI) -> None:
    client = TestClient(service, base_url=BASE_URL, raise_server_exceptions=False)
    query = "&".join(f"x{number}=1" for number in range(1000))
    response = client.post(f"/classify?{query}", content=b"", headers={"content-type": "image/png"})
    assert (response.status_code, len(response.json()["errors"])) == (422, MOST_ERRORS)


def test_subjects_of_older_versions_are_valid_responses() -> None:
    """`gallery import` once accepted longer names and more metadata than the API."""
    stored = {"name": "n" * 257, "metadata": {"a": "x" * 20_000}, "expires_at": None}
    info = SubjectInfo(id="a", created_at=datetime.now(UTC), faces=0, **stored)
    assert {name: getattr(info, name) for name in stored} == stored
