"""The service over real HTTP on a thread of this process: it starts at once, and its lines are counted as covered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from app.main import create_app
from app.settings import Settings


@contextmanager
def serving_here(settings: Settings) -> Iterator[str]:
    """The address, on IPv4, of a service with these settings, on a free port."""
    host = settings.host.strip("[]")
    server = uvicorn.Server(uvicorn.Config(create_app(settings), host=host, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
