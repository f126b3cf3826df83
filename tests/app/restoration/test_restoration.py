"""POST /denoise, /reconstruct and /encode, with networks of random weights; and how a picture is cut into tiles."""

from __future__ import annotations

import base64
import io
import math
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from app.images import encoding
from app.images.tiling import OVERLAP, SIDE, Tiling
from app.inference.executors import Executors
from app.main import create_app
from app.settings import Settings
from models import checkpoint, image_decoder
from models.generative import Decodes, Encodes
from tests.app.conftest import BASE_URL
from tests.app.generators import random_generators
from tests.conftest import encode, photo

Pixels = npt.NDArray[np.uint8]
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    random_generators(folder)
    return folder


@pytest.fixture(scope="module")
def client(weights: Path) -> Iterator[TestClient]:
    app = create_app(Settings(weights=weights, default_classifier="lenet5-mnist", max_denoise_pixels=200_000))
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as running:
        yield running


def pixels(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)))


def noisy(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A part of a photo under noise of sigma 25."""
    clean = np.asarray(photo("coffee").convert(mode).resize((width, height)), dtype=float)
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    return Image.fromarray((clean + noise).round().clip(0, 255).astype(np.uint8))


def cleaned(weights: Path, name: str, picture: Pixels) -> Pixels:
    """What the convolutional network itself answers, padded by numpy and run whole."""
    network, card = checkpoint.load(weights / name)
    channels = picture.reshape(*picture.shape[:2], -1)
    multiple: int = network.config.multiple  # type: ignore[assignment, union-attr]
    padding = [(0, -side % multiple) for side in picture.shape[:2]]
    padded = np.pad(channels, [*padding, (0, 0)], mode="symmetric")
    with torch.inference_mode():
        answer = network(torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255)[0]
    found = np.rint(answer.permute(1, 2, 0).numpy() * 255).clip(0, 255).astype(np.uint8)
    assert card.preprocess.std[0] == 255
    kept: Pixels = found[: picture.shape[0], : picture.shape[1]].reshape(picture.shape)
    return kept


def off_by(a: npt.ArrayLike | Image.Image, b: npt.ArrayLike | Image.Image) -> int:
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def psnr(truth: Pixels, picture: Pixels | Image.Image) -> float:
    return float(peak_signal_noise_ratio(truth, np.asarray(picture)))  # type: ignore[no-untyped-call]


def b64(picture: Image.Image) -> str:
    return base64.b64encode(encode(picture)).decode()


@pytest.mark.parametrize("size", [(64, 48), (1, 1), (3, 50), (61, 47), (256, 100)])
def test_a_picture_keeps_its_size_and_gets_the_networks_answer(
    client: TestClient, weights: Path, size: tuple[int, int]
) -> None:
    picture = noisy(*size)
    response = client.post("/denoise", content=encode(picture), headers=PNG)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert "x-psnr" not in response.headers
    answer = pixels(response.content)
    assert answer.shape == (size[1], size[0], 3)
    assert off_by(answer, cleaned(weights, "denoiser-photo", np.asarray(picture))) <= 1
    if min(size) > 1:
        assert off_by(answer, picture) > 2  # something was done


@pytest.mark.parametrize("size", [(400, 300), (500, 90), (257, 259)])
def test_a_large_picture_in_tiles_is_about_what_it_is_as_a_whole(
    client: TestClient, weights: Path, size: tuple[int, int]
) -> None:
    picture = noisy(*size)
    answer = pixels(client.post("/denoise", content=encode(picture), headers=PNG).content)
    whole = cleaned(weights, "denoiser-photo", np.asarray(picture))
    assert off_by(answer, whole) <= 2  # a tile's edge knows nothing of what lies beyond, and weighs little
    changed = np.abs(np.asarray(picture, dtype=int) - whole).max()
    assert changed > 10


def test_strength_mixes_the_cleaned_picture_with_the_one_sent(client: TestClient) -> None:
    picture = noisy(50, 40)
    answers = {
        strength: pixels(client.post(f"/denoise?strength={strength}", content=encode(picture), headers=PNG).content)
        for strength in (0, 0.5, 1)
    }
    assert np.array_equal(answers[0], np.asarray(picture))
    # What the network answers beyond 0..255 is kept for the mixing.
    inside = (answers[1] > 0) & (answers[1] < 255)
    mean = (np.asarray(picture, dtype=float) + answers[1]) / 2
    assert np.abs(answers[0.5] - mean)[inside].max() <= 1


def srgb(picture: Image.Image) -> Pixels:
    """A picture's colours as a colour-managed viewer shows them."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
    shown = ImageCms.profileToProfile(picture.convert("RGB"), profile, ImageCms.createProfile("sRGB"))
    assert shown is not None
    return np.asarray(shown)


@pytest.fixture(scope="module")
def display_p3() -> bytes:
    """An ICC profile like Display P3's: its three primaries, as a matrix, and a plain gamma."""
    red, green, blue = (0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)
    tags = {b"rXYZ": red, b"gXYZ": green, b"bXYZ": blue, b"wtpt": (0.9642, 1.0, 0.8249)}
    data = {
        name: b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(65536 * x)) for x in xyz)
        for name, xyz in tags.items()
    }
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    data |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    text = b"desc" + bytes(4) + struct.pack(">I", 3) + b"P3\0" + bytes(79)
    data |= {b"desc": text, b"cprt": b"text" + bytes(4) + b"none\0\0\0\0"}
    offset, table, body = 128 + 4 + 12 * len(data), b"", b""
    for name, value in data.items():
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += value
    size = offset + len(body)
    header = struct.pack(">I", size) + bytes(4) + b"\x02\x40\0\0" + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    header += b"".join(struct.pack(">i", round(65536 * x)) for x in tags[b"wtpt"])
    return header.ljust(128, b"\0") + struct.pack(">I", len(data)) + table + body


