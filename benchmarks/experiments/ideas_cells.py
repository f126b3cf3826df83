"""The table of experiments: which networks are set side by side to show an idea, and what each of them costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from models.registry import build, configure
from training.metrics.flops import macs
from training.recipe.config import Recipe, read_recipe

RECIPE = Path("benchmarks/experiments/ideas-cifar10.toml")

PILOT_EPOCHS = 3
PILOT_SEED = 100  # of none of the runs that are drawn

# export() sees every validation picture ten times more, for the ten-crop.
_EXTRA_VIEWS = 10


@dataclass(frozen=True)
class Cell:
    """One network. `changes` are overrides of the recipe, by their dotted names.

    The peak learning rate is the best of `rates`, as short pilots find it where there are several. `gflops` is what
    one core got done of the work that is counted, in 1e9 operations a second: three steps of 128 pictures in bfloat16
    on a processor with AVX-512 and bfloat16 instructions.
    """

    name: str
    label: str
    changes: Mapping[str, object]
    rates: tuple[float, ...]
    gflops: float


@dataclass(frozen=True)
class Experiment:
    """Cells that differ in one idea; `changes` of `recipe` are common to them, `title` is the plot's."""

    name: str
    title: str
    changes: Mapping[str, object]
    cells: tuple[Cell, ...]
    recipe: Path = RECIPE


