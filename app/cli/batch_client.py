"""Pictures asked about, many at once: several requests under way, the answers in the order of the pictures."""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from app.cli.terminal import fail, plain, progress, put

if TYPE_CHECKING:
    from vestibule_client import AsyncClient, Retries
    from vestibule_client.answers import Answer, Answers

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})

A = TypeVar("A")
B = TypeVar("B")

MOST_SKIPPED = 100  # skipped files that are named one by one
LONGEST_NAME = 60  # characters of a file's name in a table; longer ones push the rest of their line to the right


@dataclass(frozen=True)
class Source:
    """A picture's file; `below` is its path below the folder that was named, or its name where it was named itself."""

    path: Path
    below: Path


@dataclass(frozen=True)
class Answered:
    """What is said of one picture. `record` is for programs; without an `item` it failed, and `why` says why."""

    record: dict[str, Any]
    item: Answer | None = None
    why: str = ""


def sources(paths: Iterable[Path], skipped: list[Path]) -> Iterator[Source]:
    """The files named, and the pictures in the folders named and in those below, by name; no hidden ones.

    Files in folders whose suffix is not that of a picture are appended to `skipped`.

    Raises:
        OSError: a folder that cannot be read.
    """
    for path in paths:
        if not path.is_dir():
            yield Source(path, Path(path.name))
            continue
        for folder, below, files in os.walk(path, onerror=_raise):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(files):
                found = Path(folder, name)
                if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                    yield Source(found, found.relative_to(path))
                elif not name.startswith("."):
                    skipped.append(found)


def _raise(error: OSError) -> None:
    raise error


async def in_order(items: Iterable[A], ask: Callable[[A], Awaitable[B]], most: int) -> AsyncGenerator[tuple[A, B]]:
    """Each item with its answer, in the order of items, with at most `most` asked at a time.

    What `ask` raises is raised here, and the others that are under way are let go of.
    """
    waiting: deque[tuple[A, asyncio.Task[B]]] = deque()
    try:
        for item in items:
            if len(waiting) == most:
                first, task = waiting.popleft()
                yield first, await task
            waiting.append((item, asyncio.ensure_future(ask(item))))
        while waiting:
            first, task = waiting.popleft()
            yield first, await task
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)


async def answered(ask: Callable[[Source], Awaitable[Answers[Any]]], source: Source) -> Answered:
    """What the service says of one picture. A picture that fails costs its neighbours nothing.

    Raises:
        VestibuleError: it would be said of every other picture, too.
    """
    import vestibule_client as vestibule

    of_all = (
        vestibule.Unreachable,
        vestibule.UnexpectedAnswer,
        vestibule.Unauthorized,
        vestibule.Forbidden,
        vestibule.NotFound,
        vestibule.Conflict,
        vestibule.UnknownModel,
    )
    name = {"file": str(source.path)}
    try:
        answer = await ask(source)
        item = answer.first
    except of_all:
        raise
    except vestibule.Problem as error:
        problem = {"type": error.type, "title": error.title, "status": error.status, "detail": error.detail}
        return Answered({**name, "problem": problem}, why=str(error))
    except (vestibule.VestibuleError, OSError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return Answered({**name, "problem": {"title": why}}, why=why)
    whole = answer.model_dump(mode="json", by_alias=True, exclude={"data"})
    return Answered(
        {**name, **whole, **item.model_dump(mode="json", by_alias=True, exclude={"index", "b64_json"})}, item
    )


@dataclass(frozen=True)
class Asking:
    """Whom, and how."""

    url: str | None
    api_key: str | None
    as_json: bool = False
    jobs: int = 1


@dataclass(frozen=True)
class Question:
    """What is asked about each picture, how the answer is told to people, and what programs are told besides."""

    ask: Callable[[AsyncClient, Source], Awaitable[Answers[Any]]]
    told: Callable[[Source, Any], str]
    added: Callable[[Source], dict[str, Any]] = lambda _: {}


def ask_each(files: list[Path], question: Question, asking: Asking) -> None:
    """Ask about every picture, print a line for each, and end with 1 if one failed."""
    with failing():
        skipped: list[Path] = []
        found = list(sources(files, skipped))
        _report_skipped(skipped)
        if not found:
            fail("there is no picture in there")
        failed = asyncio.run(_answer_all(found, question, asking))
    if failed:
        fail(f"{failed} of {len(found)} failed")


def _report_skipped(skipped: list[Path]) -> None:
    """Name on standard error the files that are not asked about; of very many the first ones."""
    accepted = " ".join(sorted(SUFFIXES))
    for path in skipped[:MOST_SKIPPED]:
        typer.echo(f"vestibule: skipped {plain(str(path))}: its suffix is none of {accepted}", err=True)
    if (more := len(skipped) - MOST_SKIPPED) > 0:
        typer.echo(f"vestibule: skipped {more} more files", err=True)


async def _answer_all(found: list[Source], question: Question, asking: Asking) -> int:
    """How many failed."""
    from vestibule_client import AsyncClient

    failed = 0
    width = min(LONGEST_NAME, max(len(str(source.path)) for source in found))
    async with AsyncClient(asking.url, api_key=asking.api_key, retries=patient()) as client:
        ask = partial(answered, partial(question.ask, client))
        with progress(len(found)) as advance:
            async with aclosing(in_order(found, ask, asking.jobs)) as answers:
                async for source, answer in answers:
                    failed += answer.item is None
                    put(_line(question, source, answer) if asking.as_json else _row(question, source, answer, width))
                    advance()
    return failed


def _line(question: Question, source: Source, answer: Answered) -> str:
    return json.dumps(answer.record if answer.item is None else answer.record | question.added(source))


def _row(question: Question, source: Source, answer: Answered, width: int) -> str:
    text = f"failed: {answer.why}" if answer.item is None else question.told(source, answer.item)
    return f"{plain(str(source.path)):{width}}  {plain(text)}"


@contextmanager
def failing() -> Iterator[None]:
    """What went wrong is one line, not a traceback."""
    from vestibule_client import Unreachable, VestibuleError

    try:
        yield
    except Unreachable as error:
        fail(f"{error}; is it running? `vestibule serve`")
    except BrokenPipeError:
        raise
    except (VestibuleError, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))


def patient() -> Retries:
    """Who sends many pictures meets a busy service, and has time."""
    from vestibule_client import Retries

    return Retries(times=8, longest_s=120)
