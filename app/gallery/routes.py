"""The gallery: /collections, their subjects, and the faces of those; /erasures."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from app import dependencies, errors
from app.auth.scopes import ENROL, INFER
from app.gallery import reembedding_routes
from app.gallery.bulk import routes as jobs
from app.gallery.dependencies import galleries
from app.gallery.schemas import (
    CollectionDetail,
    CollectionInfo,
    CollectionPage,
    EnrolParams,
    EnrolResponse,
    ErasureReceipt,
    FaceList,
    FeedbackInfo,
    FeedbackList,
    Key,
    NewCollection,
    SubjectInfo,
    SubjectPage,
    SubjectProperties,
    SubjectVerification,
    SubjectVerifyParams,
)
from app.images.request import images
from app.images.uploads import IMAGE_BODY
from app.middleware.load_shedding import admitted

router = APIRouter(tags=["gallery"])
router.include_router(jobs.router)
router.include_router(reembedding_routes.router)

COMMON = (errors.HostNotAllowed, errors.OriginNotAllowed, errors.NotFound, errors.InvalidParameters)
PROBLEMS = errors.describe(*COMMON, errors.Locked)
ERASING = errors.describe(*COMMON, errors.Locked, errors.DiskFull)
MAKING = errors.describe(
    *COMMON,
    errors.BadRequest,
    errors.BodyTooLarge,
    errors.Conflict,
    errors.UnknownModel,
    errors.Unprocessable,
    errors.NotReady,
    errors.DiskFull,
)
THERE_ALREADY: dict[int | str, dict[str, Any]] = {
    200: {"model": CollectionInfo, "description": "There is one already, made in the same way"}
}
COMPARING = errors.describe(*errors.OF_PICTURES, errors.NotFound, errors.Conflict, errors.NoFace, errors.Unprocessable)
ENROLLING = errors.describe(
    *errors.OF_PICTURES, errors.NotFound, errors.Conflict, errors.NoFace, errors.Unprocessable, errors.DiskFull
)

Collection = Annotated[Key, Path(description="The collection's name.")]
SubjectId = Annotated[Key, Path(description="The subject's id, which is the caller's.")]
After = Annotated[str, Query(max_length=128, description="Where the page begins: `next` of the one before.")]
Limit = Annotated[int, Query(ge=1, le=1000)]
# Of a subject's faces and feedback: as many as clients that know no pages could need.
LongLimit = Annotated[int, Query(ge=1, le=10_000)]
AfterFace = Annotated[int, Query(ge=0, le=2**62, description="Where the page begins: `next` of the one before.")]
AfterFeedback = Annotated[
    str,
    Query(
        pattern=r"^([0-9]{1,12}\.[0-9]{1,9}-[0-9]{1,19})?$",
        description="Where the page begins: `next` of the one before.",
    ),
]


@router.get("/collections", dependencies=ENROL, responses=PROBLEMS)
async def collections(request: Request, after: After = "", limit: Limit = 100) -> CollectionPage:
    """Every collection, by page."""
    return await galleries(request).list_collections(after, limit)


@router.put("/collections/{collection}", status_code=201, dependencies=ENROL, responses=MAKING | THERE_ALREADY)
async def create(request: Request, collection: Collection, asked: NewCollection, response: Response) -> CollectionInfo:
    """Make a collection; 200 where there is one already that was made in the same way."""
    made, new = await galleries(request).create(collection, asked, dependencies.caller(request))
    response.status_code = 201 if new else 200
    return made


@router.get("/collections/{collection}", dependencies=ENROL, responses=PROBLEMS)
async def read(request: Request, collection: Collection) -> CollectionDetail:
    """A collection, and how much is in it."""
    return await galleries(request).collection(collection)


@router.delete("/collections/{collection}", dependencies=ENROL, responses=ERASING)
async def drop(request: Request, collection: Collection) -> ErasureReceipt:
    """Erase a collection and all that is in it."""
    return await galleries(request).drop(collection, dependencies.caller(request))


@router.get("/collections/{collection}/subjects", dependencies=ENROL, responses=PROBLEMS)
async def subjects(request: Request, collection: Collection, after: After = "", limit: Limit = 100) -> SubjectPage:
    """A collection's subjects, by page."""
    return await galleries(request).list_subjects(collection, after, limit)


