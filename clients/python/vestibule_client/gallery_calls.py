"""The calls about the gallery, likewise."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from vestibule_client.call import Call
from vestibule_client.gallery_answers import (
    CollectionDetail,
    CollectionInfo,
    CollectionPage,
    Enrolment,
    ErasureReceipt,
    FaceList,
    FeedbackInfo,
    FeedbackList,
    JobInfo,
    JobItemPage,
    JobPage,
    Reembedding,
    SearchResult,
    SubjectInfo,
    SubjectPage,
    SubjectVerification,
)
from vestibule_client.pictures import Picture, Pictures, content, parts

Fusion = Literal["best", "mean"]

_COLLECTION = "/collections/{collection}"
_SUBJECT = _COLLECTION + "/subjects/{subject}"
_BULK = _COLLECTION + "/faces:bulk"


def search(  # noqa: PLR0913  they are the service's
    pictures: Pictures,
    collection: str,
    *,
    limit: int = 5,
    fpir: float = 0.01,
    fusion: Fusion = "best",
    quality_gate: bool = False,
    extrapolate: bool = False,
    repeated: bool = False,
    where: Mapping[str, Any] | None = None,
) -> Call[SearchResult]:
    """Who of a collection is in a picture, or in each of several?

    `fpir` is the share of searches for strangers that may name somebody. `where` chooses among subjects by their
    metadata: `{"site": "north", "level": {"in": [1, 2]}}`.
    """
    query = {
        "collection": collection,
        "limit": limit,
        "fpir": fpir,
        "fusion": fusion,
        "quality_gate": quality_gate,
        "extrapolate": extrapolate,
        "repeated": repeated,
        "where": None if where is None else json.dumps(where),
    }
    return Call("POST", "/search", SearchResult, query=query, files=tuple(parts("file", pictures)))


def collections(*, after: str = "", limit: int = 100) -> Call[CollectionPage]:
    """Collections by page, from `next` of the page before."""
    return Call("GET", "/collections", CollectionPage, query={"after": after, "limit": limit})


def collection(name: str) -> Call[CollectionDetail]:
    """A collection, and how much is in it."""
    return Call("GET", _COLLECTION, CollectionDetail, {"collection": name})


def create_collection(
    name: str, *, embedder: str | None = None, keep_crops: bool = False, encrypted: bool = False
) -> Call[CollectionInfo]:
    """Make a collection, if there is none of this name; `embedder` is one of faces, or a classifier.

    `keep_crops`: each aligned face is kept, so that it can be embedded anew by a later embedder. `encrypted`: nothing
    of who is in it is written openly, but sealed by the service's operator's key; that cannot be changed later.
    """
    body = {"embedder": embedder, "keep_crops": keep_crops, "encrypted": encrypted}
    return Call("PUT", _COLLECTION, CollectionInfo, {"collection": name}, json=body)


def erase_collection(name: str) -> Call[ErasureReceipt]:
    """Erase a collection and all that is in it."""
    return Call("DELETE", _COLLECTION, ErasureReceipt, {"collection": name})


def subjects(collection: str, *, after: str = "", limit: int = 100) -> Call[SubjectPage]:
    """A collection's subjects by page, from `next` of the page before."""
    query = {"after": after, "limit": limit}
    return Call("GET", _COLLECTION + "/subjects", SubjectPage, {"collection": collection}, query)


def subject(collection: str, subject: str) -> Call[SubjectInfo]:
    """A subject."""
    return Call("GET", _SUBJECT, SubjectInfo, _names(collection, subject))


def put_subject(
    collection: str,
    subject: str,
    *,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    expires_at: datetime | None = None,
) -> Call[SubjectInfo]:
    """Make a subject, or give it these properties in place of those it had; `expires_at` has a time zone."""
    body = {
        "name": name,
        "metadata": dict(metadata or {}),
        "expires_at": expires_at.isoformat() if expires_at else None,
    }
    return Call("PUT", _SUBJECT, SubjectInfo, _names(collection, subject), json=body)


def erase_subject(collection: str, subject: str) -> Call[ErasureReceipt]:
    """Erase a subject and all its faces."""
    return Call("DELETE", _SUBJECT, ErasureReceipt, _names(collection, subject))


def enrol(
    collection: str, subject: str, pictures: Pictures, *, max_faces: int = 1, quality_gate: bool = True
) -> Call[Enrolment]:
    """Enrol pictures of a subject, created if missing: of each the most prominent faces, if they are good."""
    return Call(
        "POST",
        _SUBJECT + "/faces",
        Enrolment,
        _names(collection, subject),
        {"max_faces": max_faces, "quality_gate": quality_gate},
        tuple(parts("file", pictures)),
    )


def faces(collection: str, subject: str, *, after: int = 0, limit: int = 10_000) -> Call[FaceList]:
    """A subject's faces by page, from `next` of the page before."""
    query = {"after": after, "limit": limit}
    return Call("GET", _SUBJECT + "/faces", FaceList, _names(collection, subject), query)


def erase_face(collection: str, face: str) -> Call[ErasureReceipt]:
    """Erase one face; its subject stays."""
    names = {"collection": collection, "face": face}
    return Call("DELETE", _COLLECTION + "/faces/{face}", ErasureReceipt, names)


