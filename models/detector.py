"""CenterFace: Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", arXiv 1911.03599, 2019.

Input [N, 3, H, W], RGB on the scale 0..255, H and W multiples of 32; output [N, 15, H/4, W/4]. A face is the point at
its centre: a cell of a heatmap, at which other maps give its size and landmarks. The backbone is MobileNetV2 (Sandler
et al., CVPR 2018); a top-down pyramid of 24 channels upsamples its features to a quarter of the resolution.

The 15 channels, for the cell at row i and column j:
    0       the probability that a face's centre lies in the cell, 0..1
    1, 2    log of the face's height and width in cells
    3, 4    the centre's offset from (i + 0.5, j + 0.5), down and right, in cells
    5..14   y, x of the five landmarks, as shares of the box, from its top left corner

Deviations, all as in the published weights: ReLU in place of MobileNetV2's ReLU6; convolutions have biases and no
normalisation, which is folded into them, except after the three transposed convolutions. `decode` keeps the maxima of
3x3 cells (the authors' code: all cells above a threshold) and then suppresses boxes that overlap. Landmarks are
relative to the predicted box; the authors' code uses the box after clipping it to the image, which shifts the landmarks
of faces that reach beyond the edge.

Images are never enlarged: faces 10 to 12 pixels wide are detected without, and enlarging twofold only adds faces of 6
to 8 pixels, which are too small for recognition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import FeaturesAndHead, check_images
from models.preprocess import Preprocess

# MobileNetV2's table 2: expansion, channels, blocks, stride.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS = 32
# The stages whose outputs are the pyramid's inputs: at 1/4, 1/8, 1/16 and 1/32 of the image.
TAPS = (1, 2, 4, 6)
STRIDE = 4  # pixels per cell
COARSEST = 32  # pixels per cell of the last stage
LANDMARKS = 5
CHANNELS = 1 + 2 + 2 + 2 * LANDMARKS
DETECTION_THRESHOLD = 0.5  # the default minimum confidence of a face
NMS_OVERLAP = 0.3  # of two boxes, as a share of their union, above which the less confident is removed

# The distance from the photo's centre, in half diagonals, at which a face's prominence falls by the factor e; chosen by
# benchmarks/models/prominence.py, see docs/faces.md.
PROMINENCE_SPREAD = 0.3

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CenterFaceConfig:
    """`neck` is the pyramid's width; `image_size` is the side of the images that the weights were trained on."""

    in_channels: int = 3
    image_size: int = 800
    neck: int = 24
    norm_eps: float = 1e-3

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image."""
        return COARSEST


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; a skip if shapes agree: [N, in, H, W] -> [N, out, H/s, W/s]."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        wide = inputs * expansion
        expand = [nn.Conv2d(inputs, wide, 1), nn.ReLU(inplace=True)] if expansion != 1 else []
        self.block = nn.Sequential(
            *expand,
            nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, outputs, 1),
        )
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.block(x)
        return x + y if self.skip else y


class TopDown(nn.Module):
    """A coarse map upsampled twofold, plus the backbone's finer map at the pyramid's width."""

    def __init__(self, inputs: int, config: CenterFaceConfig):
        super().__init__()
        width = config.neck
        self.enlarge = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2, bias=False),
            nn.BatchNorm2d(width, eps=config.norm_eps),
            nn.ReLU(inplace=True),
        )
        self.lateral = nn.Sequential(nn.Conv2d(inputs, width, 1), nn.ReLU(inplace=True))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """[N, neck, H, W] and [N, inputs, 2H, 2W] -> [N, neck, 2H, 2W]."""
        larger: Tensor = self.enlarge(coarse)
        lateral: Tensor = self.lateral(fine)
        return larger + lateral


class Pyramid(nn.Module):
    """Backbone and neck: [N, in_channels, H, W] -> [N, neck, H/4, W/4]. Layers are in the order of computation."""

    def __init__(self, config: CenterFaceConfig):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, STEM_CHANNELS, 3, stride=2, padding=1), nn.ReLU(inplace=True)
        )
        stages, inputs = [], STEM_CHANNELS
        for expansion, outputs, repeats, stride in STAGES:
            blocks = []
            for block in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, expansion, stride if block == 0 else 1))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        *finer, coarsest = (STAGES[tap][1] for tap in TAPS)
        self.top = nn.Sequential(nn.Conv2d(coarsest, config.neck, 1), nn.ReLU(inplace=True))
        self.down = nn.ModuleList(TopDown(channels, config) for channels in reversed(finer))
        self.last = nn.Sequential(nn.Conv2d(config.neck, config.neck, 3, padding=1), nn.ReLU(inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = self.stem(images)  # [N, 32, H/2, W/2]
        taps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in TAPS:
                taps.append(x)  # [N, 24, H/4, W/4], [N, 32, H/8, W/8], [N, 96, H/16, W/16], [N, 320, H/32, W/32]
        x = self.top(taps.pop())  # [N, neck, H/32, W/32]
        for step in self.down:
            x = step(x, taps.pop())  # [N, neck, H/16, W/16], then H/8, H/4
        finest: Tensor = self.last(x)
        return finest


class PointHead(nn.Module):
    """The four predictions of each cell, concatenated: [N, neck, h, w] -> [N, 15, h, w]."""

    def __init__(self, width: int):
        super().__init__()
        self.heatmap = nn.Conv2d(width, 1, 1)
        self.scale = nn.Conv2d(width, 2, 1)
        self.offset = nn.Conv2d(width, 2, 1)
        self.landmarks = nn.Conv2d(width, 2 * LANDMARKS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([self.heatmap(x).sigmoid(), self.scale(x), self.offset(x), self.landmarks(x)], dim=1)


class CenterFace(FeaturesAndHead):
    """[N, 3, H, W], 0..255, H and W multiples of 32 -> [N, 15, H/4, W/4]; the file's docstring names the channels."""

    def __init__(self, config: CenterFaceConfig):
        super().__init__(config, Pyramid(config), PointHead(config.neck))

    def forward(self, images: Tensor) -> Tensor:
        """One tensor, so that it runs on the runtimes of classifiers."""
        check_images(images, self.config.in_channels, COARSEST)
        height, width = images.shape[2:]
        if height % COARSEST or width % COARSEST:
            raise ValueError(f"expected height and width to be multiples of {COARSEST}, got {height} and {width}")
        return super().forward(images)


