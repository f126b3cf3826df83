"""How few numbers hold a digit, by an autoencoder and by a variational one: what docs/compression.md shows.

    python -m benchmarks.experiments.compression run       train missing runs, measure them, write the CSV
    python -m benchmarks.experiments.compression report    write docs/compression.md, its plots and samples

Both kinds are runs of `training.autoencode` by training/recipes/ae-mnist.toml with overrides: the same encoder (but for
the variational one's second output), decoder, epochs and seed. A run that has ended is left alone, any other begins
anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks import tables
from benchmarks.experiments.runs import card_made_by
from models import checkpoint
from models.autoencoder import Autoencoder
from models.card import ModelCard
from models.checkpoint import write_atomically
from models.generative import latents
from models.vae import VAE
from training.autoencode import setup
from training.core.errors import TrainingError
from training.core.export import begin, export
from training.core.trainer import fit
from training.datasets import images as data
from training.evaluation import markdown as pages
from training.evaluation.plots import COLOURS, blank, png
from training.metrics import likelihood
from training.metrics.contact_sheet import sheet
from training.metrics.distribution import Moments, frechet_distance, moments
from training.metrics.feature_extractor import Extractor
from training.metrics.reconstruction import psnr
from training.recipe.config import read_recipe, runs_folder
from training.recipe.generative_config import AutoencodeRecipe

RECIPE = Path("training/recipes/ae-mnist.toml")
RESULTS = Path("benchmarks/results/compression.csv")
PAGE = Path("docs/compression.md")
PICTURES = Path("docs/pictures")

EPOCHS, SEED = 3, 0
LATENTS = (2, 4, 8, 16, 32, 64)
SHOWN, ACROSS = (2, 8, 32), 16  # latents that samples are shown of, and how many
CODES = 10_000  # training pictures that the normal distribution of the latents is fitted to
_ROWS_AT_ONCE = 500

Kind = Literal["autoencoder", "vae"]
KINDS: tuple[Kind, ...] = ("autoencoder", "vae")
VARIATIONAL = ("model.architecture='vae'", "loss.beta=1.0", "loss.beta_epochs=1")
FIGURES = ("psnr", "elbo", "frechet_prior", "frechet_fitted")
COLUMNS = ("kind", "latent", "epochs", "parameters", *FIGURES, "minutes")

cli = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@dataclass(frozen=True)
class Cell:
    """One network."""

    kind: Kind
    latent: int

    @property
    def name(self) -> str:
        """Of the run's folder and of the exported network."""
        return f"compression-{self.kind}-{self.latent}"

    @property
    def changes(self) -> list[str]:
        """To the recipe."""
        kind = VARIATIONAL if self.kind == "vae" else ()
        return [f"name='{self.name}'", f"model.config.latent={self.latent}", f"train.epochs={EPOCHS}", *kind]

    @property
    def recipe(self) -> AutoencodeRecipe:
        """The common recipe with the cell's overrides."""
        return read_recipe(AutoencodeRecipe, RECIPE, self.changes)

    @property
    def folder(self) -> Path:
        """The run's."""
        return runs_folder() / self.name

    def card(self) -> ModelCard | None:
        """Of the network that this very recipe made; None while there is none."""
        return card_made_by(self.recipe, self.folder)

    def load(self) -> tuple[Autoencoder | VAE, ModelCard]:
        """The network that the run exported."""
        network, card = checkpoint.load(self.folder / "export" / self.name)
        assert isinstance(network, Autoencoder | VAE)
        return network, card


def cells() -> list[Cell]:
    """Every one, small latents first, the two kinds in turn."""
    return [Cell(kind, latent) for latent in LATENTS for kind in KINDS]


def train(cell: Cell) -> None:
    """Train unless it is done.

    Raises:
        TrainingError: see `training.autoencode`.
    """
    if cell.card():
        return
    task, run = begin(setup, cell.recipe, overwrite=True)
    export(task, run, fit(task, run, cell.recipe.train, cell.recipe.seed))


@dataclass(frozen=True)
class Yardstick:
    """Test pictures [N, C, H, W] in 0..1, training pictures to fit to, and what the extractor sees in the test ones."""

    test: Tensor
    training: Tensor
    extractor: Extractor
    truth: Moments

    @classmethod
    def of(cls, card: ModelCard, judge: Path) -> Yardstick:
        """For networks of that card's preprocessing."""
        extractor, dataset = Extractor(judge), Cell("autoencoder", LATENTS[0]).recipe.data[0].name
        test, training = (np.array(data.load(dataset, split, card.preprocess).images) for split in ("test", "train"))
        shown, fitted = (card.preprocess.normalise(torch.from_numpy(part)) for part in (test, training[:CODES]))
        return cls(shown, fitted, extractor, moments(extractor(test).features))


