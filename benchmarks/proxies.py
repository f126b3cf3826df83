"""Which requests of the benchmarks may go through the proxies that the environment names (HTTP_PROXY and the like)."""

from __future__ import annotations

import httpx

from app.settings import is_loopback


def uses_proxies(*urls: str) -> bool:
    """Return whether none of the URLs is on this machine: the value for `trust_env` of an httpx client.

    A proxy would look for the service on its own machine, and its time would count as the service's.
    """
    return not any(is_loopback(httpx.URL(url).host) for url in urls)
