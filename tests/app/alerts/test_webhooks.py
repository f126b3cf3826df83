"""Webhooks to a real receiver; the signatures are checked by the library of the specification."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.alerts.addresses import AddressPolicy, RefusedTarget, UnknownHost
from app.alerts.delivery import AttemptFailed, Gone
from app.alerts.webhooks import WebhookSender, key_of, new_secret, signature
from index.alert_rules import AlertTarget
from tests.app.alerts.deliveries import delivery, subject
from tests.app.alerts.receiver import Received, receiver
from tests.app.async_test import async_test

LOOPBACK = AddressPolicy([ipaddress.ip_network("127.0.0.0/8")])
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def target(url: str, secret: str = SECRET) -> AlertTarget:
    return AlertTarget("target1", "webhook", url, secret)


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of its text: https://github.com/standard-webhooks/standard-webhooks, "spec"."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    assert signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_the_library_of_the_specification_accepts_a_new_secret_and_its_signature() -> None:
    library = pytest.importorskip("standardwebhooks")
    secret, body, now = new_secret(), '{"é": 1}', int(time.time())
    headers = {
        "webhook-id": "a1",
        "webhook-timestamp": str(now),
        "webhook-signature": signature(secret, "a1", now, body.encode()),
    }
    assert library.Webhook(secret).verify(body, headers) == {"é": 1}
    with pytest.raises(library.WebhookVerificationError):
        library.Webhook(secret).verify(body + " ", headers)


@pytest.mark.parametrize("secret", ["", "abc", "whsec_", "whsec_é", "whsec_AAAA", "whsec_" + "A" * 120, SECRET[6:]])
def test_invalid_secrets_are_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes"):
        key_of(secret)


@async_test
async def test_an_alert_is_posted_with_its_signature() -> None:
    async with receiver() as hook, WebhookSender(LOOPBACK, clock=lambda: 1234.5) as sender:
        await sender.send(delivery(target(hook.url), person=subject()))
        await sender.send(delivery(target(hook.url), 2))
    first, second = hook.requests
    assert (first.path, first.headers["host"]) == ("/hook?door=1", f"127.0.0.1:{hook.port}")
    assert first.headers["content-type"] == "application/json"
    assert (first.headers["webhook-id"], first.headers["webhook-timestamp"]) == ("alert1", "1234")
    assert first.headers["webhook-signature"] == signature(SECRET, "alert1", 1234, first.body)
    content = json.loads(first.body)
    assert content["type"] == "alert.match"
    assert content["data"] == {
        "alert": "alert1",
        "rule": "rule1",
        "rule_name": "Door",
        "sighting": "sighting1",
        "collection": "staff",
        "camera": "door",
        "started_at": "2023-11-14T22:13:20+00:00",
        "ended_at": "2023-11-14T22:13:22+00:00",
        "probability": 0.9,
        "subject": "p1",
        "pseudonym": None,
    }
    assert json.loads(second.body)["type"] == "alert.unknown"
    assert json.loads(second.body)["data"]["subject"] is None


@async_test
async def test_the_name_is_sent_only_if_the_rule_says_so() -> None:
    async with receiver() as hook, WebhookSender(LOOPBACK) as sender:
        await sender.send(delivery(target(hook.url), person=subject(name="Ada")))
        await sender.send(delivery(target(hook.url), person=subject(name="Ada"), with_name=True))
        await sender.send(delivery(target(hook.url), with_name=True))
    assert [json.loads(request.body)["data"].get("name", "-") for request in hook.requests] == ["-", "Ada", "-"]


@async_test
async def test_a_redirect_is_a_failure_and_is_not_followed() -> None:
    async with receiver() as other:

        def redirect(request: Received) -> bytes:
            return b"HTTP/1.1 307 x\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % other.url.encode()

        async with receiver(redirect) as hook, WebhookSender(LOOPBACK) as sender:
            with pytest.raises(AttemptFailed, match="307"):
                await sender.send(delivery(target(hook.url)))
        assert other.requests == []


@async_test
async def test_failures_are_told_apart() -> None:
    statuses = iter([500, 404, 410])
    async with receiver(lambda request: next(statuses)) as hook, WebhookSender(LOOPBACK) as sender:
        for status, kind in ((500, AttemptFailed), (404, AttemptFailed), (410, Gone)):
            with pytest.raises(kind, match=str(status)):
                await sender.send(delivery(target(hook.url)))
    async with receiver(lambda request: b"not HTTP\r\n\r\n") as hook, WebhookSender(LOOPBACK) as sender:
        with pytest.raises(AttemptFailed, match="RemoteProtocolError"):
            await sender.send(delivery(target(hook.url)))
    async with WebhookSender(LOOPBACK) as sender:  # nobody listens
        with pytest.raises(AttemptFailed, match="ConnectError"):
            await sender.send(delivery(target(hook.url)))


@async_test
async def test_a_receiver_that_hangs_is_given_up_by_the_caller() -> None:
    async with receiver(lambda request: None) as hook, WebhookSender(LOOPBACK) as sender:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await sender.send(delivery(target(hook.url)))
        assert hook.ids == ["alert1"]
        hook.answer = lambda request: 200
        await sender.send(delivery(target(hook.url)))  # on another connection
    assert hook.connections == 2


@async_test
async def test_the_body_of_an_answer_is_not_read() -> None:
    endless = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"
    async with receiver(lambda request: endless) as hook, WebhookSender(LOOPBACK) as sender:
        async with asyncio.timeout(20):
            await sender.send(delivery(target(hook.url)))


@async_test
async def test_targets_that_are_not_allowed_get_no_request() -> None:
    async with receiver() as hook, WebhookSender(AddressPolicy()) as sender:
        with pytest.raises(RefusedTarget, match="VESTIBULE_ALERT_PRIVATE_TARGETS"):
            await sender.send(delivery(target(hook.url)))
        with pytest.raises(UnknownHost):
            await sender.send(delivery(target("https://nobody.invalid/")))
    assert hook.connections == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of hooks.example with its key, in one file."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example")]), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    file.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


class _Resolved(AddressPolicy):
    """Looks up every name as 127.0.0.1."""

    async def resolve(self, kind, url):  # type: ignore[no-untyped-def]
        from dataclasses import replace
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        endpoint = await super().resolve(kind, url.replace(str(parts.hostname), "127.0.0.1"))
        return replace(endpoint, host=str(parts.hostname))


@async_test
async def _tls_scenario(certificate: Path, host: str, outcome: Callable[[Exception | None, list[str]], None]) -> None:
    from tests.app.alerts.receiver import Receiver

    hook = Receiver()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    names: list[str] = []
    context.sni_callback = lambda socket, name, _: names.append(name)
    server = await asyncio.start_server(hook.serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    policy = _Resolved([ipaddress.ip_network("127.0.0.0/8")])
    failure: Exception | None = None
    async with server, WebhookSender(policy, verify=ssl.create_default_context(cafile=certificate)) as sender:
        try:
            await sender.send(delivery(target(f"https://{host}:{port}/")))
        except AttemptFailed as error:
            failure = error
    outcome(failure, [*names, *(request.headers["host"] for request in hook.requests)])


def test_the_certificate_of_the_name_is_checked_on_the_connection_to_the_address(certificate: Path) -> None:
    def accepted(failure: Exception | None, names: list[str]) -> None:
        assert failure is None
        assert names[0] == "hooks.example"
        assert names[1].startswith("hooks.example:")

    def refused(failure: Exception | None, names: list[str]) -> None:
        assert isinstance(failure, AttemptFailed)
        assert names == ["other.example"]  # no request was sent

    _tls_scenario(certificate, "hooks.example", accepted)
    _tls_scenario(certificate, "other.example", refused)
