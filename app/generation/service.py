"""The use cases about new pictures: samples of a seed, what lies at given latents, the way from one sample to another.

A sample is a function of the weights, the seed, its place, its label and the truncation: neither of how many are drawn
nor of what else is under way.
"""

from __future__ import annotations

import base64
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

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

# A drawn seed is told in JSON, whose readers often hold numbers as float64: 2**53 is what those hold exactly.
DRAWN_SEEDS = 2**53
FRAME_MS = 100


@dataclass(frozen=True)
class _Samples:
    """Pictures uint8 [N, H, W, C], and their classes."""

    card: ModelCard
    pixels: Pixels
    classes: list[int] | None


class Generation:
    """Draw."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._model_manager = predictor.model_manager
        self._executors = predictor.executors

    async def generate(self, params: GenerateParams, known: str | None) -> EncodedFile:
        """Samples of a seed; no content where `known`, an If-None-Match, names just these.

        Raises:
            Unprocessable: labels that the model has not. UnknownModel, Overloaded, NotReady, DeadlineExceeded.
        """
        model = await self._model_manager.load_submodel(
            self._model_manager.find_card(params.model, "generate"), DECODER
        )
        classes = _in_turn(model.card, params.label, params.n)
        if params.seed is None:
            seed, created = secrets.randbelow(DRAWN_SEEDS), int(time.time())
            headers = {"X-Seed": str(seed), "Cache-Control": "no-store"}
        else:
            seed, created = params.seed, 0
            asked = params.model_dump(exclude={"model", "label"}) | {"classes": classes}
            headers = {"X-Seed": str(seed), **_kept(model, "generate", asked)}
            if encoding.etag_matches(headers["ETag"], known):
                return EncodedFile(None, PNG, headers)
        noise = _noise(model.card, seed, params.n)
        samples = await self._drawn(model, noise * params.truncation, classes)
        if params.format == "json":
            return await self._listed(samples, created, seed, headers)
        return await self._sheet(samples, params.format, params.grid, headers)

    async def images(self, asked: ImagesRequest) -> ImagesResponse:
        """Samples, asked for in OpenAI's words.

        Raises:
            Unprocessable: a prompt that is no label of the model, or a size that is not its own; as `generate`.
        """
        model = await self._model_manager.load_submodel(self._model_manager.find_card(asked.model, "generate"), DECODER)
        card, count = model.card, asked.n or 1
        classes = class_labels.require_labels(card, [asked.prompt] if asked.prompt.strip() else [], count)
        size = _own_size(card, asked.size)
        seed = secrets.randbelow(DRAWN_SEEDS) if asked.seed is None else asked.seed
        samples = await self._drawn(model, _noise(card, seed, count), classes)
        texts = await self._texts(samples)
        names = class_labels.label_names(card, classes, count)
        images = [_listed(*pair, asked.response_format) for pair in zip(texts, names, strict=True)]
        created = int(time.time()) if asked.seed is None else 0
        return ImagesResponse(created=created, data=images, size=size, model=card.name, version=card.version, seed=seed)

    async def decode(self, sent: LatentsRequest) -> EncodedFile:
        """What lies at latents that the caller chose, of any model that decodes.

        Raises:
            Unprocessable: another width than the model's; as `generate`.
        """
        card = self._model_manager.find_card(sent.model, "generate", "reconstruct", "denoise")
        model = await self._model_manager.load_submodel(card, DECODER)
        width = _width(card)
        if wrong := [len(latent) for latent in sent.latents if len(latent) != width]:
            raise Unprocessable(f"a latent of {wrong[0]} numbers was sent; those of {card.name} have {width}")
        classes = _in_turn(card, sent.labels, len(sent.latents))
        samples = await self._drawn(model, torch.tensor(sent.latents, dtype=torch.float32), classes)
        if sent.format == "json":
            return await self._listed(samples, 0, None, {})
        return await self._sheet(samples, sent.format, sent.grid, {})

    async def interpolate(self, params: InterpolateParams, known: str | None) -> EncodedFile:
        """The way from the first sample of one seed to the first of another; `known` as for `generate`.

        Raises:
            Unprocessable: no label for a conditional model, or several; as `generate`.
        """
        model = await self._model_manager.load_submodel(
            self._model_manager.find_card(params.model, "generate"), DECODER
        )
        classes = class_labels.require_labels(model.card, params.label, 1)
        headers = _kept(model, "interpolate", params.model_dump(exclude={"model", "label"}) | {"classes": classes})
        if encoding.etag_matches(headers["ETag"], known):
            return EncodedFile(None, PNG, headers)
        first, last = (latents(seed, 0, _width(model.card)) for seed in (params.from_seed, params.to_seed))
        way = between(first, last, params.steps)
        samples = await self._drawn(model, way, None if classes is None else classes * params.steps)
        if params.format == "png":
            return await self._sheet(samples, "png", params.steps, headers)
        content = await self._encoded(lambda: encoding.encode_animation(list(samples.pixels), FRAME_MS))
        return EncodedFile(content, WEBP, headers)

    async def _drawn(self, model: LoadedModel, latent: Tensor, classes: list[int] | None) -> _Samples:
        items = torch.cat([latent, class_labels.one_hot(model.card, classes, len(latent))], dim=1)
        pictures = await self._predictor.with_deadline(self._predictor.run(model, items))
        return _Samples(model.card, model.card.preprocess.denormalise(pictures).numpy(), classes)

    async def _sheet(
        self, samples: _Samples, form: str, columns: int | None, headers: Mapping[str, str]
    ) -> EncodedFile:
        pixels = encoding.grid(samples.pixels, columns or math.ceil(math.sqrt(len(samples.pixels))))
        encode, media_type = (encoding.encode_webp, WEBP) if form == "webp" else (encoding.encode_png, PNG)
        return EncodedFile(await self._encoded(lambda: encode(pixels)), media_type, headers)

    async def _listed(
        self, samples: _Samples, created: int, seed: int | None, headers: Mapping[str, str]
    ) -> EncodedFile:
        card = samples.card
        texts = await self._texts(samples)
        names = class_labels.label_names(card, samples.classes, len(texts))
        images = [GeneratedImage(b64_json=text, label=name) for text, name in zip(texts, names, strict=True)]
        answer = GenerateResponse(created=created, data=images, model=card.name, version=card.version, seed=seed)
        return encoding.encode_json(answer, headers)

    async def _texts(self, samples: _Samples) -> list[str]:
        """Each sample as PNG in base64."""
        return await self._encoded(
            lambda: [base64.b64encode(encoding.encode_png(one)).decode() for one in samples.pixels]
        )

    async def _encoded(self, function: Callable[[], T]) -> T:
        started = time.perf_counter()
        answer = await self._executors.run_cpu(function)
        timings.record("encode", time.perf_counter() - started)
        return answer


def between(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Points [steps, D] from `start` to `end` [D], both among them, evenly along the great circle through them.

    The length of Gaussian noise in D dimensions is close to sqrt(D). On a straight line the middle of two samples is
    shorter by sqrt(2), where the network saw next to nothing in training; on the arc every point is as long as a
    sample (White, "Sampling Generative Networks", 2016).
    """
    first, last = start.double().numpy(), end.double().numpy()
    cosine = first @ last / (np.linalg.norm(first) * np.linalg.norm(last))
    angle = math.acos(min(1.0, max(-1.0, float(cosine))))
    share = np.linspace(0, 1, steps)[:, None]
    # Two that point one way have no circle between them, and the straight line is as good.
    straight = math.sin(angle) < 1e-9
    left = 1 - share if straight else np.sin((1 - share) * angle) / math.sin(angle)
    right = share if straight else np.sin(share * angle) / math.sin(angle)
    return torch.from_numpy((left * first + right * last).astype(np.float32))


