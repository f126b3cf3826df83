"""The service of alerts: rules and alerts as the API shows them, and the background work on them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, get_args

from app.alerts.addresses import AddressPolicy, RefusedTarget, UnknownHost
from app.alerts.dispatcher import AlertDispatcher
from app.alerts.mqtt import MqttSender
from app.alerts.schemas import (
    AlertInfo,
    AlertPage,
    DeliveryInfo,
    NewRule,
    NewTarget,
    PeriodSchema,
    RuleInfo,
    RulePage,
    ScheduleSchema,
    StoredRule,
    TargetInfo,
    Weekday,
)
from app.alerts.stream import AlertStreams
from app.alerts.webhooks import WebhookSender, key_of, new_secret
from app.background_tasks import background_task
from app.errors import Unprocessable
from app.gallery.access import StorageAccess
from app.gallery.search_schemas import OneOf
from app.inference.executors import Executors
from app.observability.metrics import Metrics
from app.settings import Settings
from index.alert_rules import (
    DAY_MINUTES,
    Alert,
    AlertRule,
    AlertSettings,
    AlertState,
    AlertTarget,
    Period,
    Schedule,
)
from index.protocol import Storage
from index.validation import read_timestamp

_WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)


class AlertService(StorageAccess):
    """All use cases of alerts. `is_stopping`: whether the service stops, which ends the event streams."""

    def __init__(
        self,
        storage: Storage,
        executors: Executors,
        settings: Settings,
        metrics: Metrics,
        is_stopping: Callable[[], bool],
    ):
        super().__init__(executors, settings.backup_days)
        self._rules = storage.alert_rules
        self._alerts = storage.alerts
        self._addresses = AddressPolicy(settings.alert_private_targets)
        self.streams = AlertStreams(storage.alerts, executors, settings.max_alert_streams, is_stopping)
        self._dispatcher = AlertDispatcher(
            storage.alert_outbox,
            executors,
            {
                "webhook": partial(WebhookSender, self._addresses),
                "mqtt": partial(MqttSender, self._addresses),
            },
            metrics,
            dead_after_s=settings.alert_dead_after_s,
            clock=storage.gallery.clock,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send alerts, and feed the event streams, within an `async with` statement."""
        async with background_task(self._dispatcher.work()), background_task(self.streams.work()):
            yield

    async def create_rule(self, collection: str, rule: NewRule, actor: str | None) -> StoredRule:
        """Create a rule of the collection.

        Raises:
            NotFound: no such collection. Unprocessable: a target, a secret or the schedule is not valid.
        """
        settings, new = await self._settings(rule, {})
        stored = await self._commit(self._rules.create.planned(collection, settings, actor=actor))
        return StoredRule(**_rule_fields(stored), secrets=new)

    async def replace_rule(self, token: str, rule: NewRule, actor: str | None) -> StoredRule:
        """Replace a rule. A target with the same URL keeps its id, its pending alerts, and its secret.

        Raises:
            NotFound. Unprocessable: as `create_rule`.
        """
        current = await self._read(lambda: self._rules.rule(token))
        settings, new = await self._settings(rule, {target.url: target for target in current.settings.targets})
        stored = await self._commit(self._rules.replace.planned(token, settings, actor=actor))
        return StoredRule(**_rule_fields(stored), secrets=new)

    async def remove_rule(self, token: str, actor: str | None) -> RuleInfo:
        """Delete a rule with all its alerts, and return it.

        Raises:
            NotFound.
        """
        rule = await self.rule(token)
        await self._commit(self._rules.remove.planned(token, actor=actor))
        return rule

    async def rule(self, token: str) -> RuleInfo:
        """Return the rule.

        Raises:
            NotFound.
        """
        return RuleInfo(**_rule_fields(await self._read(lambda: self._rules.rule(token))))

    async def list_rules(self, after: int, limit: int) -> RulePage:
        """Return a page of the rules of all collections."""
        rows = await self._read(lambda: self._rules.page(after, limit))
        return RulePage(
            data=[RuleInfo(**_rule_fields(row)) for row in rows], next=rows[-1].id if len(rows) == limit else None
        )

    async def list_alerts(self, state: AlertState | None, after: int, limit: int, *, newest_first: bool) -> AlertPage:
        """Return a page of the alerts of all collections."""
        rows = await self._read(lambda: self._alerts.page(after, limit, state=state, newest_first=newest_first))
        return AlertPage(
            data=[_alert_info(row) for row in rows], next=rows[-1].position if len(rows) == limit else None
        )

    async def alert(self, token: str) -> AlertInfo:
        """Return the alert.

        Raises:
            NotFound.
        """
        return _alert_info(await self._read(lambda: self._alerts.alert(token)))

    async def resend(self, token: str, actor: str | None) -> AlertInfo:
        """Queue the dead deliveries of the alert again.

        Raises:
            NotFound. Conflict: none is dead.
        """
        alert = await self._commit(self._alerts.resend.planned(token, actor=actor))
        self._dispatcher.notify()
        return _alert_info(alert)

    async def _settings(
        self, rule: NewRule, current: Mapping[str, AlertTarget]
    ) -> tuple[AlertSettings, dict[str, str]]:
        """Return the settings to store, and the new secrets of webhooks by the target's token.

        `current`: the targets of the rule that is replaced, by URL.
        """
        targets = [await self._target(target, current.get(target.url)) for target in rule.targets]
        new = {target.token: secret for target, secret in targets if secret is not None}
        schedule = rule.schedule
        settings = AlertSettings(
            name=rule.name,
            trigger=rule.trigger,
            where={
                key: value.in_ if isinstance(value, OneOf) else [value] for key, value in (rule.where or {}).items()
            },
            cameras=tuple(rule.cameras),
            schedule=None if schedule is None else _schedule(schedule),
            cooldown_s=rule.cooldown_s,
            with_name=rule.with_name,
            targets=tuple(target for target, _ in targets),
        )
        return settings, new

    async def _target(self, target: NewTarget, current: AlertTarget | None) -> tuple[AlertTarget, str | None]:
        """Return the target to store, and its secret if this call created one.

        Raises:
            Unprocessable: the URL is refused, or the secret of a webhook is not valid.
        """
        try:
            with suppress(UnknownHost):  # the name may have an address later, which each delivery checks
                await self._addresses.resolve(target.kind, target.url)
        except RefusedTarget as error:
            raise Unprocessable(f"{target.url}: {error}") from error
        secret = target.secret.get_secret_value() if target.secret else current.secret if current else None
        new = None
        if target.kind == "webhook":
            if secret is None:
                secret = new = new_secret()
            try:
                key_of(secret)
            except ValueError as error:
                raise Unprocessable(f"the secret of {target.url}: {error}") from error
        token = current.token if current else secrets.token_hex(16)
        stored = AlertTarget(token, target.kind, target.url, secret, target.topic, target.username, target.discovery)
        return stored, new


