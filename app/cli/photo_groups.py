"""`vestibule group DIR`: propose which faces of a folder of photos show one person."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
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
from app.cli.client import ApiKey, Jobs, Model, Url
from app.cli.terminal import fail, print_line, progress_bar, replace_unprintable

if TYPE_CHECKING:
    from vestibule_client import AsyncClient
    from vestibule_client.answers import Face
    from vestibule_client.gallery_answers import Clusters

MOST_FACES = 5000  # of one request to cluster embeddings
AT_ONCE = 64  # images of one request

groups_cli = typer.Typer()


@dataclass(frozen=True)
class PhotoFace:
    """A face of a photo: its box in pixels, its crop as JPEG and its embedding."""

    file: Path
    box: tuple[float, float, float, float]
    crop: bytes
    embedding: list[float]


@groups_cli.command()
def group(  # noqa: PLR0913  options of a command
    folder: Annotated[
        Path, typer.Argument(help="Photos, also in subfolders.", exists=True, file_okay=False, show_default=False)
    ],
    *,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Also write the faces into a subfolder of this new folder for each group; after naming the subfolders,"
            " `vestibule enrol` enrols them.",
            show_default=False,
        ),
    ] = None,
    prior: Annotated[float, typer.Option(help="The expected share of all pairs of faces that show one person.")] = 0.01,
    model: Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each group.")] = False,
    jobs: Jobs = 4,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Propose groups of faces that show one person each, for a person to check and name; nothing is enrolled."""
    with report_client_errors():
        if into is not None and into.exists():
            fail(f"{into} already exists")
        skipped: list[Path] = []
        images = list(find_images([folder], skipped))
        report_skipped(skipped)
        if not images:
            fail(f"no images found in {folder}")
        faces, clusters = asyncio.run(_propose(images, url, api_key, model=model, prior=prior, jobs=jobs))
        groups = [[faces[position] for position in positions] for positions in clusters.clusters]
        single = [faces[position] for position in clusters.single]
        if into is not None:
            _write_faces(into, groups)
        _print_groups(groups, single, as_json=as_json)


async def _propose(
    images: list[ImageFile], url: str | None, api_key: str | None, *, model: str | None, prior: float, jobs: int
) -> tuple[list[PhotoFace], Clusters]:
    """Return the faces of all photos and the proposed clusters of their positions; name what is skipped.

    Raises:
        VestibuleError: an error that would occur for every photo. ValueError: there are no faces, or too many.
    """
    from vestibule_client import AsyncClient

    faces: list[PhotoFace] = []
    async with AsyncClient(url, api_key=api_key, retries=retries()) as client:
        with progress_bar(len(images)) as show_progress:
            request = partial(_faces_of, client, model)
            async with aclosing(map_in_order(images, request, jobs)) as results:
                done = 0
                async for image, result in results:
                    done += 1
                    show_progress(done)
                    if isinstance(result, ImageResult):
                        _report(image, result.text)
                        continue
                    found, problems = result
                    faces += found
                    for problem in problems:
                        _report(image, problem)
        if not 0 < len(faces) <= MOST_FACES:
            raise ValueError(f"{len(faces)} faces; from 1 to {MOST_FACES} can be grouped")
        embeddings = [face.embedding for face in faces]
        return faces, await client.cluster_embeddings(embeddings, model=model, prior=prior)


async def _faces_of(
    client: AsyncClient, model: str | None, image: ImageFile
) -> tuple[list[PhotoFace], list[str]] | ImageResult:
    """Return the faces of a photo whose quality suffices, and why others are skipped; or the photo's problem.

    Raises:
        VestibuleError: an error that would occur for every photo.
    """
    from vestibule_client import Failed

    async def request() -> tuple[list[PhotoFace], list[str]]:
        detected = (await client.detect(image.path)).first.faces
        usable = [face for face in detected if not face.reasons]
        problems = [f"a face is skipped: {', '.join(face.reasons)}" for face in detected if face.reasons]
        crops = await asyncio.to_thread(_crops, image.path, usable)
        faces = []
        for first in range(0, len(crops), AT_ONCE):
            some = crops[first : first + AT_ONCE]
            for face, crop, item in zip(
                usable[first:], some, (await client.embed(some, model=model)).data, strict=False
            ):
                if isinstance(item, Failed):
                    problems.append(f"a face is skipped: {item.problem.title}")
                else:
                    faces.append(PhotoFace(image.path, face.box, crop, item.embedding))
        return faces, problems if detected else ["no face was found"]

    return await answer_or_problem(image, request())


def _crops(path: Path, faces: Sequence[Face]) -> list[bytes]:
    """Return the crop of each face as JPEG."""
    from PIL import Image, ImageOps

    from app.watch.shots import crop_jpeg

    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return [crop_jpeg(upright, face.box) for face in faces]


def _report(image: ImageFile, problem: str) -> None:
    typer.echo(replace_unprintable(f"vestibule: {image.path}: {problem}"), err=True)


def _write_faces(folder: Path, groups: Sequence[Sequence[PhotoFace]]) -> None:
    """Write the crops of each group into a subfolder."""
    for number, faces in enumerate(groups, 1):
        subfolder = folder / f"group-{number:04}"
        subfolder.mkdir(parents=True)
        for position, face in enumerate(faces, 1):
            (subfolder / f"{position:04}-{face.file.stem}.jpg").write_bytes(face.crop)


def _print_groups(groups: Sequence[Sequence[PhotoFace]], single: Sequence[PhotoFace], *, as_json: bool) -> None:
    """Print a line for each group, and one for the faces that are in no group."""
    for number, faces in enumerate([*groups, single], 1):
        name = f"group-{number:04}" if number <= len(groups) else None
        if as_json:
            record = [{"file": str(face.file), "box": face.box} for face in faces]
            print_line(json.dumps({"group": name, "faces": record}))
        else:
            files = ", ".join(str(face.file) for face in faces)
            print_line(replace_unprintable(f"{name or 'in no group'}  {len(faces)} faces  {files}"))
