"""The calls for the gallery as functions of their arguments."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from vestibule_client.call import Call
from vestibule_client.files import File
from vestibule_client.gallery_answers import (
    CalibrationInfo,
    CalibrationInUse,
    CalibrationPage,
    Clusters,
    CollectionDetail,
    CollectionInfo,
    CollectionPage,
    DuplicatePage,
    Enrolment,
    ErasureReceipt,
    FaceList,
    FaceMove,
    FeedbackInfo,
    FeedbackList,
    JobInfo,
    JobItemPage,
    JobPage,
    MergeInfo,
    MergePage,
    PassageResult,
    PassageVerification,
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


def search(  # noqa: PLR0913  the endpoint's parameters
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
    """Search a collection for the faces in an image, or in each of several.

    `fpir` is the share of searches for people who are not enrolled that may return a match. `where` filters subjects by
    metadata: `{"site": "north", "level": {"in": [1, 2]}}`.
    """
    query = _search_query(collection, limit, fpir, fusion, extrapolate, where)
    query |= {"quality_gate": quality_gate, "repeated": repeated}
    return Call("POST", "/search", SearchResult, query=query, files=tuple(parts("file", pictures)))


def search_embeddings(  # noqa: PLR0913  the endpoint's parameters
    embeddings: Iterable[Sequence[float]],
    collection: str,
    *,
    limit: int = 5,
    fpir: float = 0.01,
    fusion: Fusion = "best",
    extrapolate: bool = False,
    where: Mapping[str, Any] | None = None,
    fingerprint: str | None = None,
) -> Call[SearchResult]:
    """Search a collection for embeddings, each separately; see `search`.

    With the `fingerprint` of their pipeline, the search is refused if the collection has another one.
    """
    query = _search_query(collection, limit, fpir, fusion, extrapolate, where) | {"fingerprint": fingerprint}
    body = {"embeddings": [list(embedding) for embedding in embeddings]}
    return Call("POST", "/search/embeddings", SearchResult, query=query, json=body)


def search_faces(
    faces: Iterable[str],
    collection: str,
    *,
    limit: int = 5,
    fpir: float = 0.01,
    fusion: Fusion = "best",
    extrapolate: bool = False,
    where: Mapping[str, Any] | None = None,
) -> Call[SearchResult]:
    """Search a collection for its own faces by their ids; the subject that has a face is no candidate for it."""
    query = _search_query(collection, limit, fpir, fusion, extrapolate, where)
    return Call("POST", "/search/embeddings", SearchResult, query=query, json={"faces": list(faces)})


def search_passage(  # noqa: PLR0913  the endpoint's parameters
    pictures: Pictures,
    collection: str,
    *,
    limit: int = 5,
    fpir: float = 0.01,
    fusion: Fusion = "best",
    quality_gate: bool = False,
    extrapolate: bool = False,
    where: Mapping[str, Any] | None = None,
) -> Call[PassageResult]:
    """Search a collection for the one person whom all images show: frames of one passage.

    The most prominent face of each frame is fused by its quality, and one decision is made. `fpir` is the share of
    passages of people who are not enrolled that may match; other parameters as in `search`.
    """
    call = search(
        pictures,
        collection,
        limit=limit,
        fpir=fpir,
        fusion=fusion,
        quality_gate=quality_gate,
        extrapolate=extrapolate,
        where=where,
    )
    return Call("POST", call.path, PassageResult, query={**call.query, "passage": True}, files=call.files)


def collections(*, after: str = "", limit: int = 100) -> Call[CollectionPage]:
    """List collections by page; `after` is `next` of the previous page."""
    return Call("GET", "/collections", CollectionPage, query={"after": after, "limit": limit})


def collection(name: str) -> Call[CollectionDetail]:
    """Return a collection and its counts."""
    return Call("GET", _COLLECTION, CollectionDetail, {"collection": name})


def create_collection(
    name: str,
    *,
    embedder: str | None = None,
    keep_crops: bool = False,
    encrypted: bool = False,
    allow_int8: bool = False,
) -> Call[CollectionInfo]:
    """Create a collection unless it exists; `embedder` is a face embedder or a classifier.

    `keep_crops` stores each aligned face, so that a later embedder can re-embed it. `encrypted` encrypts all data about
    subjects with the operator's key. `allow_int8` allows vectors of the embedder's quantised network. None of these can
    be changed later.
    """
    body = {"embedder": embedder, "keep_crops": keep_crops, "encrypted": encrypted, "allow_int8": allow_int8}
    return Call("PUT", _COLLECTION, CollectionInfo, {"collection": name}, json=body)


def erase_collection(name: str) -> Call[ErasureReceipt]:
    """Erase a collection with all its subjects."""
    return Call("DELETE", _COLLECTION, ErasureReceipt, {"collection": name})


def subjects(collection: str, *, after: str = "", limit: int = 100) -> Call[SubjectPage]:
    """List a collection's subjects by page; `after` is `next` of the previous page."""
    query = {"after": after, "limit": limit}
    return Call("GET", _COLLECTION + "/subjects", SubjectPage, {"collection": collection}, query)


