"""Alerts of every engine: which sightings cause them, their order, their deliveries, and their erasure."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from index.alert_rules import MAX_RULES, Alert, AlertRule, AlertSettings, AlertTarget, Period, Schedule
from index.errors import ConflictError, InvalidError, NotFoundError
from index.protocol import LEASE_S, AlertOutbox
from index.sightings import DAY_S, NewSighting, Sighting, SightingSettings
from tests.index.contract.engines import Engine
from tests.index.people import Clock

NOW = 1_700_000_000.0  # Tuesday, 22:13:20 UTC
HOOK = AlertTarget("hook", "webhook", "https://a.example/hook", "whsec_secret")
BROKER = AlertTarget("broker", "mqtt", "mqtts://b.example", "password", "doors/alerts", "vestibule", discovery=True)
ANYBODY = AlertSettings("Anybody", "match", targets=(HOOK,))
STRANGER = AlertSettings("Stranger", "unknown", targets=(HOOK,))


@pytest.fixture
def doors(engine: Engine, clock: Clock) -> Engine:
    clock.now = NOW
    for name in ("doors", "gates"):
        engine.gallery.create(name, "face-embedder", "f1", 4)
        for number in range(3):
            engine.gallery.put_subject(name, f"p{number}", name="Ada", metadata={"level": number, "site": "n\u00f6rd"})
    return engine


def see(doors: Engine, subject: str | None = "p1", camera: str = "door", collection: str = "doors") -> Sighting:
    now = doors.gallery.clock()
    return doors.sightings.add(collection, NewSighting(camera, now - 2, now, 3, 0.9, subject=subject))


def seen(doors: Engine, **filters: Any) -> list[str]:
    """Return the tokens of the sightings about which there are alerts."""
    return [alert.sighting.token for alert in doors.alerts.page(**filters)]


def deliver(outbox: AlertOutbox, target: str = "hook") -> list[Alert]:
    """Accept all due deliveries to the target."""
    delivered = []
    while delivery := outbox.first(target):
        delivered.append(delivery.alert)
        outbox.delivered(delivery)
    return delivered


def test_rules_are_stored_and_listed(doors: Engine, clock: Clock) -> None:
    settings = AlertSettings(
        "Strangers at night",
        "unknown",
        cameras=("door", "yard"),
        schedule=Schedule("Europe/Vienna", (Period((0, 6), 1320, 360), Period((5,), 0, 1440))),
        cooldown_s=60.0,
        with_name=True,
        targets=(HOOK, BROKER),
    )
    rule = doors.alert_rules.create("doors", settings, actor="k1")
    assert rule == AlertRule(rule.id, rule.token, "doors", settings, NOW)
    assert doors.alert_rules.rule(rule.token) == rule
    assert "secret" not in repr(rule)
    clock.now += 1
    second = doors.alert_rules.create("gates", replace(ANYBODY, targets=(), where={"site": ["no\u0308rd"]}))
    assert second.settings.where == {"site": ["n\u00f6rd"]}  # in form C
    assert doors.alert_rules.page() == [rule, second]
    assert doors.alert_rules.page(limit=1) == [rule]
    assert doors.alert_rules.page(rule.id) == [second]
    changed = doors.alert_rules.replace(rule.token, replace(settings, name="At night"), actor="k2")
    assert changed == replace(rule, settings=replace(settings, name="At night"))
    doors.alert_rules.remove(rule.token, actor="k3")
    assert doors.alert_rules.page() == [second]
    entries, _ = doors.audit.read()
    recorded = [
        (entry.event.action, entry.event.actor, entry.event.of) for entry in entries if "rule" in entry.event.action
    ]
    assert recorded == [
        ("create_alert_rule", "k1", rule.token),
        ("create_alert_rule", None, second.token),
        ("put_alert_rule", "k2", rule.token),
        ("delete_alert_rule", "k3", rule.token),
    ]


def test_what_does_not_exist_is_not_found(doors: Engine) -> None:
    rules = doors.alert_rules
    missing: list[Callable[[], object]] = [
        lambda: rules.create("x", ANYBODY),
        lambda: rules.rule("x"),
        lambda: rules.replace("x", ANYBODY),
        lambda: rules.remove("x"),
        lambda: doors.alerts.alert("x"),
        lambda: doors.alerts.resend("x"),
    ]
    for call in missing:
        with pytest.raises(NotFoundError):
            call()
    assert doors.new_outbox().first("x") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"cameras": ("a camera",)},
        {"cooldown_s": -1.0},
        {"cooldown_s": float("nan")},
        {"cooldown_s": 1e9},
        {"trigger": "unknown", "where": {"site": ["n"]}},
        {"targets": (HOOK, replace(HOOK, token="other"))},
        {"schedule": Schedule("Europe/Nowhere", (Period((0,), 0, 1),))},
        {"schedule": Schedule("../passwd", (Period((0,), 0, 1),))},
        {"schedule": Schedule("Europe", (Period((0,), 0, 1),))},
        {"schedule": Schedule("UTC", (Period((7,), 0, 1),))},
        {"schedule": Schedule("UTC", (Period((), 0, 1),))},
        {"schedule": Schedule("UTC", (Period((0,), 0, 1441),))},
        {"schedule": Schedule("UTC", (Period((0,), 1440, 1),))},
    ],
)
def test_invalid_rules_are_refused(doors: Engine, wrong: dict[str, Any]) -> None:
    rule = doors.alert_rules.create("doors", ANYBODY)
    with pytest.raises(InvalidError):
        doors.alert_rules.create("doors", replace(ANYBODY, **wrong))
    with pytest.raises(InvalidError):
        doors.alert_rules.replace(rule.token, replace(ANYBODY, **wrong))
    assert doors.alert_rules.page() == [rule]


def test_a_collection_has_a_bounded_number_of_rules(doors: Engine) -> None:
    for _ in range(MAX_RULES):
        doors.alert_rules.create("doors", replace(ANYBODY, targets=()))
    with pytest.raises(InvalidError, match="100 rules"):
        doors.alert_rules.create("doors", ANYBODY)
    doors.alert_rules.create("gates", ANYBODY)


def test_a_sighting_causes_the_alerts_of_the_rules_that_apply(doors: Engine) -> None:
    rules = [
        doors.alert_rules.create("doors", settings)
        for settings in (
            replace(ANYBODY, name="all"),
            replace(ANYBODY, name="level 1", where={"level": [1.0, "1"]}, targets=()),
            replace(ANYBODY, name="true", where={"level": [True]}, targets=()),
            replace(ANYBODY, name="yard", cameras=("yard",), targets=()),
            replace(STRANGER, targets=()),
        )
    ]
    doors.alert_rules.create("gates", replace(ANYBODY, targets=()))
    known, unknown, yard = see(doors), see(doors, None), see(doors, "p2", "yard")
    see(doors, None, collection="gates")  # causes none
    causes = [(alert.rule.settings.name, alert.sighting) for alert in doors.alerts.page()]
    assert causes == [("all", known), ("level 1", known), ("Stranger", unknown), ("all", yard), ("yard", yard)]
    first = doors.alerts.page()[0]
    assert (first.rule, first.created_at, first.state) == (rules[0], NOW, "pending")
    assert [(target.target, target.state, target.attempts) for target in first.targets] == [("hook", "pending", 0)]
    assert doors.alerts.page()[1].state == "delivered"  # to the event stream, as it has no target
    assert doors.alerts.alert(first.token) == first


def test_the_schedule_is_by_the_clocks_of_its_time_zone(doors: Engine, clock: Clock) -> None:
    # 22:13 UTC on Tuesday is 23:13 in Vienna, and 07:13 of Wednesday in Tokyo.
    for name, zone, period in (
        ("UTC", "UTC", Period((1,), 22 * 60 + 13, 22 * 60 + 14)),
        ("Vienna", "Europe/Vienna", Period((1,), 23 * 60, 60)),
        ("Tokyo", "Asia/Tokyo", Period((2,), 7 * 60, 8 * 60)),
        ("Tokyo's Tuesday", "Asia/Tokyo", Period((1,), 0, 1440)),
        ("Tuesday's night in Tokyo", "Asia/Tokyo", Period((1,), 20 * 60, 8 * 60)),
        ("Wednesday's night in Tokyo", "Asia/Tokyo", Period((2,), 20 * 60, 8 * 60)),
        ("the other minute", "UTC", Period((1,), 22 * 60, 22 * 60 + 13)),
    ):
        settings = AlertSettings(name, "match", schedule=Schedule(zone, (Period((6,), 0, 1), period)))
        doors.alert_rules.create("doors", settings)
    see(doors)
    names = [alert.rule.settings.name for alert in doors.alerts.page()]
    assert names == ["UTC", "Vienna", "Tokyo", "Tuesday's night in Tokyo"]


def test_the_clocks_change(doors: Engine) -> None:
    """On 2023-10-29 Vienna's clocks went from 3:00 back to 2:00: 0:30 and 1:30 UTC are both 2:30."""
    schedule = Schedule("Europe/Vienna", (Period((6,), 150, 151),))
    summer = 1_698_539_400.0  # 2023-10-29 00:30 UTC
    assert [schedule.contains(summer + 1800 * step) for step in range(-1, 4)] == [False, True, False, True, False]


