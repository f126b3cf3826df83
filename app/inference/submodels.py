"""What of a network is served: the whole of it, or a part with one tensor in and one out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models.card import ModelCard
from models.generative import DecoderSubmodel, EncoderSubmodel, ReconstructionSubmodel, SupportsDecode, SupportsEncode
from models.registry import configure

# Samples go through a decoder so many at once, never fewer, on one thread: kernels differ from batch size to batch
# size, threads share a batch out in places, and the bytes of a sample must depend neither on what else is asked for nor
# on how many cores there are.
DECODER_ROWS = 16


@dataclass(frozen=True)
class Part:
    """`cut` takes it out of a network that has all `abilities`; `example` is the shape of one of its items.

    `rows`: it runs at batches of just this size, filled up with zeros; None: of as many as wait. `exact`: on one
    thread, so that an item's answer is the same bit by bit wherever in a batch it is.
    """

    name: str
    cut: Callable[[nn.Module], nn.Module]
    example: Callable[[ModelCard], tuple[int, ...]]
    abilities: tuple[type, ...] = ()
    rows: int | None = None
    exact: bool = False

    def fits(self, network: nn.Module) -> bool:
        """Whether this network has such a part."""
        return all(isinstance(network, ability) for ability in self.abilities)


def _picture(card: ModelCard) -> tuple[int, ...]:
    return card.preprocess.shape


def _latent(card: ModelCard) -> tuple[int, ...]:
    config = configure(card.architecture, card.config)
    return (config.latent + config.num_classes,)


def _labelled_picture(card: ModelCard) -> tuple[int, ...]:
    channels, height, width = card.preprocess.shape
    return channels + len(card.classes), height, width


def _smallest_picture(card: ModelCard) -> tuple[int, ...]:
    multiple = multiple_of(card)
    return card.preprocess.channels, multiple, multiple


def multiple_of(card: ModelCard) -> int:
    """What both sides of a picture must be multiples of; 0 for a network that takes one size only."""
    multiple: int = getattr(configure(card.architecture, card.config), "multiple", 0)
    return multiple


def _whole(network: nn.Module) -> nn.Module:
    return network


WHOLE = Part("", _whole, _picture)
# Of a classifier: what it sees in a picture, without its classes.
FEATURES = Part("features", lambda network: network.get_submodule("features"), _picture)
DECODER = Part("decoder", DecoderSubmodel, _latent, (SupportsDecode,), DECODER_ROWS, exact=True)
# These run picture by picture, so that a picture's answer is the same in any company, and a large picture lets others
# in between its tiles.
ENCODER = Part("encoder", EncoderSubmodel, _labelled_picture, (SupportsEncode,), 1)
RECONSTRUCTOR = Part("reconstructor", ReconstructionSubmodel, _labelled_picture, (SupportsEncode, SupportsDecode), 1)
DENOISER = Part("denoiser", _whole, _smallest_picture, rows=1)


def first_part(card: ModelCard) -> Part:
    """What answers for the model where only its name is given."""
    match card.task:
        case "generate":
            return DECODER
        case "reconstruct":
            return RECONSTRUCTOR
        case "denoise":
            return DENOISER if multiple_of(card) else RECONSTRUCTOR
        case _:
            return WHOLE
