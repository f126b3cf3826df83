"""Rows of the alerts and of their deliveries. They have ids only; an alert's content is that of rule and sighting."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from psycopg import sql

from index.alert_rules import Alert, AlertDelivery, AlertRule, AlertState, TargetState
from index.errors import NotFoundError
from index.postgres.alerts import rule_records
from index.postgres.sightings import records as sighting_records
from index.postgres.store.database import MAX_INT, Connection, Row, scalar
from index.sightings import Sighting

LOCK = 0x616C7274  # the advisory lock of new alerts: "alrt"

# Without alerts of sightings, or of subjects, that have expired.
_LIVE = """
JOIN sightings ON sightings.position = alerts.sighting_position
LEFT JOIN subjects ON subjects.id = sightings.subject_id
WHERE sightings.expires_at > %(now)s AND (subjects.expires_at IS NULL OR subjects.expires_at > %(now)s)
"""
_ALERT = (
    "SELECT alerts.position, alerts.token, alerts.rule_id, alerts.sighting_position, alerts.created_at"  # noqa: S608  constants
    f" FROM alerts {_LIVE}"
)
_OF_STATE = "alerts.position IN (SELECT alert_position FROM alert_deliveries WHERE state = %(state)s)"
_STATES: dict[AlertState | None, str] = {
    None: "true",
    "dead": _OF_STATE,
    "pending": f"{_OF_STATE} AND NOT EXISTS (SELECT 1 FROM alert_deliveries WHERE alert_position = alerts.position"  # noqa: S608  constants
    " AND state = 'dead')",
    "delivered": "NOT EXISTS (SELECT 1 FROM alert_deliveries WHERE alert_position = alerts.position"
    " AND state != %(state)s)",
}
_FIRST = (
    "SELECT alert_position FROM alert_deliveries JOIN alerts ON alerts.position = alert_position"  # noqa: S608  constants
    f" {_LIVE} AND target_id = alert_targets.id AND state = 'pending' ORDER BY alert_position LIMIT 1"
)
_DUE = (
    "FROM alert_targets JOIN alert_deliveries AS first ON first.target_id = alert_targets.id"
    f" AND first.alert_position = ({_FIRST}) WHERE first.next_at <= %(now)s"
)
_OF_DELIVERY = (
    "alert_position = %s AND target_id = (SELECT id FROM alert_targets WHERE token = %s) AND state = 'pending'"
)


def insert(db: Connection, rule: AlertRule, sighting: Sighting) -> None:
    """Insert an alert and a pending delivery to each of the rule's targets. Call `lock` first."""
    now = sighting.created_at
    position = scalar(
        db,
        sql.SQL(
            "INSERT INTO alerts (token, rule_id, sighting_position, created_at) VALUES (%s, %s, %s, %s)"
            " RETURNING position"
        ),
        (secrets.token_hex(16), rule.id, sighting.position, now),
    )
    db.execute(
        "INSERT INTO alert_deliveries (alert_position, target_id, queued_at, next_at)"
        " SELECT %s, id, %s, %s FROM alert_targets WHERE rule_id = %s",
        (position, now, now, rule.id),
    )


def lock(db: Connection) -> None:
    """Wait until no other transaction inserts alerts: their positions increase in the order of the commits."""
    db.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))


def is_cooling(db: Connection, rule: AlertRule, sighting: Sighting) -> bool:
    """Return whether the rule's cooldown since an alert about the same subject and camera has not ended."""
    statement = (
        "SELECT 1 FROM alerts JOIN sightings ON sightings.position = sighting_position WHERE rule_id = %s"
        " AND alerts.created_at > %s AND camera = %s AND subject_id IS NOT DISTINCT FROM %s::bigint LIMIT 1"
    )
    subject = None if sighting.subject is None else sighting.subject.id
    values = (rule.id, sighting.created_at - rule.settings.cooldown_s, sighting.camera, subject)
    return scalar(db, sql.SQL(statement), values) is not None


def find(db: Connection, token: str, now: float) -> Alert:
    """Return the alert with this token.

    Raises:
        NotFoundError: also where its sighting has expired at `now`.
    """
    row = db.execute(f"{_ALERT} AND alerts.token = %(token)s", {"now": now, "token": token}).fetchone()
    if row is None:
        raise NotFoundError("there is no such alert")
    return _alerts(db, [row], now)[0]