def _minutes(time_of_day: str) -> int:
    hours, _, minutes = time_of_day.partition(":")
    return 60 * int(hours) + int(minutes)


def _time_of_day(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _schedule(schedule: ScheduleSchema) -> Schedule:
    return Schedule(schedule.time_zone, tuple(_period(period) for period in schedule.periods))


def _period(period: PeriodSchema) -> Period:
    weekdays = tuple(sorted({_WEEKDAYS.index(weekday) for weekday in period.weekdays}))
    return Period(weekdays, _minutes(period.start) % DAY_MINUTES, _minutes(period.end))


def _rule_fields(rule: AlertRule) -> dict[str, Any]:
    settings, schedule = rule.settings, rule.settings.schedule
    return {
        "id": rule.token,
        "collection": rule.collection,
        "name": settings.name,
        "trigger": settings.trigger,
        "where": {key: OneOf(in_=list(values)) for key, values in settings.where.items()} or None,
        "cameras": list(settings.cameras),
        "schedule": schedule
        and ScheduleSchema(
            time_zone=schedule.time_zone,
            periods=[
                PeriodSchema(
                    weekdays=[_WEEKDAYS[day] for day in period.weekdays],
                    start=_time_of_day(period.start),
                    end=_time_of_day(period.end),
                )
                for period in schedule.periods
            ],
        ),
        "cooldown_s": settings.cooldown_s,
        "with_name": settings.with_name,
        "targets": [
            TargetInfo(
                id=target.token,
                kind=target.kind,
                url=target.url,
                topic=target.topic,
                username=target.username,
                discovery=target.discovery,
            )
            for target in settings.targets
        ],
        "created_at": read_timestamp(rule.created_at),
    }


def _alert_info(alert: Alert) -> AlertInfo:
    sighting = alert.sighting
    return AlertInfo(
        id=alert.token,
        rule=alert.rule.token,
        sighting=sighting.token,
        collection=sighting.collection,
        camera=sighting.camera,
        started_at=read_timestamp(sighting.started_at),
        ended_at=read_timestamp(sighting.ended_at),
        probability=sighting.probability,
        subject=None if sighting.subject is None else sighting.subject.key,
        created_at=read_timestamp(alert.created_at),
        state=alert.state,
        deliveries=[DeliveryInfo(**delivery.__dict__) for delivery in alert.targets],
    )
