"""Which runtime serves: one whose answers are torch's, the fastest of those; by runtimes that are made to differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from models import openvino_runtime, runtime_selection, timing
from models.card import Tolerance
from models.openvino_runtime import OpenVinoRuntime
from models.preprocess import Preprocess
from models.registry import build
from models.runtime import Runtime, TorchRuntime
from models.runtime_names import Wanted
from models.runtime_selection import Choice, Verdict, compare, disagreement, windows

T = TypeVar("T")

GREY = Preprocess(mode="L", size=(28, 28), pad=2, mean=(33.0,), std=(78.0,))
TOLERANCE = Tolerance()
EXAMPLES = Path(__file__).parents[2] / "examples"


class Clock:
    """That goes on only when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Pretended:
    """The same answers as another, but for a `change`, after some seconds by the clock."""

    size = 0

    def __init__(self, name: str, clock: Clock, change: float = 0.0, seconds: float = 0.0):
        self.name, self._clock, self._change, self._seconds = name, clock, change, seconds

    def __call__(self, batch: Tensor) -> Tensor:
        self._clock.now += self._seconds
        answers = torch.stack([batch.flatten(1).mean(dim=1), batch.flatten(1).std(dim=1)], dim=1)
        return answers + torch.tensor([0.0, self._change])


def test_windows_are_whole_pictures_and_parts_of_them() -> None:
    shown = windows(EXAMPLES, GREY)
    assert len(shown) == len(list(EXAMPLES.glob("*.jpg"))) * (1 + runtime_selection.WINDOWS)
    assert {picture.shape for picture in shown} == {(1, 32, 32)}
    assert torch.equal(torch.stack(shown), torch.stack(windows(EXAMPLES, GREY)))
    assert len({picture.numpy().tobytes() for picture in shown}) == len(shown)


def test_without_pictures_there_are_none(tmp_path: Path) -> None:
    assert windows(tmp_path, GREY) == []


def test_logits_agree_as_probabilities() -> None:
    expected = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert disagreement(expected, expected + 5, "logits", TOLERANCE) is None  # a softmax does not see it
    assert disagreement(expected, expected * 1.01, "logits", TOLERANCE) is None
    assert "a probability differs by 0.1012" in (disagreement(expected, expected * 2, "logits", TOLERANCE) or "")
    assert "the same in 50.00%" in (
        disagreement(expected, expected.flip(1) * torch.tensor([[1.0], [-1.0]]), "logits", TOLERANCE) or ""
    )
    assert disagreement(expected, expected * float("nan"), "logits", TOLERANCE) == "an answer is not finite"


def test_vectors_agree_as_directions() -> None:
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert disagreement(expected, expected * 7, "vectors", TOLERANCE) is None
    assert disagreement(expected, expected + 0.01, "vectors", TOLERANCE) is None
    assert "cosine of 0.995" in (disagreement(expected, expected + 0.1, "vectors", TOLERANCE) or "")


def test_the_fastest_that_agrees_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    shown = windows(EXAMPLES, GREY)
    reference = Pretended("torch", clock, seconds=2)
    candidates = {
        "fast": Pretended("fast", clock, seconds=1),
        "faster but wrong": Pretended("faster but wrong", clock, change=3.0),
        "slow": Pretended("slow", clock, seconds=4),
    }
    verdict = compare(reference, candidates, shown, "vectors", TOLERANCE)
    assert verdict.fastest == "fast"
    assert set(verdict.seconds) == {"torch", "fast", "slow"}
    assert set(verdict.refused) == {"faster but wrong"}
    assert verdict.seconds["slow"] == pytest.approx(4 * (1 + 1 / 16))
    assert set(compare(reference, {"slow": candidates["slow"]}, shown, "vectors", TOLERANCE, own=False).seconds) == {
        "slow"
    }
    alone = compare(reference, {"wrong": candidates["faster but wrong"]}, shown, "vectors", TOLERANCE, own=False)
    assert (alone.fastest, list(alone.refused)) == ("torch", ["wrong"])


def test_maps_are_compared_value_by_value_whatever_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    shown = [torch.zeros(1, 4, 4), torch.ones(1, 6, 2), torch.ones(1, 2, 2)]
    seen: list[torch.Size] = []

    class Maps(Pretended):
        def __call__(self, batch: Tensor) -> Tensor:
            self._clock.now += self._seconds
            seen.append(batch.shape)
            return batch + (self._change if batch.shape[2:] == (6, 2) else 0)

    candidates = {"near": Maps("near", clock, 0.0009, 1), "off": Maps("off", clock, 0.0011, 0.5)}
    verdict = compare(Maps("torch", clock, seconds=2), candidates, shown, "maps", TOLERANCE)
    assert verdict.seconds == {"near": pytest.approx(3), "torch": pytest.approx(6)}
    assert verdict.refused == {"off": "a value differs by 0.00110"}
    assert {shape[0] for shape in seen} == {1}
    verdict = compare(Maps("torch", clock, seconds=2), candidates, shown, "maps", Tolerance(maps=0.002))
    assert verdict.fastest == "off"


