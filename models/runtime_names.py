"""The names of runtimes in the settings. This module does not import torch, so that reading settings is fast."""

from __future__ import annotations

from typing import Literal

RuntimeSetting = Literal["auto", "torch", "openvino-f32", "openvino-bf16", "openvino-int8"]