class Detections(NamedTuple):
    """The K faces of an image in the network's pixels, the most confident first."""

    boxes: Tensor  # [K, 4]: left, top, right, bottom
    scores: Tensor  # [K], 0..1
    landmarks: Tensor  # [K, 5, 2]: x, y


def decode(outputs: Tensor, threshold: float, limit: int = 1000) -> list[Detections]:
    """The network's output [N, 15, h, w] -> the faces of each of the N images.

    A face is a cell above `threshold` that none of its eight neighbours exceeds. Of two boxes whose intersection is
    more than NMS_OVERLAP of their union, the less confident is removed; at most `limit` faces of an image are kept.

    Raises:
        ValueError: if outputs are not [N, 15, h, w].
    """
    if outputs.ndim != 4 or outputs.shape[1] != CHANNELS:
        raise ValueError(f"expected maps of shape [N, {CHANNELS}, h, w], got {list(outputs.shape)}")
    heatmap = outputs[:, 0]
    peaks = (heatmap > threshold) & (heatmap == F.max_pool2d(heatmap, 3, stride=1, padding=1))
    return [_detections(maps, mask, limit) for maps, mask in zip(outputs, peaks, strict=True)]


def _detections(maps: Tensor, peaks: Tensor, limit: int) -> Detections:
    """The faces of an image: its maps [15, h, w] at the cells where `peaks` [h, w] is true."""
    rows, columns = peaks.nonzero(as_tuple=True)
    values = maps[:, rows, columns].T  # [K, 15]
    scores = values[:, 0]
    sizes = values[:, [2, 1]].exp() * STRIDE  # [K, 2]: width, height
    cells = torch.stack([columns, rows], dim=1) + 0.5
    corners = (cells + values[:, [4, 3]]) * STRIDE - sizes / 2
    boxes = torch.cat([corners, corners + sizes], dim=1)
    shares = values[:, 5:].reshape(-1, LANDMARKS, 2).flip(-1)  # [K, 5, 2]: x, y
    landmarks = corners[:, None] + shares * sizes[:, None]
    kept = strongest(boxes, scores, limit)
    return Detections(boxes[kept], scores[kept], landmarks[kept])


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of boxes [..., 4] that are broadcast; NaN for two empty ones."""
    sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    common = sides.clamp(min=0).prod(dim=-1)
    areas, other_areas = ((each[..., 2:] - each[..., :2]).prod(dim=-1) for each in (boxes, others))
    return common / (areas + other_areas - common)


def strongest(boxes: Tensor, scores: Tensor, limit: int) -> Tensor:
    """Return the indices of the boxes [K, 4] that no more confident one overlaps, the most confident first.

    Non-maximum suppression with NMS_OVERLAP that ends after `limit` boxes. torchvision has it, too, but to import
    torchvision takes a quarter of the service's start.
    """
    rest = scores.argsort(descending=True, stable=True)
    kept: list[Tensor] = []
    while len(rest) and len(kept) < limit:
        first, rest = rest[0], rest[1:]
        kept.append(first)
        rest = rest[~(overlap(boxes[rest], boxes[first]) > NMS_OVERLAP)]
    return torch.stack(kept) if kept else rest


@dataclass(frozen=True)
class Face:
    """A face, in pixels of its image from the top left corner.

    `box` is (left, top, right, bottom), inside the image; `score` is 0..1; `landmarks` are left eye, right eye, nose
    tip, left and right mouth corner as seen in the image, (x, y) each. A landmark may lie outside the image.
    """

    box: Box
    score: float
    landmarks: tuple[Point, ...]

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


def prominence(face: Face, size: tuple[int, int], spread: float = PROMINENCE_SPREAD) -> float:
    """Return the prominence of a face in a photo of `size` (width, height); the main subject has the highest.

    The box's area in square pixels, weighted by exp(-(d / spread)^2), where d is the distance of the box's centre from
    the photo's centre, in half diagonals of the photo: 0 in the middle, 1 in a corner.
    """
    width, height = size
    left, top, right, bottom = face.box
    distance = math.dist((left + right, top + bottom), size) / math.hypot(width, height)
    return face.area * math.exp(-((distance / spread) ** 2))


class Detector(Protocol):
    """A function that detects faces."""

    def __call__(self, image: Image.Image | Pixels, /) -> list[Face]:
        """The faces of an image (PIL of any mode, or uint8 [H, W, 3]), the most confident first; often none."""
        ...


def prepare(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """The network's input: float32 [3, H, W], padded with black at the right and bottom to multiples of 32."""
    return preprocess.normalise(torch.from_numpy(padded(preprocess.pixels(image))))


def padded(pixels: Pixels) -> Pixels:
    """[H, W, C] padded with black at the right and bottom to multiples of 32."""
    down, right = (-side % COARSEST for side in pixels.shape[:2])
    return np.pad(pixels, ((0, down), (0, right), (0, 0)))


def faces_within(detections: Detections, size: tuple[int, int]) -> list[Face]:
    """Detections in pixels of a photo of `size` (width, height) as faces, with boxes clipped to the photo."""
    corners = detections.boxes.reshape(-1, 2, 2).clamp(min=torch.zeros(2), max=torch.tensor(size))
    faces = []
    for ((left, top), (right, bottom)), score, landmarks in zip(
        corners.tolist(), detections.scores.tolist(), detections.landmarks.tolist(), strict=True
    ):
        # A box entirely in the padding is empty.
        if left < right and top < bottom:
            faces.append(Face((left, top, right, bottom), score, tuple((x, y) for x, y in landmarks)))
    return faces


VARIANTS = {"centerface": CenterFaceConfig()}