def test_times_at_the_ends_of_the_calendar_have_a_schedule(doors: Engine) -> None:
    schedule = Schedule("Asia/Tokyo", (Period(tuple(range(7)), 0, 1440),))
    assert schedule.contains(253_402_300_799.0)
    assert Schedule("America/New_York", schedule.periods).contains(-62_135_596_800.0)


def test_the_cooldown_is_by_subject_and_camera(doors: Engine, clock: Clock) -> None:
    doors.alert_rules.create("doors", replace(ANYBODY, cooldown_s=60.0, targets=()))
    doors.alert_rules.create("doors", replace(STRANGER, cooldown_s=60.0, targets=()))
    expected = [see(doors).token, see(doors, "p2").token, see(doors, camera="yard").token, see(doors, None).token]
    expected.append(see(doors, None, "yard").token)
    for _ in range(2):
        clock.now += 29
        for subject, camera in (("p1", "door"), ("p2", "door"), ("p1", "yard"), (None, "door"), (None, "yard")):
            see(doors, subject, camera)
    assert seen(doors) == expected
    clock.now += 2
    assert seen(doors)[5:] == []
    expected += [see(doors).token, see(doors, None).token]
    assert seen(doors) == expected


def test_alerts_are_listed_in_pages(doors: Engine) -> None:
    doors.alert_rules.create("doors", replace(ANYBODY, targets=()))
    doors.alert_rules.create("gates", replace(ANYBODY, targets=()))
    assert doors.alerts.last_position() == 0
    stored = [see(doors, f"p{number}", collection=name).token for number in range(3) for name in ("doors", "gates")]
    positions = [alert.position for alert in doors.alerts.page()]
    assert positions == sorted(set(positions))
    assert doors.alerts.last_position() == positions[-1]
    assert seen(doors) == stored
    assert seen(doors, limit=2) == stored[:2]
    assert seen(doors, after=positions[1], limit=2) == stored[2:4]
    assert seen(doors, newest_first=True) == stored[::-1]
    assert seen(doors, after=positions[2], newest_first=True) == stored[1::-1]


