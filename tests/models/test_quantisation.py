"""Quantised classifiers, embedders and detectors beside torch, and the files that describe them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from models import checkpoint
from models.card import Tolerance
from models.checkpoint import INT8_CONSTANTS_FILE, INT8_NETWORK_FILE, CheckpointError
from models.detection_agreement import compare_maps
from models.detection_scale import CenterFaceDetector
from models.detector import CHANNELS, Face, decode
from models.importers import import_weights
from models.openvino_runtime import OpenVinoInt8AnySizeRuntime, OpenVinoInt8Runtime
from models.quantisation import MIN_IMAGES, TOLERANCE, QuantisationError, input_of, quantise_model
from models.registry import build
from models.runtime import TorchRuntime
from models.runtime_selection import RuntimeSelector
from tests.app.face_pictures import grace_hopper
from tests.conftest import photo
from tests.models.helpers import save_untrained

PROJECT = Path(__file__).parents[2]


def images(count: int) -> list[Image.Image]:
    """scikit-learn's digits, framed as in MNIST."""
    framed = []
    for pixels in load_digits().images[:count]:
        canvas = Image.new("L", (28, 28))
        canvas.paste(Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize((20, 20)), (4, 4))
        framed.append(canvas)
    return framed


def digits(count: int) -> list[Tensor]:
    """scikit-learn's digits as inputs of lenet5-mnist."""
    preprocess = checkpoint.read_card(PROJECT / "weights/lenet5-mnist").preprocess
    return [preprocess(image) for image in images(count)]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of lenet5-mnist with a quantised network."""
    folder = tmp_path_factory.mktemp("weights") / "lenet5-mnist"
    shutil.copytree(PROJECT / "weights/lenet5-mnist", folder)
    int8 = quantise_model(folder, digits(300), folder.parent / "cache")
    assert (int8.images, int8.compared) == (100, 200)
    return folder


def test_quantised_network_agrees_with_torch(quantised: Path, tmp_path: Path) -> None:
    module, card = checkpoint.load(quantised)
    files = checkpoint.load_int8(quantised, card)
    assert files is not None
    assert card.int8 is not None
    assert len(files.constants) < (quantised / checkpoint.WEIGHTS_FILE).stat().st_size / 3
    runtime = OpenVinoInt8Runtime(*files, card.preprocess.shape, tmp_path)
    fresh = torch.stack(digits(900)[500:])
    with torch.inference_mode():
        expected = module(fresh)
    assert (runtime(fresh).argmax(dim=1) == expected.argmax(dim=1)).double().mean() >= 0.97
    assert card.int8.agreement >= 0.97
    assert runtime.name == "openvino-cpu-int8"


def test_it_is_a_runtime_with_its_own_tolerance(quantised: Path, tmp_path: Path) -> None:
    module, card = checkpoint.load(quantised)
    files = checkpoint.load_int8(quantised, card)
    assert files is not None
    reference = TorchRuntime(module, torch.device("cpu"))
    for number, image in enumerate(images(3)):
        image.save(tmp_path / f"{number}.jpg")
    for tolerance, expected in (
        (Tolerance(top1=0.5, probability=1), "openvino-cpu-int8"),
        (Tolerance(probability=0), reference.name),
    ):
        selector = RuntimeSelector(
            module, card.preprocess, card.preprocess.shape, "logits", card.tolerance, "key", tmp_path,
            "openvino-int8", (files, tolerance),
        )  # fmt: skip
        runtime, comparison = selector.select(reference, tmp_path)
        assert runtime.name == expected
        assert comparison is not None
        assert (("openvino-cpu-int8" in comparison.refused), list(comparison.seconds)) == (
            expected == reference.name,
            [expected],
        )


def test_changed_and_missing_files_are_refused(quantised: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lenet5-mnist"
    shutil.copytree(quantised, folder)
    card = checkpoint.read_card(folder)
    constants = bytearray((folder / INT8_CONSTANTS_FILE).read_bytes())
    constants[100] ^= 1
    (folder / INT8_CONSTANTS_FILE).write_bytes(constants)
    with pytest.raises(CheckpointError, match="sha256 of the int8 files"):
        checkpoint.load_int8(folder, card)
    (folder / INT8_NETWORK_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"int8\.xml"):
        checkpoint.load_int8(folder, card)
    assert checkpoint.load_int8(folder, card.model_copy(update={"int8": None})) is None


def test_errors_change_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lenet5-mnist", "ae-mnist"):
        shutil.copytree(PROJECT / "weights" / name, tmp_path / name)
    before = checkpoint.read_card(tmp_path / "lenet5-mnist")
    for name, inputs, message in (
        ("ae-mnist", digits(300), "only classifiers, embedders and detectors"),
        ("lenet5-mnist", digits(MIN_IMAGES - 1), f"at least {MIN_IMAGES} images"),
        (
            "lenet5-mnist",
            [-digit for digit in digits(20)] + digits(60)[20:],
            "is not quantised: the most probable class",
        ),
    ):
        with pytest.raises(QuantisationError, match=message):
            quantise_model(tmp_path / name, inputs, tmp_path / "cache", 1.0)
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(QuantisationError, match="pip install"):
        quantise_model(tmp_path / "lenet5-mnist", digits(MIN_IMAGES), tmp_path / "cache")
    assert checkpoint.read_card(tmp_path / "lenet5-mnist") == before
    assert not list(tmp_path.rglob("int8*"))


def test_an_embedder_is_compared_by_the_directions_of_its_vectors(tmp_path: Path) -> None:
    config = {"backbone_config": {"depths": [1, 1], "widths": [8, 16]}, "dimensions": 16, "image_size": 28}
    torch.manual_seed(0)
    module = build("embedder", config).eval()
    save_untrained(tmp_path / "embedder", module, "embedder", config)
    inputs = list(torch.rand(120, 3, 28, 28, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(QuantisationError, match=r"the cosine of a vector with torch's is 0\.\d+ \(80 images\)"):
        quantise_model(tmp_path / "embedder", inputs, tmp_path / "cache", 1.0)
    int8 = quantise_model(tmp_path / "embedder", inputs, tmp_path / "cache", 0.5)
    card = checkpoint.read_card(tmp_path / "embedder")
    files = checkpoint.load_int8(tmp_path / "embedder", card)
    assert files is not None
    runtime = OpenVinoInt8Runtime(*files, card.preprocess.shape, tmp_path / "cache")
    compared = torch.stack(inputs[40:])
    with torch.inference_mode():
        expected = module(compared).double().numpy()
    outputs = runtime(compared).double().numpy()
    cosines = (expected * outputs).sum(axis=1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(outputs, axis=1)
    assert int8.agreement == pytest.approx(cosines.min(), abs=1e-5)
    assert card.has_int8_vectors == (cosines.min() < 0.999)
    assert int8.tolerance.direction == (TOLERANCE.direction if card.has_int8_vectors else 0.001)


def test_the_shipped_detector_finds_the_same_faces_at_any_size(tmp_path: Path) -> None:
    module, card = checkpoint.load(PROJECT / "weights/centerface")
    files = checkpoint.load_int8(PROJECT / "weights/centerface", card)
    assert files is not None
    assert card.int8 is not None
    runtime = OpenVinoInt8AnySizeRuntime(*files, card.preprocess.shape, tmp_path)
    assert runtime.name == "openvino-cpu-int8"
    expected, outputs = [], []
    for size in ((32, 32), (320, 192), (64, 96), (640, 480), (320, 192)):
        pair = [np.asarray(image.resize(size)) for image in (photo("astronaut"), grace_hopper())]
        batch = torch.from_numpy(np.stack(pair)).movedim(-1, 1).float()
        with torch.inference_mode():
            expected.append(module(batch))
        outputs.append(runtime(batch))
        assert outputs[-1].shape == expected[-1].shape == (2, CHANNELS, size[1] // 4, size[0] // 4)
    assert [len(decode(maps, 0.5)[0].scores) for maps in expected] == [0, 1, 0, 1, 1]
    agreement = compare_maps(expected, outputs)
    assert agreement.share == 1
    assert agreement.percentile(0.95) <= card.int8.tolerance.landmarks


@pytest.mark.slow
def test_a_detector_is_compared_by_its_faces(tmp_path: Path) -> None:
    card = import_weights("package:centerface", tmp_path)
    face = photo("astronaut").crop((100, 0, 356, 256)).resize((144, 144))
    crops = [face.crop((n % 9, n // 9, 112 + n % 9, (80, 112)[n % 2] + n // 9)) for n in range(90)]
    inputs = [input_of(card)(crop) for crop in crops]
    assert {tuple(image.shape) for image in inputs} == {(3, 96, 128), (3, 128, 128)}
    int8 = quantise_model(tmp_path / "centerface", inputs, tmp_path / "cache", 0.5)
    assert (int8.images, int8.compared) == (30, 60)
    module, card = checkpoint.load(tmp_path / "centerface")
    files = checkpoint.load_int8(tmp_path / "centerface", card)
    assert files is not None
    runtime = OpenVinoInt8AnySizeRuntime(*files, card.preprocess.shape, tmp_path / "cache")
    detectors = CenterFaceDetector(module, card.preprocess), CenterFaceDetector(runtime, card.preprocess)
    same = 0
    for crop in crops[30:]:
        expected, faces = (detect(crop) for detect in detectors)
        same += len(expected) == len(faces) and all(map(is_same, expected, faces))
    assert int8.agreement == pytest.approx(same / 60)
    with pytest.raises(QuantisationError, match=r"the faces are the same in \d+\.\d+% of the images \(60 images\)"):
        quantise_model(tmp_path / "centerface", [*inputs[:30], *(255 - image for image in inputs[30:])], tmp_path, 1)


def is_same(face: Face, other: Face) -> bool:
    """The intersection of the boxes is at least half of their union."""
    left, top, right, bottom = (f(a, b) for f, a, b in zip((max, max, min, min), face.box, other.box, strict=True))
    common = max(right - left, 0) * max(bottom - top, 0)
    return common >= 0.5 * (face.area + other.area - common)
