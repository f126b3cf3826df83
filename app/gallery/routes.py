"""Routes of the gallery: searches, collections, their subjects and faces, erasures, re-embeddings and bulk jobs."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Header, Path, Query, Request, Response

from app import errors
from app.auth.scopes import ENROL, INFER
from app.gallery.bulk.schemas import BulkParams, JobInfo, JobItemPage, JobPage
from app.gallery.bulk.upload import BULK_BODY, read_upload
from app.gallery.passage_schemas import PassageResponse, PassageVerification
from app.gallery.schemas import (
    CollectionDetail,
    CollectionInfo,
    CollectionPage,
    EnrolParams,
    EnrolResponse,
    ErasureReceipt,
    FaceList,
    Key,
    NewCollection,
    NewEmbedder,
    ReembeddingInfo,
    SubjectInfo,
    SubjectPage,
    SubjectProperties,
)
from app.gallery.search_schemas import (
    FeedbackInfo,
    FeedbackList,
    SearchParams,
    SearchResponse,
    SubjectVerification,
    SubjectVerifyParams,
)
from app.gallery.service import GalleryService
from app.images.uploads import IMAGE_BODY, images
from app.middleware.routing import counts_toward_capacity

router = APIRouter(tags=["gallery"])

COMMON = (
    errors.HostNotAllowed,
    errors.OriginNotAllowed,
    errors.NotFound,
    errors.InvalidParameters,
    errors.StorageUnavailable,
)
PROBLEMS = errors.describe(*COMMON, errors.Locked)
ERASING = errors.describe(*COMMON, errors.Locked, errors.DiskFull)
REEMBEDDING = (
    *COMMON,
    errors.BadRequest,
    errors.BodyTooLarge,
    errors.Conflict,
    errors.UnknownModel,
    errors.NotReady,
    errors.DiskFull,
)
CREATING = errors.describe(*REEMBEDDING, errors.Unprocessable)
SENDING = errors.describe(
    errors.BadRequest,
    errors.OriginNotAllowed,
    errors.NotFound,
    errors.Conflict,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.InvalidParameters,
    errors.Unprocessable,
    errors.Overloaded,
    errors.Locked,
    errors.StorageUnavailable,
    errors.DiskFull,
)
EXISTS: dict[int | str, dict[str, Any]] = {
    200: {"model": CollectionInfo, "description": "The collection exists already, with the same settings"}
}
SEARCHING = (*errors.IMAGE_ERRORS, errors.NotFound, errors.Conflict, errors.StorageUnavailable)
COMPARING = errors.describe(*SEARCHING, errors.NoFace, errors.Unprocessable)
ENROLLING = COMPARING | errors.describe(errors.DiskFull)

Collection = Annotated[Key, Path(description="The collection's name.")]
Job = Annotated[Key, Path(description="The job's id.")]
SubjectId = Annotated[Key, Path(description="The subject's id, which the caller chooses.")]
After = Annotated[str, Query(max_length=128, description="Where the page begins: the `next` of the previous page.")]
Limit = Annotated[int, Query(ge=1, le=1000)]
# Of a subject's faces and feedback: the default is enough for clients that do not follow `next`.
LongLimit = Annotated[int, Query(ge=1, le=10_000)]
AfterFace = Annotated[int, Query(ge=0, le=2**62, description="Where the page begins: the `next` of the previous page.")]
AfterFeedback = Annotated[
    str,
    Query(
        pattern=r"^([0-9]{1,12}\.[0-9]{1,9}-[0-9]{1,19})?$",
        description="Where the page begins: the `next` of the previous page.",
    ),
]


IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[!-~]{1,128}$",
        description=(
            "A text that the caller chooses for this request, such as a random UUID. A repeated request with the same"
            " key, within a day, returns the result of the first and stores nothing; 409 if its images or parameters"
            " differ. Each image is enrolled once, also if only some of the images were enrolled."
        ),
    ),
]


def gallery_service(request: Request) -> GalleryService:
    """Return the gallery service."""
    return cast("GalleryService", request.app.state.gallery)


@router.post(
    "/search",
    openapi_extra=IMAGE_BODY,
    dependencies=INFER,
    responses=errors.describe(*SEARCHING, errors.Unprocessable),
)
@counts_toward_capacity
async def search(request: Request, params: Annotated[SearchParams, Query()]) -> SearchResponse | PassageResponse:
    """Return for each face of each image whether it is a `match`, `unknown` or `rejected`, and the nearest subjects.

    With `passage`, return one decision for the person whom all images show.
    """
    service = gallery_service(request)
    search = service.passages.search if params.passage else service.searches.search
    return await search(await images(request), params, request.state.caller)


@router.get("/collections", dependencies=ENROL, responses=PROBLEMS)
async def collections(request: Request, after: After = "", limit: Limit = 100) -> CollectionPage:
    """Return a page of the collections."""
    return await gallery_service(request).list_collections(after, limit)


@router.put("/collections/{collection}", status_code=201, dependencies=ENROL, responses=CREATING | EXISTS)
async def create(request: Request, collection: Collection, params: NewCollection, response: Response) -> CollectionInfo:
    """Create a collection; 200 if it exists already with the same settings."""
    info, is_new = await gallery_service(request).create(collection, params, request.state.caller)
    response.status_code = 201 if is_new else 200
    return info


@router.get("/collections/{collection}", dependencies=ENROL, responses=PROBLEMS)
async def read(request: Request, collection: Collection) -> CollectionDetail:
    """Return a collection and its size."""
    return await gallery_service(request).collection(collection)


@router.delete("/collections/{collection}", dependencies=ENROL, responses=ERASING)
async def drop(request: Request, collection: Collection) -> ErasureReceipt:
    """Erase a collection and its contents."""
    return await gallery_service(request).drop(collection, request.state.caller)


@router.get("/collections/{collection}/subjects", dependencies=ENROL, responses=PROBLEMS)
async def subjects(request: Request, collection: Collection, after: After = "", limit: Limit = 100) -> SubjectPage:
    """Return a page of a collection's subjects."""
    return await gallery_service(request).list_subjects(collection, after, limit)


