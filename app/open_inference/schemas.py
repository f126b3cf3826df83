"""The objects of the Open Inference Protocol ("Predict Protocol, Version 2"), under the names its specification gives.

What a request has beyond them is passed over: the protocol is made to be extended.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

# By name; values are strings, numbers or booleans. Which mean something here is said where they are read.
Parameters = dict[str, Any]

# Numbers as text cost many times what they do as bytes, to read as well as to write.
MOST_NUMBERS = 1_000_000

Dimension = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]


class ServerMetadata(BaseModel):
    """What answers, and which extensions of the protocol it knows."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """The process answers."""

    live: Literal[True] = True


class ServerReady(BaseModel):
    """The default model answers."""

    ready: Literal[True] = True


class ModelReady(BaseModel):
    """The model answers; one that is not loaded yet is loaded by its first request."""

    name: str
    ready: Literal[True] = True


class TensorMetadata(BaseModel):
    """A tensor; -1 stands for any size.

    Parameters of pictures: `mode` of their channels, RGB or L (grey); `mean` and `std`, on the scale of 0..255, that
    its numbers are of: number * std + mean is the pixel. `also`: other forms in which an input is taken.
    """

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | None = None


class ModelMetadata(BaseModel):
    """How a model is asked and what it answers."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class IndexedModel(BaseModel):
    """A row of the repository's index."""

    name: str
    version: str
    state: Literal["READY"] = "READY"
    reason: str


class RequestInput(BaseModel):
    """A tensor that is sent: in `data`, flat or nested, or behind the JSON in `binary_data_size` bytes, a parameter."""

    name: str
    shape: Annotated[list[Dimension], Field(min_length=1, max_length=8, fail_fast=True)]
    datatype: str
    parameters: Parameters = {}
    data: Annotated[list[Any], Field(max_length=MOST_NUMBERS, fail_fast=True)] | None = None


class RequestOutput(BaseModel):
    """A tensor that is asked for; parameters: `binary_data`, `classification`."""

    name: str
    parameters: Parameters = {}


class InferenceRequest(BaseModel):
    """The JSON of a request; no `outputs`: all of them; a parameter: `binary_data_output`."""

    id: str = ""
    parameters: Parameters = {}
    inputs: Annotated[list[RequestInput], Field(min_length=1, max_length=16, fail_fast=True)]
    outputs: Annotated[list[RequestOutput], Field(max_length=16, fail_fast=True)] = []


class ResponseOutput(BaseModel):
    """A tensor that is answered, row by row: in `data`, or behind the JSON in `binary_data_size` bytes."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[Any] | None = None


class InferenceResponse(BaseModel):
    """The JSON of an answer; `id` is the request's."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]