def _width(card: ModelCard) -> int:
    width: int = configure(card.architecture, card.config).latent
    return width


def _noise(card: ModelCard, seed: int, count: int) -> Tensor:
    """The latents of a seed's first samples, [count, width]."""
    return torch.stack([latents(seed, index, _width(card)) for index in range(count)])


def _listed(text: str, label: str | None, form: Literal["b64_json", "url"] | None) -> ListedImage:
    if form == "url":
        return ListedImage(url=f"data:{PNG};base64,{text}", label=label)
    return ListedImage(b64_json=text, label=label)


def _own_size(card: ModelCard, asked: str | None) -> str:
    _, height, width = card.preprocess.shape
    own = f"{width}x{height}"
    if asked not in (None, "auto", own):
        raise Unprocessable(f"{card.name} draws pictures of {own}, not of {asked}")
    return own


def _in_turn(card: ModelCard, sent: list[str], count: int) -> list[int] | None:
    """The classes asked for; where none are, those of a conditional model in turn."""
    classes = class_labels.parse_labels(card, sent, count)
    if classes is None and card.classes:
        return [index % len(card.classes) for index in range(count)]
    return classes


def _kept(model: LoadedModel, call: str, asked: dict[str, object]) -> dict[str, str]:
    """Headers of an answer that is the same whenever it is asked for; other weights under the name change the tag."""
    parts = model.card.sha256, model.runtime, runtime.signature(), np.__version__, call, asked
    return {"ETag": encoding.etag(*parts), "Cache-Control": "no-cache"}
