"""A weights folder with a face embedder of random weights: what it says of a face means nothing, but is repeatable."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from app.settings import PROJECT
from models import checkpoint
from models.matching import Matching, OperatingPoint, Tail
from models.preprocess import Preprocess
from models.registry import build, configure

MATCHING = Matching(
    points=(
        OperatingPoint(fmr=0.1, similarity=0.2),
        OperatingPoint(fmr=0.01, similarity=0.9),
        OperatingPoint(fmr=0.001, similarity=0.9999),
    ),
    tail=Tail(start=0.8, rate=0.02, shape=-0.1, scale=0.02),
    slope=8.0,
    intercept=-6.0,
    impostors=10_000,
    data="nobody",
)
# For passages of 1 to 10 frames: the more frames, the stricter.
PASSAGES = tuple(
    MATCHING.model_copy(
        update={
            "points": (
                OperatingPoint(fmr=0.1, similarity=0.2),
                OperatingPoint(fmr=0.001, similarity=0.999 + frames / 10_000),
            ),
            "data": f"{frames} frames",
        }
    )
    for frames in range(1, 11)
)
PREPROCESS = Preprocess(size=(112, 112), mean=(127.5,) * 3, std=(127.5,) * 3)


def random_embedder(weights: Path) -> None:
    """Write a random network under the default embedder's name and, without calibration, as `uncalibrated`.

    `faces-only` is calibrated for faces and not for passages.

    The detector and the classifier that the service needs are linked into the folder.
    """
    for name in ("centerface", "lenet5-mnist"):
        (weights / name).symlink_to(PROJECT / "weights" / name)
    save_embedder(weights, "mobilefacenet-triplet", tta="flip")
    save_embedder(weights, "uncalibrated", tta="flip", matching=None, passages=())
    save_embedder(weights, "faces-only", tta="flip", passages=())


def save_embedder(weights: Path, name: str, *, dimensions: int = 32, seed: int = 0, **card: Any) -> None:
    """Write a random network with the given dimensions to the folder; equal seeds give equal networks."""
    torch.manual_seed(seed)
    changes = {"backbone_config": {"depths": [1, 1], "widths": [8, 16]}, "dimensions": dimensions}
    network = build("embedder", changes)
    with torch.no_grad():  # batch norm statistics, without which all embeddings are nearly equal
        network.train()
        network(torch.randn(64, 3, 112, 112))
    defaults: dict[str, Any] = {
        "description": "random",
        "task": "embed",
        "architecture": "embedder",
        "config": asdict(configure("embedder", changes)),
        "preprocess": PREPROCESS,
        "matching": MATCHING,
        "passages": PASSAGES,
        "data": "none",
        "source": "this test",
        "license": "Apache-2.0",
    }
    checkpoint.save(weights / name, network.eval(), name=name, **defaults | card)
