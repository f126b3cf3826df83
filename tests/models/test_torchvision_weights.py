"""Imports from torchvision. Its files are replaced by random weights in the same format."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.transforms import functional as F

from models import checkpoint, torchvision_weights
from models.card import Metric
from models.importers import ImportWeightsError, import_weights
from models.registry import configure
from models.torchvision_weights import TorchvisionFile, published_files, shared_architectures
from tests.conftest import photo
from tests.models.helpers import enliven

TOLERANCE = 1e-4  # of the logits' scale, in float32

Publish = Callable[..., Path]


def random_network(name: str) -> nn.Module:
    """torchvision's network as its pretrained weights set it up: with auxiliary heads, transforming its input."""
    torch.manual_seed(0)
    inception = name in ("googlenet", "inception_v3")
    options = {"transform_input": True, "aux_logits": True, "init_weights": False} if inception else {}
    network: nn.Module = get_model(name, weights=None, **options)
    return network.eval()


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """A function that writes a file and makes it the released file of an enum member, as "ResNet50_Weights.DEFAULT"."""
    real = torchvision_weights.published_files
    rows: dict[Any, TorchvisionFile] = {}

    def listed(name: str) -> list[TorchvisionFile]:
        return [rows.get(row.weights, row) for row in real(name)]

    monkeypatch.setattr(torchvision_weights, "published_files", listed)

    def save(name: str, content: object, member: str = "DEFAULT", **options: Any) -> Path:
        weights = get_model_weights(name)[member]
        file = tmp_path / f"{name}-{weights.name}.pth"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file, **options)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        rows[weights] = TorchvisionFile(prefix=digest[:8], url=weights.url, weights=weights)
        return file

    return save


def images() -> list[Image.Image]:
    """Images whose sides are whole pixels after every resize, so that torchvision does not round them."""
    return [photo("coffee"), photo("astronaut"), photo("chelsea").crop((0, 0, 450, 300))]


def cropped(weights: Any, image: Image.Image) -> Tensor:
    """The image resized and cropped by torchvision: uint8 [3, C, C]."""
    transforms = weights.transforms()
    resized = F.resize(image, transforms.resize_size, interpolation=transforms.interpolation)
    answer: Tensor = F.pil_to_tensor(F.center_crop(resized, transforms.crop_size))
    return answer


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b0",
        "googlenet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("alexnet", "vgg11_bn", "inception_v3", "resnet18", "densenet121", "efficientnet_b2")
        ),
    ],
)
@torch.no_grad()
def test_imported_network_has_torchvisions_logits(name: str, publish: Publish, tmp_path: Path) -> None:
    weights = get_model_weights(name).DEFAULT
    batch = torch.stack([weights.transforms()(image) for image in images()])
    theirs = random_network(name)
    enliven(theirs, batch)
    expected = theirs.eval()(batch)
    scale = expected.abs().max()
    assert expected.std(dim=0).mean() > 0.01 * scale, (
        "the images have the same logits, so the comparison proves nothing"
    )

    file = publish(name, theirs.state_dict())
    # The registry's spelling of a name is accepted, too.
    card = import_weights(f"torchvision:{name.replace('_', '-')}", tmp_path / "weights", file)
    ours, loaded = checkpoint.load(tmp_path / "weights" / name.replace("_", "-"))
    assert loaded == card

    pixels = torch.stack([cropped(weights, image).movedim(0, -1) for image in images()])
    assert (ours(card.preprocess.normalise(pixels)) - expected).abs().max() <= TOLERANCE * scale
    if name == "inception_v3":
        # (342 - 299) / 2 is not whole: torchvision's crop is half a pixel off the centre, ours is not.
        cropped_pixels = torch.stack([torch.from_numpy(card.preprocess.pixels(image).copy()) for image in images()])
        assert (cropped_pixels.float() - pixels.float()).abs().mean() < 6
    else:
        inputs = torch.stack([card.preprocess(image) for image in images()])
        assert (ours(inputs) - expected).abs().max() <= TOLERANCE * scale


def test_card_of_a_torchvision_import(publish: Publish, tmp_path: Path) -> None:
    file = publish("googlenet", random_network("googlenet").state_dict())
    card = import_weights("torchvision:googlenet", tmp_path, file)
    assert (len(card.classes), card.classes[0], card.classes[967]) == (1000, "tench", "espresso")
    assert card.metrics == (Metric(name="accuracy", value=0.69778, data="ImageNet-1k validation", origin="reported"),)
    assert "googlenet-1378be20.pth" in card.source
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card.source
    assert "GoogLeNet_Weights.IMAGENET1K_V1" in card.source
    assert "BSD-3-Clause" in card.license
    assert "non-commercial" in card.license
    assert card.config["auxiliary"] is False
    # The same bytes again.
    import_weights("torchvision:googlenet", tmp_path / "again", file)
    for name in ("model.safetensors", "card.json"):
        assert len({(folder / "googlenet" / name).read_bytes() for folder in (tmp_path, tmp_path / "again")}) == 1


