"""What commands say on a terminal: lines, a bar, and what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer


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
