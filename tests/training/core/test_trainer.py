"""The training loop against plain loops, and resumed against uninterrupted runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn

from models.registry import build
from tests.training.conftest import interrupted
from training.core.errors import DivergedError, RunError
from training.core.run_folder import Progress, Run
from training.core.seeds import derive, generator
from training.core.trainer import (
    Learner,
    fit,
    gather_rows,
    make_optimizer,
    make_scheduler,
    muon_groups,
    parameter_groups,
)
from training.recipe.config import TrainSection

STEPS = 7


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not draw curves, which take time; test_run_folder covers them."""
    monkeypatch.setattr("training.core.run_folder._curves", lambda progress, title: b"")


def section(**changes: Any) -> TrainSection:
    return TrainSection(**({"epochs": 3, "batch_size": 4, "lr": 0.05, "checkpoint_steps": 3} | changes))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))


class Duel:
    """Two networks trained in turns, as in a GAN."""

    monitor = "error"
    mode: Literal["max", "min"] = "min"
    steps_per_epoch = STEPS

    def __init__(self, train: TrainSection, figures: list[float] | None = None):
        self.accelerator = Accelerator(cpu=True)
        self.learners = {name: Learner(network(), train, STEPS, self.accelerator) for name in ("first", "second")}
        self.figures = figures
        self.seen: list[tuple[int, int]] = []

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        self.seen.append((epoch, index))
        x = torch.randn(4, 3, generator=generator)
        losses: dict[str, Tensor] = {}
        for name, learner in self.learners.items():
            learner.model.train()
            loss = (learner.model(x) - x.sum(dim=1, keepdim=True)).square().mean()
            learner.update(loss)
            losses[name] = loss.detach()
        return losses

    def validate(self) -> Mapping[str, float]:
        if self.figures is not None:
            return {"error": self.figures.pop(0)}
        x = torch.randn(64, 3, generator=generator(9))
        model = self.learners["first"].network.eval()
        with torch.inference_mode():
            return {"error": float((model(x) - x.sum(dim=1, keepdim=True)).square().mean())}


def train(task: Duel, folder: Path, settings: TrainSection, *, resume: bool = False) -> Progress:
    return fit(task, Run(folder), settings, 1, resume=resume)


def weights(task: Duel) -> dict[str, Tensor]:
    return {f"{n}.{k}": v for n, learner in task.learners.items() for k, v in learner.network.state_dict().items()}


def assert_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_weight_decay_excludes_biases_norms_and_gains() -> None:
    decayed, free = parameter_groups(network(), 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(8, 3), (1, 8)]
    assert [tuple(p.shape) for p in free["params"]] == [(8,), (8,), (8,), (1,)]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    decayed, free = parameter_groups(build("lenet5"), 0.1)  # its subsampling has gains of shape [C, 1, 1]
    assert all(p.ndim in (2, 4) for p in decayed["params"])
    assert sum(p.ndim == 3 for p in free["params"]) == 4


MUON: dict[str, Any] = {"optimizer": "muon", "filter_lr": 0.2}


def test_muon_moves_filters_biases_and_the_rest_at_their_own_rates() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Flatten(), nn.Linear(4, 2)
    )
    for name in ("0.bias", "1.weight"):
        network.get_parameter(name).requires_grad_(False)
    groups = muon_groups(network, section(**MUON, bias_lr=1.0, weight_decay=0.1))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert [[names[id(parameter)] for parameter in group["params"]] for group in groups] == [
        ["2.weight", "4.weight", "4.bias"],
        ["1.bias"],
        ["0.weight"],
    ]
    optimizer = make_optimizer(network, section(**MUON, bias_lr=1.0, weight_decay=0.1, momentum=0.8))
    result = [(group["lr"], group["momentum"]) for group in optimizer.param_groups]
    assert result == [(0.05, 0.8), (1.0, 0.8), (0.2, 0.6)]
    decays = [group["lr"] * group["weight_decay"] for group in optimizer.param_groups]
    assert decays == pytest.approx([0.005, 0.005, 0])
    # A bias_lr of 0 is lr.
    assert [group.get("lr") for group in muon_groups(network, section(**MUON))] == [None, 0.05, 0.2]


