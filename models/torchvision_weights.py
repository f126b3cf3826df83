"""Import the weights that torchvision publishes for the architectures that it shares with the registry."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from models import checkpoint
from models.card import Metric, ModelCard
from models.preprocess import Preprocess
from models.registry import REGISTRY, build, configure
from models.weight_files import COUNTER, ImportWeightsError, match_in_order

BinaryFile = io.BufferedReader | io.BufferedRandom


@dataclass(frozen=True)
class TorchvisionFile:
    """A weight file that torchvision publishes: the first hex digits of its sha256, its URL, and its enum member."""

    prefix: str
    url: str
    weights: Any

    @property
    def file(self) -> str:
        """The file's published name, such as resnet50-0676ba61.pth."""
        return self.url.rpartition("/")[2]


# Their released weights were trained on pixels normalised to mean 0.5 and deviation 0.5, and torchvision's network
# converts the output of `transforms()` to that (transform_input):
# ((p - m) / s) * (s / 0.5) + (m - 0.5) / 0.5 = (p - 0.5) / 0.5.
_TRANSFORM_INPUT = frozenset({"googlenet", "inception_v3"})
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_TIMEOUT_S = 30.0


def shared_architectures() -> dict[str, str]:
    """torchvision's name -> the registry's name, for each network that both have."""
    names = {name: name.replace("_", "-") for name in list_models(module=torchvision.models)}
    return {name: architecture for name, architecture in names.items() if architecture in REGISTRY}


def published_files(name: str) -> Sequence[TorchvisionFile]:
    """The weight files of torchvision's classifier `name`, the recommended file first."""
    table = get_model_weights(name)
    # One of vgg16's files has no classifier, and so no categories.
    classifiers = sorted((w for w in table if w.meta["categories"]), key=lambda w: w is not table.DEFAULT)
    return [TorchvisionFile(w.url.rpartition("-")[2].removesuffix(".pth"), w.url, w) for w in classifiers]


def import_torchvision(name: str, folder: Path, file: Path | None, report: Callable[[str], object]) -> ModelCard:
    """Write torchvision's network `name` to `folder`/<its name in the registry>, from `file` or downloaded.

    Raises:
        ImportWeightsError: see `models.importers.import_weights`.
    """
    shared = shared_architectures()
    if name not in shared:
        raise ImportWeightsError(f"torchvision and the registry do not share {name[:80]!r}, only {', '.join(shared)}")
    rows = published_files(name)
    with _downloaded(rows[0], report) if file is None else _open(file) as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
        row = _identify(name, rows, digest, str(file) if file else rows[0].url)
        data.seek(0)
        state = _read_state(name, data, row.file)
    architecture = shared[name]
    preprocess = preprocess_of(name, row)
    # The size at which the weights were evaluated, which may differ from the paper's: 288 for EfficientNet-B2.
    overrides: dict[str, Any] = {"image_size": preprocess.size[0]}
    if hasattr(REGISTRY[architecture].config, "auxiliary"):
        overrides["auxiliary"] = False
    config = asdict(configure(architecture, overrides))
    accuracy = round(row.weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100, 6)
    label = type(row.weights).__name__.removesuffix("_Weights")
    return checkpoint.save(
        folder / architecture,
        fill_network(name, architecture, config, state),
        name=architecture,
        description=f"{label} on ImageNet-1k: a thousand kinds of things and animals",
        task="classify",
        architecture=architecture,
        config=config,
        preprocess=preprocess,
        classes=tuple(row.weights.meta["categories"]),
        metrics=(Metric(name="accuracy", value=accuracy, data="ImageNet-1k validation", origin="reported"),),
        data="ImageNet-1k",
        source=f"torchvision's {row.weights!r}, file {row.file} (sha256 {digest}); {row.weights.meta['recipe']}",
        license="BSD-3-Clause (torchvision); weights trained on ImageNet-1k, whose terms are research, non-commercial",
    )


def _open(file: Path) -> BinaryFile:
    try:
        return file.open("rb")
    except OSError as error:
        raise ImportWeightsError(f"{file}: {error.strerror}") from error