@router.put("/collections/{collection}/subjects/{subject}", dependencies=ENROL, responses=CREATING)
async def put_subject(
    request: Request, collection: Collection, subject: SubjectId, properties: SubjectProperties
) -> SubjectInfo:
    """Create a subject, or replace its properties."""
    return await gallery_service(request).put_subject(collection, subject, properties, request.state.caller)


@router.get("/collections/{collection}/subjects/{subject}", dependencies=ENROL, responses=PROBLEMS)
async def subject(request: Request, collection: Collection, subject: SubjectId) -> SubjectInfo:
    """Return a subject."""
    return await gallery_service(request).subject(collection, subject)


@router.delete("/collections/{collection}/subjects/{subject}", dependencies=ENROL, responses=ERASING)
async def remove_subject(request: Request, collection: Collection, subject: SubjectId) -> ErasureReceipt:
    """Erase a subject and all its faces, including those that wait in bulk jobs."""
    return await gallery_service(request).jobs.remove_subject(collection, subject, request.state.caller)


@router.get("/collections/{collection}/subjects/{subject}/faces", dependencies=ENROL, responses=PROBLEMS)
async def faces(
    request: Request, collection: Collection, subject: SubjectId, after: AfterFace = 0, limit: LongLimit = 10_000
) -> FaceList:
    """Return a page of a subject's faces."""
    return await gallery_service(request).list_faces(collection, subject, after, limit)


@router.post(
    "/collections/{collection}/subjects/{subject}/faces",
    openapi_extra=IMAGE_BODY,
    dependencies=ENROL,
    responses=ENROLLING,
)
@counts_toward_capacity
async def enrol(
    request: Request,
    collection: Collection,
    subject: SubjectId,
    params: Annotated[EnrolParams, Query()],
    idempotency_key: IdempotencyKey = None,
) -> EnrolResponse:
    """Enrol up to 64 images of a subject, which is created if it does not exist."""
    return await gallery_service(request).enrol(
        collection,
        subject,
        await images(request),
        params,
        request.state.caller,
        idempotency_key,
    )


@router.post(
    "/collections/{collection}/subjects/{subject}/verify",
    openapi_extra=IMAGE_BODY,
    dependencies=INFER,
    responses=COMPARING,
)
@counts_toward_capacity
async def verify(
    request: Request, collection: Collection, subject: SubjectId, params: Annotated[SubjectVerifyParams, Query()]
) -> SubjectVerification | PassageVerification:
    """Compare the image's most prominent face, or with `passage` the person of all images, with the subject's faces."""
    service = gallery_service(request)
    verify = service.passages.verify if params.passage else service.searches.verify
    return await verify(
        collection,
        subject,
        await images(request),
        params,
        request.state.caller,
    )


@router.post(
    "/collections/{collection}/subjects/{subject}/feedback",
    status_code=201,
    dependencies=ENROL,
    openapi_extra=IMAGE_BODY,
    responses=ENROLLING,
)
@counts_toward_capacity
async def deny(request: Request, collection: Collection, subject: SubjectId) -> FeedbackInfo:
    """Report that the image's most prominent face is not the subject's: searches for similar faces do not return it."""
    return await gallery_service(request).add_feedback(
        collection,
        subject,
        await images(request),
        request.state.caller,
    )