def test_concurrent_alerts_have_positions_in_the_order_of_their_commits(doors: Engine) -> None:
    for name in ("doors", "gates"):
        doors.alert_rules.create(name, replace(ANYBODY, targets=()))
    found: list[str] = []
    position = 0
    with ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(see, doors, "p1", "door", collection) for collection in ("doors", "gates") for _ in range(20)
        ]
        while len(found) < 40:
            running = not all(future.done() for future in futures)
            page = doors.alerts.page(position)
            found += [alert.sighting.token for alert in page]
            position = page[-1].position if page else position
            assert running or page, "an alert was skipped"
    assert sorted(found) == sorted(future.result().token for future in futures)


def test_deliveries_are_in_the_order_of_their_target(doors: Engine) -> None:
    doors.alert_rules.create("doors", replace(ANYBODY, targets=(HOOK, BROKER)))
    outbox = doors.new_outbox()
    assert outbox.due() == []
    stored = [see(doors).token for _ in range(3)]
    assert sorted(outbox.due()) == ["broker", "hook"]
    delivery = outbox.first("hook")
    assert delivery is not None
    assert (delivery.target, delivery.queued_at, delivery.attempts) == (HOOK, NOW, 0)
    assert delivery.alert.sighting.token == stored[0]
    assert outbox.first("hook") == delivery  # nothing is recorded yet
    assert [alert.sighting.token for alert in deliver(outbox)] == stored
    assert outbox.due() == ["broker"]
    assert [alert.state for alert in doors.alerts.page()] == ["pending"] * 3
    deliver(outbox, "broker")
    assert [alert.state for alert in doors.alerts.page()] == ["delivered"] * 3
    assert seen(doors, state="delivered") == stored
    assert seen(doors, state="pending") == []


