"""The service over real HTTP on a thread of this process: it starts at once, and its coverage is measured."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import uvicorn
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from tests.app.conftest import until


@contextmanager
def running_server(server: uvicorn.Server) -> Iterator[tuple[str, int]]:
    """Run the server on a thread and yield the host and port that it listens on."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert thread.is_alive(), "the service did not start"
        host, port, *_ = server.servers[0].sockets[0].getsockname()
        yield host, port
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving_app(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Yield the address, on IPv4, of this application, on this port or a free one."""
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False))
    with running_server(server) as (_, bound):
        yield f"http://127.0.0.1:{bound}"


def serving_here(settings: Settings) -> AbstractContextManager[str]:
    """Yield the address, on IPv4, of a service with these settings, on a free port."""
    return serving_app(create_app(settings), settings.host.strip("[]"))
