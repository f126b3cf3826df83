"""The fastest runtime whose outputs agree with torch's is selected. Simulated runtimes differ in a known way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from models import openvino_runtime, runtime_selection, timing
from models.card import Tolerance
from models.detector import CHANNELS
from models.openvino_runtime import OpenVinoRuntime
from models.preprocess import Preprocess
from models.registry import build
from models.runtime import Runtime, TorchRuntime
from models.runtime_names import RuntimeSetting
from models.runtime_selection import (
    OutputKind,
    RuntimeComparison,
    RuntimeSelector,
    compare,
    disagreement,
    sample_inputs,
)

T = TypeVar("T")

GREY = Preprocess(mode="L", size=(28, 28), pad=2, mean=(33.0,), std=(78.0,))
TOLERANCE = Tolerance()
EXAMPLES = Path(__file__).parents[2] / "examples"


class Clock:
    """A clock that only advances when `now` is changed."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class SimulatedRuntime:
    """Returns fixed functions of the input, changed by `change`, and advances the clock by `seconds`."""

    size = 0

    def __init__(self, name: str, clock: Clock, change: float = 0.0, seconds: float = 0.0):
        self.name, self._clock, self._change, self._seconds = name, clock, change, seconds

    def __call__(self, batch: Tensor) -> Tensor:
        self._clock.now += self._seconds
        outputs = torch.stack([batch.flatten(1).mean(dim=1), batch.flatten(1).std(dim=1)], dim=1)
        return outputs + torch.tensor([0.0, self._change])


def test_sample_inputs_are_images_and_crops(tmp_path: Path) -> None:
    inputs = sample_inputs(EXAMPLES, GREY)
    assert len(inputs) == len(list(EXAMPLES.glob("*.jpg"))) * (1 + runtime_selection.CROPS)
    assert {image.shape for image in inputs} == {(1, 32, 32)}
    assert torch.equal(torch.stack(inputs), torch.stack(sample_inputs(EXAMPLES, GREY)))
    assert len({image.numpy().tobytes() for image in inputs}) == len(inputs)
    assert sample_inputs(tmp_path, GREY) == []


@pytest.mark.parametrize(
    ("kind", "change", "tolerance", "message"),
    [
        ("logits", lambda x: x + 5, TOLERANCE, None),  # the same softmax
        ("logits", lambda x: x * 1.01, TOLERANCE, None),
        ("logits", lambda x: x * 2, TOLERANCE, "a probability differs by 0.1012"),
        ("logits", lambda x: x * 2, Tolerance(probability=0.11), None),
        ("logits", lambda x: x * 1.01, Tolerance(probability=1e-5), "a probability"),
        ("logits", lambda x: x.flip(1) * torch.tensor([[1.0], [-1.0]]), TOLERANCE, "the same for 50.00%"),
        ("logits", lambda x: -x, Tolerance(probability=1, top1=0), None),
        ("logits", lambda x: x * float("nan"), TOLERANCE, "an output is not finite"),
        ("vectors", lambda x: x * 7, TOLERANCE, None),
        ("vectors", lambda x: x + 0.01, TOLERANCE, None),
        ("vectors", lambda x: x + 0.2, TOLERANCE, "torch's is 0.9"),
        ("vectors", lambda x: x + 0.2, Tolerance(direction=0.1), None),
    ],
)
def test_disagreement(
    kind: OutputKind, change: Callable[[Tensor], Tensor], tolerance: Tolerance, message: str | None
) -> None:
    expected = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    reason = disagreement(expected, change(expected), kind, tolerance)
    assert (reason is None) if message is None else (message in (reason or ""))


def test_fastest_runtime_that_agrees_is_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    inputs = sample_inputs(EXAMPLES, GREY)
    reference = SimulatedRuntime("torch", clock, seconds=2)
    candidates = {
        "fast": SimulatedRuntime("fast", clock, seconds=1),
        "faster but wrong": SimulatedRuntime("faster but wrong", clock, change=3.0),
        "slow": SimulatedRuntime("slow", clock, seconds=4),
    }
    comparison = compare(reference, candidates, inputs, "vectors", lambda _: TOLERANCE)
    assert comparison.fastest == "fast"
    assert set(comparison.seconds) == {"torch", "fast", "slow"}
    assert set(comparison.refused) == {"faster but wrong"}
    assert comparison.seconds["slow"] == pytest.approx(4 * (1 + 1 / 16))
    without = partial(
        compare, reference, inputs=inputs, kind="vectors", tolerance_of=lambda _: TOLERANCE, include_reference=False
    )
    assert set(without({"slow": candidates["slow"]}).seconds) == {"slow"}
    fallback = without({"wrong": candidates["faster but wrong"]})
    assert (fallback.fastest, list(fallback.refused)) == ("torch", ["wrong"])


def test_maps_of_any_size_are_compared_value_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    inputs = [torch.zeros(1, 4, 4), torch.ones(1, 6, 2), torch.ones(1, 2, 2)]
    shapes: list[torch.Size] = []

    class Maps(SimulatedRuntime):
        def __call__(self, batch: Tensor) -> Tensor:
            self._clock.now += self._seconds
            shapes.append(batch.shape)
            return batch + (self._change if batch.shape[2:] == (6, 2) else 0)

    candidates = {"near": Maps("near", clock, 0.0009, 1), "off": Maps("off", clock, 0.0011, 0.5)}
    comparison = compare(Maps("torch", clock, seconds=2), candidates, inputs, "maps", lambda _: TOLERANCE)
    assert comparison.seconds == {"near": pytest.approx(3), "torch": pytest.approx(6)}
    assert comparison.refused == {"off": "a value differs by 0.00110"}
    assert {shape[0] for shape in shapes} == {1}
    comparison = compare(Maps("torch", clock, seconds=2), candidates, inputs, "maps", lambda _: Tolerance(maps=0.002))
    assert comparison.fastest == "off"


