"""The use cases that send pictures through a network for other pictures or latents: denoise, reconstruct, encode."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from app.errors import ImageTooLarge, Unprocessable, VestibuleError
from app.generation.schemas import (
    Denoised,
    DenoiseParams,
    DenoiseResponse,
    Encoded,
    EncodeParams,
    EncodeResponse,
    Reconstructed,
    ReconstructParams,
    ReconstructResponse,
)
from app.images import encoding
from app.images.encoding import PNG, EncodedFile, Pixels
from app.images.tiling import Tiling
from app.images.uploads import Images
from app.inference import class_labels
from app.inference.loaded_model import LoadedModel
from app.inference.predictor import Predictor
from app.inference.submodels import ENCODER, RECONSTRUCTOR, default_submodel, size_multiple
from app.restoration.request_bodies import Noisy
from app.settings import Settings
from models import image_decoder
from models.card import ModelCard
from models.generative import with_label_planes
from models.preprocess import Preprocess
from models.registry import Task

T = TypeVar("T")

# Whole pictures are held while their tiles are computed, each in several copies.
PICTURES_AT_ONCE = 4
# More pixels than these take more than 0.2 s to encode as PNG.
LONG_PIXELS = 500_000
# An ICC profile says in its header of which colours it is. A larger profile than this is not answered with.
PROFILE_COLOURS = slice(16, 20)
COLOURS = {"RGB": b"RGB ", "L": b"GRAY"}
MOST_PROFILE_BYTES = 2**20
# What may have an encoder; the first names whose default answers.
ENCODING: tuple[Task, ...] = ("reconstruct", "generate", "denoise")


@dataclass(frozen=True)
class _Made:
    """A picture as the bytes of a PNG, and what was measured of it, in dB."""

    png: bytes
    width: int
    height: int
    psnr: float | None = None
    psnr_before: float | None = None

    def denoised(self, index: int) -> Denoised:
        """As the answer about the picture at this place of a list."""
        psnr, before = _finite(self.psnr), _finite(self.psnr_before)
        return Denoised(
            index=index, width=self.width, height=self.height, b64_json=self._text, psnr=psnr, psnr_before=before
        )

    def reconstructed(self, index: int) -> Reconstructed:
        """As the answer about the picture at this place of a list."""
        return Reconstructed(index=index, width=self.width, height=self.height, b64_json=self._text)

    @property
    def _text(self) -> str:
        return base64.b64encode(self.png).decode()

    def file(self) -> EncodedFile:
        """With what was measured in headers."""
        measures = {"X-PSNR": self.psnr, "X-PSNR-Before": self.psnr_before}
        return EncodedFile(
            self.png, PNG, {name: f"{value:.4f}" for name, value in measures.items() if value is not None}
        )


@dataclass(frozen=True)
class _Sent:
    """A picture as it was sent: `pixels`, uint8 [H, W, C], in the network's colours; `alpha`, uint8 [H, W], None where
    it has none; and its ICC profile, None where there is none or one of other colours.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    profile: bytes | None = None

    def on_white(self, pixels: Pixels) -> Pixels:
        """These pixels under the picture's alpha, as they look on white: uint8 [H, W, C]."""
        if self.alpha is None:
            return pixels
        seen = image_decoder.on_white(encoding.to_image(self.with_alpha(pixels)).convert("RGBA"))
        return np.asarray(seen.convert("L" if pixels.shape[-1] == 1 else "RGB"), np.uint8).reshape(pixels.shape)

    def with_alpha(self, pixels: Pixels) -> Pixels:
        """uint8 [H, W, C], or with the picture's alpha [H, W, C + 1]."""
        return pixels if self.alpha is None else np.dstack([pixels, self.alpha])


