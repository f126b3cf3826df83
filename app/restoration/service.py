"""The service for denoising, reconstructing and encoding images."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
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
from app.restoration.request_bodies import DenoiseRequest
from app.schemas import Failed
from app.settings import Settings
from models import image_decoder
from models.card import ModelCard
from models.generative import with_label_planes
from models.preprocess import Preprocess
from models.registry import Task

# Each image is in memory in several copies while its tiles are computed.
MAX_CONCURRENT_IMAGES = 4
# Encoding more pixels as PNG counts as long work: half a million of a photo took 0.14 s on one core.
LONG_PIXELS = 500_000
# The position of the colour space in an ICC profile. Larger profiles are dropped.
PROFILE_COLOURS = slice(16, 20)
COLOURS = {"RGB": b"RGB ", "L": b"GRAY"}
MAX_PROFILE_BYTES = 2**20
# Tasks whose models may have an encoder; the first one's default model is used.
ENCODING: tuple[Task, ...] = ("reconstruct", "generate", "denoise")


@dataclass(frozen=True)
class _ImageResult:
    """An image as PNG and its peak signal-to-noise ratios in dB."""

    png: bytes
    width: int
    height: int
    psnr: float | None = None
    psnr_before: float | None = None

    def reconstructed(self, index: int) -> Reconstructed:
        """Return the result as an item of a list."""
        text = base64.b64encode(self.png).decode()
        return Reconstructed(index=index, width=self.width, height=self.height, b64_json=text)

    def denoised(self, index: int) -> Denoised:
        """Return the result as an item of a list, with the finite ratios."""
        ratios = {"psnr": self.psnr, "psnr_before": self.psnr_before}
        finite = {name: ratio for name, ratio in ratios.items() if ratio is not None and math.isfinite(ratio)}
        return Denoised(**self.reconstructed(index).model_dump(), **finite)

    def file(self) -> EncodedFile:
        """Return the PNG file, with the signal-to-noise ratios as headers."""
        measures = {"X-PSNR": self.psnr, "X-PSNR-Before": self.psnr_before}
        return EncodedFile(
            self.png, PNG, {name: f"{value:.4f}" for name, value in measures.items() if value is not None}
        )


@dataclass(frozen=True)
class _DecodedImage:
    """A decoded image: `pixels`, uint8 [H, W, C], in the network's colours; `alpha`, uint8 [H, W], or None.

    `profile` and `chunks` define how viewers show its colours: an ICC profile, or the chunks of a PNG with gamma.
    `is_grey`: the profile is one of grey levels, so the response must be grey, too.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    profile: bytes | None = None
    chunks: Mapping[bytes, bytes] = field(default_factory=dict)
    is_grey: bool = False

    def on_white(self, pixels: Pixels) -> Pixels:
        """Composite pixels [H, W, C] with this image's alpha on white: uint8 [H, W, C]."""
        if self.alpha is None:
            return pixels
        composited = image_decoder.composite_on_white(
            encoding.to_image(np.dstack([pixels, self.alpha])).convert("RGBA")
        )
        return np.asarray(composited.convert("L" if pixels.shape[-1] == 1 else "RGB"), np.uint8).reshape(pixels.shape)

    def encode(self, pixels: Pixels) -> _ImageResult:
        """Encode pixels [H, W, C] with this image's alpha, ICC profile and chunks."""
        visible = pixels[..., :1] if self.is_grey else pixels
        channels = visible if self.alpha is None else np.dstack([visible, self.alpha])
        return _encode(channels, self.profile, self.chunks)


