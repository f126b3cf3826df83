"""Save and load a network as safetensors and card.json, and refuse files that do not belong together."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor, nn

from models.card import Int8, Int8Description, ModelCard
from models.registry import build

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "card.json"
# The quantised network, if the card describes one, in OpenVINO's format.
INT8_NETWORK_FILE, INT8_CONSTANTS_FILE = "int8.xml", "int8.bin"
# Its description, for an imported model only: git has these three files, and an import writes the others.
INT8_DESCRIPTION_FILE = "int8.json"

# Prefixes that DistributedDataParallel and torch.compile add to every name.
_WRAPPERS = ("module.", "_orig_mod.")


class CheckpointError(ValueError):
    """The folder does not hold a complete, consistent model."""


class QuantisedNetwork(NamedTuple):
    """The contents of the two files of a quantised network (`models.quantisation`)."""

    network: bytes
    constants: bytes

    @property
    def sha256(self) -> str:
        """The hash of both files."""
        return hashlib.sha256(hashlib.sha256(self.network).digest() + self.constants).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` by a temporary file, fsync and rename: after a crash the file is the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, error: type[Exception]) -> bytes:
    """The file's content.

    Raises:
        `error`: the file cannot be read; the message names it.
    """
    try:
        return path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: {cause.strerror}") from cause


def bytes_of(save: Callable[[BinaryIO], object]) -> bytes:
    """The content that `save` writes to the file that it is called with."""
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def bare_state(module: nn.Module) -> dict[str, Tensor]:
    """The network's state on the CPU, contiguous, without the prefixes of wrappers."""
    state = {}
    for key, value in module.state_dict().items():
        name = key
        while name.startswith(_WRAPPERS):
            name = name.removeprefix(_WRAPPERS[0]).removeprefix(_WRAPPERS[1])
        state[name] = value.detach().cpu().contiguous()
    return state


def serialise(module: nn.Module) -> tuple[bytes, str]:
    """The bytes of model.safetensors and their sha256."""
    data = safetensors.torch.save(bare_state(module))
    return data, hashlib.sha256(data).hexdigest()


def save(folder: Path, module: nn.Module, **card: Any) -> ModelCard:
    """Write `module` and a card with the given fields, to which `sha256` and `parameters` are added.

    Weights are written first: after a crash in between, the card's hash does not match and the model is refused.
    Returns the card as it is read from the file, where a config's tuples are lists.
    """
    weights, _ = serialise(module)
    return save_bytes(folder, weights, parameters=sum(p.numel() for p in module.parameters()), **card)


def save_bytes(folder: Path, weights: bytes, **card: Any) -> ModelCard:
    """Write `weights`, the content of model.safetensors, and a card as `save`; the fields include `parameters`."""
    model_card = ModelCard(**card, sha256=hashlib.sha256(weights).hexdigest())
    write_atomically(folder / WEIGHTS_FILE, weights)
    write_card(folder, model_card)
    return read_card(folder)


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card without the weights, for example when a metric is added; see also `restore_int8`."""
    if (description := card.int8_description) is not None:
        write_atomically(folder / INT8_DESCRIPTION_FILE, (description.model_dump_json(indent=2) + "\n").encode())
    write_atomically(folder / CARD_FILE, (card.model_dump_json(indent=2) + "\n").encode())


def read_card(folder: Path) -> ModelCard:
    """The card of a model's folder.

    Raises:
        CheckpointError: no card, not JSON, unknown schema, or an inconsistent card.
    """
    path = folder / CARD_FILE
    data = read_file(path, CheckpointError)
    try:
        return ModelCard.model_validate_json(data)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_weights(folder: Path) -> tuple[bytes, ModelCard]:
    """The content of model.safetensors, whose hash is checked, with the card.

    Raises:
        CheckpointError: see `read_card`; weights missing, or with another hash than the card's.
    """
    card = read_card(folder)
    path = folder / WEIGHTS_FILE
    data = read_file(path, CheckpointError)
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.sha256:
        raise CheckpointError(f"{path}: sha256 is {digest}, the card says {card.sha256}")
    return data, card


def load(folder: Path) -> tuple[nn.Module, ModelCard]:
    """The network in evaluation mode on the CPU, with its card.

    Raises:
        CheckpointError: see `read_weights`; weights of another architecture, or not finite; or the network is an
            imported graph, which `models.imported_runtime.load` reads.
    """
    data, card = read_weights(folder)
    path = folder / WEIGHTS_FILE
    try:
        module = build(card.architecture, card.config)
        module.load_state_dict(safetensors.torch.load(data))
    except (RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not_finite := [name for name, value in module.state_dict().items() if not value.isfinite().all()]:
        raise CheckpointError(f"{path}: NaN or infinity in {', '.join(not_finite[:3])}")
    return module.eval(), card


def save_int8(folder: Path, quantised: QuantisedNetwork, int8: Int8) -> None:
    """Write the quantised network of the model in `folder`, and then its description into the card."""
    write_atomically(folder / INT8_CONSTANTS_FILE, quantised.constants)
    write_atomically(folder / INT8_NETWORK_FILE, quantised.network)
    write_card(folder, read_card(folder).model_copy(update={"int8": int8}))


def load_int8(folder: Path, card: ModelCard) -> QuantisedNetwork | None:
    """Return the quantised network of the model in `folder`; None if the card describes none.

    Raises:
        CheckpointError: a file is missing, or the files have another hash than the card's.
    """
    if card.int8 is None:
        return None
    files = (read_file(folder / name, CheckpointError) for name in (INT8_NETWORK_FILE, INT8_CONSTANTS_FILE))
    quantised = QuantisedNetwork(*files)
    if quantised.sha256 != card.int8.sha256:
        raise CheckpointError(f"{folder}: sha256 of the int8 files is {quantised.sha256}, the card says otherwise")
    return quantised


def restore_int8(folder: Path) -> ModelCard:
    """Describe the quantised network of newly imported weights in their card, if there is one, and return the card.

    Raises:
        CheckpointError: there is one that cannot be used: of other weights, or its files do not belong together. The
            card is left as it is.
    """
    card, path = read_card(folder), folder / INT8_DESCRIPTION_FILE
    if not path.is_file():
        return card
    try:
        description = Int8Description.model_validate_json(read_file(path, CheckpointError))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if description.weights != card.sha256:
        raise CheckpointError(f"{path}: is of the weights {description.weights[:12]}, not of {card.version}")
    restored = card.model_copy(update={"int8": description.int8, "metrics": (*card.metrics, *description.metrics)})
    load_int8(folder, restored)
    write_card(folder, restored)
    return restored
