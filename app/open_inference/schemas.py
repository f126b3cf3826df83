"""The objects of the Open Inference Protocol ("Predict Protocol, Version 2"), named as in its specification.

Unknown fields of a request are ignored, since the protocol allows extensions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

# By name; values are strings, numbers or booleans.
Parameters = dict[str, Any]

# The most numbers of a tensor in JSON: parsing and writing text takes many times longer than binary data.
MAX_NUMBERS = 1_000_000

Dimension = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]


class ServerMetadata(BaseModel):
    """The server's name and version, and the protocol extensions it supports."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """The process is running."""

    live: Literal[True] = True


class ServerReady(BaseModel):
    """The default model is loaded."""

    ready: Literal[True] = True


class ModelReady(BaseModel):
    """The model accepts requests; the first one loads it."""

    name: str
    ready: Literal[True] = True


class TensorMetadata(BaseModel):
    """A tensor; -1 stands for any size.

    Parameters of images: `mode` is RGB or L (grey); `mean` and `std`, on the scale of 0..255, normalise its values:
    value * std + mean is the pixel. `also`: other types that the input accepts.
    """

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | None = None


class ModelMetadata(BaseModel):
    """The inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class IndexedModel(BaseModel):
    """A model in the repository's index."""

    name: str
    version: str
    state: Literal["READY"] = "READY"
    reason: str


class RequestInput(BaseModel):
    """An input tensor: in `data`, flat or nested, or as `binary_data_size` bytes (a parameter) of binary data."""

    name: str
    shape: Annotated[list[Dimension], Field(min_length=1, max_length=8, fail_fast=True)]
    datatype: str
    parameters: Parameters = {}
    data: Annotated[list[Any], Field(max_length=MAX_NUMBERS, fail_fast=True)] | None = None


class RequestOutput(BaseModel):
    """A requested output; parameters: `binary_data`, `classification`."""

    name: str
    parameters: Parameters = {}


class InferenceRequest(BaseModel):
    """The JSON of a request; without `outputs`, all are returned; parameter: `binary_data_output`."""

    id: str = ""
    parameters: Parameters = {}
    inputs: Annotated[list[RequestInput], Field(min_length=1, max_length=16, fail_fast=True)]
    outputs: Annotated[list[RequestOutput], Field(max_length=16, fail_fast=True)] = []


class ResponseOutput(BaseModel):
    """An output tensor, row by row: in `data`, or as binary data of the length in the parameter `binary_data_size`."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[Any] | None = None


class InferenceResponse(BaseModel):
    """The JSON of a response; `id` is the request's."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]
