"""Every architecture by name: its config, the function that builds it, and its task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pydantic import TypeAdapter
from torch import nn

from models import (
    alexnet,
    autoencoder,
    denoiser,
    densenet,
    detector,
    efficientnet,
    embedder,
    gan,
    imported_network,
    inception,
    inception_v3,
    lenet,
    mobilefacenet,
    projected_gan,
    resnet,
    vae,
    vgg,
)

Task = Literal["classify", "detect", "embed", "reconstruct", "generate", "denoise"]


@dataclass(frozen=True)
class Architecture:
    """A row of the registry."""

    config: Any
    build: Callable[[Any], nn.Module]
    task: Task


def _family(
    variants: Mapping[str, Any], build: Callable[[Any], nn.Module], task: Task = "classify"
) -> dict[str, Architecture]:
    return {name: Architecture(config, build, task) for name, config in variants.items()}


def _embedder(config: embedder.EmbedderConfig) -> embedder.Embedder:
    """The embedder on the backbone that the config names, without auxiliary heads.

    Raises:
        ValueError: if the backbone is not a classifier, or its config is invalid.
    """
    row = lookup(config.backbone)
    if row.task != "classify":
        raise ValueError(f"the backbone of an embedder must be a classifier, not {config.backbone}")
    size = {"in_channels": config.in_channels, "image_size": config.image_size}
    if duplicates := size.keys() & config.backbone_config.keys():
        raise ValueError(f"{', '.join(sorted(duplicates))} of the backbone are set by the embedder")
    auxiliary = {"auxiliary": False} if hasattr(row.config, "auxiliary") else {}
    return embedder.Embedder(config, build(config.backbone, auxiliary | config.backbone_config | size))


REGISTRY: dict[str, Architecture] = {
    "lenet1989": Architecture(lenet.LeNet1989Config(), lenet.LeNet1989, "classify"),
    "lenet5": Architecture(lenet.LeNet5Config(), lenet.LeNet5, "classify"),
    "lenet5-relu": Architecture(
        lenet.LeNet5Config(activation="relu", pooling="max", connections="full", output="linear"),
        lenet.LeNet5,
        "classify",
    ),
    **_family(alexnet.VARIANTS, alexnet.AlexNet),
    **_family(vgg.VARIANTS, vgg.VGG),
    **_family(inception.VARIANTS, inception.InceptionV1),
    "inception-v3": Architecture(inception_v3.InceptionV3Config(), inception_v3.InceptionV3, "classify"),
    **_family(resnet.VARIANTS, resnet.ResNet),
    **_family(densenet.VARIANTS, densenet.DenseNet),
    **_family(efficientnet.VARIANTS, efficientnet.EfficientNet),
    **_family(detector.VARIANTS, detector.CenterFace, "detect"),
    "face-resnet": Architecture(embedder.FaceResNetConfig(), embedder.FaceResNet, "classify"),
    "mobilefacenet": Architecture(mobilefacenet.MobileFaceNetConfig(), mobilefacenet.MobileFaceNet, "embed"),
    "embedder": Architecture(embedder.EmbedderConfig(), _embedder, "embed"),
    "imported-classifier": Architecture(
        imported_network.ImportedClassifierConfig(), imported_network.no_module, "classify"
    ),
    "imported-embedder": Architecture(imported_network.ImportedEmbedderConfig(), imported_network.no_module, "embed"),
    "autoencoder": Architecture(autoencoder.AutoencoderConfig(), autoencoder.Autoencoder, "reconstruct"),
    "vae": Architecture(vae.VAEConfig(), vae.VAE, "generate"),
    "vae-denoiser": Architecture(vae.VAEConfig(), vae.VAE, "denoise"),
    "denoiser": Architecture(denoiser.DenoiserConfig(), denoiser.Denoiser, "denoise"),
    # The generator is served; the discriminator or critic stays in the run's checkpoint.
    "gan": Architecture(gan.GeneratorConfig(), gan.Generator, "generate"),
    "wgan": Architecture(gan.GeneratorConfig(), gan.Generator, "generate"),
    "fastgan": Architecture(projected_gan.FastGANConfig(), projected_gan.FastGAN, "generate"),
}


def lookup(name: str) -> Architecture:
    """The registry's row.

    Raises:
        ValueError: if the name is not in the registry; the message lists the names that are.
    """
    if name not in REGISTRY:
        raise ValueError(f"unknown architecture {name!r}; expected one of {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]


def configure(name: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """The architecture's config with `overrides` (from a recipe or a card), type-checked.

    Raises:
        ValueError: unknown architecture, unknown key, or a value of the wrong type.
    """
    config = lookup(name).config
    overrides = dict(overrides or {})
    unknown = overrides.keys() - {field.name for field in fields(config)}
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(sorted(unknown))}")
    try:
        # Strict validation of JSON accepts a list for a tuple, but not "10" or true for a number.
        values = json.dumps(asdict(config) | overrides, allow_nan=False)
        return TypeAdapter(type(config)).validate_json(values, strict=True)
    except (TypeError, ValueError) as error:  # ValidationError is a ValueError
        raise ValueError(f"{name}: {error}") from error


def build(name: str, overrides: Mapping[str, Any] | None = None) -> nn.Module:
    """A new network in training mode, initialised from torch's global random generator."""
    return lookup(name).build(configure(name, overrides))