def subject(collection: str, subject: str) -> Call[SubjectInfo]:
    """Return a subject."""
    return Call("GET", _SUBJECT, SubjectInfo, _names(collection, subject))


def put_subject(
    collection: str,
    subject: str,
    *,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    expires_at: datetime | None = None,
) -> Call[SubjectInfo]:
    """Create a subject, or replace its properties; `expires_at` needs a time zone."""
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
    collection: str,
    subject: str,
    pictures: Pictures,
    *,
    max_faces: int = 1,
    quality_gate: bool = True,
    idempotency_key: str | None = None,
) -> Call[Enrolment]:
    """Enrol the most prominent faces of images, if their quality suffices; the subject is created if missing.

    `idempotency_key`: up to 128 visible ASCII characters, such as a random UUID. A call that is repeated with the same
    key, within a day, returns the faces of the first call and enrols nothing.
    """
    return Call(
        "POST",
        _SUBJECT + "/faces",
        Enrolment,
        _names(collection, subject),
        {"max_faces": max_faces, "quality_gate": quality_gate},
        tuple(parts("file", pictures)),
        headers={} if idempotency_key is None else {"idempotency-key": idempotency_key},
    )


def faces(collection: str, subject: str, *, after: int = 0, limit: int = 10_000) -> Call[FaceList]:
    """List a subject's faces by page; `after` is `next` of the previous page."""
    query = {"after": after, "limit": limit}
    return Call("GET", _SUBJECT + "/faces", FaceList, _names(collection, subject), query)


def face_crop(collection: str, face: str) -> Call[File]:
    """Return the aligned face that was stored at enrolment, if the collection keeps crops."""
    return Call("GET", _COLLECTION + "/faces/{face}/crop", File, {"collection": collection, "face": face})


def move_faces(collection: str, faces: Iterable[str], to: str) -> Call[FaceMove]:
    """Move faces, all or none, to the subject `to`, which is created if missing."""
    body = {"faces": list(faces), "to": to}
    return Call("POST", _COLLECTION + "/faces/move", FaceMove, {"collection": collection}, json=body)


def merge_subjects(collection: str, subject: str, absorbed: Iterable[str]) -> Call[MergeInfo]:
    """Give the subject all faces and feedback of the `absorbed` subjects, which then do not exist."""
    return Call("POST", _SUBJECT + "/merge", MergeInfo, _names(collection, subject), json={"from": list(absorbed)})


def merges(collection: str, *, after: int = 0, limit: int = 100) -> Call[MergePage]:
    """List the merges that can be undone by page; `after` is `next` of the previous page."""
    query = {"after": after, "limit": limit}
    return Call("GET", _COLLECTION + "/merges", MergePage, {"collection": collection}, query)


def undo_merge(collection: str, merge: str) -> Call[MergeInfo]:
    """Undo a merge: the absorbed subjects exist again."""
    return Call("POST", _COLLECTION + "/merges/{merge}/undo", MergeInfo, {"collection": collection, "merge": merge})


def duplicates(collection: str, *, fmr: float = 0.00003, after: str = "", limit: int = 100) -> Call[DuplicatePage]:
    """List pairs of subjects that may be one person, for a page of `limit` subjects compared with all others.

    `fmr` is the share of pairs of different people that are listed.
    """
    query = {"fmr": fmr, "after": after, "limit": limit}
    return Call("GET", _COLLECTION + "/duplicates", DuplicatePage, {"collection": collection}, query)