@pytest.mark.slow
def test_hash_identifies_the_version_of_the_weights(publish: Publish, tmp_path: Path) -> None:
    network = random_network("resnet50")
    first = publish("resnet50", network.state_dict(), "IMAGENET1K_V1")
    nn.init.zeros_(network.get_submodule("fc").bias)  # type: ignore[arg-type]
    second = publish("resnet50", network.state_dict(), "IMAGENET1K_V2")
    cards = [import_weights("torchvision:resnet50", tmp_path, file) for file in (first, second)]
    assert [card.preprocess.crop_fraction for card in cards] == [224 / 256, 224 / 232]
    assert [card.metrics[0].value for card in cards] == [0.7613, 0.80858]
    assert ["resnet50-0676ba61.pth" in card.source for card in cards] == [True, False]
    assert ["resnet50-11ad3fa6.pth" in card.source for card in cards] == [False, True]


def test_preprocessing_of_every_published_file() -> None:
    """A square image has whole pixels after every resize, so torchvision's result is the same."""
    image = photo("astronaut")
    rows = [(name, row) for name in shared_architectures() for row in published_files(name)]
    assert len(rows) == 31
    for name, row in rows:
        assert re.fullmatch("[0-9a-f]{8}", row.prefix), row.url
        assert len(row.weights.meta["categories"]) == 1000
        preprocess, transforms = torchvision_weights.preprocess_of(name, row), row.weights.transforms()
        expected = transforms(image)
        if name in ("googlenet", "inception_v3"):  # whose networks change their input's mean and deviation to 0.5
            mean, std = (torch.tensor(values)[:, None, None] for values in (transforms.mean, transforms.std))
            expected = (expected * std + mean - 0.5) / 0.5
        margin = transforms.resize_size[0] - transforms.crop_size[0]
        tolerance = 0.2 if margin % 2 else 0.02  # torchvision's crop is half a pixel off the centre if it is odd
        assert (preprocess(image) - expected).abs().mean() < tolerance, (name, row.weights.name)
    # vgg16's file without a classifier is left out; the recommended file comes first.
    assert [row.prefix for row in published_files("vgg16")] == ["397923af"]
    assert [row.prefix for row in published_files("resnet50")] == ["11ad3fa6", "0676ba61"]


@pytest.mark.slow
def test_every_shared_architecture_matches_by_order() -> None:
    """Compares shapes only; the parity tests of each family prove that equal shapes have the same meaning."""
    shared = shared_architectures()
    assert {"alexnet", "vgg16_bn", "googlenet", "inception_v3", "resnet152", "densenet201", "efficientnet_b7"} <= {
        *shared
    }
    for name, architecture in shared.items():
        inception = name in ("googlenet", "inception_v3")
        with torch.device("meta"):
            network = get_model(name, weights=None, **({"init_weights": False} if inception else {}))
        state = {k: v for k, v in network.state_dict().items() if not k.startswith(("aux", "Aux"))}
        config = asdict(configure(architecture, {"auxiliary": False} if inception else {}))
        filled = torchvision_weights.fill_network(name, architecture, config, state)
        assert [v.shape for v in filled.state_dict().values()] == [v.shape for v in state.values()]


def test_old_densenet_names_without_counters_are_accepted(publish: Publish, tmp_path: Path) -> None:
    state = random_network("densenet121").state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    file = publish("densenet121", old, _use_new_zipfile_serialization=False)
    import_weights("torchvision:densenet121", tmp_path, file)
    ours = checkpoint.load(tmp_path / "densenet121")[0].state_dict()
    for actual, (key, expected) in zip(ours.values(), state.items(), strict=True):
        assert key.endswith("num_batches_tracked") or torch.equal(actual, expected)