@torch.inference_mode()
def measure(cell: Cell, yardstick: Yardstick) -> dict[str, object]:
    """A row of the CSV."""
    network, card = cell.load()
    assert card.training is not None
    test = yardstick.test
    restored = _decode(network, _embed(network, test))
    bound = likelihood.bounds(network, test, _no_labels(test), samples=1) if isinstance(network, VAE) else None
    distances = []
    for fitted in (False, True):
        drawn = card.preprocess.denormalise(samples(network, len(test), yardstick.training if fitted else None))
        distances.append(frechet_distance(yardstick.truth, moments(yardstick.extractor(drawn.numpy()).features)))
    return {
        "kind": cell.kind,
        "latent": cell.latent,
        "epochs": EPOCHS,
        "parameters": card.parameters,
        "psnr": f"{float(psnr(restored, test).mean()):.3f}",
        "elbo": "" if bound is None else f"{float(bound.elbo.mean()):.2f}",
        "frechet_prior": f"{distances[0]:.4g}",
        "frechet_fitted": f"{distances[1]:.4g}",
        "minutes": f"{card.training.wall_time_s / 60:.1f}",
    }


def samples(network: Autoencoder | VAE, count: int, fit: Tensor | None) -> Tensor:
    """Pictures [count, C, H, W] of latents from N(0, I); with `fit` from the normal distribution of its latents."""
    noise = torch.stack([latents(SEED, place, network.config.latent) for place in range(count)])
    if fit is not None:
        codes = moments(_embed(network, fit))
        ridge = 1e-9 * codes.covariance.diagonal().mean() * torch.eye(len(codes.mean), dtype=torch.float64)
        root = torch.linalg.cholesky(codes.covariance + ridge)  # the ridge for latents that a VAE does not use
        noise = (codes.mean + noise.double() @ root.T).float()
    return _decode(network, noise)


def _no_labels(batch: Tensor) -> Tensor:
    return batch.new_zeros(len(batch), 0)


def _embed(network: Autoencoder | VAE, pictures: Tensor) -> Tensor:
    return torch.cat([network.embed(part, _no_labels(part)) for part in torch.split(pictures, _ROWS_AT_ONCE)])


def _decode(network: Autoencoder | VAE, codes: Tensor) -> Tensor:
    return torch.cat([network.decode(part, _no_labels(part)) for part in torch.split(codes, _ROWS_AT_ONCE)])


@cli.command()
def run(
    judge: Annotated[Path, typer.Option(help="Whose features the Frechet distance is of.")] = Path(
        "weights/judge-mnist"
    ),
) -> None:
    """Train what is not trained yet, measure all, write the CSV."""
    try:
        for cell in cells():
            train(cell)
            typer.echo(cell.name)
        yardstick = Yardstick.of(cells()[0].load()[1], judge)
        tables.write(RESULTS, COLUMNS, [measure(cell, yardstick) for cell in cells()])
    except (TrainingError, checkpoint.CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def draw(rows: Sequence[dict[str, str]], figure: str, title: str, unit: str) -> bytes:
    """A PNG: a figure over the size of the latent, a colour for each kind."""
    drawing, axes = blank(title, f"MNIST test, {EPOCHS} epochs each", "numbers in the latent", unit)
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        mine = [row for row in rows if row["kind"] == kind]
        places, values = [int(row["latent"]) for row in mine], [float(row[figure]) for row in mine]
        axes.plot(places, values, "o-", color=colour, linewidth=1.8, label=kind)
    axes.set_xscale("log", base=2)
    axes.set_xticks(LATENTS, [str(latent) for latent in LATENTS])
    axes.legend(frameon=False)
    return png(drawing)


def draw_samples() -> bytes:
    """A PNG: for each latent in `SHOWN` a row of the autoencoder and one of the VAE, the same latents from N(0, I)."""
    rows = []
    with torch.inference_mode():
        for latent in SHOWN:
            for kind in KINDS:
                network, card = Cell(kind, latent).load()
                rows.append(card.preprocess.denormalise(samples(network, ACROSS, None)).numpy())
    return sheet(np.concatenate(rows), ACROSS, scale=2)


def table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown, as the CSV."""
    heads = ["kind", "latent", "PSNR, dB", "ELBO, nats", "Frechet, N(0, I)", "Frechet, fitted normal", "minutes"]
    keys = ("kind", "latent", *FIGURES, "minutes")
    return pages.table(heads, [[row[key] for key in keys] for row in rows])


@cli.command()
def report() -> None:
    """Rewrite the table, redraw the plots and the samples."""
    rows = tables.read(RESULTS)
    plots = {
        "psnr": ("How much of a digit a latent keeps", "PSNR, dB"),
        "frechet_prior": ("How much a sample of N(0, I) looks like a digit", "Frechet distance to the test pictures"),
    }
    for figure, (title, unit) in plots.items():
        write_atomically(PICTURES / f"compression-{figure.partition('_')[0]}.png", draw(rows, figure, title, unit))
    write_atomically(PICTURES / "compression-samples.png", draw_samples())
    pages.put(PAGE, "compression", table(rows), heading="Compression")


if __name__ == "__main__":
    cli()
