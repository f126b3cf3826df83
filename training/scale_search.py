"""Find the best way to double the cost of an EfficientNet: more depth, width or resolution.

`python -m training.scale_search benchmarks/experiments/scale-search-cifar10.toml --epochs 5 --train-limit 5000
--step .2 --out docs`

Step 1 of section 3.3 of Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019: with the compound coefficient phi at 1, a grid search for alpha (depth), beta (width) and gamma (resolution), all
>= 1, under alpha beta^2 gamma^2 ~ 2. Accuracy and cost are scored together as section 3 of the paper does, after Tan et
al., "MnasNet: Platform-Aware Neural Architecture Search for Mobile", CVPR 2019: accuracy times (MACs / T)^w.

Here each network is trained for a short time only, and T is twice the MACs of the base network.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from pydantic import TypeAdapter, ValidationError
from torch import nn

from models.checkpoint import write_atomically
from models.efficientnet import EfficientNetConfig
from models.registry import build, configure
from models.runtime import default_device
from training import classify
from training.core.errors import RecipeError, RunError, exit_on_error
from training.core.export import begin
from training.core.run_folder import hardware, versions
from training.core.trainer import fit
from training.datasets import images
from training.evaluation.plots import ACCENT, INK, PALE, Dot, blank, place_labels, png
from training.metrics.flops import macs
from training.recipe.config import Recipe, read_recipe

cli = typer.Typer(add_completion=False)

COST = 2.0  # relative to the base network, at phi = 1


class ScalingFactors(NamedTuple):
    """The factors of depth, width and resolution."""

    alpha: float
    beta: float
    gamma: float

    @property
    def cost(self) -> float:
        """The factor of the MACs before rounding: alpha beta^2 gamma^2."""
        return self.alpha * (self.beta * self.gamma) ** 2

    def __str__(self) -> str:
        return ", ".join(f"{factor:.4g}" for factor in self)


@dataclass(frozen=True)
class ScaledNetwork:
    """A network to train: the factors with the cost nearest to `COST`, and others that round to the same network."""

    triple: ScalingFactors
    same: tuple[ScalingFactors, ...]
    recipe: Recipe
    macs: int
    parameters: int


@dataclass(frozen=True)
class Result:
    """A row of the CSV file. `recipe` is the hash of the recipe; `accuracy` is that on the validation split, 0..1."""

    recipe: str
    alpha: float
    beta: float
    gamma: float
    macs: int
    parameters: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class ScaleSearch:
    """The networks to compare; `target` is T in MACs, `exponent` is w."""

    base: Recipe
    candidates: tuple[ScaledNetwork, ...]
    target: float
    exponent: float

    def reward(self, result: Result) -> float:
        """Return ACC (MACs / T)^w."""
        return result.accuracy * math.pow(result.macs / self.target, self.exponent)


def grid(step: float, tolerance: float) -> list[ScalingFactors]:
    """Return all triples 1 + k * `step` with a cost within `tolerance` of `COST`, ascending.

    Raises:
        ValueError: if `step` is not positive, or `tolerance` is not in 0..1 (with 1 the grid would contain no scaling).
    """
    if step <= 0 or not 0 <= tolerance < 1:
        raise ValueError(f"a grid needs a step > 0 and a tolerance in 0..1, got {step:g} and {tolerance:g}")
    factors = [round(1 + step * i, 6) for i in range(int((COST + tolerance - 1) / step + 1e-6) + 1)]
    every = (ScalingFactors(alpha, beta, gamma) for alpha in factors for beta in factors for gamma in factors)
    return [triple for triple in every if abs(triple.cost - COST) <= tolerance + 1e-9]


def scaled(base: Recipe, triple: ScalingFactors) -> Recipe:
    """Return the recipe of the scaled base network; augmentations in pixels are scaled with the images.

    Raises:
        RecipeError: the base network is not an EfficientNet.
    """
    config = configure(base.model.architecture, base.model.config)
    if not isinstance(config, EfficientNetConfig):
        raise RecipeError(f"{base.name}: {base.model.architecture} is not an EfficientNet")
    size = tuple(round(side * triple.gamma) for side in base.preprocess.size)
    preprocess = base.preprocess.model_copy(update={"size": size})
    changes = {"width": config.width * triple.beta, "depth": config.depth * triple.alpha}
    changes["image_size"] = max(preprocess.shape[1:])
    pixels = {name: round(getattr(base.augment, name) * triple.gamma) for name in ("crop", "cutout")}
    update = {
        "model": base.model.model_copy(update={"config": base.model.config | changes}),
        "preprocess": preprocess,
        "augment": base.augment.model_copy(update=pixels),
    }
    return Recipe.model_validate(base.model_copy(update=update).model_dump())


def network(recipe: Recipe, classes: int) -> nn.Module:
    """Return the recipe's network for `classes` classes in evaluation mode, with random weights, to count its MACs."""
    given = {"num_classes": classes, "in_channels": recipe.preprocess.channels}
    return build(recipe.model.architecture, recipe.model.config | given).eval()


