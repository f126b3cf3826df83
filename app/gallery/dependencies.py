"""What the routes of the gallery take from a request."""

from __future__ import annotations

from fastapi import Request

from app.gallery.service import Galleries


def galleries(request: Request) -> Galleries:
    """Return the gallery service."""
    service: Galleries = request.app.state.galleries
    return service