@dataclass(frozen=True)
class Job:
    """One run of `training.classify`: a cell with a seed and a peak learning rate."""

    experiment: Experiment
    cell: Cell
    seed: int
    lr: float
    pilot: bool = field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        """Of the run and of the model that it exports."""
        if self.pilot:
            return f"pilot-{self.experiment.name}-{self.cell.name}-{self.lr:g}"
        return f"{self.experiment.name}-{self.cell.name}-{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """For `--set`: the changes in TOML, which has numbers, lists, truths and strings in common with JSON."""
        changes = dict(self.experiment.changes) | dict(self.cell.changes)
        changes |= {"name": self.name, "seed": self.seed, "train.lr": self.lr}
        if self.pilot:
            changes["train.epochs"] = PILOT_EPOCHS
        return [f"{key}={json.dumps(value)}" for key, value in changes.items()]

    @property
    def recipe(self) -> Recipe:
        """The recipe with the overrides in it."""
        return read_recipe(Recipe, self.experiment.recipe, self.overrides)


@dataclass(frozen=True)
class Cost:
    """Of a network: its parameters in training, its multiply-accumulates for one picture as it serves."""

    parameters: int
    macs: int


def cost(recipe: Recipe) -> Cost:
    """Counted without computing anything."""
    settings = recipe.model.config | {"num_classes": 10, "in_channels": recipe.preprocess.channels}
    config = configure(recipe.model.architecture, settings)
    return _cost(recipe.model.architecture, json.dumps(asdict(config)), recipe.preprocess.shape)


@lru_cache
def _cost(architecture: str, config: str, shape: tuple[int, int, int]) -> Cost:
    with torch.device("meta"):
        module = build(architecture, json.loads(config)).eval()
        return Cost(sum(parameter.numel() for parameter in module.parameters()), macs(module, shape))


def minutes(job: Job, gflops: float) -> float:
    """Of one core that does `gflops` * 1e9 operations a second: training, validation and export.

    A training step is three times the forward pass, a multiply-accumulate is two operations.
    """
    recipe = job.recipe
    pictures = 3 * recipe.data.train * recipe.train.epochs + recipe.data.validation * (
        recipe.train.epochs + _EXTRA_VIEWS
    )
    return 2 * cost(recipe).macs * pictures / (gflops * 1e9) / 60


def pilots(experiment: Experiment) -> list[Job]:
    """The short runs that choose a learning rate, for the cells that leave a choice."""
    return [
        Job(experiment, cell, PILOT_SEED, lr, pilot=True)
        for cell in experiment.cells
        if len(cell.rates) > 1
        for lr in cell.rates
    ]


def _named(prefix: str, values: Mapping[str, object]) -> dict[str, object]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


# AlexNet for 32 pixels: the first convolution has stride 2, and 3x3 windows leave 1x1 maps after the third pooling.
_ALEXNET: dict[str, object] = {
    "model.architecture": "alexnet2012",
    **_named(
        "model.config",
        {
            "image_size": 32,
            "stem": [5, 2, 2],
            "channels": [48, 96, 128, 128, 96],
            "hidden": [256, 256],
            "pool_size": 1,
            "groups": 1,
        },
    ),
    "train.weight_decay": 0.0005,
}

# Pixels are 0..255 less their mean here, as the paper's: with pixels of unit variance its normalisation would only
# divide by a constant. Weights as torch's layers begin then give maps of the size that the paper's alpha expects.
_PAPER_PIXELS: dict[str, object] = {"preprocess.std": [1.0, 1.0, 1.0], "model.config.init": "torch"}

_RATES = (0.003, 0.01, 0.03, 0.1)
_PAPER_PIXEL_RATES = (0.005, 0.01, 0.02)

_CROP_AND_FLIP: dict[str, object] = {"augment.crop": 4, "augment.flip": True}

# GoogLeNet's 22 layers, 5 modules in the middle with a head on the first and the fourth of them, as the paper has it.
_INCEPTION: dict[str, object] = {
    "model.architecture": "inception-v1",
    **_named(
        "model.config",
        {
            "image_size": 32,
            "stem": "small",
            "stem_channels": [16],
            "pools": [3, 3, 3],
            "rows": [
                [[8, 8, 16, 4, 4, 4]],
                [[16, 16, 24, 4, 8, 8], [24, 16, 32, 4, 8, 8]],
                [[48, 24, 52, 4, 12, 16]] * 5,
                [[64, 40, 80, 8, 32, 32]] * 2,
            ],
            "local_response_norm": False,
            "auxiliary_after": [[2, 0], [2, 3]],
            "auxiliary_pool": "adaptive",
            "auxiliary_channels": 32,
            "auxiliary_hidden": 128,
        },
    ),
    "train.weight_decay": 0.0002,
    **_CROP_AND_FLIP,
}

EXPERIMENTS = (
    Experiment(
        "activation",
        "ReLU, tanh and sigmoid in a small AlexNet",
        _ALEXNET
        | _named("model.config", {"init": "he", "local_response_norm": False, "dropout": 0.0})
        | {"train.epochs": 25},
        tuple(
            Cell(name, label, {"model.config.activation": name}, _RATES, 165)
            for name, label in (("relu", "ReLU"), ("tanh", "tanh"), ("sigmoid", "sigmoid"))
        ),
    ),
    Experiment(
        "switches",
        "A small AlexNet, and what it is without one of its parts",
        _ALEXNET | _PAPER_PIXELS | {"train.epochs": 15},
        (
            Cell("all", "all three", {}, _PAPER_PIXEL_RATES, 90),
            Cell(
                "pooling",
                "pooling without overlap",
                {"model.config.overlapping_pooling": False},
                _PAPER_PIXEL_RATES,
                100,
            ),
            Cell("lrn", "no LRN", {"model.config.local_response_norm": False}, _PAPER_PIXEL_RATES, 185),
            Cell("dropout", "no dropout", {"model.config.dropout": 0.0}, _PAPER_PIXEL_RATES, 95),
        ),
    ),
    Experiment(
        "depth",
        "Plain and residual networks of 20 and 56 layers",
        {"model.config.stem": "small-pool", **_CROP_AND_FLIP},
        tuple(
            Cell(
                f"{name}-{layers}",
                f"{name}-{layers}",
                {"model.architecture": f"resnet{layers}", "model.config.plain": name == "plain"},
                (0.1,),
                gflops,
            )
            for name in ("plain", "residual")
            for layers, gflops in ((20, 115), (56, 130))
        ),
    ),
    Experiment(
        "density",
        "DenseNet-BC and ResNet with as many parameters",
        {"train.epochs": 15, **_CROP_AND_FLIP},
        (
            Cell(
                "resnet",
                "ResNet-14",
                _named("model.config", {"depths": [2, 2, 2], "widths": [12, 24, 48]}),
                (0.1,),
                78,
            ),
            Cell(
                "densenet",
                "DenseNet-BC-28 (k = 12)",
                {
                    "model.architecture": "densenet-bc-100",
                    **_named("model.config", {"depths": [1, 3, 8], "growth": 12, "stem_channels": 16}),
                },
                (0.1,),
                63,
            ),
        ),
    ),
    Experiment(
        "auxiliary",
        "Inception-v1 with and without auxiliary heads in training",
        _INCEPTION | {"train.epochs": 15},
        (
            Cell("with", "auxiliary heads", {"model.config.auxiliary": True}, (0.01, 0.03, 0.06), 50),
            Cell("without", "no auxiliary heads", {"model.config.auxiliary": False}, (0.01, 0.03, 0.06), 50),
        ),
    ),
)


def find(names: list[str]) -> list[Experiment]:
    """The experiments of those names, all of them for none.

    Raises:
        ValueError: a name that no experiment has.
    """
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no experiment {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(EXPERIMENTS)


def runs(experiments: list[Experiment], seeds: int, rates: Mapping[tuple[str, str], float]) -> Iterator[Job]:
    """Every cell with each seed from 1, a seed's all before the next; `rates` are of (experiment, cell)."""
    for seed in range(1, seeds + 1):
        for experiment in experiments:
            for cell in experiment.cells:
                yield Job(experiment, cell, seed, rates[experiment.name, cell.name])
