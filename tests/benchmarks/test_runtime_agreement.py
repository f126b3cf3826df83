"""Whether each runtime answers what torch does: on a small network, and beside one that answers otherwise."""

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


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights folder of an untrained network for a data set that is called MNIST."""
    monkeypatch.setenv("VESTIBULE_DATASETS", str(tmp_path / "data"))
    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path / "runs"))
    pictures, labels = strokes(40)
    write_parquet(tmp_path / "data/mnist/test.parquet", [png(picture) for picture in pictures], labels)
    return save(
        tmp_path / "tiny-mnist", "lenet5-relu", {"num_classes": 3}, task="classify", classes=CLASSES, preprocess=PADDED
    )


def test_a_row_for_each_precision_of_this_processor(network: Path, tmp_path: Path) -> None:
    rows = measure(network, checkpoint.read_card(network), tmp_path / "compiled")
    assert [row["runtime"] for row in rows] == [f"openvino-cpu-{name}" for name in openvino_runtime.precisions()]
    exact = next(row for row in rows if row["runtime"] == "openvino-cpu-f32")
    assert (exact["pictures"], exact["top1_same"], exact["refused"]) == (40, "1.0000", "")
    assert float(str(exact["probability_off"])) <= 1e-4
    assert float(str(exact["cosine_least"])) >= 0.99999


def test_a_runtime_that_answers_otherwise_is_told_of(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reversed:
        name, size = "reversed", 0

        def __call__(self, batch: Tensor) -> Tensor:
            return -torch_answers[: len(batch)]

    module, card = checkpoint.load(network)
    with torch.inference_mode():
        torch_answers: Tensor = module(runtime_agreement.shown_to(card))
    monkeypatch.setattr(RuntimeSelector, "candidates", lambda self: {"reversed": Reversed})
    monkeypatch.setattr(runtime_agreement, "AT_ONCE", 100)
    (row,) = measure(network, card, tmp_path / "compiled")
    assert (row["top1_same"], row["cosine_least"]) == ("0.0000", "-1.000000")
    assert "most probable class is the same for 0.00%" in str(row["refused"])
