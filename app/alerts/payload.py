"""What an alert says. It is read from the sighting when it is sent, and never contains images."""

from __future__ import annotations

import json
from typing import Any

from index.alert_rules import Alert
from index.validation import read_timestamp


def payload(alert: Alert) -> dict[str, Any]:
    """Return the content of an alert: ids, camera, times, probability and subject, its name only if the rule says so.

    `type` and `timestamp` as Standard Webhooks recommends; `timestamp` is the time of the alert, not of an attempt.
    """
    sighting, subject = alert.sighting, alert.sighting.subject
    data: dict[str, Any] = {
        "alert": alert.token,
        "rule": alert.rule.token,
        "rule_name": alert.rule.settings.name,
        "sighting": sighting.token,
        "collection": sighting.collection,
        "camera": sighting.camera,
        "started_at": read_timestamp(sighting.started_at).isoformat(),
        "ended_at": read_timestamp(sighting.ended_at).isoformat(),
        "probability": sighting.probability,
        "subject": None if subject is None else subject.key,
        "pseudonym": sighting.pseudonym,
    }
    if alert.rule.settings.with_name and subject is not None:
        data["name"] = subject.name
    return {
        "type": f"alert.{alert.rule.settings.trigger}",
        "timestamp": read_timestamp(alert.created_at).isoformat(),
        "data": data,
    }


def encode(content: dict[str, Any]) -> bytes:
    """Return the content as JSON in UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
