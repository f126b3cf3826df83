"""The client against the service's OpenAPI document: every call is documented, and every route has a call."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from app.main import create_app
from app.settings import PROJECT, Settings
from vestibule_client import AsyncClient, Client, File, alert_calls, answers, calls, gallery_calls, sighting_calls
from vestibule_client.call import Call
from vestibule_client.errors import ProblemDocument

Schema = dict[str, Any]

# Routes without a call: Prometheus' page, the event stream (`Client.alert_events`) and other clients' protocols. The
# console is not in the document.
LEFT_OUT = {"/metrics", "/alerts/stream"}
LEFT_OUT_BELOW = ("/v1/", "/v2")
# Parameters that no call has; for values of `format` and `sequence` there are separate calls.
NOT_SENT = {
    ("/embed", "encoding_format"),
    ("/generate", "if-none-match"),
    ("/generate/interpolate", "if-none-match"),
}

PICTURE = b"a picture"
# The argument for each parameter by name, or by "call.parameter".
ARGUMENTS: dict[str, Any] = {
    "pictures": [PICTURE, PICTURE],
    "picture": PICTURE,
    "source": PICTURE,
    "target": PICTURE,
    "reference": [PICTURE, PICTURE],
    "archive": PICTURE,
    "lines": [{"subject_id": "eileen", "image": PICTURE}],
    "latents": [[0.5]],
    "label": "7",
    "model": "one",
    "embedder": "one",
    "fingerprint": "one:1",
    "format": "webp",
    "fusion": "mean",
    "where": {"site": "north"},
    "metadata": {"site": "north"},
    "expires_at": datetime(2030, 1, 1, tzinfo=UTC),
    "started_at": datetime(2030, 1, 1, tzinfo=UTC),
    "ended_at": datetime(2030, 1, 1, tzinfo=UTC),
    "since": datetime(2030, 1, 1, tzinfo=UTC),
    "until": datetime(2030, 1, 1, tzinfo=UTC),
    "crop": PICTURE,
    "verify_embeddings.source": [1.0],
    "targets": [[1.0]],
    "trigger": "match",
    "cameras": ["north"],
    "schedule": {"time_zone": "UTC", "periods": [{"weekdays": ["mon"], "start": "22:00", "end": "06:00"}]},
    "create_alert_rule.targets": [{"kind": "webhook", "url": "https://example.org"}],
    "replace_alert_rule.targets": [{"kind": "mqtt", "url": "mqtts://example.org", "topic": "doors"}],
    "state": "dead",
    "embeddings": [[1.0]],
    "search_faces.faces": ["a1"],
    "move_faces.faces": ["a1"],
    "absorbed": ["eileen"],
}
BY_TYPE = {
    "str": "name",
    "str | None": "name",
    "bool": True,
    "bool | None": True,
    "float": 0.5,
    "float | None": 0.5,
    "int": 3,
    "int | None": 3,
}


def builders() -> Iterator[tuple[str, Callable[..., Call[Any]]]]:
    for module in (calls, gallery_calls, sighting_calls, alert_calls):
        for name, function in vars(module).items():
            if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_"):
                yield name, function


def sample(name: str, build: Callable[..., Call[Any]]) -> Call[Any]:
    """A call with all arguments."""
    arguments = {}
    for parameter in inspect.signature(build).parameters.values():
        qualified = f"{name}.{parameter.name}"
        key = qualified if qualified in ARGUMENTS else parameter.name
        arguments[parameter.name] = ARGUMENTS[key] if key in ARGUMENTS else BY_TYPE[parameter.annotation]
    return build(**arguments)


CALLS = {name: sample(name, build) for name, build in builders()}


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    document = create_app(Settings(state=tmp_path_factory.mktemp("state"))).openapi()
    return dict(resolved(document, document["components"]["schemas"]))


@pytest.fixture
def document(documented: Schema) -> Schema:
    """A copy that the test may change."""
    return deepcopy(documented)


def resolved(node: Any, definitions: Schema) -> Any:
    """The schema with its references replaced by the schemas that they name."""
    if isinstance(node, list):
        return [resolved(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return resolved(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {key: resolved(value, definitions) for key, value in node.items() if key != "$defs"}


def schema_of(response: type[BaseModel]) -> Schema:
    schema = response.model_json_schema(by_alias=True)
    return dict(resolved(schema, schema.get("$defs", {})))


def options(schema: Schema) -> list[Schema]:
    """The schemas of which a value has one."""
    nested = schema.get("anyOf") or schema.get("oneOf")
    return [option for item in nested for option in options(item)] if nested else [schema]


def disagreements(served: Schema, read: Schema, where: str) -> list[str]:
    """The reasons why the second schema may not read all values of the first."""
    reasons = []
    for schema in options(served):
        kind = schema.get("type")
        readers = [
            own
            for own in options(read)
            if own.get("type") in (kind, None) or (kind, own.get("type")) == ("integer", "number")
        ]
        results = [disagreements_of_one_type(schema, own, where) for own in readers]
        kinds = [own.get("type") for own in options(read)]
        fewest: list[str] = min(results or [[f"{where}: may be {kind}, and is read as {kinds}"]], key=len)
        reasons += fewest
    return reasons


def disagreements_of_one_type(served: Schema, read: Schema, where: str) -> list[str]:
    reasons = [
        f"{where}: {field} is {served.get(field)}, and is read as {read.get(field)}"
        for field in ("minItems", "maxItems", "format")
        if served.get(field) != read.get(field) and (field in read or field == "format")
    ]
    pairs = zip(served.get("prefixItems", ()), read.get("prefixItems", ()), strict=False)
    for number, (first, second) in enumerate(pairs):
        reasons += disagreements(first, second, f"{where}[{number}]")
    if "items" in read and "items" in served:
        reasons += disagreements(served["items"], read["items"], f"{where}[]")
    for name, schema in read.get("properties", {}).items():
        if name not in served.get("properties", {}):
            reasons.append(f"{where}.{name}: is not in the response")
        elif name in read.get("required", ()) and name not in served.get("required", ()):
            reasons.append(f"{where}.{name}: may be missing")
        else:
            reasons += disagreements(served["properties"][name], schema, f"{where}.{name}")
    return reasons


def success(operation: Schema) -> Schema:
    """The content of the successful response, which is the same for all 2xx statuses."""
    contents: list[Schema] = [
        response["content"] for status, response in operation["responses"].items() if status.startswith("2")
    ]
    assert contents
    assert all(content == contents[0] for content in contents)
    return contents[0]


@pytest.mark.parametrize("name", CALLS)
def test_request_is_as_documented(name: str, document: Schema) -> None:
    call = CALLS[name]
    operation = document["paths"][call.path][call.method.lower()]
    parameters = operation.get("parameters", [])
    assert set(call.names) == {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
    queried = {parameter["name"]: parameter["required"] for parameter in parameters if parameter["in"] == "query"}
    assert set(call.query) <= set(queried)
    assert {name for name, required in queried.items() if required} <= set(call.query)
    body = operation.get("requestBody")
    if body is None:
        assert (call.files, call.json, call.content) == ((), None, None)
    elif call.files:
        form = body["content"]["multipart/form-data"]["schema"]
        assert set(form["required"]) <= {part for part, _ in call.files} <= set(form["properties"])
    elif call.json is not None:
        form = body["content"]["application/json"]["schema"]
        assert set(form.get("required", ())) <= set(call.json) <= set(form["properties"])
    else:
        assert call.content_type in body["content"]


@pytest.mark.parametrize("name", CALLS)
def test_response_is_as_documented(name: str, document: Schema) -> None:
    call = CALLS[name]
    content = success(document["paths"][call.path][call.method.lower()])
    if call.answer is File:
        assert any(media_type.startswith("image/") for media_type in content)
        return
    served = content["application/json"]["schema"]
    if call.path == "/classify":  # has one of two responses, by a parameter
        items = served["properties"]["data"]["items"]
        left_out = "Classified" if call.query.get("sequence") else "DigitString"
        items["anyOf"] = [item for item in items["anyOf"] if item["title"] != left_out]
    if len(options(served)) > 1:  # has one of two responses, by a parameter
        (served,) = [
            option for option in options(served) if option["title"].startswith("Passage") == ("passage" in call.query)
        ]
    if call.path == "/embed":  # base64 is never requested
        embedding = options(served["properties"]["data"]["items"])[0]["properties"]["embedding"]
        embedding["anyOf"] = embedding["anyOf"][:1]
    assert disagreements(served, schema_of(call.answer), call.path) == []


def test_problem_is_as_documented(document: Schema) -> None:
    assert disagreements(document["components"]["schemas"]["Problem"], schema_of(ProblemDocument), "Problem") == []


def test_every_route_and_parameter_has_a_call(document: Schema) -> None:
    called = {(call.path, call.method.lower()) for call in CALLS.values()}
    sent = {(call.path, key) for call in CALLS.values() for key in (*call.query, *call.headers, *(call.json or ()))}
    for path, operations in document["paths"].items():
        if path in LEFT_OUT or path.startswith(LEFT_OUT_BELOW):
            continue
        for method, operation in operations.items():
            assert (path, method) in called
            for parameter in operation.get("parameters", []):
                if parameter["in"] != "path":
                    assert ((path, parameter["name"]) in sent) != ((path, parameter["name"]) in NOT_SENT)


def test_comparison_finds_disagreements() -> None:
    class Served(BaseModel):
        number: int
        texts: list[str]
        box: tuple[int, int]
        maybe: str | None
        when: datetime
        late: str = ""

    class Fine(BaseModel):
        number: float
        texts: list[str]
        box: tuple[float, float]

    assert disagreements(schema_of(Served), schema_of(Fine), "") == []
    for name, kind, why in (
        ("other", int, ".other: is not in the response"),
        ("late", str, ".late: may be missing"),
        ("number", str, ".number: may be integer, and is read as ['string']"),
        ("texts", list[int], ".texts[]: may be string, and is read as ['integer']"),
        ("box", tuple[int, int, int], ".box: minItems is 2, and is read as 3"),
        ("box", tuple[int, str], ".box[1]: may be integer, and is read as ['string']"),
        ("maybe", str, ".maybe: may be null, and is read as ['string']"),
        ("when", str, ".when: format is date-time, and is read as None"),
    ):
        read = type("Read", (BaseModel,), {"__annotations__": {name: kind}})
        assert why in disagreements(schema_of(Served), schema_of(read), "")


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_every_call_is_a_method_of_both_clients(client: type) -> None:
    for name, build in builders():
        method = getattr(client, name)
        assert method.__doc__ == build.__doc__
        assert list(inspect.signature(method).parameters) == ["self", *inspect.signature(build).parameters]


def test_responses_ignore_unknown_fields() -> None:
    models: list[type[BaseModel]] = [
        value
        for module in (answers, gallery_calls, sighting_calls, alert_calls)
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, answers.Answer)
    ]
    assert len(models) > 30
    assert all(model.model_config.get("extra") == "ignore" for model in models)
    assert answers.Health.model_validate({"status": "sleepy", "mood": "fine"}).status == "sleepy"


def test_dependencies_are_httpx_and_pydantic() -> None:
    project = tomllib.loads((PROJECT / "clients" / "python" / "pyproject.toml").read_text())["project"]
    assert [requirement.partition(">")[0] for requirement in project["dependencies"]] == ["httpx", "pydantic"]
