"""POST /denoise, /reconstruct and /encode with networks of random weights, and tiling."""

from __future__ import annotations

import base64
import io
import math
import struct
import threading
import zlib
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
from models import checkpoint, image_decoder
from models.generative import SupportsDecode, SupportsEncode
from tests.app.conftest import started
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
    with started(weights, max_denoise_pixels=200_000) as running:
        yield running


def pixels(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)))


def noisy(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A photo with Gaussian noise of sigma 25."""
    clean = np.asarray(photo("coffee").convert(mode).resize((width, height)), dtype=float)
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    return Image.fromarray((clean + noise).round().clip(0, 255).astype(np.uint8))


def denoised(weights: Path, name: str, image: Image.Image) -> Pixels:
    """The convolutional network's output for the whole image, padded by numpy."""
    network, card = checkpoint.load(weights / name)
    array = np.asarray(image)
    channels = array.reshape(*array.shape[:2], -1)
    multiple: int = network.config.multiple  # type: ignore[assignment, union-attr]
    padding = [(0, -side % multiple) for side in array.shape[:2]]
    padded = np.pad(channels, [*padding, (0, 0)], mode="symmetric")
    with torch.inference_mode():
        output = network(torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255)[0]
    rounded = np.rint(output.permute(1, 2, 0).numpy() * 255).clip(0, 255).astype(np.uint8)
    assert card.preprocess.std[0] == 255
    result: Pixels = rounded[: array.shape[0], : array.shape[1]].reshape(array.shape)
    return result


def max_difference(a: npt.ArrayLike | Image.Image, b: npt.ArrayLike | Image.Image) -> int:
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def psnr(truth: Pixels, image: Pixels | Image.Image) -> float:
    return float(peak_signal_noise_ratio(truth, np.asarray(image)))  # type: ignore[no-untyped-call]


def b64(image: Image.Image) -> str:
    return base64.b64encode(encode(image)).decode()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [
        *(((width, height), 1) for width, height in ((64, 48), (1, 1), (3, 50), (61, 47), (256, 100))),
        *((size, 2) for size in ((400, 300), (500, 90), (257, 259))),  # in several tiles, which differ at their edges
    ],
)
def test_denoise_equals_the_network_s_output(
    client: TestClient, weights: Path, size: tuple[int, int], tolerance: int
) -> None:
    image = noisy(*size)
    response = client.post("/denoise", content=encode(image), headers=PNG)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert "x-psnr" not in response.headers
    result = pixels(response.content)
    assert result.shape == (size[1], size[0], 3)
    assert max_difference(result, denoised(weights, "denoiser-photo", image)) <= tolerance
    if min(size) > 1:
        assert max_difference(result, image) > 2 * tolerance


def test_strength_interpolates_between_input_and_output(client: TestClient) -> None:
    image = noisy(50, 40)
    results = {
        strength: pixels(client.post(f"/denoise?strength={strength}", content=encode(image), headers=PNG).content)
        for strength in (0, 0.5, 1)
    }
    assert np.array_equal(results[0], np.asarray(image))
    # Elsewhere the network's output exceeds 0..255; it is interpolated before it is clipped.
    inside = (results[1] > 0) & (results[1] < 255)
    mean = (np.asarray(image, dtype=float) + results[1]) / 2
    assert np.abs(results[0.5] - mean)[inside].max() <= 1


def srgb(image: Image.Image) -> Pixels:
    """An image's colours as a colour-managed viewer shows them."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    converted = ImageCms.profileToProfile(image.convert("RGB"), profile, ImageCms.createProfile("sRGB"))
    assert converted is not None
    return np.asarray(converted)


@pytest.fixture(scope="module")
def swapped() -> bytes:
    """An ICC profile with sRGB's primaries, but red and green swapped."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"temp").replace(b"gXYZ", b"rXYZ").replace(b"temp", b"gXYZ")


