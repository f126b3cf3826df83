"""What the routes of denoising and encoding take from a request."""

from __future__ import annotations

from fastapi import Request

from app.dependencies import max_images, timed_receive
from app.images.request import run_cpu
from app.restoration.request_bodies import Noisy, read_noisy
from app.restoration.service import Restoration


def restoration(request: Request) -> Restoration:
    """Return the restoration service."""
    service: Restoration = request.app.state.restoration
    return service


async def noisy(request: Request) -> Noisy:
    """Return the noisy images of the request and their references; see `read_noisy`."""
    return await timed_receive(read_noisy(request, max_images(request), run_cpu(request)))