def cluster_embeddings(
    embeddings: Iterable[Sequence[float]], *, model: str | None = None, prior: float = 0.01
) -> Call[Clusters]:
    """Propose clusters of up to 5,000 embeddings, each of one person, for a person to name.

    `prior` is the share of all pairs of faces that are expected to show one person.
    """
    numbers = [number for embedding in embeddings for number in embedding]
    body = {"embeddings": base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()}
    return Call("POST", "/cluster/embeddings", Clusters, query={"model": model, "prior": prior}, json=body)


def erase_face(collection: str, face: str) -> Call[ErasureReceipt]:
    """Erase a face, not its subject."""
    names = {"collection": collection, "face": face}
    return Call("DELETE", _COLLECTION + "/faces/{face}", ErasureReceipt, names)


def erasure(receipt: str) -> Call[ErasureReceipt]:
    """Return the status of an erasure by its receipt's id."""
    return Call("GET", "/erasures/{receipt}", ErasureReceipt, {"receipt": receipt})


def verify_subject(
    collection: str, subject: str, picture: Picture, *, fmr: float = 0.001, fusion: Fusion = "best"
) -> Call[SubjectVerification]:
    """Decide whether an image shows the subject, at this false match rate."""
    return Call(
        "POST",
        _SUBJECT + "/verify",
        SubjectVerification,
        _names(collection, subject),
        {"fmr": fmr, "fusion": fusion},
        (("file", content(picture)),),
    )


def verify_passage(
    collection: str, subject: str, pictures: Pictures, *, fmr: float = 0.001, fusion: Fusion = "best"
) -> Call[PassageVerification]:
    """Decide whether the frames of one passage show the subject, at this false match rate per passage."""
    return Call(
        "POST",
        _SUBJECT + "/verify",
        PassageVerification,
        _names(collection, subject),
        {"fmr": fmr, "fusion": fusion, "passage": True},
        tuple(parts("file", pictures)),
    )


def deny(collection: str, subject: str, picture: Picture) -> Call[FeedbackInfo]:
    """Report that the image's most prominent face is not the subject's; later searches take it into account."""
    files = (("file", content(picture)),)
    return Call("POST", _SUBJECT + "/feedback", FeedbackInfo, _names(collection, subject), files=files)


def denials(collection: str, subject: str, *, after: str = "", limit: int = 10_000) -> Call[FeedbackList]:
    """List the faces that were reported not to be the subject's, by page; `after` is `next` of the previous page."""
    query = {"after": after, "limit": limit}
    return Call("GET", _SUBJECT + "/feedback", FeedbackList, _names(collection, subject), query)


def take_back(collection: str, subject: str, feedback: str) -> Call[ErasureReceipt]:
    """Withdraw feedback and erase the face that was stored for it."""
    names = {**_names(collection, subject), "feedback": feedback}
    return Call("DELETE", _SUBJECT + "/feedback/{feedback}", ErasureReceipt, names)


def enrol_zip(collection: str, archive: Picture, *, max_faces: int = 1, quality_gate: bool = True) -> Call[JobInfo]:
    """Start to enrol a zip of photos in folders named by subject ids; `job` returns the progress."""
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
    """Start to enrol lines, each a `subject_id` with an `image` or a `vector`; `job` returns the progress.

    `image` is anything that other calls accept as a picture. A line may have `name`, `metadata` and `expires_at`.
    Vectors need the `fingerprint` of the collection, to confirm that they are from its pipeline.
    """
    query = {"max_faces": max_faces, "quality_gate": quality_gate, "fingerprint": fingerprint}
    data = "".join(f"{json.dumps(_line(line))}\n" for line in lines).encode()
    return Call(
        "POST", _BULK, JobInfo, {"collection": collection}, query, content=data, content_type="application/x-ndjson"
    )


def jobs(collection: str, *, after: int = 0, limit: int = 100) -> Call[JobPage]:
    """List a collection's bulk jobs by page; `after` is `next` of the previous page."""
    query = {"after": after, "limit": limit}
    return Call("GET", _COLLECTION + "/jobs", JobPage, {"collection": collection}, query)


