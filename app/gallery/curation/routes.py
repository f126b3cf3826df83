"""Routes that correct who is who: merges, moved faces, crops, searches by vector, duplicates and clusters."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from app import errors
from app.auth.scopes import ENROL, INFER
from app.gallery.curation.request_bodies import CLUSTER_BODY, read_vectors
from app.gallery.curation.schemas import (
    ClusterParams,
    ClusterResponse,
    DuplicatePage,
    DuplicateParams,
    FaceMove,
    FaceMoveResponse,
    MergeInfo,
    MergePage,
    MergeRequest,
)
from app.gallery.routes import COMMON, PROBLEMS, AfterFace, Collection, Limit, SubjectId, gallery_service
from app.gallery.schemas import Key
from app.gallery.search_schemas import SearchedVectors, SearchResponse, VectorSearchParams
from app.images.encoding import WEBP
from app.middleware.routing import costly, counts_toward_capacity

router = APIRouter(tags=["gallery"])

CURATING = errors.describe(
    *COMMON,
    errors.BadRequest,
    errors.BodyTooLarge,
    errors.Conflict,
    errors.Unprocessable,
    errors.Locked,
    errors.DiskFull,
)
SEARCHING = errors.describe(
    *COMMON,
    errors.BadRequest,
    errors.BodyTooLarge,
    errors.Conflict,
    errors.UnknownModel,
    errors.Unprocessable,
    errors.NotReady,
)
CLUSTERING = errors.describe(
    errors.BadRequest,
    errors.OriginNotAllowed,
    errors.BodyTooLarge,
    errors.InvalidParameters,
    errors.UnknownModel,
    errors.Unprocessable,
    errors.UnsupportedMediaType,
    errors.Overloaded,
    errors.NotReady,
)
CROP: dict[int | str, dict[str, Any]] = {
    200: {"content": {WEBP: {"schema": {"type": "string", "format": "binary"}}}, "description": "The aligned face"}
}

Merge = Annotated[Key, Path(description="The merge's id.")]
Face = Annotated[Key, Path(description="The face's id.")]


@router.post("/search/embeddings", dependencies=INFER, responses=SEARCHING)
async def search_vectors(
    request: Request, params: Annotated[VectorSearchParams, Query()], body: SearchedVectors
) -> SearchResponse:
    """Search a collection for embeddings computed earlier, or for other subjects that are like an enrolled face."""
    return await gallery_service(request).vector_searches.search(body, params, request.state.caller)


@router.post("/collections/{collection}/subjects/{subject}/merge", dependencies=ENROL, responses=CURATING)
async def merge(request: Request, collection: Collection, subject: SubjectId, body: MergeRequest) -> MergeInfo:
    """Give the subject all faces and feedback of other subjects, which then do not exist; this can be undone."""
    return await gallery_service(request).curation.merge(collection, subject, body.from_, request.state.caller)


@router.get("/collections/{collection}/merges", dependencies=ENROL, responses=PROBLEMS)
async def merges(request: Request, collection: Collection, after: AfterFace = 0, limit: Limit = 100) -> MergePage:
    """Return a page of the merges that can be undone."""
    return await gallery_service(request).curation.list_merges(collection, after, limit)


@router.post("/collections/{collection}/merges/{merge}/undo", dependencies=ENROL, responses=CURATING)
async def undo(request: Request, collection: Collection, merge: Merge) -> MergeInfo:
    """Undo a merge: the absorbed subjects exist again, with their properties, faces and feedback."""
    return await gallery_service(request).curation.undo_merge(collection, merge, request.state.caller)


@router.post("/collections/{collection}/faces/move", dependencies=ENROL, responses=CURATING)
async def move(request: Request, collection: Collection, body: FaceMove) -> FaceMoveResponse:
    """Move faces, all or none, to a subject, which is created if it does not exist."""
    return await gallery_service(request).curation.move_faces(collection, body.faces, body.to, request.state.caller)


@router.get(
    "/collections/{collection}/duplicates",
    dependencies=ENROL,
    responses=PROBLEMS | errors.describe(errors.Conflict, errors.Unprocessable),
)
@costly
async def duplicates(
    request: Request, collection: Collection, params: Annotated[DuplicateParams, Query()]
) -> DuplicatePage:
    """Return pairs of subjects that may be one person, for a page of subjects compared with all others."""
    return await gallery_service(request).proposals.duplicates(collection, params, request.state.caller)


@router.post("/cluster/embeddings", dependencies=INFER, responses=CLUSTERING, openapi_extra=CLUSTER_BODY)
@counts_toward_capacity
async def clusters(request: Request, params: Annotated[ClusterParams, Query()]) -> ClusterResponse:
    """Propose clusters of embeddings, each of one person; nothing is stored."""
    return await gallery_service(request).proposals.clusters(await read_vectors(request), params)


@router.get(
    "/collections/{collection}/faces/{face}/crop",
    dependencies=ENROL,
    responses=PROBLEMS | CROP,
    response_class=Response,
)
async def crop(request: Request, collection: Collection, face: Face) -> Response:
    """Return the crop that is stored of an enrolled face, if its collection keeps crops."""
    content = await gallery_service(request).curation.crop(collection, face)
    return Response(content, media_type=WEBP, headers={"cache-control": "no-store"})
