"""Alerts: rules, the alerts that sightings cause, and the outbox of their deliveries."""

from __future__ import annotations

import apsw

from index.alert_rules import Alert, AlertDelivery, AlertRule, AlertSettings, AlertState, check_settings
from index.audit_chain import AuditEvent
from index.embedded.alerts import alert_records, rule_records
from index.embedded.audit import log as audit
from index.embedded.gallery import GalleryComponent
from index.embedded.store import collection_records, lease_records
from index.embedded.store.changes import committing
from index.errors import ConflictError
from index.protocol import LEASE_S
from index.sightings import Sighting
from index.types import Collection

LEASE = "alerts"


class AlertRules(GalleryComponent):
    """The `AlertRules` of a gallery."""

    @committing
    def create(
        self, db: apsw.Connection, collection: str, settings: AlertSettings, *, actor: str | None = None
    ) -> AlertRule:
        """See `AlertRules`."""
        number, now = collection_records.find(db, collection).id, self.gallery.clock()
        rule = rule_records.insert(db, number, check_settings(settings), now)
        audit.record(db, AuditEvent("create_alert_rule", now, actor, number, of=rule.token))
        return rule

    @committing
    def replace(
        self, db: apsw.Connection, token: str, settings: AlertSettings, *, actor: str | None = None
    ) -> AlertRule:
        """See `AlertRules`."""
        number = rule_records.collection_id_of(db, token)
        rule_records.put(db, number, token, check_settings(settings))
        audit.record(db, AuditEvent("put_alert_rule", self.gallery.clock(), actor, number, of=token))
        return rule_records.find(db, token)

    @committing
    def remove(self, db: apsw.Connection, token: str, *, actor: str | None = None) -> None:
        """See `AlertRules`."""
        number = rule_records.collection_id_of(db, token)
        rule_records.delete(db, token)
        audit.record(db, AuditEvent("delete_alert_rule", self.gallery.clock(), actor, number, of=token))

    def rule(self, token: str) -> AlertRule:
        """See `AlertRules`."""
        with self.ledger.snapshot() as db:
            return rule_records.find(db, token)

    def page(self, after: int = 0, limit: int = 100) -> list[AlertRule]:
        """See `AlertRules`."""
        with self.ledger.snapshot() as db:
            return rule_records.page(db, after, limit)


class Alerts(GalleryComponent):
    """The `Alerts` of a gallery."""

    def page(
        self, after: int = 0, limit: int = 100, *, state: AlertState | None = None, newest_first: bool = False
    ) -> list[Alert]:
        """See `Alerts`."""
        with self.ledger.snapshot() as db:
            return alert_records.page(db, after, limit, state, self.gallery.clock(), newest_first=newest_first)

    def alert(self, token: str) -> Alert:
        """See `Alerts`."""
        with self.ledger.snapshot() as db:
            return alert_records.find(db, token, self.gallery.clock())

    def last_position(self) -> int:
        """See `Alerts`."""
        return alert_records.last_position(self.ledger.reader())

    @committing
    def resend(self, db: apsw.Connection, token: str, *, actor: str | None = None) -> Alert:
        """See `Alerts`."""
        now = self.gallery.clock()
        alert = alert_records.find(db, token, now)
        if not alert_records.queue_dead(db, alert, now):
            raise ConflictError("no delivery of this alert is dead")
        number = rule_records.collection_id_of(db, alert.rule.token)
        audit.record(db, AuditEvent("resend_alert", now, actor, number, of=token))
        return alert_records.find(db, token, now)


class AlertOutbox(GalleryComponent):
    """The `AlertOutbox` of a gallery, for one process."""

    @committing
    def hold(self, db: apsw.Connection) -> bool:
        """See `AlertOutbox`."""
        return lease_records.take(db, LEASE, self.holder, self.gallery.clock(), LEASE_S)

    @committing
    def release(self, db: apsw.Connection) -> None:
        """See `AlertOutbox`."""
        lease_records.release(db, LEASE, self.holder)

    def due(self) -> list[str]:
        """See `AlertOutbox`."""
        with self.ledger.snapshot() as db:
            return alert_records.due(db, self.gallery.clock())

    def first(self, target: str) -> AlertDelivery | None:
        """See `AlertOutbox`."""
        with self.ledger.snapshot() as db:
            return alert_records.first(db, target, self.gallery.clock())

    @committing
    def delivered(self, db: apsw.Connection, delivery: AlertDelivery) -> None:
        """See `AlertOutbox`."""
        alert_records.put_delivered(db, delivery)

    @committing
    def failed(self, db: apsw.Connection, delivery: AlertDelivery, problem: str, retry_s: float | None) -> None:
        """See `AlertOutbox`."""
        next_at = None if retry_s is None else self.gallery.clock() + retry_s
        alert_records.put_failed(db, delivery, problem, next_at)


def store_alerts(db: apsw.Connection, collection: Collection, sighting: Sighting) -> None:
    """Store the alerts that a new sighting causes, in the transaction that stores it."""
    for rule in rule_records.of_collection(db, collection.id):
        if rule.settings.applies(sighting) and not alert_records.is_cooling(db, rule, sighting):
            alert_records.insert(db, rule, sighting)