def with_profile(image: Image.Image, profile: bytes, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, icc_profile=profile)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_icc_profile_is_kept(client: TestClient, swapped: bytes, kind: str) -> None:
    data = with_profile(photo("coffee").resize((64, 48)), swapped, kind)
    for query in ("", "&format=json"):
        response = client.post(f"/denoise?strength=0{query}", content=data, headers={"content-type": "image/*"})
        result = opened(base64.b64decode(response.json()["data"][0]["b64_json"]) if query else response.content)
        assert result.info["icc_profile"] == swapped
        assert max_difference(srgb(result), srgb(opened(data))) == 0
        assert max_difference(result.convert("RGB"), srgb(result)) > 5  # without the profile it would look different


@pytest.mark.data
def test_display_p3_file(client: TestClient, datasets: Callable[[str], Path]) -> None:
    data = (datasets("odd-inputs") / "display-p3.png").read_bytes()
    result = opened(client.post("/denoise?strength=0", content=data, headers=PNG).content)
    assert max_difference(srgb(result), srgb(opened(data))) == 0


def test_icc_profile_of_other_colours_or_too_large_is_dropped(client: TestClient, swapped: bytes) -> None:
    cmyk, grey = (swapped[:16] + colours + swapped[20:] for colours in (b"CMYK", b"GRAY"))
    for profile in (cmyk, grey, swapped + bytes(2**20), b"short"):
        data = with_profile(noisy(32, 32), profile, "JPEG")
        response = client.post("/denoise", content=data, headers={"content-type": "image/jpeg"})
        assert response.status_code == 200, response.text
        assert "icc_profile" not in opened(response.content).info
    data = with_profile(noisy(32, 32), swapped)
    response = client.post("/denoise?model=denoiser-mnist", content=data, headers=PNG)
    assert "icc_profile" not in opened(response.content).info


@pytest.mark.parametrize("model", ["denoiser-photo", "denoiser-mnist"])
@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_icc_profile_is_kept_with_a_grey_response(
    client: TestClient, swapped: bytes, model: str, mode: str
) -> None:
    profile = swapped[:16] + b"GRAY" + swapped[20:]
    image = noisy(40, 30, "L").convert(mode)
    for strength in (0, 1):
        files = {"file": with_profile(image, profile), "reference": encode(image.convert("L"))}
        response = client.post(f"/denoise?model={model}&strength={strength}", files=files)
        result = opened(response.content)
        assert (result.mode, result.info["icc_profile"]) == (mode, profile)
        if strength == 0:
            assert result.tobytes() == image.tobytes()
        else:
            truth = np.asarray(image.convert("L"))
            expected = psnr(truth, result.convert("L"))
            assert float(response.headers["x-psnr"]) == pytest.approx(expected, abs=1e-3)


def png(depth: int, colour_type: int, values: npt.ArrayLike, chunks: dict[bytes, bytes]) -> bytes:
    """A PNG file of values [H, W, C] with these chunks before its pixels."""
    array = np.asarray(values, ">u2" if depth == 16 else np.uint8)
    height, width = array.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in array)
    parts = {b"IHDR": header, **chunks, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()
    )


CHROMATICITY = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


@pytest.mark.parametrize(("depth", "colour_type"), [(8, 0), (8, 2), (16, 0), (16, 2)])
def test_gamma_is_kept(client: TestClient, depth: int, colour_type: int) -> None:
    values = np.arange(4 * 6 * 3).reshape(4, 6, 3)[..., : 1 if colour_type == 0 else 3]
    chunks = {b"gAMA": struct.pack(">I", 100_000), b"cHRM": struct.pack(">8I", *CHROMATICITY)}
    for model in ("denoiser-photo", "denoiser-mnist"):
        url = f"/denoise?strength=0&model={model}"
        result = opened(client.post(url, content=png(depth, colour_type, values, chunks), headers=PNG).content)
        assert result.info["gamma"] == 1.0
        assert result.info["chromaticity"] == tuple(value / 100_000 for value in CHROMATICITY)
        with_srgb = png(depth, colour_type, values, {**chunks, b"sRGB": b"\0"})  # overrides gAMA
        assert "gamma" not in opened(client.post(url, content=with_srgb, headers=PNG).content).info


