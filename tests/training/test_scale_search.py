"""The grid search for EfficientNet's scaling factors."""

from __future__ import annotations

import csv
import io
import itertools
import math
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from models.blocks import round_channels
from models.efficientnet import STAGES
from models.registry import build
from tests.training.conftest import RECIPE
from training import scale_search
from training.core.errors import RecipeError, RunError
from training.recipe.config import Recipe, read_recipe
from training.scale_search import (
    Result,
    ScaledNetwork,
    ScaleSearch,
    ScalingFactors,
    candidates,
    grid,
    scaled,
    shortened,
)

SCALE = "{ width = 0.3, depth = 0.3, stem_stride = 1, strides = [1, 1, 2, 2, 1, 2, 1] }"
SMALL = f'architecture = "efficientnet-b0", config = {SCALE}'


@pytest.fixture
def recipe_file(workshop: Path) -> Path:
    """A recipe for the strokes with a small EfficientNet on pictures of 20 pixels."""
    text = RECIPE.replace('architecture = "lenet5-relu", config = { dropout = 0.1 }', SMALL)
    text = text.replace("size = [28, 28], pad = 2", "size = [20, 20]").replace("rotate = 5", "crop = 2")
    path = workshop / "efficientnet.toml"
    path.write_text(text)
    return path


@pytest.fixture
def base(recipe_file: Path) -> Recipe:
    return read_recipe(Recipe, recipe_file)


def test_grid_has_all_triples_near_the_cost() -> None:
    tenths = range(10, 30)
    exact = [
        (a / 10, b / 10, c / 10)
        for a, b, c in itertools.product(tenths, repeat=3)
        if abs(Fraction(a * b * b * c * c, 10**5) - 2) <= Fraction(1, 10)
    ]
    assert [tuple(triple) for triple in grid(0.1, 0.1)] == exact
    assert ScalingFactors(2, 1, 1) in grid(0.1, 0)
    paper = ScalingFactors(1.2, 1.1, 1.15)
    assert paper in grid(0.05, 0.1)
    assert paper not in grid(0.05, 0.05)
    assert paper.cost == pytest.approx(1.92, abs=0.001)
    for step, tolerance in ((0, 0.1), (0.1, -0.1), (0.1, 1)):
        with pytest.raises(ValueError, match="step > 0"):
            grid(step, tolerance)


def test_triple_scales_depth_width_and_resolution(base: Recipe) -> None:
    recipe = scaled(base, ScalingFactors(2, 1.1, 1.4))
    assert recipe.model.config["depth"] == pytest.approx(0.6)
    assert recipe.model.config["width"] == pytest.approx(0.33)
    assert (recipe.preprocess.size, recipe.model.config["image_size"]) == ((28, 28), 28)
    assert recipe.augment.crop == round(2 * 1.4)
    changed = {"model", "preprocess", "augment"}
    assert recipe.model_dump(exclude=changed) == base.model_dump(exclude=changed)


def test_triples_that_round_to_the_same_network_are_merged(base: Recipe) -> None:
    triples = [triple for triple in grid(0.1, 0.1) if triple.alpha >= 1.6]
    result = candidates(base, triples, classes=3)

    def rounded(triple: ScalingFactors) -> tuple[object, ...]:
        channels = [round_channels(row[2] * 0.3 * triple.beta) for row in STAGES]
        ends = [round_channels(end * 0.3 * triple.beta) for end in (32, 1280)]
        blocks = [math.ceil(row[3] * 0.3 * triple.alpha) for row in STAGES]
        return (*channels, *ends, *blocks, round(20 * triple.gamma))

    groups = [{candidate.triple, *candidate.same} for candidate in result]
    assert sorted(itertools.chain.from_iterable(groups)) == triples
    assert 1 < len(groups) < len(triples)
    assert len(groups) == len({rounded(triple) for triple in triples})
    for candidate, group in zip(result, groups, strict=True):
        assert len({rounded(triple) for triple in group}) == 1
        assert abs(candidate.triple.cost - 2) == min(abs(triple.cost - 2) for triple in group)
    item = result[0]
    module = build("efficientnet-b0", item.recipe.model.config | {"num_classes": 3, "in_channels": 1})
    assert item.parameters == sum(parameter.numel() for parameter in module.parameters())


