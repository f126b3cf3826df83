"""The training loop of all tasks: epochs of steps, checkpoints, statistics, validation, the best epoch.

A task provides `step`, `validate` and its networks as `Learner`s: one for a classifier, two for a GAN. A step depends
only on the weights and on (seed, step, process). So a run that was killed at any time and resumed from last.pt ends
with the same weights, bit by bit, as an uninterrupted run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models.checkpoint import bare_state
from training.core.distributed import on_main
from training.core.errors import DivergedError, RunError
from training.core.muon import Muon
from training.core.run_folder import Progress, Run
from training.core.seeds import derive, generator
from training.datasets.images import Indices
from training.recipe.config import TrainSection

log = logging.getLogger(__name__)


def make_accelerator(train: TrainSection) -> Accelerator:
    """Return an accelerator with the recipe's precision; float32 instead of bf16 on a CPU without bf16 instructions."""
    precision: str = train.precision
    if precision == "bf16" and not torch.accelerator.is_available():
        capabilities = torch.cpu.get_capabilities()
        if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
            log.warning("this processor has no bf16 instructions: training in float32")
            precision = "no"
    return Accelerator(mixed_precision=precision)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group the trained parameters: weight decay for weights of convolutions and linear layers, none for the rest."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}  # by whether the weights decay
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[name.endswith("weight") and parameter.ndim > 1].append(parameter)
    return [{"params": group, "weight_decay": weight_decay * decays} for decays, group in groups.items() if group]


