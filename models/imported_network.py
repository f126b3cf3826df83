"""Networks that were imported as graphs: OpenVINO runs them, and there is no torch module of them.

A graph is stored in model.safetensors as OpenVINO's two files: the XML text that describes it and the bytes of its
constants. Its input has any number of images, float32 [N, in_channels, H, W] of the card's preprocessing, unless the
graph was made for one number, `batch`. Its output is [N, num_classes], logits, or [N, dimensions], rows of length 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

GRAPH, CONSTANTS = "graph.xml", "graph.bin"  # the names of the two in model.safetensors
OUTPUT, FEATURES = "output", "features"  # the names of a graph's outputs


@dataclass(frozen=True)
class ImportedClassifierConfig:
    """`features` is the length of the vector before the last layer, 0 if the graph does not have one.

    `batch`: the number of images that the graph reads at once; 0: any.
    """

    num_classes: int = 1000
    in_channels: int = 3
    features: int = 0
    batch: int = 0


@dataclass(frozen=True)
class ImportedEmbedderConfig:
    """`batch`: the number of images that the graph reads at once; 0: any."""

    dimensions: int = 512
    in_channels: int = 3
    batch: int = 0


ImportedConfig = ImportedClassifierConfig | ImportedEmbedderConfig


def no_module(config: Any) -> NoReturn:
    """Refuse to build a module.

    Raises:
        ValueError: always.
    """
    raise ValueError("an imported network is a graph that OpenVINO runs, so it cannot be trained or exported")