def test_a_failed_delivery_is_due_again_later_and_the_later_ones_wait(doors: Engine, clock: Clock) -> None:
    doors.alert_rules.create("doors", ANYBODY)
    outbox = doors.new_outbox()
    first, second = see(doors), see(doors)
    delivery = outbox.first("hook")
    assert delivery is not None
    outbox.failed(delivery, "HTTP 503", 10.0)
    assert outbox.due() == []
    assert outbox.first("hook") is None
    clock.now += 10
    assert outbox.due() == ["hook"]
    again = outbox.first("hook")
    assert again is not None
    assert (again.alert.token, again.attempts, again.queued_at) == (delivery.alert.token, 1, NOW)
    assert again.alert.targets[0].problem == "HTTP 503"
    assert [alert.sighting for alert in deliver(outbox)] == [first, second]
    assert doors.alerts.alert(delivery.alert.token).targets[0].problem is None


def test_dead_deliveries_are_listed_and_sent_again(doors: Engine, clock: Clock) -> None:
    doors.alert_rules.create("doors", replace(ANYBODY, targets=(HOOK, BROKER)))
    outbox = doors.new_outbox()
    first, second = see(doors), see(doors)
    delivery = outbox.first("hook")
    assert delivery is not None
    with pytest.raises(ConflictError, match="is dead"):
        doors.alerts.resend(delivery.alert.token)
    outbox.failed(delivery, "gone", None)
    assert [alert.sighting for alert in deliver(outbox)] == [second]  # the later one no longer waits
    assert seen(doors, state="dead") == [first.token]
    assert seen(doors, state="pending") == [second.token]  # to the broker
    (dead,) = doors.alerts.page(state="dead")
    assert (dead.state, [target.state for target in dead.targets]) == ("dead", ["dead", "pending"])
    clock.now += 5
    again = doors.alerts.resend(dead.token, actor="k1")
    assert (again.token, again.state, again.targets[0].attempts) == (dead.token, "pending", 0)
    entries, _ = doors.audit.read()
    assert (entries[-1].event.action, entries[-1].event.actor, entries[-1].event.of) == (
        "resend_alert",
        "k1",
        dead.token,
    )
    delivery = outbox.first("hook")
    assert delivery is not None
    assert (delivery.alert.token, delivery.queued_at, delivery.attempts) == (dead.token, NOW + 5, 0)
    deliver(outbox)
    deliver(outbox, "broker")
    assert seen(doors, state="dead") == []
    assert seen(doors, state="delivered") == [first.token, second.token]