class Restoration:
    """Denoises, reconstructs and encodes images."""

    def __init__(self, settings: Settings, predictor: Predictor):
        self._predictor = predictor
        self._model_manager = predictor.model_manager
        self._executors = predictor.executors
        self._max_pixels = settings.max_denoise_pixels
        self._image_slots = asyncio.Semaphore(MAX_CONCURRENT_IMAGES)
        self._queue_slots = predictor.queue_slots()

    async def denoise(self, request: DenoiseRequest, params: DenoiseParams) -> EncodedFile:
        """Denoise each image in its own size: in tiles, or resized for a network of a fixed size.

        Raises:
            VestibuleError: about the request or its only image. In a list, an image's error becomes its item.
        """
        requested = self._model_manager.find_card(params.model, "denoise")
        _check_format(request.images, params.format)
        model = await self._model_manager.load_submodel(requested, default_submodel(requested))
        card = model.card
        run = self._run_tiles if size_multiple(requested) else self._run_resized
        references, images = (
            [data for data in items if isinstance(data, bytes)] for items in (request.references, request.images.items)
        )
        await self._predictor.check_pixels(references, transformed=images)

        async def denoise_image(index: int, data: bytes) -> _ImageResult:
            async with self._image_slots:
                noisy = await self._decode(card, data)
                reference = await self._decode_reference(card, request.references[index], noisy)
                clean = await run(model, noisy.pixels)
                return await self._executors.run_cpu(
                    lambda: _blend(noisy, clean, params.strength, reference),
                    is_long=math.prod(noisy.pixels.shape[:2]) > LONG_PIXELS,
                )

        results = await self._predictor.for_each_checked(request.images, denoise_image)
        return await self._response(card, results, params.format, DenoiseResponse, _ImageResult.denoised)

    async def reconstruct(self, images: Images, params: ReconstructParams) -> EncodedFile:
        """Encode each image to its latent and decode it again, in the network's size.

        Raises:
            VestibuleError: as `denoise`; Unprocessable: no label for a conditional model.
        """
        requested = self._model_manager.find_card(params.model, *ENCODING)
        _check_format(images, params.format)
        model = await self._model_manager.load_submodel(requested, RECONSTRUCTOR)
        card = model.card
        run = self._labelled_network(model, params.label, len(images.items))

        async def reconstruct_image(index: int, data: bytes) -> _ImageResult:
            output = await run(index, data)
            return await self._executors.run_cpu(lambda: _encode(_remove_padding(card.preprocess, output)))

        results = await self._predictor.for_each_image(images, reconstruct_image)
        return await self._response(card, results, params.format, ReconstructResponse, _ImageResult.reconstructed)

    async def encode(self, images: Images, params: EncodeParams) -> EncodeResponse:
        """Return each image's latent vector.

        Raises:
            VestibuleError: as `reconstruct`.
        """
        model = await self._model_manager.load_submodel(self._model_manager.find_card(params.model, *ENCODING), ENCODER)
        run = self._labelled_network(model, params.label, len(images.items))

        async def encode_image(index: int, data: bytes) -> Encoded:
            return Encoded(index=index, latent=(await run(index, data)).tolist())

        items = await self._predictor.for_each_image(images, encode_image)
        return EncodeResponse(model=model.card.name, version=model.card.version, data=items)

    async def _response(
        self,
        card: ModelCard,
        results: Sequence[_ImageResult | Failed],
        file_format: str,
        schema: type[DenoiseResponse | ReconstructResponse],
        to_item: Callable[[_ImageResult, int], Denoised | Reconstructed],
    ) -> EncodedFile:
        """Return the only result as PNG, or all as JSON, which is encoded in a thread since it contains images."""
        first = results[0]
        if file_format == "png" and isinstance(first, _ImageResult):
            return first.file()

        def encode() -> EncodedFile:
            data = [
                result if isinstance(result, Failed) else to_item(result, index) for index, result in enumerate(results)
            ]
            return encoding.encode_json(schema(model=card.name, version=card.version, data=data), {})

        return await self._executors.run_cpu(encode)

    def _labelled_network(
        self, model: LoadedModel, labels: Sequence[str], count: int
    ) -> Callable[[int, bytes], Awaitable[Tensor]]:
        """Return a function of an image's index and bytes that returns the network's output for it and its label."""
        card, preprocess = model.card, model.card.preprocess
        one_hot = class_labels.one_hot(card, class_labels.require_labels(card, labels, count), count)

        async def run(index: int, data: bytes) -> Tensor:
            item = await self._predictor.decode(
                data,
                lambda image: with_label_planes(preprocess(image)[None], one_hot[index : index + 1])[0],
                preprocess.max_useful_side,
                grey=preprocess.is_grey,
            )
            return (await self._predictor.run(model, [item], slots=self._queue_slots))[0]

        return run

    async def _decode(self, card: ModelCard, data: bytes) -> _DecodedImage:
        return await self._predictor.decode(data, lambda image: self._split(card, image), keep_alpha=True)

    def _split(self, card: ModelCard, image: Image.Image) -> _DecodedImage:
        """Separate an image into the network's input colours and the attributes that the response keeps."""
        if image.width * image.height > self._max_pixels:
            raise ImageTooLarge(
                f"the image has {image.width} x {image.height} pixels; at most {self._max_pixels} are denoised"
            )
        alpha = np.asarray(image.getchannel("A"), np.uint8) if image.mode == "RGBA" else None
        mode = card.preprocess.mode
        pixels = np.asarray(image.convert("RGB").convert(mode), dtype=np.uint8)
        pixels = pixels.reshape(image.height, image.width, card.preprocess.channels)
        profile: bytes | None = image.info.get("icc_profile")
        if not profile:
            return _DecodedImage(pixels, alpha, chunks=_gamma_chunks(image))
        is_grey = profile[PROFILE_COLOURS] == COLOURS["L"] and mode == "RGB" and bool((pixels == pixels[..., :1]).all())
        if len(profile) > MAX_PROFILE_BYTES or not (is_grey or profile[PROFILE_COLOURS] == COLOURS[mode]):
            return _DecodedImage(pixels, alpha)
        return _DecodedImage(pixels, alpha, profile, is_grey=is_grey)

    async def _decode_reference(
        self, card: ModelCard, data: bytes | VestibuleError | None, noisy: _DecodedImage
    ) -> Pixels | None:
        """Return the reference's pixels, composited on white."""
        if isinstance(data, VestibuleError):
            raise data
        if data is None:
            return None
        reference = await self._decode(card, data)
        if reference.pixels.shape != noisy.pixels.shape:
            shapes = (noisy.pixels.shape, reference.pixels.shape)
            sizes = " and ".join(f"{width} x {height}" for height, width, _ in shapes)
            raise Unprocessable(f"the image and its reference differ in size: {sizes}")
        return reference.on_white(reference.pixels)

    async def _run_tiles(self, model: LoadedModel, noisy: Pixels) -> Tensor:
        """Run the network on tiles: uint8 [H, W, C] -> float32 [H, W, C] on the scale of 0..255."""
        preprocess = model.card.preprocess
        height, width, _ = noisy.shape
        tiling = Tiling(height, width, size_multiple(model.card))
        tiles = await self._executors.run_cpu(lambda: tiling.cut(tiling.pad(preprocess.normalise(_tensor(noisy)))))
        outputs = await self._predictor.run(model, tiles, slots=self._queue_slots)
        std, mean = torch.tensor(preprocess.std), torch.tensor(preprocess.mean)
        return await self._executors.run_cpu(lambda: tiling.join(outputs).movedim(0, -1) * std + mean)

    async def _run_resized(self, model: LoadedModel, noisy: Pixels) -> Tensor:
        """Like `_run_tiles`, but stretched to the network's size and back."""
        preprocess = model.card.preprocess
        network_size, image_size = preprocess.size[::-1], noisy.shape[1::-1]

        def prepare() -> Tensor:
            small = _resize(preprocess, noisy, network_size)
            padded = np.pad(small, ((preprocess.pad, preprocess.pad), (preprocess.pad, preprocess.pad), (0, 0)))
            return preprocess.normalise(_tensor(padded))

        item = await self._executors.run_cpu(prepare)
        (output,) = await self._predictor.run(model, [item], slots=self._queue_slots)
        return await self._executors.run_cpu(
            lambda: _tensor(_resize(preprocess, _remove_padding(preprocess, output), image_size)).float()
        )


