"""Each runtime's answers beside torch's: of a small network, and of a runtime that answers otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.models import runtime_agreement
from benchmarks.models.runtime_agreement import measure
from models import checkpoint, openvino_runtime
from models.preprocess import Preprocess
from models.runtime_selection import RuntimeSelector
from tests.training.conftest import CLASSES, png, save, strokes, write_parquet

PADDED = Preprocess(mode="L", size=(28, 28), pad=2, mean=(33.0,), std=(78.0,))


def test_rows_tell_agreement_from_disagreement(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = strokes(40)
    write_parquet(folders / "data/mnist/test.parquet", [png(image) for image in images], labels)
    about = {"task": "classify", "classes": CLASSES, "preprocess": PADDED}
    weights = save(folders / "tiny-mnist", "lenet5-relu", {"num_classes": 3}, **about)
    module, card = checkpoint.load(weights)
    rows = measure(weights, card, folders / "compiled")
    assert [row["runtime"] for row in rows] == [f"openvino-cpu-{name}" for name in openvino_runtime.precisions()]
    exact = next(row for row in rows if row["runtime"] == "openvino-cpu-f32")
    assert (exact["pictures"], exact["top1_same"], exact["refused"]) == (40, "1.0000", "")
    assert float(str(exact["probability_off"])) <= 1e-4
    assert float(str(exact["cosine_least"])) >= 0.99999

    with torch.inference_mode():
        logits: Tensor = module(runtime_agreement.shown_to(card))

    class Reversed:
        name, size = "reversed", 0

        def __call__(self, batch: Tensor) -> Tensor:
            return -logits[: len(batch)]

    monkeypatch.setattr(RuntimeSelector, "candidates", lambda self: {"reversed": Reversed})
    monkeypatch.setattr(runtime_agreement, "AT_ONCE", 100)
    (row,) = measure(weights, card, folders / "compiled")
    assert (row["top1_same"], row["cosine_least"]) == ("0.0000", "-1.000000")
    assert "most probable class is the same for 0.00%" in str(row["refused"])