@router.put("/collections/{collection}/subjects/{subject}", dependencies=ENROL, responses=MAKING)
async def put_subject(
    request: Request, collection: Collection, subject: SubjectId, asked: SubjectProperties
) -> SubjectInfo:
    """Make a subject, or give it these properties in place of those it had."""
    return await galleries(request).put_subject(collection, subject, asked, dependencies.caller(request))


@router.get("/collections/{collection}/subjects/{subject}", dependencies=ENROL, responses=PROBLEMS)
async def subject(request: Request, collection: Collection, subject: SubjectId) -> SubjectInfo:
    """A subject."""
    return await galleries(request).subject(collection, subject)


@router.delete("/collections/{collection}/subjects/{subject}", dependencies=ENROL, responses=ERASING)
async def remove_subject(request: Request, collection: Collection, subject: SubjectId) -> ErasureReceipt:
    """Erase a subject and all its faces, those that wait in jobs among them."""
    return await galleries(request).jobs.remove_subject(collection, subject, dependencies.caller(request))


@router.get("/collections/{collection}/subjects/{subject}/faces", dependencies=ENROL, responses=PROBLEMS)
async def faces(
    request: Request, collection: Collection, subject: SubjectId, after: AfterFace = 0, limit: LongLimit = 10_000
) -> FaceList:
    """A subject's faces, by page."""
    return await galleries(request).list_faces(collection, subject, after, limit)


@router.post(
    "/collections/{collection}/subjects/{subject}/faces",
    openapi_extra=IMAGE_BODY,
    dependencies=ENROL,
    responses=ENROLLING,
)
@admitted
async def enrol(
    request: Request, collection: Collection, subject: SubjectId, params: Annotated[EnrolParams, Query()]
) -> EnrolResponse:
    """Enrol one picture of a subject, or up to 64; the subject is made if it is not there yet."""
    return await galleries(request).enrol(
        collection,
        subject,
        await images(request),
        params,
        dependencies.caller(request),
    )


@router.post(
    "/collections/{collection}/subjects/{subject}/verify",
    openapi_extra=IMAGE_BODY,
    dependencies=INFER,
    responses=COMPARING,
)
@admitted
async def verify(
    request: Request, collection: Collection, subject: SubjectId, params: Annotated[SubjectVerifyParams, Query()]
) -> SubjectVerification:
    """Is this the subject? The picture's most prominent face against the subject's faces."""
    return await galleries(request).recognition.verify(
        collection,
        subject,
        await images(request),
        params,
        dependencies.caller(request),
    )


@router.post(
    "/collections/{collection}/subjects/{subject}/feedback",
    status_code=201,
    dependencies=ENROL,
    openapi_extra=IMAGE_BODY,
    responses=ENROLLING,
)
@admitted
async def deny(request: Request, collection: Collection, subject: SubjectId) -> FeedbackInfo:
    """The picture's most prominent face is not the subject: searches do not name it for that face or similar ones."""
    return await galleries(request).recognition.deny(
        collection,
        subject,
        await images(request),
        dependencies.caller(request),
    )


@router.get("/collections/{collection}/subjects/{subject}/feedback", dependencies=ENROL, responses=PROBLEMS)
async def denials(
    request: Request, collection: Collection, subject: SubjectId, after: AfterFeedback = "", limit: LongLimit = 10_000
) -> FeedbackList:
    """What was said not to be the subject, by page."""
    return await galleries(request).recognition.denials(collection, subject, after, limit)


@router.delete(
    "/collections/{collection}/subjects/{subject}/feedback/{feedback}", dependencies=ENROL, responses=ERASING
)
async def take_back(request: Request, collection: Collection, subject: SubjectId, feedback: Key) -> ErasureReceipt:
    """Take it back, and erase the face that was kept for it."""
    return await galleries(request).recognition.take_back(collection, subject, feedback, dependencies.caller(request))


@router.delete("/collections/{collection}/faces/{face}", dependencies=ENROL, responses=ERASING)
async def remove_face(request: Request, collection: Collection, face: Key) -> ErasureReceipt:
    """Erase one face; its subject stays."""
    return await galleries(request).remove_face(collection, face, dependencies.caller(request))


@router.get("/erasures/{receipt}", dependencies=ENROL, responses=PROBLEMS)
async def erasure(request: Request, receipt: Key) -> ErasureReceipt:
    """What became of an erasure: `scrubbing`, then `erased`."""
    return await galleries(request).receipt(receipt)