def page(
    db: Connection, after: int, limit: int, state: AlertState | None, now: float, *, newest_first: bool
) -> list[Alert]:
    """Return a page of the alerts; see `Alerts.page`."""
    if newest_first and not after:
        after = MAX_INT
    rows = db.execute(
        f"{_ALERT} AND {_STATES[state]} AND alerts.position {'<' if newest_first else '>'} %(after)s"
        f" ORDER BY alerts.position {'DESC' if newest_first else 'ASC'} LIMIT %(limit)s",
        {"now": now, "after": after, "limit": limit, "state": state or "delivered"},
    ).fetchall()
    return _alerts(db, rows, now)


def last_position(db: Connection) -> int:
    """Return the position of the last alert, 0 if there is none."""
    return int(scalar(db, sql.SQL("SELECT coalesce(max(position), 0) FROM alerts")))


def queue_dead(db: Connection, alert: Alert, now: float) -> int:
    """Queue the dead deliveries of the alert again, and return their number."""
    return db.execute(
        "UPDATE alert_deliveries SET state = 'pending', attempts = 0, problem = NULL, queued_at = %s, next_at = %s"
        " WHERE alert_position = %s AND state = 'dead'",
        (now, now, alert.position),
    ).rowcount


def due(db: Connection, now: float) -> list[str]:
    """Return the tokens of the targets whose first pending delivery is due."""
    return [row[0] for row in db.execute(f"SELECT alert_targets.token {_DUE}", {"now": now})]


def first(db: Connection, target: str, now: float) -> AlertDelivery | None:
    """Return the target's first pending delivery if it is due."""
    row = db.execute(
        f"SELECT first.alert_position, queued_at, attempts {_DUE} AND alert_targets.token = %(target)s",
        {"now": now, "target": target},
    ).fetchone()
    if row is None:
        return None
    position, queued_at, attempts = row
    rows = db.execute(f"{_ALERT} AND alerts.position = %(position)s", {"now": now, "position": position}).fetchall()
    (alert,) = _alerts(db, rows, now)
    settings = {target.token: target for target in alert.rule.settings.targets}
    return AlertDelivery(alert, settings[target], queued_at, attempts)


def put_delivered(db: Connection, delivery: AlertDelivery) -> None:
    """Record that the target has accepted the alert."""
    statement = f"UPDATE alert_deliveries SET state = 'delivered', problem = NULL WHERE {_OF_DELIVERY}"  # noqa: S608  constants
    db.execute(statement, (delivery.alert.position, delivery.target.token))


def put_failed(db: Connection, delivery: AlertDelivery, problem: str, next_at: float | None) -> None:
    """Record a failed attempt; `next_at`: when the next one is due, None if the delivery is dead."""
    db.execute(
        "UPDATE alert_deliveries SET attempts = attempts + 1, problem = %s, next_at = coalesce(%s, next_at), state = %s"  # noqa: S608  constants
        f" WHERE {_OF_DELIVERY}",
        (problem, next_at, "dead" if next_at is None else "pending", delivery.alert.position, delivery.target.token),
    )


def _alerts(db: Connection, rows: Sequence[Row], now: float) -> list[Alert]:
    """Return the alerts of these rows, in their order."""
    rules = rule_records.by_id(db, {row[2] for row in rows})
    sightings = sighting_records.by_position(db, {row[3] for row in rows}, now)
    deliveries: dict[int, list[TargetState]] = {}
    for position, *state in db.execute(
        "SELECT alert_position, token, state, attempts, problem FROM alert_deliveries"
        " JOIN alert_targets ON alert_targets.id = target_id"
        " WHERE alert_position = ANY(%s) ORDER BY alert_position, target_id",
        ([row[0] for row in rows],),
    ):
        deliveries.setdefault(position, []).append(TargetState(*state))
    return [
        Alert(position, token, rules[rule], sightings[sighting], created_at, tuple(deliveries.get(position, ())))
        for position, token, rule, sighting, created_at in rows
    ]
