"""The denoising autoencoder: convolutional, residual, with skip connections, without input of the noise's strength.

The task, to restore a corrupted image: Vincent, Larochelle, Bengio, Manzagol, "Extracting and Composing Robust Features
with Denoising Autoencoders", ICML 2008. The network is the DRUNet of Zhang, Li, Zuo, Zhang, Van Gool, Timofte,
"Plug-and-Play Image Restoration with Deep Denoiser Prior", TPAMI 2021: residual blocks of two convolutions without
batch normalisation, additive skips, and no biases, so that denoising generalises to other strengths of noise (Mohan,
Kadkhodaie, Simoncelli, Fernandez-Granda, "Robust and Interpretable Blind Image Denoising via Bias-Free Convolutional
Neural Networks", ICLR 2020).
    Input [N, in_channels, H, W], H and W multiples of `multiple`, values in 0..1 plus noise; output the same without
    noise.
    Deviations: it predicts the noise, which is subtracted (Zhang et al., "Beyond a Gaussian Denoiser", TIP 2017); there
    is no map of the noise's strength; its first layer rearranges pixels to channels (Zhang, Zuo, Zhang, "FFDNet", TIP
    2018), which saves three quarters of the computation; fewer and narrower blocks, for two CPU cores.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.blocks import check_images

# Factor on the initial weights of each block's branch and of the output: the network starts near the identity, which
# permits a high learning rate.
_INITIAL_SCALE = 0.1


@dataclass(frozen=True)
class DenoiserConfig:
    """`unshuffle` x `unshuffle` pixels become channels; `widths` are the channels at each size, which halves each time.

    `blocks` counts the residual blocks at each size of the encoder and of the decoder; `image_size` is the side of the
    training images, though the sides of an input may be any multiples of `multiple`.
    """

    in_channels: int = 3
    image_size: int = 32
    unshuffle: int = 2
    widths: tuple[int, ...] = (64, 96, 128)
    blocks: int = 2

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of it."""
        return self.unshuffle << (len(self.widths) - 1)


class DenoiserBlock(nn.Module):
    """x + two convolutions of x: [N, channels, H, W] to the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        total: Tensor = x + self.convs(x)
        return total


class Denoiser(nn.Module):
    """[N, in_channels, H, W] -> [N, in_channels, H, W], about in 0..1, which it may exceed a little."""

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = config
        widths, pixels = config.widths, config.in_channels * config.unshuffle**2
        self.head = nn.Sequential(
            nn.PixelUnshuffle(config.unshuffle), nn.Conv2d(pixels, widths[0], 3, padding=1, bias=False)
        )  # [N, widths[0], H/u, W/u]
        self.down = nn.ModuleList(
            nn.Sequential(*_blocks(config, before), nn.Conv2d(before, after, 2, stride=2, bias=False))
            for before, after in itertools.pairwise(widths)
        )
        self.bottom = nn.Sequential(*_blocks(config, widths[-1]))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(after, before, 2, stride=2, bias=False), *_blocks(config, before))
            for before, after in reversed(list(itertools.pairwise(widths)))
        )
        self.tail = nn.Sequential(
            nn.Conv2d(widths[0], pixels, 3, padding=1, bias=False), nn.PixelShuffle(config.unshuffle)
        )
        self._initialise()

    def noise(self, images: Tensor) -> Tensor:
        """The predicted noise [N, in_channels, H, W]."""
        x = self.head(images)
        skips = []
        for stage in self.down:
            skips.append(x)
            x = stage(x)
        x = self.bottom(x)
        for stage, skip in zip(self.up, reversed(skips), strict=True):
            x = stage(x) + skip
        noise: Tensor = self.tail(x)
        return noise

    def forward(self, images: Tensor) -> Tensor:
        """The denoised images.

        Raises:
            ValueError: if channels differ, or sides are not multiples of `config.multiple`.
        """
        multiple = self.config.multiple
        check_images(images, self.config.in_channels, multiple)
        if images.shape[2] % multiple or images.shape[3] % multiple:
            raise ValueError(f"expected images whose sides are multiples of {multiple}, got {list(images.shape)}")
        return images - self.noise(images)

    def _initialise(self) -> None:
        """Initialise as He et al., ICCV 2015, then scale by `_INITIAL_SCALE`."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        branches = [module.convs[-1] for module in self.modules() if isinstance(module, DenoiserBlock)]
        with torch.no_grad():
            for layer in (*branches, self.tail[0]):
                layer.get_parameter("weight").mul_(_INITIAL_SCALE)


def _blocks(config: DenoiserConfig, channels: int) -> list[nn.Module]:
    return [DenoiserBlock(channels) for _ in range(config.blocks)]
