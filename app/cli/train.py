"""`vestibule train DIR`: from a folder of photos to a model, by commands of `training` in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from app.cli.terminal import fail, progress_bar, read_settings

train_cli = typer.Typer()

# Packages of the extra `train` that a classifier needs.
_PACKAGES = ("training", "accelerate", "matplotlib", "tensorboard", "tomli_w", "tqdm")
_START = "efficientnet-lite0"  # the model whose features training starts from
_NEXT = "next: python -m training.classify "  # before the recipe's path, in the output of training.prepare_pictures
_STEPS = 3  # beside the epochs: prepare, measure, install
_POLL_S = 0.5
_ERROR_LINES = 3  # of a command that failed


@train_cli.command()
def train(
    folder: Annotated[
        Path,
        typer.Argument(exists=True, file_okay=False, help="The photos: DIR/<class>/*.jpg.", show_default=False),
    ],
    *,
    name: Annotated[
        str | None, typer.Option(help="The model's name; by default that of the folder.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the recipe, as train.epochs=20; repeatable.", show_default=False),
    ] = None,
) -> None:
    """Train a classifier on a folder of photos, measure it, and put it into the weights folder."""
    from models.network_import import model_name

    if missing := [package for package in _PACKAGES if importlib.util.find_spec(package) is None]:
        fail(f"training is not installed ({missing[0]} is missing): pip install 'vestibule[train]'")
    weights = read_settings().weights
    chosen = name or model_name(folder.resolve().name)
    if (weights / chosen).exists():
        fail(f"{weights / chosen} exists already: delete it, or choose another --name")
    if not (weights / _START).is_dir():
        fail(f"training starts from {_START}, which is not in {weights}: vestibule import package:{_START}")
    lines = _run(["training.prepare_pictures", str(folder), "--name", chosen])
    recipe = Path(lines[-1].removeprefix(_NEXT))
    settings = [f"model.start={weights / _START}", *(overrides or [])]
    options = [part for setting in settings for part in ("--set", setting)]
    run = Path(os.environ.get("VESTIBULE_RUNS") or "runs") / chosen
    model = run / "export" / chosen
    with progress_bar(_epochs(recipe, settings) + _STEPS) as show_progress:
        show_progress(1)
        _run(["training.classify", str(recipe), *options], lambda: show_progress(1 + _finished_epochs(run)))
        measured = _run(["training.evaluate", "classify", str(model), "--data", chosen, "--write"])
        _install(model, weights)
    typer.echo("\n".join([*lines[:-1], *measured]))
    typer.echo(f"{chosen} is in {weights / chosen}; POST /models/{chosen}/reload loads it into a running service")


def _run(command: Sequence[str], on_poll: Callable[[], None] = lambda: None) -> list[str]:
    """Run a module with its arguments and return the lines of its output; calls `on_poll` while it runs.

    If it fails, print the end of its error output and exit.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=errors)  # noqa: S603
        try:
            while process.poll() is None:
                on_poll()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:
            process.terminate()  # after Ctrl-C; without effect on a process that has ended
            process.wait()
        for file in (output, errors):
            file.seek(0)
        if process.returncode:
            text = " ".join(errors.read().strip().splitlines()[-_ERROR_LINES:])
            fail(f"{text or 'it failed'} (python -m {' '.join(command)})")
        return output.read().splitlines()


def _epochs(recipe: Path, settings: Sequence[str]) -> int:
    """Return the number of epochs of a recipe with these settings."""
    content = tomllib.loads(recipe.read_text(encoding="utf-8"))
    own = [int(value) for key, _, value in (setting.partition("=") for setting in settings) if key == "train.epochs"]
    return own[-1] if own else int(content["train"]["epochs"])


def _finished_epochs(run: Path) -> int:
    """Return the number of epochs that a run has finished."""
    try:
        return len(json.loads((run / "history.json").read_bytes()))
    except FileNotFoundError:
        return 0


def _install(model: Path, weights: Path) -> None:
    """Copy a model into the weights folder, completely or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{model.name}.", dir=weights))
    try:
        shutil.copytree(model, temporary / model.name)
        (temporary / model.name).rename(weights / model.name)
    finally:
        shutil.rmtree(temporary)