@pytest.mark.parametrize(
    ("colour_type", "values", "transparent"),
    [(0, [0, 1000, 1001, 65535], (1000,)), (2, [(256, 0, 0), (1, 2, 3), (1, 2, 4), (65535,) * 3], (1, 2, 3))],
)
def test_transparent_colour_of_16_bit_images(
    client: TestClient, colour_type: int, values: list[Any], transparent: tuple[int, ...]
) -> None:
    array = np.array(values).reshape(1, 4, -1)
    data = png(16, colour_type, array, {b"tRNS": struct.pack(f">{len(transparent)}H", *transparent)})
    result = opened(client.post("/denoise?strength=0", content=data, headers=PNG).content)
    assert result.mode == "RGBA"
    assert np.asarray(result)[0, :, 3].tolist() == [255, 0, 255, 255]
    assert max_difference(np.asarray(result)[..., :3], np.broadcast_to(array / 257, (1, 4, 3)).round()) <= 1
    # Transparent pixels are composited on white where the response has no alpha.
    reference = {"file": data, "reference": data}
    assert client.post("/denoise?strength=0", files=reference).headers["x-psnr"] == "inf"


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("model", ["denoiser-photo", "denoiser-mnist"])
def test_transparency_is_kept(client: TestClient, kind: str, model: str) -> None:
    image = noisy(64, 48).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((64, 48)))
    image = image.convert("LA") if kind == "LA" else image.quantize(16) if kind == "P" else image
    truth = image.convert("RGBA")
    url = f"/denoise?model={model}"
    unchanged = opened(client.post(f"{url}&strength=0", content=encode(image), headers=PNG).content)
    assert unchanged.mode == ("RGBA" if model == "denoiser-photo" else "LA")
    colours = truth.convert("RGB") if model == "denoiser-photo" else truth.convert("RGB").convert("L")
    assert max_difference(unchanged.convert(colours.mode), colours) == 0
    assert max_difference(unchanged.getchannel("A"), truth.getchannel("A")) == 0
    clean = opened(client.post(url, content=encode(image), headers=PNG).content)
    assert max_difference(clean.getchannel("A"), truth.getchannel("A")) == 0
    opaque = client.post(url, content=encode(truth.convert("RGB")), headers=PNG).content
    assert max_difference(clean.convert(colours.mode), pixels(opaque)) == 0


@pytest.mark.parametrize("model", ["denoiser-photo", "denoiser-mnist", "vae-denoiser-mnist"])
@pytest.mark.parametrize("transparent", [False, True])
def test_psnr_with_a_reference(client: TestClient, model: str, transparent: bool) -> None:
    image, clean = noisy(90, 70), photo("coffee").resize((90, 70))
    if transparent:
        for layer in (image, clean):
            layer.putalpha(Image.linear_gradient("L").resize((90, 70)))
    response = client.post(f"/denoise?model={model}", files={"file": encode(image), "reference": encode(clean)})
    result = opened(response.content)
    mode = "RGB" if model == "denoiser-photo" else "L"
    truth, after, before = (
        np.asarray(image_decoder.composite_on_white(layer.convert("RGBA")).convert(mode))
        for layer in (clean, result, image)
    )
    if mode == "RGB" or not transparent:  # in the L mode, colours are converted before they are composited
        assert float(response.headers["x-psnr"]) == pytest.approx(psnr(truth, after), abs=1e-3)
        assert float(response.headers["x-psnr-before"]) == pytest.approx(psnr(truth, before), abs=1e-3)
    body = {"input": [b64(image)] * 2, "reference": [b64(clean), b64(image)]}
    first, second = client.post(f"/denoise?model={model}&format=json&strength=0", json=body).json()["data"]
    assert first["psnr"] == first["psnr_before"] == pytest.approx(float(response.headers["x-psnr-before"]), abs=1e-3)
    assert second["psnr"] is second["psnr_before"] is None  # infinite
    assert (first["width"], first["height"]) == (90, 70)


