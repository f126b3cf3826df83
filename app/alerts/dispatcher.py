"""The background task that sends the alerts of the outbox. One process of all does it: the one that holds the lease.

The alerts of a target are sent in the order of the commits, one after the other: while one of them fails, the later
ones wait. It is tried again with growing pauses until it is accepted, or is too old and dead. An alert whose
acknowledgement is lost, because a process dies before it has recorded it, is sent again with the same id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from app.alerts.addresses import RefusedTarget, UnknownHost
from app.alerts.delivery import ATTEMPT_S, AttemptFailed, Gone, OpenSender, Sender, retry_s
from app.background_tasks import lease_renewal, wait_for_event
from app.inference.executors import Executors
from app.observability.metrics import Metrics
from index.alert_rules import AlertDelivery, TargetKind
from index.protocol import LEASE_S, AlertOutbox

POLL_S = 0.5
MOST_TARGETS = 32  # targets that are sent to at once

log = structlog.get_logger()


class AlertDispatcher:
    """Sends what is due in the outbox.

    `senders`: how to open the sender of a target, by its kind. `dead_after_s`: seconds from the queueing of a delivery
    after which a failed attempt is its last. `clock`: the gallery's.
    """

    def __init__(
        self,
        outbox: AlertOutbox,
        executors: Executors,
        senders: Mapping[TargetKind, OpenSender],
        metrics: Metrics,
        *,
        dead_after_s: float,
        clock: Callable[[], float],
    ):
        self._outbox = outbox
        self._executors = executors
        self._senders = senders
        self._metrics = metrics
        self._dead_after_s = dead_after_s
        self._clock = clock
        self._added = asyncio.Event()
        self._held_at = 0.0  # monotonic time before the lease was taken or renewed

    def notify(self) -> None:
        """Let `work` look for alerts at once: this process has stored some."""
        self._added.set()

    async def work(self) -> None:
        """Send alerts whenever some are due, until cancelled."""
        while True:
            self._added.clear()
            try:
                await self.send_due()
            except Exception:
                log.exception("alerts_failed")  # such as a full disk or a database that cannot be reached
            await wait_for_event(self._added, POLL_S)

    async def send_due(self) -> None:
        """Send until nothing is due, unless another process sends."""
        run = self._executors.run_background
        if not await run(self._outbox.due) or not await self._hold():
            return
        running: dict[str, asyncio.Task[None]] = {}
        try:
            async with lease_renewal(self._hold, LEASE_S / 4):
                while self._has_lease:
                    for target in await run(self._outbox.due):
                        if target not in running and len(running) < MOST_TARGETS:
                            running[target] = asyncio.create_task(self._send_to(target))
                    if not running:
                        break
                    await asyncio.wait(running.values(), timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
                    running = {target: task for target, task in running.items() if not task.done()}
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)
            await asyncio.wrap_future(self._outbox.release.planned().submit())

    async def _hold(self) -> bool:
        held_at = time.monotonic()
        is_held = await asyncio.wrap_future(self._outbox.hold.planned().submit())
        if is_held:
            self._held_at = held_at
        return is_held

    @property
    def _has_lease(self) -> bool:
        """Return whether an attempt that begins now ends before another process may begin one."""
        return time.monotonic() - self._held_at < LEASE_S - ATTEMPT_S

    async def _send_to(self, target: str) -> None:
        """Send the target's alerts until none is due."""
        run = self._executors.run_background
        try:
            delivery = await run(partial(self._outbox.first, target))
            if delivery is None:
                return
            async with self._senders[delivery.target.kind]() as sender:
                while delivery is not None and self._has_lease:
                    await self._attempt(sender, delivery)
                    delivery = await run(partial(self._outbox.first, target))
        except Exception:
            log.exception("alert_target_failed", target=target)
            await asyncio.sleep(POLL_S)

    async def _attempt(self, sender: Sender, delivery: AlertDelivery) -> None:
        """Send the alert once and record the outcome."""
        retry: float | None = retry_s(delivery.attempts + 1)
        try:
            async with asyncio.timeout(ATTEMPT_S):
                await sender.send(delivery)
        except TimeoutError:
            problem = f"no answer within {ATTEMPT_S:.0f} s"
        except Gone as error:
            problem, retry = str(error), None
        except (AttemptFailed, RefusedTarget, UnknownHost) as error:
            problem = str(error)
        else:
            self._metrics.alert_attempts.labels("delivered").inc()
            await asyncio.wrap_future(self._outbox.delivered.planned(delivery).submit())
            return
        if self._clock() - delivery.queued_at >= self._dead_after_s:
            retry = None
        self._metrics.alert_attempts.labels("failed" if retry else "dead").inc()
        log.warning("alert_not_accepted", alert=delivery.alert.token, target=delivery.target.token, problem=problem)
        await asyncio.wrap_future(self._outbox.failed.planned(delivery, problem, retry).submit())