def with_profile(picture: Image.Image, profile: bytes, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, icc_profile=profile)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_colours_are_shown_as_they_were(client: TestClient, display_p3: bytes, kind: str) -> None:
    sent = with_profile(photo("coffee").resize((64, 48)), display_p3, kind)
    response = client.post("/denoise?strength=0", content=sent, headers={"content-type": "image/*"})
    answer = Image.open(io.BytesIO(response.content))
    assert answer.info["icc_profile"] == display_p3
    assert off_by(srgb(answer), srgb(Image.open(io.BytesIO(sent)))) == 0
    assert off_by(answer.convert("RGB"), srgb(answer)) > 5  # the profile matters


@pytest.mark.data
def test_the_display_p3_picture_that_was_off(client: TestClient, datasets: Callable[[str], Path]) -> None:
    sent = (datasets("odd-inputs") / "display-p3.png").read_bytes()
    answer = Image.open(io.BytesIO(client.post("/denoise?strength=0", content=sent, headers=PNG).content))
    assert off_by(srgb(answer), srgb(Image.open(io.BytesIO(sent)))) == 0
    listed = client.post("/denoise?strength=0", json={"input": [base64.b64encode(sent).decode()]})
    assert listed.status_code == 422  # the answer is a list: JSON
    listed = client.post("/denoise?strength=0&format=json", json={"input": [base64.b64encode(sent).decode()]})
    again = Image.open(io.BytesIO(base64.b64decode(listed.json()["data"][0]["b64_json"])))
    assert again.info["icc_profile"] == answer.info["icc_profile"]


def test_a_profile_of_other_colours_or_too_large_is_left_out(client: TestClient, display_p3: bytes) -> None:
    other = display_p3[:16] + b"CMYK" + display_p3[20:]
    for profile in (other, display_p3 + bytes(2**20), b"short"):
        sent = with_profile(noisy(32, 32), profile, "JPEG")
        response = client.post("/denoise", content=sent, headers={"content-type": "image/jpeg"})
        assert response.status_code == 200, response.text
        assert "icc_profile" not in Image.open(io.BytesIO(response.content)).info
    grey = client.post("/denoise?model=denoiser-mnist", content=with_profile(noisy(32, 32), display_p3), headers=PNG)
    assert "icc_profile" not in Image.open(io.BytesIO(grey.content)).info


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("model", ["denoiser-photo", "denoiser-mnist"])
def test_transparency_is_kept(client: TestClient, kind: str, model: str) -> None:
    picture = noisy(64, 48).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((64, 48)))
    picture = picture.convert("LA") if kind == "LA" else picture.quantize(16) if kind == "P" else picture
    truth = picture.convert("RGBA")
    url = f"/denoise?model={model}"
    unchanged = Image.open(io.BytesIO(client.post(f"{url}&strength=0", content=encode(picture), headers=PNG).content))
    assert unchanged.mode == ("RGBA" if model == "denoiser-photo" else "LA")
    colours = truth.convert("RGB") if model == "denoiser-photo" else truth.convert("RGB").convert("L")
    assert off_by(unchanged.convert(colours.mode), colours) == 0
    assert off_by(unchanged.getchannel("A"), truth.getchannel("A")) == 0
    clean = Image.open(io.BytesIO(client.post(url, content=encode(picture), headers=PNG).content))
    assert off_by(clean.getchannel("A"), truth.getchannel("A")) == 0
    opaque = client.post(url, content=encode(truth.convert("RGB")), headers=PNG).content
    assert off_by(clean.convert(colours.mode), pixels(opaque)) == 0