def test_invalid_references(client: TestClient) -> None:
    response = client.post("/denoise", files={"file": encode(noisy(9, 7)), "reference": encode(noisy(7, 9))})
    assert (response.status_code, response.json()["type"]) == (422, "urn:vestibule:problem:unprocessable")
    assert "9 x 7 and 7 x 9" in response.json()["detail"]
    body = {"input": [b64(noisy(9, 7))] * 3, "reference": ["no base64!", b64(noisy(9, 7)), "aGVsbG8="]}
    data = client.post("/denoise?format=json", json=body).json()["data"]
    assert [item.get("problem", {}).get("status") for item in data] == [400, None, 415]


def test_images_are_converted_to_the_network_s_colours(client: TestClient, weights: Path) -> None:
    grey = pixels(client.post("/denoise?model=denoiser-mnist", content=encode(noisy(40, 30)), headers=PNG).content)
    assert grey.shape == (30, 40)
    assert max_difference(grey, denoised(weights, "denoiser-mnist", noisy(40, 30).convert("L"))) <= 1
    image = noisy(40, 30, "L")
    colour = pixels(client.post("/denoise", content=encode(image), headers=PNG).content)
    assert max_difference(colour, denoised(weights, "denoiser-photo", image.convert("RGB"))) <= 1


@pytest.mark.parametrize("size", [(28, 28), (100, 60), (5, 90)])
@pytest.mark.parametrize("model", ["vae-denoiser-mnist", "framed"])
def test_image_is_resized_for_a_network_of_a_fixed_size(
    client: TestClient, weights: Path, model: str, size: tuple[int, int]
) -> None:
    image = noisy(*size, "L")
    small = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC))
    network, _ = checkpoint.load(weights / model)
    assert isinstance(network, SupportsEncode)
    assert isinstance(network, SupportsDecode)
    padding = 2 if model == "framed" else 0
    batch = torch.from_numpy(np.pad(small, padding)).float()[None, None] / 255
    with torch.inference_mode():
        output = network.decode(network.embed(batch, torch.zeros(1, 0)), torch.zeros(1, 0))[0, 0].numpy() * 255
    inner = np.rint(output[padding : 28 + padding, padding : 28 + padding]).astype(np.uint8)
    expected = Image.fromarray(inner).resize(size, Image.Resampling.BICUBIC)
    result = pixels(client.post(f"/denoise?model={model}", content=encode(image), headers=PNG).content)
    assert max_difference(result, expected) <= 2


def test_list_of_images(client: TestClient) -> None:
    images = [noisy(20 + index, 10) for index in range(3)]
    items = [b64(images[0]), "aGVsbG8=", b64(images[1]), "no base64!", b64(images[2])]
    body = client.post("/denoise?format=json", json={"input": items}).json()
    assert body["model"] == "denoiser-photo"
    assert [item["index"] for item in body["data"]] == [0, 1, 2, 3, 4]
    assert [item.get("problem", {}).get("status") for item in body["data"]] == [None, 415, None, 400, None]
    for index, image in zip((0, 2, 4), images, strict=True):
        single = client.post("/denoise", content=encode(image), headers=PNG).content
        assert base64.b64decode(body["data"][index]["b64_json"]) == single
    files = [("file", (f"{i}.png", encode(noisy(9, 9)))) for i in range(2)]
    assert len(client.post("/denoise?format=json", files=files).json()["data"]) == 2
    for path in ("/denoise", "/reconstruct"):
        response = client.post(path, json={"input": [b64(noisy(9, 9))]})
        assert (response.status_code, response.json()["type"]) == (422, "urn:vestibule:problem:unprocessable")
        assert "format=json" in response.json()["detail"]


@pytest.fixture(scope="module")
def few_pixels(weights: Path) -> Iterator[TestClient]:
    """A client of a service that accepts 10,000 pixels per request."""
    with started(weights, max_request_pixels=10_000) as running:
        yield running


