"""Dependencies of the routes for denoising and encoding."""

from __future__ import annotations

from fastapi import Request

from app.images.uploads import max_images
from app.observability import timings
from app.restoration.request_bodies import DenoiseRequest, read_denoise_request
from app.restoration.service import Restoration


def restoration(request: Request) -> Restoration:
    """Return the restoration service."""
    service: Restoration = request.app.state.restoration
    return service


async def denoise_request(request: Request) -> DenoiseRequest:
    """Return the images of the request and their references; see `read_denoise_request`."""
    return await timings.timed("receive", read_denoise_request(request, max_images(request)))