def test_transparent_pictures_are_measured_as_they_look_on_white(client: TestClient) -> None:
    alpha = Image.linear_gradient("L").resize((64, 48))
    picture, clean = noisy(64, 48).convert("RGBA"), photo("coffee").resize((64, 48)).convert("RGBA")
    for one in (picture, clean):
        one.putalpha(alpha)
    response = client.post("/denoise?strength=0", files={"file": encode(picture), "reference": encode(clean)})
    seen = [np.asarray(image_decoder.on_white(one)) for one in (clean, picture)]
    assert float(response.headers["x-psnr"]) == pytest.approx(psnr(*seen), abs=1e-3)
    assert float(response.headers["x-psnr-before"]) == pytest.approx(psnr(*seen), abs=1e-3)


@pytest.mark.parametrize("model", ["denoiser-photo", "denoiser-mnist", "vae-denoiser-mnist"])
def test_with_a_reference_it_is_measured(client: TestClient, model: str) -> None:
    picture, clean = noisy(90, 70), photo("coffee").resize((90, 70))
    parts = {"file": encode(picture), "reference": encode(clean)}
    response = client.post(f"/denoise?model={model}", files=parts)
    answer = pixels(response.content)
    mode = "RGB" if answer.ndim == 3 else "L"
    truth = np.asarray(clean.convert(mode))
    before = psnr(truth, picture.convert(mode))
    assert float(response.headers["x-psnr"]) == pytest.approx(psnr(truth, answer), abs=1e-3)
    assert float(response.headers["x-psnr-before"]) == pytest.approx(before, abs=1e-3)
    body = {"input": [b64(picture)] * 2, "reference": [b64(clean), b64(picture)]}
    first, second = client.post(f"/denoise?model={model}&format=json&strength=0", json=body).json()["data"]
    assert first["psnr"] == first["psnr_before"] == pytest.approx(before)
    assert second["psnr"] is second["psnr_before"] is None  # not one pixel differs
    assert (first["width"], first["height"]) == (90, 70)


def test_equal_to_its_reference_is_infinitely_near(client: TestClient) -> None:
    parts = {"file": encode(noisy(9, 7)), "reference": encode(noisy(9, 7))}
    assert client.post("/denoise?strength=0", files=parts).headers["x-psnr"] == "inf"


def test_a_reference_of_another_size_is_a_422(client: TestClient) -> None:
    response = client.post("/denoise", files={"file": encode(noisy(9, 7)), "reference": encode(noisy(7, 9))})
    assert (response.status_code, response.json()["type"]) == (422, "urn:vestibule:problem:unprocessable")
    assert "9 x 7 and 7 x 9" in response.json()["detail"]


def test_a_damaged_reference_is_said_of_its_picture(client: TestClient) -> None:
    body = {"input": [b64(noisy(9, 7))] * 3, "reference": ["no base64!", b64(noisy(9, 7)), "aGVsbG8="]}
    data = client.post("/denoise?format=json", json=body).json()["data"]
    assert [item.get("problem", {}).get("status") for item in data] == [400, None, 415]


def test_grey_and_colour_are_the_networks(client: TestClient, weights: Path) -> None:
    grey = pixels(client.post("/denoise?model=denoiser-mnist", content=encode(noisy(40, 30)), headers=PNG).content)
    assert grey.shape == (30, 40)
    assert off_by(grey, cleaned(weights, "denoiser-mnist", np.asarray(noisy(40, 30).convert("L")))) <= 1
    picture = noisy(40, 30, "L")
    colour = pixels(client.post("/denoise", content=encode(picture), headers=PNG).content)
    assert off_by(colour, cleaned(weights, "denoiser-photo", np.asarray(picture.convert("RGB")))) <= 1


