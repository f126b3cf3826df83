"""Read a network from a file of another framework: ONNX, OpenVINO IR (.xml and .bin), or TFLite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnx
from google.protobuf.message import DecodeError, EncodeError

from models import openvino_runtime
from models.checkpoint import read_file
from models.weight_files import ImportWeightsError

NetworkFormat = Literal["onnx", "openvino", "tflite"]

_MAX_REASON_LENGTH = 300  # characters of an error of OpenVINO


class NetworkFile(NamedTuple):
    """A graph as OpenVINO reads it; `onnx`: the whole network as an ONNX file's bytes, None for other formats."""

    graph: Any
    onnx: bytes | None


def read_network(file: Path, format: NetworkFormat) -> NetworkFile:
    """Read a network, with the data of an ONNX file that lie in other files beside it.

    Raises:
        ImportWeightsError: the file, or one that it names, cannot be read, lies outside the file's folder, or does not
            have the format; or the graph has an operation that OpenVINO does not know.
    """
    match format:
        case "onnx":
            data = read_onnx(file)
            return NetworkFile(read_graph(data, str(file)), data)
        case "openvino":
            constants = read_file(file.with_suffix(".bin"), ImportWeightsError)
            return NetworkFile(read_graph(read_file(file, ImportWeightsError), str(file), constants), None)
        case "tflite":
            read_file(file, ImportWeightsError)  # OpenVINO's error for a missing file does not name it
            if file.suffix != ".tflite":
                raise ImportWeightsError(f"{file}: the name of a TFLite file must end in .tflite")
            return NetworkFile(read_graph(file, str(file)), None)


def read_onnx(file: Path) -> bytes:
    """Return an ONNX file's content, with all external data in it.

    Raises:
        ImportWeightsError: see `read_network`.
    """
    read_file(file, ImportWeightsError)
    try:
        # The library refuses external data outside the file's folder, and links.
        data: bytes = onnx.load(file).SerializeToString()
    except DecodeError as error:
        raise ImportWeightsError(f"{file} is not an ONNX file: {error}") from error
    except (onnx.checker.ValidationError, OSError, ValueError, EncodeError) as error:
        raise ImportWeightsError(f"{file}: {error}") from error
    if not data:
        raise ImportWeightsError(f"{file} is not an ONNX file: it is empty")
    return data


def read_graph(source: bytes | Path, name: str, constants: bytes = b"") -> Any:
    """Return OpenVINO's model of a file or of its bytes; `constants` are those of an OpenVINO IR.

    Raises:
        ImportWeightsError: the message begins with `name`; see `read_network`.
    """
    try:
        core = openvino_runtime.core()
        return core.read_model(source, constants) if constants else core.read_model(source)
    except RuntimeError as error:
        raise ImportWeightsError(f"{name}: OpenVINO cannot read it: {reason(error)}") from error


def reason(error: RuntimeError) -> str:
    """Return what an error of OpenVINO says, in one line, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith("Exception from "))
    return (text or str(error))[:_MAX_REASON_LENGTH]