class Restoration:
    """Denoise, reconstruct, encode."""

    def __init__(self, settings: Settings, predictor: Predictor):
        self._predictor = predictor
        self._model_manager = predictor.model_manager
        self._executors = predictor.executors
        self._most_pixels = settings.max_denoise_pixels
        self._pictures = asyncio.Semaphore(PICTURES_AT_ONCE)
        self._tiles = predictor.queue_slots()

    async def denoise(self, sent: Noisy, params: DenoiseParams) -> EncodedFile:
        """Each picture without its noise, in its own size: in tiles, or resized for a network of one size.

        Raises:
            VestibuleError: about the request, or about its only picture. In a list, each picture answers for itself.
        """
        asked = self._model_manager.find_card(params.model, "denoise")
        tiled = size_multiple(asked) > 0
        only = _only(sent.pictures) if params.format == "png" else None
        model = await self._model_manager.load_submodel(asked, default_submodel(asked))
        card = model.card
        through = self._in_tiles if tiled else self._resized

        await self._predictor.check_pixels(_readable(sent.references), transformed=_readable(sent.pictures.items))

        async def cleaned(index: int, data: bytes, answer: Callable[[_Made], T]) -> T:
            """`answer` of the cleaned picture, run in the thread that encodes it."""
            async with self._pictures:
                noisy = await self._sent(card, data)
                reference = await self._reference(card, sent.references[index], noisy)
                clean = await through(model, noisy.pixels)
                is_long = math.prod(noisy.pixels.shape[:2]) > LONG_PIXELS
                return await self._executors.run_cpu(
                    lambda: answer(_blended(noisy, clean, params.strength, reference)), is_long=is_long
                )

        async def one(index: int, data: bytes) -> Denoised:
            return await cleaned(index, data, lambda made: made.denoised(index))

        if only is not None:
            return await self._predictor.with_deadline(cleaned(0, only, _Made.file))
        answers = await self._predictor.for_each_checked(sent.pictures, one)
        return await self._document(DenoiseResponse(model=card.name, version=card.version, data=answers))

    async def reconstruct(self, pictures: Images, params: ReconstructParams) -> EncodedFile:
        """What is left of each picture on its way through the latent space, in the network's size.

        Raises:
            VestibuleError: as `denoise`; Unprocessable: no label for a conditional model.
        """
        asked = self._model_manager.find_card(params.model, *ENCODING)
        only = _only(pictures) if params.format == "png" else None
        model = await self._model_manager.load_submodel(asked, RECONSTRUCTOR)
        card = model.card
        planes = self._planes(card, params.label, len(pictures.items))

        async def made(index: int, data: bytes, answer: Callable[[_Made], T]) -> T:
            item = await self._predictor.decode(data, lambda image: planes(index, image), card.preprocess.enough)
            (drawn,) = await self._predictor.run(model, [item], slots=self._tiles)
            return await self._executors.run_cpu(lambda: answer(_png(_unpadded(card.preprocess, drawn))))

        async def one(index: int, data: bytes) -> Reconstructed:
            return await made(index, data, lambda found: found.reconstructed(index))

        if only is not None:
            await self._predictor.check_pixels([only])
            return await self._predictor.with_deadline(made(0, only, _Made.file))
        answers = await self._predictor.for_each_image(pictures, one)
        return await self._document(ReconstructResponse(model=card.name, version=card.version, data=answers))

    async def encode(self, pictures: Images, params: EncodeParams) -> EncodeResponse:
        """Each picture as a point of the latent space.

        Raises:
            VestibuleError: as `reconstruct`.
        """
        model = await self._model_manager.load_submodel(self._model_manager.find_card(params.model, *ENCODING), ENCODER)
        card = model.card
        planes = self._planes(card, params.label, len(pictures.items))

        async def one(index: int, data: bytes) -> Encoded:
            item = await self._predictor.decode(data, lambda image: planes(index, image), card.preprocess.enough)
            (latent,) = await self._predictor.run(model, [item], slots=self._tiles)
            return Encoded(index=index, latent=latent.tolist())

        answers = await self._predictor.for_each_image(pictures, one)
        return EncodeResponse(model=card.name, version=card.version, data=answers)

    async def _document(self, answer: BaseModel) -> EncodedFile:
        """The answer as JSON, encoded in a thread: it contains pictures."""
        return await self._executors.run_cpu(lambda: encoding.encode_json(answer, {}))

    def _planes(self, card: ModelCard, sent: Sequence[str], count: int) -> Callable[[int, Image.Image], Tensor]:
        """What makes a network's item [C + classes, H, W] of a picture and its place."""
        chosen = class_labels.one_hot(card, class_labels.require_labels(card, sent, count), count)
        return lambda index, image: with_label_planes(card.preprocess(image)[None], chosen[index : index + 1])[0]

    async def _sent(self, card: ModelCard, data: bytes) -> _Sent:
        return await self._predictor.decode(data, lambda image: self._split(card, image), keep_alpha=True)

    def _split(self, card: ModelCard, image: Image.Image) -> _Sent:
        """The picture's colours as the network has them, apart from alpha and profile, which the answer takes over."""
        if image.width * image.height > self._most_pixels:
            raise ImageTooLarge(
                f"the picture has {image.width} x {image.height} pixels; at most {self._most_pixels} are cleaned"
            )
        alpha = np.asarray(image.getchannel("A"), np.uint8) if image.mode == "RGBA" else None
        mode = card.preprocess.mode
        pixels = np.asarray(image.convert("RGB").convert(mode), dtype=np.uint8)
        profile: bytes = image.info.get("icc_profile") or b""
        is_own = profile[PROFILE_COLOURS] == COLOURS[mode] and len(profile) <= MOST_PROFILE_BYTES
        pixels = pixels.reshape(image.height, image.width, card.preprocess.channels)
        return _Sent(pixels, alpha, profile if is_own else None)

    async def _reference(self, card: ModelCard, sent: bytes | VestibuleError | None, noisy: _Sent) -> Pixels | None:
        """The reference image, composited on white."""
        if isinstance(sent, VestibuleError):
            raise sent
        if sent is None:
            return None
        reference = await self._sent(card, sent)
        if reference.pixels.shape != noisy.pixels.shape:
            shapes = (noisy.pixels.shape, reference.pixels.shape)
            sizes = " and ".join(f"{width} x {height}" for height, width, _ in shapes)
            raise Unprocessable(f"the picture and its reference differ in size: {sizes}")
        return reference.on_white(reference.pixels)

    async def _in_tiles(self, model: LoadedModel, noisy: Pixels) -> Tensor:
        """uint8 [H, W, C] -> the network's answer on the scale of 0..255, float32 [H, W, C]."""
        preprocess = model.card.preprocess
        height, width, _ = noisy.shape
        tiling = Tiling(height, width, size_multiple(model.card))
        tiles = await self._executors.run_cpu(lambda: tiling.cut(tiling.pad(preprocess.normalise(_tensor(noisy)))))
        answers = await self._predictor.run(model, tiles, slots=self._tiles)
        return await self._executors.run_cpu(lambda: _scaled(preprocess, tiling.join(answers)))

    async def _resized(self, model: LoadedModel, noisy: Pixels) -> Tensor:
        """The same by way of the network's own size, stretched to it and back; nothing is cut off."""
        preprocess = model.card.preprocess
        size, own = preprocess.size[::-1], noisy.shape[1::-1]

        def prepared() -> Tensor:
            small = _resize(preprocess, noisy, size)
            framed = np.pad(small, ((preprocess.pad, preprocess.pad), (preprocess.pad, preprocess.pad), (0, 0)))
            return preprocess.normalise(_tensor(framed))

        item = await self._executors.run_cpu(prepared)
        (answer,) = await self._predictor.run(model, [item], slots=self._tiles)
        return await self._executors.run_cpu(
            lambda: _tensor(_resize(preprocess, _unpadded(preprocess, answer), own)).float()
        )


