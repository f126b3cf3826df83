"""Convert a decoded image to the tensor that a network takes, by a description stored in the card."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional

Side = Annotated[int, Field(ge=1, le=4096)]

# Image pixels per input pixel of a network, along a side; more do not improve its output. For 400 JPEGs decoded at half
# their sides for vgg-cifar10, the probability changed by 0.0005 in the median and by at most 0.022 with five pixels; by
# 0.035 with three, and hardly less with more than five.
PIXELS_PER_INPUT_PIXEL = 5


class Preprocess(BaseModel):
    """Centre crop to the target's shape, resize, convert, pad, normalise.

    `size` is (height, width) in pixels before padding; `crop_fraction` is the share of the largest centred window that
    is kept; `pad` pixels of black are added on each side; `mean` and `std` are on the scale 0..255, one per channel.
    With `fit="within"` nothing is cropped: an image larger than `size` is shrunk to fit within it, a smaller image is
    unchanged, so that outputs differ in shape.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Literal["L", "RGB"] = "RGB"
    size: tuple[Side, Side]
    fit: Literal["crop", "within"] = "crop"
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    pad: Annotated[int, Field(ge=0, le=256)] = 0
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} values each for mode {self.mode}")
        if self.fit == "within" and (self.crop_fraction != 1.0 or self.pad):
            raise ValueError("crop_fraction and pad have no effect with fit='within'")
        return self

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return len(self.mode)

    @property
    def is_grey(self) -> bool:
        """Whether the network takes grey images."""
        return self.mode == "L"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the output; with `fit="within"` the maximum."""
        return self.channels, self.size[0] + 2 * self.pad, self.size[1] + 2 * self.pad

    @property
    def max_useful_side(self) -> int | None:
        """The shorter side in pixels beyond which an image need not be decoded; None: decode the full size."""
        return math.ceil(PIXELS_PER_INPUT_PIXEL * max(self.size) / self.crop_fraction) if self.fit == "crop" else None

    def fitted_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of an image shrunk to fit within `size`, in whole pixels, at least 1."""
        scale = min(1.0, self.size[1] / width, self.size[0] / height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def pixels(self, image: Image.Image | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Crop, resize and pad: an 8-bit L or RGB image of any size -> uint8 [H, W, C], 0..255.

        The image may also be an array, uint8 [H, W, 3] or, for one channel, [H, W, 1].

        With `fit="within"`, H and W are those of `fitted_size`.

        Crop and resize are one resampling of a window of the image, so an image of 1 x 30,000 pixels costs no more than
        a square image. The result differs from torchvision's Resize and CenterCrop by their rounding to pixels only.
        """
        if not isinstance(image, Image.Image):
            if self._is_resized_only(image):
                return self._padded(self._shrunk(image))
            image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        if self.fit == "within":
            size = self.fitted_size(image.width, image.height)
            image = image.convert(self.mode).resize(size, Image.Resampling[self.interpolation.upper()])
            return np.asarray(image, dtype=np.uint8).reshape(size[1], size[0], self.channels)
        height, width = self.size
        scale = self.crop_fraction * min(image.width / width, image.height / height)
        crop_w, crop_h = width * scale, height * scale
        left, top = (image.width - crop_w) / 2, (image.height - crop_h) / 2
        box = (max(left, 0.0), max(top, 0.0), min(left + crop_w, image.width), min(top + crop_h, image.height))
        if image.mode != self.mode:
            image = image.convert(self.mode)
        if (image.width, image.height) != (width, height) or box != (0, 0, width, height):
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()], box=box)
        array = np.asarray(image, dtype=np.uint8).reshape(height, width, self.channels)
        return self._padded(array)

    def _is_resized_only(self, pixels: npt.NDArray[np.uint8]) -> bool:
        height, width = self.size
        whole = self.crop_fraction == 1.0 and pixels.shape[0] * width == pixels.shape[1] * height
        return pixels.shape[2] == self.channels and self.fit == "crop" and whole and pixels.shape[0] >= height

    def _shrunk(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The same resampling by torch, in a third of Pillow's time; values differ by at most 1."""
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        shrunk = functional.interpolate(image, self.size, mode=self.interpolation, antialias=True)
        return shrunk[0].permute(1, 2, 0).numpy()

    def _padded(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if not self.pad:
            return pixels
        height, width, channels = pixels.shape
        # numpy.pad takes as long as all other steps for a small image.
        padded = np.zeros((height + 2 * self.pad, width + 2 * self.pad, channels), np.uint8)
        padded[self.pad : self.pad + height, self.pad : self.pad + width] = pixels
        return padded

    def normalise(self, pixels: Tensor) -> Tensor:
        """(x - mean) / std on any device: uint8 [..., H, W, C] -> float32 [..., C, H, W]."""
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        images = pixels.movedim(-1, -3).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        return images.sub_(mean).div_(std)

    def units_of(self, other: Preprocess, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return gain and offset [C, 1, 1] with which x * gain + offset has the units of `other`, x those of this."""
        parameters = torch.tensor([self.mean, self.std, other.mean, other.std], device=device)
        mean, std, other_mean, other_std = parameters[:, :, None, None]
        return std / other_std, (mean - other_mean) / other_std

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise` on any device: float [..., C, H, W] -> uint8 [..., H, W, C]."""
        mean = torch.tensor(self.mean, device=images.device)
        std = torch.tensor(self.std, device=images.device)
        return (images.float().movedim(-3, -1) * std + mean).round().clamp(0, 255).to(torch.uint8)

    def __call__(self, image: Image.Image) -> Tensor:
        """The network's input for an image: float32 [C, H, W]."""
        return self.normalise(torch.from_numpy(self.pixels(image).copy()))
