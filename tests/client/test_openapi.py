"""The client against the service's OpenAPI document: every call is documented, and every route has a call."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from app.main import create_app
from app.settings import PROJECT, Settings
from vestibule_client import AsyncClient, Client, File, answers, calls, gallery_calls
from vestibule_client.call import Call
from vestibule_client.errors import ProblemDocument

Schema = dict[str, Any]

# Routes without a call: Prometheus' page and other clients' protocols. The console is not in the document.
LEFT_OUT = {"/metrics"}
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
    "verify_embeddings.source": [1.0],
    "targets": [[1.0]],
}
BY_TYPE = {
    "str": "name",
    "str | None": "name",
    "bool": True,
    "float": 0.5,
    "float | None": 0.5,
    "int": 3,
    "int | None": 3,
}


def builders() -> Iterator[tuple[str, Callable[..., Call[Any]]]]:
    for module in (calls, gallery_calls):
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
def document(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    document: Schema = create_app(Settings(state=tmp_path_factory.mktemp("state"))).openapi()
    return document


class Reader:
    """Resolves the references of a schema, and lists the types of values that it allows."""

    def __init__(self, definitions: Schema):
        self._definitions = definitions

    def kinds(self, schema: Schema) -> Iterator[tuple[str, Schema]]:
        """Each JSON type that a value may have, with its schema."""
        if "$ref" in schema:
            yield from self.kinds(self._definitions[schema["$ref"].rpartition("/")[2]])
        elif "anyOf" in schema or "oneOf" in schema:
            for option in schema.get("anyOf") or schema["oneOf"]:
                yield from self.kinds(option)
        elif "type" in schema:
            yield schema["type"], schema
        else:
            yield "any", schema


def disagreements(theirs: Reader, served: Schema, ours: Reader, read: Schema, where: str) -> Iterator[str]:
    """The reasons why the second schema may not read all values of the first."""
    readable = list(ours.kinds(read))
    for kind, schema in theirs.kinds(served):
        fitting = [own for name, own in readable if name in (kind, "any") or (kind, name) == ("integer", "number")]
        if not fitting:
            yield f"{where}: may be {kind}, and is read as {[name for name, _ in readable]}"
        elif kind == "array":
            yield from least(disagreements_of_arrays(theirs, schema, ours, own, where) for own in fitting)
        elif kind == "object":
            yield from least(disagreements_of_objects(theirs, schema, ours, own, where) for own in fitting)
        elif schema.get("format") != fitting[0].get("format"):
            yield f"{where}: has the format {schema.get('format')}, and is read as {fitting[0].get('format')}"


def least(options: Iterator[Iterator[str]]) -> list[str]:
    """The disagreements of the option with the fewest."""
    return min((list(option) for option in options), key=len)


def disagreements_of_arrays(theirs: Reader, served: Schema, ours: Reader, read: Schema, where: str) -> Iterator[str]:
    for field in ("minItems", "maxItems"):
        if field in read and read[field] != served.get(field):
            yield f"{where}: {field} is {served.get(field)}, and is read as {read[field]}"
    firsts, seconds = served.get("prefixItems", ()), read.get("prefixItems", ())
    for number, (first, second) in enumerate(zip(firsts, seconds, strict=False)):
        yield from disagreements(theirs, first, ours, second, f"{where}[{number}]")
    if "items" in read and "items" in served:
        yield from disagreements(theirs, served["items"], ours, read["items"], f"{where}[]")


def disagreements_of_objects(theirs: Reader, served: Schema, ours: Reader, read: Schema, where: str) -> Iterator[str]:
    properties = served.get("properties", {})
    for name, schema in read.get("properties", {}).items():
        if name not in properties:
            yield f"{where}.{name}: is not in the response"
        elif name in read.get("required", ()) and name not in served.get("required", ()):
            yield f"{where}.{name}: may be missing"
        else:
            yield from disagreements(theirs, properties[name], ours, schema, f"{where}.{name}")


def schema_of(response: type[BaseModel]) -> tuple[Reader, Schema]:
    read = response.model_json_schema(by_alias=True)
    return Reader(read.get("$defs", {})), read


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
        reader = Reader(document["components"]["schemas"])
        ((_, form),) = reader.kinds(body["content"]["application/json"]["schema"])
        assert set(form.get("required", ())) <= set(call.json) <= set(form["properties"])
    else:
        assert call.content_type in body["content"]


@pytest.mark.parametrize("name", CALLS)
def test_response_is_as_documented(name: str, document: Schema) -> None:
    call = CALLS[name]
    content = success(document["paths"][call.path][call.method.lower()])
    if call.answer is File:
        assert "image/png" in content
        return
    theirs = Reader(document["components"]["schemas"])
    served = content["application/json"]["schema"]
    if call.path == "/classify":  # has one of two responses, by a parameter
        ((_, served),) = theirs.kinds(served)
        other = "Classified" if call.query.get("sequence") else "DigitString"
        items = [item for item in served["properties"]["data"]["items"]["anyOf"] if not item["$ref"].endswith(other)]
        served = {
            **served,
            "properties": {**served["properties"], "data": {"type": "array", "items": {"anyOf": items}}},
        }
    if call.path == "/embed":  # base64 is never requested
        embedding = theirs._definitions["Embedding"]["properties"]["embedding"]
        theirs._definitions["Embedding"]["properties"]["embedding"] = embedding.get("anyOf", [embedding])[0]
    assert list(disagreements(theirs, served, *schema_of(call.answer), call.path)) == []


def test_problem_is_as_documented(document: Schema) -> None:
    theirs = Reader(document["components"]["schemas"])
    served = document["components"]["schemas"]["Problem"]
    assert list(disagreements(theirs, served, *schema_of(ProblemDocument), "Problem")) == []


def test_every_route_and_parameter_has_a_call(document: Schema) -> None:
    called = {(call.path, call.method.lower()) for call in CALLS.values()}
    sent = {(call.path, key) for call in CALLS.values() for key in (*call.query, *(call.json or ()))}
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

    def reasons(read: type[BaseModel]) -> list[str]:
        return list(disagreements(*schema_of(Served), *schema_of(read), ""))

    assert reasons(Fine) == []
    for name, kind, why in (
        ("other", int, ".other: is not in the response"),
        ("late", str, ".late: may be missing"),
        ("number", str, ".number: may be integer, and is read as ['string']"),
        ("texts", list[int], ".texts[]: may be string, and is read as ['integer']"),
        ("box", tuple[int, int, int], ".box: minItems is 2, and is read as 3"),
        ("box", tuple[int, str], ".box[1]: may be integer, and is read as ['string']"),
        ("maybe", str, ".maybe: may be null, and is read as ['string']"),
        ("when", str, ".when: has the format date-time, and is read as None"),
    ):
        read = type("Read", (BaseModel,), {"__annotations__": {name: kind}})
        assert why in reasons(read)


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_every_call_is_a_method_of_both_clients(client: type) -> None:
    for name, build in builders():
        method = getattr(client, name)
        assert method.__doc__ == build.__doc__
        assert list(inspect.signature(method).parameters) == ["self", *inspect.signature(build).parameters]


def test_responses_ignore_unknown_fields() -> None:
    models: list[type[BaseModel]] = [
        value
        for module in (answers, gallery_calls)
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, answers.Answer)
    ]
    assert len(models) > 30
    assert all(model.model_config.get("extra") == "ignore" for model in models)
    assert answers.Health.model_validate({"status": "sleepy", "mood": "fine"}).status == "sleepy"


def test_dependencies_are_httpx_and_pydantic() -> None:
    project = tomllib.loads((PROJECT / "clients" / "python" / "pyproject.toml").read_text())["project"]
    assert [requirement.partition(">")[0] for requirement in project["dependencies"]] == ["httpx", "pydantic"]