def test_what_is_recorded_of_a_delivery_that_is_gone_has_no_effect(doors: Engine) -> None:
    rule = doors.alert_rules.create("doors", ANYBODY)
    outbox = doors.new_outbox()
    see(doors)
    delivery = outbox.first("hook")
    assert delivery is not None
    outbox.delivered(delivery)
    outbox.failed(delivery, "late", None)
    assert doors.alerts.page()[0].targets[0].state == "delivered"
    doors.alert_rules.remove(rule.token)
    outbox.failed(delivery, "later", 1.0)
    outbox.delivered(delivery)
    assert doors.alerts.page() == []


def test_a_replaced_rule_keeps_the_deliveries_to_its_targets(doors: Engine) -> None:
    rule = doors.alert_rules.create("doors", replace(ANYBODY, targets=(HOOK, BROKER)))
    outbox = doors.new_outbox()
    sighting = see(doors)
    changed = replace(HOOK, secret="whsec_new")
    doors.alert_rules.replace(rule.token, replace(ANYBODY, targets=(changed, replace(BROKER, token="new"))))
    assert outbox.first("broker") is None
    assert outbox.first("new") is None  # no earlier alerts
    delivery = outbox.first("hook")
    assert delivery is not None
    assert (delivery.target, delivery.alert.sighting) == (changed, sighting)


def test_alerts_of_an_erased_subject_disappear_in_the_same_transaction(doors: Engine) -> None:
    doors.alert_rules.create("doors", replace(ANYBODY, targets=(HOOK,)))
    outbox = doors.new_outbox()
    see(doors, "p1")
    delivery = outbox.first("hook")
    assert delivery is not None
    kept = see(doors, "p2")
    doors.gallery.remove_subject("doors", "p1")
    assert seen(doors) == [kept.token]
    with pytest.raises(NotFoundError):
        doors.alerts.alert(delivery.alert.token)
    outbox.failed(delivery, "no answer", 1.0)  # the attempt that ran meanwhile
    assert [alert.sighting for alert in deliver(outbox)] == [kept]


def test_alerts_are_erased_with_their_sighting_and_their_collection(doors: Engine) -> None:
    doors.alert_rules.create("doors", ANYBODY)
    doors.alert_rules.create("gates", replace(ANYBODY, targets=(BROKER,)))
    outbox = doors.new_outbox()
    first, second, gate = see(doors), see(doors), see(doors, collection="gates")
    doors.sightings.remove(first.token)
    assert seen(doors) == [second.token, gate.token]
    doors.gallery.drop("doors")
    assert seen(doors) == [gate.token]
    assert outbox.due() == ["broker"]
    assert [rule.collection for rule in doors.alert_rules.page()] == ["gates"]


def test_expired_sightings_and_subjects_have_no_alerts(doors: Engine, clock: Clock) -> None:
    doors.alert_rules.create("doors", ANYBODY)
    doors.alert_rules.create("doors", replace(STRANGER, targets=(BROKER,)))
    doors.sightings.put_settings("doors", SightingSettings(unknown_s=60.0, known_s=10 * DAY_S))
    outbox = doors.new_outbox()
    see(doors, None)
    see(doors, "p1")
    doors.gallery.put_subject("doors", "p1", expires_at=NOW + 100)
    kept = see(doors, "p2")
    clock.now += 100
    assert seen(doors) == [kept.token]
    assert outbox.due() == ["hook"]
    assert [alert.sighting for alert in deliver(outbox)] == [kept]  # the expired one before it is skipped
    assert outbox.first("broker") is None
    clock.now += 3600
    doors.maintain()
    assert seen(doors) == [kept.token]


def test_one_process_holds_the_lease(doors: Engine, clock: Clock) -> None:
    ours, theirs = doors.new_outbox(), doors.new_outbox()
    assert ours.hold()
    assert not theirs.hold()
    theirs.release()
    clock.now += LEASE_S - 1
    assert ours.hold()
    assert not theirs.hold()
    clock.now += LEASE_S
    assert theirs.hold()
    theirs.release()
    assert ours.hold()
