"""Requests and responses about rules of alerts, alerts and their deliveries."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, SecretStr, StrictBool, StringConstraints, model_validator

from app.gallery.schemas import Key, Page
from app.gallery.search_schemas import MetadataConditions
from app.schemas import Schema
from index.alert_rules import MAX_COOLDOWN_S, AlertState, TargetKind, Trigger

MAX_TARGETS, MAX_CAMERAS, MAX_PERIODS = 8, 100, 16

Camera = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
StartTime = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
EndTime = Annotated[str, StringConstraints(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")]
# A topic without MQTT's wildcards; `$` begins topics of brokers.
Topic = Annotated[str, StringConstraints(pattern=r"^[^$+#\x00-\x1f\x7f][^+#\x00-\x1f\x7f]*$", max_length=256)]


class PeriodSchema(Schema):
    """Weekdays, and a time of day from `start` until before `end`; if `end` is not later, it is of the next day."""

    weekdays: Annotated[list[Weekday], Field(min_length=1, max_length=7, fail_fast=True)]
    start: StartTime = "00:00"
    end: EndTime = "24:00"


class ScheduleSchema(Schema):
    """When sightings cause alerts: the periods of a week, by the clocks of a time zone."""

    time_zone: Annotated[str, Field(max_length=64, description="A name of the IANA database, as Europe/Vienna.")]
    periods: Annotated[list[PeriodSchema], Field(min_length=1, max_length=MAX_PERIODS, fail_fast=True)]


class NewTarget(Schema):
    """A receiver of alerts.

    `webhook`: an HTTPS URL; `secret` is `whsec_` and 24 to 64 bytes in base64, by default a new one, which only this
    response has. `mqtt`: a broker as mqtts://broker.example.org; `secret` is the password. A rule that is replaced
    keeps the secret of a target with the same URL if the new one has none.
    """

    kind: TargetKind
    url: Annotated[str, Field(min_length=1, max_length=2048)]
    secret: Annotated[SecretStr, Field(max_length=256)] | None = None
    topic: Topic | None = Field(None, description="Of MQTT; by default vestibule/alerts/{rule}.")
    username: Annotated[str, Field(max_length=256)] | None = Field(None, description="Of MQTT.")
    discovery: StrictBool = Field(False, description="Of MQTT: let Home Assistant create an event entity for the rule.")

    @model_validator(mode="after")
    def _only_of_mqtt(self) -> Self:
        if self.kind == "webhook" and (self.topic is not None or self.username is not None or self.discovery):
            raise ValueError("topic, username and discovery are of MQTT")
        return self


class NewRule(Schema):
    """Which sightings of a collection cause an alert, and where it is sent.

    Every alert is also an event of `GET /alerts/stream`, so that a rule needs no target.
    """

    name: Annotated[str, Field(min_length=1, max_length=256)]
    trigger: Trigger = Field(description="Sightings of subjects (`match`), or of unknown people.")
    where: MetadataConditions | None = Field(
        None, description="Only subjects with these metadata, as in `POST /search`; of rules with the trigger `match`."
    )
    cameras: Annotated[list[Camera], Field(max_length=MAX_CAMERAS, fail_fast=True)] = Field(
        [], description="Only sightings of these cameras; empty: of all."
    )
    schedule: ScheduleSchema | None = Field(None, description="null: always.")
    cooldown_s: Annotated[float, Field(ge=0, le=MAX_COOLDOWN_S, allow_inf_nan=False)] = Field(
        60.0,
        description=(
            "Seconds without a further alert about the same subject at the same camera; about unknown people, at the"
            " same camera."
        ),
    )
    with_name: StrictBool = Field(False, description="Alerts have the subject's name, and not only its id.")
    targets: Annotated[list[NewTarget], Field(max_length=MAX_TARGETS, fail_fast=True)] = Field(default_factory=list)


class NewCollectionRule(NewRule):
    """A rule to create."""

    collection: Key


class TargetInfo(Schema):
    """A target of a rule, without its secret."""

    id: str
    kind: TargetKind
    url: str
    topic: str | None
    username: str | None
    discovery: bool


class RuleInfo(Schema):
    """A rule of alerts."""

    id: str
    collection: str
    name: str
    trigger: Trigger
    where: MetadataConditions | None
    cameras: list[str]
    schedule: ScheduleSchema | None
    cooldown_s: float
    with_name: bool
    targets: list[TargetInfo]
    created_at: AwareDatetime


class StoredRule(RuleInfo):
    """A rule that was created or replaced. `secrets`: the new ones of its webhooks, by the target's id."""

    secrets: dict[str, str]


class RulePage(Page[RuleInfo, int]):
    """A page of rules, oldest first; `next` is the `after` of the following page."""


class DeliveryInfo(Schema):
    """The delivery of an alert to a target. `attempts`: how many failed; `problem`: why the last one did."""

    target: str
    state: AlertState
    attempts: int
    problem: str | None


class AlertInfo(Schema):
    """An alert. `state`: `dead` or `pending` if any of the deliveries is, in this order, else `delivered`.

    `probability` as in `POST /search`; `subject` is null for an unknown person.
    """

    id: str
    rule: str
    sighting: str
    collection: str
    camera: str
    started_at: AwareDatetime
    ended_at: AwareDatetime
    probability: float | None
    subject: str | None
    created_at: AwareDatetime
    state: AlertState
    deliveries: list[DeliveryInfo]


class AlertPage(Page[AlertInfo, int]):
    """A page of alerts; `next` is the `after` of the following page."""
