"""The images of a request, for the routes that take any number of them."""

from __future__ import annotations

from fastapi import Request

from app.dependencies import max_images, timed_receive
from app.images.uploads import Images, InThread, read_pictures


def decoding_threads(request: Request) -> InThread:
    """Return the function that runs work in the threads that decode images."""
    in_thread: InThread = request.app.state.engine.decoded
    return in_thread


async def images(request: Request) -> Images:
    """Return the images of the request, still encoded; see `read_pictures` for the errors."""
    return await timed_receive(read_pictures(request, max_images(request), decoding_threads(request)))
