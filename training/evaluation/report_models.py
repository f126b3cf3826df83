"""Write the cards of the shipped models into a page: `python -m training.evaluation.report_models docs/models.md`.

Shipped models are those that weights/LICENSES.md names; other models in the folder are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from models import checkpoint
from models.card import ModelCard
from training.core.errors import DataError, exit_on_error
from training.evaluation.markdown import put, table

cli = typer.Typer(add_completion=False)

PART = "models"  # the name of the page's generated part
_LICENCES = "LICENSES.md"


def shipped(weights: Path) -> list[Path]:
    """Return the existing folders of the models that the first column of the table in LICENSES.md names.

    Raises:
        DataError: if there is no LICENSES.md.
    """
    text = checkpoint.read_file(weights / _LICENCES, DataError).decode()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    names = sorted({name for row in rows for name in re.findall(r"`([^`]+)`", row)})
    return [weights / name for name in names if (weights / name / checkpoint.CARD_FILE).is_file()]


def markdown(weights: Path) -> str:
    """Return a table of the shipped models and a section for each.

    Raises:
        DataError: see `shipped`. CheckpointError: an invalid card.
    """
    rows, sections = [], []
    for folder in shipped(weights):
        card = checkpoint.read_card(folder)
        size = (folder / checkpoint.WEIGHTS_FILE).stat().st_size
        sides = "x".join(map(str, card.preprocess.size))
        shape = f"{'at most ' if card.preprocess.fit == 'within' else ''}{sides} {card.preprocess.mode}"
        rows.append((f"[{card.name}](#{card.name})", card.task, shape, f"{card.parameters:,}", f"{size / 1e6:.1f}"))
        sections.append(_section(card))
    heads = ("model", "task", "input", "parameters", "MB")
    return "\n\n".join([table(heads, rows), *sections])


def _section(card: ModelCard) -> str:
    lines = [f"- **Architecture**: `{card.architecture}`, weights `{card.version}`", f"- **Trained on**: {card.data}"]
    source = card.source
    if trained := card.training:
        source += (
            f"; epoch {trained.best_epoch} of {trained.epochs}, seed {trained.seed},"
            f" {trained.wall_time_s:,.0f} s on {trained.hardware}"
        )
    lines.append(f"- **Origin**: {source}")
    lines += [f"- **Measured**: {line}" for line in _figures(card)] or ["- **Measured**: not measured"]
    lines.append(f"- **Licence**: {card.license}")
    return "\n".join([f"## {card.name}", "", card.description, "", *lines])


def _figures(card: ModelCard) -> list[str]:
    """Return a line for each data set with the measured figures, and one with the reported ones."""
    lines: dict[tuple[str, str], list[str]] = {}
    for metric in card.metrics:
        figures = lines.setdefault((metric.data, metric.origin), [])
        figures.append(f"{metric.name} {metric.value:.4g}")
    return [
        f"{', '.join(figures)} on {data}{', as reported by its authors' if origin == 'reported' else ''}"
        for (data, origin), figures in lines.items()
    ]


@cli.command()
def main(
    page: Annotated[Path, typer.Argument(help="The page; text outside its markers is kept.")],
    weights: Annotated[Path, typer.Option(help="The weights folder.")] = Path("weights"),
) -> None:
    """Write the cards of the shipped models into a page."""
    with exit_on_error():
        put(page, PART, markdown(weights), heading="Included models")


if __name__ == "__main__":
    cli()
