"""Quotas that replicas share: what they grant together, by a clock of the test."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import closing

import pytest

from index.errors import UnavailableError
from index.postgres.quotas import MINUTE_S, OUTAGE_S, REFRESH_S, REGISTER_S, REPLICA_S, PostgresQuotas, SharedQuota
from index.postgres.store.database import Database, SharedDatabase
from index.protocol import Quota, Quotas
from tests.index.people import Clock
from tests.index.postgres.test_keys import Outage, until

INTERFACES: tuple[type[Quotas], type[Quota]] = (PostgresQuotas, SharedQuota)  # mypy checks them

NEVER_S = 1e6  # tests refresh by themselves


@pytest.fixture
def shared(database_url: str, clock: Clock) -> Iterator[SharedDatabase]:
    with closing(SharedDatabase(database_url, clock)) as shared:
        yield shared


def start(shared: SharedDatabase, clock: Clock, count: int) -> list[PostgresQuotas]:
    """Start replicas that know of each other."""
    replicas = [PostgresQuotas(shared, NEVER_S, clock) for _ in range(count)]
    for _ in range(2):
        for replica in replicas:
            replica.refresh()
        clock.now += REGISTER_S
    return replicas


def take_all(quota: Quota) -> int:
    """Return how many requests are granted at once."""
    granted = 0
    while quota.take() == 0:
        granted += 1
    return granted


def used(database: Database, key: str = "a") -> int:
    with database.snapshot() as db:
        rows = db.execute("SELECT coalesce(sum(used), 0) FROM quotas WHERE key = %s", (key,)).fetchall()
    return int(rows[0][0])


def test_one_replica_may_use_the_whole_quota(shared: SharedDatabase, clock: Clock) -> None:
    (replica,) = start(shared, clock, 1)
    with closing(replica):
        quota = replica.quota("a", 80)
        assert replica.quota("a", 80) is quota
        assert replica.quota("b", 80) is not quota
        assert take_all(quota) == 20  # the reserve
        assert quota.take() == REFRESH_S
        clock.now += REFRESH_S
        replica.refresh()
        assert take_all(quota) == 60
        clock.now += REFRESH_S
        replica.refresh()
        assert 55 < quota.take() <= 64  # until the first requests are a minute ago
        assert used(shared.get()) == 80
        clock.now += quota.take()
        replica.refresh()
        assert take_all(quota) == 20
        replica.refresh()
        assert take_all(quota) == 60


def test_replicas_share_a_quota(shared: SharedDatabase, clock: Clock) -> None:
    """Four of them grant their reserves at once, and then leave each other an equal part of the rest."""
    replicas = start(shared, clock, 4)
    assert [replica.replicas for replica in replicas] == [4] * 4
    quotas = [replica.quota("a", 160) for replica in replicas]
    assert [take_all(quota) for quota in quotas] == [10] * 4
    granted = 40
    for _ in range(20):
        clock.now += REFRESH_S
        for replica, quota in zip(replicas, quotas, strict=True):
            replica.refresh()
            granted += take_all(quota)
    assert granted == 160
    for replica in replicas:
        replica.close()


def test_a_replica_that_is_not_asked_gives_its_lease_back(shared: SharedDatabase, clock: Clock) -> None:
    one, other = start(shared, clock, 2)
    idle, busy = one.quota("a", 80), other.quota("a", 80)
    assert idle.take() == 0
    one.refresh()
    assert idle.lease == 39  # half of what is left
    for _ in range(5):
        clock.now += REFRESH_S
        one.refresh()
    assert idle.lease == 10  # the reserve
    assert used(shared.get()) == 11
    clock.now += REFRESH_S
    granted = 0
    for _ in range(20):
        granted += take_all(busy)
        clock.now += REFRESH_S
        other.refresh()
    assert granted == 69
    clock.now += MINUTE_S + 2
    one.refresh()
    assert idle.lease == 0
    assert used(shared.get()) == 0
    assert take_all(idle) == 20  # the reserve of the only replica: the other has not refreshed for a minute
    one.close()
    other.close()


def test_any_minute_has_at_most_the_limit_and_one_reserve_of_each_replica(shared: SharedDatabase, clock: Clock) -> None:
    """Random bursts at three replicas, which refresh at different times; compared with a plain log of all requests."""
    chance = random.Random(5)
    replicas = start(shared, clock, 3)
    quotas = [replica.quota("a", 60) for replica in replicas]
    log: deque[float] = deque()
    total = 0
    for _ in range(900):
        clock.now += 0.25
        chance.choice(replicas).refresh()
        quota = chance.choice(quotas)
        for _ in range(chance.choice((0, 0, 1, 2, 30))):
            if quota.take() == 0:
                log.append(clock.now)
                total += 1
        while log and log[0] <= clock.now - MINUTE_S:
            log.popleft()
        assert len(log) <= 60 + 3 * 5
    assert total > 60 * 900 * 0.25 / MINUTE_S * 0.8  # and not much less than the limit
    for replica in replicas:
        replica.close()


def test_requests_during_a_refresh_are_granted_from_half_of_the_lease(
    shared: SharedDatabase, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (replica,) = start(shared, clock, 1)
    quota = replica.quota("a", 40)
    quota.take()
    replica.refresh()
    assert quota.lease == 39
    quota.take()
    write, meanwhile = Database.write, []

    def slow(self: Database, change: object) -> object:
        meanwhile.append(take_all(quota))
        return write(self, change)  # type: ignore[arg-type]

    monkeypatch.setattr(Database, "write", slow)
    replica.refresh()
    assert meanwhile == [19]
    assert take_all(quota) == 19
    replica.close()


def test_a_small_limit(shared: SharedDatabase, clock: Clock) -> None:
    """One request a minute: each of two replicas may grant it once before they know of each other."""
    replicas = start(shared, clock, 2)
    quotas = [replica.quota("a", 1) for replica in replicas]
    assert [take_all(quota) for quota in quotas] == [1, 1]
    for _ in range(2 * 50):
        for replica, quota in zip(replicas, quotas, strict=True):
            replica.refresh()
            assert take_all(quota) == 0
        clock.now += REFRESH_S
    for replica in replicas:
        replica.close()


def test_a_replica_alone_grants_its_share_while_the_database_cannot_be_reached(
    shared: SharedDatabase, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = start(shared, clock, 2)
    quota, unused = one.quota("a", 20), one.quota("b", 1)
    outage = Outage(shared, monkeypatch)
    assert take_all(quota) == 2
    outage.is_on = True
    with pytest.raises(UnavailableError):
        one.refresh()
    assert quota.take() == REFRESH_S
    clock.now += OUTAGE_S + 0.1
    assert take_all(quota) == 8  # half of the limit, with those before
    assert quota.take() == pytest.approx(MINUTE_S - OUTAGE_S - 0.1)
    clock.now += MINUTE_S
    assert take_all(quota) == 10
    assert take_all(unused) == 1
    outage.is_on = False
    one.refresh()
    assert used(shared.get()) == 20  # all that it granted, up to the limit, counts for the other
    quota = other.quota("a", 20)
    assert take_all(quota) == 2
    other.refresh()
    assert quota.take() > 50
    one.close()
    other.close()


def test_replicas_that_have_ended_are_not_counted(shared: SharedDatabase, clock: Clock) -> None:
    one, other = start(shared, clock, 2)
    other.refresh()
    clock.now += REPLICA_S
    one.refresh()
    assert (one.replicas, other.replicas) == (1, 2)
    with shared.get().snapshot() as db:
        assert len(db.execute("SELECT 1 FROM leases").fetchall()) == 1


def test_a_thread_refreshes(shared: SharedDatabase, clock: Clock) -> None:
    quotas = PostgresQuotas(shared, 0.01, clock)
    quota = quotas.quota("a", 20)
    quotas.quota("b", 20)
    assert take_all(quota) == 5
    until(lambda: quota.lease == 15)
    quotas.close()
    quotas.close()
