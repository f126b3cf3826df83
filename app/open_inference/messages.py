"""Parse requests and encode responses of the Open Inference Protocol with its binary tensor data extension.

A message is a JSON object, followed by the binary data of those tensors that have a `binary_data_size`, in order.
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
    MAX_NUMBERS,
    InferenceRequest,
    InferenceResponse,
    Parameters,
    RequestInput,
    RequestOutput,
    ResponseOutput,
)
from app.open_inference.tensors import Array, TensorType

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
OCTET_STREAM = "application/octet-stream"
# Limits of a message's JSON, without images in base64. A nested tensor of a 224 x 224 image has 672 arrays.
JSON_LIMITS = large_json.JsonLimits(bytes=16 * 2**20, values=MAX_NUMBERS + 1_024, containers=65_536)


def _schema() -> dict[str, Any]:
    """Return the schema of a request with its `$defs` inlined: references to them do not resolve in OpenAPI."""
    schema = InferenceRequest.model_json_schema()
    del schema["$defs"]
    for name, items in (("inputs", RequestInput), ("outputs", RequestOutput)):
        schema["properties"][name]["items"] = items.model_json_schema()
    return schema


INFER_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": JSON_LENGTH_HEADER,
            "in": "header",
            "required": False,
            "description": "The number of bytes of JSON at the start of the body, if binary data follows it.",
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
    "requestBody": {
        "required": True,
        "description": "JSON, or JSON followed by the binary data of tensors; may be compressed by gzip or deflate.",
        "content": {
            JSON: {"schema": _schema()},
            OCTET_STREAM: {"schema": {"type": "string", "format": "binary"}},
        },
    },
}


@dataclass(frozen=True)
class Message:
    """The body of a request; its first `json_length` bytes are JSON, or all if that is None."""

    body: bytes | bytearray
    json_length: int | None


@dataclass(frozen=True)
class RequestedOutput:
    """A requested output. `classes`: 0 for the tensor, else how many of each row's largest values, as text."""

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True)
class ParsedRequest:
    """The request's id, its input arrays, all with the same number of rows, and the requested outputs."""

    id: str
    inputs: dict[str, Array]
    outputs: list[RequestedOutput]


async def read_message(request: Request) -> Message:
    """Return the request's body and the length of its JSON.

    Raises:
        BadRequest: if the header is not a number, or the client disconnects. BodyTooLarge.
    """
    length = request.headers.get(JSON_LENGTH_HEADER)
    if length is not None and not (length.isascii() and length.isdigit() and len(length) < 20):
        raise BadRequest(f"{JSON_LENGTH_HEADER} must be a number of bytes")
    with disconnect_as_bad_request():
        body = await read_body(request)
    return Message(body, None if length is None else int(length))


def parse(
    message: Message, inputs: Mapping[str, Sequence[TensorType]], outputs: Mapping[str, TensorType], max_rows: int
) -> ParsedRequest:
    """Parse a request to a model whose inputs accept these types and that has these outputs.

    Raises:
        BadRequest: not a valid request, or not one for this model. BodyTooLarge, TooManyImages: over a limit.
    """
    body = message.body
    length = len(body) if message.json_length is None else message.json_length
    if length > len(body):
        raise BadRequest(f"{JSON_LENGTH_HEADER} is {length}, but the body has {len(body)} bytes")
    parsed = _parse_json(body if length == len(body) else body[:length])
    request = parsed.value
    names = [tensor.name for tensor in request.inputs]
    if sorted(names) != sorted(inputs):
        raise BadRequest(f"expected the inputs {', '.join(inputs)}, each once; got {', '.join(names)[:256]}")
    for tensor in request.inputs:
        tensors.check(tensor, inputs[tensor.name], max_rows)
    if len({tensor.shape[0] for tensor in request.inputs}) > 1:
        raise BadRequest("the inputs differ in their number of rows")
    requested = _requested_outputs(request, outputs)
    arrays = {
        tensor.name: tensors.to_array(tensor, data, parsed.base64)
        for tensor, data in _split_binary(request.inputs, memoryview(body)[length:])
    }
    return ParsedRequest(parsed.text(request.id), arrays, requested)


