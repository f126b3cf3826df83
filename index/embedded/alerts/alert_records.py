"""Rows of the alerts and of their deliveries. They have ids only; an alert's content is that of rule and sighting."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

import apsw

from index.alert_rules import Alert, AlertDelivery, AlertRule, AlertState, TargetState
from index.embedded.alerts import rule_records
from index.embedded.sightings import records as sighting_records
from index.embedded.sightings.records import MAX_POSITION
from index.embedded.store.ledger import Row
from index.errors import NotFoundError
from index.sightings import Sighting

# Without alerts of sightings, or subjects, that have expired, or whose collections' keys are missing.
_LIVE = """
JOIN alert_rules ON alert_rules.id = alerts.rule_id
JOIN sightings ON sightings.position = alerts.sighting_position
LEFT JOIN subjects ON subjects.id = sightings.subject_id
WHERE sightings.expires_at > :now AND (subjects.expires_at IS NULL OR subjects.expires_at > :now)
AND alert_rules.collection_id NOT IN (SELECT value FROM json_each(:locked))
"""
_ALERT = (
    "SELECT alerts.position, alerts.token, alerts.rule_id, alerts.sighting_position, alerts.created_at"  # noqa: S608  constants
    f" FROM alerts {_LIVE}"
)
_OF_STATE = "alerts.position IN (SELECT alert_position FROM alert_deliveries WHERE state = :state)"
_STATES: dict[AlertState | None, str] = {
    None: "true",
    "dead": _OF_STATE,
    "pending": f"{_OF_STATE} AND NOT EXISTS (SELECT 1 FROM alert_deliveries WHERE alert_position = alerts.position"  # noqa: S608  constants
    " AND state = 'dead')",
    "delivered": "NOT EXISTS (SELECT 1 FROM alert_deliveries WHERE alert_position = alerts.position"
    " AND state != :state)",
}
_FIRST = (
    "SELECT alert_position FROM alert_deliveries JOIN alerts ON alerts.position = alert_position"  # noqa: S608  constants
    f" {_LIVE} AND target_id = alert_targets.id AND state = 'pending' ORDER BY alert_position LIMIT 1"
)
_DUE = (
    "FROM alert_targets JOIN alert_deliveries AS first ON first.target_id = alert_targets.id"
    f" AND first.alert_position = ({_FIRST}) WHERE first.next_at <= :now"
)
_OF_DELIVERY = "alert_position = ? AND target_id = (SELECT id FROM alert_targets WHERE token = ?) AND state = 'pending'"


def insert(db: apsw.Connection, rule: AlertRule, sighting: Sighting) -> None:
    """Insert an alert and a pending delivery to each of the rule's targets."""
    now = sighting.created_at
    position = db.execute(
        "INSERT INTO alerts (token, rule_id, sighting_position, created_at) VALUES (?, ?, ?, ?) RETURNING position",
        (secrets.token_hex(16), rule.id, sighting.position, now),
    ).get
    db.execute(
        "INSERT INTO alert_deliveries (alert_position, target_id, queued_at, next_at)"
        " SELECT ?, id, ?, ? FROM alert_targets WHERE rule_id = ?",
        (position, now, now, rule.id),
    )


def is_cooling(db: apsw.Connection, rule: AlertRule, sighting: Sighting) -> bool:
    """Return whether the rule's cooldown since an alert about the same subject and camera has not ended."""
    statement = (
        "SELECT 1 FROM alerts JOIN sightings ON sightings.position = sighting_position"
        " WHERE rule_id = ? AND alerts.created_at > ? AND camera = ? AND subject_id IS ? LIMIT 1"
    )
    subject = None if sighting.subject is None else sighting.subject.id
    values = (rule.id, sighting.created_at - rule.settings.cooldown_s, sighting.camera, subject)
    return db.execute(statement, values).get is not None


def find(db: apsw.Connection, token: str, now: float) -> Alert:
    """Return the alert with this token.

    Raises:
        NotFoundError: also where its sighting has expired at `now`.
    """
    row = db.execute(f"{_ALERT} AND alerts.token = :token", {**_live(db, now), "token": token}).fetchone()
    if row is None:
        raise NotFoundError("there is no such alert")
    return _alerts(db, [row], now)[0]


