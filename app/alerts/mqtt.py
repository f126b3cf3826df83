"""Alerts over MQTT 3.1.1 with QoS 1: the broker's acknowledgement accepts an alert.

Alerts are not retained: a broker would tell a subscriber of tomorrow who was where today, also after an erasure. Home
Assistant's discovery message is retained; it has the rule's name and nothing about people.
"""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from app.alerts.addresses import AddressPolicy, Endpoint
from app.alerts.delivery import ATTEMPT_S, AttemptFailed
from app.alerts.payload import encode, payload
from index.alert_rules import AlertDelivery, AlertRule, AlertTarget

if TYPE_CHECKING:
    from aiomqtt import Client

TOPIC = "vestibule/alerts/{rule}"
_DISCOVERY_TOPIC = "homeassistant/event/vestibule_{rule}/config"


class _NamedContext(ssl.SSLContext):
    """Verifies the certificate of `host` on a connection that was opened to its address."""

    host: str

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """Wrap the socket, with the host's name in place of its address."""
        return super().wrap_socket(*args, **{**options, "server_hostname": self.host})


def topic_of(rule: AlertRule, target: AlertTarget) -> str:
    """Return the topic to which the rule's alerts are published."""
    return target.topic or TOPIC.format(rule=rule.token)


def discovery(rule: AlertRule, target: AlertTarget) -> tuple[str, dict[str, Any]]:
    """Return topic and content of the message from which Home Assistant creates an event entity for the rule."""
    identifier = f"vestibule_{rule.token}"
    return _DISCOVERY_TOPIC.format(rule=rule.token), {
        "name": rule.settings.name,
        "unique_id": identifier,
        "state_topic": topic_of(rule, target),
        "event_types": [rule.settings.trigger],
        "icon": "mdi:account-eye",
        "device": {"identifiers": ["vestibule"], "name": "Vestibule"},
        "origin": {"name": "Vestibule", "sw_version": version("vestibule")},
    }


class MqttSender:
    """Sends the alerts of one target. Use it as a context: the connection stays open between two alerts.

    `certificates`: a file with the authorities to trust, None for the system's.
    """

    def __init__(self, addresses: AddressPolicy, *, certificates: str | None = None):
        self._addresses = addresses
        self._certificates = certificates
        self._stack = AsyncExitStack()
        self._client: Client | None = None

    async def __aenter__(self) -> MqttSender:
        """Return the sender."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the connection."""
        from aiomqtt import MqttError

        with suppress(MqttError):  # the connection is closed already
            await self._stack.aclose()

    async def send(self, delivery: AlertDelivery) -> None:
        """Publish an alert once, and before the first one of a connection the discovery message, if it is wanted.

        Raises:
            RefusedTarget, UnknownHost: see `AddressPolicy.resolve`. AttemptFailed.
        """
        from aiomqtt import MqttError

        rule, target = delivery.alert.rule, delivery.target
        try:
            if self._client is None:
                endpoint = await self._addresses.resolve("mqtt", target.url)
                self._client = await self._stack.enter_async_context(self._open(endpoint, target))
                if target.discovery:
                    topic, content = discovery(rule, target)
                    await self._client.publish(topic, encode(content), qos=1, retain=True)
            # Home Assistant reads `event_type`.
            content = {**payload(delivery.alert), "event_type": rule.settings.trigger}
            await self._client.publish(topic_of(rule, target), encode(content), qos=1)
        except MqttError as error:
            raise AttemptFailed(f"the broker did not accept it: {error}") from error

    def _open(self, endpoint: Endpoint, target: AlertTarget) -> Client:
        # Imported here: most services have no such target, and the client takes a while to import.
        from aiomqtt import Client

        context = None
        if endpoint.tls:
            context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
            context.host = endpoint.host
            context.load_default_certs() if self._certificates is None else context.load_verify_locations(
                self._certificates
            )
        return Client(
            endpoint.address,
            endpoint.port,
            username=target.username,
            password=target.secret,
            tls_context=context,
            timeout=ATTEMPT_S,
        )
