"""Alerts as webhooks after the Standard Webhooks specification: signed with HMAC-SHA256, the receiver's 2xx accepts."""

from __future__ import annotations

import base64
import hmac
import secrets
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus

import httpx

from app.alerts.addresses import AddressPolicy, Endpoint
from app.alerts.delivery import ATTEMPT_S, AttemptFailed, Gone
from app.alerts.payload import encode, payload
from index.alert_rules import AlertDelivery

SECRET_PREFIX = "whsec_"  # noqa: S105  not a secret
# The lengths of a key in bytes that the specification allows, and that of a new one.
MIN_KEY, MAX_KEY, NEW_KEY = 24, 64, 32
_CONTENT_TYPE = "application/json"


def new_secret() -> str:
    """Return a new random secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(NEW_KEY)).decode()


def key_of(secret: str) -> bytes:
    """Return the key of a secret.

    Raises:
        ValueError: it is not `whsec_` and 24 to 64 bytes in base64.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:  # also of binascii
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not MIN_KEY <= len(key) <= MAX_KEY:
        raise ValueError(f"expected {SECRET_PREFIX} and {MIN_KEY} to {MAX_KEY} bytes in base64")
    return key


def signature(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature` of a message."""
    digest = hmac.digest(key_of(secret), f"{id}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


class WebhookSender:
    """Sends alerts, each on a connection of its own. Use it as a context.

    `verify`: the certificates to trust, True for those of well-known authorities. `clock` returns seconds since 1970.
    """

    def __init__(
        self,
        addresses: AddressPolicy,
        *,
        verify: ssl.SSLContext | bool = True,
        clock: Callable[[], float] = time.time,
    ):
        self._addresses = addresses
        self._clock = clock
        # Redirects could lead to an address that was not checked, and a proxy would look up the name again.
        # Connections are reused by address: another name of an address would not get its certificate checked.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.AsyncClient(
            follow_redirects=False, trust_env=False, timeout=ATTEMPT_S, verify=verify, limits=limits
        )

    async def __aenter__(self) -> WebhookSender:
        """Return the sender."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(self, delivery: AlertDelivery) -> None:
        """Send an alert once. The caller limits the time.

        Raises:
            RefusedTarget, UnknownHost: see `AddressPolicy.resolve`. AttemptFailed. Gone: the receiver wants no alerts.
        """
        target = delivery.target
        endpoint = await self._addresses.resolve("webhook", target.url)
        body = encode(payload(delivery.alert))
        timestamp = int(self._clock())
        request = self._client.build_request(
            "POST",
            httpx.URL(target.url).copy_with(host=endpoint.address),
            content=body,
            headers={
                "host": _host_header(endpoint),
                "content-type": _CONTENT_TYPE,
                "user-agent": "vestibule-alerts",
                "webhook-id": delivery.alert.token,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": signature(target.secret or "", delivery.alert.token, timestamp, body),
            },
            extensions={"sni_hostname": endpoint.host},
        )
        try:
            response = await self._client.send(request, stream=True)
            await response.aclose()  # reads nothing of the body
        except httpx.HTTPError as error:
            raise AttemptFailed(type(error).__name__) from error
        if response.status_code == HTTPStatus.GONE:
            raise Gone("the receiver answered 410 Gone")
        if not response.is_success:
            raise AttemptFailed(f"the receiver answered {response.status_code}")


def _host_header(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return host if endpoint.port == (443 if endpoint.tls else 80) else f"{host}:{endpoint.port}"
