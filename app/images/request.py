"""The images of a request, for routes that take any number of them."""

from __future__ import annotations

from fastapi import Request

from app.dependencies import max_images, timed_receive
from app.images.uploads import Images, RunCpu, read_images


def run_cpu(request: Request) -> RunCpu:
    """Return the function that runs CPU work off the event loop."""
    function: RunCpu = request.app.state.model_manager.executors.run_cpu
    return function


async def images(request: Request) -> Images:
    """Return the images of the request, still encoded; see `read_images` for the errors."""
    return await timed_receive(read_images(request, max_images(request), run_cpu(request)))
