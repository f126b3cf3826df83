"""Import a network of timm (PyTorch Image Models), with the preprocessing that timm has for its weights.

Weights are read from a file and never downloaded. timm is an optional package, the extra `timm`.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from models.card import ModelCard
from models.checkpoint import read_file
from models.imported_network import OUTPUT
from models.network_files import NetworkFile, read_graph
from models.network_import import UNKNOWN_LICENSE, NetworkOptions, Report, save_network
from models.onnx_export import export_onnx
from models.weight_files import ImportWeightsError

_INTERPOLATIONS = ("bilinear", "bicubic")


def import_timm(name: str, file: Path, folder: Path, options: NetworkOptions, report: Report) -> ModelCard:
    """Write timm's network `name` with the weights in `file` to `folder`/<its name> and return its card.

    Of the `options`, timm replaces the size, mean, std, interpolation and crop; the class names of ImageNet and the
    licence only where the options have none. An embedder is the network without its last layer.

    Raises:
        ImportWeightsError: timm is not installed or does not know the network, the file does not hold its weights, or
            the network is refused, see `save_network`.
    """
    timm = _timm()
    if not timm.is_model(name):  # also names by which timm would download a configuration
        raise ImportWeightsError(f"timm {timm.__version__} has no network {name[:80]!r}")
    digest = hashlib.sha256(read_file(file, ImportWeightsError)).hexdigest()
    module = _load(timm, name, file, options)
    config = timm.data.resolve_model_data_config(module)
    if config["interpolation"] not in _INTERPOLATIONS:
        supported = " and ".join(_INTERPOLATIONS)
        raise ImportWeightsError(f"{name} resizes by {config['interpolation']}: {supported} are supported")
    if config["crop_mode"] != "center":
        report(f"timm's preprocessing crops by {config['crop_mode']!r}; the card's takes the central part of the image")
    options = replace(
        options,
        size=None,
        classes=options.classes or _classes(timm, module, options),
        mean=tuple(round(255 * value, 6) for value in config["mean"]),
        std=tuple(round(255 * value, 6) for value in config["std"]),
        interpolation=config["interpolation"],
        crop_fraction=config["crop_pct"],
        description=options.description or f"{name} of timm {timm.__version__}",
        license=_license(module) if options.license == UNKNOWN_LICENSE else options.license,
    )
    data = export_onnx(module, config["input_size"], OUTPUT)
    network = NetworkFile(read_graph(data, name), data)
    return save_network(network, folder, options, f"timm:{name}, weights {file.name} (sha256 {digest})", report)


def _timm() -> Any:
    """Return the package, of whose functions some have no types.

    Raises:
        ImportWeightsError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportWeightsError("timm is not installed, an optional extra: pip install 'vestibule[timm]'") from error
    return timm


def _load(timm: Any, name: str, file: Path, options: NetworkOptions) -> nn.Module:
    """Return timm's network with the file's weights; for an embedder without the last layer.

    Raises:
        ImportWeightsError: the file does not hold them.
    """
    try:
        state: dict[str, Tensor] = timm.models.load_state_dict(str(file), weights_only=True)
        last = state.get(f"{timm.get_pretrained_cfg(name).classifier}.weight")
        outputs = {} if last is None else {"num_classes": len(last)}
        module: nn.Module = timm.create_model(name, pretrained=False, exportable=True, **outputs)
        module.load_state_dict(state)
    except Exception as error:
        # A pickle can fail in any way.
        raise ImportWeightsError(f"{file} does not hold the weights of {name}: {str(error)[:300]}") from error
    if options.task == "embed":
        cast("Any", module).reset_classifier(0)
    return module.eval()


def _classes(timm: Any, module: nn.Module, options: NetworkOptions) -> tuple[str, ...]:
    """Return ImageNet's class names if the network has that many outputs; else none."""
    subset = timm.data.infer_imagenet_subset(module) if options.task == "classify" else None
    if subset is None:
        return ()
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def _license(module: nn.Module) -> str:
    license = getattr(module, "pretrained_cfg", {}).get("license")
    return f"{license} (weights, according to timm)" if license else UNKNOWN_LICENSE
