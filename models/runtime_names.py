"""The runtimes that can be asked for. Without torch, so that settings can be read without the seconds of its import."""

from __future__ import annotations

from typing import Literal

Wanted = Literal["auto", "torch", "openvino-f32", "openvino-bf16"]
