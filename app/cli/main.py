"""The `vestibule` command."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.client import client_cli
from app.cli.database import database_cli
from app.cli.folders import folders_cli
from app.cli.gallery import gallery_cli
from app.cli.keys import keys_cli
from app.cli.networks import networks_cli
from app.cli.photo_groups import groups_cli
from app.cli.quantise import quantise_cli
from app.cli.terminal import fail, read_settings, replace_unencodable
from app.cli.train import train_cli
from app.cli.watch import watch_cli

if TYPE_CHECKING:
    from socket import socket

    import uvicorn
    from fastapi import FastAPI

    from app.settings import Settings

# Objects that are created between two garbage collections. A few requests create as many as the default, 700, and
# hardly any of them are in cycles: collecting took 6 % of the time of small requests.
NEW_OBJECTS = 10_000

# Client commands must start without importing torch, which app.settings does: functions import what they need.
cli = typer.Typer(name="vestibule", help="A self-hosted vision service.", no_args_is_help=True, add_completion=False)
cli.add_typer(client_cli)
cli.add_typer(database_cli)
cli.add_typer(folders_cli)
cli.add_typer(gallery_cli)
cli.add_typer(groups_cli)
cli.add_typer(keys_cli)
cli.add_typer(networks_cli)
cli.add_typer(quantise_cli)
cli.add_typer(train_cli)
cli.add_typer(watch_cli)


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; other than loopback, see the README.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes: one for each GPU.")] = None,
) -> None:
    """Run the service until it is stopped; after SIGTERM, requests in progress finish first."""
    import structlog

    from app.server import logging_setup, state_folder
    from app.server.supervisor import Supervisor, listen
    from app.settings import ConfigurationError, unknown_variables

    settings = read_settings(host=host, port=port, workers=workers)
    logging_setup.configure()
    if unknown := unknown_variables(os.environ):
        structlog.get_logger().warning("unknown_variables", names=unknown)
    try:
        if warning := state_folder.prepare(settings.state):
            structlog.get_logger().warning("state_folder_not_private", detail=warning)
        if settings.workers > 1:
            raise typer.Exit(Supervisor(settings, lambda port: typer.echo(_welcome(settings.host, port))).run())
        listen(settings).close()  # uvicorn would report an address in use only after the models are loaded
    except ConfigurationError as error:
        fail(str(error))
    _serve(settings, lambda port: typer.echo(_welcome(settings.host, port)))


@cli.command(hidden=True)
def worker(listening: int, parent: int) -> None:
    """Run a worker process of `serve --workers` on two sockets that it inherits as file descriptors."""
    import socket

    from app.server.supervisor import watch_parent

    ready = watch_parent(parent)
    _serve(read_settings(), lambda port: ready(), [socket.socket(fileno=listening)])


@cli.command()
def health() -> None:
    """Check whether the service on this machine is ready; the exit status is 0 if it is, else 1."""
    import httpx

    settings = read_settings()
    url = f"http://{_address(settings.host)}:{settings.port}/health/ready"
    try:
        response = httpx.get(url, timeout=4, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"no response from {url}: {error}")
    typer.echo(response.text)
    raise typer.Exit(0 if response.is_success else 1)


@cli.command("models")
def list_models() -> None:
    """List the models in the weights folder; folders that cannot be served go to standard error."""
    from app.errors import ModelRefused
    from app.inference.model_repository import read_each

    for folder, card in read_each(read_settings().weights):
        if isinstance(card, ModelRefused):
            typer.echo(f"{folder.name}: refused: {card.detail}", err=True)
        else:
            typer.echo(f"{card.name:24} {card.version}  {card.parameters:>12,}  {card.description}")


def main() -> None:
    """Run the `vestibule` command."""
    replace_unencodable()
    cli()


def _serve(settings: Settings, ready: Callable[[int], None], sockets: list[socket] | None = None) -> None:
    """Serve until stopped on these sockets, or if None, on the address in the settings; `ready` receives the port."""
    from app.errors import VestibuleError
    from app.main import create_app
    from app.middleware.host_and_origin import ExposedError
    from app.server import logging_setup
    from app.settings import ConfigurationError

    logging_setup.configure()
    try:
        app = create_app(settings)
    except VestibuleError as error:
        fail(f"{error.detail}. VESTIBULE_WEIGHTS is {settings.weights}; `make install` puts the shipped models there.")
    except (ConfigurationError, ExposedError) as error:
        fail(str(error))
    server = _server(app, settings, ready)
    server.run(sockets)
    if not server.started:
        raise typer.Exit(1)


def _server(app: FastAPI, settings: Settings, ready: Callable[[int], None]) -> uvicorn.Server:
    """Return a uvicorn server that calls `ready` with its port once it listens."""
    import time

    import uvicorn

    from app.server.http_protocol import KEEP_ALIVE_S, LimitedHttpProtocol, accept_more, raise_file_limit

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
            await super().startup(sockets)  # type: ignore[arg-type]
            if self.started:
                # Exclude all objects that exist at startup (modules, models, routes) from garbage collection: scanning
                # them took a sixth of the time of small requests, and delayed some by 0.1 s.
                gc.collect()
                gc.freeze()
                gc.set_threshold(NEW_OBJECTS)
                if settings.workers == 1:
                    await accept_more(self)
                ready(self.servers[0].sockets[0].getsockname()[1])

        async def on_tick(self, counter: int) -> bool:
            if not await super().on_tick(counter):
                return False
            # Until load balancers have noticed, requests still arrive: one on a port that closes would be lost.
            if not app.state.is_stopping:
                app.state.is_stopping = True
                self.closes_at = time.monotonic() + settings.stop_delay_s
            return self.force_exit or time.monotonic() >= self.closes_at

    connections = raise_file_limit(settings.max_connections)
    config = uvicorn.Config(
        app,
        http=partial(  # type: ignore[arg-type]
            LimitedHttpProtocol,
            settings=settings,
            max_connections=connections,
            waiting={},
            load_shedding=app.state.load_shedding,
        ),
        ws="none",
        host=settings.host.strip("[]"),
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.drain_s,
    )
    return Server(config)


def _address(host: str) -> str:
    """Return the host part of a URL by which this machine reaches a service that listens on `host`."""
    bare = host.strip("[]")
    bare = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bare, bare)  # noqa: S104  compared, not bound
    return f"[{bare}]" if ":" in bare else bare


def _welcome(host: str, port: int) -> str:
    from app.settings import PROJECT

    name = _address(host)
    image = PROJECT / "examples" / "coffee.jpg"
    path = image.relative_to(Path.cwd()) if image.is_relative_to(Path.cwd()) else image
    return (
        f"\nVestibule is ready on http://{name}:{port}\n"
        f"  try:   curl -F file=@{path} 'http://{name}:{port}/classify?top_k=3'\n"
        f"  open:  http://{name}:{port}/ in a browser\n"
        f"  docs:  http://{name}:{port}/docs\n"
    )


if __name__ == "__main__":
    main()
