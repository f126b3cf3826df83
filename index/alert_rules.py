"""Rules of alerts: which sightings cause one, and where it is sent. Both storage engines store a rule as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from index.errors import InvalidError
from index.metadata import is_match
from index.sightings import Sighting, check_camera
from index.types import Where
from index.validation import EARLIEST, LATEST, normalised_where

TargetKind = Literal["webhook", "mqtt"]
Trigger = Literal["match", "unknown"]

MAX_COOLDOWN_S = 86_400.0
MAX_RULES = 100  # of a collection: all are read for each of its sightings
DAY_MINUTES = 24 * 60
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Period:
    """Minutes since midnight, 0..1440, on these weekdays (0: Monday). Ends on the next day unless `start` < `end`."""

    weekdays: tuple[int, ...]
    start: int
    end: int

    def contains(self, local: datetime) -> bool:
        """Return whether this local time is in the period, whose weekday is that of its start."""
        minute = local.hour * 60 + local.minute
        if self.start < self.end:
            return local.weekday() in self.weekdays and self.start <= minute < self.end
        if minute >= self.start:
            return local.weekday() in self.weekdays
        return minute < self.end and (local - timedelta(days=1)).weekday() in self.weekdays


@dataclass(frozen=True)
class Schedule:
    """The periods of a week, by the clocks of a time zone of the IANA database."""

    time_zone: str
    periods: tuple[Period, ...]

    def contains(self, at: float) -> bool:
        """Return whether this time, in seconds since 1970, is in a period."""
        # Beyond these, other time zones may have a year that `datetime` does not support.
        shiftable = min(max(at, EARLIEST + _DAY_S), LATEST - _DAY_S)
        local = datetime.fromtimestamp(shiftable, UTC).astimezone(ZoneInfo(self.time_zone))
        return any(period.contains(local) for period in self.periods)


@dataclass(frozen=True)
class AlertTarget:
    """A receiver of a rule's alerts. `token`: its public id.

    `secret`: the key of a webhook's signatures, or the broker's password. `topic`, `username`, `discovery` (send Home
    Assistant's discovery message): of MQTT.
    """

    token: str
    kind: TargetKind
    url: str
    secret: str | None = field(default=None, repr=False)
    topic: str | None = None
    username: str | None = None
    discovery: bool = False


@dataclass(frozen=True)
class AlertSettings:
    """A rule: the sightings that cause an alert, and its targets.

    `where`: a filter of the subject's metadata, empty for none. `cameras`: their names, empty for all. `cooldown_s`:
    seconds without a further alert about the same subject at the same camera; about unknown people, at the same camera.
    `with_name`: alerts have the subject's name.
    """

    name: str
    trigger: Trigger
    where: Where = field(default_factory=dict)
    cameras: tuple[str, ...] = ()
    schedule: Schedule | None = None
    cooldown_s: float = 0.0
    with_name: bool = False
    targets: tuple[AlertTarget, ...] = ()

    def applies(self, sighting: Sighting) -> bool:
        """Return whether the sighting causes an alert, apart from the cooldown. The schedule is of its start."""
        subject = sighting.subject
        return (
            (subject is None) == (self.trigger == "unknown")
            and (not self.cameras or sighting.camera in self.cameras)
            and (subject is None or is_match(subject.metadata, self.where))
            and (self.schedule is None or self.schedule.contains(sighting.started_at))
        )


def check_settings(settings: AlertSettings) -> AlertSettings:
    """Return the settings, with the keys and values of `where` in Unicode form C.

    Raises:
        InvalidError: a camera's id, the schedule or the cooldown is not valid; a rule about unknown people has `where`;
        or two targets have the same URL.
    """
    for camera in settings.cameras:
        check_camera(camera)
    if settings.schedule is not None:
        _check_schedule(settings.schedule)
    if not 0 <= settings.cooldown_s <= MAX_COOLDOWN_S:  # also true of NaN
        raise InvalidError(f"expected cooldown_s from 0 to {MAX_COOLDOWN_S:.0f} seconds")
    if settings.trigger == "unknown" and settings.where:
        raise InvalidError("unknown people have no metadata: a rule about them cannot have `where`")
    if len({target.url for target in settings.targets}) < len(settings.targets):
        raise InvalidError("two targets have the same URL")
    return replace(settings, where=normalised_where(settings.where))


def _check_schedule(schedule: Schedule) -> None:
    try:
        ZoneInfo(schedule.time_zone)
    except (ZoneInfoNotFoundError, OSError, ValueError) as error:  # such as of a folder, or of a path
        raise InvalidError(f"{schedule.time_zone!r} is not a time zone; expected one as Europe/Vienna") from error
    for period in schedule.periods:
        minutes = (period.start, period.end)
        if not all(0 <= minute <= DAY_MINUTES for minute in minutes) or period.start == DAY_MINUTES:
            raise InvalidError("expected times of a schedule from 00:00 to 24:00")
        if not period.weekdays or not set(period.weekdays) <= set(range(7)):
            raise InvalidError("expected weekdays of a schedule from 0 to 6")


AlertState = Literal["pending", "delivered", "dead"]


@dataclass(frozen=True)
class AlertRule:
    """A stored rule of a collection. `token`: its public id; `id` increases with the order of creation."""

    id: int
    token: str
    collection: str
    settings: AlertSettings
    created_at: float


@dataclass(frozen=True)
class TargetState:
    """The delivery of an alert to one target. `attempts`: how many failed; `problem`: why the last one did."""

    target: str
    state: AlertState
    attempts: int
    problem: str | None


@dataclass(frozen=True)
class Alert:
    """An alert of a rule about a sighting. `position` increases in the order of the commits; `token`: its public id.

    `targets`: the deliveries, in the order of the rule's targets.
    """

    position: int
    token: str
    rule: AlertRule
    sighting: Sighting
    created_at: float
    targets: tuple[TargetState, ...]

    @property
    def state(self) -> AlertState:
        """Return "dead" or "pending" if any delivery is, in this order, else "delivered"."""
        states = {target.state for target in self.targets}
        return "dead" if "dead" in states else "pending" if "pending" in states else "delivered"


@dataclass(frozen=True)
class AlertDelivery:
    """An alert to send to one of its rule's targets. `queued_at`: when it, or its repetition, was requested.

    `attempts`: how many have failed since.
    """

    alert: Alert
    target: AlertTarget
    queued_at: float
    attempts: int


def dump_settings(settings: AlertSettings) -> str:
    """Return the settings, with the secrets of the targets, as JSON."""
    return json.dumps(asdict(settings))


def load_settings(text: str) -> AlertSettings:
    """Return the settings of `dump_settings`."""
    fields: dict[str, Any] = json.loads(text)
    schedule = fields["schedule"]
    return AlertSettings(
        **{
            **fields,
            "cameras": tuple(fields["cameras"]),
            "schedule": schedule
            and Schedule(
                schedule["time_zone"],
                tuple(Period(tuple(period.pop("weekdays")), **period) for period in schedule["periods"]),
            ),
            "targets": tuple(AlertTarget(**target) for target in fields["targets"]),
        }
    )
