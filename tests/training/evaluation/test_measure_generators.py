"""Measurement of generators against real images and a Gaussian of pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg  # type: ignore[import-untyped]
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from models import checkpoint
from models.card import Training
from models.generative import latents
from models.preprocess import Preprocess
from models.vae import VAE
from tests.training.conftest import CLASSES, png, save, strokes, write_identities, write_parquet
from training.core.errors import DataError
from training.datasets import images as data
from training.evaluate import cli
from training.evaluation import measure_generators as measured
from training.evaluation.measure_generators import RealImages, Reference, draw, gaussian, measure
from training.evaluation.report_generators import draw_sheet, markdown
from training.metrics import likelihood
from training.metrics.contact_sheet import sheet
from training.metrics.feature_extractor import ExtractedFeatures, Extractor

SMALL = Preprocess(mode="L", size=(28, 28), mean=(0,), std=(255,))
TINY = {"image_size": 28, "widths": [4, 4], "hidden": 0, "latent": 3}


@pytest.fixture
def studio(folders: Path) -> Path:
    """90 training, 60 test strokes; an untrained extractor, a conditional VAE, and a VAE of half the size."""
    for split, count, seed in (("train", 90, 1), ("test", 60, 2)):
        pictures, labels = strokes(count, seed)
        write_parquet(folders / f"data/strokes/{split}.parquet", [png(p) for p in pictures], labels)
    weights = folders / "weights"
    save(weights / "judge", "lenet5-relu", {"num_classes": 3}, task="classify", classes=CLASSES)
    save(weights / "labelled", "vae", TINY | {"num_classes": 3}, task="generate", classes=CLASSES, preprocess=SMALL)
    half = {"task": "generate", "preprocess": SMALL.model_copy(update={"size": (16, 16)})}
    save(weights / "half", "vae", TINY | {"image_size": 16}, **half)
    return weights


def run(studio: Path, *options: str, names: tuple[str, ...] = ("labelled", "half")) -> Result:
    folders = [str(studio / name) for name in names]
    arguments = ["generate", *folders, "--data", "strokes", "--judge", str(studio / "judge"), "--samples", "40"]
    return CliRunner().invoke(cli, [*arguments, *options])


def test_figures_are_those_of_a_plain_computation(studio: Path) -> None:
    (figures,) = measure([studio / "labelled"], "strokes", [studio / "judge"], samples=40, held_out=5)
    (group,) = figures.groups
    (result,) = group.generators
    network, card = checkpoint.load(studio / "labelled")
    judge, judge_card = checkpoint.load(studio / "judge")
    assert isinstance(network, VAE)
    asked = draw(network, card, 40, measured.SEED).labels
    assert asked is not None
    seen = []
    with torch.inference_mode():
        for place, label in enumerate(asked.tolist()):
            noise = latents(measured.SEED, place, 3)[None]
            pixels = network.decode(noise, torch.eye(3)[label][None])[0, 0].mul(255).round().to(torch.uint8)
            image = judge_card.preprocess(Image.fromarray(pixels.numpy()))[None]
            seen.append((judge.get_submodule("features")(image)[0], int(judge(image).argmax())))
        test = [judge_card.preprocess(picture) for picture in strokes(60, 2)[0]]
        real = judge.get_submodule("features")(torch.stack(test)).double().numpy()
    features = torch.stack([feature for feature, _ in seen]).double().numpy()
    item, other = np.cov(real.T), np.cov(features.T)
    crossed = np.sqrt(scipy.linalg.eigvals(item @ other).astype(complex)).real.sum()
    expected = ((real.mean(0) - features.mean(0)) ** 2).sum() + np.trace(item + other) - 2 * crossed
    assert result.frechet == pytest.approx(expected, rel=1e-3)
    read = np.array([label for _, label in seen])
    assert result.asked == pytest.approx((read == asked.numpy()).mean())
    assert result.shares == pytest.approx((np.bincount(read, minlength=3).min() / 40, np.bincount(read).max() / 40))
    pictures, labels = strokes(60, 2)
    batch = torch.stack([card.preprocess(picture) for picture in pictures[:5]])
    bounds = likelihood.bounds(network, batch, torch.eye(3)[labels[:5]], 64, measured.SEED)
    assert result.bounds == pytest.approx((float(bounds.elbo.mean()), float(bounds.importance_weighted.mean())))


def test_real_images_score_better_than_a_gaussian(studio: Path) -> None:
    save(studio / "sharp", "lenet5-relu", {"num_classes": 3}, task="classify", classes=CLASSES)
    (figures,) = measure([studio / "half"], "strokes", [studio / "sharp"], samples=60, held_out=1)
    (group,) = figures.groups
    assert group.floor.frechet < group.ceiling.frechet
    assert group.floor.frechet < group.generators[0].frechet
    assert group.floor.manifolds.recall > group.generators[0].manifolds.recall
    assert (group.test, group.held_out) == (60, 1)


def test_figures_depend_on_the_recognised_classes() -> None:
    draws = torch.Generator().manual_seed(0)
    classes = torch.arange(300) % 3
    features = 20 * torch.eye(3)[classes] + torch.randn(300, 3, generator=draws)
    reference = Reference(ExtractedFeatures(features, torch.eye(3)[classes].double()))
    asked = torch.full((300,), 2)
    halved = 20 * torch.eye(3)[classes] + torch.randn(300, 3, generator=draws) / 2
    result = reference.compare("x", ExtractedFeatures(halved, torch.eye(3)[classes].double()), asked)
    assert result.asked == pytest.approx(1 / 3)
    assert result.shares == pytest.approx((1 / 3, 1 / 3))
    assert result.inception == pytest.approx(3)
    assert result.spread.mean == pytest.approx(0.5, rel=0.1)
    one_each = reference.compare("y", ExtractedFeatures(halved[:3].repeat(100, 1), torch.eye(3)[classes].double()))
    assert (one_each.spread, one_each.manifolds.recall, one_each.asked) == ((0.0, 0.0), 0.0, None)


def test_gaussian_samples_have_the_pixel_moments(studio: Path) -> None:
    train = data.load("strokes", "train", SMALL)
    rows = np.arange(80)
    # Far from where bytes end, so that clipping takes nothing away.
    grey = data.ImageSet((train.images[:, 4:20:4, 4:20:4] // 4 + 90).astype(np.uint8), train.labels, train.classes)
    flat, reference = gaussian(grey, rows, 20_000, seed=3).reshape(20_000, -1), grey.images[:80].reshape(80, -1)
    assert np.abs(flat.mean(axis=0) - reference.mean(axis=0)).max() < 1
    covariance = np.cov(reference.T.astype(float))
    assert np.abs(np.cov(flat.T.astype(float)) - covariance).max() < 0.05 * covariance.max()


def test_sample_depends_only_on_seed_and_index(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, card = checkpoint.load(studio / "half")
    many = draw(network, card, 12, seed=5)
    monkeypatch.setattr(measured, "_ROWS_AT_ONCE", 5)
    assert np.abs(draw(network, card, 7, seed=5).pixels.astype(int) - many.pixels[:7]).max() <= 1
    assert many.labels is None
    assert (draw(network, card, 12, seed=6).pixels != many.pixels).any()


def test_labels_are_uniform_unless_given(studio: Path) -> None:
    network, card = checkpoint.load(studio / "labelled")
    labels = draw(network, card, 600, seed=5).labels
    assert labels is not None
    assert labels.bincount().min() > 150
    given = torch.tensor([2, 0])
    assert draw(network, card, 2, seed=5, labels=given).labels is given


def test_identities_are_split_as_for_training(folders: Path) -> None:
    rows = [(image, f"here:{row // 2}") for row, image in enumerate(strokes(120)[0])]
    write_identities(folders / "data/people/train.parquet", rows)
    real = RealImages.load("people", SMALL)
    train, test = ({real.train.labels[row] for row in rows} for rows in (real.train_rows, real.test_rows))
    assert train
    assert test
    assert not train & test
    assert len(real.training_sample(7)) == 7


def test_the_command_writes_a_page_sheets_and_cards(studio: Path, folders: Path) -> None:
    page = folders / "docs" / "generators.md"
    page.parent.mkdir()
    page.write_text("# Generators\n\nBy hand.\n")
    result = run(studio, "--held-out", "4", "--write", str(page.parent), "--cards")
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.startswith("# Generators\n\nBy hand.\n")
    assert "Frechet distance (judge features)" in text
    tables = [part for part in text.split("\n\n") if part.startswith("| images |")]
    assert [table.count("\n") for table in tables] == [4, 4]  # a head, a line, and three rows
    for name, (columns, lines, side) in {"labelled": (10, 3, 28), "half": (8, 8, 16)}.items():
        assert f"pictures/samples-{name}.png" in text
        with Image.open(page.parent / "pictures" / f"samples-{name}.png") as picture:
            scale = 600 // (columns * side)
            assert picture.size == (scale * (columns * (side + 2) - 2), scale * (lines * (side + 2) - 2))
    first = checkpoint.read_card(studio / "labelled")
    names = [metric.name for metric in first.metrics]
    assert {"frechet_distance", "precision", "recall", "asked", "elbo", "iwae_64"} <= set(names)
    assert "asked" not in {metric.name for metric in checkpoint.read_card(studio / "half").metrics}
    again = run(studio, "--held-out", "4", "--write", str(page.parent), "--cards")
    assert again.output == result.output
    assert page.read_text() == text
    assert checkpoint.read_card(studio / "labelled") == first


def test_only_vaes_have_bounds(studio: Path) -> None:
    save(studio / "plain", "autoencoder", TINY, task="reconstruct", preprocess=SMALL)
    result = run(studio, "--cards", names=("plain",))
    assert result.exit_code == 0, result.output
    assert "ELBO" not in result.output
    names = {metric.name for metric in checkpoint.read_card(studio / "plain").metrics}
    assert "frechet_distance" in names
    assert "elbo" not in names


def test_nothing_is_written_without_options(studio: Path) -> None:
    before = checkpoint.read_card(studio / "half")
    assert run(studio, "--held-out", "2", names=("half",)).exit_code == 0
    assert checkpoint.read_card(studio / "half") == before


def test_only_a_judge_of_the_same_classes_has_columns_of_classes(studio: Path) -> None:
    colour = Preprocess(size=(32, 32), mean=(127.5,) * 3, std=(127.5,) * 3)
    config = {"backbone": "resnet20", "backbone_config": {"widths": [4, 4, 4]}, "image_size": 32, "dimensions": 8}
    save(studio / "eye", "embedder", config, task="embed", preprocess=colour)
    save(studio / "other", "lenet5-relu", {"num_classes": 3}, task="classify", classes=("red", "black", "wood"))
    judges = [studio / name for name in ("judge", "eye", "other")]
    judged = measure([studio / "half"], "strokes", judges, samples=30, held_out=2)
    assert [figures.groups[0].generators[0].inception is None for figures in judged] == [False, True, True]
    (alone,) = measure([studio / "half"], "strokes", judges[1:2], samples=30, held_out=2)
    assert judged[1].groups == alone.groups
    table = markdown(judged)
    assert table.count("Frechet distance (eye features)") == 1
    assert table.count("Inception score") == table.count("shares of classes") == 1


def test_the_network_that_trained_a_generator_does_not_judge_it(studio: Path) -> None:
    save(studio / "other", "lenet5-relu", {"num_classes": 3}, task="classify", classes=CLASSES)
    config = {"in_channels": 1, "image_size": 28, "widths": [4, 4], "latent": 3}
    recipe = {"features": {"folder": "weights/judge", "taps": [0], "side": 28}}
    record = Training(recipe=recipe, seed=0, epochs=1, best_epoch=1, wall_time_s=1, hardware="", versions={})
    save(studio / "taught", "fastgan", config, task="generate", preprocess=SMALL, training=record)
    result = run(studio, "--judge", str(studio / "other"), "--cards", names=("labelled", "taught"))
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.startswith("|")]
    assert [sum(row.startswith(f"| {name} |") for row in rows) for name in ("labelled", "taught")] == [2, 1]
    judges = {metric.data.split(", ")[-1] for metric in checkpoint.read_card(studio / "taught").metrics}
    assert judges == {"other features"}
    assert "weights/taught" in result.output
    assert "samples-taught.png" in result.output


def test_non_generators_and_other_classes_are_refused(studio: Path) -> None:
    result = run(studio, names=("judge",))
    assert result.exit_code == 1
    assert "a network to classify is not a generator" in result.output
    other = ("red", "black", "wood")
    save(studio / "other", "lenet5-relu", {"num_classes": 3}, task="classify", classes=other)
    with pytest.raises(DataError, match="labelled has the classes"):
        measure([studio / "labelled"], "strokes", [studio / "other"], samples=5, held_out=1)


def test_contact_sheet_places_each_image(studio: Path) -> None:
    network, card = checkpoint.load(studio / "labelled")
    pixels = draw(network, card, 30, measured.SEED, torch.arange(3).repeat_interleave(10)).pixels
    shown = np.asarray(Image.open(io.BytesIO(draw_sheet(studio / "labelled"))))
    assert (shown[2 * 30 : 2 * 58 : 2, 2 * 60 : 2 * 88 : 2] == pixels[12, ..., 0]).all()
    colour = np.zeros((3, 4, 4, 3), np.uint8)
    assert Image.open(io.BytesIO(sheet(colour, 2))).size == (10, 10)
    with pytest.raises(ValueError, match="expected images"):
        sheet(pixels[..., 0], 5)


@pytest.mark.data
def test_evaluation_extractor_differs_from_the_monitor_and_is_accurate() -> None:
    weights = Path(__file__).parents[3] / "weights"
    judge, watcher = Extractor(weights / "judge-mnist").card, Extractor(weights / "lenet5-mnist").card
    assert judge.architecture != watcher.architecture
    assert judge.training
    assert watcher.training
    assert judge.training.seed != watcher.training.seed
    lines = {metric.name: metric.value for metric in judge.metrics if metric.data == "mnist test (10,000)"}
    assert lines["accuracy"] >= 0.994
    assert (weights / "judge-mnist" / checkpoint.WEIGHTS_FILE).stat().st_size <= 3_000_000
