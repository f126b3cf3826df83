"""Rules of alerts, the alerts that they caused, and the outbox from which these are delivered.

`Sightings.add` stores the alerts of a sighting in its own transaction. An alert has ids only: what it says is read when
it is sent. It is erased with its sighting, so that no alert is about an erased subject.
"""

from __future__ import annotations

from typing import Protocol

from index.alert_rules import Alert, AlertDelivery, AlertRule, AlertSettings, AlertState
from index.protocol.changes import changes


class AlertRules(Protocol):
    """The rules of a gallery's collections. Every change is in the audit log; `actor` as in `Gallery`.

    All methods raise NotFoundError if a collection or a rule does not exist, and LockedError as `Gallery` does.
    """

    @changes
    def create(self, collection: str, settings: AlertSettings, *, actor: str | None = None) -> AlertRule:
        """Create a rule. It applies to sightings that are stored from now on.

        Raises:
            InvalidError: see `index.alert_rules.check_settings`; or the collection has MAX_RULES rules.
        """
        ...

    @changes
    def replace(self, token: str, settings: AlertSettings, *, actor: str | None = None) -> AlertRule:
        """Replace the settings of a rule. Pending alerts are sent to those of their targets that it still has.

        Raises:
            InvalidError: see `index.alert_rules.check_settings`.
        """
        ...

    @changes
    def remove(self, token: str, *, actor: str | None = None) -> None:
        """Delete a rule with all its alerts; pending ones are not sent any more."""
        ...

    def rule(self, token: str) -> AlertRule:
        """Return the rule with this token."""
        ...

    def page(self, after: int = 0, limit: int = 100) -> list[AlertRule]:
        """Return at most `limit` rules of all collections with ids above `after`, ascending.

        Rules of collections whose key is missing are left out.
        """
        ...


class Alerts(Protocol):
    """The alerts of a gallery. Those of collections whose key is missing are left out.

    All methods raise NotFoundError if the alert does not exist.
    """

    def page(
        self, after: int = 0, limit: int = 100, *, state: AlertState | None = None, newest_first: bool = False
    ) -> list[Alert]:
        """Return at most `limit` alerts with positions above `after`, in the order in which they were committed.

        `newest_first`: in the reverse order, with positions below `after`, where 0 stands for the end.
        """
        ...

    def alert(self, token: str) -> Alert:
        """Return the alert with this token."""
        ...

    def last_position(self) -> int:
        """Return the position of the last alert; 0 if there was none."""
        ...

    @changes
    def resend(self, token: str, *, actor: str | None = None) -> Alert:
        """Queue the dead deliveries of an alert again, before the later ones, and return it.

        Raises:
            ConflictError: none of its deliveries is dead.
        """
        ...


class AlertOutbox(Protocol):
    """The pending deliveries. One process of all delivers: the one that holds the lease."""

    @changes
    def hold(self) -> bool:
        """Take or renew the lease for LEASE_S seconds; False while another process holds it."""
        ...

    @changes
    def release(self) -> None:
        """Let another process deliver."""
        ...

    def due(self) -> list[str]:
        """Return the tokens of the targets whose first pending delivery is due."""
        ...

    def first(self, target: str) -> AlertDelivery | None:
        """Return the target's first pending delivery if it is due; None otherwise, or if there is no such target.

        Raises:
            LockedError: a key of its collection is missing.
        """
        ...

    @changes
    def delivered(self, delivery: AlertDelivery) -> None:
        """Record that the target has accepted the alert."""
        ...

    @changes
    def failed(self, delivery: AlertDelivery, problem: str, retry_s: float | None) -> None:
        """Record a failed attempt and its problem. The next one is in `retry_s` seconds; None: the delivery is dead."""
        ...