def encode_response(model: str, version: str, request: ParsedRequest, arrays: Sequence[Array]) -> EncodedFile:
    """Encode the response: one array for each requested output, in that order.

    Raises:
        BadRequest: too many numbers for JSON.
    """
    outputs, binary = [], []
    for requested, array in zip(request.outputs, arrays, strict=True):
        output = ResponseOutput(name=requested.name, shape=list(array.shape), datatype=tensors.datatype_name(array))
        if requested.binary:
            binary.append(tensors.to_binary(array))
            output.parameters = {"binary_data_size": len(binary[-1])}
        elif array.size > MAX_NUMBERS:
            raise BadRequest(f"{requested.name} has {array.size} numbers: request it as binary data")
        else:
            output.data = tensors.to_json(array)
        outputs.append(output)
    response = InferenceResponse(model_name=model, model_version=version, id=request.id or None, outputs=outputs)
    encoded = response.model_dump_json(exclude_none=True).encode()
    if not binary:
        return EncodedFile(encoded, JSON)
    return EncodedFile(b"".join([encoded, *binary]), OCTET_STREAM, {JSON_LENGTH_HEADER: str(len(encoded))})


def _parse_json(data: bytes | bytearray) -> ParsedJson[InferenceRequest]:
    try:
        return large_json.parse(InferenceRequest, data, JSON_LIMITS)
    except large_json.TooComplex as error:
        raise BodyTooLarge(f"{error}; send tensors as binary data") from error
    except ValidationError as error:
        items = error.errors(include_input=False, include_url=False)
        reasons = sorted({": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"]])) for item in items})
        raise BadRequest(f"the body is not a valid inference request: {'; '.join(reasons)}") from error


def _requested_outputs(request: InferenceRequest, types: Mapping[str, TensorType]) -> list[RequestedOutput]:
    binary = _boolean(request.parameters, "binary_data_output", default=False)
    outputs = request.outputs or [RequestOutput(name=name) for name in types]
    names = [output.name for output in outputs]
    if not set(names) <= set(types) or len(set(names)) < len(names):
        raise BadRequest(f"the outputs are {', '.join(types)}, each at most once; requested: {', '.join(names)[:256]}")
    return [_requested_output(output, types[output.name], binary=binary) for output in outputs]


def _requested_output(output: RequestOutput, type_: TensorType, *, binary: bool) -> RequestedOutput:
    _refuse_shared_memory(output.name, output.parameters)
    classes = output.parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise BadRequest(f"classification of {output.name} must be a number of classes")
    if classes and len(type_.shape) != 2:
        raise BadRequest(f"{output.name} has no classes")
    return RequestedOutput(output.name, _boolean(output.parameters, "binary_data", default=binary), classes)


def _boolean(parameters: Parameters, name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"the parameter {name} must be true or false")
    return value


def _refuse_shared_memory(name: str, parameters: Parameters) -> None:
    if "shared_memory_region" in parameters:
        raise BadRequest(f"{name} is in shared memory, which this service does not support")


def _split_binary(inputs: Sequence[RequestInput], data: memoryview) -> Iterator[tuple[RequestInput, memoryview | None]]:
    """Yield each tensor with its binary data, or None if its elements are in the JSON."""
    start = 0
    for tensor in inputs:
        _refuse_shared_memory(tensor.name, tensor.parameters)
        size = tensor.parameters.get("binary_data_size")
        if (size is None) == (tensor.data is None):
            raise BadRequest(f"{tensor.name} must have either data or a binary_data_size")
        if size is None:
            yield tensor, None
            continue
        rest = len(data) - start
        if type(size) is not int or not 0 <= size <= rest:
            raise BadRequest(
                f"binary_data_size of {tensor.name} must be a number of bytes, at most the remaining {rest}"
            )
        yield tensor, data[start : start + size]
        start += size
    if start != len(data):
        raise BadRequest(f"{len(data) - start} bytes follow the binary data")
