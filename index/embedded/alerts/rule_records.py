"""Rows of the rules of alerts and of their targets. The settings of an encrypted collection's are encrypted here."""

from __future__ import annotations

import json
import secrets

import apsw

from index.alert_rules import MAX_RULES, AlertRule, AlertSettings, dump_settings, load_settings
from index.embedded.encryption import cipher_of, is_locked
from index.embedded.store.ledger import Row
from index.errors import InvalidError, NotFoundError

_RULE = (
    "SELECT alert_rules.id, token, collections.name, alert_rules.settings, alert_rules.created_at, collection_id"
    " FROM alert_rules JOIN collections ON collections.id = collection_id"
)


def _rule(db: apsw.Connection, row: Row) -> AlertRule:
    number, token, collection, stored, created_at, collection_id = row
    settings = cipher_of(db, collection_id).decrypt(stored, "alert rule", token).decode()
    return AlertRule(number, token, collection, load_settings(settings), created_at)


def insert(db: apsw.Connection, collection_id: int, settings: AlertSettings, now: float) -> AlertRule:
    """Insert a rule of the collection and return it.

    Raises:
        InvalidError: the collection has MAX_RULES rules.
    """
    if db.execute("SELECT count(*) FROM alert_rules WHERE collection_id = ?", (collection_id,)).get >= MAX_RULES:
        raise InvalidError(f"a collection may have {MAX_RULES} rules of alerts")
    token = secrets.token_hex(16)
    statement = "INSERT INTO alert_rules (collection_id, token, settings, created_at) VALUES (?, ?, x'', ?)"
    db.execute(statement, (collection_id, token, now))
    put(db, collection_id, token, settings)
    return find(db, token)


def put(db: apsw.Connection, collection_id: int, token: str, settings: AlertSettings) -> None:
    """Replace the settings of a rule. Deliveries to targets that it no longer has are deleted."""
    sealed = cipher_of(db, collection_id).encrypt(dump_settings(settings).encode(), "alert rule", token)
    db.execute("UPDATE alert_rules SET settings = ? WHERE token = ?", (sealed, token))
    number = db.execute("SELECT id FROM alert_rules WHERE token = ?", (token,)).get
    targets = [target.token for target in settings.targets]
    db.execute(
        "DELETE FROM alert_targets WHERE rule_id = ? AND token NOT IN (SELECT value FROM json_each(?))",
        (number, json.dumps(targets)),
    )
    db.executemany(
        "INSERT OR IGNORE INTO alert_targets (rule_id, token) VALUES (?, ?)", [(number, target) for target in targets]
    )


def collection_id_of(db: apsw.Connection, token: str) -> int:
    """Return the id of the collection of the rule with this token, whose settings need not be readable.

    Raises:
        NotFoundError.
    """
    row = db.execute("SELECT collection_id FROM alert_rules WHERE token = ?", (token,)).fetchone()
    if row is None:
        raise NotFoundError("there is no such rule")
    return int(row[0])


def find(db: apsw.Connection, token: str) -> AlertRule:
    """Return the rule with this token.

    Raises:
        NotFoundError. LockedError: a key of its collection is missing.
    """
    row = db.execute(f"{_RULE} WHERE alert_rules.token = ?", (token,)).fetchone()
    if row is None:
        raise NotFoundError("there is no such rule")
    return _rule(db, row)


def of_collection(db: apsw.Connection, collection_id: int) -> list[AlertRule]:
    """Return the rules of the collection, in the order of their creation."""
    rows = db.execute(f"{_RULE} WHERE collection_id = ? ORDER BY alert_rules.id", (collection_id,))
    return [_rule(db, row) for row in rows]


def by_id(db: apsw.Connection, ids: set[int]) -> dict[int, AlertRule]:
    """Return the rules with these ids."""
    among = "SELECT value FROM json_each(?)"
    rows = db.execute(f"{_RULE} WHERE alert_rules.id IN ({among})", (json.dumps(sorted(ids)),))
    return {row[0]: _rule(db, row) for row in rows}


def page(db: apsw.Connection, after: int, limit: int) -> list[AlertRule]:
    """Return at most `limit` rules with ids above `after`, ascending, without those of locked collections."""
    rows = db.execute(
        f"{_RULE} WHERE alert_rules.id > ? AND collection_id NOT IN (SELECT value FROM json_each(?))"  # noqa: S608  constants
        " ORDER BY alert_rules.id LIMIT ?",
        (after, json.dumps(locked_collections(db)), limit),
    )
    return [_rule(db, row) for row in rows]


def delete(db: apsw.Connection, token: str) -> None:
    """Delete the rule with this token, its targets and its alerts."""
    db.execute("DELETE FROM alert_rules WHERE token = ?", (token,))


def locked_collections(db: apsw.Connection) -> list[int]:
    """Return the ids of the collections with rules whose key is missing."""
    rows: list[Row] = db.execute(
        "SELECT DISTINCT collection_id FROM alert_rules JOIN collections ON collections.id = collection_id"
        " WHERE encrypted"
    ).fetchall()
    return [row[0] for row in rows if is_locked(db, row[0])]
