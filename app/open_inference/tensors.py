"""One tensor of the Open Inference Protocol -> numpy, and back: as JSON or as binary data.

Binary data is little-endian, row by row; each element of BYTES has its length before it, in four bytes. In JSON, BYTES
are base64 or data URIs, as pictures are everywhere here.
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

# Of a type in DATATYPES; BYTES are Python's bytes as objects.
Array = npt.NDArray[Any]


class Datatype(NamedTuple):
    """How elements lie in memory, and what they are in JSON."""

    dtype: np.dtype[Any]
    json: frozenset[type]
    words: str


_WHOLE, _REAL, _TEXT = frozenset({int}), frozenset({int, float}), frozenset({str})

# Those that some model takes or answers.
DATATYPES = {
    "UINT8": Datatype(np.dtype(np.uint8), _WHOLE, "whole numbers"),
    "INT64": Datatype(np.dtype("<i8"), _WHOLE, "whole numbers"),
    "FP32": Datatype(np.dtype("<f4"), _REAL, "numbers"),
    "BYTES": Datatype(np.dtype(object), _TEXT, "text"),
}

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Form:
    """What a tensor is like; -1 stands for any size."""

    datatype: str
    shape: tuple[int, ...]

    def fits(self, tensor: RequestInput) -> bool:
        """Whether the tensor is like this."""
        if tensor.datatype != self.datatype or len(tensor.shape) != len(self.shape):
            return False
        return all(mine in (-1, sent) for mine, sent in zip(self.shape, tensor.shape, strict=True))

    def __str__(self) -> str:
        return f"{self.datatype} {list(self.shape)}"


def check(tensor: RequestInput, forms: Sequence[Form], most_rows: int) -> None:
    """Refuse a tensor by what is said of it, before any of it is read.

    Raises:
        BadRequest: in none of these forms, or empty. TooManyImages.
    """
    if not any(form.fits(tensor) for form in forms):
        known = " or ".join(map(str, forms))
        raise BadRequest(f"{tensor.name} is {known}; got {tensor.datatype[:16]} {tensor.shape}")
    if math.prod(tensor.shape) == 0:
        raise BadRequest(f"{tensor.name} is empty")
    if tensor.shape[0] > most_rows:
        raise TooManyImages(f"{tensor.name} has {tensor.shape[0]} rows; a request may have {most_rows}")


def read(tensor: RequestInput, blob: memoryview | None, from_base64: Callable[[str], bytes]) -> Array:
    """The array of a tensor that was found good by `check`: of its binary data, or of its JSON where there is none.

    Raises:
        BadRequest: not as many elements as its shape has, or not such as its datatype has; numbers that are not finite.
    """
    datatype = DATATYPES[tensor.datatype]
    flat = _from_json(tensor, datatype, from_base64) if blob is None else _from_binary(tensor, datatype.dtype, blob)
    if datatype.dtype.kind == "f" and not np.isfinite(flat).all():
        raise BadRequest(f"{tensor.name} holds numbers that are not finite")
    return flat.reshape(tensor.shape)


def datatype(array: Array) -> str:
    """Its name."""
    return next(name for name, known in DATATYPES.items() if known.dtype == array.dtype)


def listed(array: Array) -> list[Any]:
    """Its elements as JSON has them; BYTES must be text."""
    if array.dtype.kind == "O":
        return [item.decode() for item in array.flat]
    elements: list[Any] = array.ravel().tolist()
    return elements


def packed(array: Array) -> bytes:
    """Its elements as binary data."""
    if array.dtype.kind == "O":
        return b"".join(_LENGTH.pack(len(item)) + item for item in array.flat)
    return array.tobytes()


def _from_binary(tensor: RequestInput, dtype: np.dtype[Any], blob: memoryview) -> Array:
    if dtype.kind == "O":
        return np.array(list(_elements(tensor, blob)), dtype)
    size = math.prod(tensor.shape) * dtype.itemsize
    if len(blob) != size:
        raise BadRequest(f"{tensor.name} has {len(blob)} bytes of binary data; its shape has {size}")
    return np.frombuffer(blob, dtype)


def _elements(tensor: RequestInput, blob: memoryview) -> Iterator[bytes]:
    start = 0
    for _ in range(math.prod(tensor.shape)):
        end = start + _LENGTH.size
        if end <= len(blob):
            (size,) = _LENGTH.unpack_from(blob, start)
            start, end = end, end + size
        if end > len(blob):
            raise BadRequest(f"the elements of {tensor.name} are cut short")
        yield bytes(blob[start:end])
        start = end
    if start != len(blob):
        raise BadRequest(f"{len(blob) - start} bytes follow the elements of {tensor.name}")


def _from_json(tensor: RequestInput, datatype: Datatype, from_base64: Callable[[str], bytes]) -> Array:
    data, dtype = _flat(tensor), datatype.dtype
    if not set(map(type, data)) <= datatype.json:
        raise BadRequest(f"the data of {tensor.name}, {tensor.datatype}, is {datatype.words}")
    if dtype.kind == "O":
        return np.array([from_base64(text) for text in data], dtype)
    try:
        if dtype.kind == "f":
            with np.errstate(over="ignore"):  # to infinity, which is refused as such
                return np.array(data, np.float64).astype(dtype)
        return np.array(data, dtype)
    except OverflowError as error:
        raise BadRequest(f"the data of {tensor.name} goes beyond {tensor.datatype}") from error


def _flat(tensor: RequestInput) -> list[Any]:
    """The elements row by row, whether they were sent flat or nested as the shape says."""
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
