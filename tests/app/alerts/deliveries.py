"""Deliveries of alerts, for senders without a storage."""

from __future__ import annotations

from index.alert_rules import Alert, AlertDelivery, AlertRule, AlertSettings, AlertTarget
from index.sightings import Sighting
from index.types import Subject

AT = 1_700_000_000.0


def subject(key: str = "p1", name: str | None = "Ada") -> Subject:
    return Subject(1, key, name, {"level": 1}, AT, None)


def sighting(person: Subject | None, position: int = 1) -> Sighting:
    return Sighting(
        camera="door",
        started_at=AT,
        ended_at=AT + 2,
        frames=5,
        probability=0.9,
        position=position,
        id=position,
        token=f"sighting{position}",
        collection="staff",
        subject=person,
        created_at=AT + 3,
        expires_at=AT + 1000,
    )


def delivery(
    target: AlertTarget, number: int = 1, *, person: Subject | None = None, with_name: bool = False
) -> AlertDelivery:
    settings = AlertSettings("Door", "match" if person else "unknown", with_name=with_name, targets=(target,))
    rule = AlertRule(1, "rule1", "staff", settings, AT)
    return AlertDelivery(Alert(number, f"alert{number}", rule, sighting(person, number), AT + 3, ()), target, AT + 3, 0)
