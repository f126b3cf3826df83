"""Detected faces for tests."""

from __future__ import annotations

from vestibule_client.answers import Face, FaceQuality, Landmarks


def detected(
    side: float = 80.0,
    *,
    confidence: float = 0.9,
    sharpness: float = 0.1,
    yaw: float | None = 0.0,
    reasons: tuple[str, ...] = (),
) -> Face:
    """Return a face at the middle of a frame of 640 x 480 pixels."""
    point = (320.0, 240.0)
    return Face(
        box=(320 - side / 2, 240 - side / 2, 320 + side / 2, 240 + side / 2),
        confidence=confidence,
        landmarks=Landmarks(left_eye=point, right_eye=point, nose=point, left_mouth=point, right_mouth=point),
        quality=FaceQuality(side=side, sharpness=sharpness, yaw=yaw, pitch=0.5, brightness=120),
        reasons=list(reasons),
    )