@pytest.mark.parametrize(
    ("images", "references", "total"),
    [(2, 0, 9600), (1, 1, 7200), (3, 0, 14_400), (2, 2, 14_400)],  # of 2400 pixels each
)
def test_references_and_responses_count_toward_the_pixel_limit(
    few_pixels: TestClient, images: int, references: int, total: int
) -> None:
    data = encode(noisy(60, 40))
    files = [("file", ("a.png", data))] * images + [("reference", ("b.png", data))] * references
    response = few_pixels.post("/denoise", params={"format": "json"}, files=files)
    assert response.status_code == (200 if total <= 10_000 else 413), response.text
    if total > 10_000:
        assert f"{total} pixels; a request may have 10000" in response.json()["detail"]


@pytest.mark.parametrize(("path", "height"), [("/denoise", 50), ("/reconstruct", 100)])
def test_pixel_limit_of_a_single_image(few_pixels: TestClient, path: str, height: int) -> None:
    for extra, status in ((0, 200), (1, 413)):
        response = few_pixels.post(f"{path}?format=png", content=encode(noisy(100, height + extra)), headers=PNG)
        assert response.status_code == status, response.text


@pytest.mark.parametrize("path", ["/denoise", "/reconstruct"])
def test_responses_are_encoded_off_the_event_loop(
    client: TestClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            threads.append(threading.current_thread().name)
            return function(*args)

        return call

    monkeypatch.setattr(encoding, "encode_json", recorded(encoding.encode_json))
    monkeypatch.setattr(base64, "b64encode", recorded(base64.b64encode))
    response = client.post(path, params={"format": "json"}, content=encode(noisy(60, 40)), headers=PNG)
    assert response.status_code == 200, response.text
    assert len(threads) == 2
    assert threading.current_thread().name not in threads
    assert len({name.partition("_")[0] for name in threads}) == 1


@pytest.mark.parametrize(
    ("request_body", "status"),
    [
        ({"content": b"", "headers": PNG}, 400),
        ({"content": b"abc", "headers": {"content-type": "text/plain"}}, 415),
        ({"files": {"reference": b"abc"}}, 400),
        ({"files": {"clean": b"abc"}}, 400),
        ({"files": [("file", ("a", b"a")), ("reference", ("b", b"b")), ("reference", ("c", b"c"))]}, 400),
        ({"json": {"input": "aGVsbG8=", "reference": ["aGVsbG8=", "aGVsbG8="]}}, 400),
        ({"json": {"input": "aGVsbG8=", "references": "aGVsbG8="}}, 400),
        ({"files": [("file", (f"{i}.png", b"a")) for i in range(65)]}, 413),
        ({"content": encode(Image.new("L", (1000, 201))), "headers": PNG}, 413),
        ({"json": {"input": "aGVsbG8="}}, 415),
    ],
)
def test_invalid_bodies(client: TestClient, request_body: dict[str, Any], status: int) -> None:
    response = client.post("/denoise", **request_body)
    assert response.status_code == response.json()["status"] == status


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("/denoise?strength=nan", "invalid-parameters"),
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
def test_invalid_parameters_and_models(client: TestClient, url: str, problem: str) -> None:
    for _ in range(2):  # a missing submodel is reported on each request
        response = client.post(url, content=encode(noisy(28, 28)), headers=PNG)
        assert (response.status_code, response.json()["type"]) == (422, f"urn:vestibule:problem:{problem}")


def network_latent(weights: Path, name: str, image: Image.Image, label: int | None = None) -> Tensor:
    network, card = checkpoint.load(weights / name)
    assert isinstance(network, SupportsEncode)
    one_hot = torch.zeros(1, network.config.num_classes)
    if label is not None:
        one_hot[0, label] = 1
    with torch.inference_mode():
        return network.embed(card.preprocess(image)[None], one_hot)[0]


@pytest.mark.parametrize(
    ("model", "label"), [("ae-mnist", None), ("vae-faces", None), ("vae-denoiser-mnist", None), ("cvae-mnist", 3)]
)
def test_encode_decode_and_reconstruct(client: TestClient, weights: Path, model: str, label: int | None) -> None:
    image = photo("chelsea")
    query = f"model={model}" + ("" if label is None else f"&label={label}")
    body = client.post(f"/encode?{query}", content=encode(image), headers=PNG).json()
    assert (body["model"], body["data"][0]["index"]) == (model, 0)
    latent = body["data"][0]["latent"]
    assert latent == pytest.approx(network_latent(weights, model, image, label).tolist(), rel=1e-4, abs=1e-5)

    latents = {"model": model, "latents": [latent]} | ({} if label is None else {"labels": [str(label)]})
    decoded = pixels(client.post("/generate", json=latents).content)
    response = client.post(f"/reconstruct?{query}", content=encode(image), headers=PNG)
    assert response.headers["content-type"] == "image/png"
    assert max_difference(pixels(response.content), decoded) <= 1
    items = client.post(f"/reconstruct?{query}&format=json", json={"input": [b64(image), "aGVsbG8="]}).json()["data"]
    assert base64.b64decode(items[0]["b64_json"]) == response.content
    assert (items[0]["width"], items[0]["height"]) == decoded.shape[:2]
    assert items[1]["problem"]["status"] == 415


def test_default_autoencoder_and_a_label_per_image(client: TestClient, weights: Path) -> None:
    assert client.post("/encode", content=encode(photo("coffee")), headers=PNG).json()["model"] == "ae-mnist"
    body = {"input": [b64(photo("coffee"))] * 2}
    data = client.post("/encode?model=cvae-mnist&label=1,2", json=body).json()["data"]
    for item, label in zip(data, (1, 2), strict=True):
        expected = network_latent(weights, "cvae-mnist", photo("coffee"), label)
        assert item["latent"] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([2, 6, 8, 16]))
