"""Networks of many sizes of latents: they differ in nothing else, and the way from runs to a page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState  # type: ignore[import-untyped]
from PIL import Image
from typer.testing import CliRunner

from benchmarks import tables
from benchmarks.experiments import compression
from benchmarks.experiments.compression import KINDS, LATENTS, Cell, Yardstick, cells, measure, samples
from models.generative import latents
from models.vae import VAE, VAEConfig
from tests.training.conftest import CLASSES, png, save, strokes, write_parquet
from training.metrics.reconstruction import psnr

SMALL = """
name = "strokes"
description = "Strokes"

[model]
architecture = "autoencoder"

[model.config]
widths = [4, 4]
hidden = 0

[[data]]
name = "strokes"
validation = 30

[preprocess]
mode = "L"
size = [28, 28]
mean = [0]
std = [255]

[train]
epochs = 1
batch_size = 20
optimizer = "adamw"
lr = 0.003
warmup_epochs = 0.5

[card]
data = "strokes"
source = "a test"
license = "Apache-2.0"
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders for data sets and for runs, `data` and `runs`."""
    monkeypatch.setenv("VESTIBULE_DATASETS", str(tmp_path / "data"))
    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def desk(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set and its recipe, one size of latents, an untrained judge."""
    for split, count, seed in (("train", 90, 1), ("test", 20, 2)):
        pictures, labels = strokes(count, seed)
        write_parquet(folders / f"data/strokes/{split}.parquet", [png(p) for p in pictures], labels)
    (folders / "recipe.toml").write_text(SMALL)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    settings = {"RECIPE": "recipe.toml", "RESULTS": "x.csv", "PAGE": "docs/x.md", "PICTURES": "docs/pictures"}
    for name, path in settings.items():
        monkeypatch.setattr(compression, name, folders / path)
    monkeypatch.setattr(compression, "LATENTS", (4,))
    monkeypatch.setattr(compression, "SHOWN", (4,))
    monkeypatch.setattr(compression, "EPOCHS", 1)
    save(folders / "judge", "lenet5-relu", {"num_classes": 3}, task="classify", classes=CLASSES)
    return folders


def test_cells_differ_in_kind_and_latent_alone() -> None:
    assert {(cell.kind, cell.latent) for cell in cells()} == {(kind, latent) for kind in KINDS for latent in LATENTS}
    recipes = [cell.recipe for cell in cells()]
    assert len({recipe.name for recipe in recipes}) == len(recipes)
    for cell, recipe in zip(cells(), recipes, strict=True):
        assert recipe.model.architecture == cell.kind
        assert recipe.model.config["latent"] == cell.latent
        assert (recipe.data, recipe.train, recipe.seed) == (recipes[0].data, recipes[0].train, recipes[0].seed)
        assert recipe.model.config | {"latent": 0} == recipes[0].model.config | {"latent": 0}


def test_from_nothing_to_a_page_and_no_run_twice(desk: Path) -> None:
    arguments = ["run", "--judge", str(desk / "judge")]
    done = CliRunner().invoke(compression.cli, arguments)
    assert done.exit_code == 0, done.output
    rows = tables.read(compression.RESULTS)
    assert [(row["kind"], row["latent"]) for row in rows] == [(c.kind, str(c.latent)) for c in cells()]
    assert [bool(row["elbo"]) for row in rows] == [False, True]
    times = [(cell.folder / "last.pt").stat().st_mtime_ns for cell in cells()]
    assert CliRunner().invoke(compression.cli, arguments).output == done.output
    assert [(cell.folder / "last.pt").stat().st_mtime_ns for cell in cells()] == times
    assert tables.read(compression.RESULTS) == rows
    shown = CliRunner().invoke(compression.cli, ["report"])
    assert shown.exit_code == 0, shown.output
    assert "| vae | 4 |" in compression.PAGE.read_text()
    pictures = {path.name for path in compression.PICTURES.iterdir()}
    assert pictures == {"compression-psnr.png", "compression-frechet.png", "compression-samples.png"}
    _check_samples()
    _check_figures(desk, rows)


def _check_samples() -> None:
    sheet = np.asarray(Image.open(compression.PICTURES / "compression-samples.png"))
    assert sheet.shape == (2 * (2 * 30 - 2), 2 * (compression.ACROSS * 30 - 2))
    network, _ = Cell("vae", 4).load()
    with torch.inference_mode():
        drawn = network.decode(latents(compression.SEED, 1, 4)[None], torch.zeros(1, 0))[0, 0]
    assert np.abs(sheet[60:116:2, 60:116:2].astype(int) - (drawn * 255).round().numpy()).max() <= 1


def _check_figures(desk: Path, rows: list[dict[str, str]]) -> None:
    network, card = Cell("vae", 4).load()
    assert isinstance(network, VAE)
    yardstick = Yardstick.of(card, desk / "judge")
    with torch.inference_mode():
        restored = network.decode(network.posterior(yardstick.test, torch.zeros(20, 0))[0], torch.zeros(20, 0))
    assert rows[-1]["psnr"] == f"{float(psnr(restored, yardstick.test).mean()):.3f}"
    assert rows[-1] == {key: str(value) for key, value in measure(Cell("vae", 4), yardstick).items()}


def test_fitted_latents_have_the_moments_of_the_codes() -> None:
    """Through a decoder that shows its latents as they are, one pixel each."""

    class Glass(VAE):
        def embed(self, pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return pictures.flatten(1)[:, :3]

        def decode(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return latents[:, :, None, None]

    glass = Glass(VAEConfig(image_size=8, latent=3, widths=(4,), hidden=0))
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])  # the last is not used
    codes = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) @ mixing.T + 7
    drawn = samples(glass, 5000, codes[:, :, None, None]).flatten(1)
    assert (drawn.mean(dim=0) - codes.mean(dim=0)).abs().max() < 0.15
    assert (torch.cov(drawn.T) - torch.cov(codes.T)).abs().max() < 0.3
    plain = samples(glass, 5000, None).flatten(1)
    assert (torch.cov(plain.T) - torch.eye(3)).abs().max() < 0.1


def test_a_run_that_fails_says_why(desk: Path) -> None:
    (desk / "data/strokes/train.parquet").write_bytes(b"not parquet")
    result = CliRunner().invoke(compression.cli, ["run"])
    assert result.exit_code == 1
    assert "error: " in result.output
    assert "train.parquet" in result.output
    assert not compression.RESULTS.exists()


def test_the_plot_shows_both_kinds() -> None:
    rows = [
        {"kind": kind, "latent": str(latent), "psnr": str(10 + place + latent / 10)}
        for place, kind in enumerate(KINDS)
        for latent in LATENTS
    ]
    both = np.asarray(Image.open(io.BytesIO(compression.draw(rows, "psnr", "title", "dB"))).convert("RGB"))
    lines = [(both == colour).all(axis=2) for colour in ((0x40, 0x65, 0x8F), (0xB5, 0x56, 0x3C))]
    assert all(line.any(axis=0).sum() > 800 for line in lines)  # from one side to the other
    heights = [np.argwhere(line[:, :600]).mean(axis=0)[0] for line in lines]
    assert heights[0] > heights[1]  # rows count from above
