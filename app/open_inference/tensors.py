"""Convert tensors of the Open Inference Protocol, in JSON or binary data, to numpy arrays and back.

Binary data is little-endian, row by row; each element of BYTES is preceded by its length in four bytes. In JSON, BYTES
are base64 or data URIs, like images in all other requests.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.errors import BadRequest, TooManyImages
from app.open_inference.schemas import RequestInput

# Its dtype is one of DATATYPES; elements of BYTES are Python bytes objects.
Array = npt.NDArray[Any]


class Datatype(NamedTuple):
    """The dtype of an array, the types of its elements in JSON, and their name in error messages."""

    dtype: np.dtype[Any]
    json: frozenset[type]
    description: str


_WHOLE, _REAL, _TEXT = frozenset({int}), frozenset({int, float}), frozenset({str})

# The types that models have as inputs or outputs.
DATATYPES = {
    "UINT8": Datatype(np.dtype(np.uint8), _WHOLE, "whole numbers"),
    "INT64": Datatype(np.dtype("<i8"), _WHOLE, "whole numbers"),
    "FP32": Datatype(np.dtype("<f4"), _REAL, "numbers"),
    "BYTES": Datatype(np.dtype(object), _TEXT, "text"),
}

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class TensorType:
    """The datatype and shape of a tensor; -1 stands for any size."""

    datatype: str
    shape: tuple[int, ...]

    def matches(self, tensor: RequestInput) -> bool:
        """Return whether the tensor has this type."""
        return (
            tensor.datatype == self.datatype
            and len(tensor.shape) == len(self.shape)
            and all(size in (-1, actual) for size, actual in zip(self.shape, tensor.shape, strict=True))
        )

    def __str__(self) -> str:
        return f"{self.datatype} {list(self.shape)}"


def check(tensor: RequestInput, types: Sequence[TensorType], max_rows: int) -> None:
    """Check a tensor's datatype and shape before its elements are read.

    Raises:
        BadRequest: if it has none of these types, or is empty. TooManyImages: if it has too many rows.
    """
    if not any(type_.matches(tensor) for type_ in types):
        expected = " or ".join(map(str, types))
        raise BadRequest(f"{tensor.name} must be {expected}; got {tensor.datatype[:16]} {tensor.shape}")
    if math.prod(tensor.shape) == 0:
        raise BadRequest(f"{tensor.name} is empty")
    if tensor.shape[0] > max_rows:
        raise TooManyImages(f"{tensor.name} has {tensor.shape[0]} rows; a request may have {max_rows}")


def to_array(tensor: RequestInput, data: memoryview | None, from_base64: Callable[[str], bytes]) -> Array:
    """Return the array of a tensor that passed `check`, from its binary data or, if that is None, from its JSON.

    Raises:
        BadRequest: the elements do not match the shape or the datatype, or numbers are not finite.
    """
    datatype = DATATYPES[tensor.datatype]
    flat = _from_json(tensor, datatype, from_base64) if data is None else _from_binary(tensor, datatype.dtype, data)
    if datatype.dtype.kind == "f" and not np.isfinite(flat).all():
        raise BadRequest(f"{tensor.name} has numbers that are not finite")
    return flat.reshape(tensor.shape)


def datatype_name(array: Array) -> str:
    """Return the protocol's name of the array's datatype."""
    return next(name for name, datatype in DATATYPES.items() if datatype.dtype == array.dtype)


def to_json(array: Array) -> list[Any]:
    """Return the elements as values of JSON; BYTES must be text."""
    if array.dtype.kind == "O":
        return [item.decode() for item in array.flat]
    elements: list[Any] = array.ravel().tolist()
    return elements


def to_binary(array: Array) -> bytes:
    """Return the elements as binary data."""
    if array.dtype.kind == "O":
        return b"".join(_LENGTH.pack(len(item)) + item for item in array.flat)
    return array.tobytes()


def _from_binary(tensor: RequestInput, dtype: np.dtype[Any], data: memoryview) -> Array:
    if dtype.kind == "O":
        return np.array(list(_split_elements(tensor, data)), dtype)
    size = math.prod(tensor.shape) * dtype.itemsize
    if len(data) != size:
        raise BadRequest(f"{tensor.name} has {len(data)} bytes of binary data; its shape needs {size}")
    return np.frombuffer(data, dtype)


def _split_elements(tensor: RequestInput, data: memoryview) -> Iterator[bytes]:
    start = 0
    for _ in range(math.prod(tensor.shape)):
        end = start + _LENGTH.size
        if end <= len(data):
            (size,) = _LENGTH.unpack_from(data, start)
            start, end = end, end + size
        if end > len(data):
            raise BadRequest(f"the elements of {tensor.name} are truncated")
        yield bytes(data[start:end])
        start = end
    if start != len(data):
        raise BadRequest(f"{len(data) - start} bytes follow the elements of {tensor.name}")


def _from_json(tensor: RequestInput, datatype: Datatype, from_base64: Callable[[str], bytes]) -> Array:
    data, dtype = _flatten(tensor), datatype.dtype
    if not set(map(type, data)) <= datatype.json:
        raise BadRequest(f"the data of {tensor.name}, {tensor.datatype}, must be {datatype.description}")
    if dtype.kind == "O":
        return np.array([from_base64(text) for text in data], dtype)
    try:
        if dtype.kind == "f":
            with np.errstate(over="ignore"):  # overflows to infinity, which to_array refuses
                return np.array(data, np.float64).astype(dtype)
        return np.array(data, dtype)
    except OverflowError as error:
        raise BadRequest(f"the data of {tensor.name} exceeds the range of {tensor.datatype}") from error


def _flatten(tensor: RequestInput) -> list[Any]:
    """Return the elements row by row; they may be sent flat, or nested according to the shape."""
    data = tensor.data or []
    sizes = [len(data)]
    while data and all(type(item) is list for item in data):
        if len(set(map(len, data))) > 1:
            raise BadRequest(f"the data of {tensor.name} has rows of different lengths")
        sizes.append(len(data[0]))
        data = list(chain.from_iterable(data))
    if sizes not in (tensor.shape, [math.prod(tensor.shape)]):
        raise BadRequest(f"the data of {tensor.name} has the shape {sizes}, not {tensor.shape}")
    return data