def job(collection: str, job: str) -> Call[JobInfo]:
    """Return the progress of a bulk job."""
    return Call("GET", _COLLECTION + "/jobs/{job}", JobInfo, {"collection": collection, "job": job})


def job_items(collection: str, job: str, *, after: int = -1, limit: int = 100) -> Call[JobItemPage]:
    """List the status of each line or file by page; `after` is `next` of the previous page."""
    names, query = {"collection": collection, "job": job}, {"after": after, "limit": limit}
    return Call("GET", _COLLECTION + "/jobs/{job}/items", JobItemPage, names, query)


def cancel_job(collection: str, job: str) -> Call[JobInfo]:
    """Cancel a bulk job; faces that were enrolled stay."""
    return Call("DELETE", _COLLECTION + "/jobs/{job}", JobInfo, {"collection": collection, "job": job})


def reembed(collection: str, *, embedder: str | None = None) -> Call[Reembedding]:
    """Start to re-embed a collection from its stored crops, in the background."""
    return Call("POST", _COLLECTION + "/reembed", Reembedding, {"collection": collection}, json={"embedder": embedder})


def reembedding(collection: str) -> Call[Reembedding]:
    """Return the progress of a re-embedding; raises `NotFound` if there is none."""
    return Call("GET", _COLLECTION + "/reembed", Reembedding, {"collection": collection})


def cancel_reembedding(collection: str) -> Call[Reembedding]:
    """Cancel a re-embedding; the collection keeps its vectors."""
    return Call("DELETE", _COLLECTION + "/reembed", Reembedding, {"collection": collection})


def calibrate(
    collection: str, strangers: str, *, mated: str | None = None, compare_strangers: bool = True
) -> Call[CalibrationInfo]:
    """Fit a collection's thresholds to photos of people who are not enrolled, and use them from now on.

    `strangers` is a collection with these photos, each subject a person; `mated` one with further photos of enrolled
    people under their ids. `compare_strangers` must be false if a person may have several ids among the strangers.
    """
    body = {"strangers": strangers, "mated": mated, "compare_strangers": compare_strangers}
    return Call("POST", _COLLECTION + "/calibrations", CalibrationInfo, {"collection": collection}, json=body)


def calibrations(collection: str, *, after: int = 0, limit: int = 100) -> Call[CalibrationPage]:
    """List a collection's calibrations by page; `after` is `next` of the previous page."""
    query = {"after": after, "limit": limit}
    return Call("GET", _COLLECTION + "/calibrations", CalibrationPage, {"collection": collection}, query)


def calibration(collection: str, calibration: str) -> Call[CalibrationInfo]:
    """Return a calibration with its report."""
    names = {"collection": collection, "calibration": calibration}
    return Call("GET", _COLLECTION + "/calibrations/{calibration}", CalibrationInfo, names)


def calibration_in_use(collection: str) -> Call[CalibrationInUse]:
    """Return the calibration that searches of a collection use."""
    return Call("GET", _COLLECTION + "/calibration", CalibrationInUse, {"collection": collection})


def use_calibration(collection: str, calibration: str | None) -> Call[CalibrationInUse]:
    """Use an earlier calibration of a collection from now on; None: the embedder's own."""
    body = {"id": calibration}
    return Call("PUT", _COLLECTION + "/calibration", CalibrationInUse, {"collection": collection}, json=body)


def _search_query(
    collection: str, limit: int, fpir: float, fusion: Fusion, extrapolate: bool, where: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "collection": collection,
        "limit": limit,
        "fpir": fpir,
        "fusion": fusion,
        "extrapolate": extrapolate,
        "where": None if where is None else json.dumps(where),
    }


def _names(collection: str, subject: str) -> dict[str, str]:
    return {"collection": collection, "subject": subject}


def _line(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line as JSON values: images in base64, times as text."""
    values = dict(line)
    if "image" in line:
        values["image"] = base64.b64encode(content(line["image"])).decode()
    if isinstance(expires_at := line.get("expires_at"), datetime):
        values["expires_at"] = expires_at.isoformat()
    return values