def _readable(sent: Sequence[bytes | VestibuleError | None]) -> list[bytes]:
    return [data for data in sent if isinstance(data, bytes)]


def _only(pictures: Images) -> bytes:
    """The picture of a request that sent just one.

    Raises:
        Unprocessable: it sent a list.
    """
    first = pictures.items[0]
    if pictures.is_list or isinstance(first, VestibuleError):
        raise Unprocessable("a list of pictures is answered as JSON: format=json")
    return first


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.copy())


def _scaled(preprocess: Preprocess, picture: Tensor) -> Tensor:
    """A network's picture [C, H, W] on the scale of 0..255, neither rounded nor clipped, [H, W, C]."""
    return picture.movedim(0, -1) * torch.tensor(preprocess.std) + torch.tensor(preprocess.mean)


def _unpadded(preprocess: Preprocess, picture: Tensor) -> Pixels:
    """A network's picture [C, H, W] -> uint8 [H, W, C] without the frame that preprocessing puts around."""
    pad = preprocess.pad
    pixels: Pixels = preprocess.denormalise(picture).numpy()
    return pixels[pad : pixels.shape[0] - pad, pad : pixels.shape[1] - pad]


def _resize(preprocess: Preprocess, pixels: Pixels, size: Sequence[int]) -> Pixels:
    """uint8 [h, w, C] -> uint8 [H, W, C]; `size` is (W, H)."""
    width, height = size
    resized = encoding.to_image(pixels).resize((width, height), Image.Resampling[preprocess.interpolation.upper()])
    return np.asarray(resized, dtype=np.uint8).reshape(height, width, -1)


def _blended(noisy: _Sent, clean: Tensor, strength: float, reference: Pixels | None) -> _Made:
    """`strength` of the cleaned picture [H, W, C], the rest as it was, under the alpha and the profile that it had;
    measured on white where there is a reference.
    """
    mixed = torch.lerp(_tensor(noisy.pixels).float(), clean, strength).round().clamp(0, 255)
    pixels: Pixels = mixed.to(torch.uint8).numpy()
    made = _png(noisy.with_alpha(pixels), noisy.profile)
    if reference is None:
        return made
    after, before = (_psnr(noisy.on_white(one), reference) for one in (pixels, noisy.pixels))
    return replace(made, psnr=after, psnr_before=before)


def _png(pixels: Pixels, profile: bytes | None = None) -> _Made:
    return _Made(encoding.encode_png(pixels, profile), pixels.shape[1], pixels.shape[0])


def _psnr(pixels: Pixels, reference: Pixels) -> float:
    """Peak signal-to-noise ratio over all channels, in dB; infinite for equal pictures."""
    error = float(np.mean((pixels.astype(np.float64) - reference) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
