"""`vestibule classify | verify | search | generate | denoise`: ask a service that runs, on this machine or another."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.batch_client import Asking, Question, Source, ask_each, failing, patient
from app.cli.terminal import put

if TYPE_CHECKING:
    from vestibule_client import AsyncClient, Client
    from vestibule_client.answers import Answers

client_cli = typer.Typer()

Files = Annotated[list[Path], typer.Argument(help="Pictures, and folders with pictures in them.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="By default the service's own.", show_default=False)]
Url = Annotated[
    str | None,
    typer.Option(envvar="VESTIBULE_URL", help="The service; by default http://127.0.0.1:8000.", show_default=False),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="VESTIBULE_API_KEY",
        help="Better in the environment: all users can see command lines.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="A line of JSON for each picture.")]
Jobs = Annotated[int, typer.Option(min=1, max=64, help="Requests under way at once.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]


@client_cli.command()
def classify(  # noqa: PLR0913  options of a command
    files: Files,
    *,
    model: Model = None,
    top_k: Annotated[int, typer.Option(min=1, max=1000, help="How many classes to name.")] = 3,
    tta: Annotated[bool, typer.Option("--tta", help="Test-time augmentation, where the model has one.")] = False,
    sequence: Annotated[bool, typer.Option("--sequence", help="Read strings of digits.")] = False,
    as_json: AsJson = False,
    jobs: Jobs = 4,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Say what is in pictures."""

    def ask(client: AsyncClient, source: Source) -> Awaitable[Answers[Any]]:
        if sequence:
            return client.classify_sequence(source.path, model=model)
        return client.classify(source.path, model=model, top_k=top_k, tta=tta)

    def told(_: Source, item: Any) -> str:
        if sequence:
            return f"{item.sequence or 'no digits'}  {item.confidence:.3f}"
        return ", ".join(f"{one.class_} {one.confidence:.3f}" for one in item.predictions)

    ask_each(files, Question(ask, told), Asking(url, api_key, as_json, jobs))


@client_cli.command()
def search(  # noqa: PLR0913  options of a command
    files: Files,
    *,
    collection: Annotated[str, typer.Option(help="Whom to search among.", show_default=False)],
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many candidates to name for each face.")] = 1,
    fpir: Annotated[float, typer.Option(help="Share of searches for strangers that may name somebody.")] = 0.01,
    as_json: AsJson = False,
    jobs: Jobs = 4,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Say who of a collection is in pictures."""

    def ask(client: AsyncClient, source: Source) -> Awaitable[Answers[Any]]:
        return client.search(source.path, collection, limit=limit, fpir=fpir)

    def told(_: Source, item: Any) -> str:
        faces = [
            " ".join([face.status, *(f"{one.subject_id} ({one.distance:.3f})" for one in face.candidates)])
            for face in item.faces
        ]
        return ", ".join(faces) or "no face"

    ask_each(files, Question(ask, told), Asking(url, api_key, as_json, jobs))


@client_cli.command()
def verify(
    source: Annotated[Path, typer.Argument(help="A photo of somebody.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Another.", show_default=False)],
    fmr: Annotated[float, typer.Option(help="Share of pairs of strangers that may be taken for one person.")] = 0.001,
    model: Model = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Say whether two photos show one person; the exit status is 0 for either answer."""
    with connected(Asking(url, api_key)) as client:
        answer = client.verify(source, target, fmr=fmr, model=model)
    if as_json:
        put(json.dumps({"source": str(source), "target": str(target), **answer.model_dump(mode="json")}))
        return
    put("one person" if answer.verified else "not one person, or not surely enough")
    beyond = ", which is beyond what was counted" if answer.operating_point.extrapolated else ""
    put(f"distance {answer.distance:.3f}, threshold {answer.threshold:.3f} (false match rate {fmr:g}{beyond})")
    put(f"probability {answer.probability:.3f}")


@client_cli.command()
def generate(  # noqa: PLR0913  options of a command
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG file to write.", show_default=False)],
    n: Annotated[int, typer.Option("-n", min=1, max=64, help="How many pictures, in one grid.")] = 16,
    seed: Annotated[int | None, typer.Option(min=0, help="The same pictures again.", show_default=False)] = None,
    label: Annotated[str, typer.Option(help="A class, or one for each, with commas.", show_default=False)] = "",
    model: Model = None,
    truncation: Annotated[float, typer.Option(help="Above 0, to 2: less is more typical.")] = 1.0,
    grid: Annotated[int | None, typer.Option(min=1, max=64, help="Columns.", show_default=False)] = None,
    force: Force = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Draw new pictures."""
    labels = [label] if label else []
    with connected(Asking(url, api_key)) as client:
        _refuse_existing(output, force=force)
        file = client.generate(n=n, seed=seed, label=labels, model=model, truncation=truncation, grid=grid)
        _write(output, file.content)
    put(json.dumps({"output": str(output), "seed": file.seed}) if as_json else f"{output}  seed {file.seed}")


@client_cli.command()
def denoise(  # noqa: PLR0913  options of a command
    files: Files,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the PNG files.", show_default=False)],
    model: Model = None,
    strength: Annotated[float, typer.Option(min=0, max=1, help="How much of it is the cleaned picture.")] = 1.0,
    force: Force = False,
    as_json: AsJson = False,
    jobs: Jobs = 4,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Clean pictures of noise, into a folder."""
    taken: dict[Path, Path] = {}

    def path_of(source: Source) -> Path:
        return output / source.below.with_suffix(".png")

    async def ask(client: AsyncClient, source: Source) -> Answers[Any]:
        target = path_of(source)
        if taken.setdefault(target, source.path) != source.path:
            raise FileExistsError(errno.EEXIST, f"{target} is that of {taken[target]}")
        _refuse_existing(target, force=force)
        answer = await client.denoise(source.path, model=model, strength=strength)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, answer.first.png)
        return answer

    def told(source: Source, _: Any) -> str:
        return str(path_of(source))

    def added(source: Source) -> dict[str, Any]:
        return {"output": str(path_of(source))}

    ask_each(files, Question(ask, told, added), Asking(url, api_key, as_json, jobs))


@contextmanager
def connected(asking: Asking) -> Iterator[Client]:
    """A client for a command; what fails is one line and exit code 1."""
    from vestibule_client import Client

    with failing(), Client(asking.url, api_key=asking.api_key, retries=patient()) as client:
        yield client


def _refuse_existing(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise FileExistsError(errno.EEXIST, f"{path} is there already; --force replaces it")


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