def test_what_is_tolerated_is_the_cards_to_say() -> None:
    expected = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert disagreement(expected, expected * 2, "logits", Tolerance(probability=0.11)) is None
    assert disagreement(expected, -expected, "logits", Tolerance(probability=1, top1=0)) is None
    assert disagreement(expected, expected + 0.1, "vectors", Tolerance(direction=0.01)) is None
    assert "a probability" in (disagreement(expected, expected * 1.01, "logits", Tolerance(probability=1e-5)) or "")


def chosen(
    module: nn.Module,
    folder: Path,
    wanted: Wanted = "openvino-f32",
    tolerance: Tolerance = TOLERANCE,
    pictures: Path = EXAMPLES,
    turn: timing.Turn = timing.at_once,
) -> tuple[Runtime, Verdict | None]:
    reference = TorchRuntime(module, torch.device("cpu"))
    return Choice(module, GREY, GREY.shape, "logits", tolerance, "weights", folder, wanted).made(
        reference, pictures, turn
    )


def test_a_verdict_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = build("lenet5-relu", {})
    images = torch.stack(windows(EXAMPLES, GREY)[:5])
    ready, verdict = chosen(module, tmp_path)
    assert ready.name == "openvino-cpu-f32"
    assert verdict is not None
    assert not verdict.refused
    assert len(list(tmp_path.glob("*.json"))) == 1
    answers = ready(images)
    with torch.inference_mode():
        torch.testing.assert_close(answers, module.eval()(images), rtol=1e-4, atol=1e-5)
    with monkeypatch.context() as patched:
        patched.setattr(runtime_selection, "compare", lambda *_, **__: pytest.fail("it was compared already"))
        again, kept = chosen(module, tmp_path)
        assert (again.name, kept) == (ready.name, verdict)
        assert torch.equal(again(images), answers)
    assert chosen(module, tmp_path, tolerance=Tolerance(probability=0.5))[0].name == ready.name
    assert len(list(tmp_path.glob("*.json"))) == 2  # more was tolerated: another question
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    assert chosen(module, tmp_path)[0].name == ready.name


def test_the_networks_run_in_turn_and_are_made_ready_out_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    within = False
    batches: list[tuple[bool, int]] = []
    torch_answers, openvino_answers = TorchRuntime.__call__, OpenVinoRuntime.__call__

    def one_by_one(work: Callable[[], T]) -> T:
        nonlocal within
        within = True
        try:
            return work()
        finally:
            within = False

    def noted(answers: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
        def call(runtime: Any, batch: Tensor) -> Tensor:
            batches.append((within, len(batch)))
            return answers(runtime, batch)

        return call

    monkeypatch.setattr(TorchRuntime, "__call__", noted(torch_answers))
    monkeypatch.setattr(OpenVinoRuntime, "__call__", noted(openvino_answers))
    made = OpenVinoRuntime.__init__

    def watched(*given: Any, **named: Any) -> None:
        assert not within
        made(*given, **named)

    monkeypatch.setattr(OpenVinoRuntime, "__init__", watched)
    chosen(build("lenet5-relu", {}), tmp_path, turn=one_by_one)
    assert {turn for turn, _ in batches} == {True}
    assert max(size for _, size in batches) == runtime_selection.AT_ONCE


def test_what_does_not_agree_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_selection, "disagreement", lambda *_: "too far")
    for _ in range(2):  # the second by the verdict that was kept
        ready, verdict = chosen(build("lenet5-relu", {}), tmp_path)
        assert ready.name == "torch-cpu-float32"
        assert verdict is not None
        assert verdict.refused == {"openvino-cpu-f32": "too far"}


def test_torch_serves_where_there_is_nothing_to_compare_on_or_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = build("lenet5-relu", {})
    (tmp_path / "empty").mkdir()
    assert chosen(module, tmp_path, "auto", pictures=tmp_path / "empty")[1] is None
    monkeypatch.setattr(openvino_runtime, "precisions", lambda: ("f32",))
    assert chosen(module, tmp_path, "openvino-bf16")[0].name == "torch-cpu-float32"
    assert chosen(module, tmp_path, "torch")[1] is None
    assert not Choice(module, GREY, GREY.shape, "logits", TOLERANCE, "weights", tmp_path, "torch").is_open
    assert not list(tmp_path.glob("*.json"))
