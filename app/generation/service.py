"""The generation service: samples from a seed, images from given latents, interpolation between samples.

A sample depends only on the weights, the seed, its index, its label and the truncation: not on the number of samples
or on other requests.
"""

from __future__ import annotations

import base64
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from app.errors import Unprocessable
from app.generation.schemas import (
    GeneratedImage,
    GenerateParams,
    GenerateResponse,
    ImagesRequest,
    ImagesResponse,
    InterpolateParams,
    LatentsRequest,
    ListedImage,
)
from app.images import encoding
from app.images.encoding import PNG, WEBP, EncodedFile, Pixels
from app.inference import class_labels
from app.inference.loaded_model import LoadedModel
from app.inference.predictor import Predictor
from app.inference.submodels import DECODER
from app.observability import timings
from models import runtime
from models.card import ModelCard
from models.generative import latents
from models.registry import configure

T = TypeVar("T")

# Random seeds are below this: JSON parsers often read numbers as float64, which is exact up to 2**53.
RANDOM_SEEDS = 2**53
FRAME_MS = 100


@dataclass(frozen=True)
class _Samples:
    """Images uint8 [N, H, W, C] and their classes."""

    card: ModelCard
    pixels: Pixels
    classes: list[int] | None


class Generation:
    """Generates images."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._model_manager = predictor.model_manager

    async def generate(self, params: GenerateParams, if_none_match: str | None) -> EncodedFile:
        """Return samples of a seed; without content if their ETag is in `if_none_match`.

        Raises:
            Unprocessable: unknown labels. UnknownModel, Overloaded, NotReady, DeadlineExceeded.
        """
        model = await self._load(params.model)
        classes = _classes_or_all(model.card, params.label, params.n)
        if params.seed is None:
            seed, created = secrets.randbelow(RANDOM_SEEDS), int(time.time())
            headers = {"X-Seed": str(seed), "Cache-Control": "no-store"}
        else:
            seed, created = params.seed, 0
            query = params.model_dump(exclude={"model", "label"}) | {"classes": classes}
            headers = {"X-Seed": str(seed), **_cache_headers(model, "generate", query)}
            if encoding.etag_matches(headers["ETag"], if_none_match):
                return EncodedFile(None, PNG, headers)
        noise = _noise(model.card, seed, params.n)
        samples = await self._decode(model, noise * params.truncation, classes)
        return await self._file(samples, params.format, params.grid, headers, created, seed)

    async def images(self, request: ImagesRequest) -> ImagesResponse:
        """Return samples in OpenAI's format.

        Raises:
            Unprocessable: the prompt is no label of the model, or the size is not the model's; as `generate`.
        """
        model = await self._load(request.model)
        card, count = model.card, request.n or 1
        classes = class_labels.require_labels(card, [request.prompt] if request.prompt.strip() else [], count)
        _, height, width = card.preprocess.shape
        size = f"{width}x{height}"
        if request.size not in (None, "auto", size):
            raise Unprocessable(f"{card.name} generates images of {size}, not {request.size}")
        seed = secrets.randbelow(RANDOM_SEEDS) if request.seed is None else request.seed
        samples = await self._decode(model, _noise(card, seed, count), classes)
        images = [
            ListedImage(url=f"data:{PNG};base64,{text}", label=label)
            if request.response_format == "url"
            else ListedImage(b64_json=text, label=label)
            for text, label in await self._base64(samples)
        ]
        return ImagesResponse(
            created=int(time.time()) if request.seed is None else 0,
            data=images,
            size=size,
            model=card.name,
            version=card.version,
            seed=seed,
        )

    async def decode(self, request: LatentsRequest) -> EncodedFile:
        """Decode given latents, with any model that has a decoder.

        Raises:
            Unprocessable: latents of another width than the model's; as `generate`.
        """
        card = self._model_manager.find_card(request.model, "generate", "reconstruct", "denoise")
        model = await self._model_manager.load_submodel(card, DECODER)
        width = _latent_width(card)
        if wrong := [len(latent) for latent in request.latents if len(latent) != width]:
            raise Unprocessable(f"latents of {card.name} have {width} numbers; got {wrong[0]}")
        classes = _classes_or_all(card, request.labels, len(request.latents))
        samples = await self._decode(model, torch.tensor(request.latents, dtype=torch.float32), classes)
        return await self._file(samples, request.format, request.grid, {})

    async def interpolate(self, params: InterpolateParams, if_none_match: str | None) -> EncodedFile:
        """Interpolate between the first samples of two seeds; `if_none_match` as in `generate`.

        Raises:
            Unprocessable: not exactly one label for a conditional model; as `generate`.
        """
        model = await self._load(params.model)
        classes = class_labels.require_labels(model.card, params.label, 1)
        query = params.model_dump(exclude={"model", "label"}) | {"classes": classes}
        headers = _cache_headers(model, "interpolate", query)
        if encoding.etag_matches(headers["ETag"], if_none_match):
            return EncodedFile(None, PNG, headers)
        first, last = (latents(seed, 0, _latent_width(model.card)) for seed in (params.from_seed, params.to_seed))
        points = slerp(first, last, params.steps)
        samples = await self._decode(model, points, None if classes is None else classes * params.steps)
        if params.format == "png":
            return await self._file(samples, "png", params.steps, headers)
        content = await self._run_encoder(lambda: encoding.encode_animation(list(samples.pixels), FRAME_MS))
        return EncodedFile(content, WEBP, headers)

    async def _load(self, name: str | None) -> LoadedModel:
        return await self._model_manager.load_submodel(self._model_manager.find_card(name, "generate"), DECODER)

    async def _decode(self, model: LoadedModel, latent: Tensor, classes: list[int] | None) -> _Samples:
        items = torch.cat([latent, class_labels.one_hot(model.card, classes, len(latent))], dim=1)
        outputs = await self._predictor.with_deadline(self._predictor.run(model, items))
        return _Samples(model.card, model.card.preprocess.denormalise(outputs).numpy(), classes)

    async def _file(
        self,
        samples: _Samples,
        file_format: str,
        columns: int | None,
        headers: Mapping[str, str],
        created: int = 0,
        seed: int | None = None,
    ) -> EncodedFile:
        """Return the samples as a grid, or one by one in JSON."""
        if file_format == "json":
            card, images = samples.card, await self._base64(samples)
            data = [GeneratedImage(b64_json=text, label=label) for text, label in images]
            response = GenerateResponse(created=created, data=data, model=card.name, version=card.version, seed=seed)
            return encoding.encode_json(response, headers)
        pixels = encoding.grid(samples.pixels, columns or math.ceil(math.sqrt(len(samples.pixels))))
        encode, media_type = (encoding.encode_webp, WEBP) if file_format == "webp" else (encoding.encode_png, PNG)
        return EncodedFile(await self._run_encoder(lambda: encode(pixels)), media_type, headers)

    async def _base64(self, samples: _Samples) -> list[tuple[str, str | None]]:
        """Return each sample as PNG in base64, with its label."""
        texts = await self._run_encoder(
            lambda: [base64.b64encode(encoding.encode_png(pixels)).decode() for pixels in samples.pixels]
        )
        return list(zip(texts, class_labels.label_names(samples.card, samples.classes, len(texts)), strict=True))

    async def _run_encoder(self, function: Callable[[], T]) -> T:
        return await timings.timed("encode", self._predictor.executors.run_cpu(function))


def slerp(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Spherical linear interpolation: return `steps` points [steps, D] from `start` to `end` [D], both included.

    The length of Gaussian noise in D dimensions is close to sqrt(D). On a straight line the middle of two samples is
    shorter by sqrt(2), a region the network hardly saw in training; on the arc every point is as long as a sample
    (White, "Sampling Generative Networks", 2016).
    """
    first, last = start.double().numpy(), end.double().numpy()
    cosine = first @ last / (np.linalg.norm(first) * np.linalg.norm(last))
    angle = math.acos(min(1.0, max(-1.0, float(cosine))))
    share = np.linspace(0, 1, steps)[:, None]
    # Parallel vectors do not define a great circle: interpolate linearly.
    straight = math.sin(angle) < 1e-9
    left, right = (part if straight else np.sin(part * angle) / math.sin(angle) for part in (1 - share, share))
    return torch.from_numpy((left * first + right * last).astype(np.float32))


def _latent_width(card: ModelCard) -> int:
    return int(configure(card.architecture, card.config).latent)


def _noise(card: ModelCard, seed: int, count: int) -> Tensor:
    """Return the latents [count, width] of a seed's first samples."""
    return torch.stack([latents(seed, index, _latent_width(card)) for index in range(count)])


def _classes_or_all(card: ModelCard, labels: list[str], count: int) -> list[int] | None:
    """Return the requested classes; without any, all classes of a conditional model in turn."""
    classes = class_labels.parse_labels(card, labels, count)
    if classes is None and card.classes:
        return [index % len(card.classes) for index in range(count)]
    return classes


def _cache_headers(model: LoadedModel, route: str, query: dict[str, object]) -> dict[str, str]:
    """Return the headers of a reproducible response; its ETag depends on the weights and library versions."""
    parts = model.card.sha256, model.runtime.name, runtime.signature(), np.__version__, route, query
    return {"ETag": encoding.etag(*parts), "Cache-Control": "no-cache"}