@router.get("/collections/{collection}/subjects/{subject}/feedback", dependencies=ENROL, responses=PROBLEMS)
async def denials(
    request: Request, collection: Collection, subject: SubjectId, after: AfterFeedback = "", limit: LongLimit = 10_000
) -> FeedbackList:
    """Return a page of the feedback on a subject."""
    return await gallery_service(request).list_feedback(collection, subject, after, limit)


@router.delete(
    "/collections/{collection}/subjects/{subject}/feedback/{feedback}", dependencies=ENROL, responses=ERASING
)
async def take_back(request: Request, collection: Collection, subject: SubjectId, feedback: Key) -> ErasureReceipt:
    """Erase feedback and the face that is stored for it."""
    return await gallery_service(request).remove_feedback(collection, subject, feedback, request.state.caller)


@router.delete("/collections/{collection}/faces/{face}", dependencies=ENROL, responses=ERASING)
async def remove_face(request: Request, collection: Collection, face: Key) -> ErasureReceipt:
    """Erase one face; its subject stays."""
    return await gallery_service(request).remove_face(collection, face, request.state.caller)


@router.get("/erasures/{receipt}", dependencies=ENROL, responses=PROBLEMS)
async def erasure(request: Request, receipt: Key) -> ErasureReceipt:
    """Return the state of an erasure: `scrubbing`, then `erased`."""
    return await gallery_service(request).receipt(receipt)


@router.post(
    "/collections/{collection}/reembed",
    status_code=202,
    dependencies=ENROL,
    responses=CREATING,
)
async def begin(request: Request, collection: Collection, params: NewEmbedder) -> ReembeddingInfo:
    """Compute all vectors of a collection again from the stored crops, in the background, and then switch to them."""
    return await gallery_service(request).reembedder.begin(collection, params, request.state.caller)


@router.get("/collections/{collection}/reembed", dependencies=ENROL, responses=errors.describe(*COMMON))
async def progress(request: Request, collection: Collection) -> ReembeddingInfo:
    """Return the progress of the re-embedding; 404 if there is none or it has ended."""
    return await gallery_service(request).reembedder.progress(collection)


@router.delete(
    "/collections/{collection}/reembed", dependencies=ENROL, responses=errors.describe(*COMMON, errors.DiskFull)
)
async def cancel(request: Request, collection: Collection) -> ReembeddingInfo:
    """Cancel the re-embedding; the collection keeps its vectors."""
    return await gallery_service(request).reembedder.cancel(collection, request.state.caller)


@router.post(
    "/collections/{collection}/faces:bulk",
    status_code=202,
    dependencies=ENROL,
    openapi_extra=BULK_BODY,
    responses=SENDING,
)
@counts_toward_capacity
async def send(request: Request, collection: Collection, params: Annotated[BulkParams, Query()]) -> JobInfo:
    """Enrol many faces in the background, from a zip of photos or from lines of JSON with images or vectors."""
    return await gallery_service(request).jobs.submit(
        collection, await read_upload(request), params, request.state.caller
    )


@router.get("/collections/{collection}/jobs", dependencies=ENROL, responses=PROBLEMS)
async def jobs(
    request: Request, collection: Collection, after: Annotated[int, Query(ge=0, le=2**62)] = 0, limit: Limit = 100
) -> JobPage:
    """Return a page of a collection's jobs. Jobs are deleted a week after they end."""
    return await gallery_service(request).jobs.list_jobs(collection, after, limit)


@router.get("/collections/{collection}/jobs/{job}", dependencies=ENROL, responses=PROBLEMS)
async def job(request: Request, collection: Collection, job: Job) -> JobInfo:
    """Return a job and its progress."""
    return await gallery_service(request).jobs.job(collection, job)


@router.get("/collections/{collection}/jobs/{job}/items", dependencies=ENROL, responses=PROBLEMS)
async def items(
    request: Request,
    collection: Collection,
    job: Job,
    after: Annotated[int, Query(ge=-1, le=2**62)] = -1,
    limit: Limit = 100,
) -> JobItemPage:
    """Return a page of the outcomes of a job's lines or files."""
    return await gallery_service(request).jobs.items(collection, job, after, limit)


@router.delete("/collections/{collection}/jobs/{job}", name="cancel", dependencies=ENROL, responses=ERASING)
async def cancel_job(request: Request, collection: Collection, job: Job) -> JobInfo:
    """Cancel the pending items of a job; enrolled faces stay."""
    return await gallery_service(request).jobs.cancel(collection, job, request.state.caller)