@contextmanager
def _downloaded(row: TorchvisionFile, report: Callable[[str], object]) -> Iterator[BinaryFile]:
    """Yield the downloaded file, an unnamed temporary file, so that an interrupted download leaves no file."""
    report(f"downloading {row.url}, {row.weights.meta['_file_size']:.0f} MB")
    with tempfile.TemporaryFile() as data:
        try:
            with httpx.stream("GET", row.url, follow_redirects=True, timeout=_TIMEOUT_S) as response:
                response.raise_for_status()
                for chunk in response.iter_bytes():
                    data.write(chunk)
        except httpx.HTTPError as error:
            raise ImportWeightsError(
                f"{row.url}: {error}; without a network, download this file elsewhere and pass it with --from"
            ) from error
        data.seek(0)
        yield data


def _identify(name: str, rows: Sequence[TorchvisionFile], digest: str, origin: str) -> TorchvisionFile:
    """Return the row whose file has this hash. Files of one architecture have equal names, but differ in preprocessing.

    Eight digits identify a file and do not authenticate it; no code of the file is run in any case.
    """
    for row in rows:
        if digest.startswith(row.prefix):
            return row
    for architecture in shared_architectures():
        if any(digest.startswith(row.prefix) for row in published_files(architecture)):
            raise ImportWeightsError(f"{origin} holds the weights of torchvision:{architecture}, not of {name}")
    files = ", ".join(f"{row.file} ({row.weights.name})" for row in rows)
    raise ImportWeightsError(
        f"{origin}: sha256 {digest} is none of torchvision's for {name}, or the file is damaged; expected: {files}"
    )


def _read_state(name: str, data: BinaryFile, file: str) -> dict[str, Tensor]:
    """The file's tensors under the names of torchvision's current network, without auxiliary heads."""
    try:
        state = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:
        # A pickle can fail in any way.
        raise ImportWeightsError(f"{file} cannot be read as plain weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ImportWeightsError(f"{file} does not hold a dictionary of names and tensors")
    if name.startswith("densenet"):
        # These files are older than the rule that a module name has no dot: denselayer1.norm.1.weight.
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): v for key, v in state.items()}
    return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}


def fill_network(name: str, architecture: str, config: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """The registry's network with the tensors of torchvision's `state`.

    The file's names are compared with torchvision's; then tensors are matched by order, as the parity tests of each
    family show.

    Raises:
        ImportWeightsError: names differ; see `match_in_order`.
    """
    options = {"aux_logits": False, "init_weights": False} if name in _TRANSFORM_INPUT else {}
    with torch.device("meta"):
        module = build(architecture, config)
        source_names = list(get_model(name, weights=None, **options).state_dict())
    # Files older than torch 0.4.1 do not count batches, and the counters are not used.
    state = {key: torch.tensor(0) for key in source_names if key.endswith(COUNTER)} | state
    if state.keys() != set(source_names):
        odd = sorted(state.keys() ^ set(source_names))
        raise ImportWeightsError(f"not the state of {name}: {', '.join(odd[:5])} missing or too many ({len(odd)})")
    published = [(key.rpartition(".")[2], state[key]) for key in source_names]
    module.load_state_dict(match_in_order(architecture, config, published), assign=True)
    return module


def preprocess_of(name: str, row: TorchvisionFile) -> Preprocess:
    """The card's preprocessing for a published file.

    torchvision resizes the shorter side to R, then crops C x C: the central C / R of the image, resized to C x C.
    """
    transforms = row.weights.transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    mean, std = transforms.mean, transforms.std
    if name in _TRANSFORM_INPUT:
        mean = std = (0.5, 0.5, 0.5)
    return Preprocess(
        size=(crop, crop),
        crop_fraction=crop / resize,
        interpolation=transforms.interpolation.value,
        # Rounding removes the multiplication's error in the last digit.
        mean=tuple(round(255 * value, 6) for value in mean),
        std=tuple(round(255 * value, 6) for value in std),
    )
