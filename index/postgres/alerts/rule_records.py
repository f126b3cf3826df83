"""Rows of the rules of alerts and of their targets."""

from __future__ import annotations

import secrets

from psycopg import sql

from index.alert_rules import MAX_RULES, AlertRule, AlertSettings, dump_settings, load_settings
from index.errors import InvalidError, NotFoundError
from index.postgres.store.database import Connection, Row, scalar

_RULE = (
    "SELECT alert_rules.id, token, collections.name, alert_rules.settings, alert_rules.created_at"
    " FROM alert_rules JOIN collections ON collections.id = collection_id"
)


def _rule(row: Row) -> AlertRule:
    number, token, collection, settings, created_at = row
    return AlertRule(number, token, collection, load_settings(settings), created_at)


def insert(db: Connection, collection_id: int, settings: AlertSettings, now: float) -> AlertRule:
    """Insert a rule of the collection and return it.

    Raises:
        InvalidError: the collection has MAX_RULES rules.
    """
    # Two that are created at once may exceed the limit, which only bounds the work for a sighting.
    count = scalar(db, sql.SQL("SELECT count(*) FROM alert_rules WHERE collection_id = %s"), (collection_id,))
    if count >= MAX_RULES:
        raise InvalidError(f"a collection may have {MAX_RULES} rules of alerts")
    token = secrets.token_hex(16)
    db.execute(
        "INSERT INTO alert_rules (collection_id, token, settings, created_at) VALUES (%s, %s, '', %s)",
        (collection_id, token, now),
    )
    put(db, token, settings)
    return find(db, token)


def put(db: Connection, token: str, settings: AlertSettings) -> None:
    """Replace the settings of a rule. Deliveries to targets that it no longer has are deleted.

    Raises:
        NotFoundError: no rule has this token.
    """
    number = scalar(
        db,
        sql.SQL("UPDATE alert_rules SET settings = %s WHERE token = %s RETURNING id"),
        (dump_settings(settings), token),
    )
    if number is None:
        raise NotFoundError("there is no such rule")
    targets = [target.token for target in settings.targets]
    db.execute("DELETE FROM alert_targets WHERE rule_id = %s AND token != ALL(%s)", (number, targets))
    db.cursor().executemany(
        "INSERT INTO alert_targets (rule_id, token) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [(number, target) for target in targets],
    )


def find(db: Connection, token: str) -> AlertRule:
    """Return the rule with this token.

    Raises:
        NotFoundError.
    """
    row = db.execute(f"{_RULE} WHERE token = %s", (token,)).fetchone()
    if row is None:
        raise NotFoundError("there is no such rule")
    return _rule(row)


def collection_id_of(db: Connection, token: str) -> int:
    """Return the id of the collection of the rule with this token, which exists."""
    return int(scalar(db, sql.SQL("SELECT collection_id FROM alert_rules WHERE token = %s"), (token,)))


def of_collection(db: Connection, collection_id: int) -> list[AlertRule]:
    """Return the rules of the collection, in the order of their creation.

    Until the transaction ends, they are not changed or deleted.
    """
    order = "ORDER BY alert_rules.id FOR SHARE OF alert_rules"
    rows = db.execute(f"{_RULE} WHERE collection_id = %s {order}", (collection_id,))
    return [_rule(row) for row in rows]


def by_id(db: Connection, ids: set[int]) -> dict[int, AlertRule]:
    """Return the rules with these ids."""
    rows = db.execute(f"{_RULE} WHERE alert_rules.id = ANY(%s)", (sorted(ids),))
    return {row[0]: _rule(row) for row in rows}


def page(db: Connection, after: int, limit: int) -> list[AlertRule]:
    """Return at most `limit` rules with ids above `after`, ascending."""
    rows = db.execute(f"{_RULE} WHERE alert_rules.id > %s ORDER BY alert_rules.id LIMIT %s", (after, limit))
    return [_rule(row) for row in rows]


def delete(db: Connection, token: str) -> int:
    """Delete the rule with this token, its targets and its alerts, and return the id of its collection.

    Raises:
        NotFoundError.
    """
    number = scalar(db, sql.SQL("DELETE FROM alert_rules WHERE token = %s RETURNING collection_id"), (token,))
    if number is None:
        raise NotFoundError("there is no such rule")
    return int(number)
