"""GET and POST /generate and GET /generate/interpolate, with networks of random weights."""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from scipy.spatial import geometric_slerp  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from app.generation.service import slerp
from app.images import encoding
from app.inference.loaded_model import run_padded
from app.inference.submodels import DECODER, DECODER_BATCH_SIZE
from app.settings import PROJECT
from models import checkpoint, runtime
from models.generative import SupportsDecode, latents
from tests.app.conftest import started
from tests.app.generators import DIGITS, random_generators
from tests.app.server.test_process import serving

Pixels = npt.NDArray[np.uint8]

CARDS = sorted((PROJECT / "weights").glob(f"*/{checkpoint.CARD_FILE}"))
SHIPPED = [card.parent for card in CARDS if checkpoint.read_card(card.parent).task == "generate"]
RANDOM = [Path(name) for name in ("cvae-mnist", "vae-faces", "gan-mnist", "wgan-faces", "ae-mnist")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    random_generators(folder)
    return folder


@pytest.fixture(scope="module")
def client(weights: Path) -> Iterator[TestClient]:
    with started(weights) as running:
        yield running


def pixels(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)))


def cells(grid: Pixels, side: int, columns: int, count: int) -> list[Pixels]:
    """The cells of a grid, row by row."""
    corners = [(index // columns * side, index % columns * side) for index in range(count)]
    return [grid[top : top + side, left : left + side] for top, left in corners]


def samples(client: TestClient, query: str) -> list[Pixels]:
    response = client.get(f"/generate?format=json&{query}")
    assert response.status_code == 200, response.text
    return [pixels(base64.b64decode(item["b64_json"])) for item in response.json()["data"]]


def decoder_output(weights: Path, name: str, latent: Tensor, classes: list[int] | None = None) -> Pixels:
    """The network's images, [N, H, W] or [N, H, W, 3]."""
    network, card = checkpoint.load(weights / name)
    assert isinstance(network, SupportsDecode)
    one_hot = torch.zeros(len(latent), 0) if classes is None else F.one_hot(torch.tensor(classes), 10).float()
    with torch.inference_mode():
        output = network.decode(latent, one_hot)
    levels = output.permute(0, 2, 3, 1).numpy() * card.preprocess.std + card.preprocess.mean
    return np.rint(levels).clip(0, 255).astype(np.uint8).squeeze(-1 if levels.shape[-1] == 1 else ())


def max_difference(a: npt.ArrayLike, b: npt.ArrayLike) -> int:
    """The largest difference in grey levels; up to 1 is rounding by kernels of different batch sizes."""
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


@pytest.mark.parametrize("model", ["vae-faces", "wgan-faces"])
def test_grid_equals_the_decoder_s_output(client: TestClient, weights: Path, model: str) -> None:
    response = client.get(f"/generate?model={model}&n=5&seed=7")
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-seed"] == "7"
    stages = [stage.split(";")[0] for stage in response.headers["server-timing"].split(", ")]
    assert stages == ["queue", "infer", "encode", "app", "total"]
    grid = pixels(response.content)
    assert grid.shape == (64, 96, 3)
    expected = decoder_output(weights, model, torch.stack([latents(7, index, 12) for index in range(5)]))
    assert max_difference(cells(grid, 32, 3, 5), expected) <= 1
    assert expected.std(axis=0).max() > 2  # the samples differ
    assert not grid[32:, 64:].any()


@pytest.mark.parametrize(("columns", "shape"), [(1, (168, 28)), (4, (56, 112)), (6, (28, 168)), (8, (28, 224))])
def test_columns_of_the_grid(client: TestClient, columns: int, shape: tuple[int, int]) -> None:
    assert pixels(client.get(f"/generate?n=6&seed=1&grid={columns}").content).shape == shape


@pytest.mark.parametrize(("model", "side"), [("vae-faces", 32), ("cvae-mnist", 28)])
def test_formats_have_the_same_images(client: TestClient, model: str, side: int) -> None:
    url = f"/generate?model={model}&n=6&seed=3&grid=3"
    grid = pixels(client.get(url).content)
    webp = client.get(url + "&format=webp")
    assert webp.headers["content-type"] == "image/webp"
    image = Image.open(io.BytesIO(webp.content)).convert("RGB" if grid.ndim == 3 else "L")
    assert np.array_equal(np.asarray(image), grid)
    assert np.array_equal(samples(client, f"model={model}&n=6&seed=3"), cells(grid, side, 3, 6))
    body = client.get(url + "&format=json").json()
    assert body.keys() == {"created", "data", "model", "version", "seed"}
    assert (body["model"], body["seed"], body["created"]) == (model, 3, 0)
    labels = [str(index) if model == "cvae-mnist" else None for index in range(6)]
    assert [item["label"] for item in body["data"]] == labels


def test_random_seed_is_returned(client: TestClient) -> None:
    before = int(time.time())
    first, second = (client.get("/generate?n=2&format=json") for _ in range(2))
    assert before <= first.json()["created"] <= time.time()
    assert first.headers["x-seed"] != second.headers["x-seed"]
    assert first.json()["seed"] == int(first.headers["x-seed"]) < 2**53
    assert first.headers["cache-control"] == "no-store"
    assert "etag" not in first.headers
    assert client.get(f"/generate?n=1&seed={2**63 - 1}").headers["x-seed"] == str(2**63 - 1)
    repeated = client.get(f"/generate?n=2&format=json&seed={first.headers['x-seed']}").json()
    assert repeated["data"] == first.json()["data"] != second.json()["data"]


@pytest.mark.parametrize("model", ["cvae-mnist", "vae-faces", "gan-mnist", "wgan-faces"])
def test_samples_do_not_depend_on_their_number(client: TestClient, model: str) -> None:
    label = "&label=4" if model.endswith("mnist") else ""
    most = samples(client, f"model={model}&n=64&seed=11{label}")
    assert len(np.unique(np.stack(most), axis=0)) == 64
    for n in (1, 2, 15, 16, 17, 40):
        fewer = samples(client, f"model={model}&n={n}&seed=11{label}")
        assert np.array_equal(fewer, most[:n])


def test_bytes_are_reproducible_under_load_and_in_another_process(client: TestClient, weights: Path) -> None:
    urls = [
        f"/generate?model={model}&n={n}&seed={n}"
        for model in ("cvae-mnist", "gan-mnist", "wgan-faces")
        for n in (1, 3, 20)
    ]
    expected = {url: client.get(url).content for url in urls}
    others = ["/generate?n=9", "/generate?model=vae-faces&n=33", "/generate?model=vae-faces&n=1&truncation=2"]
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(lambda url: (url, client.get(url).content), (urls + others) * 6))
    assert all(content == expected[url] for url, content in results if url in expected)
    settings = {"VESTIBULE_WEIGHTS": str(weights), "VESTIBULE_DEFAULT_CLASSIFIER": "lenet5-mnist"}
    with serving(**settings, OMP_NUM_THREADS="3") as (_, address, _):
        assert {url: httpx.get(address + url).content for url in urls} == expected
        etag = client.get(urls[0]).headers["etag"]
        assert httpx.get(address + urls[0], headers={"if-none-match": etag}).status_code == 304


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("folder", [*RANDOM, *SHIPPED], ids=str)
def test_samples_depend_on_neither_batch_nor_threads(weights: Path, folder: Path) -> None:
    network, card = checkpoint.load(weights / folder)  # the folders of shipped models are absolute
    decoder = runtime.prepare(DECODER.extract(network), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(48, *DECODER.example_shape(card), generator=generator)

    def outputs(items: Tensor) -> Tensor:
        batches = torch.split(items, DECODER_BATCH_SIZE)
        return torch.stack([row for batch in batches for row in run_padded(DECODER, decoder, list(batch))])

    torch.set_num_threads(1)
    expected = outputs(items)
    for count in (2, 3, 5):  # 16 rows are divided unevenly among 3 and 5 threads
        torch.set_num_threads(count)
        order = torch.randperm(len(items), generator=generator)
        assert torch.equal(outputs(items[order]), expected[order])
        assert torch.get_num_threads() == count
        for row in range(0, DECODER_BATCH_SIZE, 5):
            batch = [torch.zeros_like(items[0])] * row + [items[0]]
            assert torch.equal(run_padded(DECODER, decoder, batch)[row], expected[0])


def test_etag(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "/generate?n=2&seed=1&label=1"
    first = client.get(url)
    etag = first.headers["etag"]
    assert etag.startswith('"')
    assert first.headers["cache-control"] == "no-cache"
    for tags in (etag, f'"other", W/{etag}', "*"):
        unchanged = client.get(url, headers={"if-none-match": tags})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == etag
        assert unchanged.headers["x-seed"] == "1"
    assert client.get(url, headers={"if-none-match": '"other"'}).content == first.content
    changes = ["truncation=0.5", "format=webp", "format=json", "grid=1", "model=vae-faces"]
    urls = [f"{url.replace('&label=1', '')}&{change}" for change in changes]
    urls += [url.replace("n=2", "n=3"), url.replace("seed=1", "seed=2"), url.replace("label=1", "label=2")]
    assert len({etag, *(client.get(changed).headers["etag"] for changed in urls)}) == 9
    assert client.get("/generate?n=2&label=1", headers={"if-none-match": "*"}).status_code == 200
    monkeypatch.setattr(runtime, "signature", lambda: "another torch")
    assert (other_torch := client.get(url).headers["etag"]) != etag
    monkeypatch.setattr(encoding, "encoder_versions", lambda: "another zlib")
    assert client.get(url).headers["etag"] not in {etag, other_torch}


@pytest.mark.parametrize("model", ["cvae-mnist", "gan-mnist"])
def test_labels_for_all_samples_or_for_each(client: TestClient, weights: Path, model: str) -> None:
    width = {"cvae-mnist": 6, "gan-mnist": 20}[model]
    noise = torch.stack([latents(2, index, width) for index in range(3)])
    for query, classes in (("label=7", [7] * 3), ("label=1,2,3", [1, 2, 3]), ("label=9&label=0,9", [9, 0, 9])):
        images = samples(client, f"model={model}&n=3&seed=2&{query}")
        assert max_difference(images, decoder_output(weights, model, noise, classes)) <= 1
    data = client.get(f"/generate?model={model}&n=12&seed=2&format=json").json()["data"]
    assert "".join(item["label"] for item in data) == "".join(DIGITS) + "01"


def test_truncation_scales_the_noise(client: TestClient, weights: Path) -> None:
    noise = torch.stack([latents(4, index, 12) for index in range(2)])
    for scale in (0.25, 2.0):
        images = samples(client, f"model=vae-faces&n=2&seed=4&truncation={scale}")
        assert max_difference(images, decoder_output(weights, "vae-faces", noise * scale)) <= 1


def test_latents_of_a_seed_give_the_seed_s_images(client: TestClient) -> None:
    noise = [latents(6, index, 6).tolist() for index in range(20)]
    body: dict[str, Any] = {"model": "cvae-mnist", "latents": noise, "labels": ["3"]}
    for file_format in ("png", "webp"):
        response = client.post("/generate", json=body | {"format": file_format, "grid": 5})
        assert response.content == client.get(f"/generate?n=20&seed=6&label=3&format={file_format}&grid=5").content
        assert "x-seed" not in response.headers
    result = client.post("/generate", json=body | {"format": "json"}).json()
    assert result["data"] == client.get("/generate?n=20&seed=6&label=3&format=json").json()["data"]
    assert (result["seed"], result["created"]) == (None, 0)
    del body["labels"]
    assert client.post("/generate", json=body).content == client.get("/generate?n=20&seed=6").content


@pytest.mark.parametrize("model", ["ae-mnist", "vae-denoiser-mnist"])
def test_latents_of_other_decoders(client: TestClient, weights: Path, model: str) -> None:
    width = {"ae-mnist": 8, "vae-denoiser-mnist": 16}[model]
    points = torch.linspace(-2, 2, 2 * width).view(2, width)
    response = client.post("/generate", json={"model": model, "latents": points.tolist(), "grid": 2})
    assert max_difference(cells(pixels(response.content), 28, 2, 2), decoder_output(weights, model, points)) <= 1


@pytest.mark.parametrize(("model", "side", "label"), [("vae-faces", 32, ""), ("cvae-mnist", 28, "&label=5")])
def test_interpolation(client: TestClient, model: str, side: int, label: str) -> None:
    url = f"/generate/interpolate?model={model}&from_seed=1&to_seed=2&steps=4{label}"
    response = client.get(url)
    assert (response.headers["content-type"], response.headers["cache-control"]) == ("image/png", "no-cache")
    strip = pixels(response.content)
    assert strip.shape[:2] == (side, 4 * side)
    first, *_, last = cells(strip, side, 4, 4)
    assert np.array_equal(first, samples(client, f"model={model}&n=1&seed=1{label}")[0])
    assert np.array_equal(last, samples(client, f"model={model}&n=1&seed=2{label}")[0])
    unchanged = client.get(url, headers={"if-none-match": response.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    animation = client.get(url + "&format=webp")
    assert animation.headers["content-type"] == "image/webp"
    assert animation.content == client.get(url + "&format=webp").content
    with Image.open(io.BytesIO(animation.content)) as frames:
        assert (getattr(frames, "n_frames", 1), frames.info["loop"]) == (4, 0)
        for index, expected in enumerate(cells(strip, side, 4, 4)):
            frames.seek(index)
            assert np.array_equal(np.asarray(frames.convert("RGB" if strip.ndim == 3 else "L")), expected)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("?n=0", "invalid-parameters"),
        (f"?seed={2**63}", "invalid-parameters"),
        ("?truncation=nan", "invalid-parameters"),
        ("?latents=1", "invalid-parameters"),
        ("?label=ten", "unprocessable"),
        ("?label=", "unprocessable"),
        ("?n=3&label=1,2", "unprocessable"),
        ("?model=vae-faces&label=1", "unprocessable"),
        ("?model=lenet5-mnist", "unknown-model"),
        ("?model=ae-mnist", "unknown-model"),
        ("?model=nobody", "unknown-model"),
        ("/interpolate?from_seed=1&to_seed=2&format=json", "invalid-parameters"),
        ("/interpolate?from_seed=1&to_seed=2", "unprocessable"),
        ("/interpolate?from_seed=1&to_seed=2&label=1,2", "unprocessable"),
        ("/interpolate?from_seed=1&to_seed=2&model=denoiser-photo", "unknown-model"),
    ],
)
def test_invalid_queries(client: TestClient, query: str, problem: str) -> None:
    response = client.get(f"/generate{query}")
    assert (response.status_code, response.json()["type"]) == (422, f"urn:vestibule:problem:{problem}")
    assert response.json().get("detail") or response.json()["errors"][0]["parameter"] in query


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        *(
            (f'"model": "vae-faces", "latents": [[{number}]]', "invalid-parameters")
            for number in ("NaN", "1e999", "1e300")
        ),
        ('"model": "vae-faces", "latents": [[0]], "grid": "1"', "invalid-parameters"),
        (f'"model": "vae-faces", "latents": [{", ".join(["[0]"] * 65)}]', "invalid-parameters"),
        ("not JSON", "invalid-parameters"),
        ('"model": "vae-faces", "latents": [[0, 1, 2]]', "unprocessable"),
        ('"latents": [[0, 0, 0, 0, 0, 0]], "labels": ["1", "2"]', "unprocessable"),
        *((f'"model": "{model}", "latents": [[0]]', "unknown-model") for model in ("denoiser-photo", "lenet5-mnist")),
    ],
)
def test_invalid_latents(client: TestClient, body: str, problem: str) -> None:
    response = client.post("/generate", content=f"{{{body}}}", headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["type"]) == (422, f"urn:vestibule:problem:{problem}")


def test_slerp() -> None:
    generator = torch.Generator().manual_seed(0)
    first, last = F.normalize(torch.randn(2, 64, generator=generator).double()).unbind()
    expected = geometric_slerp(first.numpy(), last.numpy(), np.linspace(0, 1, 7))
    assert np.allclose(slerp(first, last, 7), expected, atol=1e-7)
    noise = latents(0, 0, 512), latents(1, 0, 512)
    assert slerp(*noise, 9).norm(dim=1).numpy() == pytest.approx(math.sqrt(512), rel=0.1)
    assert torch.equal(slerp(*noise, 9)[[0, -1]], torch.stack(noise))


def test_slerp_of_parallel_vectors_is_linear() -> None:
    point = torch.tensor([3.0, 4.0])
    assert torch.equal(slerp(point, point, 3), torch.stack([point] * 3))
    assert torch.equal(slerp(point, 2 * point, 3), torch.stack([point, 1.5 * point, 2 * point]))
    assert torch.isfinite(slerp(point, -point, 5)).all()
