"""Data sets for networks whose output is an image: training and validation rows, random crops, and noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.preprocess import Preprocess
from training.core.errors import DataError
from training.core.seeds import derive, generator
from training.datasets.augment import ChannelStatistics, augment
from training.datasets.batches import Batches, stratified_split
from training.datasets.camera_noise import photograph
from training.datasets.faces import rows_of
from training.datasets.images import ImageSet, Indices, load
from training.recipe.config import AugmentSection
from training.recipe.generative_config import NoiseSection, PicturesSection


class CroppedImages:
    """One data set of a recipe, in batches of random crops.

    Raises:
        DataError: see `images.load` and `Batches`; if the crop exceeds the images, or too few are left for validation.
    """

    def __init__(
        self,
        section: PicturesSection,
        preprocess: Preprocess,
        batch_size: int,
        seed: int,
        *,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.name = section.name
        if section.size:
            preprocess = preprocess.model_copy(update={"size": (section.size,) * 2, "fit": "crop"})
        self._preprocess = preprocess
        self.set = load(section.name, "train", preprocess)
        self._crop = section.crop or min(preprocess.shape[1:])
        if self._crop > min(preprocess.shape[1:]):
            raise DataError(f"{section.name}: a crop of {section.crop} from images of {preprocess.shape[1:]}")
        self._rows, self.held_out = _split(self.set, section, seed)
        # The seed depends on the name, so that two data sets of one length have different orders.
        order = derive(seed, "pictures", section.name)
        self._batches = Batches(
            len(self._rows), section.batch_size or batch_size, order, process=process, processes=processes
        )
        self.per_epoch = self._batches.per_epoch

    def batch(self, epoch: int, index: int, config: AugmentSection, draw: torch.Generator) -> tuple[Tensor, Indices]:
        """Return normalised crops, float32 [N, C, crop, crop], and their labels [N]."""
        rows = self._rows[self._batches(epoch, index)]
        pixels = torch.from_numpy(self._crops(rows, draw)).movedim(-1, 1).float()
        channels = self._preprocess.channels
        statistics = ChannelStatistics(self._preprocess.mean, torch.zeros(channels, channels))
        pixels = augment(pixels, config, draw, statistics)
        return self._preprocess.normalise(pixels.movedim(1, -1)), self.set.labels[rows]

    def clean(self, rows: Indices) -> Tensor:
        """Return the whole images of `rows`, normalised: float32 [N, C, H, W]."""
        return self._preprocess.normalise(torch.from_numpy(np.asarray(self.set.images[rows])))

    def _crops(self, rows: Indices, draw: torch.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Return a random crop of each image: uint8 [N, crop, crop, C]."""
        height, width = self.set.images.shape[1:3]
        side = self._crop
        if (height, width) == (side, side):
            return np.asarray(self.set.images[rows])
        top = torch.randint(0, height - side + 1, (len(rows),), generator=draw).tolist()
        left = torch.randint(0, width - side + 1, (len(rows),), generator=draw).tolist()
        windows = zip(rows, top, left, strict=True)
        return np.stack([self.set.images[row, y : y + side, x : x + side] for row, y, x in windows])


def _split(images: ImageSet, section: PicturesSection, seed: int) -> tuple[Indices, Indices]:
    """Return (training rows, validation rows), both ascending."""
    if not section.identities:
        return stratified_split(images.labels, section.validation, seed)
    calibration = rows_of(images, "calibrate")
    if section.validation > len(calibration):
        raise DataError(
            f"{section.name}: {section.validation} validation images from {len(calibration)} in the calibration split"
        )
    chosen = np.random.default_rng(derive(seed, "validation")).permutation(calibration)[: section.validation]
    return rows_of(images, "train"), np.sort(chosen)


def one_hot(numbers: Tensor, classes: int) -> Tensor:
    """Return one-hot labels of class numbers [N], float32 [N, classes]; `classes` is 0 for unconditional networks."""
    return (numbers[:, None] == torch.arange(classes)).float()


def add_noise(clean: Tensor, section: NoiseSection, draw: torch.Generator) -> Tensor:
    """Add noise of a random strength to each image [N, C, H, W] in 0..1, and clip a random share of them to 0..1.

    A random share `section.camera.share` of the images gets a camera's faults instead.
    """
    low, high = (sigma / 255 for sigma in section.sigma)
    sigma = low + (high - low) * torch.rand(len(clean), 1, 1, 1, generator=draw)
    clipped = torch.rand(len(clean), 1, 1, 1, generator=draw) < section.clipped
    noise = torch.randn(clean.shape, generator=draw)
    noisy = clean + (sigma * noise).to(clean.device)
    noisy = torch.where(clipped.to(clean.device), noisy.clamp(0, 1), noisy)
    if section.camera.share:
        photos = (torch.rand(len(clean), generator=draw) < section.camera.share).to(clean.device)
        if photos.any():
            noisy[photos] = photograph(clean[photos], section.camera, draw)
    return noisy


def add_fixed_noise(clean: Tensor, rows: Indices, sigma: float, seed: int) -> Tensor:
    """Add noise of the strength `sigma` (0..255 scale) that depends on seed, sigma and row only, for validation."""
    draws = (generator(seed, "noise", str(sigma), int(row)) for row in rows)
    noise = torch.stack([torch.randn(clean.shape[1:], generator=draw) for draw in draws])
    return clean + (noise * (sigma / 255)).to(clean.device)
