"""Access to the gallery service from a request."""

from __future__ import annotations

from fastapi import Request

from app.gallery.service import GalleryService


def gallery_service(request: Request) -> GalleryService:
    """Return the gallery service."""
    service: GalleryService = request.app.state.gallery
    return service
