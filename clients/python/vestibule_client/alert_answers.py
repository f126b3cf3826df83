"""The responses about alerts as typed models."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from vestibule_client.answers import Answer


class AlertTarget(Answer):
    """A receiver of a rule's alerts, without its secret."""

    id: str
    kind: str
    url: str
    topic: str | None
    username: str | None
    discovery: bool


class AlertRule(Answer):
    """A rule: which sightings of the collection cause an alert, and where it is sent."""

    id: str
    collection: str
    name: str
    trigger: str
    where: dict[str, Any] | None
    cameras: list[str]
    schedule: dict[str, Any] | None
    cooldown_s: float
    with_name: bool
    targets: list[AlertTarget]
    created_at: datetime


class StoredAlertRule(AlertRule):
    """A rule that was created or replaced; `secrets` has the new ones of its webhooks, by the target's id."""

    secrets: dict[str, str]


class AlertRulePage(Answer):
    """A page of rules; `next` is the `after` of the next page, None on the last."""

    data: list[AlertRule]
    next: int | None


class AlertDelivery(Answer):
    """The delivery of an alert to a target: `pending`, `delivered` or `dead`, after so many failed attempts."""

    target: str
    state: str
    attempts: int
    problem: str | None


class Alert(Answer):
    """An alert about a sighting; `subject` is None for an unknown person."""

    id: str
    rule: str
    sighting: str
    collection: str
    camera: str
    started_at: datetime
    ended_at: datetime
    probability: float | None
    subject: str | None
    created_at: datetime
    state: str
    deliveries: list[AlertDelivery]


class AlertPage(Answer):
    """A page of alerts; `next` is the `after` of the next page, None on the last."""

    data: list[Alert]
    next: int | None


class AlertContent(Answer):
    """The content of an alert; `name` is that of the subject, if the rule says so."""

    alert: str
    rule: str
    rule_name: str
    sighting: str
    collection: str
    camera: str
    started_at: datetime
    ended_at: datetime
    probability: float | None
    subject: str | None
    pseudonym: str | None
    name: str | None = None


class AlertEvent(Answer):
    """An event of the alert stream: `alert.match` or `alert.unknown`, the time of the alert, and its content."""

    type: str
    timestamp: datetime
    data: AlertContent
