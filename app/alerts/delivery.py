"""The interface of the senders, and when a failed delivery is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from index.alert_rules import AlertDelivery

# Seconds before the second attempt, which double with each further one, and the longest.
FIRST_RETRY_S, MOST_RETRY_S = 1.0, 300.0
ATTEMPT_S = 10.0  # the longest attempt


class AttemptFailed(Exception):
    """The target did not accept the alert. The message has nothing of the target's answer but its status."""


class Gone(Exception):
    """The target wants no alerts any more."""


class Sender(Protocol):
    """Sends the alerts of one target."""

    async def send(self, delivery: AlertDelivery) -> None:
        """Send an alert once; returns when the target has accepted it.

        Raises:
            AttemptFailed, Gone. RefusedTarget, UnknownHost: see `AddressPolicy.resolve`.
        """
        ...


OpenSender = Callable[[], AbstractAsyncContextManager[Sender]]


def retry_s(attempts: int, draw: Callable[[], float] = random.random) -> float:
    """Return the seconds before the next attempt after `attempts` failed ones: half to all of the doubled time.

    `draw` returns a random number, 0..1: targets that failed together are not tried together.
    """
    longest = min(MOST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(attempts - 1, 30))
    return longest * (0.5 + draw() / 2)
