"""Two whole services with separate state folders and one database: each sees the other's changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.auth.keys import ApiKeys, Scope
from index.factory import open_keys
from tests.app.conftest import started, until
from tests.app.embedder import random_embedder
from tests.app.tiny_model import tiny_model

Headers = dict[str, str]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights folder of both services, in place of two equal copies."""
    folder = tmp_path / "weights"
    folder.mkdir()
    random_embedder(folder)
    tiny_model(folder)
    return folder


@pytest.fixture
def replicas(weights: Path, tmp_path: Path, database_url: str) -> Iterator[tuple[TestClient, TestClient]]:
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(started(weights, state=tmp_path / name, database=SecretStr(database_url)))
            for name in ("one", "other")
        )
        yield one, other


@pytest.fixture
def keys(tmp_path: Path, database_url: str) -> Iterator[ApiKeys]:
    """The keys as `vestibule keys` opens them on the first service's machine."""
    with closing(ApiKeys(open_keys(tmp_path / "one", database_url))) as keys:
        yield keys


def create(keys: ApiKeys, *scopes: Scope, rate_per_minute: int | None = None) -> tuple[str, Headers]:
    key, secret = keys.create("a key", scopes, rate_per_minute=rate_per_minute)
    return key.id, {"authorization": f"Bearer {secret}"}


def status(client: TestClient, headers: Headers | None = None) -> int:
    return client.get("/models", headers=headers).status_code


def version(client: TestClient, headers: Headers) -> str:
    return str(client.get("/models/tiny", headers=headers).json()["version"])


def test_replicas_share_keys_limits_reloads_and_one_audit_log(
    replicas: tuple[TestClient, TestClient], keys: ApiKeys, weights: Path
) -> None:
    one, other = replicas
    assert status(one) == status(other) == 200
    actor, admin = create(keys, "infer", "enrol", "admin")
    for client in replicas:
        until(lambda client=client: status(client) == 401, 30)  # type: ignore[misc]
        until(lambda client=client: status(client, admin) == 200, 30)  # type: ignore[misc]

    limited, headers = create(keys, "infer", rate_per_minute=8)
    for client in replicas:  # each may see a new key as late as a second after it was created
        until(lambda client=client: status(client, headers) == 200, 30)  # type: ignore[misc]
    statuses = []
    for _ in range(20):
        statuses += [status(client, headers) for client in replicas]
        time.sleep(0.05)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) <= 8 + 2 * 2  # each replica has a reserve of a 4th; alone, each would permit 8
    keys.revoke(limited)
    for client in replicas:
        until(lambda client=client: status(client, headers) == 401, 30)  # type: ignore[misc]

    before = version(one, admin)
    assert version(other, admin) == before
    tiny_model(weights, seed=5)
    assert one.post("/models/tiny/reload", headers=admin).json()["change"] == "reloaded"
    assert version(one, admin) != before
    until(lambda: version(other, admin) == version(one, admin), 60)

    assert one.put("/collections/doors", json={}, headers=admin).status_code == 201
    assert other.put("/collections/doors/subjects/ada", json={}, headers=admin).is_success
    assert one.delete("/collections/doors/subjects/ada", headers=admin).is_success
    assert other.delete("/collections/doors", headers=admin).is_success
    assert keys.audit.verify() is None
    entries, _ = keys.audit.read()
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
    assert [(entry.event.action, entry.event.actor) for entry in entries] == [
        ("create_key", None),
        ("create_key", None),
        ("revoke_key", None),
        ("reload", actor),
        ("create_collection", actor),
        ("put_subject", actor),
        ("erase", actor),
        ("erase", actor),
    ]
