"""A failed startup leaves no thread, task or open file behind."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.auth.keys import ApiKeys
from app.cli.main import _server
from app.errors import NotReady, UnknownModel
from app.main import create_app
from app.settings import Settings
from index.embedded.keys import AUDIT_FILE
from index.factory import KEYS_FOLDER, open_keys
from tests.app.conftest import until
from tests.app.tiny_model import tiny_model

Break = Callable[[Path], dict[str, Any]]


def resources(folder: Path) -> tuple[set[int], list[str]]:
    """Return the ids of all threads, and the open sockets and files of the service's folder.

    Garbage is collected first: other tests' sockets, and what the frames of an error's traceback hold.
    """
    gc.collect()
    descriptors = []
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # that of the folder itself
            continue
    own = (target for target in descriptors if target.startswith((str(folder), "socket:")))
    return {thread.ident or 0 for thread in threading.enumerate()}, sorted(own)


def check_nothing_is_left(folder: Path, before: tuple[set[int], list[str]]) -> None:
    """Compare with an earlier `resources(folder)`. A thread may end a moment after it was told to."""
    until(lambda: not resources(folder)[0] - before[0])
    assert resources(folder)[1] == before[1]


def start(settings: Settings) -> None:
    """Start the service without a server, and stop it again."""

    async def scenario() -> None:
        before = asyncio.all_tasks()
        try:
            async with app.router.lifespan_context(app):
                pass
        finally:
            assert asyncio.all_tasks() == before

    app = create_app(settings)
    asyncio.run(scenario())


def create_key(state: Path) -> None:
    keys = ApiKeys(open_keys(state))
    keys.create("a key", ["infer"])
    keys.close()


def damage_ledger(of: str, folder: Path) -> dict[str, Any]:
    (folder / "state" / of).mkdir(parents=True)
    (folder / "state" / of / "ledger.db").write_bytes(b"no database " * 1000)
    return {}


def damage_audit_log_of_keys(folder: Path) -> dict[str, Any]:
    create_key(folder / "state")
    (folder / "state" / KEYS_FOLDER / AUDIT_FILE).unlink()
    (folder / "state" / KEYS_FOLDER / AUDIT_FILE).mkdir()
    return {}


def damage_weights(folder: Path) -> dict[str, Any]:
    file = folder / "weights" / "tiny" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return {}


def set_unknown_default_beside_keys(folder: Path) -> dict[str, Any]:
    create_key(folder / "state")
    return {"host": "0.0.0.0", "default_embedder": "no-such-model"}


@pytest.mark.parametrize(
    ("break_it", "error"),
    [
        (partial(damage_ledger, "gallery"), Exception),
        (partial(damage_ledger, KEYS_FOLDER), Exception),
        (damage_audit_log_of_keys, OSError),
        (damage_weights, NotReady),
        (set_unknown_default_beside_keys, UnknownModel),
    ],
)
def test_a_failed_startup_leaves_nothing_behind(break_it: Break, error: type[Exception], tmp_path: Path) -> None:
    tiny_model(tmp_path / "weights")
    paths: dict[str, Any] = {"weights": tmp_path / "weights", "state": tmp_path / "state"}
    settings = Settings(default_classifier="tiny", **paths, **break_it(tmp_path))
    before = resources(tmp_path)
    with pytest.raises(error):
        start(settings)
    check_nothing_is_left(tmp_path, before)


def test_a_port_in_use_leaves_nothing_behind(tmp_path: Path) -> None:
    tiny_model(tmp_path / "weights")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        settings = Settings(
            weights=tmp_path / "weights", state=tmp_path / "state", default_classifier="tiny", port=port
        )
        before = resources(tmp_path)
        with pytest.raises(SystemExit):
            _server(create_app(settings), settings, lambda port: None).run()
        check_nothing_is_left(tmp_path, before)


def test_the_service_imports_nothing_that_few_requests_need() -> None:
    program = "import sys, app.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    modules = done.stdout.split()
    assert "index.embedded.storage" in modules
    unneeded = {"pgvector", "psycopg", "psycopg_binary", "psycopg_c", "psycopg_pool", "pyarrow"}
    assert {module.partition(".")[0] for module in modules} & unneeded == set()
    assert [module for module in modules if module.startswith("index.postgres")] == []
    # Each takes between a quarter and two seconds: torchvision imports torch's compiler.
    assert {"torchvision", "torch._dynamo", "scipy.stats"} & set(modules) == set()
