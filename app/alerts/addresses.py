"""Which addresses alerts may be sent to. Checked when a rule is stored, and for each delivery after the look-up.

Otherwise whoever may store a rule could let the service send requests into its own network, to other services of the
machine, or to a cloud's metadata. A delivery connects to the address that was checked and not to the name, which could
have another address a moment later.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from app.settings import Network
from index.alert_rules import TargetKind

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# By kind: the schemes without and with TLS, and the ports of either.
_PLAIN: dict[TargetKind, tuple[str, int]] = {"webhook": ("http", 80), "mqtt": ("mqtt", 1883)}
_TLS: dict[TargetKind, tuple[str, int]] = {"webhook": ("https", 443), "mqtt": ("mqtts", 8883)}

# Addresses that stand for an IPv4 address, which is in their last 32 bits: NAT64 (RFC 6052) and its local form.
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
# A public address at which Azure serves metadata to its machines. Other clouds' are link-local or private.
_METADATA = ipaddress.IPv4Address("168.63.129.16")


class RefusedTarget(Exception):
    """Alerts may not be sent to this URL or address. The message says why."""


class UnknownHost(Exception):
    """The name of a target has no address at present."""


@dataclass(frozen=True)
class Endpoint:
    """Where to connect to: an address that was checked. `host`: the name for TLS and for the `Host` header."""

    host: str
    address: str
    port: int
    tls: bool


class AddressPolicy:
    """Refuses addresses that are not public, except in the networks `allowed`.

    A connection without TLS is for these networks only, since an alert says who was where.
    """

    def __init__(self, allowed: Sequence[Network] = ()):
        self._allowed = tuple(allowed)

    async def resolve(self, kind: TargetKind, url: str) -> Endpoint:
        """Look up the target's name and return its first address; all of its addresses must be allowed.

        Raises:
            RefusedTarget. UnknownHost: the name cannot be looked up.
        """
        parts, tls, port = _split(kind, url)
        host = parts.hostname or ""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise UnknownHost(f"{host} cannot be looked up") from error
        addresses = [str(entry[4][0]) for entry in found]
        for address in addresses:
            self._check(ipaddress.ip_address(address), tls)
        return Endpoint(host, addresses[0], port, tls)

    def _check(self, address: Address, tls: bool) -> None:
        reached = _reached(address)
        if any(reached in network for network in self._allowed):
            return
        if not reached.is_global or reached.is_multicast or reached == _METADATA:
            raise RefusedTarget(f"{address} is not public: VESTIBULE_ALERT_PRIVATE_TARGETS does not have its network")
        if not tls:
            raise RefusedTarget("alerts are sent to public addresses over TLS only")


def _split(kind: TargetKind, url: str) -> tuple[SplitResult, bool, int]:
    """Return the parts of a URL, whether it needs TLS, and its port.

    Raises:
        RefusedTarget: it is no URL of this kind, or it contains a user or a password, which responses would show.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RefusedTarget("this is not a URL") from error
    schemes = {_PLAIN[kind][0]: (False, _PLAIN[kind][1]), _TLS[kind][0]: (True, _TLS[kind][1])}
    if parts.scheme not in schemes or not parts.hostname:
        raise RefusedTarget(f"expected a URL of {' or '.join(schemes)} with a host")
    if parts.username is not None or parts.password is not None:
        raise RefusedTarget("a URL of a target may not contain a user or a password")
    if kind == "mqtt" and (parts.path.strip("/") or parts.query or parts.fragment):
        raise RefusedTarget("expected the URL of a broker without a path, as mqtts://broker.example.org")
    tls, default_port = schemes[parts.scheme]
    return parts, tls, default_port if port is None else port


def _reached(address: Address) -> Address:
    """Return the IPv4 address that packets to this address reach, if it stands for one, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if any(address in network for network in _NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)
