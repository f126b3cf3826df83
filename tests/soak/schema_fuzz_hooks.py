"""Hooks of test_schema_fuzz.py: schemathesis gets real values in place of random ones, and all cases are counted.

Random bytes are no image and random names no collection: without these hooks nearly every case would end at the
first check. So a share of the valid parts of a case is made real: names of models and collections, ids that the
service gave before, images, vectors, tensors. What is invalid on purpose stays as it is.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import os
import random
import zipfile
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import schemathesis
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from schemathesis import cli
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.parameters import ParameterLocation
from schemathesis.engine import Status, events
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.openapi.checks import UseAfterFree

from app.gallery.schemas import Key
from benchmarks.proxies import uses_proxies
from tests.conftest import encode, photo
from tests.soak.test_schema_fuzz import KEY, REPORT, URL

SHARE = 0.7  # of what may be made real
DROPPED = 0.1  # and of collections, when they are to be erased
KEPT = 200  # ids of each kind, the latest
SIDE, MOST_NUMBERS = 32, 20_000  # of a tensor: what stands for any size, and how many numbers are sent
PEOPLE, THINGS = ("fuzz-people", "fuzz-others"), "fuzz-things"
CLASSIFIER = "lenet5-mnist"
LATENT, EMBEDDING = 12, 128  # numbers of the default generator's latents, and of the default embedder's vectors
COLLECTIONS, SUBJECTS = (*PEOPLE, THINGS), ("ada", "bob", "cy")
NAME: TypeAdapter[str] = TypeAdapter(Key)
COLLECTION = "/collections/{collection}"
SUBJECT = COLLECTION + "/subjects/{subject}"
JOB = COLLECTION + "/jobs/{job}"
INFER, INFER_VERSION = "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"

ZIP, LINES = "application/zip", "application/x-ndjson"

Case = schemathesis.Case[Any]
Values = dict[str, Any]

_rng = random.Random(0)


class World:
    """What there is in the service: models, and the ids of what was made, by the last parameter of a path."""

    def __init__(self, client: httpx.Client):
        self.models: dict[str, Values] = {}
        for row in client.post("/v2/repository/index").json():
            self.models[row["name"]] = client.get(f"/v2/models/{row['name']}").json()
        self.seen: defaultdict[str, deque[Values]] = defaultdict(lambda: deque(maxlen=KEPT))
        for collection in COLLECTIONS:
            client.put(f"/collections/{collection}", json=collection_body(collection)).raise_for_status()
        person = {"file": encode(photo("astronaut"), "JPEG")}
        client.post(f"/collections/{PEOPLE[0]}/subjects/{SUBJECTS[0]}/faces", files=person).raise_for_status()

    def learn(self, path: str, parameters: Values, answer: Values) -> None:
        """Remember the ids in the answer to a call of `path`."""
        if path == SUBJECT + "/faces":
            for face in answer.get("indexed", ()):
                self.seen["face"].append({"collection": parameters["collection"], "face": face["face_id"]})
        elif path == COLLECTION + "/faces:bulk":
            self.seen["job"].append({"collection": parameters["collection"], "job": answer["id"]})
        elif path == SUBJECT + "/feedback" and "id" in answer:
            self.seen["feedback"].append(parameters | {"feedback": answer["id"]})
        elif answer.get("status") in ("scrubbing", "erased"):
            self.seen["receipt"].append({"receipt": answer["id"]})

    def parameters(self, path: str) -> Values:
        """Real ones for a path's template."""
        for name, seen in self.seen.items():
            if f"{{{name}}}" in path and seen:
                return _rng.choice(seen)
        name = _rng.choice(list(self.models))
        version = self.models[name]["versions"][0]
        known = {
            "collection": _rng.choice(COLLECTIONS),
            "subject": _rng.choice(SUBJECTS),
            "name": name,
            "version": version,
        }
        return {name: value for name, value in known.items() if f"{{{name}}}" in path}

    def tensors(self, name: str) -> Values | None:
        """An inference request that a model answers: a row of each input; None where that is much JSON, or no model."""
        made = []
        for one in self.models.get(name, {}).get("inputs", ()):
            shape = [1, *(size if size > 0 else SIDE for size in one["shape"][1:])]
            if math.prod(shape) > MOST_NUMBERS:
                return None
            data = [7] if one["datatype"] == "INT64" else _vector(math.prod(shape))
            made.append({"name": one["name"], "datatype": one["datatype"], "shape": shape, "data": data})
        return {"inputs": made} if made else None