def test_faces_are_compared_where_the_tolerance_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)

    class Faces(SimulatedRuntime):
        """Finds a face in each corner of the image; `change` is added to their scores of 0.52 and 0.9."""

        def __call__(self, batch: Tensor) -> Tensor:
            self._clock.now += self._seconds
            outputs = torch.zeros(1, CHANNELS, *(side // 4 for side in batch.shape[2:]))
            outputs[0, 0, 0, 0], outputs[0, 0, -1, -1] = 0.52 + self._change, 0.9 + self._change
            return outputs

    int8 = {"same": Faces("same", clock, -0.01, 1), "lost": Faces("lost", clock, -0.03, 1)}
    candidates = {**int8, "float": Faces("float", clock, -0.01, 1)}

    def tolerance(name: str) -> Tolerance:
        return TOLERANCE if name == "float" else Tolerance(faces=1)

    inputs = [torch.zeros(3, 32, 64), torch.zeros(3, 64, 64)]
    comparison = compare(Faces("torch", clock, seconds=2), candidates, inputs, "faces", tolerance)
    assert comparison.seconds == {"same": pytest.approx(2), "torch": pytest.approx(4)}
    assert comparison.refused == {
        "lost": "the faces are the same in 0.00% of the images",
        "float": "a value differs by 0.01000",
    }


def select(
    module: nn.Module,
    folder: Path,
    requested: RuntimeSetting = "openvino-f32",
    tolerance: Tolerance = TOLERANCE,
    images: Path = EXAMPLES,
    run: timing.RunWork = timing.run_directly,
) -> tuple[Runtime, RuntimeComparison | None]:
    reference = TorchRuntime(module, torch.device("cpu"))
    return RuntimeSelector(module, GREY, GREY.shape, "logits", tolerance, "weights", folder, requested).select(
        reference, images, run
    )


def test_comparison_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = build("lenet5-relu", {})
    images = torch.stack(sample_inputs(EXAMPLES, GREY)[:5])
    ready, comparison = select(module, tmp_path)
    assert ready.name == "openvino-cpu-f32"
    assert comparison is not None
    assert not comparison.refused
    assert len(list(tmp_path.glob("*.json"))) == 1
    outputs = ready(images)
    with torch.inference_mode():
        torch.testing.assert_close(outputs, module.eval()(images), rtol=1e-4, atol=1e-5)
    with monkeypatch.context() as patched:
        patched.setattr(runtime_selection, "compare", lambda *_, **__: pytest.fail("compared again"))
        again, stored = select(module, tmp_path)
        assert (again.name, stored) == (ready.name, comparison)
        assert torch.equal(again(images), outputs)
    assert select(module, tmp_path, tolerance=Tolerance(probability=0.5))[0].name == ready.name
    assert len(list(tmp_path.glob("*.json"))) == 2  # another tolerance is another comparison
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    assert select(module, tmp_path)[0].name == ready.name


def test_only_inference_runs_by_the_callers_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = False
    batches: list[tuple[bool, int]] = []
    torch_call, openvino_call = TorchRuntime.__call__, OpenVinoRuntime.__call__

    def run(work: Callable[[], T]) -> T:
        nonlocal inside
        inside = True
        try:
            return work()
        finally:
            inside = False

    def recorded(original: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
        def call(runtime: Any, batch: Tensor) -> Tensor:
            batches.append((inside, len(batch)))
            return original(runtime, batch)

        return call

    monkeypatch.setattr(TorchRuntime, "__call__", recorded(torch_call))
    monkeypatch.setattr(OpenVinoRuntime, "__call__", recorded(openvino_call))
    init = OpenVinoRuntime.__init__

    def checked_init(*args: Any, **kwargs: Any) -> None:
        assert not inside
        init(*args, **kwargs)

    monkeypatch.setattr(OpenVinoRuntime, "__init__", checked_init)
    select(build("lenet5-relu", {}), tmp_path, run=run)
    assert {is_inside for is_inside, _ in batches} == {True}
    assert max(size for _, size in batches) == runtime_selection.COMPARED_BATCH


def test_runtime_that_does_not_agree_is_not_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_selection, "disagreement", lambda *_: "too far")
    for _ in range(2):  # the second time by the stored comparison
        ready, comparison = select(build("lenet5-relu", {}), tmp_path)
        assert ready.name == "torch-cpu-float32"
        assert comparison is not None
        assert comparison.refused == {"openvino-cpu-f32": "too far"}


def test_torch_is_selected_without_images_or_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build("lenet5-relu", {})
    (tmp_path / "empty").mkdir()
    assert select(module, tmp_path, "auto", images=tmp_path / "empty")[1] is None
    monkeypatch.setattr(openvino_runtime, "precisions", lambda: ("f32",))
    assert select(module, tmp_path, "openvino-bf16")[0].name == "torch-cpu-float32"
    assert select(module, tmp_path, "torch")[1] is None
    assert not RuntimeSelector(
        module, GREY, GREY.shape, "logits", TOLERANCE, "weights", tmp_path, "torch"
    ).has_alternatives
    assert not list(tmp_path.glob("*.json"))