def test_a_transparent_picture_stays_transparent_and_is_reconstructed_on_white(client: TestClient) -> None:
    clear, white = Image.new("RGBA", (16, 16), (0, 0, 0, 0)), Image.new("RGB", (16, 16), "white")
    answer = pixels(client.post("/denoise", content=encode(clear), headers=PNG).content)
    assert answer.shape == (16, 16, 4)
    assert not answer[..., 3].any()
    drawn = [client.post("/reconstruct", content=encode(one), headers=PNG).content for one in (clear, white)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("size", [(28, 28), (100, 60), (5, 90)])
@pytest.mark.parametrize("model", ["vae-denoiser-mnist", "framed"])
def test_a_network_of_one_size_gets_the_whole_picture_resized(
    client: TestClient, weights: Path, model: str, size: tuple[int, int]
) -> None:
    picture = noisy(*size, "L")
    small = np.asarray(picture.resize((28, 28), Image.Resampling.BICUBIC))
    network, _ = checkpoint.load(weights / model)
    assert isinstance(network, Encodes)
    assert isinstance(network, Decodes)
    frame = 2 if model == "framed" else 0
    seen = torch.from_numpy(np.pad(small, frame)).float()[None, None] / 255
    with torch.inference_mode():
        answer = network.decode(network.embed(seen, torch.zeros(1, 0)), torch.zeros(1, 0))[0, 0].numpy() * 255
    kept = np.rint(answer[frame : 28 + frame, frame : 28 + frame]).astype(np.uint8)
    expected = Image.fromarray(kept).resize(size, Image.Resampling.BICUBIC)
    found = pixels(client.post(f"/denoise?model={model}", content=encode(picture), headers=PNG).content)
    assert off_by(found, expected) <= 2


def test_a_list_is_answered_each_for_itself(client: TestClient) -> None:
    pictures = [noisy(20 + index, 10) for index in range(3)]
    sent = [b64(pictures[0]), "aGVsbG8=", b64(pictures[1]), "no base64!", b64(pictures[2])]
    body = client.post("/denoise?format=json", json={"input": sent}).json()
    assert body["model"] == "denoiser-photo"
    assert [item["index"] for item in body["data"]] == [0, 1, 2, 3, 4]
    assert [item.get("problem", {}).get("status") for item in body["data"]] == [None, 415, None, 400, None]
    for index, picture in zip((0, 2, 4), pictures, strict=True):
        alone = client.post("/denoise", content=encode(picture), headers=PNG).content
        assert base64.b64decode(body["data"][index]["b64_json"]) == alone
    several = client.post("/denoise?format=json", files=[("file", (f"{i}.png", encode(noisy(9, 9)))) for i in range(2)])
    assert len(several.json()["data"]) == 2


@pytest.mark.parametrize("path", ["/denoise", "/reconstruct"])
def test_a_list_is_no_png(client: TestClient, path: str) -> None:
    response = client.post(path, json={"input": [b64(noisy(9, 9))]})
    assert (response.status_code, response.json()["type"]) == (422, "urn:vestibule:problem:unprocessable")
    assert "format=json" in response.json()["detail"]


@pytest.fixture(scope="module")
def few_pixels(weights: Path) -> Iterator[TestClient]:
    """A client of a service that takes 10,000 pixels in one request."""
    settings = Settings(weights=weights, default_classifier="lenet5-mnist", max_request_pixels=10_000)
    with TestClient(create_app(settings), base_url=BASE_URL, raise_server_exceptions=False) as running:
        yield running


@pytest.mark.parametrize(
    ("pictures", "references", "total"),
    [(2, 0, 9600), (1, 1, 7200), (3, 0, 14_400), (2, 2, 14_400)],  # of 2400 pixels each
)
def test_references_and_answers_count_as_pixels_of_the_request(
    few_pixels: TestClient, pictures: int, references: int, total: int
) -> None:
    data = encode(noisy(60, 40))
    files = [("file", ("a.png", data))] * pictures + [("reference", ("b.png", data))] * references
    answer = few_pixels.post("/denoise", params={"format": "json"}, files=files)
    assert answer.status_code == (200 if total <= 10_000 else 413), answer.text
    if total > 10_000:
        assert f"{total} pixels; a request may have 10000" in answer.json()["detail"]


def test_the_only_picture_has_the_requests_pixels_at_most(few_pixels: TestClient) -> None:
    for path, size, status in [
        ("/denoise", (100, 50), 200),
        ("/denoise", (100, 51), 413),
        ("/reconstruct", (100, 100), 200),
        ("/reconstruct", (100, 101), 413),
    ]:
        answer = few_pixels.post(path, params={"format": "png"}, content=encode(noisy(*size)), headers=PNG)
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize("path", ["/denoise", "/reconstruct"])
def test_answers_are_encoded_off_the_event_loop(client: TestClient, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    document, base64_of = encoding.encode_json, base64.b64encode

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*sent: Any) -> Any:
            threads.append(threading.current_thread().name)
            return function(*sent)

        return call

    monkeypatch.setattr(encoding, "encode_json", recorded(document))
    monkeypatch.setattr(base64, "b64encode", recorded(base64_of))
    answer = client.post(path, params={"format": "json"}, content=encode(noisy(60, 40)), headers=PNG)
    assert answer.status_code == 200, answer.text
    assert [name.partition("_")[0] for name in threads] == ["decode", "decode"]


def test_too_many_pixels_are_a_413(client: TestClient) -> None:
    response = client.post("/denoise", content=encode(Image.new("L", (1000, 201))), headers=PNG)
    assert (response.status_code, response.json()["type"]) == (413, "urn:vestibule:problem:image-too-large")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"content": b"", "headers": PNG}, 400),
        ({"content": b"abc", "headers": {"content-type": "text/plain"}}, 415),
        ({"files": {"reference": b"abc"}}, 400),
        ({"files": {"clean": b"abc"}}, 400),
        ({"files": [("file", ("a", b"a")), ("reference", ("b", b"b")), ("reference", ("c", b"c"))]}, 400),
        ({"json": {"input": "aGVsbG8=", "reference": ["aGVsbG8=", "aGVsbG8="]}}, 400),
        ({"json": {"input": "aGVsbG8=", "references": "aGVsbG8="}}, 400),
        ({"files": [("file", (f"{i}.png", b"a")) for i in range(65)]}, 413),
        ({"content": b"hello", "headers": PNG}, 415),
        ({"json": {"input": "aGVsbG8="}}, 415),
    ],
)
def test_a_body_that_is_none_is_refused(client: TestClient, sent: dict[str, Any], status: int) -> None:
    response = client.post("/denoise", **sent)
    assert response.status_code == response.json()["status"] == status


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("/denoise?strength=1.1", "invalid-parameters"),
        ("/denoise?strength=nan", "invalid-parameters"),
        ("/denoise?format=webp", "invalid-parameters"),
        ("/denoise?model=ae-mnist", "unknown-model"),
        ("/denoise?model=lenet5-mnist", "unknown-model"),
        ("/reconstruct?model=denoiser-photo", "unknown-model"),
        ("/encode?model=denoiser-photo", "unknown-model"),
        ("/encode?model=lenet5-mnist", "unknown-model"),
        ("/encode?model=wgan-faces", "unknown-model"),
        ("/reconstruct?model=wgan-faces", "unknown-model"),
        ("/encode?model=cvae-mnist", "unprocessable"),
        ("/encode?model=cvae-mnist&label=ten", "unprocessable"),
        ("/encode?model=cvae-mnist&label=1,2", "unprocessable"),
        ("/encode?label=1", "unprocessable"),
        ("/reconstruct?model=cvae-mnist", "unprocessable"),
    ],
)
def test_what_means_nothing_is_a_clear_422(client: TestClient, url: str, problem: str) -> None:
    for _ in range(2):  # that a network has no such part is told again to the next who asks
        response = client.post(url, content=encode(noisy(28, 28)), headers=PNG)
        assert (response.status_code, response.json()["type"]) == (422, f"urn:vestibule:problem:{problem}")


