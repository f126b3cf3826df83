"""The delivery of alerts from a real outbox to real receivers; the clock of the gallery is simulated."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from app.alerts import dispatcher as dispatcher_module
from app.alerts.addresses import AddressPolicy
from app.alerts.delivery import FIRST_RETRY_S, MOST_RETRY_S, retry_s
from app.alerts.dispatcher import AlertDispatcher
from app.alerts.webhooks import WebhookSender, new_secret
from app.background_tasks import background_task
from app.inference.executors import Executors
from app.observability.metrics import Metrics
from index.alert_rules import AlertDelivery, AlertSettings, AlertTarget
from index.embedded.alerts.alerts import AlertOutbox, AlertRules, Alerts, store_alerts
from index.embedded.gallery import EmbeddedGallery
from index.embedded.sightings.sightings import Sightings
from index.sightings import NewSighting
from tests.app.alerts.receiver import receiver
from tests.app.async_test import async_test
from tests.app.async_test import until as until_async
from tests.app.conftest import Clock

DEAD_AFTER_S = 4 * 3600.0
ADDRESSES = AddressPolicy([ipaddress.ip_network("127.0.0.0/8")])


class House:
    """A gallery with the collection `doors`, the subjects p0 to p9, and alerts."""

    def __init__(self, folder: Path, clock: Clock):
        self.clock = clock
        self.gallery = EmbeddedGallery(folder, clock=clock)
        self.sightings = Sightings(self.gallery, [store_alerts])
        self.rules = AlertRules(self.gallery)
        self.alerts = Alerts(self.gallery)
        self.executors = Executors()
        self.metrics = Metrics()
        self.gallery.create("doors", "face-embedder", "f1", 4)
        for number in range(10):
            self.gallery.put_subject("doors", f"p{number}")

    def dispatcher(self, sender: type[WebhookSender] = WebhookSender) -> AlertDispatcher:
        return AlertDispatcher(
            AlertOutbox(self.gallery),
            self.executors,
            {"webhook": partial(sender, ADDRESSES)},
            self.metrics,
            dead_after_s=DEAD_AFTER_S,
            clock=self.clock,
        )

    def rule(self, *urls: str) -> str:
        targets = [AlertTarget(f"t{number}-{url}", "webhook", url, new_secret()) for number, url in enumerate(urls)]
        settings = AlertSettings("Anybody", "match", targets=tuple(targets))
        return self.rules.create("doors", settings).token

    def see(self, subject: int = 0) -> str:
        """Store a sighting and return the token of its only alert."""
        now = self.clock()
        self.sightings.add("doors", NewSighting("door", now, now, 1, subject=f"p{subject}"))
        return self.alerts.page(newest_first=True, limit=1)[0].token

    def states(self) -> list[str]:
        return [alert.state for alert in self.alerts.page()]

    def attempts(self, outcome: str) -> float:
        value = self.metrics.registry.get_sample_value("vestibule_alert_attempts_total", {"outcome": outcome})
        return value or 0.0

    def close(self) -> None:
        self.executors.stop()
        self.gallery.close()


@pytest.fixture
def house(tmp_path: Path, clock: Clock) -> Iterator[House]:
    house = House(tmp_path / "gallery", clock)
    yield house
    house.close()


@asynccontextmanager
async def working(house: House) -> AsyncIterator[AlertDispatcher]:
    dispatcher = house.dispatcher()
    async with background_task(dispatcher.work()):
        yield dispatcher


def test_pauses_double_up_to_a_ceiling_and_are_random() -> None:
    assert [retry_s(attempts, lambda: 1.0) for attempts in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert [retry_s(attempts, lambda: 0.0) for attempts in (1, 2)] == [0.5, 1]
    assert retry_s(1000, lambda: 1.0) == MOST_RETRY_S
    drawn = {retry_s(1) for _ in range(100)}
    assert len(drawn) > 50
    assert FIRST_RETRY_S / 2 <= min(drawn) <= max(drawn) <= FIRST_RETRY_S


@async_test
async def test_alerts_are_sent_in_their_order(house: House) -> None:
    async with receiver() as hook, working(house) as dispatcher:
        house.rule(hook.url)
        sent = [house.see(number) for number in range(5)]
        dispatcher.notify()
        await until_async(lambda: house.states() == ["delivered"] * 5)
        assert hook.ids == sent
        sent.append(house.see())  # found without a notification
        await until_async(lambda: hook.ids == sent)


@async_test
async def test_a_receiver_that_is_down_for_an_hour_gets_everything_in_order(house: House) -> None:
    """The clock is simulated: each step of ten seconds stores an alert, or lets time pass."""
    up = False
    async with receiver(lambda request: 204 if up else 503) as hook:
        house.rule(hook.url)
        dispatcher, sent = house.dispatcher(), []
        for step in range(360):
            if step % 4 == 0:
                sent.append(house.see(step % 10))
            await dispatcher.send_due()
            house.clock.now += 10
        refused = hook.ids
        assert set(refused) == {sent[0]}  # the later ones wait
        assert 12 <= len(refused) <= 40  # pauses of half to all of 300 s
        up = True
        hook.requests.clear()
        house.clock.now += MOST_RETRY_S
        await dispatcher.send_due()
    assert hook.ids == sent
    assert set(house.states()) == {"delivered"}
    assert house.attempts("delivered") == 90


@async_test
async def test_an_old_alert_is_dead_and_can_be_sent_again(house: House) -> None:
    status = 500
    async with receiver(lambda request: status) as hook:
        house.rule(hook.url)
        dispatcher = house.dispatcher()
        first = house.see()
        await dispatcher.send_due()
        house.clock.now += DEAD_AFTER_S - 1
        second = house.see(1)
        await dispatcher.send_due()
        assert house.states() == ["pending", "pending"]
        house.clock.now += MOST_RETRY_S
        await dispatcher.send_due()
        assert house.states() == ["dead", "pending"]
        (dead,) = house.alerts.page(state="dead")
        assert dead.token == first
        assert dead.targets[0].problem == "the receiver answered 500"
        assert (dead.targets[0].attempts, house.attempts("dead")) == (3, 1)
        status = 200
        hook.requests.clear()
        house.clock.now += MOST_RETRY_S
        await dispatcher.send_due()
        assert hook.ids == [second]
        house.alerts.resend(first)
        await dispatcher.send_due()
        assert hook.ids == [second, first]
        assert house.states() == ["delivered", "delivered"]


@async_test
async def test_a_receiver_that_is_gone_gets_each_alert_once(house: House) -> None:
    async with receiver(lambda request: 410) as hook:
        house.rule(hook.url)
        sent = [house.see(number) for number in range(3)]
        await house.dispatcher().send_due()
    assert hook.ids == sent
    assert house.states() == ["dead"] * 3


@async_test
async def test_a_target_that_hangs_delays_no_other(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "ATTEMPT_S", 1.0)
    async with receiver(lambda request: None) as hanging, receiver() as quick, working(house):
        house.rule(hanging.url, quick.url)
        sent = [house.see(number % 10) for number in range(20)]
        await until_async(lambda: quick.ids == sent)
        await until_async(lambda: any(target.problem for target in house.alerts.page()[0].targets))
        assert set(hanging.ids) == {sent[0]}
        first = house.alerts.page()[0]
        assert [(target.state, target.problem) for target in first.targets] == [
            ("pending", "no answer within 1 s"),
            ("delivered", None),
        ]


@async_test
async def test_targets_that_are_no_longer_allowed_are_not_sent_to(house: House) -> None:
    async with receiver() as hook:
        house.rule(hook.url.replace("127.0.0.1", "10.0.0.1"), "https://nobody.invalid/")
        house.see()
        await house.dispatcher().send_due()
        assert hook.connections == 0
    problems = [target.problem or "" for target in house.alerts.page()[0].targets]
    assert "VESTIBULE_ALERT_PRIVATE_TARGETS" in problems[0]
    assert "cannot be looked up" in problems[1]


@async_test
async def test_undelivered_alerts_of_an_erased_subject_disappear(house: House) -> None:
    up = False
    async with receiver(lambda request: 204 if up else 503) as hook:
        house.rule(hook.url)
        dispatcher = house.dispatcher()
        sent = [house.see(number % 2) for number in range(6)]
        await dispatcher.send_due()
        assert hook.ids == sent[:1]
        house.gallery.remove_subject("doors", "p0")
        up = True
        hook.requests.clear()
        await dispatcher.send_due()
    assert hook.ids == sent[1::2]


@async_test
async def test_another_process_with_the_lease_sends(house: House) -> None:
    other = AlertOutbox(house.gallery)
    assert other.hold()
    async with receiver() as hook:
        house.rule(hook.url)
        sent = house.see()
        dispatcher = house.dispatcher()
        await dispatcher.send_due()
        assert hook.ids == []
        other.release()
        await dispatcher.send_due()
        assert hook.ids == [sent]
    assert other.hold()  # it was released


@async_test
async def test_an_alert_is_sent_again_with_its_id_if_its_acceptance_was_not_recorded(house: House) -> None:
    async with receiver() as hook:
        house.rule(hook.url)
        sent = house.see()
        delivery = AlertOutbox(house.gallery).first(f"t0-{hook.url}")
        assert delivery is not None
        async with WebhookSender(ADDRESSES) as sender:
            await sender.send(delivery)  # and the process dies
        await house.dispatcher().send_due()
    assert hook.ids == [sent, sent]
    assert hook.requests[0].body == hook.requests[1].body


@async_test
async def test_work_goes_on_after_an_unexpected_error(house: House) -> None:
    failures = 0

    class Failing(WebhookSender):
        async def send(self, delivery: AlertDelivery) -> None:
            nonlocal failures
            if failures < 2:
                failures += 1
                raise RuntimeError("a defect")
            await super().send(delivery)

    async with receiver() as hook:
        house.rule(hook.url)
        sent = house.see()
        async with background_task(house.dispatcher(Failing).work()):
            await until_async(lambda: hook.ids == [sent])


@async_test
async def test_work_stops_in_the_middle_of_an_attempt(house: House) -> None:
    async with receiver(lambda request: None) as hook:
        house.rule(hook.url)
        house.see()
        async with working(house):
            await until_async(lambda: len(hook.ids) == 1)
        assert house.states() == ["pending"]
        assert AlertOutbox(house.gallery).hold()  # the lease was released
