"""Which addresses alerts may be sent to."""

from __future__ import annotations

import ipaddress

import pytest

from app.alerts.addresses import AddressPolicy, Endpoint, RefusedTarget, UnknownHost
from index.alert_rules import TargetKind
from tests.app.async_test import async_test

PRIVATE = AddressPolicy([ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",  # short forms of inet_aton
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # metadata of most clouds
        "100.100.100.200",
        "168.63.129.16",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",  # NAT64
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",  # 6to4
        "localhost",
    ],
)
@async_test
async def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    for kind, url in (("webhook", f"https://{host}/"), ("mqtt", f"mqtts://{host}")):
        with pytest.raises(RefusedTarget, match="is not public"):
            await AddressPolicy().resolve(kind, url)  # type: ignore[arg-type]


@async_test
async def test_public_addresses_need_tls() -> None:
    policy = AddressPolicy()
    assert await policy.resolve("webhook", "https://8.8.8.8/x") == Endpoint("8.8.8.8", "8.8.8.8", 443, tls=True)
    assert await policy.resolve("mqtt", "mqtts://[2001:4860:4860::8888]:99/") == Endpoint(
        "2001:4860:4860::8888", "2001:4860:4860::8888", 99, tls=True
    )
    with pytest.raises(RefusedTarget, match="TLS only"):
        await policy.resolve("webhook", "http://8.8.8.8/")
    with pytest.raises(RefusedTarget, match="TLS only"):
        await policy.resolve("mqtt", "mqtt://8.8.8.8")


@async_test
async def test_allowed_networks_are_reached_also_without_tls() -> None:
    assert (await PRIVATE.resolve("webhook", "http://10.1.2.3")).port == 80
    assert (await PRIVATE.resolve("mqtt", "mqtt://10.1.2.3")).port == 1883
    assert (await PRIVATE.resolve("mqtt", "mqtt://[fd00::1]:1")).address == "fd00::1"
    assert (await PRIVATE.resolve("webhook", "https://[::ffff:10.1.2.3]")).tls
    with pytest.raises(RefusedTarget):
        await PRIVATE.resolve("webhook", "http://10.2.0.1")


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("webhook", "ftp://8.8.8.8"),
        ("webhook", "mqtts://8.8.8.8"),
        ("webhook", "/path"),
        ("webhook", "https://"),
        ("webhook", "https://8.8.8.8:99999"),
        ("webhook", "https://[::1"),
        ("webhook", "https://user@8.8.8.8/"),
        ("webhook", "https://user:password@8.8.8.8/"),
        ("mqtt", "mqtts://8.8.8.8/topic"),
        ("mqtt", "mqtts://8.8.8.8?x=1"),
        ("mqtt", "https://8.8.8.8"),
    ],
)
@async_test
async def test_urls_that_are_not_targets_are_refused(kind: TargetKind, url: str) -> None:
    with pytest.raises(RefusedTarget):
        await AddressPolicy().resolve(kind, url)


@async_test
async def test_a_name_without_an_address_is_unknown() -> None:
    for host in ("nobody.invalid", "a" * 70 + ".example", "a..b"):
        with pytest.raises(UnknownHost):
            await AddressPolicy().resolve("webhook", f"https://{host}/")
