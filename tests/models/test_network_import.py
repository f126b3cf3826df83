"""Networks from files of other frameworks, against torch and onnxruntime; files that are refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint, imported_runtime
from models.card import ModelCard
from models.checkpoint import CheckpointError
from models.network_files import NetworkFormat
from models.network_import import IMAGENET_MEAN, NetworkOptions, import_network, model_name, read_classes
from models.weight_files import ImportWeightsError
from tests.models.onnx_files import run_file, small_network, write_onnx

CLASSES = tuple("abcdefghij")
CLASSIFIER = NetworkOptions("classify", "imported", CLASSES)
EMBEDDER = NetworkOptions("embed", "imported", mean=(127.5,), std=(128.0,))
IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Reports(list[str]):
    """The messages of imports."""

    def __call__(self, message: str) -> None:
        self.append(message)


@pytest.fixture
def reports() -> Reports:
    return Reports()


def imported(
    file: Path, options: NetworkOptions, reports: Reports, format: NetworkFormat = "onnx"
) -> tuple[ModelCard, Callable[[Tensor], Tensor]]:
    """The card, read from the folder, and the runtime of an imported file."""
    card = import_network(file, format, file.parent / "weights", options, reports)
    runtime, stored = imported_runtime.load(file.parent / "weights" / card.name)
    assert stored == card
    return card, runtime


def logits(module: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.inference_mode():
        outputs: Tensor = module(images)
    return outputs


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_classifier_has_the_logits_of_onnxruntime(tmp_path: Path, reports: Reports) -> None:
    file = write_onnx(small_network(), tmp_path / "net.onnx")
    card, runtime = imported(file, CLASSIFIER, reports)
    assert_close(runtime(IMAGES), run_file(file, IMAGES))
    assert_close(runtime(IMAGES), logits(small_network()))
    assert (card.task, card.architecture, card.classes) == ("classify", "imported-classifier", CLASSES)
    assert card.config == {"num_classes": 10, "in_channels": 3, "features": 16, "batch": 0}
    assert card.preprocess.size == (32, 32)
    assert card.preprocess.mean == IMAGENET_MEAN
    assert card.source.startswith("onnx:net.onnx (sha256 ")
    assert reports[0].startswith("mean and std are ImageNet's: pass --mean and --std")
    assert reports[1].startswith("the outputs differ from onnxruntime's by at most ")


def test_parameters_are_those_of_the_network(tmp_path: Path, reports: Reports) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    card, _ = imported(write_onnx(module, tmp_path / "net.onnx"), CLASSIFIER, reports)
    assert card.parameters == 3 * 32 * 32 * 10 + 10


def test_features_are_the_input_of_the_last_layer(tmp_path: Path, reports: Reports) -> None:
    module = small_network()
    imported(write_onnx(module, tmp_path / "net.onnx"), CLASSIFIER, reports)
    runtime, _ = imported_runtime.load(tmp_path / "weights/imported", features=True)
    assert_close(runtime(IMAGES), logits(module[:-1]))


class WithoutLastLayer(nn.Module):
    """Logits that no linear layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_network()

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images)
        return outputs * outputs.sum(dim=1, keepdim=True)


def test_network_without_a_last_layer_has_no_features(tmp_path: Path, reports: Reports) -> None:
    card, runtime = imported(write_onnx(WithoutLastLayer(), tmp_path / "net.onnx"), CLASSIFIER, reports)
    assert card.config["features"] == 0
    assert_close(runtime(IMAGES), logits(WithoutLastLayer()))
    with pytest.raises(CheckpointError, match="does not have the output features"):
        imported_runtime.load(tmp_path / "weights/imported", features=True)


def test_final_softmax_is_removed(tmp_path: Path, reports: Reports) -> None:
    module = small_network()
    _, runtime = imported(write_onnx(module.append(nn.Softmax(dim=1)), tmp_path / "net.onnx"), CLASSIFIER, reports)
    assert_close(runtime(IMAGES), logits(module[:-1]))


@pytest.mark.parametrize("last", [nn.Identity(), nn.Unflatten(1, (10, 1, 1))])
def test_embedder_returns_unit_vectors(last: nn.Module, tmp_path: Path, reports: Reports) -> None:
    file = write_onnx(small_network().append(last), tmp_path / "net.onnx")
    card, runtime = imported(file, EMBEDDER, reports)
    assert_close(runtime(IMAGES), F.normalize(logits(small_network())))
    assert card.config == {"dimensions": 10, "in_channels": 3, "batch": 0}
    assert (card.preprocess.mean, card.preprocess.std) == ((127.5,) * 3, (128.0,) * 3)