def muon_groups(module: nn.Module, train: TrainSection) -> list[dict[str, Any]]:
    """Group the trained parameters into filters of convolutions, biases of convolutions and norms, and the rest.

    The order is rest, biases, filters. Depthwise and grouped filters are in the rest: their matrix would mix unrelated
    channels.
    """
    rest: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    filters: list[nn.Parameter] = []
    for layer in module.modules():
        kinds = {"bias": biases} if isinstance(layer, nn.Conv2d | nn.BatchNorm2d) else {}
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            kinds["weight"] = filters
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.requires_grad:
                kinds.get(name, rest).append(parameter)
    bias_lr = train.bias_lr or train.lr
    groups: list[dict[str, Any]] = [
        {"params": rest, "weight_decay": train.weight_decay},
        {"params": biases, "lr": bias_lr, "weight_decay": train.lr * train.weight_decay / bias_lr},
        {"params": filters, "lr": train.filter_lr, "momentum": train.filter_momentum, "orthogonal": True},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(module: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over `parameter_groups`, or over `muon_groups`."""
    if train.optimizer == "muon":
        return Muon(muon_groups(module, train), lr=train.lr, momentum=train.momentum, nesterov=train.nesterov)
    groups = parameter_groups(module, train.weight_decay)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr, betas=(train.momentum, train.second_momentum))
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=train.nesterov)


def make_scheduler(
    optimizer: torch.optim.Optimizer, train: TrainSection, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """Return the recipe's schedule; call its `step` in every step (`plateau`: every epoch, with a falling figure)."""
    total, warmup = train.epochs * steps_per_epoch, round(train.warmup_epochs * steps_per_epoch)
    if train.schedule == "onecycle":
        rising = warmup / total if warmup else 0.3
        peaks = [group["lr"] for group in optimizer.param_groups]
        return lr_scheduler.OneCycleLR(optimizer, peaks, total, pct_start=rising, cycle_momentum=False)
    if train.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(optimizer, patience=train.patience, threshold_mode="abs")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if train.schedule == "constant":
            return 1.0
        if train.schedule == "linear":
            return (total - step) / (total - warmup)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return lr_scheduler.LambdaLR(optimizer, factor)


def _update_average(averages: Any, currents: Any, count: Any, *, decay: float) -> None:
    """Update the moving average, with a decay of at most (1 + n) / (10 + n) after n = `count` updates.

    A constant decay would keep the average of a short run near its first weights. TensorFlow's ExponentialMovingAverage
    uses the same rule.
    """
    n = float(count)
    get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, currents, count)  # type: ignore[no-untyped-call]


class Learner:
    """One network in training, with its optimizer, its schedule and the moving average of its weights.

    A step calls `model`, which may be wrapped. Validation and export use `network`: the average if the recipe has a
    moving average, else the bare module.
    """

    def __init__(self, module: nn.Module, train: TrainSection, steps_per_epoch: int, accelerator: Accelerator):
        module = module.to(accelerator.device)
        if train.channels_last:
            module = module.to(memory_format=torch.channels_last)
        self._train = train
        self._accelerator = accelerator
        self._module = module
        self._average = None
        if train.ema:
            self._average = AveragedModel(
                module, multi_avg_fn=partial(_update_average, decay=train.ema), use_buffers=True
            )
        self._optimizer = make_optimizer(module, train)
        # On the bare optimizer: accelerate's wrapped scheduler would step once for every process.
        self._scheduler = make_scheduler(self._optimizer, train, steps_per_epoch)
        self.model, self._stepper = accelerator.prepare(module, self._optimizer)

    @property
    def network(self) -> nn.Module:
        """The network to validate and to export."""
        return self._module if self._average is None else self._average.module

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def arrange(self, images: Tensor) -> Tensor:
        """Return `images` [N, C, H, W] in the recipe's memory layout."""
        return images.contiguous(memory_format=torch.channels_last) if self._train.channels_last else images

    def update(self, loss: Tensor) -> None:
        """Take one optimizer step along the gradient of `loss`, a scalar.

        Raises:
            DivergedError: `loss` is not finite; the weights are unchanged.
        """
        if not torch.isfinite(loss):
            raise DivergedError(f"the loss is {loss.item()} at a learning rate of {self.lr:g}")
        self._stepper.zero_grad()
        self._accelerator.backward(loss)
        if self._train.clip_norm:
            self._accelerator.clip_grad_norm_(self.model.parameters(), self._train.clip_norm)
        self._stepper.step()
        if not isinstance(self._scheduler, lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self._module)

    def end_epoch(self, falling: float) -> None:
        """Step a plateau schedule with the monitored figure, which is negated if higher is better."""
        if isinstance(self._scheduler, lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step(falling)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state for a checkpoint; tensors are not copied."""
        return {
            "model": self._module.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self._module.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])


class TrainingTask(Protocol):
    """A task for `fit`. The best epoch has the highest (`mode` "max") or lowest figure `monitor` of `validate`."""

    accelerator: Accelerator
    learners: dict[str, Learner]
    steps_per_epoch: int
    monitor: str
    mode: Literal["max", "min"]

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Update the learners by batch `index` of `epoch` (both from 0) and return this process's means as scalars.

        Random numbers come from `generator` or torch's global generator; `fit` seeds both before every step.
        """
        ...

    def validate(self) -> Mapping[str, float]:
        """Return figures of the learners' `network`s on the validation split, the same on all processes."""
        ...


def fit(task: TrainingTask, run: Run, train: TrainSection, seed: int, *, resume: bool = False) -> Progress:
    """Train to the last epoch, from last.pt if `resume`, and return the progress; writes best.pt and last.pt.

    Raises:
        RunError: there is no checkpoint of this recipe and version to resume. DivergedError: see `Learner.update`.
    """
    accelerator = task.accelerator
    progress = _restore(task, run, accelerator) if resume else Progress()
    started = time.perf_counter() - progress.wall_time_s

    def save() -> None:
        progress.statistics = _mean_over_processes(progress.statistics, accelerator)
        progress.wall_time_s = time.perf_counter() - started
        learners = {name: learner.state_dict() for name, learner in task.learners.items()}
        scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
        run.save_last(progress, learners, scaler, accelerator.num_processes)

    if not resume:
        save()
    while progress.step < train.epochs * task.steps_per_epoch:
        epoch, first = divmod(progress.step, task.steps_per_epoch)
        for index in tqdm(
            range(first, task.steps_per_epoch),
            f"epoch {epoch + 1}/{train.epochs}",
            initial=first,
            total=task.steps_per_epoch,
            disable=None if run.main else True,  # None: shown on a terminal only
        ):
            _step(task, progress, epoch, index, seed=seed, process=accelerator.process_index)
            within = index + 1 < task.steps_per_epoch
            if within and train.checkpoint_steps and progress.step % train.checkpoint_steps == 0:
                save()
        _end_epoch(task, run, accelerator, progress)
        run.log(progress.history)
        save()
    run.finish(progress)
    return progress


def _restore(task: TrainingTask, run: Run, accelerator: Accelerator) -> Progress:
    def load() -> dict[str, Any]:
        with _as_run_errors(run):
            return run.load_last(accelerator.num_processes)

    state = on_main(accelerator, load)
    with _as_run_errors(run):
        for name, learner in task.learners.items():
            learner.load_state_dict(state["learners"][name])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    if state["threads"] != torch.get_num_threads():
        log.warning("last.pt: %d threads, now %d; last bits may differ", state["threads"], torch.get_num_threads())
    progress: Progress = state["progress"]
    return progress


@contextmanager
def _as_run_errors(run: Run) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        path = run.folder / "last.pt"
        raise RunError(f"{path} is not a checkpoint of this recipe and version: {error!r}") from error


def _step(task: TrainingTask, progress: Progress, epoch: int, index: int, *, seed: int, process: int) -> None:
    torch.manual_seed(derive(seed, "step", progress.step, process))
    values = task.step(epoch, index, generator(seed, "draw", progress.step, process))
    for name, value in values.items():
        progress.statistics[name] = progress.statistics.get(name, 0.0) + float(value)
    progress.step += 1


def _end_epoch(task: TrainingTask, run: Run, accelerator: Accelerator, progress: Progress) -> None:
    sums = _mean_over_processes(progress.statistics, accelerator)
    figures = task.validate()
    value = figures[task.monitor]
    # The learning rate at the end of the epoch: a resumed run may lack that of the beginning.
    row = {"epoch": float(len(progress.history) + 1), "lr": next(iter(task.learners.values())).lr}
    row |= {f"train/{name}": total / task.steps_per_epoch for name, total in sums.items()}
    row |= {f"validation/{name}": figure for name, figure in figures.items()}
    progress.history.append(row)
    progress.statistics = {}
    for learner in task.learners.values():
        learner.end_epoch(-value if task.mode == "max" else value)
    better = value > progress.best_value if task.mode == "max" else value < progress.best_value
    if better or not progress.best_epoch:
        progress.best_epoch, progress.best_value = len(progress.history), value
        # Written before last.pt, which refers to it. After a kill in between, the repeated epoch writes it again.
        run.save_best(
            progress.best_epoch, {name: bare_state(learner.network) for name, learner in task.learners.items()}
        )


def _mean_over_processes(values: Mapping[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Return the mean of each value over the processes, which must have the same names."""
    if accelerator.num_processes == 1 or not values:
        return dict(values)
    sums = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    mean = accelerator.reduce(sums, "mean")
    return dict(zip(values, mean.tolist(), strict=True))


def gather_rows(accelerator: Accelerator, count: int, compute: Callable[[Indices], Tensor]) -> Tensor:
    """Return `compute` of rows 0..count-1 as [count, ...] on the CPU of every process; each computes its share."""
    share = -(-count // accelerator.num_processes)
    # Gathering needs shares of equal length: the last ones repeat the last row, and the surplus is cut off.
    rows = np.arange(share * accelerator.process_index, share * (accelerator.process_index + 1)).clip(max=count - 1)
    gathered: Tensor = accelerator.gather(compute(rows).to(accelerator.device))
    return gathered[:count].cpu()
