"""API keys and reloads that two replicas share, and what holds while the database cannot be reached."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from index.errors import ConflictError, NotFoundError, UnavailableError
from index.postgres import keys as module
from index.postgres.keys import PostgresKeys
from index.postgres.service_state import PostgresReloads, PostgresServiceState
from index.postgres.store.database import Database, SharedDatabase
from index.protocol import KeyStore, Reloads, ServiceState
from index.types import ApiKey
from tests.index.people import Clock

INTERFACES: tuple[type[KeyStore], type[Reloads], type[ServiceState]] = (
    PostgresKeys,
    PostgresReloads,
    PostgresServiceState,
)  # mypy checks them
KEY = ApiKey("0123", "a kiosk", frozenset({"infer", "enrol"}), 1000.0, 2000.0, None, 60, 4)


class Outage:
    """Makes a shared database unreachable while `is_on`, and counts how often it was used meanwhile."""

    def __init__(self, shared: SharedDatabase, monkeypatch: pytest.MonkeyPatch):
        self.is_on = False
        self.failures = 0
        get = shared.get

        def get_or_fail() -> Database:
            if self.is_on:
                self.failures += 1
                raise UnavailableError("off")
            return get()

        monkeypatch.setattr(shared, "get", get_or_fail)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Wait for the condition, and return how long that took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds
        time.sleep(0.01)
    return time.monotonic() - start


@pytest.fixture
def replicas(database_url: str) -> Iterator[list[PostgresServiceState]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(PostgresServiceState(database_url))) for _ in range(2)]


def test_a_key_is_stored_with_all_its_properties(replicas: list[PostgresServiceState]) -> None:
    one, other = (replica.keys for replica in replicas)
    assert one.by_hash() == {}
    one.insert(KEY, b"hash")
    assert one.by_hash() == {b"hash": KEY}
    assert other.by_hash() == {b"hash": KEY}


def test_changes_by_another_replica_are_seen_within_a_second(replicas: list[PostgresServiceState]) -> None:
    one, other = (replica.keys for replica in replicas)
    assert (one.by_hash(), other.by_hash()) == ({}, {})
    before = other.version()
    assert other.version() == before
    one.insert(KEY, b"hash")
    assert until(lambda: bool(other.by_hash())) < 1.5
    after = other.version()
    assert after != before
    assert abs(one.clock() - time.time()) < 60  # this machine is also the database's
    other.revoke(KEY.id)
    assert until(lambda: one.by_hash()[b"hash"].revoked_at is not None) < 1.5
    assert other.version() != after
    with pytest.raises(ConflictError, match="revoked already"):
        one.revoke(KEY.id)
    with pytest.raises(NotFoundError, match="no key"):
        one.revoke("nobody")


def test_changes_are_in_the_one_audit_log(replicas: list[PostgresServiceState]) -> None:
    one, other = (replica.keys for replica in replicas)
    one.insert(KEY, b"hash")
    other.record_reload("984aaaa7b057", KEY.id)
    one.revoke(KEY.id)
    entries, _ = other.audit.read()
    assert [(entry.event.action, entry.event.of, entry.event.actor) for entry in entries] == [
        ("create_key", KEY.id, None),
        ("reload", "984aaaa7b057", KEY.id),
        ("revoke_key", KEY.id, None),
    ]
    assert other.audit.verify() is None


def test_keys_stay_valid_for_a_minute_while_the_database_cannot_be_reached(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "time", clock := SimpleNamespace(monotonic=Clock(100.0)))
    shared = SharedDatabase(database_url)
    outage = Outage(shared, monkeypatch)
    with closing(shared), closing(PostgresKeys(shared, refresh_s=0.01)) as keys:
        keys.insert(KEY, b"hash")
        keys.by_hash()
        outage.is_on = True
        with pytest.raises(UnavailableError):
            keys.revoke(KEY.id)
        until(lambda: outage.failures > 3)
        clock.monotonic.now += 60
        assert list(keys.by_hash()) == [b"hash"]
        clock.monotonic.now += 1
        for read in (keys.by_hash, keys.version, keys.clock):
            with pytest.raises(UnavailableError, match="cannot be read"):
                read()
        outage.is_on = False
        until(lambda: is_readable(keys))  # the thread goes on


def is_readable(keys: PostgresKeys) -> bool:
    try:
        return bool(keys.by_hash())
    except UnavailableError:
        return False


def test_a_change_that_is_durable_is_acknowledged_although_it_cannot_be_read(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SharedDatabase(database_url)) as shared, closing(PostgresKeys(shared)) as keys:

        @contextmanager
        def fail(*_: Any) -> Iterator[None]:
            raise UnavailableError("off")
            yield

        with monkeypatch.context() as patch:
            patch.setattr(Database, "snapshot", fail)
            keys.insert(KEY, b"hash")
        assert list(keys.by_hash()) == [b"hash"]


def test_two_first_requests_start_one_thread(database_url: str) -> None:
    with closing(SharedDatabase(database_url)) as shared, closing(PostgresKeys(shared)) as keys:
        get, results = shared.get, list[object]()

        def read() -> None:
            results.append(keys.by_hash())

        def get_slowly() -> Database:
            time.sleep(0.1)
            return get()

        shared.get = get_slowly  # type: ignore[method-assign]
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [{}, {}]
        assert [thread.name for thread in threading.enumerate()].count("keys") == 1


def test_a_closed_store_is_opened_again(database_url: str) -> None:
    state = PostgresServiceState(database_url)
    state.close()  # nothing was opened
    for _ in range(2):
        assert state.keys.by_hash() == {}
        assert state.reloads.tokens() == {}
        state.close()


def test_a_server_that_cannot_be_reached_at_the_start() -> None:
    with closing(PostgresServiceState("postgresql://127.0.0.1:1/none?connect_timeout=1")) as state:
        for use in (state.keys.version, state.reloads.tokens):
            with pytest.raises(UnavailableError):
                use()


def test_reloads_are_seen_by_all_replicas(replicas: list[PostgresServiceState]) -> None:
    one, other = (replica.reloads for replica in replicas)
    one.announce("a", "1")
    one.announce("b", "1")
    other.announce("a", "2")
    assert one.tokens() == other.tokens() == {"a": "2", "b": "1"}