def test_the_budget_shortens_the_recipe(base: Recipe) -> None:
    short = shortened(base, 2, 40)
    assert (short.train.epochs, short.train.warmup_epochs, short.data.train) == (2, base.train.warmup_epochs / 2, 40)
    assert shortened(base, None, 0) == base


def test_the_reward_is_that_of_mnasnet(base: Recipe) -> None:
    search = ScaleSearch(base, (), target=100.0, exponent=-0.07)
    assert search.reward(Result("", 1, 1, 1, macs=100, parameters=1, accuracy=0.8, seconds=1)) == 0.8
    # MnasNet chose w so that twice the cost is worth 5 % of accuracy.
    dear = Result("", 1, 1, 1, macs=200, parameters=1, accuracy=0.8 * 1.05, seconds=1)
    assert search.reward(dear) == pytest.approx(0.8, rel=0.001)


def test_another_family_is_refused(workshop: Path) -> None:
    with pytest.raises(RecipeError, match="lenet5-relu is not an EfficientNet"):
        scaled(read_recipe(Recipe, workshop / "recipe.toml"), ScalingFactors(2, 1, 1))


def invoke(recipe: Path, out: Path, *options: str) -> tuple[int, str]:
    arguments = [str(recipe), "--out", str(out), "--epochs", "1", "--train-limit", "30", *options]
    result = CliRunner().invoke(scale_search.cli, arguments)
    return result.exit_code, result.output


@pytest.mark.slow
def test_interrupted_search_is_continued(recipe_file: Path, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = workshop / "docs"
    trained: list[ScalingFactors] = []
    train = scale_search.train

    def counted(candidate: ScaledNetwork) -> Result:
        if len(trained) == limit:
            raise RunError("the power failed")
        trained.append(candidate.triple)
        return train(candidate)

    monkeypatch.setattr(scale_search, "train", counted)
    limit = 1
    code, output = invoke(recipe_file, out, "--step", "0.4")
    assert (code, "error: the power failed" in output) == (1, True)
    first = (out / "scale-search.csv").read_text()
    limit = 2
    code, output = invoke(recipe_file, out, "--step", "0.4")
    assert code == 0, output
    assert trained == [ScalingFactors(1, 1, 1.4), ScalingFactors(1, 1.4, 1)]
    assert (out / "scale-search.csv").read_text().startswith(first)
    assert invoke(recipe_file, out, "--step", "0.4") == (0, output)
    assert len(trained) == 2

    rows = list(csv.DictReader(io.StringIO((out / "scale-search.csv").read_text())))
    assert [(row["alpha"], row["beta"], row["gamma"]) for row in rows] == [("1.0", "1.0", "1.4"), ("1.0", "1.4", "1.0")]
    report = (out / "scale-search.md").read_text()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if line.startswith("|")]
    assert {row[0] for row in table[2:]} == {"1, 1, 1.4", "1, 1.4, 1"}
    rewards = [float(row[6]) for row in table[2:]]
    assert rewards == sorted(rewards, reverse=True)
    assert {row[2] for row in table[2:]} == {"28 x 28", "20 x 20"}
    drawn = (out / "pictures/scale-search.png").read_bytes()
    assert Image.open(io.BytesIO(drawn)).size == (1200, 750)
    assert len(drawn) < 150_000


def test_other_files_and_grids_without_triples_are_refused(recipe_file: Path, workshop: Path) -> None:
    (workshop / "scale-search.csv").write_text("a,b\n1,2\n")
    for step, message in (("0.4", "has no results of a search"), ("0.6", "no triple of the grid")):
        code, output = invoke(recipe_file, workshop, "--step", step)
        assert (code, message in output) == (1, True)
