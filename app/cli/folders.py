"""`vestibule enrol DIR`: enrol the photos of a folder."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.batch_client import (
    ImageFile,
    ImageResult,
    answer_or_problem,
    find_images,
    map_in_order,
    report_client_errors,
    report_skipped,
    retries,
)
from app.cli.client import ApiKey, AsJson, Jobs, Url
from app.cli.terminal import fail, print_line, progress_bar, replace_unprintable

if TYPE_CHECKING:
    from vestibule_client import AsyncClient
    from vestibule_client.gallery_answers import Enrolment

folders_cli = typer.Typer()


@folders_cli.command()
def enrol(  # noqa: PLR0913  options of a command
    folder: Annotated[
        Path,
        typer.Argument(
            help="Photos in a subfolder for each subject, named by its id; a photo beside them is named by the id.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ],
    *,
    collection: Annotated[str, typer.Option(help="The collection, which must exist.", show_default=False)],
    max_faces: Annotated[int, typer.Option(min=1, max=100, help="The most faces to enrol of each photo.")] = 1,
    quality_gate: Annotated[bool, typer.Option(help="Skip faces of insufficient quality.")] = True,
    as_json: AsJson = False,
    jobs: Jobs = 4,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Enrol the photos of a folder, and list those that were skipped with the reasons.

    The command may be stopped and repeated: within a day, photos that were enrolled are not enrolled again.
    """
    with report_client_errors():
        skipped: list[Path] = []
        images = list(find_images([folder], skipped))
        report_skipped(skipped)
        if not images:
            fail(f"no images found in {folder}")
        request = partial(_enrol_photo, collection, max_faces, quality_gate)
        enrolled = asyncio.run(_enrol_photos(images, request, url, api_key, as_json=as_json, jobs=jobs))
    if enrolled < len(images):
        fail(f"{len(images) - enrolled} of {len(images)} photos were not enrolled")


async def _enrol_photos(
    images: list[ImageFile],
    request: Callable[[AsyncClient, ImageFile], Awaitable[ImageResult]],
    url: str | None,
    api_key: str | None,
    *,
    as_json: bool,
    jobs: int,
) -> int:
    """Enrol the photos, print a line for each that was skipped, or as JSON for each, and return how many were enrolled.

    Raises:
        VestibuleError: an error that would occur for every photo.
    """
    from vestibule_client import AsyncClient

    done = enrolled = 0
    async with AsyncClient(url, api_key=api_key, retries=retries()) as client:
        with progress_bar(len(images)) as show_progress:
            async with aclosing(map_in_order(images, partial(request, client), jobs)) as results:
                async for image, result in results:
                    done += 1
                    enrolled += not result.failed
                    if as_json:
                        print_line(json.dumps(result.record))
                    elif result.failed:
                        print_line(replace_unprintable(f"{image.path}: {result.text}"))
                    show_progress(done)
    if not as_json:
        subjects = len({subject_of(image) for image in images})
        print_line(f"enrolled {enrolled} of {len(images)} photos of {subjects} subjects")
    return enrolled


async def _enrol_photo(
    collection: str, max_faces: int, quality_gate: bool, client: AsyncClient, image: ImageFile
) -> ImageResult:
    """Enrol one photo; it has failed if no face of it was enrolled.

    Raises:
        VestibuleError: an error that would occur for every photo.
    """
    subject = subject_of(image)

    async def request() -> Enrolment:
        data = await asyncio.to_thread(image.path.read_bytes)
        key = hashlib.sha256(json.dumps([collection, subject, max_faces, quality_gate]).encode() + data).hexdigest()
        return await client.enrol(
            collection,
            subject,
            data,
            max_faces=max_faces,
            quality_gate=quality_gate,
            idempotency_key=key,
        )

    outcome = await answer_or_problem(image, request())
    if isinstance(outcome, ImageResult):
        return ImageResult({**outcome.record, "subject": subject}, outcome.text, failed=True)
    record = {"file": str(image.path), "subject": subject, **outcome.model_dump(mode="json")}
    if outcome.indexed:
        return ImageResult(record, f"{len(outcome.indexed)} faces enrolled")
    reasons = [failed.problem.title for failed in outcome.failed]
    reasons += [reason for rejected in outcome.rejected for reason in rejected.reasons]
    return ImageResult(record, f"skipped: {', '.join(dict.fromkeys(reasons)) or 'no face was found'}", failed=True)


def subject_of(image: ImageFile) -> str:
    """Return the subject's id: the name of the subfolder of the given folder, else the file's name without suffix."""
    first, *rest = image.relative.parts
    return first if rest else image.relative.stem