_worlds: list[World] = []
_real_bodies: deque[str] = deque(maxlen=KEPT)  # the latest cases that have one


def world() -> World:
    """The service's, asked for once."""
    if not _worlds:
        with httpx.Client(
            base_url=os.environ[URL],
            headers={"Authorization": f"Bearer {os.environ[KEY]}"},
            timeout=300,
            trust_env=uses_proxies(os.environ[URL]),
        ) as client:
            _worlds.append(World(client))
    return _worlds[0]


@cache
def _images() -> Sequence[bytes]:
    face, coffee = photo("astronaut").crop((150, 0, 300, 150)), photo("coffee").resize((60, 40))
    whole = [encode(face, "JPEG"), encode(coffee, "WEBP"), encode(coffee.convert("L").resize((28, 28)))]
    whole += [encode(photo("astronaut").resize((160, 160)), "JPEG"), encode(coffee.quantize(16), "GIF")]
    return [*whole, whole[0][:2000]]


def images() -> list[bytes]:
    """Small images in several formats, two with a face and one cut short, in random order."""
    return _rng.sample(_images(), len(_images()))


def collection_body(name: str) -> Values:
    """What makes a collection of this name."""
    return {"embedder": CLASSIFIER if name == THINGS else None, "keep_crops": name == PEOPLE[0]}


def _vector(width: int) -> list[float]:
    return [_rng.gauss(0, 1) for _ in range(width)]


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, image in enumerate(images()[:3]):
            archive.writestr(f"{_rng.choice(SUBJECTS)}/{number}.jpg", image)
    return file.getvalue()


def _lines() -> str:
    image = base64.b64encode(images()[0]).decode()
    lines = (
        {"subject_id": _rng.choice(SUBJECTS), "image": image},
        {"subject_id": "dee", "vector": _vector(EMBEDDING)},
    )
    return "\n".join(map(json.dumps, lines))


def _multipart(body: Values) -> Values:
    """Real images in place of the parts that are there, of which a case may have any number."""
    sent = itertools.cycle(images())
    return {name: [next(sent)] if isinstance(value, list) else next(sent) for name, value in body.items()}


def _in_base64(body: Values) -> Values:
    """Real images in place of texts, one or some."""
    texts = [base64.b64encode(image).decode() for image in images()]
    keys = [key for key in ("input", "source", "target", "reference") if body.get(key)]
    return body | {key: texts[:2] if isinstance(body[key], list) else texts.pop() for key in keys}


# A real body of a JSON request, by the path's template, from the one that was made up.
BODIES: Mapping[str, Callable[[Case, Values], Values]] = {
    COLLECTION: lambda case, _: collection_body(str(case.path_parameters["collection"])),
    COLLECTION + "/reembed": lambda case, _: {"embedder": None},
    "/generate": lambda case, body: body | {"model": None, "labels": [], "latents": [_vector(LATENT)]},
    "/verify/embeddings": lambda case, _: {"source": _vector(EMBEDDING), "targets": [_vector(EMBEDDING)]},
    "/v1/embeddings": lambda case, body: _in_base64(body) | {"model": None, "dimensions": None},
    "/v1/images/generations": lambda case, body: body | {"model": None, "prompt": "7", "size": None},
    INFER: lambda case, body: world().tensors(str(case.path_parameters["name"])) or body,
    INFER_VERSION: lambda case, body: world().tensors(str(case.path_parameters["name"])) or body,
}


def real_body(case: Case) -> Any:
    """What may stand in place of a case's valid body."""
    kind = case.media_type or ""
    if kind == ZIP:
        return _zip()
    if kind == LINES:
        return _lines()
    if kind.startswith("image/"):
        return images()[0]
    if not isinstance(case.body, dict):
        return case.body
    if kind == "multipart/form-data":
        return _multipart(case.body)
    made = BODIES.get(case.path)
    return made(case, case.body) if made else _in_base64(case.body)


def known_values() -> Mapping[str, Sequence[str | None]]:
    """What a query may say, by its name: of what there is in the service."""
    return {"model": [*world().models], "collection": COLLECTIONS, "label": ["7"], "fingerprint": [None]}


def real_query(query: Values) -> Values:
    """Known names in place of those that were made up."""
    known = known_values()
    made = query | {name: _rng.choice(values) for name, values in known.items() if name in query}
    return {name: value for name, value in made.items() if value is not None or name not in known}


