"""Alerts: rules, the alerts that sightings cause, and the outbox of their deliveries."""

from __future__ import annotations

from index.alert_rules import Alert, AlertDelivery, AlertRule, AlertSettings, AlertState, check_settings
from index.audit_chain import AuditEvent
from index.errors import ConflictError
from index.postgres.alerts import alert_records, rule_records
from index.postgres.gallery import GalleryComponent
from index.postgres.store import audit_records, collection_records, lease_records
from index.postgres.store.database import Connection, committing
from index.protocol import LEASE_S
from index.sightings import Sighting
from index.types import Collection

LEASE = "alerts"


class PostgresAlertRules(GalleryComponent):
    """The `AlertRules` of a gallery."""

    @committing
    def create(
        self, db: Connection, collection: str, settings: AlertSettings, *, actor: str | None = None
    ) -> AlertRule:
        """See `AlertRules`."""
        number, now = collection_records.find(db, collection, "share").id, self.database.now(db)
        rule = rule_records.insert(db, number, check_settings(settings), now)
        audit_records.record(db, AuditEvent("create_alert_rule", now, actor, number, of=rule.token))
        return rule

    @committing
    def replace(self, db: Connection, token: str, settings: AlertSettings, *, actor: str | None = None) -> AlertRule:
        """See `AlertRules`."""
        rule_records.put(db, token, check_settings(settings))
        number = rule_records.collection_id_of(db, token)
        audit_records.record(db, AuditEvent("put_alert_rule", self.database.now(db), actor, number, of=token))
        return rule_records.find(db, token)

    @committing
    def remove(self, db: Connection, token: str, *, actor: str | None = None) -> None:
        """See `AlertRules`."""
        number = rule_records.delete(db, token)
        audit_records.record(db, AuditEvent("delete_alert_rule", self.database.now(db), actor, number, of=token))

    def rule(self, token: str) -> AlertRule:
        """See `AlertRules`."""
        with self.database.snapshot() as db:
            return rule_records.find(db, token)

    def page(self, after: int = 0, limit: int = 100) -> list[AlertRule]:
        """See `AlertRules`."""
        with self.database.snapshot() as db:
            return rule_records.page(db, after, limit)


class PostgresAlerts(GalleryComponent):
    """The `Alerts` of a gallery."""

    def page(
        self, after: int = 0, limit: int = 100, *, state: AlertState | None = None, newest_first: bool = False
    ) -> list[Alert]:
        """See `Alerts`."""
        with self.database.snapshot() as db:
            return alert_records.page(db, after, limit, state, self.database.now(db), newest_first=newest_first)

    def alert(self, token: str) -> Alert:
        """See `Alerts`."""
        with self.database.snapshot() as db:
            return alert_records.find(db, token, self.database.now(db))

    def last_position(self) -> int:
        """See `Alerts`."""
        with self.database.snapshot() as db:
            return alert_records.last_position(db)

    @committing
    def resend(self, db: Connection, token: str, *, actor: str | None = None) -> Alert:
        """See `Alerts`."""
        now = self.database.now(db)
        alert = alert_records.find(db, token, now)
        if not alert_records.queue_dead(db, alert, now):
            raise ConflictError("no delivery of this alert is dead")
        number = rule_records.collection_id_of(db, alert.rule.token)
        audit_records.record(db, AuditEvent("resend_alert", now, actor, number, of=token))
        return alert_records.find(db, token, now)


class PostgresAlertOutbox(GalleryComponent):
    """The `AlertOutbox` of a gallery, for one process."""

    @committing
    def hold(self, db: Connection) -> bool:
        """See `AlertOutbox`."""
        return lease_records.take(db, LEASE, self.holder, self.database.now(db), LEASE_S)

    @committing
    def release(self, db: Connection) -> None:
        """See `AlertOutbox`."""
        lease_records.release(db, LEASE, self.holder)

    def due(self) -> list[str]:
        """See `AlertOutbox`."""
        with self.database.snapshot() as db:
            return alert_records.due(db, self.database.now(db))

    def first(self, target: str) -> AlertDelivery | None:
        """See `AlertOutbox`."""
        with self.database.snapshot() as db:
            return alert_records.first(db, target, self.database.now(db))

    @committing
    def delivered(self, db: Connection, delivery: AlertDelivery) -> None:
        """See `AlertOutbox`."""
        alert_records.put_delivered(db, delivery)

    @committing
    def failed(self, db: Connection, delivery: AlertDelivery, problem: str, retry_s: float | None) -> None:
        """See `AlertOutbox`."""
        next_at = None if retry_s is None else self.database.now(db) + retry_s
        alert_records.put_failed(db, delivery, problem, next_at)


def store_alerts(db: Connection, collection: Collection, sighting: Sighting) -> None:
    """Store the alerts that a new sighting causes, in the transaction that stores it."""
    rules = [rule for rule in rule_records.of_collection(db, collection.id) if rule.settings.applies(sighting)]
    if rules:
        alert_records.lock(db)
    for rule in rules:
        if not alert_records.is_cooling(db, rule, sighting):
            alert_records.insert(db, rule, sighting)
