"""A whole message of the Open Inference Protocol, with its binary tensor data extension: read, and written.

It is a JSON object and, behind it, the binary data of the tensors to which it gives a `binary_data_size`, in its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request

from app.errors import BadRequest, BodyTooLarge
from app.images import large_json
from app.images.encoding import JSON, EncodedFile
from app.images.large_json import ParsedJson
from app.images.uploads import disconnect_as_bad_request, read_body
from app.open_inference import tensors
from app.open_inference.schemas import (
    MOST_NUMBERS,
    InferenceRequest,
    InferenceResponse,
    Parameters,
    RequestInput,
    RequestOutput,
    ResponseOutput,
)
from app.open_inference.tensors import Array, Form

HEAD = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
# Of JSON besides pictures. Nested as its shape is, a picture of 224 x 224 pixels has 672 arrays.
JSON_LIMITS = large_json.JsonLimits(bytes=16 * 2**20, values=MOST_NUMBERS + 1_024, containers=65_536)


def _schema() -> dict[str, Any]:
    """Of the JSON, in one piece: what pydantic would refer to lies nowhere in an OpenAPI document."""
    schema = InferenceRequest.model_json_schema()
    del schema["$defs"]
    for name, items in (("inputs", RequestInput), ("outputs", RequestOutput)):
        schema["properties"][name]["items"] = items.model_json_schema()
    return schema


INFER_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": HEAD,
            "in": "header",
            "required": False,
            "description": "How many bytes of the body are JSON, where binary data follows it.",
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
    "requestBody": {
        "required": True,
        "description": "JSON, or JSON with the binary data of tensors behind it; gzip or deflate is undone.",
        "content": {
            JSON: {"schema": _schema()},
            OCTETS: {"schema": {"type": "string", "format": "binary"}},
        },
    },
}


@dataclass(frozen=True)
class Message:
    """A request as it was sent; `head` bytes of it are JSON: all if it is None."""

    body: bytes | bytearray
    head: int | None


@dataclass(frozen=True)
class Wanted:
    """An output that is asked for; `classes`: of each row only so many of the largest, as text; 0: the tensor."""

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True)
class Asked:
    """A request: its tensors, as many rows of each, and what it wants of the answers."""

    id: str
    inputs: dict[str, Array]
    outputs: list[Wanted]


async def read_message(request: Request) -> Message:
    """The request's body, whole.

    Raises:
        BadRequest, BodyTooLarge.
    """
    head = request.headers.get(HEAD)
    if head is not None and not (head.isascii() and head.isdigit() and len(head) < 20):
        raise BadRequest(f"{HEAD} is a number of bytes")
    with disconnect_as_bad_request():
        body = await read_body(request)
    return Message(body, None if head is None else int(head))


def parse(message: Message, inputs: Mapping[str, Sequence[Form]], outputs: Mapping[str, Form], most_rows: int) -> Asked:
    """What a message asks of a model that takes each of `inputs` in one of its forms, and answers `outputs`.

    Raises:
        BadRequest: not such a message, or not for this model. BodyTooLarge, TooManyImages: over a limit.
    """
    body = message.body
    head = len(body) if message.head is None else message.head
    if head > len(body):
        raise BadRequest(f"{HEAD} is {head}, and the body has {len(body)} bytes")
    parsed = _object(body if head == len(body) else body[:head])
    sent = parsed.value
    names = [tensor.name for tensor in sent.inputs]
    if sorted(names) != sorted(inputs):
        raise BadRequest(f"expected the inputs {', '.join(inputs)}, each once; got {', '.join(names)[:256]}")
    for tensor in sent.inputs:
        tensors.check(tensor, inputs[tensor.name], most_rows)
    if len({tensor.shape[0] for tensor in sent.inputs}) > 1:
        raise BadRequest("the inputs differ in how many rows they have")
    wanted = _wanted(sent, outputs)
    blobs = _blobs(sent.inputs, memoryview(body)[head:])
    arrays = {tensor.name: tensors.read(tensor, blob, parsed.base64) for tensor, blob in blobs}
    return Asked(parsed.text(sent.id), arrays, wanted)


def document(model: str, version: str, asked: Asked, answers: Sequence[Array]) -> EncodedFile:
    """The answer, with one array for each output that is wanted, in that order.

    Raises:
        BadRequest: more numbers than are written as JSON.
    """
    outputs, blobs = [], []
    for wanted, answer in zip(asked.outputs, answers, strict=True):
        output = ResponseOutput(name=wanted.name, shape=list(answer.shape), datatype=tensors.datatype(answer))
        if wanted.binary:
            blobs.append(tensors.packed(answer))
            output.parameters = {"binary_data_size": len(blobs[-1])}
        elif answer.size > MOST_NUMBERS:
            raise BadRequest(f"{wanted.name} has {answer.size} numbers: ask for it as binary data")
        else:
            output.data = tensors.listed(answer)
        outputs.append(output)
    response = InferenceResponse(model_name=model, model_version=version, id=asked.id or None, outputs=outputs)
    head = response.model_dump_json(exclude_none=True).encode()
    if not blobs:
        return EncodedFile(head, JSON)
    return EncodedFile(b"".join([head, *blobs]), OCTETS, {HEAD: str(len(head))})


def _object(data: bytes | bytearray) -> ParsedJson[InferenceRequest]:
    try:
        return large_json.parse(InferenceRequest, data, JSON_LIMITS)
    except large_json.TooComplex as error:
        raise BodyTooLarge(f"{error}; send tensors as binary data") from error
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        reasons = sorted({": ".join(filter(None, [_place(item["loc"]), item["msg"]])) for item in found})
        raise BadRequest(f"the body is no inference request: {'; '.join(reasons)}") from error


def _place(keys: Sequence[int | str]) -> str:
    return ".".join(map(str, keys))


def _wanted(sent: InferenceRequest, known: Mapping[str, Form]) -> list[Wanted]:
    binary = _boolean(sent.parameters, "binary_data_output", default=False)
    outputs = sent.outputs or [RequestOutput(name=name) for name in known]
    names = [output.name for output in outputs]
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise BadRequest(f"the outputs are {', '.join(known)}, each once at most; asked for: {', '.join(names)[:256]}")
    return [_output(output, known[output.name], binary=binary) for output in outputs]


def _output(output: RequestOutput, form: Form, *, binary: bool) -> Wanted:
    _no_shared_memory(output.name, output.parameters)
    classes = output.parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise BadRequest(f"classification of {output.name} is a number of classes")
    if classes and len(form.shape) != 2:
        raise BadRequest(f"{output.name} holds no classes")
    return Wanted(output.name, _boolean(output.parameters, "binary_data", default=binary), classes)


def _boolean(parameters: Parameters, name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"the parameter {name} is true or false")
    return value


def _no_shared_memory(name: str, parameters: Parameters) -> None:
    if "shared_memory_region" in parameters:
        raise BadRequest(f"{name} is in shared memory, which is neither read nor written here")


def _blobs(sent: Sequence[RequestInput], data: memoryview) -> Iterator[tuple[RequestInput, memoryview | None]]:
    """Each tensor with its binary data; None for those whose elements are in the JSON."""
    start = 0
    for tensor in sent:
        _no_shared_memory(tensor.name, tensor.parameters)
        size = tensor.parameters.get("binary_data_size")
        if (size is None) == (tensor.data is None):
            raise BadRequest(f"{tensor.name} has either data or a binary_data_size")
        if size is None:
            yield tensor, None
            continue
        left = len(data) - start
        if type(size) is not int or not 0 <= size <= left:
            raise BadRequest(f"binary_data_size of {tensor.name} is a number of bytes, of which {left} are left")
        yield tensor, data[start : start + size]
        start += size
    if start != len(data):
        raise BadRequest(f"{len(data) - start} bytes follow the binary data")