def embedded(weights: Path, name: str, picture: Image.Image, label: int | None = None) -> Tensor:
    network, card = checkpoint.load(weights / name)
    assert isinstance(network, Encodes)
    given = torch.zeros(1, network.config.num_classes)
    if label is not None:
        given[0, label] = 1
    with torch.inference_mode():
        return network.embed(card.preprocess(picture)[None], given)[0]


@pytest.mark.parametrize(
    ("model", "label"), [("ae-mnist", None), ("vae-faces", None), ("vae-denoiser-mnist", None), ("cvae-mnist", 3)]
)
def test_a_picture_is_encoded_and_drawn_again(client: TestClient, weights: Path, model: str, label: int | None) -> None:
    picture = photo("chelsea")
    query = f"model={model}" + ("" if label is None else f"&label={label}")
    body = client.post(f"/encode?{query}", content=encode(picture), headers=PNG).json()
    assert (body["model"], body["data"][0]["index"]) == (model, 0)
    latent = body["data"][0]["latent"]
    assert latent == pytest.approx(embedded(weights, model, picture, label).tolist(), rel=1e-4, abs=1e-5)

    again = {"model": model, "latents": [latent]} | ({} if label is None else {"labels": [str(label)]})
    drawn = pixels(client.post("/generate", json=again).content)
    response = client.post(f"/reconstruct?{query}", content=encode(picture), headers=PNG)
    assert response.headers["content-type"] == "image/png"
    assert off_by(pixels(response.content), drawn) <= 1
    listed = client.post(f"/reconstruct?{query}&format=json", json={"input": [b64(picture), "aGVsbG8="]}).json()
    assert base64.b64decode(listed["data"][0]["b64_json"]) == response.content
    assert (listed["data"][0]["width"], listed["data"][0]["height"]) == drawn.shape[:2]
    assert listed["data"][1]["problem"]["status"] == 415


