"""Alerts over MQTT to a real broker."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from app.alerts.addresses import AddressPolicy, RefusedTarget
from app.alerts.delivery import AttemptFailed
from app.alerts.mqtt import MqttSender, discovery, topic_of
from index.alert_rules import AlertTarget
from tests.app.alerts.deliveries import delivery, subject
from tests.app.async_test import async_test, until

aiomqtt = pytest.importorskip("aiomqtt")
amqtt_broker = pytest.importorskip("amqtt.broker")
# The broker's own: it is of the tests only.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LOOPBACK = AddressPolicy([ipaddress.ip_network("127.0.0.0/8")])


@asynccontextmanager
async def broker() -> AsyncIterator[tuple[int, Mapping[str, Any]]]:
    """Run a broker on a free port of loopback; yield the port, and its retained messages by topic."""
    settings = {
        "listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:0"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    running = amqtt_broker.Broker(settings)
    await running.start()
    try:
        port = running._servers["default"].instance.sockets[0].getsockname()[1]
        yield port, running.retained_messages
    finally:
        await running.shutdown()


@asynccontextmanager
async def subscribed(port: int) -> AsyncIterator[list[Any]]:
    """Yield the messages that the broker passes on, as they come."""
    messages: list[Any] = []
    async with aiomqtt.Client("127.0.0.1", port) as client:
        await client.subscribe("#", qos=1)

        async def collect() -> None:
            async for message in client.messages:
                messages.append(message)  # noqa: PERF401  a comprehension would extend it at the end only

        task = asyncio.create_task(collect())
        try:
            yield messages
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def target(port: int, **more: Any) -> AlertTarget:
    return replace(AlertTarget("target1", "mqtt", f"mqtt://127.0.0.1:{port}"), **more)


@async_test
async def test_an_alert_is_published_after_the_discovery_message() -> None:
    async with broker() as (port, retained):
        to = target(port, discovery=True)
        first, second = delivery(to, person=subject()), delivery(to, 2, person=subject())
        async with subscribed(port) as messages, MqttSender(LOOPBACK) as sender:
            await sender.send(first)
            await sender.send(second)
            await until(lambda: len(messages) == 3)
        rule = first.alert.rule
        topic, content = discovery(rule, to)
        assert str(messages[0].topic) == topic == "homeassistant/event/vestibule_rule1/config"
        assert json.loads(messages[0].payload) == content
        assert [str(message.topic) for message in messages[1:]] == ["vestibule/alerts/rule1"] * 2
        alerts = [json.loads(message.payload) for message in messages[1:]]
        assert [alert["data"]["alert"] for alert in alerts] == ["alert1", "alert2"]
        # What Home Assistant's event entities read: https://www.home-assistant.io/integrations/event.mqtt
        assert content["state_topic"] == topic_of(rule, to)
        assert alerts[0]["event_type"] in content["event_types"]
        assert [*retained] == [topic]  # alerts are not retained


@async_test
async def test_an_alert_is_published_to_the_topic_of_its_target() -> None:
    async with broker() as (port, _), subscribed(port) as messages, MqttSender(LOOPBACK) as sender:
        await sender.send(delivery(target(port, topic="house/doors")))
        await until(lambda: len(messages) == 1)
        assert str(messages[0].topic) == "house/doors"
        assert json.loads(messages[0].payload)["event_type"] == "unknown"


@async_test
async def test_a_broker_that_cannot_be_reached_is_a_failed_attempt() -> None:
    async with broker() as (port, _):
        pass
    async with MqttSender(LOOPBACK) as sender:
        with pytest.raises(AttemptFailed, match="the broker did not accept it"):
            await sender.send(delivery(target(port)))
    async with MqttSender(AddressPolicy()) as sender:
        with pytest.raises(RefusedTarget):
            await sender.send(delivery(target(port)))