class FixedReshape(nn.Module):
    """A network with a fixed number of images in a reshape, as converters write it."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.network, self.batch = small_network(), batch

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images)
        return outputs.reshape(self.batch, 10)


class MeanOfBatch(nn.Module):
    """An image's output depends on the other images."""

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = images.mean(dim=(2, 3)).repeat(1, 4)[:, :10]
        return outputs - outputs.mean(dim=0, keepdim=True)


@pytest.mark.parametrize(("module", "batch", "stored"), [(small_network(), 1, 0), (FixedReshape(2), 2, 2)])
def test_fixed_batch(module: nn.Module, batch: int, stored: int, tmp_path: Path, reports: Reports) -> None:
    """A network for one image accepts any number; one that cannot is run with its own number."""
    card, runtime = imported(write_onnx(module, tmp_path / "net.onnx", batch=batch), CLASSIFIER, reports)
    assert card.config["batch"] == stored
    assert_close(runtime(IMAGES), logits(small_network()))


def test_images_do_not_affect_each_other(tmp_path: Path, reports: Reports) -> None:
    card, runtime = imported(write_onnx(MeanOfBatch(), tmp_path / "net.onnx"), CLASSIFIER, reports)
    assert card.config["batch"] == 1
    assert_close(runtime(IMAGES), torch.zeros(5, 10))


