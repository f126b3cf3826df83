"""The calls for alerts as functions of their arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vestibule_client.alert_answers import Alert, AlertPage, AlertRule, AlertRulePage, StoredAlertRule
from vestibule_client.call import Call

_RULES = "/alerts/rules"
_RULE = _RULES + "/{rule}"

Trigger = Literal["match", "unknown"]


def create_alert_rule(  # noqa: PLR0913  the endpoint's fields
    collection: str,
    name: str,
    trigger: Trigger,
    *,
    where: Mapping[str, Any] | None = None,
    cameras: Sequence[str] = (),
    schedule: Mapping[str, Any] | None = None,
    cooldown_s: float = 60.0,
    with_name: bool = False,
    targets: Sequence[Mapping[str, Any]] = (),
) -> Call[StoredAlertRule]:
    """Create a rule: sightings of subjects (`match`) or of unknown people cause alerts, which are sent to the targets.

    A target is `{"kind": "webhook", "url": "https://..."}` or `{"kind": "mqtt", "url": "mqtts://..."}`. `where` filters
    subjects by metadata, as in a search. `schedule` is `{"time_zone": "Europe/Vienna", "periods": [{"weekdays":
    ["mon"], "start": "22:00", "end": "06:00"}]}`.
    """
    body = _body(name, trigger, where, cameras, schedule, cooldown_s, with_name, targets)
    return Call("POST", _RULES, StoredAlertRule, json={"collection": collection, **body})


def replace_alert_rule(  # noqa: PLR0913  the endpoint's fields
    rule: str,
    name: str,
    trigger: Trigger,
    *,
    where: Mapping[str, Any] | None = None,
    cameras: Sequence[str] = (),
    schedule: Mapping[str, Any] | None = None,
    cooldown_s: float = 60.0,
    with_name: bool = False,
    targets: Sequence[Mapping[str, Any]] = (),
) -> Call[StoredAlertRule]:
    """Replace a rule; a target with the same URL keeps its pending alerts, and without a new one its secret."""
    body = _body(name, trigger, where, cameras, schedule, cooldown_s, with_name, targets)
    return Call("PUT", _RULE, StoredAlertRule, {"rule": rule}, json=body)


def alert_rules(*, after: int = 0, limit: int = 100) -> Call[AlertRulePage]:
    """List the rules of all collections by page; `after` is `next` of the previous page."""
    return Call("GET", _RULES, AlertRulePage, query={"after": after, "limit": limit})


def alert_rule(rule: str) -> Call[AlertRule]:
    """Return a rule."""
    return Call("GET", _RULE, AlertRule, {"rule": rule})


def delete_alert_rule(rule: str) -> Call[AlertRule]:
    """Delete a rule and all its alerts, and return it."""
    return Call("DELETE", _RULE, AlertRule, {"rule": rule})


def alerts(
    *,
    state: Literal["pending", "delivered", "dead"] | None = None,
    after: int = 0,
    limit: int = 100,
    newest_first: bool = False,
) -> Call[AlertPage]:
    """List alerts by page, the oldest or the newest first; `after` is `next` of the previous page."""
    query = {"state": state, "after": after, "limit": limit, "newest_first": newest_first}
    return Call("GET", "/alerts", AlertPage, query=query)


def alert(alert: str) -> Call[Alert]:
    """Return an alert and the state of its deliveries."""
    return Call("GET", "/alerts/{alert}", Alert, {"alert": alert})


def resend_alert(alert: str) -> Call[Alert]:
    """Send the dead deliveries of an alert again, with the same id."""
    return Call("POST", "/alerts/{alert}/resend", Alert, {"alert": alert})


def _body(*values: Any) -> dict[str, Any]:
    names = ("name", "trigger", "where", "cameras", "schedule", "cooldown_s", "with_name", "targets")
    body = dict(zip(names, values, strict=True))
    return {**body, "cameras": list(body["cameras"]), "targets": [dict(target) for target in body["targets"]]}
