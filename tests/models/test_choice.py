"""Which runtime serves: one whose answers are torch's, the fastest of those; by runtimes that are made to differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import choice, compiled
from models.choice import Verdict, compare, disagreement, prepare, windows
from models.preprocess import Preprocess
from models.registry import build

GREY = Preprocess(mode="L", size=(28, 28), pad=2, mean=(33.0,), std=(78.0,))
EXAMPLES = Path(__file__).parents[2] / "examples"


class Clock:
    """That goes on only when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Pretended:
    """The same answers as another, but for a `change`, after some seconds by the clock."""

    def __init__(self, name: str, clock: Clock, change: float = 0.0, seconds: float = 0.0):
        self.name, self._clock, self._change, self._seconds = name, clock, change, seconds

    def __call__(self, batch: Tensor) -> Tensor:
        self._clock.now += self._seconds
        answers = torch.stack([batch.flatten(1).mean(dim=1), batch.flatten(1).std(dim=1)], dim=1)
        return answers + torch.tensor([0.0, self._change])


def test_windows_are_whole_pictures_and_parts_of_them() -> None:
    shown = windows(EXAMPLES, GREY)
    assert shown.shape == (len(list(EXAMPLES.glob("*.jpg"))) * (1 + choice.WINDOWS), 1, 32, 32)
    assert torch.equal(shown, windows(EXAMPLES, GREY))
    assert len({picture.numpy().tobytes() for picture in shown}) == len(shown)


def test_without_pictures_there_are_none(tmp_path: Path) -> None:
    assert windows(tmp_path, GREY).shape == (0, 1, 32, 32)


def test_logits_agree_as_probabilities() -> None:
    expected = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert disagreement(expected, expected + 5, "logits") is None  # a softmax does not see it
    assert disagreement(expected, expected * 1.01, "logits") is None
    assert "a probability differs by 0.1012" in (disagreement(expected, expected * 2, "logits") or "")
    assert "the same in 50.00%" in (
        disagreement(expected, expected.flip(1) * torch.tensor([[1.0], [-1.0]]), "logits") or ""
    )
    assert disagreement(expected, expected * float("nan"), "logits") == "an answer is not finite"


def test_vectors_agree_as_directions() -> None:
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert disagreement(expected, expected * 7, "vectors") is None
    assert disagreement(expected, expected + 0.01, "vectors") is None
    assert "cosine of 0.995" in (disagreement(expected, expected + 0.1, "vectors") or "")


def test_the_fastest_that_agrees_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(choice, "perf_counter", clock)
    shown = windows(EXAMPLES, GREY)
    reference = Pretended("torch", clock, seconds=2)
    candidates = {
        "fast": Pretended("fast", clock, seconds=1),
        "faster but wrong": Pretended("faster but wrong", clock, change=3.0),
        "slow": Pretended("slow", clock, seconds=4),
    }
    verdict = compare(reference, candidates, shown, "vectors")
    assert verdict.fastest == "fast"
    assert set(verdict.seconds) == {"torch", "fast", "slow"}
    assert set(verdict.refused) == {"faster but wrong"}
    assert verdict.seconds["slow"] == pytest.approx(4 * (1 + 1 / 16))
    assert set(compare(reference, {"slow": candidates["slow"]}, shown, "vectors", own=False).seconds) == {"slow"}
    alone = compare(reference, {"wrong": candidates["faster but wrong"]}, shown, "vectors", own=False)
    assert (alone.fastest, list(alone.refused)) == ("torch", ["wrong"])


def test_a_verdict_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = build("lenet5-relu", {})
    images = windows(EXAMPLES, GREY)[:5]

    def choose(key: str = "weights", wanted: choice.Wanted = "openvino-f32") -> tuple[str, Verdict | None, Tensor]:
        ready, verdict = prepare(module, GREY, "logits", key, EXAMPLES, tmp_path, wanted)
        return ready.name, verdict, ready(images)

    name, verdict, answers = choose()
    assert name == "openvino-cpu-f32"
    assert verdict is not None
    assert not verdict.refused
    assert len(list(tmp_path.glob("*.json"))) == 1
    torch.testing.assert_close(answers, choose(wanted="torch")[2], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(choice, "compare", lambda *_, **__: pytest.fail("it was compared already"))
    again = choose()
    assert again[:2] == (name, verdict)
    assert torch.equal(again[2], answers)
    monkeypatch.undo()
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    assert choose()[0] == name


def test_what_does_not_agree_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "disagreement", lambda *_: "too far")
    for _ in range(2):  # the second by the verdict that was kept
        ready, verdict = prepare(build("lenet5-relu", {}), GREY, "logits", "w", EXAMPLES, tmp_path, "openvino-f32")
        assert ready.name == "torch-cpu-float32"
        assert verdict is not None
        assert verdict.refused == {"openvino-cpu-f32": "too far"}


def test_torch_serves_where_there_is_nothing_to_compare_on_or_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = build("lenet5-relu", {})
    (tmp_path / "empty").mkdir()
    ready, _ = prepare(module, GREY, "logits", "w", tmp_path / "empty", tmp_path, "auto")
    assert ready.name == "torch-cpu-float32"
    monkeypatch.setattr(compiled, "precisions", lambda: ("f32",))
    ready, _ = prepare(module, GREY, "logits", "w", EXAMPLES, tmp_path, "openvino-bf16")
    assert ready.name == "torch-cpu-float32"
    assert not list(tmp_path.glob("*.json"))
    assert prepare(module, GREY, "logits", "w", EXAMPLES, tmp_path, "torch")[1] is None