def test_a_frame_of_preprocessing_is_taken_off_again(client: TestClient) -> None:
    answer = client.post("/reconstruct?model=framed", content=encode(noisy(50, 50)), headers=PNG)
    assert pixels(answer.content).shape == (28, 28)


def test_the_default_autoencoder_answers_and_labels_may_differ(client: TestClient, weights: Path) -> None:
    assert client.post("/encode", content=encode(photo("coffee")), headers=PNG).json()["model"] == "ae-mnist"
    sent = {"input": [b64(photo("coffee"))] * 2}
    data = client.post("/encode?model=cvae-mnist&label=1,2", json=sent).json()["data"]
    for item, label in zip(data, (1, 2), strict=True):
        expected = embedded(weights, "cvae-mnist", photo("coffee"), label)
        assert item["latent"] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([2, 6, 8, 16]))
def test_tiles_cover_a_picture_and_join_to_it(height: int, width: int, multiple: int) -> None:
    tiling = Tiling(height, width, multiple)
    picture = torch.rand(2, height, width, generator=torch.Generator().manual_seed(height * width))
    padded = tiling.pad(picture)
    assert torch.equal(padded[:, :height, :width], picture)
    tiles = tiling.cut(padded)
    assert len({tile.shape for tile in tiles}) == 1
    assert all(0 < side <= max(SIDE, multiple) and side % multiple == 0 for side in tiles[0].shape[1:])
    torch.testing.assert_close(tiling.join(torch.stack(tiles)), picture)


def test_a_picture_is_mirrored_beyond_its_edge() -> None:
    picture = torch.arange(15.0).view(1, 3, 5)
    padded = Tiling(3, 5, 8).pad(picture)
    assert padded.shape == (1, 8, 8)
    assert padded[0, :3].tolist() == torch.cat([picture, picture.flip(2)[..., :3]], dim=2)[0].tolist()
    assert padded[0, :, 0].tolist() == [0, 5, 10, 10, 5, 0, 0, 5]


def test_what_is_wrong_at_a_tiles_edge_hardly_shows() -> None:
    tiling = Tiling(100, 3 * SIDE, 8)
    tiles = torch.stack(tiling.cut(tiling.pad(torch.zeros(1, 100, 3 * SIDE))))
    count = math.ceil((3 * SIDE - SIDE) / (SIDE - OVERLAP)) + 1
    assert tiles.shape == (count, 1, 104, SIDE)
    tiles[:-1, :, :, -1] = 1  # the last column of each that has a neighbour to its right
    assert 0 < float(tiling.join(tiles).max()) < 0.002


@pytest.mark.parametrize(("size", "is_long"), [((600, 400), False), ((1000, 600), True)])
def test_large_bodies_and_pictures_are_long_work(
    weights: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], is_long: bool
) -> None:
    kinds: list[bool] = []
    run_cpu = Executors.run_cpu

    async def recorded(self: Executors, function: Any, *, is_long: bool = False) -> Any:
        kinds.append(is_long)
        return await run_cpu(self, function, is_long=is_long)

    monkeypatch.setattr(Executors, "run_cpu", recorded)
    sent = {"input": b64(noisy(*size))}
    with TestClient(create_app(Settings(weights=weights, default_classifier="lenet5-mnist")), base_url=BASE_URL) as it:
        kinds.clear()
        assert it.post("/denoise", params={"format": "json"}, json=sent).status_code == 200
    # The JSON body, and the encoding of the answer's picture, which only the document follows.
    assert (kinds[0], kinds[-2]) == (is_long, is_long)
