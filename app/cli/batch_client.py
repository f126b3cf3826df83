"""Send many image files to the service: several requests at a time, results in the order of the files."""

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

from app.cli.terminal import fail, print_line, progress_bar, replace_unprintable

if TYPE_CHECKING:
    from vestibule_client import AsyncClient, Retries
    from vestibule_client.answers import Answers

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})

T = TypeVar("T")
R = TypeVar("R")

MOST_SKIPPED = 100  # skipped files that are named one by one
LONGEST_NAME = 60  # width of the column of file names; longer names push the rest of their line to the right


@dataclass(frozen=True)
class ImageFile:
    """An image file; `relative` is its path below the folder given on the command line, or its bare name."""

    path: Path
    relative: Path


@dataclass(frozen=True)
class ImageResult:
    """The result for one file, as JSON and as text."""

    record: dict[str, Any]
    text: str
    failed: bool = False


@dataclass(frozen=True)
class ImageCommand:
    """`send` requests one result, `describe` formats it as text, `extra_fields` adds fields to its JSON."""

    send: Callable[[AsyncClient, ImageFile], Awaitable[Answers[Any]]]
    describe: Callable[[ImageFile, Any], str]
    extra_fields: Callable[[ImageFile], dict[str, Any]] = lambda _: {}


def find_images(paths: Iterable[Path], skipped: list[Path]) -> Iterator[ImageFile]:
    """Yield the given files, and the images in the given folders and their subfolders by name; no hidden ones.

    Files in folders without an image's suffix are appended to `skipped`.

    Raises:
        OSError: if a folder cannot be read.
    """
    for path in paths:
        if not path.is_dir():
            yield ImageFile(path, Path(path.name))
            continue
        for folder, subfolders, files in os.walk(path, onerror=_raise):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                file = Path(folder, name)
                if file.suffix.lower() in SUFFIXES:
                    yield ImageFile(file, file.relative_to(path))
                else:
                    skipped.append(file)


def _raise(error: OSError) -> None:
    raise error


async def map_in_order(
    items: Iterable[T], function: Callable[[T], Awaitable[R]], most: int
) -> AsyncGenerator[tuple[T, R]]:
    """Yield each item with the result of `function`, in the order of items, running at most `most` calls at a time.

    An exception of `function` is raised here, and the calls still running are cancelled.
    """
    running: deque[tuple[T, asyncio.Task[R]]] = deque()
    try:
        for item in items:
            if len(running) == most:
                first, task = running.popleft()
                yield first, await task
            running.append((item, asyncio.ensure_future(function(item))))
        while running:
            first, task = running.popleft()
            yield first, await task
    finally:
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)


async def request_result(command: ImageCommand, client: AsyncClient, image: ImageFile) -> ImageResult:
    """Return the service's result for one image; an error that concerns only this image becomes part of the result.

    Raises:
        VestibuleError: if the error would also occur for every other image.
    """

    async def request() -> tuple[Answers[Any], Any]:
        answer = await command.send(client, image)
        return answer, answer.first

    outcome = await answer_or_problem(image, request())
    if isinstance(outcome, ImageResult):
        return outcome
    answer, item = outcome
    common = answer.model_dump(mode="json", by_alias=True, exclude={"data"})
    fields = item.model_dump(mode="json", by_alias=True, exclude={"index", "b64_json"})
    record = {"file": str(image.path), **common, **fields, **command.extra_fields(image)}
    return ImageResult(record, command.describe(image, item))


async def answer_or_problem(image: ImageFile, request: Awaitable[T]) -> T | ImageResult:
    """Return the answer of a request about one image, or the result for an error that concerns only this image.

    Raises:
        VestibuleError: if the error would also occur for every other image.
    """
    import vestibule_client as vestibule

    name = {"file": str(image.path)}
    try:
        return await request
    except (
        vestibule.Unreachable,
        vestibule.UnexpectedAnswer,
        vestibule.Unauthorized,
        vestibule.Forbidden,
        vestibule.NotFound,
        vestibule.Conflict,
        vestibule.UnknownModel,
    ):
        raise
    except vestibule.Problem as error:
        problem = {"type": error.type, "title": error.title, "status": error.status, "detail": error.detail}
        return ImageResult({**name, "problem": problem}, f"failed: {error}", failed=True)
    except (vestibule.VestibuleError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return ImageResult({**name, "problem": {"title": reason}}, f"failed: {reason}", failed=True)


def run_command(
    files: list[Path], command: ImageCommand, url: str | None, api_key: str | None, *, as_json: bool, jobs: int
) -> None:
    """Send every image, `jobs` at a time, print a line for each, and exit with status 1 if one failed."""
    with report_client_errors():
        skipped: list[Path] = []
        images = list(find_images(files, skipped))
        report_skipped(skipped)
        if not images:
            fail("no images found in the given folders")
        failed = asyncio.run(_print_results(images, command, url, api_key, as_json=as_json, jobs=jobs))
    if failed:
        fail(f"{failed} of {len(images)} failed")


def report_skipped(skipped: list[Path]) -> None:
    """Name the skipped files on standard error: the first MOST_SKIPPED of them, and the number of the rest."""
    accepted = " ".join(sorted(SUFFIXES))
    for path in skipped[:MOST_SKIPPED]:
        typer.echo(f"vestibule: skipped {replace_unprintable(str(path))}: its suffix is none of {accepted}", err=True)
    if (rest := len(skipped) - MOST_SKIPPED) > 0:
        typer.echo(f"vestibule: skipped {rest} more files", err=True)


async def _print_results(
    images: list[ImageFile], command: ImageCommand, url: str | None, api_key: str | None, *, as_json: bool, jobs: int
) -> int:
    """Print a line for each image and return how many failed."""
    from vestibule_client import AsyncClient

    failed = 0
    width = min(LONGEST_NAME, max(len(str(image.path)) for image in images))
    async with AsyncClient(url, api_key=api_key, retries=retries()) as client:
        request = partial(request_result, command, client)
        with progress_bar(len(images)) as show_progress:
            async with aclosing(map_in_order(images, request, jobs)) as results:
                done = 0
                async for image, result in results:
                    done += 1
                    failed += result.failed
                    text = f"{replace_unprintable(str(image.path)):{width}}  {replace_unprintable(result.text)}"
                    print_line(json.dumps(result.record) if as_json else text)
                    show_progress(done)
    return failed


@contextmanager
def report_client_errors() -> Iterator[None]:
    """Print an error of the client or of a file as one line, and exit with status 1."""
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


def retries() -> Retries:
    """Return the client's retry policy for commands: more attempts and longer waits than its default."""
    from vestibule_client import Retries

    return Retries(times=8, longest_s=120)