def page(
    db: apsw.Connection, after: int, limit: int, state: AlertState | None, now: float, *, newest_first: bool
) -> list[Alert]:
    """Return a page of the alerts; see `Alerts.page`."""
    if newest_first and not after:
        after = MAX_POSITION
    rows = db.execute(
        f"{_ALERT} AND {_STATES[state]} AND alerts.position {'<' if newest_first else '>'} :after"
        f" ORDER BY alerts.position {'DESC' if newest_first else 'ASC'} LIMIT :limit",
        {**_live(db, now), "after": after, "limit": limit, "state": state},
    ).fetchall()
    return _alerts(db, rows, now)


def last_position(db: apsw.Connection) -> int:
    """Return the position of the last alert, 0 if there is none."""
    return int(db.execute("SELECT coalesce(max(position), 0) FROM alerts").get)


def queue_dead(db: apsw.Connection, alert: Alert, now: float) -> int:
    """Queue the dead deliveries of the alert again, and return their number."""
    db.execute(
        "UPDATE alert_deliveries SET state = 'pending', attempts = 0, problem = NULL, queued_at = ?1, next_at = ?1"
        " WHERE alert_position = ?2 AND state = 'dead'",
        (now, alert.position),
    )
    return db.changes()


def due(db: apsw.Connection, now: float) -> list[str]:
    """Return the tokens of the targets whose first pending delivery is due."""
    return [row[0] for row in db.execute(f"SELECT alert_targets.token {_DUE}", _live(db, now))]


def first(db: apsw.Connection, target: str, now: float) -> AlertDelivery | None:
    """Return the target's first pending delivery if it is due."""
    row = db.execute(
        f"SELECT first.alert_position, queued_at, attempts {_DUE} AND alert_targets.token = :target",
        {**_live(db, now), "target": target},
    ).fetchone()
    if row is None:
        return None
    position, queued_at, attempts = row
    rows = db.execute(f"{_ALERT} AND alerts.position = :position", {**_live(db, now), "position": position}).fetchall()
    (alert,) = _alerts(db, rows, now)
    settings = {target.token: target for target in alert.rule.settings.targets}
    return AlertDelivery(alert, settings[target], queued_at, attempts)


def put_delivered(db: apsw.Connection, delivery: AlertDelivery) -> None:
    """Record that the target has accepted the alert."""
    statement = f"UPDATE alert_deliveries SET state = 'delivered', problem = NULL WHERE {_OF_DELIVERY}"  # noqa: S608  constants
    db.execute(statement, (delivery.alert.position, delivery.target.token))


def put_failed(db: apsw.Connection, delivery: AlertDelivery, problem: str, next_at: float | None) -> None:
    """Record a failed attempt; `next_at`: when the next one is due, None if the delivery is dead."""
    db.execute(
        "UPDATE alert_deliveries SET attempts = attempts + 1, problem = ?, next_at = coalesce(?, next_at), state = ?"  # noqa: S608  constants
        f" WHERE {_OF_DELIVERY}",
        (problem, next_at, "dead" if next_at is None else "pending", delivery.alert.position, delivery.target.token),
    )


def _live(db: apsw.Connection, now: float) -> dict[str, object]:
    """Return the parameters of _LIVE."""
    return {"now": now, "locked": json.dumps(rule_records.locked_collections(db))}


def _alerts(db: apsw.Connection, rows: Sequence[Row], now: float) -> list[Alert]:
    """Return the alerts of these rows, in their order."""
    rules = rule_records.by_id(db, {row[2] for row in rows})
    sightings = sighting_records.by_position(db, {row[3] for row in rows}, now)
    deliveries: dict[int, list[TargetState]] = {}
    for position, *state in db.execute(
        "SELECT alert_position, token, state, attempts, problem FROM alert_deliveries"
        " JOIN alert_targets ON alert_targets.id = target_id"
        " WHERE alert_position IN (SELECT value FROM json_each(?)) ORDER BY alert_position, target_id",
        (json.dumps([row[0] for row in rows]),),
    ):
        deliveries.setdefault(position, []).append(TargetState(*state))
    return [
        Alert(position, token, rules[rule], sightings[sighting], created_at, tuple(deliveries.get(position, ())))
        for position, token, rule, sighting, created_at in rows
    ]
