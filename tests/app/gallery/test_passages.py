"""One decision for the frames of a passage, over HTTP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image, ImageFilter

from app.faces.service import AlignedFace
from app.gallery.embedding_pipeline import EmbeddedFace
from app.gallery.passages import fuse_frames
from app.schemas import Failed, Problem
from models.align import TEMPLATE, Quality
from models.detector import Face
from models.passages import MAX_FRAMES
from tests.app.embedder import MATCHING, PASSAGES
from tests.app.face_pictures import grace_hopper, side_by_side
from tests.app.gallery.helpers import PNG, enrol
from tests.conftest import encode, photo

VERIFY = "/collections/doors/subjects/eileen/verify"


def post(client: TestClient, url: str, images: list[Image.Image | bytes], **params: object) -> Any:
    files = [("file", ("frame", item if isinstance(item, bytes) else encode(item))) for item in images]
    query = {"passage": True, "collection": "doors", **params} if url == "/search" else {"passage": True, **params}
    return client.post(url, params=query, files=files)  # type: ignore[arg-type]


def test_frames_of_a_subject_give_one_match(gallery: TestClient) -> None:
    for subject in ("eileen", "grace"):
        enrol(gallery, subject)
    blurred = photo("astronaut").filter(ImageFilter.GaussianBlur(3))
    response = post(
        gallery, "/search", [photo("astronaut"), blurred, photo("coffee"), b"no image"], fpir=0.1, limit=1
    ).json()
    first, second, third, fourth = response["data"]
    assert (response["status"], response["reasons"], response["frames"]) == ("match", [], 2)
    assert [candidate["subject_id"] for candidate in response["candidates"]] == ["eileen"]
    assert [frame["status"] for frame in (first, second, third)] == ["fused", "fused", "no_face"]
    assert fourth["problem"]["status"] == 415
    assert first["weight"] > second["weight"] > 0
    assert first["weight"] + second["weight"] == pytest.approx(1)
    assert third["face"] is None
    fmr = response["operating_point"]["fmr"]
    assert fmr == pytest.approx(1 - 0.9**0.5)
    assert 1 - response["threshold"] == pytest.approx(PASSAGES[1].threshold(fmr).similarity)
    assert (response["operating_point"]["calibration"], response["fpir"]) == ("2 frames", 0.1)


def test_the_vector_of_equal_frames_is_that_of_one(gallery: TestClient) -> None:
    for subject in ("eileen", "grace"):
        enrol(gallery, subject)
    one, three = (post(gallery, "/search", [grace_hopper()] * count).json() for count in (1, 3))
    assert [c["distance"] for c in one["candidates"]] == pytest.approx([c["distance"] for c in three["candidates"]])
    assert (one["frames"], three["frames"]) == (1, 3)
    assert one["threshold"] > three["threshold"]


def test_a_passage_is_verified_against_a_subject(gallery: TestClient) -> None:
    enrol(gallery, "eileen")
    right = post(gallery, VERIFY, [photo("astronaut")] * 2, fmr=0.1).json()
    assert (right["verified"], right["denied"], right["frames"], right["reasons"]) == (True, False, 2, [])
    assert right["distance"] == pytest.approx(0, abs=1e-5)
    assert 1 - right["threshold"] == pytest.approx(PASSAGES[1].threshold(0.1).similarity)
    (face,) = gallery.get("/collections/doors/subjects/eileen/faces").json()["data"]
    assert right["face_id"] == face["id"]
    assert post(gallery, VERIFY, [photo("coffee")] * 2).json()["type"] == "urn:vestibule:problem:no-face"
    assert post(gallery, VERIFY, [photo("astronaut")], fmr=0.5).status_code == 422


def test_a_passage_without_a_face_is_rejected(gallery: TestClient) -> None:
    response = post(gallery, "/search", [photo("coffee")] * 2).json()
    assert (response["status"], response["candidates"], response["frames"]) == ("rejected", [], 0)
    assert (response["threshold"], response["operating_point"]) == (None, None)
    small = Image.new("RGB", (640, 480), (90, 110, 120))
    small.paste(photo("astronaut").crop((165, 45, 285, 165)).resize((34, 34)), (300, 200))
    gated = post(gallery, "/search", [small, small], quality_gate=True).json()
    assert gated["status"] == "rejected"
    assert {frame["status"] for frame in gated["data"]} <= {"rejected", "no_face"}


def test_a_frame_counts_by_its_most_prominent_face(gallery: TestClient) -> None:
    response = post(gallery, "/search", [side_by_side()]).json()
    (frame,) = response["data"]
    assert frame["face"]["box"][0] > 512
    assert response["status"] == "unknown"


def test_rates_beyond_the_calibration_match_nobody(gallery: TestClient) -> None:
    enrol(gallery, "eileen")
    response = post(gallery, "/search", [photo("astronaut")], fpir=1e-6).json()
    assert (response["status"], response["reasons"]) == ("unknown", ["BEYOND_CALIBRATION"])
    assert response["candidates"][0]["subject_id"] == "eileen"


def test_an_embedder_without_calibration_for_passages_is_refused(gallery: TestClient) -> None:
    assert gallery.put("/collections/old", json={"embedder": "faces-only"}).status_code == 201
    response = post(gallery, "/search", [photo("astronaut")], collection="old")
    assert response.status_code == 422
    assert "not calibrated for passages" in response.json()["detail"]
    gallery.delete("/collections/old")
    single = gallery.post("/search", params={"passage": True, "collection": "doors"}, content=b"x", headers=PNG)
    assert single.status_code == 415


def embedded(*values: float, sharpness: float = 1.0) -> EmbeddedFace:
    vector = torch.tensor(values, dtype=torch.float32)
    quality = Quality(side=90, sharpness=sharpness, yaw=0, pitch=0.5, brightness=120, confidence=0.9)
    face = AlignedFace(Face((0, 0, 112, 112), 0.9, TEMPLATE), np.zeros((112, 112, 3), np.uint8), quality, 1.0)
    return EmbeddedFace(face, face.describe(), vector / vector.norm())


def test_frames_of_another_person_are_named_and_not_fused() -> None:
    failed = Failed(index=1, problem=Problem(type="t", title="t", status=400))
    frames: list[EmbeddedFace | Failed | None] = [embedded(1, 0.1), failed, embedded(1, -0.1), embedded(0, 1), None]
    passage = fuse_frames(frames, MATCHING)
    statuses = ["failed" if isinstance(frame, Failed) else frame.status for frame in passage.frames]
    assert statuses == ["fused", "failed", "fused", "other_person", "no_face"]
    assert passage.reasons == ["SEVERAL_PEOPLE"]
    assert passage.fused == 2
    assert passage.vector == pytest.approx([1, 0])


def test_the_sharpest_frames_are_fused() -> None:
    frames = [embedded(1, number / 100, sharpness=0.009 * number) for number in range(MAX_FRAMES + 2)]
    passage = fuse_frames(frames, MATCHING)
    statuses = [frame.status for frame in passage.frames if not isinstance(frame, Failed)]
    assert statuses == ["surplus"] * 2 + ["fused"] * MAX_FRAMES
    assert passage.fused == MAX_FRAMES


def test_the_quality_gate_leaves_blurred_frames_out() -> None:
    frames = [embedded(1, 0), embedded(1, 0, sharpness=0.001)]
    assert fuse_frames(frames, MATCHING).fused == 2
    gated = fuse_frames(frames, MATCHING, quality_gate=True)
    assert gated.fused == 1
    (_, second) = gated.frames
    assert not isinstance(second, Failed)
    assert (second.status, second.reasons) == ("rejected", ["LOW_SHARPNESS"])
    assert replace(gated, frames=[]).reasons == []
