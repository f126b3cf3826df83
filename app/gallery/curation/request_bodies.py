"""Read the body of `POST /cluster/embeddings`, which may have megabytes of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from app.errors import BadRequest, UnsupportedMediaType
from app.gallery.curation.schemas import ClusterRequest
from app.images.large_json import ParsedJson
from app.images.uploads import disconnect_as_bad_request, media_type, read_json

CLUSTER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ClusterRequest.model_json_schema()}},
    }
}
_EXAMPLE = '{"embeddings": [[0.1, ...], ...]} or {"embeddings": "<base64 of float32>"}'

Numbers = npt.NDArray[np.float32] | list[list[float]]  # one after the other, or by vector


async def read_vectors(request: Request) -> Numbers:
    """Return the vectors of a request: lists of numbers, or all numbers one after the other.

    Raises:
        BadRequest: if the body does not match the schema. BodyTooLarge, UnsupportedMediaType.
    """
    if media_type(request) != "application/json":
        raise UnsupportedMediaType("send application/json")
    with disconnect_as_bad_request():
        return await read_json(request, ClusterRequest, _EXAMPLE, _numbers)


def _numbers(body: ParsedJson[ClusterRequest]) -> Numbers:
    if not isinstance(body.value.embeddings, str):
        return body.value.embeddings
    data = body.base64(body.value.embeddings)
    if len(data) % 4:
        raise BadRequest("the base64 text does not contain whole numbers of float32")
    return np.frombuffer(data, "<f4")
