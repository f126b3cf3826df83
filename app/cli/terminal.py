"""Output of the commands on a terminal, their settings, and errors printed as one line."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from pydantic import ValidationError

if TYPE_CHECKING:
    from app.settings import Settings


def replace_unencodable() -> None:
    """Print `?` for characters that standard output and standard error cannot encode, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def print_line(line: str) -> None:
    """Print one line on standard output and flush it."""
    # Looked up on each call: a progress bar replaces sys.stdout while both are on one terminal.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def replace_unprintable(text: str) -> str:
    """Replace unprintable characters, which could move the cursor or change colours: file names may contain any."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def fail(message: str) -> NoReturn:
    """Print an error and exit with status 1."""
    typer.echo(f"vestibule: {message}", err=True)
    raise typer.Exit(1)


def read_settings(**options: object) -> Settings:
    """Return the settings from the environment, overridden by the options that are not None.

    If any are invalid, print one line that names the variable of each, and exit with status 1.
    """
    from app.settings import Settings, variable

    def describe(location: tuple[int | str, ...], message: str) -> str:
        text = " ".join(message.removeprefix("Value error, ").split())
        return f"{variable(str(location[0]))}: {text}" if location else text

    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        fail("; ".join(describe(detail["loc"], detail["msg"]) for detail in error.errors()))


def prepare_state_folder(settings: Settings, *, new: bool) -> Path:
    """Return the state folder, ready for a command that works on its files; `new`: create it if it is missing.

    Raises:
        ConfigurationError: it cannot be written.
    """
    from app.server import state_folder

    if warning := state_folder.prepare(settings.state, create=new):
        typer.echo(f"vestibule: warning: {warning}", err=True)
    return settings.state


@contextmanager
def report_state_errors() -> Iterator[None]:
    """Print an error about the state folder or its files as one line, and exit with status 1."""
    from app.settings import ConfigurationError
    from index.errors import GalleryError

    try:
        yield
    except (ConfigurationError, GalleryError, OSError) as error:
        fail(str(error))


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if standard error is a terminal; yield a function that sets how many steps are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