def test_cut_and_join_are_inverse(height: int, width: int, multiple: int) -> None:
    tiling = Tiling(height, width, multiple)
    image = torch.rand(2, height, width, generator=torch.Generator().manual_seed(height * width))
    padded = tiling.pad(image)
    assert torch.equal(padded[:, :height, :width], image)
    tiles = tiling.cut(padded)
    assert len({tile.shape for tile in tiles}) == 1
    assert all(0 < side <= max(SIDE, multiple) and side % multiple == 0 for side in tiles[0].shape[1:])
    torch.testing.assert_close(tiling.join(torch.stack(tiles)), image)


def test_edges_of_tiles_have_little_weight() -> None:
    tiling = Tiling(100, 3 * SIDE, 8)
    tiles = torch.stack(tiling.cut(tiling.pad(torch.zeros(1, 100, 3 * SIDE))))
    count = math.ceil((3 * SIDE - SIDE) / (SIDE - OVERLAP)) + 1
    assert tiles.shape == (count, 1, 104, SIDE)
    tiles[:-1, :, :, -1] = 1  # the last column of each tile with a right neighbour
    assert 0 < float(tiling.join(tiles).max()) < 0.002


@pytest.mark.parametrize(("size", "is_long"), [((600, 400), False), ((1000, 600), True)])
def test_large_bodies_and_images_are_long_tasks(
    weights: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], is_long: bool
) -> None:
    kinds: list[bool] = []
    run_cpu = Executors.run_cpu

    async def recorded(self: Executors, function: Any, *, is_long: bool = False) -> Any:
        kinds.append(is_long)
        return await run_cpu(self, function, is_long=is_long)

    monkeypatch.setattr(Executors, "run_cpu", recorded)
    body = {"input": b64(noisy(*size))}
    with started(weights) as default_client:
        kinds.clear()
        assert default_client.post("/denoise", params={"format": "json"}, json=body).status_code == 200
    # The JSON body, and the encoding of the image; only the encoding of the JSON response follows.
    assert (kinds[0], kinds[-2]) == (is_long, is_long)
