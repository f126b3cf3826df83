"""`vestibule classify | verify | search | generate | denoise`: commands that call a running service."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.batch_client import (
    ImageCommand,
    ImageFile,
    report_client_errors,
    retries,
    run_command,
)
from app.cli.terminal import print_line

if TYPE_CHECKING:
    from vestibule_client import AsyncClient, Client
    from vestibule_client.answers import Answers

client_cli = typer.Typer()

Files = Annotated[list[Path], typer.Argument(help="Images, and folders of images.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="The model; by default the service's own.", show_default=False)]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="VESTIBULE_URL", help="The service's address; by default http://127.0.0.1:8000.", show_default=False
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        "--key",
        envvar="VESTIBULE_API_KEY",
        help="The API key. Prefer the environment variable: command lines are visible to all users.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a line of JSON for each image.")]
Jobs = Annotated[int, typer.Option(min=1, max=64, help="Requests in flight at a time.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


@client_cli.command()
def classify(  # noqa: PLR0913  options of a command
    files: Files,
    *,
    model: Model = None,
    top_k: Annotated[int, typer.Option(min=1, max=1000, help="How many classes to print.")] = 3,
    tta: Annotated[bool, typer.Option("--tta", help="Use test-time augmentation, if the model has it.")] = False,
    reject: Annotated[
        float | None,
        typer.Option(
            help="Reject images of none of the model's classes, and by mistake this share of the others: 0.001 to 0.5.",
            show_default=False,
        ),
    ] = None,
    sequence: Annotated[bool, typer.Option("--sequence", help="Read strings of digits.")] = False,
    as_json: AsJson = False,
    jobs: Jobs = 4,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Classify images."""

    def send(client: AsyncClient, image: ImageFile) -> Awaitable[Answers[Any]]:
        if sequence:
            return client.classify_sequence(image.path, model=model)
        return client.classify(image.path, model=model, top_k=top_k, tta=tta, reject=reject)

    def describe(_: ImageFile, item: Any) -> str:
        if sequence:
            return f"{item.sequence or 'no digits'}  {item.confidence:.3f}"
        if item.rejected:
            return "rejected"
        return ", ".join(f"{label.class_} {label.confidence:.3f}" for label in item.predictions)

    run_command(files, ImageCommand(send, describe), url, api_key, as_json=as_json, jobs=jobs)


@client_cli.command()
def search(  # noqa: PLR0913  options of a command
    files: Files,
    *,
    collection: Annotated[str, typer.Option(help="The collection to search.", show_default=False)],
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many candidates to print for each face.")] = 1,
    fpir: Annotated[float, typer.Option(help="Accepted false positive identification rate.")] = 0.01,
    as_json: AsJson = False,
    jobs: Jobs = 4,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Identify the faces in images among a collection's subjects."""

    def send(client: AsyncClient, image: ImageFile) -> Awaitable[Answers[Any]]:
        return client.search(image.path, collection, limit=limit, fpir=fpir)

    def describe(_: ImageFile, item: Any) -> str:
        faces = [
            " ".join([face.status, *(f"{person.subject_id} ({person.distance:.3f})" for person in face.candidates)])
            for face in item.faces
        ]
        return ", ".join(faces) or "no face"

    run_command(files, ImageCommand(send, describe), url, api_key, as_json=as_json, jobs=jobs)


@client_cli.command()
def verify(
    source: Annotated[Path, typer.Argument(help="A photo of a face.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="The photo to compare it with.", show_default=False)],
    fmr: Annotated[float, typer.Option(help="Accepted false match rate.")] = 0.001,
    model: Model = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print whether two photos show the same person; the exit status is 0 in both cases."""
    with connected(url, api_key) as client:
        answer = client.verify(source, target, fmr=fmr, model=model)
    if as_json:
        print_line(json.dumps({"source": str(source), "target": str(target), **answer.model_dump(mode="json")}))
        return
    print_line("same person" if answer.verified else "different persons, or the match is too uncertain")
    extrapolated = ", extrapolated beyond the calibration data" if answer.operating_point.extrapolated else ""
    print_line(
        f"distance {answer.distance:.3f}, threshold {answer.threshold:.3f} (false match rate {fmr:g}{extrapolated})"
    )
    print_line(f"probability {answer.probability:.3f}")


@client_cli.command()
def generate(  # noqa: PLR0913  options of a command
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG file to write.", show_default=False)],
    n: Annotated[int, typer.Option("-n", min=1, max=64, help="How many images, in one grid.")] = 16,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same images.", show_default=False)
    ] = None,
    label: Annotated[
        str, typer.Option(help="A class, or a comma-separated class for each image.", show_default=False)
    ] = "",
    model: Model = None,
    truncation: Annotated[
        float, typer.Option(help="Above 0, at most 2; smaller values give more typical images.")
    ] = 1.0,
    grid: Annotated[int | None, typer.Option(min=1, max=64, help="Columns of the grid.", show_default=False)] = None,
    force: Force = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Generate images."""
    with connected(url, api_key) as client:
        _refuse_existing(output, force=force)
        labels = [label] if label else []
        file = client.generate(n=n, seed=seed, label=labels, model=model, truncation=truncation, grid=grid)
        _write(output, file.content)
    print_line(json.dumps({"output": str(output), "seed": file.seed}) if as_json else f"{output}  seed {file.seed}")


@client_cli.command()
def denoise(  # noqa: PLR0913  options of a command
    files: Files,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the PNG files.", show_default=False)],
    model: Model = None,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the denoised image in the result; the rest is the input.")
    ] = 1.0,
    force: Force = False,
    as_json: AsJson = False,
    jobs: Jobs = 4,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Denoise images and write them to a folder."""
    inputs: dict[Path, Path] = {}  # by output file

    def output_path(image: ImageFile) -> Path:
        return output / image.relative.with_suffix(".png")

    async def send(client: AsyncClient, image: ImageFile) -> Answers[Any]:
        target = output_path(image)
        if inputs.setdefault(target, image.path) != image.path:
            raise FileExistsError(errno.EEXIST, f"{target} is already the output for {inputs[target]}")
        _refuse_existing(target, force=force)
        answer = await client.denoise(image.path, model=model, strength=strength)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, answer.first.png)
        return answer

    command = ImageCommand(
        send, lambda image, _: str(output_path(image)), lambda image: {"output": str(output_path(image))}
    )
    run_command(files, command, url, api_key, as_json=as_json, jobs=jobs)


@contextmanager
def connected(url: str | None, api_key: str | None) -> Iterator[Client]:
    """Yield a client; its errors are printed as one line and end the command with status 1."""
    from vestibule_client import Client

    with report_client_errors(), Client(url, api_key=api_key, retries=retries()) as client:
        yield client


def _refuse_existing(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise FileExistsError(errno.EEXIST, f"{path} already exists; --force overwrites it")


def _write(path: Path, content: bytes) -> None:
    """Write the file atomically."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