def rates(settings: TrainSection, steps: int) -> list[float]:
    """Return the learning rates of the first `steps`; the other groups' have the same share of their peaks."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = make_optimizer(module, settings)
    scheduler = make_scheduler(optimizer, settings, STEPS)
    result = []
    for _ in range(steps):
        result.append(optimizer.param_groups[0]["lr"])
        shares = [group["lr"] / peak for group, peak in zip(optimizer.param_groups, (0.05, 1.0, 0.2), strict=True)]
        assert shares == pytest.approx([shares[0]] * 3)
        optimizer.step()
        scheduler.step()
    return result


def cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


RISING = [0.05 * (step + 1) / 8 for step in range(STEPS)]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0, [0.05 * (21 - step) / 21 for step in range(21)]),
        ("linear", 1, RISING + [0.05 * (14 - step) / 14 for step in range(14)]),
        ("cosine", 1, RISING + [cosine(0.05, 0, step / 14) for step in range(14)]),
        ("constant", 0, [0.05] * 21),
        ("constant", 1, RISING + [0.05] * 14),
        (
            "onecycle",
            1,
            [cosine(0.002, 0.05, step / 6) for step in range(6)]
            + [cosine(0.05, 2e-7, (step - 6) / 14) for step in range(6, 21)],
        ),
    ],
)
def test_learning_rates_of_each_schedule(schedule: str, warmup: int, expected: list[float]) -> None:
    settings = section(**MUON, bias_lr=1.0, schedule=schedule, warmup_epochs=warmup)
    assert rates(settings, 3 * STEPS) == pytest.approx(expected)


def test_a_plateau_divides_by_ten_after_patience(tmp_path: Path) -> None:
    settings = section(epochs=6, schedule="plateau", patience=1)
    task = Duel(settings, figures=[3, 2, 2, 2, 2, 1])
    history = train(task, tmp_path, settings).history
    assert [row["lr"] for row in history] == pytest.approx([0.05] * 4 + [0.005] * 2)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fit_agrees_with_a_loop(tmp_path: Path, optimizer: Literal["sgd", "adamw"]) -> None:
    settings = section(
        optimizer=optimizer, nesterov=True, weight_decay=0.1, schedule="constant", clip_norm=0.5, ema=0.8
    )
    task = Duel(settings)
    progress = train(task, tmp_path, settings)

    model, averages = network(), None
    weight = [p for n, p in model.named_parameters() if p.ndim == 2]
    rest = [p for n, p in model.named_parameters() if p.ndim == 1]
    groups = [{"params": weight, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    plain: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    if optimizer == "adamw":
        plain = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.999))
    losses = []
    for step in range(3 * STEPS):
        torch.manual_seed(derive(1, "step", step, 0))
        x = torch.randn(4, 3, generator=generator(1, "draw", step, 0))
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        plain.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        plain.step()
        losses.append(loss.item())
        state = {k: v.clone().double() for k, v in model.state_dict().items()}
        decay = min(0.8, (1 + step) / (10 + step))
        averages = averages or state
        averages = {k: decay * averages[k] + (1 - decay) * v for k, v in state.items()}
    assert averages is not None
    for name, value in task.learners["first"].network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), averages[name], rtol=1e-5, atol=1e-6)
    means = [float(np.mean(losses[first : first + STEPS])) for first in range(0, 3 * STEPS, STEPS)]
    assert [row["train/first"] for row in progress.history] == pytest.approx(means)
    assert [row["epoch"] for row in progress.history] == [1, 2, 3]


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 1)])
def test_the_best_epoch_is_the_first_of_the_best(tmp_path: Path, mode: Literal["min", "max"], best: int) -> None:
    settings = section(epochs=4, ema=0.5)
    task = Duel(settings, figures=[3, 1, 3, 1])
    task.mode = mode
    assert train(task, tmp_path, settings).best_epoch == best
    kept = Run(tmp_path).load_best()
    with interrupted(Duel, best * STEPS + 1), pytest.raises(KeyboardInterrupt):
        train(Duel(settings, figures=[3, 1, 3, 1]), tmp_path / "again", settings)
    assert kept["epoch"] == best
    state = Run(tmp_path / "again").load_last(1)["learners"]["second"]["average"]
    assert_same(kept["networks"]["second"], {k.removeprefix("module."): v for k, v in state.items() if "." in k})


# The calls in which a run dies; an update of the second network dies between the two updates of a step.
MOMENTS: dict[str, tuple[type, int, str]] = {
    "first step": (Learner, 2, "update"),
    "between checkpoints": (Learner, 2 * (STEPS + 5), "update"),
    "just after a checkpoint": (Learner, 2 * (2 * STEPS + 5), "update"),
    "last step": (Learner, 2 * 3 * STEPS, "update"),
    "at a checkpoint": (Run, 3, "save_last"),
    "before best.pt": (Run, 2, "save_best"),
    "after best.pt, before last.pt": (Run, 2, "log"),
    "at the last checkpoint": (Run, 10, "save_last"),
    "after everything": (Run, 1, "finish"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.8},
        {"optimizer": "adamw", "schedule": "onecycle"},
        {"schedule": "plateau", "patience": 0},
        MUON | {"schedule": "linear"},
    ],
    ids=["sgd cosine ema", "adamw onecycle", "sgd plateau", "muon linear"],
)
def test_resumed_run_ends_with_the_same_weights(tmp_path: Path, moment: str, changes: dict[str, Any]) -> None:
    settings = section(**changes)
    unbroken = Duel(settings)
    expected = train(unbroken, tmp_path / "unbroken", settings)
    with interrupted(*MOMENTS[moment]), pytest.raises(KeyboardInterrupt):
        train(Duel(settings), tmp_path / "broken", settings)
    resumed = Duel(settings)
    progress = train(resumed, tmp_path / "broken", settings, resume=True)
    assert_same(weights(resumed), weights(unbroken))
    assert progress.history == expected.history
    assert (progress.best_epoch, progress.best_value) == (expected.best_epoch, expected.best_value)
    kept = [Run(tmp_path / name).load_best()["networks"] for name in ("broken", "unbroken")]
    for name in ("first", "second"):
        assert_same(kept[0][name], kept[1][name])


def test_resumed_run_continues_within_the_epoch(tmp_path: Path) -> None:
    settings = section()
    with interrupted(Duel, STEPS + 5), pytest.raises(KeyboardInterrupt):
        train(Duel(settings), tmp_path, settings)
    resumed = Duel(settings)
    train(resumed, tmp_path, settings, resume=True)
    # It died after 11 steps of the run; step 9 was the last multiple of 3 to be written.
    assert resumed.seen[0] == (1, 2)
    assert len(resumed.seen) == 3 * STEPS - 9


@pytest.mark.parametrize("learners", [{}, {"first": {}, "second": {}}, None], ids=["none", "empty", "no table"])
def test_checkpoint_of_another_version_is_named(tmp_path: Path, learners: Any) -> None:
    Run(tmp_path).save_last(Progress(), learners or {}, None, 1)
    if learners is None:
        Run(tmp_path)._save("last.pt", {"epoch": 3})
    with pytest.raises(RunError, match=f"{tmp_path}/last.pt is not a checkpoint of this recipe and version: KeyError"):
        train(Duel(section()), tmp_path, section(), resume=True)


def test_nan_loss_leaves_the_weights_unchanged(tmp_path: Path) -> None:
    task = Duel(section())
    learner = task.learners["first"]
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    with pytest.raises(DivergedError, match=r"the loss is nan at a learning rate of 0\.05"):
        learner.update(learner.model(torch.full((4, 3), 1.0)).mean() * float("nan"))
    after = learner.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" not in name and "num" not in name)


def test_another_number_of_threads_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = section(epochs=1)
    train(Duel(settings), tmp_path, settings)
    torch.set_num_threads(2)  # the fixture `one_thread` resets it
    train(Duel(settings), tmp_path, settings, resume=True)
    assert "last bits may differ" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_gathered_rows_are_in_order(count: int) -> None:
    table = torch.randn(count, 3)
    shares: list[Tensor] = []

    def gather(rows: Tensor) -> Tensor:
        shares.append(rows)
        return torch.cat(shares)

    for process in (0, 1):
        accelerator = SimpleNamespace(num_processes=2, process_index=process, device=torch.device("cpu"), gather=gather)
        gathered = gather_rows(accelerator, count, lambda rows: table[torch.from_numpy(rows)])
    assert torch.equal(gathered, table)
    assert len(shares[0]) == len(shares[1]) == math.ceil(count / 2)
    assert torch.equal(gather_rows(Accelerator(cpu=True), count, lambda rows: table[torch.from_numpy(rows)]), table)


def test_seeds_of_different_positions_differ() -> None:
    seeds = [derive(1, *position) for position in (("step", 2, 3), ("step", 23), ("step", 3, 2), ("draw", 2, 3))]
    assert len({*seeds, derive(2, "step", 2, 3)}) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
