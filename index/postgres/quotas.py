"""Requests per minute of API keys, which all replicas count together without a write for each request.

A replica leases a part of what is left of a key's minute, and grants requests from its lease. Every half second a
thread records the requests that were granted since, returns the lease, and takes a new one: a replica that is asked
gets an equal share of what is left, and one that is not asked gives back half of its lease, down to a small reserve.

Usage is counted in slots of SLOT_S seconds, by the database's time. Leases count as used.

Replicas together grant at most `per_minute` requests in any minute, and beyond that once in a minute the reserve of a
replica that had none: a 4th of `per_minute` divided by the number of replicas, at least 1. So two replicas and a limit
of 80 grant at most 100 in any minute, and 80 in a minute after another with requests. A key that asks without pause
gets nearly `per_minute` (60 requests of 64 seconds). A burst at one replica is granted as far as its lease goes, and
refused with a wait of half a second beyond that, although the minute may have room.

While the database cannot be reached, each replica grants `per_minute` divided by the last known number of replicas, at
least 1, in any minute. What it granted is recorded later.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from index.engine.repeater import Repeater
from index.postgres.store import lease_records
from index.postgres.store.database import Connection, SharedDatabase

MINUTE_S, SLOT_S, REFRESH_S = 60.0, 2.0, 0.5
# A slot counts until its end is a minute ago; one slot more, because a request is recorded after it was granted.
WINDOW_S = MINUTE_S + 2 * SLOT_S
IDLE_S = MINUTE_S + SLOT_S  # after which a replica that is not asked gives back its reserve
OUTAGE_S = 2.0  # for which a replica grants from its leases although it cannot reach the database
REPLICA_S, REGISTER_S = 15.0, 5.0  # how long a replica counts after it registered, and how often it does so
RESERVE = 4  # the reserves of all replicas together are a 4th of the limit

_LOCK = 0x71756F74  # the advisory lock under which quotas are leased
_REPLICA = "replica:"
_ADD = (
    "INSERT INTO quotas (key, starts_at, used) VALUES (%s, %s, %s)"
    " ON CONFLICT (key, starts_at) DO UPDATE SET used = quotas.used + excluded.used"
)


class SharedQuota:
    """A replica's part of a key's quota; see `index.protocol.Quota`.

    Only the thread that calls `take` changes `taken` and `asked_at`, and only the thread that refreshes changes the
    others. `taken`: requests granted since the beginning; `recorded`: those of them that are in the database; `limit`:
    the value of `taken` up to which requests are granted. `lease`: the part of the quota that is recorded as used in
    the slot `slot` although it is not yet.
    """

    def __init__(self, quotas: PostgresQuotas, key: str, per_minute: int):
        self._quotas = quotas
        self._times: deque[float] = deque(maxlen=per_minute)
        self.key = key
        self.per_minute = per_minute
        self.taken = self.recorded = self.lease = 0
        self.slot = 0.0
        self.limit = self.reserve
        self.asked_at = self.refreshed_at = self.next_at = quotas.clock()

    @property
    def reserve(self) -> int:
        """The requests that a replica may grant before it has a lease."""
        return max(1, self.per_minute // (RESERVE * self._quotas.replicas))

    def take(self) -> float:
        """See `Quota`."""
        now = self.asked_at = self._quotas.clock()
        if self._quotas.is_connected(now):
            if self.taken >= self.limit:
                return max(REFRESH_S, self.next_at - now)
        elif wait := self._wait_alone(now):
            return wait
        self.taken += 1
        self._times.append(now)
        return 0.0

    def _wait_alone(self, now: float) -> float:
        """Return the seconds until this replica may grant the next request without the database."""
        share = max(1, self.per_minute // self._quotas.replicas)
        return max(0.0, self._times[-share] + MINUTE_S - now) if len(self._times) >= share else 0.0


@dataclass(frozen=True)
class _Renewal:
    """A renewal of a quota's lease: what is recorded as `spent`, and what was `left` of the lease."""

    quota: SharedQuota
    taken: int
    spent: int
    left: int
    was_asked: bool
    is_idle: bool

    def grant(self, unused: int, replicas: int) -> int:
        """Return the size of the new lease, where `unused` of the minute are left to all replicas."""
        if self.is_idle:
            return 0
        wanted = max(self.quota.reserve, unused // replicas if self.was_asked else self.left // 2)
        return max(min(wanted, unused), self.left // 2)  # requests during the renewal may have taken half of the lease


@dataclass(frozen=True)
class _Lease:
    """A granted lease, and the seconds until more may be available."""

    amount: int
    slot: float
    wait: float


class PostgresQuotas:
    """See `index.protocol.Quotas`. `clock` returns seconds and must not decrease."""

    def __init__(
        self, shared: SharedDatabase, refresh_s: float = REFRESH_S, clock: Callable[[], float] = time.monotonic
    ):
        self.clock = clock
        self.replicas = 1
        self._shared = shared
        self._refresh_s = refresh_s
        self._id = secrets.token_hex(16)
        self._quotas: dict[str, SharedQuota] = {}
        self._repeater: Repeater | None = None
        self._registered_at = float("-inf")
        self._waiting_since: float | None = None  # the time of the first refresh that has not succeeded

    def close(self) -> None:
        """See `Quotas`."""
        if self._repeater is not None:
            self._repeater.close()
            self._repeater = None

    def quota(self, key: str, per_minute: int) -> SharedQuota:
        """See `Quotas`."""
        if key not in self._quotas:
            self._quotas[key] = SharedQuota(self, key, per_minute)
        if self._repeater is None:
            self._repeater = Repeater("quotas", self._refresh_s, self.refresh)
        return self._quotas[key]

    def is_connected(self, now: float) -> bool:
        """Return False if the database has not been reached for OUTAGE_S."""
        return self._waiting_since is None or now - self._waiting_since <= OUTAGE_S

    def refresh(self) -> None:
        """Record the granted requests and renew the leases.

        Raises:
            UnavailableError.
        """
        now = self.clock()
        renewals = [renewal for quota in list(self._quotas.values()) if (renewal := _renewal(quota, now))]
        if not renewals and now - self._registered_at < REGISTER_S:
            return
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        for renewal in renewals:  # requests meanwhile may take half of what is left: the new lease is at least that
            quota = renewal.quota
            quota.limit = min(quota.limit, renewal.taken + max(0, renewal.left) // 2)
        try:
            replicas, leases = self._shared.get().write(lambda db: self._renew(db, renewals))
        except BaseException:
            # Perhaps they were renewed, perhaps not. Not returned, the old leases count as used for a minute.
            for renewal in renewals:
                renewal.quota.lease = 0
            raise
        self.replicas, self._registered_at, self._waiting_since = replicas, now, None
        for renewal, lease in zip(renewals, leases, strict=True):
            quota = renewal.quota
            quota.recorded, quota.lease, quota.slot = renewal.taken, lease.amount, lease.slot
            quota.limit = renewal.taken + (quota.reserve if renewal.is_idle else lease.amount)
            quota.refreshed_at, quota.next_at = now, now + lease.wait

    def _renew(self, db: Connection, renewals: list[_Renewal]) -> tuple[int, list[_Lease]]:
        """Return the number of replicas and the new leases."""
        now = self._shared.get().now(db)
        slot = now // SLOT_S * SLOT_S
        db.execute("SET LOCAL synchronous_commit = off")  # a crash may forget the usage of a moment
        db.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        lease_records.take(db, _REPLICA + self._id, self._id, now, REPLICA_S)
        replicas = lease_records.held(db, _REPLICA, now)
        db.execute("DELETE FROM quotas WHERE starts_at <= %s", (now - WINDOW_S,))
        returned = [
            (row.quota.key, row.quota.slot, -row.quota.lease)
            for row in renewals
            if row.quota.lease and row.quota.slot > now - WINDOW_S
        ]
        spent = [(row.quota.key, slot, row.spent) for row in renewals if row.spent]
        db.cursor().executemany(_ADD, returned + spent)
        used = {
            key: (amount, oldest)
            for key, amount, oldest in db.execute(
                "SELECT key, sum(used), min(starts_at) FILTER (WHERE used > 0) FROM quotas WHERE key = ANY(%s)"
                " AND starts_at > %s GROUP BY key",
                ([row.quota.key for row in renewals], now - WINDOW_S),
            )
        }
        leases = []
        for row in renewals:
            amount, oldest = used.get(row.quota.key, (0, None))
            granted = row.grant(max(0, row.quota.per_minute - amount), replicas)
            wait = 0.0 if granted or oldest is None else oldest + WINDOW_S - now
            leases.append(_Lease(granted, slot, wait))
        granted_rows = [
            (row.quota.key, slot, lease.amount) for row, lease in zip(renewals, leases, strict=True) if lease.amount
        ]
        db.cursor().executemany(_ADD, granted_rows)
        return replicas, leases


def _renewal(quota: SharedQuota, now: float) -> _Renewal | None:
    """Return what to renew of the quota, None if nothing changes."""
    taken = quota.taken
    spent = taken - quota.recorded
    left = quota.lease - spent
    # Requests that were refused may come again now.
    was_refused = taken >= quota.limit and now >= quota.next_at
    was_asked = quota.asked_at >= quota.refreshed_at or spent > 0 or was_refused
    is_idle = now - quota.asked_at >= IDLE_S
    if not was_asked and (quota.lease == 0 or (left <= quota.reserve and not is_idle)):
        return None
    # Of a long outage, only the last minute counts.
    return _Renewal(quota, taken, min(spent, quota.per_minute), left, was_asked, is_idle)