def candidates(base: Recipe, triples: Iterable[ScalingFactors], classes: int) -> tuple[ScaledNetwork, ...]:
    """Return the distinct networks of the triples.

    Widths are rounded to multiples of 8, depths up, and image sides to pixels, so several triples may be one network.

    Raises:
        RecipeError: see `scaled`.
    """
    groups: dict[Any, list[ScalingFactors]] = {}
    for triple in triples:
        recipe = scaled(base, triple)
        shapes = tuple(tuple(tensor.shape) for tensor in network(recipe, classes).state_dict().values())
        groups.setdefault((shapes, recipe.preprocess.size), []).append(triple)
    networks = []
    for group in groups.values():
        nearest, *same = sorted(group, key=lambda triple: abs(triple.cost - COST))
        recipe = scaled(base, nearest)
        module = network(recipe, classes)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        networks.append(ScaledNetwork(nearest, tuple(same), recipe, macs(module, recipe.preprocess.shape), parameters))
    return tuple(networks)


def shortened(recipe: Recipe, epochs: int | None, train: int) -> Recipe:
    """Return the recipe with other `epochs`, a proportional warm-up, and at most `train` training images (0: all)."""
    epochs = epochs or recipe.train.epochs
    warmup = recipe.train.warmup_epochs * epochs / recipe.train.epochs
    update = {
        "train": recipe.train.model_copy(update={"epochs": epochs, "warmup_epochs": warmup}),
        "data": recipe.data.model_copy(update={"train": train or recipe.data.train}),
    }
    return Recipe.model_validate(recipe.model_copy(update=update).model_dump())


def train(candidate: ScaledNetwork) -> Result:
    """Train the network from the beginning and return its figures on the validation split at the best epoch.

    Raises:
        TrainingError: see `classify.setup` and `fit`.
    """
    recipe = candidate.recipe
    folder = f"scale-search/{recipe.name}/{digest(recipe)}"
    task, run = begin(classify.setup, recipe, folder, overwrite=True)
    progress = fit(task, run, recipe.train, recipe.seed)
    return Result(
        recipe=digest(recipe),
        **candidate.triple._asdict(),
        macs=candidate.macs,
        parameters=candidate.parameters,
        accuracy=progress.best_value,
        seconds=round(progress.wall_time_s, 1),
    )


def digest(recipe: Recipe) -> str:
    """Return twelve hex digits of the recipe's hash."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]


def read_results(path: Path) -> list[Result]:
    """Read the rows of the CSV file; none if there is no file.

    Raises:
        RunError: the file does not contain results of a search.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return TypeAdapter(list[Result]).validate_python(list(csv.DictReader(file)))
        except (ValidationError, csv.Error) as error:
            raise RunError(f"{path} has no results of a search: {error}") from error


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Replace the CSV file."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Result)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(result) for result in results)
    write_atomically(path, buffer.getvalue().encode())


def run(search: ScaleSearch, path: Path) -> list[Result]:
    """Return the results by descending reward; networks without a row in `path` are trained, and added to it.

    Rows of other recipes are kept in the file.

    Raises:
        TrainingError: see `read_results` and `train`.
    """
    finished = {result.recipe: result for result in read_results(path)}
    for number, candidate in enumerate(search.candidates, start=1):
        key = digest(candidate.recipe)
        if key not in finished:
            finished[key] = train(candidate)
            write_results(path, list(finished.values()))
        typer.echo(f"{number}/{len(search.candidates)}: {candidate.triple}: accuracy {finished[key].accuracy:.4f}")
    results = [finished[digest(candidate.recipe)] for candidate in search.candidates]
    return sorted(results, key=search.reward, reverse=True)