@schemathesis.serializer(ZIP, LINES)
def as_it_is(_: schemathesis.SerializationContext, value: Any) -> Any:
    """What bulk jobs are sent, which schemathesis knows no form of."""
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Case, kwargs: Values) -> None:
    """Make a share of what is valid real. In a chain of calls the links say what is asked for, but for bodies."""
    meta = case.meta
    if meta is None:
        return
    valid = {location for location in ParameterLocation if not meta.is_negative_at(location)}
    share = DROPPED if (case.method.upper(), case.path) == ("DELETE", COLLECTION) else SHARE
    if ParameterLocation.PATH in valid and meta.phase.name != "stateful" and _rng.random() < share:
        case.path_parameters = case.path_parameters | world().parameters(case.path)
    if ParameterLocation.QUERY in valid and case.query and _rng.random() < SHARE:
        case.query = real_query(case.query)
    if ParameterLocation.BODY in valid and case.media_type and _rng.random() < SHARE:
        case.body = real_body(case)
        _real_bodies.append(case.id)


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Failure, case: Case, response: schemathesis.Response
) -> bool:
    """Return whether a failure counts. Schemathesis calls some valid requests invalid.

    Those are: bodies that a hook replaced, and schemathesis's own sample of an image file; numbers in place of a text,
    which arrive as text; empty lists and texts in a query, which arrive as no list and as a list of one. It also does
    not know the letters of other alphabets (`\\p{L}`) when it compares a name with the document's pattern. And a job
    that was deleted is cancelled, not gone: its outcomes can still be read.
    """
    if isinstance(failure, UseAfterFree) and case.operation.path.startswith(JOB):
        return False
    if not isinstance(failure, AcceptedNegativeData):
        return True
    if response.status_code >= HTTPStatus.BAD_REQUEST:
        return False  # it was refused: with a 431, which schemathesis does not expect
    is_real = case.id in _real_bodies or _is_image(response.request.body)
    if case.meta is None:
        return not is_real
    doubtful = {ParameterLocation.PATH} if all(map(_is_name, case.path_parameters.values())) else set()
    if is_real or case.media_type == LINES:
        doubtful.add(ParameterLocation.BODY)
    sent = parse_qs(urlsplit(str(response.request.url)).query, keep_blank_values=True)
    required = {one.name for one in case.operation.query if one.is_required}
    if set(case.query) - set(sent) or (required <= set(sent) and _is_real(sent)):
        doubtful.add(ParameterLocation.QUERY)
    return any(case.meta.is_negative_at(location) for location in ParameterLocation if location not in doubtful)


def _is_image(body: object) -> bool:
    """Return whether a body is a whole image file."""
    if not isinstance(body, bytes):
        return False
    try:
        with Image.open(io.BytesIO(body)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _is_real(sent: Mapping[str, Sequence[str]]) -> bool:
    known: Mapping[str, Sequence[str | None]] = {**known_values(), "format": ("png", "webp", "json")}
    return all(value in known.get(name, ()) for name, values in sent.items() for value in values)


def _is_name(value: object) -> bool:
    try:
        NAME.validate_python(unquote(str(value)))
    except ValidationError:
        return False
    return True


@schemathesis.hook
def after_call(context: schemathesis.HookContext, case: Case, response: schemathesis.Response) -> None:
    """Remember what was made."""
    if response.status_code in (200, 201, 202) and "{" in case.path:
        answer = response.json() if "json" in response.headers.get("content-type", [""])[0] else None
        if isinstance(answer, dict):
            world().learn(case.path, dict(case.path_parameters), answer)


@cli.handler()
class Count(cli.EventHandler[cli.ExecutionContext]):
    """How many cases each operation had, what was answered, what failed; written when the run is over."""

    def __init__(self, *args: Any, **params: Any) -> None:
        self.rows: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def handle_event(self, ctx: cli.ExecutionContext, event: events.EngineEvent) -> None:
        """A scenario is one or several cases."""
        if isinstance(event, events.ScenarioFinished):
            self._add(event.phase.value, event.recorder)

    def _add(self, phase: str, recorder: ScenarioRecorder) -> None:
        for key, node in recorder.cases.items():
            row = self.rows[node.value.operation.label]
            response = recorder.interactions[key].response if key in recorder.interactions else None
            row[phase.lower()] += 1
            row["no answer" if response is None else f"{response.status_code // 100}xx"] += 1
            for check in recorder.checks.get(key, ()):
                if check.status is not Status.SUCCESS:
                    row[f"failed: {check.name}"] += 1

    def shutdown(self, ctx: cli.ExecutionContext) -> None:
        """Write them."""
        Path(os.environ[REPORT]).write_text(json.dumps(self.rows))
