"""What commands say on a terminal: lines, a bar, and what went wrong."""

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


def put(line: str) -> None:
    """One line on standard output, at once."""
    # By this name each time: a bar takes its place while both are seen in one terminal.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def plain(text: str) -> str:
    """Without what would move a terminal's cursor or colour it: names of files and classes may hold anything."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def fail(message: str) -> NoReturn:
    """Say what went wrong, and end with 1."""
    typer.echo(f"vestibule: {message}", err=True)
    raise typer.Exit(1)


def invalid(error: ValidationError) -> NoReturn:
    """Print one line that names the variable of each invalid setting, and end with 1."""
    fail("; ".join(_explained(detail["loc"], detail["msg"]) for detail in error.errors()))


def _explained(location: tuple[int | str, ...], message: str) -> str:
    from app.settings import variable

    text = " ".join(message.removeprefix("Value error, ").split())
    return f"{variable(str(location[0]))}: {text}" if location else text


def read_settings(**given: object) -> Settings:
    """The settings from the environment; those that are given and not None take precedence. Ends with 1 if invalid."""
    from app.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        invalid(error)


def state_of(settings: Settings, *, new: bool) -> Path:
    """The state folder, prepared for a command that works on its files; `new`: create it if it is missing.

    Raises:
        ConfigurationError: it cannot be written.
    """
    from app.server import state_folder

    if warning := state_folder.prepare(settings.state, create=new):
        typer.echo(f"vestibule: warning: {warning}", err=True)
    return settings.state


@contextmanager
def failing(ledger: str) -> Iterator[None]:
    """Print an error about the state folder or its files as one line, and end with 1; `ledger` names the database."""
    import apsw

    from app.settings import ConfigurationError
    from index.errors import GalleryError

    try:
        yield
    except apsw.Error as error:
        fail(f"{ledger}: {error}")
    except (ConfigurationError, GalleryError, OSError) as error:
        fail(str(error))


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error while somebody looks at it; what is called moves it on."""
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
        yield lambda: bar.advance(task)
