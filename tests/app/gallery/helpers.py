"""Requests to the gallery that its tests share. The collection is `doors` where no other is named."""

from __future__ import annotations

import base64
import io
import json
import time
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
from fastapi.testclient import TestClient
from PIL import Image

from index.embedded.gallery import EmbeddedGallery
from tests.app.face_pictures import grace_hopper
from tests.conftest import encode, photo

Client = TestClient | httpx.Client

PNG, JPEG = {"content-type": "image/png"}, {"content-type": "image/jpeg"}
LINES, ZIP = {"content-type": "application/x-ndjson"}, {"content-type": "application/zip"}
BULK = "/collections/doors/faces:bulk"


def portrait(subject: str) -> Image.Image:
    """The photo of `eileen` or `grace`."""
    return photo("astronaut") if subject == "eileen" else grace_hopper()


def gallery_of(client: TestClient) -> EmbeddedGallery:
    gallery: EmbeddedGallery = client.app.state.gallery._gallery  # type: ignore[attr-defined]
    return gallery


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def post_image(client: Client, url: str, image: Image.Image | bytes, **params: object) -> dict[str, Any]:
    content = image if isinstance(image, bytes) else encode(image)
    response = client.post(url, params=params, content=content, headers=PNG)  # type: ignore[arg-type]
    assert response.status_code in {200, 201}, response.text
    return dict(response.json())


def enrol(
    client: Client, subject: str, image: Image.Image | None = None, collection: str = "doors", **params: object
) -> dict[str, Any]:
    url = f"/collections/{collection}/subjects/{subject}/faces"
    return post_image(client, url, image or portrait(subject), **params)


def search(client: Client, image: Image.Image, **params: object) -> dict[str, Any]:
    return post_image(client, "/search", image, **{"collection": "doors", "fpir": 0.001, **params})


def faces_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    """The faces of the response to a search for one image."""
    (item,) = response["data"]
    return list(item["faces"])


def candidate_ids(response: dict[str, Any]) -> list[str]:
    (face,) = faces_of(response)
    return [candidate["subject_id"] for candidate in face["candidates"]]


def subjects(client: Client) -> dict[str, int]:
    """The number of faces of each subject."""
    return {s["id"]: s["faces"] for s in client.get("/collections/doors/subjects").json()["data"]}


def wait_for_erasure(client: Client, receipt: dict[str, Any] | str) -> None:
    token = receipt if isinstance(receipt, str) else receipt["id"]
    wait_until(lambda: client.get(f"/erasures/{token}").json()["status"] == "erased")


def wait_for_switch(client: Client, collection: str = "doors") -> None:
    """Wait until the collection is no longer being re-embedded."""
    wait_until(lambda: client.get(f"/collections/{collection}/reembed").status_code == 404)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def lines(*objects: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in objects)


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def fingerprint(client: Client) -> str:
    return str(client.get("/collections/doors").json()["fingerprint"])


def submit(client: Client, data: bytes, headers: dict[str, str], **params: object) -> dict[str, Any]:
    """Submit a bulk job; lines may contain vectors of the collection's pipeline."""
    if headers == LINES:
        params = {"fingerprint": fingerprint(client), **params}
    response = client.post(BULK, content=data, headers=headers, params=params)  # type: ignore[arg-type]
    assert response.status_code == 202, response.text
    return dict(response.json())


def wait_for_job(client: Client, job: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
    url = f"/collections/doors/jobs/{job['id']}"
    wait_until(lambda: client.get(url).json()["finished_at"] is not None, seconds)
    return dict(client.get(url).json())


def outcomes(client: Client, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of the job, once it has ended."""
    wait_for_job(client, job)
    return list(client.get(f"/collections/doors/jobs/{job['id']}/items").json()["data"])