def _gamma_chunks(image: Image.Image) -> dict[bytes, bytes]:
    """Return the PNG chunks by which viewers correct an image's gamma and primaries; sRGB's need no correction."""
    if "srgb" in image.info or not image.info.get("gamma"):
        return {}
    chunks = {b"gAMA": struct.pack(">I", round(image.info["gamma"] * 100_000))}
    if "chromaticity" in image.info:
        chunks[b"cHRM"] = struct.pack(">8I", *(round(value * 100_000) for value in image.info["chromaticity"]))
    return chunks


def _check_format(images: Images, file_format: str) -> None:
    """Check that a response with one file is not requested for a list.

    Raises:
        Unprocessable: if it is.
    """
    if file_format == "png" and images.is_list:
        raise Unprocessable("the response to a list of images is JSON: use format=json")


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.copy())


def _remove_padding(preprocess: Preprocess, output: Tensor) -> Pixels:
    """Convert a network's output [C, H, W] to uint8 [H, W, C] without the padding of preprocessing."""
    pad = preprocess.pad
    pixels: Pixels = preprocess.denormalise(output).numpy()
    return pixels[pad : pixels.shape[0] - pad, pad : pixels.shape[1] - pad]


def _resize(preprocess: Preprocess, pixels: Pixels, size: Sequence[int]) -> Pixels:
    """Resize uint8 [h, w, C] to uint8 [H, W, C]; `size` is (W, H)."""
    width, height = size
    resized = encoding.to_image(pixels).resize((width, height), Image.Resampling[preprocess.interpolation.upper()])
    return np.asarray(resized, dtype=np.uint8).reshape(height, width, -1)


def _blend(noisy: _DecodedImage, clean: Tensor, strength: float, reference: Pixels | None) -> _ImageResult:
    """Interpolate between the noisy and the clean image [H, W, C] and encode the result.

    With a reference, measure both composited on white.
    """
    mixed = torch.lerp(_tensor(noisy.pixels).float(), clean, strength).round().clamp(0, 255)
    pixels: Pixels = mixed.to(torch.uint8).numpy()
    if noisy.is_grey:
        pixels = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"), np.uint8)
    result = noisy.encode(pixels)
    if reference is None:
        return result
    after, before = (_psnr(noisy.on_white(image), reference) for image in (pixels, noisy.pixels))
    return replace(result, psnr=after, psnr_before=before)


def _encode(pixels: Pixels, profile: bytes | None = None, chunks: Mapping[bytes, bytes] | None = None) -> _ImageResult:
    return _ImageResult(encoding.encode_png(pixels, profile, chunks), pixels.shape[1], pixels.shape[0])


def _psnr(pixels: Pixels, reference: Pixels) -> float:
    """Return the peak signal-to-noise ratio over all channels in dB; infinite for equal images."""
    error = float(np.mean((pixels.astype(np.float64) - reference) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
