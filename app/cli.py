"""The `vestibule` command."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from app.client_cli import client_cli
from app.gallery_cli import gallery_cli
from app.keys_cli import keys_cli
from app.terminal import fail, invalid

if TYPE_CHECKING:
    from socket import socket

    import uvicorn

    from app.settings import Settings

# What asks a service must not wait for torch: the settings, which know models, are imported by what needs them.
cli = typer.Typer(name="vestibule", help="A self-hosted vision service.", no_args_is_help=True, add_completion=False)
cli.add_typer(client_cli)
cli.add_typer(gallery_cli)
cli.add_typer(keys_cli)


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; beyond loopback see the README.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes behind the port: one for each GPU.")] = None,
) -> None:
    """Run the service until it is told to stop; SIGTERM lets requests under way finish."""
    from app import logs
    from app.workers import Workers

    settings = _settings(host=host, port=port, workers=workers)
    if settings.workers == 1:
        _serve(settings, lambda port: typer.echo(_welcome(settings.host, port)))
        return
    logs.configure()
    status = Workers(settings, lambda port: typer.echo(_welcome(settings.host, port))).run()
    raise typer.Exit(status)


@cli.command(hidden=True)
def worker(listening: int, parent: int) -> None:
    """One of the processes of `serve --workers`, on two sockets that it is given open."""
    import socket

    from app.workers import tie

    ready = tie(parent)
    _serve(_settings(), lambda port: ready(), [socket.socket(fileno=listening)])


@cli.command()
def health() -> None:
    """Ask the service on this machine whether it is ready; the exit status says it."""
    import httpx

    port = _settings().port
    try:
        response = httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=4)
    except httpx.HTTPError as error:
        fail(f"no answer on port {port}: {error}")
    typer.echo(response.text)
    raise typer.Exit(0 if response.is_success else 1)


@cli.command("models")
def list_models() -> None:
    """List the models in the weights folder."""
    from models.checkpoint import CARD_FILE, CheckpointError, read_card

    for path in sorted(_settings().weights.glob(f"*/{CARD_FILE}")):
        try:
            card = read_card(path.parent)
        except CheckpointError as error:
            typer.echo(f"{path.parent.name}: refused: {error}", err=True)
            continue
        typer.echo(f"{card.name:24} {card.version}  {card.parameters:>12,}  {card.description}")


@cli.command("import")
def import_model(
    source: Annotated[str, typer.Argument(help="As package:efficientnet-lite0 or torchvision:resnet50.")],
    file: Annotated[
        Path | None,
        typer.Option(
            "--from", help="The file to read: a .tflite, or a .pth of torchvision's where there is no network."
        ),
    ] = None,
) -> None:
    """Convert published weights into a served model of the weights folder."""
    from models.importers import ImportWeightsError, import_weights

    folder = _settings().weights
    try:
        card = import_weights(source, folder, file, tell=partial(typer.echo, err=True))
    except ImportWeightsError as error:
        fail(str(error))
    typer.echo(f"{card.name} {card.version} is in {folder / card.name}")


def main() -> None:
    """Entry point of the distribution."""
    cli()


def _settings(**given: object) -> Settings:
    """Settings from the environment, with the command line's own on top."""
    from app.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        invalid(error)


def _serve(settings: Settings, ready: Callable[[int], None], sockets: list[socket] | None = None) -> None:
    """Serve on these sockets, None: on those that the settings name, until told to stop."""
    from app import logs
    from app.errors import VestibuleError
    from app.main import create_app
    from app.security import Exposed

    logs.configure()
    try:
        app = create_app(settings)
    except VestibuleError as error:
        fail(f"{error.detail}. Looked in {settings.weights}; `make install` puts the shipped models there.")
    except Exposed as error:
        fail(str(error))
    server = _server(app, settings, ready)
    server.run(sockets)
    if not server.started:
        raise typer.Exit(1)


def _spare_the_collector() -> None:
    """Leave to itself what is there when the service starts, which is never garbage: modules, models, routes. To look
    at all of it again and again took a sixth of the time of small requests, some of which waited 0.1 s for that.
    """
    gc.collect()
    gc.freeze()


def _server(app: object, settings: Settings, ready: Callable[[int], None]) -> uvicorn.Server:
    """A uvicorn server that calls `ready` with its port once it listens."""
    import uvicorn

    from app.protocol import KEEP_ALIVE_S, Limits, PatientProtocol, room_for

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
            await super().startup(sockets)  # type: ignore[arg-type]
            if self.started:
                _spare_the_collector()
                ready(self.servers[0].sockets[0].getsockname()[1])

    limits = Limits(
        head_s=settings.head_timeout_s,
        answer_s=settings.answer_timeout_s,
        head_bytes=settings.max_head_bytes,
        connections=room_for(settings.max_connections),
    )
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=partial(PatientProtocol, limits=limits, waiting={}),  # type: ignore[arg-type]
        ws="none",
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.drain_s,
    )
    return Server(config)


def _welcome(host: str, port: int) -> str:
    from app.settings import PROJECT

    name = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104  compared, not bound
    picture = PROJECT / "examples" / "coffee.jpg"
    shown = picture.relative_to(Path.cwd()) if picture.is_relative_to(Path.cwd()) else picture
    return (
        f"\nVestibule is ready on http://{name}:{port}\n"
        f"  try:   curl -F file=@{shown} 'http://{name}:{port}/classify?top_k=3'\n"
        f"  look:  http://{name}:{port}/ in a browser\n"
        f"  docs:  http://{name}:{port}/docs\n"
    )


if __name__ == "__main__":
    main()
