"""The settings of the runtime. Without torch, so that reading settings does not wait for its import."""

from __future__ import annotations

from typing import Literal

RuntimeSetting = Literal["auto", "torch", "openvino-f32", "openvino-bf16"]
