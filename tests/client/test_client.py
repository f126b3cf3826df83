"""The client with the real service and real images."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.settings import PROJECT
from vestibule_client import Client, Conflict, Failed, NoFace, NotFound, UnknownModel

EXAMPLES = PROJECT / "examples"
COFFEE, CAT = EXAMPLES / "coffee.jpg", EXAMPLES / "cat.jpg"
ASTRONAUT, HOPPER = EXAMPLES / "astronaut.jpg", EXAMPLES / "hopper.jpg"


@pytest.fixture(scope="module")
def client(live: str) -> Iterator[Client]:
    with Client(live) as connected:
        yield connected


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_classify(client: Client) -> None:
    response = client.classify(COFFEE, top_k=2)
    assert response.model == "efficientnet-lite0"
    assert [prediction.class_ for prediction in response.first.predictions] == ["espresso", "cup"]
    assert response.first.predictions[0].confidence == pytest.approx(0.953, abs=0.02)


def test_bad_image_does_not_affect_the_others(client: Client) -> None:
    with CAT.open("rb") as file:
        coffee, bad, cat = client.classify([str(COFFEE), b"no picture", file], top_k=1).data
    assert not isinstance(coffee, Failed)
    assert not isinstance(cat, Failed)
    assert isinstance(bad, Failed)
    assert (coffee.predictions[0].class_, cat.predictions[0].class_) == ("espresso", "Egyptian cat")
    assert (bad.index, bad.problem.type) == (1, "urn:vestibule:problem:unsupported-image")
    with pytest.raises(UnknownModel, match="nobody") as error:
        client.classify(COFFEE, model="nobody")
    assert error.value.request_id


def test_faces(client: Client) -> None:
    detected = client.detect(ASTRONAUT).first
    (face,) = detected.faces
    assert (detected.width, detected.height) == (512, 512)
    assert 0 < face.box[0] < face.landmarks.left_eye[0] < face.landmarks.right_eye[0] < face.box[2] < 512
    astronaut, hopper = client.embed([ASTRONAUT, HOPPER]).data
    assert not isinstance(astronaut, Failed)
    assert not isinstance(hopper, Failed)
    assert np.linalg.norm(astronaut.embedding) == pytest.approx(1, abs=1e-4)
    strangers = client.verify(ASTRONAUT, HOPPER)
    assert not strangers.verified
    assert strangers.distance == pytest.approx(1 - np.dot(astronaut.embedding, hopper.embedding), abs=1e-3)
    assert client.verify(ASTRONAUT, ASTRONAUT, fmr=0.01).verified
    compared = client.verify_embeddings(astronaut.embedding, [astronaut.embedding, hopper.embedding])
    assert [item.verified for item in compared.data] == [True, False]
    with pytest.raises(NoFace):
        client.verify(COFFEE, ASTRONAUT)
    with pytest.raises(NoFace):
        assert client.embed([COFFEE, ASTRONAUT]).first


def test_generated_images(client: Client, tmp_path: Path) -> None:
    grid = client.generate(n=4, seed=1, label=[2, 0, 2, 6], grid=4)
    assert (grid.seed, grid.media_type, opened(grid.content).size) == (1, "image/png", (112, 28))
    grid.save(tmp_path / "year.png")
    each = client.generate_each(n=4, seed=1, label=["2", "0", "2", "6"])
    assert np.array_equal(
        np.hstack([np.asarray(opened(sample.png)) for sample in each.data]),
        np.asarray(Image.open(tmp_path / "year.png")),
    )
    assert [sample.label for sample in each.data] == ["2", "0", "2", "6"]
    assert client.generate(n=1, label=7).seed is not None
    strip = client.interpolate(1, 2, label=3, steps=4)
    assert opened(strip.content).size == (112, 28)
    animation = client.interpolate(1, 2, label=3, steps=4, format="webp")
    assert (animation.media_type, getattr(opened(animation.content), "n_frames", 1)) == ("image/webp", 4)


def test_gallery(client: Client) -> None:
    collection = client.create_collection("sdk doors", keep_crops=True)
    assert (collection.name, collection.keep_crops, collection.encrypted) == ("sdk doors", True, False)
    assert client.create_collection("sdk fast", allow_int8=True).allow_int8
    client.erase_collection("sdk fast")
    enrolled = client.enrol("sdk doors", "eileen@1", [ASTRONAUT, COFFEE], idempotency_key="one")
    assert client.enrol("sdk doors", "eileen@1", [ASTRONAUT, COFFEE], idempotency_key="one") == enrolled
    (face,), (failed,) = enrolled.indexed, enrolled.failed
    assert failed.problem.type == "urn:vestibule:problem:no-face"
    until = datetime(2130, 1, 1, tzinfo=UTC)
    put = client.put_subject("sdk doors", "eileen@1", name="Eileen", metadata={"site": "north"}, expires_at=until)
    assert (put.name, put.metadata, put.expires_at, put.faces) == ("Eileen", {"site": "north"}, until, 1)
    assert client.subject("sdk doors", "eileen@1") == put
    assert client.subjects("sdk doors", limit=1).data == [put]
    assert [face.id for face in client.faces("sdk doors", "eileen@1").data] == [face.face_id]

    result = client.search(ASTRONAUT, "sdk doors", where={"site": {"in": ["north", "south"]}})
    (searched,) = result.first.faces
    assert (searched.status, searched.candidates[0].name) == ("match", "Eileen")
    assert client.search(HOPPER, "sdk doors").first.faces[0].status == "unknown"
    assert client.search(ASTRONAUT, "sdk doors", where={"site": "south"}).first.faces[0].candidates == []
    assert client.verify_subject("sdk doors", "eileen@1", ASTRONAUT).verified

    denied = client.deny("sdk doors", "eileen@1", ASTRONAUT)
    assert client.verify_subject("sdk doors", "eileen@1", ASTRONAUT).denied
    assert client.denials("sdk doors", "eileen@1").data == [denied]
    assert client.take_back("sdk doors", "eileen@1", denied.id).faces == 1

    assert client.erase_face("sdk doors", face.face_id).faces == 1
    receipt = client.erase_subject("sdk doors", "eileen@1")
    assert client.erasure(receipt.id).id == receipt.id
    with pytest.raises(NotFound):
        client.subject("sdk doors", "eileen@1")
    with pytest.raises(NotFound):
        client.reembedding("sdk doors")
    assert client.collection("sdk doors").faces == 0
    assert "sdk doors" in [info.name for info in client.collections().data]
    client.erase_collection("sdk doors")


def finished(client: Client, collection: str, job: str) -> str:
    deadline = time.monotonic() + 20
    while (state := client.job(collection, job).state) not in ("done", "failed") and time.monotonic() < deadline:
        time.sleep(0.02)
    return state


def test_bulk_enrolment(client: Client) -> None:
    fingerprint = client.create_collection("sdk-bulk").fingerprint
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.write(ASTRONAUT, "eileen/1.jpg")
        file.write(COFFEE, "eileen/2.jpg")
    archive.seek(0)
    job = client.enrol_zip("sdk-bulk", archive)
    assert (job.total, finished(client, "sdk-bulk", job.id)) == (2, "done")
    enrolled, failed = client.job_items("sdk-bulk", job.id).data
    assert (enrolled.status, len(enrolled.faces)) == ("enrolled", 1)
    assert failed.problem is not None
    assert failed.problem.type == "urn:vestibule:problem:no-face"

    vector = client.embed(HOPPER).first.embedding
    lines: list[dict[str, Any]] = [
        {"subject_id": "grace", "vector": vector, "name": "Grace"},
        {"subject_id": "grace", "image": HOPPER},
    ]
    job = client.enrol_lines("sdk-bulk", lines, fingerprint=fingerprint)
    assert finished(client, "sdk-bulk", job.id) == "done"
    assert client.jobs("sdk-bulk").data[-1].items["enrolled"] == 2
    assert client.subject("sdk-bulk", "grace").name == "Grace"
    assert client.cancel_job("sdk-bulk", job.id).state == "done"
    with pytest.raises(Conflict):  # a vector has no crop that could be re-embedded
        client.reembed("sdk-bulk")
    client.erase_collection("sdk-bulk")