def erasure(receipt: str) -> Call[ErasureReceipt]:
    """What became of an erasure, by its receipt's id."""
    return Call("GET", "/erasures/{receipt}", ErasureReceipt, {"receipt": receipt})


def verify_subject(
    collection: str, subject: str, picture: Picture, *, fmr: float = 0.001, fusion: Fusion = "best"
) -> Call[SubjectVerification]:
    """Is this the subject, at this false match rate?"""
    return Call(
        "POST",
        _SUBJECT + "/verify",
        SubjectVerification,
        _names(collection, subject),
        {"fmr": fmr, "fusion": fusion},
        (("file", content(picture)),),
    )


def deny(collection: str, subject: str, picture: Picture) -> Call[FeedbackInfo]:
    """Say that the picture's most prominent face is not the subject's; searches respect it."""
    files = (("file", content(picture)),)
    return Call("POST", _SUBJECT + "/feedback", FeedbackInfo, _names(collection, subject), files=files)


def denials(collection: str, subject: str, *, after: str = "", limit: int = 10_000) -> Call[FeedbackList]:
    """What was said not to be the subject by page, from `next` of the page before."""
    query = {"after": after, "limit": limit}
    return Call("GET", _SUBJECT + "/feedback", FeedbackList, _names(collection, subject), query)


def take_back(collection: str, subject: str, feedback: str) -> Call[ErasureReceipt]:
    """Take such a word back, and erase the face that was kept for it."""
    names = {**_names(collection, subject), "feedback": feedback}
    return Call("DELETE", _SUBJECT + "/feedback/{feedback}", ErasureReceipt, names)


def enrol_zip(collection: str, archive: Picture, *, max_faces: int = 1, quality_gate: bool = True) -> Call[JobInfo]:
    """Begin to enrol a zip of photos, which lie in folders named by their subjects' ids; `job` tells how far it is."""
    query = {"max_faces": max_faces, "quality_gate": quality_gate}
    data = content(archive)
    return Call("POST", _BULK, JobInfo, {"collection": collection}, query, content=data, content_type="application/zip")


def enrol_lines(
    collection: str,
    lines: Iterable[Mapping[str, Any]],
    *,
    fingerprint: str | None = None,
    max_faces: int = 1,
    quality_gate: bool = True,
) -> Call[JobInfo]:
    """Begin to enrol many, each a `subject_id` with an `image` or a `vector`; `job` tells how far it is.

    `image` is a picture as everywhere here. A line may have `name`, `metadata` and `expires_at`. Vectors need the
    `fingerprint` of the collection, which says that they are of its pipeline.
    """
    query = {"max_faces": max_faces, "quality_gate": quality_gate, "fingerprint": fingerprint}
    data = "".join(f"{json.dumps(_line(line))}\n" for line in lines).encode()
    return Call(
        "POST", _BULK, JobInfo, {"collection": collection}, query, content=data, content_type="application/x-ndjson"
    )


def jobs(collection: str, *, after: int = 0, limit: int = 100) -> Call[JobPage]:
    """A collection's bulk jobs by page, from `next` of the page before."""
    query = {"after": after, "limit": limit}
    return Call("GET", _COLLECTION + "/jobs", JobPage, {"collection": collection}, query)


def job(collection: str, job: str) -> Call[JobInfo]:
    """How far a bulk job is."""
    return Call("GET", _COLLECTION + "/jobs/{job}", JobInfo, {"collection": collection, "job": job})


def job_items(collection: str, job: str, *, after: int = -1, limit: int = 100) -> Call[JobItemPage]:
    """What became of each line or file, by page, from `next` of the page before."""
    names, query = {"collection": collection, "job": job}, {"after": after, "limit": limit}
    return Call("GET", _COLLECTION + "/jobs/{job}/items", JobItemPage, names, query)


def cancel_job(collection: str, job: str) -> Call[JobInfo]:
    """Enrol no more of a bulk job; what is enrolled stays."""
    return Call("DELETE", _COLLECTION + "/jobs/{job}", JobInfo, {"collection": collection, "job": job})


def reembed(collection: str, *, embedder: str | None = None) -> Call[Reembedding]:
    """Make all vectors of a collection anew, in the background, from the crops that were kept."""
    return Call("POST", _COLLECTION + "/reembed", Reembedding, {"collection": collection}, json={"embedder": embedder})


def reembedding(collection: str) -> Call[Reembedding]:
    """How far that is; `NotFound` is raised where it is over, or was not asked for."""
    return Call("GET", _COLLECTION + "/reembed", Reembedding, {"collection": collection})


def cancel_reembedding(collection: str) -> Call[Reembedding]:
    """Leave the collection as it is."""
    return Call("DELETE", _COLLECTION + "/reembed", Reembedding, {"collection": collection})


def _names(collection: str, subject: str) -> dict[str, str]:
    return {"collection": collection, "subject": subject}


def _line(line: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it: pictures in base64, times as text."""
    written = dict(line)
    if "image" in line:
        written["image"] = base64.b64encode(content(line["image"])).decode()
    if isinstance(expires_at := line.get("expires_at"), datetime):
        written["expires_at"] = expires_at.isoformat()
    return written
