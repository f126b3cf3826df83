"""Submodels: a whole network, or a part of one with a single input and output tensor, that can be served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models.card import ModelCard
from models.generative import DecoderSubmodel, EncoderSubmodel, ReconstructionSubmodel, SupportsDecode, SupportsEncode
from models.registry import configure

# Decoders run batches of exactly this size on one thread: kernels depend on the batch size, and threads divide a batch
# in different ways, but a sample's bytes must depend neither on the other samples nor on the number of cores.
DECODER_BATCH_SIZE = 16


@dataclass(frozen=True)
class Submodel:
    """`extract` returns it from a network that is an instance of all `required_types`; `example_shape` returns the
    shape of one input.

    `batch_size`: batches have exactly this size and are padded with zeros; None: any size. `deterministic`: it runs on
    one thread, so that an item's output is the same bit by bit wherever it is in a batch.
    """

    name: str
    extract: Callable[[nn.Module], nn.Module]
    example_shape: Callable[[ModelCard], tuple[int, ...]]
    required_types: tuple[type, ...] = ()
    batch_size: int | None = None
    deterministic: bool = False

    def supports(self, network: nn.Module) -> bool:
        """Return whether the network has this submodel."""
        return all(isinstance(network, required) for required in self.required_types)


def _latent_shape(card: ModelCard) -> tuple[int, ...]:
    config = configure(card.architecture, card.config)
    return (config.latent + config.num_classes,)


def _labelled_image_shape(card: ModelCard) -> tuple[int, ...]:
    channels, height, width = card.preprocess.shape
    return channels + len(card.classes), height, width


def _smallest_image_shape(card: ModelCard) -> tuple[int, ...]:
    multiple = size_multiple(card)
    return card.preprocess.channels, multiple, multiple


def size_multiple(card: ModelCard) -> int:
    """Return the number of which both sides of an image must be multiples; 0 if the network accepts only one size."""
    multiple: int = getattr(configure(card.architecture, card.config), "multiple", 0)
    return multiple


WHOLE = Submodel("", lambda network: network, lambda card: card.preprocess.shape)
# An embedder whose runtime may also be the quantised network: its vectors differ from those of WHOLE by more than the
# card's tolerance.
INT8 = Submodel("int8", WHOLE.extract, WHOLE.example_shape)
# A classifier without its last layer: its output serves as an embedding.
FEATURES = Submodel("features", lambda network: network.get_submodule("features"), WHOLE.example_shape)
DECODER = Submodel("decoder", DecoderSubmodel, _latent_shape, (SupportsDecode,), DECODER_BATCH_SIZE, deterministic=True)
# Image by image, so that an image's output does not depend on its batch, and other requests run between two tiles of a
# large image.
ENCODER = Submodel("encoder", EncoderSubmodel, _labelled_image_shape, (SupportsEncode,), 1)
RECONSTRUCTOR = Submodel(
    "reconstructor", ReconstructionSubmodel, _labelled_image_shape, (SupportsEncode, SupportsDecode), 1
)
DENOISER = Submodel("denoiser", WHOLE.extract, _smallest_image_shape, batch_size=1)


def default_submodel(card: ModelCard) -> Submodel:
    """Return the submodel that serves requests which give only the model's name."""
    match card.task:
        case "generate":
            return DECODER
        case "reconstruct":
            return RECONSTRUCTOR
        case "denoise":
            return DENOISER if size_multiple(card) else RECONSTRUCTOR
        case _:
            return WHOLE