class ChannelsLast(nn.Module):
    """A network for images [N, H, W, C], blue first."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_network()

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images.permute(0, 3, 1, 2).flip(1))
        return outputs


def test_other_layout_and_order_of_colours(tmp_path: Path, reports: Reports) -> None:
    file = write_onnx(ChannelsLast(), tmp_path / "net.onnx", (32, 32, 3))
    options = NetworkOptions("classify", "imported", CLASSES, bgr=True)
    card, runtime = imported(file, options, reports)
    assert card.preprocess.size == (32, 32)
    assert_close(runtime(IMAGES), logits(small_network()))


def test_grey_images(tmp_path: Path, reports: Reports) -> None:
    file = write_onnx(small_network(channels=1), tmp_path / "net.onnx", (1, 28, 28))
    card, runtime = imported(file, NetworkOptions("classify", "imported", CLASSES, mean=(33.3,), std=(78.6,)), reports)
    assert (card.preprocess.mode, card.preprocess.shape) == ("L", (1, 28, 28))
    images = IMAGES[:, :1, :28, :28]
    assert_close(runtime(images), logits(small_network(channels=1), images))


def test_size_that_the_file_leaves_open(tmp_path: Path, reports: Reports) -> None:
    file = write_onnx(small_network(), tmp_path / "net.onnx", (3, -1, -1))
    with pytest.raises(ImportWeightsError, match="images of several sizes: pass the size with --size"):
        imported(file, CLASSIFIER, reports)
    card, runtime = imported(file, NetworkOptions("classify", "imported", CLASSES, size=(24, 40)), reports)
    assert card.preprocess.size == (24, 40)
    images = torch.randn(3, 3, 24, 40)
    assert_close(runtime(images), logits(small_network(), images))


def test_float16(tmp_path: Path, reports: Reports) -> None:
    file = write_onnx(small_network().half(), tmp_path / "net.onnx")
    assert onnx.load(file).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    _, runtime = imported(file, CLASSIFIER, reports)
    assert_close(runtime(IMAGES), logits(small_network()), 1e-2)


def test_openvino_ir(tmp_path: Path, reports: Reports) -> None:
    model = openvino.convert_model(write_onnx(small_network(), tmp_path / "net.onnx"))
    openvino.save_model(model, tmp_path / "net.xml", compress_to_fp16=False)
    _, runtime = imported(tmp_path / "net.xml", CLASSIFIER, reports, "openvino")
    assert_close(runtime(IMAGES), logits(small_network()))
    assert reports[-1] == "the outputs were not compared with another runtime, which is done for ONNX files only"
    (tmp_path / "net.bin").unlink()
    with pytest.raises(ImportWeightsError, match=r"net\.bin: No such file"):
        imported(tmp_path / "net.xml", NetworkOptions("classify", "second", CLASSES), reports, "openvino")


@pytest.mark.data
def test_tflite(datasets: Callable[[str], Path], tmp_path: Path, reports: Reports) -> None:
    """The published MobileFaceNet, which reads two images at once, against its import as a torch module."""
    file = shutil.copy(datasets("mobilefacenet") / "mobilefacenet.tflite", tmp_path)
    card, runtime = imported(Path(file), EMBEDDER, reports, "tflite")
    assert card.config == {"dimensions": 192, "in_channels": 3, "batch": 2}
    module, torch_card = checkpoint.load(Path(__file__).parents[2] / "weights/mobilefacenet")
    assert card.parameters == torch_card.parameters
    images = torch.randn(3, 3, 112, 112)
    assert_close(runtime(images), logits(module, images))


def test_bytes_can_be_reproduced_and_a_model_is_not_overwritten(tmp_path: Path, reports: Reports) -> None:
    file = write_onnx(small_network(), tmp_path / "net.onnx")
    cards = [import_network(file, "onnx", tmp_path / number, CLASSIFIER, reports) for number in "12"]
    assert cards[0] == cards[1]
    with pytest.raises(ImportWeightsError, match="exists already: delete it, or choose another --name"):
        import_network(file, "onnx", tmp_path / "1", CLASSIFIER, reports)


def test_report_without_onnxruntime(tmp_path: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    imported(write_onnx(small_network(), tmp_path / "net.onnx"), CLASSIFIER, reports)
    assert reports[-1].startswith("the outputs were not compared with onnxruntime, which is not installed")


def test_two_outputs_are_refused(tmp_path: Path, reports: Reports) -> None:
    model = onnx.load(write_onnx(small_network(), tmp_path / "net.onnx"))
    model.graph.output.append(onnx.helper.make_tensor_value_info(model.graph.node[0].output[0], 1, None))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ImportWeightsError, match=r"the network has 2 outputs \(logits, .*\): exactly one is supported"):
        imported(tmp_path / "net.onnx", CLASSIFIER, reports)


def test_infinite_outputs_are_refused(tmp_path: Path, reports: Reports) -> None:
    module = small_network()
    nn.init.constant_(module[-1].get_parameter("bias"), float("inf"))
    with pytest.raises(ImportWeightsError, match="NaN or infinity"):
        imported(write_onnx(module, tmp_path / "net.onnx"), CLASSIFIER, reports)


@pytest.mark.parametrize(
    ("module", "shape", "options", "message"),
    [
        (small_network(), (3, 32, 32), NetworkOptions("classify", "x", CLASSES, (64, 64)), "input is 32x32, not 64x64"),
        (small_network(), (3, 32, 32), NetworkOptions("classify", "x", CLASSES[:9]), "9 class names .* 10 outputs"),
        (small_network(), (3, 32, 32), NetworkOptions("classify", "x"), "10 outputs: pass their class names"),
        (small_network(1), (3, 32, 32), NetworkOptions("classify", "x", ("a",)), "has one output"),
        (small_network(), (3, 32, 32), NetworkOptions("embed", "x", CLASSES), "an embedder has no classes"),
        (small_network(), (3, 32, 32), NetworkOptions("embed", "x"), "pass --mean and --std"),
        (small_network(), (3, 32, 32), NetworkOptions("embed", "x", mean=(0.4,), std=(0.2,)), "values are 51$"),
        (
            small_network(),
            (3, 32, 32),
            NetworkOptions("embed", "x", mean=(0, 0), std=(1, 1)),
            "^mean and std need 3 values each",
        ),
        (
            small_network(),
            (3, 32, 32),
            NetworkOptions("embed", "../x", mean=(0,), std=(1,)),
            "name String should match",
        ),
        (small_network(channels=1), (1, 32, 32), NetworkOptions("embed", "x", bgr=True), "grey images cannot be BGR"),
        (small_network(channels=4), (4, 32, 32), CLASSIFIER, r"with 1 or 3 channels"),
        (nn.Linear(12, 10), (12,), CLASSIFIER, r"shape \[\?,12\]: images are \[N, C, H, W\]"),
        (small_network()[:4], (3, 32, 32), CLASSIFIER, r"output has the shape .*: one vector for each image"),
        (small_network().append(nn.Sigmoid()), (3, 32, 32), CLASSIFIER, "ends with a sigmoid"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)),
            (3, -1, -1),
            NetworkOptions("classify", "x", CLASSES, (40, 40)),
            "does not accept images of 40x40: ",
        ),
    ],
)
def test_other_networks_are_refused(
    module: nn.Module,
    shape: tuple[int, ...],
    options: NetworkOptions,
    message: str,
    tmp_path: Path,
    reports: Reports,
) -> None:
    if shape == (3, -1, -1) and isinstance(module[0], nn.Flatten):  # type: ignore[index]
        file = write_onnx(module, tmp_path / "net.onnx")
        model = onnx.load(file)
        for axis in (2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
        onnx.save(model, file)
    else:
        file = write_onnx(module, tmp_path / "net.onnx", shape)
    with pytest.raises(ImportWeightsError, match=message):
        imported(file, options, reports)
    assert not list(tmp_path.rglob("card.json"))


def test_integer_input_is_refused(tmp_path: Path, reports: Reports) -> None:
    model = onnx.load(write_onnx(small_network(), tmp_path / "net.onnx"))
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["pixels"], ["input"], to=onnx.TensorProto.FLOAT))
    model.graph.input[0].name = "pixels"
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ImportWeightsError, match="the input has the type u8: float32 and float16"):
        imported(tmp_path / "net.onnx", CLASSIFIER, reports)


def external(folder: Path, location: str) -> Path:
    """Write an ONNX file whose weights lie in the file `location`, which is missing."""
    folder.mkdir()
    model = onnx.load(write_onnx(small_network(), folder / "net.onnx"))
    onnx.external_data_helper.convert_model_to_external_data(model, location="data", size_threshold=0)
    onnx.save(model, folder / "net.onnx")
    (folder / "data").rename(folder / "moved")
    model = onnx.load(folder / "net.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


def test_external_data(tmp_path: Path, reports: Reports) -> None:
    _, runtime = imported(external(tmp_path / "net", "moved"), CLASSIFIER, reports)
    assert_close(runtime(IMAGES), logits(small_network()))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("missing", "is not regular file"),
        ("../moved", "points outside the directory"),
        ("/etc/passwd", "absolute path"),
    ],
)
def test_external_data_elsewhere_are_refused(location: str, message: str, tmp_path: Path, reports: Reports) -> None:
    file = external(tmp_path / "net", location)
    shutil.copy(tmp_path / "net/moved", tmp_path / "moved")
    with pytest.raises(ImportWeightsError, match=message):
        imported(file, CLASSIFIER, reports)


@pytest.mark.parametrize(
    ("name", "content", "format", "message"),
    [
        ("net.onnx", b"not a network", "onnx", r"net\.onnx is not an ONNX file"),
        ("net.onnx", b"", "onnx", r"net\.onnx is not an ONNX file: it is empty"),
        ("net.onnx", None, "onnx", r"net\.onnx: No such file"),
        ("net.tflite", None, "tflite", r"net\.tflite: No such file"),
        ("net.tflite", b"not a network", "tflite", r"net\.tflite: OpenVINO cannot read it: "),
        ("net.lite", b"not a network", "tflite", r"must end in \.tflite"),
        ("net.xml", None, "openvino", r"net\.bin: No such file"),
    ],
)
def test_other_files_are_refused(
    name: str, content: bytes | None, format: NetworkFormat, message: str, tmp_path: Path, reports: Reports
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportWeightsError, match=message):
        imported(tmp_path / name, CLASSIFIER, reports, format)


def test_other_weights_than_a_graph_are_refused(tmp_path: Path, reports: Reports) -> None:
    card, _ = imported(write_onnx(small_network(), tmp_path / "net.onnx"), CLASSIFIER, reports)
    folder = tmp_path / "weights/imported"
    fields = card.model_dump(exclude={"sha256"})
    checkpoint.save_bytes(folder, checkpoint.serialise(small_network())[0], **fields)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not hold a graph"):
        imported_runtime.load(folder)
    with pytest.raises(CheckpointError, match="an imported network is a graph that OpenVINO runs"):
        checkpoint.load(folder)


def test_class_names(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("\ufeffcat\r\n dog \ncrane\n\n".encode())
    assert read_classes(tmp_path / "labels.txt") == ("cat", "dog", "crane")
    for content, message in ((b"cat\n\ndog", "line 2 is empty"), (b"\xff\xfe", "is not a text in UTF-8")):
        (tmp_path / "labels.txt").write_bytes(content)
        with pytest.raises(ImportWeightsError, match=message):
            read_classes(tmp_path / "labels.txt")


def test_model_name_of_a_text() -> None:
    assert model_name("ResNet 50 (v1)") == "resnet-50-v1"


def with_random_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the constant weights of onnx's light models by random ones that keep the signal's size."""
    random = np.random.default_rng(0)
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fills = [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
    for node in fills:
        shape = shapes[node.input[0]]
        values = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1, shape)
        if node.output[0].endswith(("_var_0", "_riv_0", "_s_0")) or "scale" in node.output[0]:
            values = 1 + abs(values)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        model.graph.node.remove(node)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v1"])
def test_files_that_caffe2_exported(name: str, tmp_path: Path, reports: Reports) -> None:
    """Networks of the ONNX model zoo, whose graphs the package onnx contains; their weights are random here."""
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    file = tmp_path / "net.onnx"
    onnx.save(with_random_weights(onnx.load(folder / f"light_{name}.onnx")), file)
    options = NetworkOptions("classify", "imported", tuple(map(str, range(1000))))
    _, runtime = imported(file, options, reports)
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([run_file(file, image[None]).reshape(1, -1) for image in images])
    assert expected.std() > 1e-5
    assert_close(runtime(images).softmax(dim=1), expected, 1e-3)