def markdown(search: ScaleSearch, results: Sequence[Result]) -> str:
    """Return the table of the results after an explanation."""
    of = {digest(candidate.recipe): candidate for candidate in search.candidates}
    lines = [
        "| alpha, beta, gamma | same after rounding | pixels | MACs | parameters | accuracy | reward | seconds |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        candidate = of[result.recipe]
        cells = [
            str(candidate.triple),
            "; ".join(str(other) for other in candidate.same),
            " x ".join(str(side) for side in candidate.recipe.preprocess.size),
            f"{result.macs / 1e6:.1f} M",
            f"{result.parameters / 1e6:.2f} M",
            f"{100 * result.accuracy:.2f} %",
            f"{search.reward(result):.4f}",
            f"{result.seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return f"{_account(search, results[0])}\n\n" + "\n".join(lines)


def _account(search: ScaleSearch, best: Result) -> str:
    base, networks = search.base, len(search.candidates)
    triples = networks + sum(len(candidate.same) for candidate in search.candidates)
    images = f"at most {base.data.train:,}" if base.data.train else "all"
    error = 100 * math.sqrt(best.accuracy * (1 - best.accuracy) / base.data.validation)
    return (
        f"Depth alpha, width beta and resolution gamma of {base.name} at phi = 1 (Tan and Le, 2019, section 3.3), by\n"
        f"`python -m training.scale_search`: {triples} triples with alpha beta^2 gamma^2 ~ 2. Widths, depths and\n"
        f"pixels are rounded, which leaves {networks} distinct networks. Each was trained once, seed {base.seed}, for\n"
        f"{base.train.epochs} epochs on {images} training images of {base.data.name}, and measured on\n"
        f"{base.data.validation:,} others, where the standard error of the best accuracy is {error:.2f} points.\n"
        f"The reward is accuracy (MACs / T)^w with w = {search.exponent:g} and T = {search.target / 1e6:.1f} M, twice\n"
        "the base network's MACs. The paper found 1.2, 1.1, 1.15 on ImageNet. Trained on\n"
        f"{hardware(default_device())}, torch {versions()['torch']}."
    )


def draw(search: ScaleSearch, results: Sequence[Result]) -> bytes:
    """Return a PNG of accuracy over MACs with the best reward marked, and the line of equal reward."""
    best = results[0]
    figure, axes = blank(
        f"Doubling the cost of {search.base.name}",
        "labels: factors of depth, width, resolution; line: the same reward as the best",
        "MACs per image, millions",
        "validation accuracy, %",
    )
    dots = [
        Dot(
            x=result.macs / 1e6,
            y=100 * result.accuracy,
            area=70,
            label=str(ScalingFactors(result.alpha, result.beta, result.gamma)),
            colour=ACCENT if result is best else INK,
        )
        for result in results
    ]
    for dot in dots:
        axes.scatter(dot.x, dot.y, dot.area, color=dot.colour, alpha=0.75, linewidth=0)
    axes.margins(0.25, 0.15)
    axes.set_ylim(axes.get_ylim())  # the line does not change the limits
    line = np.linspace(*axes.get_xlim(), 101).clip(1e-3)
    curve = 100 * search.reward(best) * (line * 1e6 / search.target) ** -search.exponent
    axes.plot(line, curve, color=PALE, linewidth=0.9, linestyle="--", zorder=0, scalex=False)
    place_labels(axes, dots)
    return png(figure)


@cli.command()
def main(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe of the base network, an EfficientNet.")],
    out: Annotated[Path, typer.Option(help="The folder for scale-search.{csv,md} and pictures/scale-search.png.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs for each network; default: the recipe's.")] = None,
    train_limit: Annotated[int, typer.Option(min=0, help="The largest number of training images; 0: all.")] = 0,
    step: Annotated[float, typer.Option(help="The step of the grid.")] = 0.1,
    tolerance: Annotated[float, typer.Option(help="The largest difference of alpha beta^2 gamma^2 from 2.")] = 0.1,
    exponent: Annotated[float, typer.Option(help="The reward's w, the weight of the cost.")] = -0.07,
) -> None:
    """Train every network of the grid for a short time and compare them; a stopped search is continued."""
    with exit_on_error(ValueError):
        base = shortened(read_recipe(Recipe, path), epochs, train_limit)
        search = plan(base, grid(step, tolerance), exponent)
        results = run(search, out / "scale-search.csv")
    table = markdown(search, results)
    typer.echo(table)
    write_atomically(out / "scale-search.md", f"# Scaling EfficientNet\n\n{table}\n".encode())
    write_atomically(out / "pictures" / "scale-search.png", draw(search, results))


def plan(base: Recipe, triples: Sequence[ScalingFactors], exponent: float) -> ScaleSearch:
    """Return the search over `triples`, before any training.

    Raises:
        RecipeError: see `scaled`; if there are no triples. DataError: if the data set does not exist.
    """
    if not triples:
        raise RecipeError("no triple of the grid fulfils the constraint; use a smaller step or a larger tolerance")
    classes = len(images.find(base.data.name, "train").classes)
    target = COST * macs(network(base, classes), base.preprocess.shape)
    return ScaleSearch(base, candidates(base, triples, classes), target, exponent)


if __name__ == "__main__":
    cli()