class Trap:
    """Creates a folder when an unsafe reader unpickles it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def test_code_in_the_file_is_not_run(publish: Publish, tmp_path: Path) -> None:
    trap = tmp_path / "caught"
    file = publish("resnet18", {"conv1.weight": Trap(trap)})
    with pytest.raises(ImportWeightsError, match=r"resnet18-f37072fd\.pth cannot be read as plain weights"):
        import_weights("torchvision:resnet18", tmp_path / "weights", file)
    assert not trap.exists()
    assert not (tmp_path / "weights").exists()
    torch.load(file, weights_only=False)
    assert trap.exists(), "the trap does not work, so the test proves nothing"


def resnet_state(**changes: Tensor) -> dict[str, Tensor]:
    """ResNet-18's state with `changes`, in whose names double underscores stand for dots."""
    state: dict[str, Tensor] = get_model("resnet18", weights=None).state_dict()
    return state | {key.replace("__", "."): value for key, value in changes.items()}


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("resnet18", "cut.pth", r"cut\.pth: sha256 .* or the file is damaged; expected: resnet18-f37072fd"),
        (
            "resnet50",
            "cut.pth",
            r"expected: resnet50-11ad3fa6\.pth \(IMAGENET1K_V2\), resnet50-0676ba61\.pth \(\w+_V1\)",
        ),
        ("resnet50", "nowhere.pth", r"nowhere\.pth: No such file"),
        ("resnet34", "resnet18-IMAGENET1K_V1.pth", "holds the weights of torchvision:resnet18, not of resnet34"),
    ],
)
def test_unexpected_file_is_refused(name: str, file: str, message: str, publish: Publish, tmp_path: Path) -> None:
    complete = publish("resnet18", resnet_state()).read_bytes()
    (tmp_path / "cut.pth").write_bytes(complete[: len(complete) // 2])
    with pytest.raises(ImportWeightsError, match=message):
        import_weights(f"torchvision:{name}", tmp_path / "weights", tmp_path / file)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>not found</html>", "cannot be read as plain weights"),
        ([1, 2], "does not hold a dictionary"),
        ({"conv1.weight": "a word"}, "does not hold a dictionary"),
        ({}, r"not the state of resnet18: bn1.bias, .* missing or too many \(102\)"),
        ({"layer5": torch.zeros(1)}, r"layer5|\(103\)"),
        ({"fc__bias": torch.zeros(10)}, "the layers in the file are not those of resnet18"),
        ({"fc__bias": torch.zeros(1000).half()}, "the layers in the file are not those of resnet18"),
        ({"layer5__weight": torch.zeros(1)}, r"layer5\.weight missing or too many \(1\)"),
    ],
)
def test_state_that_does_not_match_is_refused(content: object, message: str, publish: Publish, tmp_path: Path) -> None:
    if isinstance(content, dict) and any("__" in key for key in content):
        content = resnet_state(**content)
    file = publish("resnet18", content)
    with pytest.raises(ImportWeightsError, match=message):
        import_weights("torchvision:resnet18", tmp_path / "weights", file)
    assert not (tmp_path / "weights").exists()


@contextmanager
def serving(body: bytes, length: int, status: int = 200) -> Iterator[str]:
    """The URL of a local server that answers every GET with `body` and a Content-Length of `length`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/resnet18-f37072fd.pth"
        finally:
            server.shutdown()
            thread.join()


def publish_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Make `url` the address of every published file."""
    listed = torchvision_weights.published_files
    monkeypatch.setattr(
        torchvision_weights, "published_files", lambda name: [replace(row, url=url) for row in listed(name)]
    )


def test_downloaded_file_is_imported(publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = publish("resnet18", resnet_state()).read_bytes()
    messages: list[str] = []
    with serving(body, len(body)) as url:
        publish_at(monkeypatch, url)
        card = import_weights("torchvision:resnet18", tmp_path / "weights", report=messages.append)
    assert messages == [f"downloading {url}, 45 MB"]
    assert checkpoint.load(tmp_path / "weights" / "resnet18")[1] == card
    assert hashlib.sha256(body).hexdigest() in card.source


@pytest.mark.parametrize(
    ("missing", "status", "message"),
    [(100, 200, r"without a network, download this file elsewhere .* --from"), (0, 404, "404"), (-1, 200, "damaged")],
    ids=["truncated", "not found", "another file"],
)
def test_failed_download_writes_nothing(
    missing: int, status: int, message: str, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = publish("resnet18", resnet_state()).read_bytes()
    sent = body[:-missing] if missing > 0 else body + b"x" * -missing
    with serving(sent, max(len(body), len(sent)), status) as url:
        publish_at(monkeypatch, url)
        with pytest.raises(ImportWeightsError, match=message):
            import_weights("torchvision:resnet18", tmp_path / "weights")
    # The server has stopped, so nothing listens at the port.
    with pytest.raises(ImportWeightsError, match=r"without a network, download this file elsewhere .* --from"):
        import_weights("torchvision:resnet18", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()
